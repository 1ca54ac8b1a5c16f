package containerd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/containerd/engine"
	"github.com/gantry-os/gantry/test/images"
)

// childEnv makes the test's own program run containerd, as gantry's does by its hidden command.
const childEnv = "GANTRY_TEST_CONTAINERD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := engine.Main(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if helperDir != "" {
		_ = os.RemoveAll(helperDir)
	}
	os.Exit(code)
}

var (
	helperOnce sync.Once
	helperDir  string
	helperErr  error
)

// helpers builds the programs that containers need, and returns their directory.
func helpers(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	helperOnce.Do(func() {
		if helperDir, helperErr = os.MkdirTemp("", "gantry-helpers-"); helperErr == nil {
			helperErr = buildHelpers(helperDir)
		}
	})
	if helperErr != nil {
		t.Fatal(helperErr)
	}
	return helperDir
}

func buildHelpers(bin string) error {
	root := moduleRoot()
	build := func(env []string, name string, args ...string) error {
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
		return nil
	}
	if err := os.Link(filepath.Join(root, "bin", "runc"), filepath.Join(bin, "runc")); err != nil {
		args := []string{"build", "-o", bin + "/", "github.com/opencontainers/runc"}
		if exec.Command("pkg-config", "--exists", "libseccomp").Run() == nil {
			args = []string{"build", "-tags", "seccomp", "-o", bin + "/", "github.com/opencontainers/runc"}
		}
		if err := build(nil, "go", args...); err != nil {
			return err
		}
	}
	if err := build([]string{"CGO_ENABLED=0"}, "go", "build", "-ldflags", "-s -w", "-o", bin+"/", "./cmd/gantry-oci-shim"); err != nil {
		return err
	}
	return build(nil, "make", "-s", "-C", filepath.Join(root, "shim"), "BIN="+bin, filepath.Join(bin, "gantry-log"))
}

func moduleRoot() string {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return "."
}

// node is a driver with a running engine, and what it takes to restart both.
type node struct {
	*Driver
	config Config
	stop   func()
}

// newNode starts an engine of its own. At the end of the test it must have left nothing.
func newNode(t testing.TB, change ...func(*Config)) *node {
	t.Helper()
	n := &node{config: Config{
		Dir:     filepath.Join(t.TempDir(), "containerd"),
		Bin:     helpers(t),
		Cluster: fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano()),
		Command: []string{os.Args[0]},
		Env:     []string{childEnv + "=1"},
	}}
	for _, f := range change {
		f(&n.config)
	}
	n.start(t)
	t.Cleanup(func() { n.end(t) })
	return n
}

// start starts a driver, as a gantry that starts does.
func (n *node) start(t testing.TB) {
	t.Helper()
	d, err := New(n.config)
	if err != nil {
		t.Fatal(err)
	}
	n.Driver = d
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	if err := d.Ready(limited(t)); err != nil {
		text, _ := os.ReadFile(filepath.Join(n.config.Dir, "containerd.log"))
		t.Fatalf("%v\n%s", err, text)
	}
}

// end removes all tasks, stops the engine, and looks for what was left behind.
func (n *node) end(t testing.TB) {
	t.Helper()
	if n.engine.PID() == 0 { // the test failed while it was down
		n.start(t)
	}
	list, err := n.List(limited(t))
	if err != nil {
		t.Errorf("list: %v", err)
	}
	for _, s := range list {
		if err := n.Remove(limited(t), s.ID); err != nil {
			t.Errorf("remove %s: %v", s.ID, err)
		}
	}
	parent := n.groups.Open("/gantry/" + n.config.Cluster)
	if left, err := parent.Groups(); err != nil || len(left) > 0 {
		t.Errorf("cgroups left: %v, %v", left, err)
	}
	n.stop()
	if err := parent.Remove(limited(t)); err != nil {
		t.Errorf("remove cgroup: %v", err)
	}
	n.groups.Open("/gantry").Prune() // unless other tests are in it
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.config.Dir))
	if err != nil || len(mounts) > 0 {
		t.Errorf("%d mounts left, %v", len(mounts), err)
	}
	eventually(t, "all processes of the engine have ended", func() bool { return len(n.processes(t)) == 0 })
	eventually(t, "the directory of sockets is gone", func() bool {
		left, err := filepath.Glob(n.engine.run + "/*")
		return err == nil && len(left) == 0
	})
}

// processes returns the shims, loggers and containerds that belong to the node.
func (n *node) processes(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		text, _ := os.ReadFile(f) // one that has just ended
		if slices.ContainsFunc([]string{n.engine.run, n.config.Dir, n.config.Bin}, func(own string) bool { return strings.Contains(string(text), own) }) {
			out = append(out, f+": "+strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	return out
}

// busybox makes an image with a shell present and returns its name.
func (n *node) busybox(t testing.TB) string {
	t.Helper()
	return n.load(t, images.SaveTar(t, images.Busybox(t), "busybox:1"))[0]
}

func (n *node) load(t testing.TB, archive string) []string {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := n.Import(limited(t), f)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// task returns a task that runs a shell line in an image.
func (n *node) task(t testing.TB, id, image, line string) runtime.Task {
	t.Helper()
	dir := t.TempDir()
	task := runtime.Task{
		ID: runtime.TaskID(id), Attempt: 1, Image: image, Command: []string{"/bin/sh", "-c", line},
		CPUs: 1000, Memory: 64 * model.MiB,
		Sandbox: filepath.Join(dir, "sandbox"),
		Logs:    runtime.LogFiles{Dir: filepath.Join(dir, "logs"), Size: model.MiB, Keep: 3},
	}
	for _, d := range []string{task.Sandbox, task.Logs.Dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return task
}

func (n *node) launchTask(t testing.TB, task runtime.Task) runtime.State {
	t.Helper()
	s, err := n.Start(limited(t), task)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// deadline bounds each wait.
const deadline = 60 * time.Second

func limited(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for something that can only be looked at.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(deadline); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain until %s", deadline, what)
		}
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}
