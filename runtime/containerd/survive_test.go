package containerd

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// counting is a line that counts up on stdout until the file stop is in the sandbox, and then exits with 5.
const counting = "i=0; while [ ! -e stop ]; do echo $i; i=$((i+1)); sleep 0.002; done; exit 5"

func (n *node) count(t *testing.T, id string) (runtime.Task, runtime.State) {
	t.Helper()
	task := n.task(t, id, n.busybox(t), counting)
	task.Dir = runtime.SandboxPath
	return task, n.launchTask(t, task)
}

func stopCounting(t *testing.T, task runtime.Task) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(task.Sandbox, "stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func lines(t *testing.T, task runtime.Task) int {
	t.Helper()
	return strings.Count(read(t, filepath.Join(task.Logs.Dir, "stdout")), "\n")
}

// grows waits until the task has written more lines.
func grows(t *testing.T, task runtime.Task) {
	t.Helper()
	have := lines(t, task)
	eventually(t, "the task writes on", func() bool { return lines(t, task) > have+20 })
}

// checkCount finds holes and repetitions in what was written.
func checkCount(t *testing.T, task runtime.Task) {
	t.Helper()
	text := read(t, filepath.Join(task.Logs.Dir, "stdout"))
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if line != strconv.Itoa(i) {
			t.Fatalf("line %d of the log is %q", i, line)
		}
	}
}

func (n *node) lookup(t *testing.T, id runtime.TaskID) runtime.State {
	t.Helper()
	list, err := n.List(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.ID == id {
			return s
		}
	}
	t.Fatalf("%s is not in %+v", id, list)
	return runtime.State{}
}

func (n *node) exitOf(t *testing.T, id runtime.TaskID) model.Exit {
	t.Helper()
	e, err := n.Wait(limited(t), id)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// killEngine kills containerd and waits until another one answers.
func (n *node) killEngine(t *testing.T) {
	t.Helper()
	pid := n.engine.PID()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another containerd answers", func() bool { p := n.engine.PID(); return p != 0 && p != pid })
}

// A program must not notice that containerd was killed: it runs on, its log has no hole, who waits for it goes on
// waiting, and its exit code arrives.
func TestEngineKilled(t *testing.T) {
	n := newNode(t)
	task, first := n.count(t, "count-1.main")
	exit := make(chan model.Exit, 1)
	ctx := limited(t)
	go func() {
		e, err := n.Wait(ctx, task.ID)
		if err != nil {
			t.Error(err)
		}
		exit <- e
	}()
	for range 3 {
		grows(t, task)
		n.killEngine(t)
		if s := n.lookup(t, task.ID); s.PID != first.PID || s.Exit != nil || !s.Started.Equal(first.Started) {
			t.Fatalf("after the kill: %+v, before: %+v", s, first)
		}
		grows(t, task)
	}
	stopCounting(t, task)
	if e := <-exit; e.Code != 5 || e.Lost != "" {
		t.Errorf("it ended as %+v", e)
	}
	checkCount(t, task)
}

// While gantry and containerd are both gone, programs run on, and what ends keeps its code and time.
func TestEverythingKilledButShims(t *testing.T) {
	n := newNode(t)
	running, first := n.count(t, "run-1.main")
	ending, last := n.count(t, "end-1.main")
	grows(t, ending)
	n.stop()
	stopCounting(t, ending)
	end := time.Now()
	eventually(t, "the second task has ended", func() bool { return unix.Kill(last.PID, 0) != nil })
	grows(t, running)
	n.start(t)
	if s := n.lookup(t, running.ID); s.PID != first.PID || s.Exit != nil {
		t.Errorf("the running task became %+v", s)
	}
	s := n.lookup(t, ending.ID)
	if s.Exit == nil || s.Exit.Code != 5 || s.Exit.Lost != "" || s.Exit.At.Before(end.Add(-time.Second)) || s.Exit.At.After(time.Now()) {
		t.Errorf("the ended task became %+v", s)
	}
	n.killEngine(t) // and again: who asks late is told the same
	if e := n.exitOf(t, ending.ID); e != *s.Exit {
		t.Errorf("later it ended as %+v, before %+v", e, *s.Exit)
	}
	checkCount(t, ending)
}

// A containerd that outlived a killed gantry is replaced, and its tasks are adopted.
func TestOrphanedEngineIsReplaced(t *testing.T) {
	n := newNode(t)
	task, first := n.count(t, "orphan-1.main")
	n.stop()
	d, err := New(n.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.engine.prepare(); err != nil {
		t.Fatal(err)
	}
	orphan, err := d.engine.start() // by a gantry that is then killed
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- orphan.Wait() }()
	n.start(t)
	select {
	case <-gone:
	case <-time.After(deadline):
		t.Fatal("the old containerd still runs")
	}
	if s := n.lookup(t, task.ID); s.PID != first.PID {
		t.Errorf("the task became %+v", s)
	}
	grows(t, task)
}

// A gantry that is killed right after it started a containerd leaves one that nothing tells of yet. It must not live beside
// the next one.
func TestOrphanThatHasJustBegun(t *testing.T) {
	n := newNode(t)
	n.stop()
	slow := n.config
	slow.Command = []string{"/bin/sh", "-c", `sleep 0.5; exec "$0" "$@"`, os.Args[0]}
	d, err := New(slow)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.engine.prepare(); err != nil {
		t.Fatal(err)
	}
	orphan, err := d.engine.start()
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- orphan.Wait() }()
	n.start(t)
	select {
	case <-gone:
	case <-time.After(deadline):
		t.Fatal("two containerds run")
	}
	if err := n.Ready(limited(t)); err != nil {
		t.Error(err)
	}
}

