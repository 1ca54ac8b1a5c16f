package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/model"
)

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// fake returns a version 2 tree in a plain directory, whose files of control have to be made by hand.
func fake(t *testing.T) (*Tree, string) {
	t.Helper()
	dir := t.TempDir()
	tree := &Tree{version: 2, bases: map[string]base{unified: {dir, "/"}}, prepared: map[string]bool{}}
	for _, d := range []string{"", "gantry", "gantry/c", "gantry/c/t"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, d), map[string]string{
			"cgroup.subtree_control": "", "cpu.max": "", "cpu.weight": "", "memory.max": "", "memory.swap.max": "", "cgroup.procs": "",
		})
	}
	return tree, dir
}

func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func get(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestVersion2Limits(t *testing.T) {
	tree, dir := fake(t)
	g := tree.Open("/gantry/c/t")
	if err := g.Create(Limits{CPUs: 500, Memory: 64 * model.MiB}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"cpu.max": "50000 100000", "cpu.weight": "20", "memory.max": "67108864", "memory.swap.max": "0"} {
		if got := get(t, dir, "gantry/c/t", file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	for _, d := range []string{"", "gantry", "gantry/c"} {
		if got := get(t, dir, d, "cgroup.subtree_control"); !strings.Contains(got, "+memory") {
			t.Errorf("%q delegates %q", d, got)
		}
	}
	if e := g.Entry(); e.Dir != filepath.Join(dir, "gantry/c/t") || e.Tasks != nil {
		t.Errorf("Entry returned %+v", e)
	}
}

func TestVersion2Usage(t *testing.T) {
	tree, dir := fake(t)
	g := tree.Open("/gantry/c/t")
	if _, err := g.Usage(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Usage without files: %v", err)
	}
	put(t, filepath.Join(dir, "gantry/c/t"), map[string]string{
		"cpu.stat":       "usage_usec 2500000\nuser_usec 1\n",
		"memory.current": "10000\n",
		"memory.stat":    "anon 1\ninactive_file 4000\nactive_file 9\n",
		"memory.peak":    "20000\n",
		"memory.events":  "low 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n",
	})
	u, err := g.Usage()
	if want := (Usage{CPUTime: 2500 * time.Millisecond, Memory: 6000, Peak: 20000}); err != nil || u != want {
		t.Errorf("Usage returned %+v, %v", u, err)
	}
	if n, err := g.OOMKills(); err != nil || n != 2 {
		t.Errorf("OOMKills returned %d, %v", n, err)
	}
	if o, p := g.MemoryFiles(); filepath.Base(o) != "memory.events" || filepath.Base(p) != "memory.peak" {
		t.Errorf("MemoryFiles returned %s, %s", o, p)
	}
	put(t, filepath.Join(dir, "gantry/c/t"), map[string]string{"memory.current": "max\n"})
	if _, err := g.Usage(); err == nil {
		t.Error("Usage read a number from rubbish")
	}
}

// What the machine lacks is neither set nor read.
func TestMissingControllers(t *testing.T) {
	tree, dir := fake(t)
	tree.missing = []string{cpu, memory}
	g := tree.Open("/gantry/c/t")
	if err := g.Create(Limits{CPUs: 500, Memory: 1}); err != nil {
		t.Fatal(err)
	}
	if got := get(t, dir, "gantry/c/t/memory.max"); got != "" {
		t.Errorf("memory.max is %q", got)
	}
	if o, p := g.MemoryFiles(); o != "" || p != "" {
		t.Errorf("MemoryFiles returned %s, %s", o, p)
	}
}

// real returns the machine's own tree.
func real(t *testing.T) *Tree {
	t.Helper()
	tree, err := Find()
	if err != nil {
		t.Skip(err)
	}
	if a := tree.Ability(); os.Geteuid() != 0 || !a.OK {
		t.Skip("cannot make cgroups: ", a.Why)
	}
	return tree
}

// join starts a shell that moves itself into the group and then runs line. The channel tells how it ended.
func join(t *testing.T, g *Group, line string) (pid int, ended <-chan error) {
	t.Helper()
	files := g.Entry().Tasks
	if files == nil {
		files = []string{filepath.Join(g.Entry().Dir, "cgroup.procs")}
	}
	var move strings.Builder
	for _, f := range files {
		fmt.Fprintf(&move, "echo 0 >'%s' && ", f)
	}
	c := exec.Command("/bin/sh", "-c", move.String()+"{ "+line+"; }")
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	over := make(chan struct{})
	go func() {
		defer close(over)
		done <- c.Wait()
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill() // it has ended, unless the test failed
		<-over
	})
	return c.Process.Pid, done
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func created(t *testing.T, tree *Tree, name string, l Limits) *Group {
	t.Helper()
	g := tree.Open(fmt.Sprintf("/gantry/cgtest-%d/%s", os.Getpid(), name))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			t.Error(err)
		}
		if g.Exists() {
			t.Errorf("%s still exists", g.Path())
		}
		tree.Open(filepath.Dir(g.Path())).Prune()
	})
	if err := g.Create(l); err != nil {
		t.Fatal(err)
	}
	return g
}

