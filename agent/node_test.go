package agent

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

func TestTaskOfAContainer(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a := program("web-1", func(s *model.Spec) {
			s.Endpoints = []model.Endpoint{{Name: "http"}, {Name: "admin-api"}}
			s.Volumes = []model.Volume{{Name: "data", HostPath: filepath.Join(w.dir, "made/data")}, {Name: "tmp", Scratch: true}}
			s.Containers[0] = model.Container{
				Command: []string{"serve", "$PORT0", "${HOST}:$PORT_ADMIN_API", "$HOME $PORT00 ${X} $$ $"},
				Env:     map[string]string{"A": "$PORT0", "HOST": "0.0.0.0", "GANTRY_APP_ID": "fake"},
				Mounts:  []model.Mount{{Volume: "data", Path: "data"}, {Volume: "tmp", Path: "/tmp", ReadOnly: true}},
			}
			s.Containers = append(s.Containers, model.Container{
				Name: "img", Image: "i", Shell: "echo $PORT0", Mounts: []model.Mount{{Volume: "tmp", Path: "x/y"}},
			})
		})
		a.Ports = []uint16{20001, 20002}
		w.up(a)
		w.wait(time.Second)
		w.wantPhase("web-1", 1, model.PhaseRunning)
		got, img := w.proc.starts[0], w.oci.starts[0]
		sandbox := w.agent.store.sandbox("web-1")
		if want := []string{"serve", "20001", "0.0.0.0:20002", "$HOME $PORT00 ${X} $$ $"}; !reflect.DeepEqual(got.Command, want) {
			t.Errorf("command %q, want %q", got.Command, want)
		}
		wantEnv := map[string]string{
			"A": "$PORT0", "HOST": "0.0.0.0", "PORT": "20001", "PORT0": "20001", "PORT1": "20002", "PORTS": "20001,20002",
			"PORT_HTTP": "20001", "PORT_ADMIN_API": "20002", "GANTRY_APP_ID": "/app", "GANTRY_APP_VERSION": "3",
			"GANTRY_INSTANCE_ID": "web-1", "GANTRY_NODE_ID": "n1", "GANTRY_NODE_NAME": "node", "GANTRY_SANDBOX": sandbox,
		}
		if !reflect.DeepEqual(got.Env, wantEnv) {
			t.Errorf("env %v, want %v", got.Env, wantEnv)
		}
		scratch := w.agent.store.volume("web-1", "tmp")
		if want := []runtime.Mount{{Source: filepath.Join(w.dir, "made/data"), Target: "data"}, {Source: scratch, Target: "/tmp", ReadOnly: true}}; !reflect.DeepEqual(got.Mounts, want) {
			t.Errorf("mounts %v, want %v", got.Mounts, want)
		}
		if want := []runtime.Mount{{Source: scratch, Target: "/gantry/sandbox/x/y"}}; !reflect.DeepEqual(img.Mounts, want) {
			t.Errorf("mounts %v, want %v", img.Mounts, want)
		}
		if !reflect.DeepEqual(img.Command, []string{"/bin/sh", "-c", "echo $PORT0"}) || img.Env["GANTRY_SANDBOX"] != runtime.SandboxPath {
			t.Errorf("image's command %q, sandbox %q", img.Command, img.Env["GANTRY_SANDBOX"])
		}
		for _, dir := range []string{filepath.Join(w.dir, "made/data"), filepath.Join(sandbox, "data"), filepath.Join(sandbox, "x/y"), scratch} {
			if info, err := os.Stat(dir); err != nil || !info.IsDir() {
				t.Errorf("%s: %v", dir, err)
			}
		}
		if info, _ := os.Stat(sandbox); info.Mode() != os.ModeDir|os.ModeSticky|0o777 {
			t.Errorf("the sandbox has mode %v", info.Mode())
		}
	})
}

func TestMountsThatCannotBe(t *testing.T) {
	for _, tt := range []struct {
		isolated bool
		path     string
		want     string
	}{
		{true, "/no/such/place", "main: mount /no/such/place: cannot start: without an image, /no/such/place must exist on the node"},
		{false, "/tmp", "main: mount /tmp: cannot start: this node does not isolate programs, so nothing can be mounted on /tmp; use a path in the sandbox"},
	} {
		bubble(t, func(t *testing.T, w *world) {
			w.node.Isolated.OK = tt.isolated
			w.up(program("a-1", func(s *model.Spec) {
				s.Volumes = []model.Volume{{Name: "v", Scratch: true}}
				s.Containers[0].Mounts = []model.Mount{{Volume: "v", Path: tt.path}}
			}))
			w.wait(100 * time.Millisecond)
			s := w.wantPhase("a-1", 1, model.PhaseBackoff)
			if !strings.HasPrefix(s.Message, tt.want+"; next start") {
				t.Errorf("message %q", s.Message)
			}
		})
	}
}