// When the shim itself is killed its exit codes are lost; the programs it held must not run on unwatched.
func TestShimKilled(t *testing.T) {
	n := newNode(t)
	task, s := n.count(t, "shim-1.main")
	killShims(t, n)
	if e := n.exitOf(t, task.ID); e.Lost == "" || strings.Contains(e.Lost, "restarted") {
		t.Errorf("it ended as %+v", e)
	}
	eventually(t, "the program is gone", func() bool { return unix.Kill(s.PID, 0) != nil })
	if err := n.Remove(limited(t), task.ID); err != nil {
		t.Error(err)
	}
	task.Attempt = 2
	if s := n.launchTask(t, task); s.Attempt != 2 {
		t.Errorf("the next attempt: %+v", s)
	}
}

// killShims kills the shims of a node, and waits for their end.
func killShims(t *testing.T, n *node) {
	t.Helper()
	for _, p := range n.processes(t) {
		if strings.Contains(p, shimName) {
			kill(t, p)
		}
	}
}

// kill kills a process of the form of node.processes.
func kill(t *testing.T, line string) {
	t.Helper()
	pid, err := strconv.Atoi(strings.Split(line, "/")[2])
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
}

// After a reboot nothing runs and nothing is mounted. Tasks are known, and why they ended; they can be started anew.
func TestReboot(t *testing.T) {
	n := newNode(t)
	task, s := n.count(t, "boot-1.main")
	n.stop()
	killShims(t, n)
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "everything has ended", func() bool { return unix.Kill(s.PID, 0) != nil && len(n.processes(t)) == 0 })
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.config.Dir))
	if err != nil || len(mounts) == 0 {
		t.Fatalf("mounts: %v, %v", mounts, err)
	}
	for _, m := range mounts {
		if err := unix.Unmount(m.Mountpoint, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(n.group(task.ID).Remove(limited(t)), os.RemoveAll(n.engine.run)); err != nil {
		t.Fatal(err)
	}
	n.config.BootID = "the next boot"
	n.start(t)
	if e := n.exitOf(t, task.ID); e.Lost != "the node was restarted" {
		t.Errorf("it ended as %+v", e)
	}
	if s, err := n.Start(limited(t), task); err != nil || s.Exit == nil || s.Exit.Lost == "" {
		t.Errorf("the same attempt was started again: %+v, %v", s, err)
	}
	if err := n.Remove(limited(t), task.ID); err != nil {
		t.Fatal(err)
	}
	task.Attempt = 2
	n.launchTask(t, task)
	grows(t, task)
}

// A gantry killed while it starts a task leaves parts of it. They are listed, so that someone removes them, and do not
// stand in the way of another start.
func TestCutShortStart(t *testing.T) {
	n := newNode(t)
	task := n.task(t, "cut-1.main", n.busybox(t), "exit 3")
	ctx, cli, err := n.client(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	img, err := n.image(ctx, cli, task.Image)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.snapshot(ctx, cli, string(task.ID), img); err != nil {
		t.Fatal(err)
	}
	if err := n.createContainer(ctx, cli, task, img); err != nil {
		t.Fatal(err)
	}
	if s := n.lookup(t, task.ID); s.Exit == nil || !strings.Contains(s.Exit.Lost, "Gantry was killed") {
		t.Errorf("listed as %+v", s)
	}
	n.launchTask(t, task)
	if e := n.exitOf(t, task.ID); e.Code != 3 {
		t.Errorf("it ended as %+v", e)
	}
}

// While the engine is down, calls say so after a while, and not something else.
func TestUnavailable(t *testing.T) {
	n := newNode(t)
	task := n.task(t, "down-1.main", "busybox:1", "true")
	n.stop()
	n.wait = 50 * time.Millisecond
	_, listErr := n.List(limited(t))
	_, startErr := n.Start(limited(t), task)
	for what, err := range map[string]error{
		"List": listErr, "Start": startErr, "Remove": n.Remove(limited(t), task.ID), "Signal": n.Signal(limited(t), task.ID, 9),
	} {
		if !errors.Is(err, runtime.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	n.start(t)
}

// The containers of one instance share one shim, which ends with the last of them.
func TestOneShimPerInstance(t *testing.T) {
	n := newNode(t)
	image := n.busybox(t)
	shims := func() (out []string) {
		for _, p := range n.processes(t) {
			if strings.Contains(p, shimName) {
				out = append(out, p)
			}
		}
		return out
	}
	for _, name := range []string{"web", "side"} {
		n.launchTask(t, n.task(t, "pair-1."+name, image, "sleep 1000"))
	}
	if s := shims(); len(s) != 1 {
		t.Errorf("two containers of one instance have the shims %q", s)
	}
	n.launchTask(t, n.task(t, "pair-2.web", image, "sleep 1000"))
	if s := shims(); len(s) != 2 {
		t.Errorf("two instances have the shims %q", s)
	}
	n.killEngine(t)
	if err := n.Remove(limited(t), "pair-1.web"); err != nil {
		t.Fatal(err)
	}
	if s := n.lookup(t, "pair-1.side"); s.Exit != nil || unix.Kill(s.PID, 0) != nil {
		t.Errorf("the other container of the instance became %+v", s)
	}
	if err := n.Remove(limited(t), "pair-1.side"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the shim of the first instance ends", func() bool { return len(shims()) == 1 })
}

// Images stay, snapshots that nobody uses go.
func TestGarbage(t *testing.T) {
	n := newNode(t)
	image := n.busybox(t)
	ctx, cli, err := n.client(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	img, err := n.image(ctx, cli, image)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.snapshot(ctx, cli, "nobodys", img); err != nil {
		t.Fatal(err)
	}
	l, err := cli.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	if err := cli.LeasesService().Delete(ctx, l, leases.SynchronousDelete); err != nil { // collects garbage
		t.Fatal(err)
	}
	if _, err := cli.SnapshotService(n.snapshotter).Stat(ctx, "nobodys"); err == nil {
		t.Error("a snapshot without a container is still there")
	}
	n.launchTask(t, n.task(t, "gc-1.main", image, "exit 6"))
	if e := n.exitOf(t, "gc-1.main"); e.Code != 6 {
		t.Errorf("it ended as %+v", e)
	}
}

// Where the data directory's path is long, sockets must still have short ones; and a directory belongs to one boot.
func TestEngineFiles(t *testing.T) {
	c := Config{Dir: "/" + strings.Repeat("long/", 60)}
	if run := c.runDir(); len(filepath.Join(run, "s")) > 42 {
		t.Errorf("sockets go to %s", run)
	}
}

// What a containerd or gantry was killed in the midst of does not pile up: mounts that try out the kernel, half removed
// bundles, sockets of shims that are gone.
func TestLeftoversAreSwept(t *testing.T) {
	n := newNode(t)
	task, first := n.count(t, "swept-1.main")
	n.stop()
	check := n.engine.path("root/multiple-lowerdir-check123/merged")
	bundles := n.engine.path("state/io.containerd.runtime.v2.task/" + namespace)
	half := []string{
		n.engine.path("root/multiple-lowerdir-check123"),
		n.engine.path("tmp/containerd-mount7"),
		filepath.Join(bundles, ".half-1.main"),
		n.engine.path("root/io.containerd.runtime.v2.task/" + namespace + "/.half-1.main"),
	}
	for _, dir := range append(half, check, filepath.Join(bundles, ".half-1.main/rootfs")) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{check, half[1]} {
		if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	dead := filepath.Join(n.engine.run, "s", "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	n.start(t)
	for _, path := range append(half, dead) {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if s := n.lookup(t, task.ID); s.PID != first.PID {
		t.Errorf("the task that ran became %+v", s)
	}
}

// A shim that containerd was killed in the midst of starting, which no containerd knows of, does not stay.
func TestShimWithoutTaskEnds(t *testing.T) {
	bin := helpers(t)
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(limited(t), filepath.Join(bin, "gantry-oci-shim"), "-namespace", namespace, "-id", "unused-1.main",
		"-address", "/nowhere", "-unused", "200ms")
	cmd.Dir, cmd.ExtraFiles = dir, []*os.File{f}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("it ended with %v\n%s", err, out)
	}
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("its socket is left: %v", err)
	}
}