func TestKillAndRemove(t *testing.T) {
	tree := real(t)
	g := created(t, tree, "kill", Limits{CPUs: 1000, Memory: 64 * model.MiB})
	pid, done := join(t, g, "sleep 1000 & sleep 1000 & wait")
	eventually(t, "three processes are in the group", func() bool {
		pids, err := g.PIDs()
		return err == nil && len(pids) == 3
	})
	pids, _ := g.PIDs()
	if !slices.Contains(pids, pid) {
		t.Errorf("PIDs returned %v without %d", pids, pid)
	}
	inner := tree.Open(g.Path() + "/inner")
	if err := inner.Create(Limits{}); err != nil {
		t.Fatal(err)
	}
	if err := g.removeOnce(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("removing a group in use: %v", err)
	}
	if err := g.Kill(limited(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("the killed process ended well")
	}
	if err := g.Remove(limited(t)); err != nil || g.Exists() {
		t.Errorf("Remove: %v", err)
	}
	if err := errors.Join(g.Kill(limited(t)), g.Remove(limited(t))); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestUsageAndLimits(t *testing.T) {
	g := created(t, real(t), "use", Limits{CPUs: 300, Memory: 32 * model.MiB})
	join(t, g, "x=0123456789abcdef; while [ ${#x} -lt 3000000 ]; do x=$x$x; done; while :; do :; done")
	begin := time.Now()
	var u Usage
	eventually(t, "it has used 0.3 s of CPU and 4 MiB", func() bool {
		var err error
		if u, err = g.Usage(); err != nil {
			t.Fatal(err)
		}
		return u.CPUTime > 300*time.Millisecond && u.Memory > 4*model.MiB
	})
	if took := time.Since(begin); took < 700*time.Millisecond {
		t.Errorf("0.3 s of CPU took %v in spite of a ceiling of 0.3 cores", took)
	}
	if u.Peak < u.Memory || u.Peak > 32*model.MiB {
		t.Errorf("Usage returned %+v", u)
	}
	if n, err := g.OOMKills(); err != nil || n != 0 {
		t.Errorf("OOMKills returned %d, %v", n, err)
	}
}

func TestOutOfMemory(t *testing.T) {
	g := created(t, real(t), "oom", Limits{Memory: 16 * model.MiB})
	_, done := join(t, g, "x=0123456789abcdef0123456789abcdef; while :; do x=$x$x; done")
	if err := <-done; err == nil {
		t.Fatal("it ended well")
	}
	eventually(t, "the kill is counted", func() bool {
		n, err := g.OOMKills()
		return err == nil && n == 1
	})
	if p, err := g.Peak(); err != nil || p < 8*model.MiB || p > 16*model.MiB {
		t.Errorf("Peak returned %d, %v", p, err)
	}
}

// Limits of a group that exists can be changed in both directions.
func TestChangeLimits(t *testing.T) {
	g := created(t, real(t), "change", Limits{CPUs: 100, Memory: 16 * model.MiB})
	for _, m := range []model.Bytes{64 * model.MiB, 8 * model.MiB} {
		if err := g.Create(Limits{CPUs: 200, Memory: m}); err != nil {
			t.Fatal(err)
		}
		file, hierarchy := "memory.limit_in_bytes", memory
		if g.tree.version == 2 {
			file, hierarchy = "memory.max", unified
		}
		if got, err := g.number(hierarchy, memory, file); err != nil || model.Bytes(got) != m {
			t.Errorf("%s is %d, %v, want %d", file, got, err, m)
		}
	}
}

// Groups that share a parent do not depend on each other: one is made though another's end has removed the parent.
func TestPrune(t *testing.T) {
	tree := real(t)
	g := tree.Open(fmt.Sprintf("/gantry/cgtest-%d/prune", os.Getpid()))
	parent := tree.Open(filepath.Dir(g.Path()))
	for range 2 {
		if err := g.Create(Limits{}); err != nil {
			t.Fatal(err)
		}
		parent.Prune()
		if names, err := parent.Groups(); err != nil || !slices.Equal(names, []string{"prune"}) {
			t.Fatalf("pruning left %v, %v", names, err)
		}
		if err := g.Remove(limited(t)); err != nil {
			t.Fatal(err)
		}
		other, err := Find() // as another process would
		if err != nil {
			t.Fatal(err)
		}
		other.Open(parent.Path()).Prune()
		if parent.Exists() {
			t.Fatal("the empty parent still exists")
		}
	}
}

// Groups that runc made in hierarchies which Gantry does not use go with the rest.
func TestRemoveEverywhere(t *testing.T) {
	tree := real(t)
	if len(tree.others) == 0 {
		t.Skip("there are no other hierarchies")
	}
	g := created(t, tree, "everywhere", Limits{})
	for _, d := range g.everywhere() {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	parent := tree.Open(filepath.Dir(g.Path()))
	parent.Prune() // in use: stays
	if names, err := parent.Groups(); err != nil || !slices.Equal(names, []string{"everywhere"}) {
		t.Errorf("Groups returned %v, %v", names, err)
	}
	if err := g.Remove(limited(t)); err != nil {
		t.Fatal(err)
	}
	parent.Prune()
	for _, d := range append(g.everywhere(), parent.everywhere()...) {
		if _, err := os.Stat(d); err == nil {
			t.Errorf("%s still exists", d)
		}
	}
}

// The version 2 hierarchy without controllers, which machines with version 1 often mount beside, is enough to hold and kill.
func TestVersion2Kill(t *testing.T) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	tree := unifiedTree(parseMounts(string(mounts)), nil, writable)
	if tree == nil || os.Geteuid() != 0 {
		t.Skip("no version 2 hierarchy is mounted, or Gantry is not root")
	}
	g := created(t, tree, "v2", Limits{CPUs: 1000})
	join(t, g, "sleep 1000 & sleep 1000; wait")
	eventually(t, "three processes are in the group", func() bool {
		pids, err := g.PIDs()
		return err == nil && len(pids) == 3
	})
	if err := g.Kill(limited(t)); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.PIDs(); err != nil || len(pids) != 0 {
		t.Errorf("PIDs returned %v, %v", pids, err)
	}
}