func TestRelativeMountWithoutIsolationIsALink(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.node.Isolated.OK = false
		w.up(program("a-1", func(s *model.Spec) {
			s.Volumes = []model.Volume{{Name: "v", Scratch: true}}
			s.Containers[0].Mounts = []model.Mount{{Volume: "v", Path: "sub/data"}}
		}))
		w.wait(100 * time.Millisecond)
		w.proc.exit("a-1.main", model.Exit{Code: 1})
		w.wait(3 * time.Second) // once more, over the link that is there
		w.wantPhase("a-1", 2, model.PhaseRunning)
		target, err := os.Readlink(filepath.Join(w.agent.store.sandbox("a-1"), "sub/data"))
		if err != nil || target != w.agent.store.volume("a-1", "v") {
			t.Errorf("link to %q, %v", target, err)
		}
		if len(w.proc.starts[0].Mounts) != 0 {
			t.Errorf("mounts %v", w.proc.starts[0].Mounts)
		}
	})
}

func TestNodeCalls(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a := program("a-1")
		w.up(a)
		w.wait(time.Second)
		dir := w.proc.starts[0].Logs.Dir
		if err := os.WriteFile(filepath.Join(dir, "stdout"), []byte("one\ntwo\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		read := func() string {
			t.Helper()
			r, err := w.agent.Logs(t.Context(), wire.LogRequest{Instance: "a-1", Tail: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			if err != nil {
				t.Error(err)
			}
			return string(b)
		}
		if got := read(); got != "two\n" {
			t.Errorf("log %q", got)
		}
		for _, r := range []wire.LogRequest{{Instance: "b-1"}, {Instance: "a-1", Container: "x"}, {Instance: "a-1", Stream: "../x"}} {
			if _, err := w.agent.Logs(t.Context(), r); !errors.Is(err, runtime.ErrNotFound) {
				t.Errorf("%+v: %v", r, err)
			}
		}
		var out strings.Builder
		w.proc.execCode = 3
		code, err := w.agent.Exec(t.Context(), "a-1", "", runtime.Exec{Command: []string{"ls"}, Stdout: &out})
		if code != 3 || err != nil || out.String() != "[ls]" {
			t.Errorf("exec: %d, %v, %q", code, err, out.String())
		}
		u, err := w.agent.Usage(t.Context())
		if err != nil || u.Instances["a-1"].Memory != 10*model.MiB || u.Node.Memory == 0 || u.Node.Disk == 0 || u.Interval != sampleFirst {
			t.Errorf("usage %+v, %v", u, err)
		}
		if im, err := w.agent.Images(t.Context()); err != nil || len(im) != 1 {
			t.Errorf("images %v, %v", im, err)
		}
		if names, err := w.agent.Import(t.Context(), nil); err != nil || len(names) != 1 {
			t.Errorf("import %v, %v", names, err)
		}
		w.send(wire.Down{Set: []wire.Assignment{stop(a)}})
		w.wantPhase("a-1", 1, model.PhaseStopped)
		if got := read(); got != "two\n" {
			t.Errorf("log after the end %q", got)
		}
		if _, err := w.agent.Exec(t.Context(), "a-1", "", runtime.Exec{}); !errors.Is(err, runtime.ErrNotFound) {
			t.Errorf("exec after the end: %v", err)
		}
		w.wait(5 * time.Minute) // sampling has ended by itself
		if w.agent.usage.running {
			t.Error("it goes on sampling though nobody asks")
		}
	})
}

// TestFollowedLogEndsWithTheInstance runs in real time, as the kernel tells of written files.
func TestFollowedLogEndsWithTheInstance(t *testing.T) {
	w := newWorld(t)
	a, err := New(Config{Dir: w.dir, Node: w.node, Process: w.proc, PortFree: anyPort, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.proc.block = make(chan struct{})
	asg := program("a-1")
	a.apply(wire.Down{Set: []wire.Assignment{asg}})
	r, err := a.Logs(t.Context(), wire.LogRequest{Instance: "a-1", Tail: -1, Follow: true}) // before its start
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.WriteFile(filepath.Join(a.store.logs("a-1", "main"), "stdout"), []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 6)
	if _, err := io.ReadFull(r, buf); err != nil || string(buf) != "hello\n" {
		t.Errorf("%q, %v", buf, err)
	}
	close(w.proc.block)
	a.apply(wire.Down{Set: []wire.Assignment{stop(asg)}})
	if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestReportsSurviveABrokenSession(t *testing.T) {
	r := newReports()
	r.add("a", model.Status{Attempt: 1, Phase: model.PhaseStarting})
	r.add("b", model.Status{Attempt: 1, Phase: model.PhaseStarting})
	batch := r.take()
	r.add("a", model.Status{Attempt: 1, Phase: model.PhaseRunning})
	r.putBack(batch)
	got := fmt.Sprint(r.take())
	if len(batch) != 2 || !strings.Contains(got, "{a {1 running") || !strings.Contains(got, "{b {1 starting") || strings.Contains(got, "a {1 starting") {
		t.Errorf("batch %v, then %s", batch, got)
	}
	r.add("c", model.Status{})
	r.drop("c")
	if left := r.take(); len(left) != 0 {
		t.Errorf("dropped but told: %v", left)
	}
}

func TestDetect(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "agent")
	n, err := Detect(dir, "127.0.0.1", model.Resources{})
	if err != nil {
		t.Fatal(err)
	}
	again, err := Detect(dir, "127.0.0.1", model.Resources{})
	if err != nil || again.ID != n.ID || n.ID == "" {
		t.Errorf("id %q, then %q, %v", n.ID, again.ID, err)
	}
	if n.Capacity.CPUs < 1000 || n.Capacity.Memory <= 0 || n.Capacity.Disk <= 0 || n.Attributes["kernel"] == "" {
		t.Errorf("node %+v", n)
	}
	kept, err := Detect(dir, "127.0.0.1", model.Resources{CPUs: 500, Memory: 64 * model.MiB})
	if err != nil || kept.Capacity.CPUs != n.Capacity.CPUs-500 || kept.Capacity.Memory <= n.Capacity.Memory {
		t.Errorf("with half a core and 64MiB kept: %+v, %v; without %+v", kept.Capacity, err, n.Capacity)
	}
	for _, all := range []model.Resources{{CPUs: n.Capacity.CPUs}, {Memory: 1024 * model.TiB}} {
		if _, err := Detect(dir, "127.0.0.1", all); err == nil || !strings.Contains(err.Error(), "nothing is left") {
			t.Errorf("with all of it kept: %v", err)
		}
	}
}

func TestPortsBesideTheKernels(t *testing.T) {
	for in, want := range map[string]model.PortRange{
		"32768\t60999\n": {First: 20000, Last: 32767},
		"25000 60999":    {First: 20000, Last: 24999},
		"10000 25000":    {First: 25001, Last: 32767},
		"15000 60000":    {First: 10000, Last: 14999},
		"1024 60000":     {First: 60001, Last: 65535},
		"1024 65535":     {First: 20000, Last: 32767},
		"nonsense":       {First: 20000, Last: 32767},
	} {
		if got := portsBeside(in); got != want {
			t.Errorf("%q gives %v, want %v", in, got, want)
		}
	}
}

func TestProcParsers(t *testing.T) {
	if got := parseCPUTime([]byte("cpu  100 20 30 9999 500 3 7 40 50 0\ncpu0 1 2\n")); got != model.Duration(2*time.Second) {
		t.Errorf("busy %v", got)
	}
	if got := memInfo([]byte("MemTotal: 1024 kB\nMemAvailable:  512 kB\n"), "MemAvailable"); got != 512*model.KiB {
		t.Errorf("available %v", got)
	}
	if got := usableMemory(model.GiB, 0); got != 768*model.MiB {
		t.Errorf("of 1GiB %v is usable", got)
	}
	if got := usableMemory(10*model.GiB, 0); got != 9*model.GiB {
		t.Errorf("of 10GiB %v is usable", got)
	}
}

func TestDiskFullDelaysTheStart(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up(program("a-1"))
		w.wait(time.Second)
		trap := filepath.Join(w.dir, "instances", "b-1") // a file where a directory is to be
		if err := os.WriteFile(trap, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.send(wire.Down{Set: []wire.Assignment{program("b-1")}})
		if s := w.wantPhase("b-1", 0, model.PhaseAssigned); !strings.HasPrefix(s.Message, "the node cannot write the instance's record") {
			t.Errorf("message %q", s.Message)
		}
		if w.proc.started() != 1 {
			t.Error("it was started without a record")
		}
		os.Remove(trap)
		w.wait(2 * time.Second)
		synctest.Wait()
		w.wantPhase("b-1", 1, model.PhaseRunning)
	})
}
