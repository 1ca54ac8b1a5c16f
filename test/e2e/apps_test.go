package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
)

// A program of the host runs as it would in a shell there, but in namespaces of its own, and serves on its assigned port.
func TestPythonWithoutImage(t *testing.T) {
	needRoot(t)
	c := start(t)
	list := c.deploy(&model.Spec{
		ID: "/files",
		Containers: []model.Container{{
			Command: []string{"python3", "-m", "http.server", "$PORT0"}, Dir: "/usr/share/doc", CPUs: 500, Memory: 128 * model.MiB,
		}},
		Endpoints: []model.Endpoint{{Name: "http"}},
		Health:    []model.Check{{HTTP: &model.HTTPCheck{Endpoint: "http"}}},
	})
	if len(list) != 1 {
		t.Fatalf("%d instances run, want 1", len(list))
	}
	i := list[0]
	resp, err := http.Get(fmt.Sprintf("http://%s:%d/", i.Addr, i.Endpoints["http"]))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), "Directory listing") {
		t.Errorf("status %d, body %.200q, error %v; want a directory listing", resp.StatusCode, body, err)
	}

	if out, _ := c.exec(i.ID, "sh", "-c", "ls /proc | grep -c '^[0-9]'"); strings.TrimSpace(out) == "" || len(strings.TrimSpace(out)) > 1 {
		t.Errorf("the instance sees %q processes, want only its own few", strings.TrimSpace(out))
	}
	if out, code := c.exec(i.ID, "sh", "-c", "echo $GANTRY_APP_ID $GANTRY_INSTANCE_ID $PORT0; exit 7"); code != 7 ||
		strings.TrimSpace(out) != fmt.Sprintf("/files %s %d", i.ID, i.Endpoints["http"]) {
		t.Errorf("exec printed %q and ended with %d", out, code)
	}
	if !strings.Contains(c.logs(i.ID, "stderr"), "GET / HTTP/1.1") {
		t.Errorf("stderr lacks the request: %q", c.logs(i.ID, "stderr"))
	}
}

