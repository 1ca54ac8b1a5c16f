package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/test/images"
)

// fileServer serves files with entity tags and counts, by path, how often it sent content and how often it said that
// nothing had changed.
type fileServer struct {
	mu        sync.Mutex
	files     map[string][]byte
	sent, not map[string]int
	*httptest.Server
}

func serveFiles(t *testing.T) *fileServer {
	s := &fileServer{files: map[string][]byte{}, sent: map[string]int{}, not: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

func (s *fileServer) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	tag := strconv.Quote(sum(b))
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		s.not[r.URL.Path]++
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if r.Method == http.MethodGet {
		s.sent[r.URL.Path]++
	}
	_, _ = w.Write(b) // the client may go away
}

func (s *fileServer) put(path string, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = b
}

func (s *fileServer) counts(path string) (sent, unchanged int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[path], s.not[path]
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func archive(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Artifacts come over http: archives are unpacked, sums are checked, programs made executable, content is fetched once
// for a node and asked for again only when it has changed, and what cannot be had is explained.
func TestArtifactsOverHTTP(t *testing.T) {
	needRoot(t)
	c := start(t)
	s := serveFiles(t)
	bundle := archive(t, map[string]string{"app/greet": "#!/bin/sh\necho \"$1 from the archive\"\n"})
	s.put("/bundle.tar.gz", bundle)
	s.put("/tool", []byte("#!/bin/sh\necho tool one\n"))
	spec := shell("/art", "./unpacked/app/greet hello; ./tool; exec sleep 100000")
	spec.Containers[0].Artifacts = []model.Artifact{
		{URI: s.URL + "/bundle.tar.gz", Path: "unpacked", Checksum: "sha256:" + sum(bundle)},
		{URI: s.URL + "/tool", Executable: true},
	}
	said := func(want string) {
		t.Helper()
		c.until("an instance to say "+want, func() bool {
			list := c.running("/art")
			return len(list) > 0 && c.logs(list[0].ID, "stdout") == want
		})
	}
	c.deploy(spec)
	said("hello from the archive\ntool one\n")
	change, err := c.ScaleApp(testContext(t), "/art", 3)
	if err != nil {
		t.Fatal(err)
	}
	c.wait(change)
	if sent, asked := s.counts("/bundle.tar.gz"); sent != 1 || asked != 0 {
		t.Errorf("the archive with a checksum was sent %d times and asked for again %d times, want 1 and 0", sent, asked)
	}
	if sent, asked := s.counts("/tool"); sent != 1 || asked < 1 {
		t.Errorf("the tool was sent %d times and asked for again %d times, want once, and at least once", sent, asked)
	}
	s.put("/tool", []byte("#!/bin/sh\necho tool two\n"))
	if change, err = c.RestartApp(testContext(t), "/art"); err != nil {
		t.Fatal(err)
	}
	c.wait(change)
	said("hello from the archive\ntool two\n")
	if sent, _ := s.counts("/tool"); sent != 2 {
		t.Errorf("the changed tool was sent %d times in all, want 2", sent)
	}

	for id, a := range map[model.AppID]model.Artifact{
		"/missing": {URI: s.URL + "/nothing.zip"},
		"/wrong":   {URI: s.URL + "/tool", Checksum: "sha256:" + sum(nil)},
		"/broken":  {URI: s.URL + "/tool", Path: "x", Extract: ptr(true)},
	} {
		bad := shell(id, "exec sleep 100000")
		bad.Containers[0].Artifacts = []model.Artifact{a}
		c.apply(bad)
	}
	c.why("/missing", "/nothing.zip", "404")
	c.why("/wrong", "checksum", sum(nil))
	c.why("/broken", "archive")
}

// What a chatty program writes at full speed stays within its bounds on disk; a reader that follows loses no line of a
// brisk one across rotations; and the logs of a stopped instance can be read until its record goes.
func TestLogsRotateAndEnd(t *testing.T) {
	needRoot(t)
	c := start(t, "--log-size", "64KiB", "--log-keep", "2", "--keep-stopped", "4s")
	const lines = 30000 // of 50 bytes: some 23 files
	gate := filepath.Join(t.TempDir(), "gate")
	brisk := &model.Spec{ID: "/brisk", Containers: []model.Container{{
		CPUs: 500, Memory: 64 * model.MiB,
		Command: []string{"python3", "-u", "-c", fmt.Sprintf(`
import os, time
while not os.path.exists(%q): time.sleep(.01)
for n in range(%d):
    os.write(1, b"%%049d\n" %% n)
    if n %% 200 == 199: time.sleep(.005)
time.sleep(100000)`, gate, lines)},
	}}}
	i := c.deploy(brisk)[0]
	r, err := c.Logs(testContext(t), i.ID, client.LogOptions{Stream: "stdout", Tail: -1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 50*lines)
	if n, err := io.ReadFull(r, text); err != nil {
		t.Fatalf("following ended after %d bytes: %v", n, err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		if got, err := strconv.Atoi(strings.TrimLeft(strings.TrimSpace(line), "0") + ""); n > 0 && (err != nil || got != n) {
			t.Fatalf("line %d is %q: following lost or repeated something", n, line)
		}
		n++
	}

	chatty := shell("/chatty", "exec yes 0123456789012345678901234567890123456789012345678901234567890")
	chatty.Containers[0].CPUs = 300
	id := c.deploy(chatty)[0].ID
	most := int64(0)
	begin := time.Now()
	c.until("three seconds to pass", func() bool {
		most = max(most, logBytes(t, c.dir, id))
		return time.Since(begin) > 3*time.Second
	})
	if most < 64<<10 || most > 4*64<<10 {
		t.Errorf("the logs took up to %d bytes, want about three files of 64KiB", most)
	}
	if kept := len(c.logs(id, "stdout")); kept < 64<<10 || kept > 4*64<<10 {
		t.Errorf("%d bytes of logs can be read, want about three files of 64KiB", kept)
	}

	bye := shell("/bye", "echo farewell; exec sleep 100000")
	last := c.deploy(bye)[0].ID
	c.remove("/bye")
	if out := c.logs(last, "stdout"); out != "farewell\n" {
		t.Errorf("logs of a stopped instance: %q", out)
	}
	c.until("the record and the logs of the stopped instance to go", func() bool {
		_, err := c.Instance(testContext(t), last)
		if notFound(err) {
			_, err = c.Logs(testContext(t), last, client.LogOptions{Tail: -1})
			return notFound(err) && logBytes(t, c.dir, last) == 0
		}
		return false
	})
}

func notFound(err error) bool {
	var problem *client.Error
	return errors.As(err, &problem) && problem.Status == http.StatusNotFound
}

// logBytes returns how much the log files of an instance hold.
func logBytes(t *testing.T, dir string, id model.InstanceID) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "agent"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(path, string(id)) || !strings.HasPrefix(d.Name(), "stdout") {
			if errors.Is(err, os.ErrNotExist) {
				return nil // rotated away, or removed
			}
			return err
		}
		if info, err := d.Info(); err == nil {
			bytes += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// exec gives a terminal that can be resized or pipes, tells the exit code, and ends its program when the client goes, in
// containers of images as in programs of the node.
func TestExec(t *testing.T) {
	needRoot(t)
	c := start(t)
	image := pushed(t, "busybox", images.Busybox(t))
	for kind, ref := range map[string]string{"image": image, "host": ""} {
		i := c.deploy(boxed(model.AppID("/"+kind), ref, "exec sleep 100000"))[0]
		t.Run(kind+"/terminal", func(t *testing.T) { c.in(t).testTerminal(i.ID) })
		t.Run(kind+"/pipes", func(t *testing.T) {
			var out, errs bytes.Buffer
			in := strings.Repeat("0123456789abcdef", 20000)
			code, err := c.Exec(testContext(t), i.ID, client.ExecOptions{
				Command: []string{"sh", "-c", "cat; echo done >&2; exit 23"}, Stdin: strings.NewReader(in), Stdout: &out, Stderr: &errs,
			})
			if err != nil || code != 23 || out.String() != in || errs.String() != "done\n" {
				t.Errorf("code %d, %v, %d bytes of %d, stderr %q", code, err, out.Len(), len(in), errs.String())
			}
		})
		t.Run(kind+"/leaving", func(t *testing.T) { c.in(t).testLeaving(i.ID) })
		t.Run(kind+"/missing", func(t *testing.T) {
			_, err := c.Exec(testContext(t), i.ID, client.ExecOptions{Command: []string{"no-such-program"}})
			if err == nil || !strings.Contains(err.Error(), "no-such-program") {
				t.Errorf("a program that does not exist: %v", err)
			}
		})
	}
}

func (c *cluster) testTerminal(id model.InstanceID) {
	t := c.t
	out := &lockedBuffer{}
	in, keys := io.Pipe()
	sizes := make(chan client.Size, 1)
	type end struct {
		code int
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		code, err := c.Exec(testContext(t), id, client.ExecOptions{
			Command: []string{"sh", "-c", `stty size; trap 'stty size; exit 9' WINCH; tty; while :; do sleep 0.1; done`},
			TTY:     true, Size: client.Size{Columns: 91, Rows: 17}, Resize: sizes, Stdin: in, Stdout: out,
		})
		ended <- end{code, err}
	}()
	c.until("the first size and the terminal", func() bool {
		return strings.Contains(out.String(), "17 91") && strings.Contains(out.String(), "/dev/")
	})
	sizes <- client.Size{Columns: 133, Rows: 44}
	e := <-ended
	_ = keys.Close() // a closed pipe takes no more
	if e.err != nil || e.code != 9 || !strings.Contains(out.String(), "44 133") {
		t.Errorf("after the resize: code %d, %v, output %q", e.code, e.err, out.String())
	}
}

func (c *cluster) testLeaving(id model.InstanceID) {
	t := c.t
	ctx, leave := context.WithCancel(testContext(t))
	defer leave()
	out := &lockedBuffer{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = c.Exec(ctx, id, client.ExecOptions{Command: []string{"sh", "-c", "echo here; exec sleep 31415"}, Stdout: out}) // it fails, as it is left
	}()
	sleepers := func() (n int) {
		list, _ := c.exec(id, "sh", "-c", `for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline; echo; done 2>/dev/null`)
		return strings.Count(list, "sleep 31415 ")
	}
	c.until("the program to run", func() bool { return strings.Contains(out.String(), "here") && sleepers() == 1 })
	leave()
	<-ended
	c.until("the program to be ended", func() bool { return sleepers() == 0 })
}

// Readiness keeps an instance from counting, without restarting it; liveness restarts it, and says which check failed how.
func TestReadinessAndLiveness(t *testing.T) {
	needRoot(t)
	c := start(t)
	quick := func(check model.Check) []model.Check {
		check.Grace, check.Interval, check.Timeout, check.Failures = model.Duration(time.Millisecond), model.Duration(100*time.Millisecond), model.Duration(time.Second), 2
		return []model.Check{check}
	}
	gate := filepath.Join(t.TempDir(), "gate")
	ready := shell("/ready", "exec sleep 100000")
	ready.Readiness = quick(model.Check{Command: &model.CommandCheck{Command: []string{"test", "-e", gate}}})
	change := c.apply(ready)
	var before client.Instance
	c.until("the instance to run unready, and to say why", func() bool {
		list := c.running("/ready")
		if len(list) == 1 {
			before = list[0]
		}
		return len(list) == 1 && !list[0].Status.Ready && strings.Contains(list[0].Why+list[0].Status.Message, "exit code 1")
	})
	if d, err := c.Deployment(testContext(t), change.Deployment); err != nil || d.State.Over() {
		t.Errorf("the deployment is %s (%v) while its instance is not ready", d.State, err)
	}
	for _, want := range []bool{true, false, true} {
		if want {
			if err := os.WriteFile(gate, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		} else if err := os.Remove(gate); err != nil {
			t.Fatal(err)
		}
		c.until(fmt.Sprintf("ready to be %v", want), func() bool {
			list := c.running("/ready")
			return len(list) == 1 && list[0].Status.Ready == want && list[0].Status.Attempt == 1 && list[0].Status.Tasks[0].PID == before.Status.Tasks[0].PID
		})
	}
	if d := c.wait(change); d.State != model.DeploySucceeded {
		t.Errorf("the deployment is %s: %s", d.State, d.Message)
	}

	for id, test := range map[model.AppID]struct {
		check model.Check
		word  string
	}{
		"/http":    {model.Check{HTTP: &model.HTTPCheck{Endpoint: "http", Path: "/missing"}}, "404"},
		"/tcp":     {model.Check{TCP: &model.TCPCheck{Endpoint: "other"}}, "refused"},
		"/command": {model.Check{Command: &model.CommandCheck{Command: []string{"sh", "-c", "exit 13"}}}, "13"},
	} {
		sick := shell(id, "exec python3 -m http.server $PORT0 --directory /usr/share/doc")
		sick.Containers[0].CPUs, sick.Containers[0].Memory = 300, 64*model.MiB
		sick.Endpoints = []model.Endpoint{{Name: "http"}, {Name: "other"}}
		sick.Health = quick(test.check)
		sick.Health[0].Grace = model.Duration(1500 * time.Millisecond) // the server has to listen
		sick.Restart = &model.Restart{Backoff: model.Duration(time.Hour), Max: model.Duration(time.Hour)}
		sick.Stop = &model.Stop{Signal: "SIGKILL"}
		c.apply(sick)
		defer func() {
			if why := c.why(id, test.word); !strings.Contains(why, "check") {
				t.Errorf("%s: %q does not say that a check failed", id, why)
			}
			c.until("the instance to wait for its next start", func() bool {
				app, err := c.App(testContext(t), id)
				return err == nil && slices.ContainsFunc(app.List, func(i client.Instance) bool { return i.Status.Phase == model.PhaseBackoff })
			})
		}()
	}
}

// Scaling down takes the instances that the app names: the youngest, or the oldest.
func TestKillOrder(t *testing.T) {
	needRoot(t)
	c := start(t)
	for order, keeps := range map[model.KillOrder]int{model.YoungestFirst: 0, model.OldestFirst: 2} {
		spec := shell(model.AppID("/"+string(order)), "exec sleep 100000")
		spec.Containers[0].CPUs, spec.KillOrder, spec.Update = 20, order, &model.Update{MinHealthyTime: ptr(model.Duration(0))}
		c.deploy(spec)
		for n := 2; n <= 3; n++ {
			change, err := c.ScaleApp(testContext(t), spec.ID, n)
			if err != nil {
				t.Fatal(err)
			}
			c.wait(change)
		}
		list := c.running(spec.ID)
		slices.SortFunc(list, func(a, b client.Instance) int { return a.Created.Compare(b.Created) })
		change, err := c.ScaleApp(testContext(t), spec.ID, 1)
		if err != nil {
			t.Fatal(err)
		}
		c.wait(change)
		if left := c.running(spec.ID); len(left) != 1 || left[0].ID != list[keeps].ID {
			t.Errorf("%s left %v of %v", order, pids(left), pids(list))
		}
		if err := syscall.Kill(list[keeps].Status.Tasks[0].PID, 0); err != nil {
			t.Errorf("%s: the process of the one that is left: %v", order, err)
		}
	}
}