// A program that wants more memory than its limit is ended, and the reason is said with both figures.
func TestMemoryHogIsExplained(t *testing.T) {
	needRoot(t)
	c := start(t)
	spec := &model.Spec{
		ID: "/hog",
		Containers: []model.Container{{
			Command: []string{"python3", "-c", "x = bytearray(200 << 20); import time; time.sleep(600)"}, Memory: 48 * model.MiB, CPUs: 500,
		}},
		Restart: &model.Restart{Backoff: model.Duration(time.Minute)},
	}
	change, err := c.PutApp(testContext(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	c.until("the hog to be killed and explained", func() bool {
		app, err := c.App(testContext(t), change.App)
		if err != nil || len(app.List) == 0 {
			return false
		}
		s := app.List[0].Status
		if s.Phase != model.PhaseBackoff {
			return false
		}
		exit := s.Tasks[0].Exit
		if exit == nil || !exit.OOM || exit.Limit != 48*model.MiB || exit.Peak < 32*model.MiB || exit.Peak > 49*model.MiB {
			t.Fatalf("exit = %+v, want OOM at a limit of 48MiB", exit)
		}
		if !strings.Contains(s.Message, "memory limit") || !strings.Contains(s.Message, "48MiB") {
			t.Fatalf("message %q does not explain the kill", s.Message)
		}
		return true
	})
}

// A program that ends at once is started again with growing waits, and says how it ended.
func TestCrashLoopBacksOff(t *testing.T) {
	needRoot(t)
	c := start(t)
	spec := shell("/crash", "date +%s.%N; exit 3")
	spec.Restart = &model.Restart{Backoff: model.Duration(200 * time.Millisecond), Factor: 3, Max: model.Duration(time.Minute)}
	if _, err := c.PutApp(testContext(t), spec); err != nil {
		t.Fatal(err)
	}
	var id model.InstanceID
	c.until("four attempts", func() bool {
		app, err := c.App(testContext(t), "/crash")
		if err != nil || len(app.List) == 0 {
			return false
		}
		id = app.List[0].ID
		s := app.List[0].Status
		return s.Attempt == 4 && s.Phase == model.PhaseBackoff && strings.Contains(s.Message, "exit")
	})
	var times []float64
	for line := range strings.Lines(c.logs(id, "stdout")) {
		var at float64
		if _, err := fmt.Sscan(line, &at); err != nil {
			t.Fatal(err)
		}
		times = append(times, at)
	}
	if len(times) != 4 {
		t.Fatalf("the program ran %d times, want 4: its logs have a hole or too much", len(times))
	}
	for n, least := range []float64{0.2, 0.6, 1.8} {
		if gap := times[n+1] - times[n]; gap < least {
			t.Errorf("wait %d took %.2fs, want at least %.1fs", n+1, gap, least)
		}
	}
}

// Artifacts are fetched, checked, unpacked and marked before the program starts; volumes are where the spec says.
func TestArtifactsAndVolumes(t *testing.T) {
	needRoot(t)
	c := start(t)
	src := t.TempDir()
	script := filepath.Join(src, "hello.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho hello from $0; echo kept >> data/file; touch scratch/here; sleep 600\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "new", "data")
	list := c.deploy(&model.Spec{
		ID: "/art",
		Containers: []model.Container{{
			Command: []string{"./bin/run"}, Memory: 32 * model.MiB,
			Artifacts: []model.Artifact{{URI: "file://" + script, Path: "bin/run", Executable: true}},
			Mounts:    []model.Mount{{Volume: "data", Path: "data"}, {Volume: "tmp", Path: "scratch"}},
		}},
		Volumes: []model.Volume{{Name: "data", HostPath: data}, {Name: "tmp", Scratch: true}},
	})
	c.until("the program to write into its volume", func() bool {
		b, err := os.ReadFile(filepath.Join(data, "file"))
		return err == nil && string(b) == "kept\n"
	})
	if out := c.logs(list[0].ID, "stdout"); !strings.Contains(out, "hello from ./bin/run") {
		t.Errorf("stdout = %q", out)
	}

	bad := shell("/bad", "sleep 600")
	bad.Containers[0].Artifacts = []model.Artifact{{URI: "file://" + script, Checksum: "sha256:" + strings.Repeat("0", 64)}}
	if _, err := c.PutApp(testContext(t), bad); err != nil {
		t.Fatal(err)
	}
	c.until("a wrong checksum to be explained", func() bool {
		app, err := c.App(testContext(t), "/bad")
		return err == nil && len(app.List) == 1 && strings.Contains(app.List[0].Why, "checksum") || err == nil && len(app.List) == 1 && strings.Contains(app.List[0].Why, "sha256")
	})
}

// CPU limits hold: a busy loop with a tenth of a core gets about that.
func TestCPULimitHolds(t *testing.T) {
	needRoot(t)
	c := start(t)
	list := c.deploy(shell("/busy", "while :; do :; done"))
	id := list[0].ID
	var first, last time.Duration
	begin := time.Now()
	cpu := func() time.Duration {
		u, err := c.Usage(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range u.Instances {
			if i.Instance == id {
				return i.Usage.CPUTime.Std()
			}
		}
		return 0
	}
	c.until("usage to be known", func() bool { first = cpu(); begin = time.Now(); return first > 0 })
	c.until("five seconds to pass", func() bool { return time.Since(begin) > 5*time.Second })
	last = cpu()
	if share := float64(last-first) / float64(time.Since(begin)); share > 0.2 || share < 0.01 {
		t.Errorf("a loop limited to 0.1 cores used %.3f", share)
	}
}

// What does not fit says why, and starts when it fits.
func TestPendingSaysWhy(t *testing.T) {
	needRoot(t)
	c := start(t)
	big := shell("/big", "sleep 600")
	big.Containers[0].Memory = 4 * model.TiB
	change, err := c.PutApp(testContext(t), big)
	if err != nil {
		t.Fatal(err)
	}
	c.until("a sentence", func() bool {
		app, err := c.App(testContext(t), "/big")
		return err == nil && len(app.List) == 1 && strings.Contains(app.List[0].Why, "memory") && strings.Contains(app.Why, "memory")
	})
	big.Containers[0].Memory = 32 * model.MiB
	if d := c.put(big); d.State != model.DeploySucceeded {
		t.Fatalf("deployment is %s: %s", d.State, d.Message)
	}
	if d, err := c.Deployment(testContext(t), change.Deployment); err != nil || d.State != model.DeploySuperseded {
		t.Errorf("the first deployment is %v (%v), want superseded", d.State, err)
	}
}
