package process_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/conformance"
	"github.com/gantry-os/gantry/runtime/process"
)

// both runs a test with and without isolation.
func both(t *testing.T, f func(t *testing.T, isolate bool)) {
	for _, isolate := range []bool{true, false} {
		t.Run(fmt.Sprintf("isolated=%v", isolate), func(t *testing.T) { f(t, isolate) })
	}
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func shell(t *testing.T, line string) runtime.Task {
	return conformance.Shell(t, conformance.Program{Line: line})
}

func start(t *testing.T, d *process.Driver, task runtime.Task) runtime.State {
	t.Helper()
	t.Cleanup(func() {
		if err := d.Remove(context.Background(), task.ID); err != nil {
			t.Error(err)
		}
	})
	s, err := d.Start(limited(t), task)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// eventually waits for what can only be looked at.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func content(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// alive counts processes that have mark as an argument of sleep.
func alive(mark string) (n int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && string(b) == "sleep\x00"+mark+"\x00" {
			n++
		}
	}
	return n
}

// agentEnv makes the test binary act as an agent that starts the task which the variable holds, and then waits to be killed.
const agentEnv = "GANTRY_TEST_AGENT"

type agentOrder struct {
	Config process.Config
	Task   runtime.Task
	Exec   []string // a further program, or none
}

func actAsAgent(order string) error {
	var o agentOrder
	if err := json.Unmarshal([]byte(order), &o); err != nil {
		return err
	}
	d, err := process.New(o.Config)
	if err != nil {
		return err
	}
	s, err := d.Start(context.Background(), o.Task)
	if err != nil {
		return err
	}
	fmt.Println(s.PID)
	if len(o.Exec) > 0 {
		_, err = d.Exec(context.Background(), o.Task.ID, runtime.Exec{Command: o.Exec})
		return err
	}
	select {}
}

// A killed agent takes no task with it; the next one adopts it under the same pid, loses none of its output, and learns its
// exit code though it is no child of it.
func TestAgentIsKilled(t *testing.T) {
	both(t, func(t *testing.T, isolate bool) {
		if can := process.CanIsolate(); isolate && !can.OK {
			t.Skip(can.Why)
		}
		state := t.TempDir()
		task := shell(t, "i=0; while [ ! -e go ]; do echo $i; i=$((i+1)); sleep 0.01; done; echo $i end; exit 42")
		pid := killedAgent(t, state, isolate, task, func() {})
		seen := content(t, task.Logs.Dir, "stdout")
		d := open(t, state, isolate)
		list, err := d.List(limited(t))
		if err != nil || len(list) != 1 || list[0].PID != pid || list[0].Exit != nil {
			t.Fatalf("the second agent found %+v, %v; the first started %d", list, err, pid)
		}
		s := start(t, d, task)
		if s.PID != pid {
			t.Fatalf("the second agent started %+v", s)
		}
		eventually(t, "output goes on", func() bool { return len(content(t, task.Logs.Dir, "stdout")) > len(seen)+20 })
		if err := os.WriteFile(filepath.Join(task.Sandbox, "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if e, err := d.Wait(limited(t), task.ID); err != nil || e.Code != 42 || e.Lost != "" {
			t.Errorf("it ended as %+v, %v", e, err)
		}
		lines := strings.Fields(content(t, task.Logs.Dir, "stdout"))
		for i, l := range lines[:len(lines)-1] {
			if l != strconv.Itoa(i) {
				t.Fatalf("line %d of the log is %q", i, l)
			}
		}
	})
}

// killedAgent starts a task by another process, which also runs a further program if there is one, and kills that process
// once ready returns.
func killedAgent(t *testing.T, state string, isolate bool, task runtime.Task, ready func(), program ...string) (pid int) {
	t.Helper()
	order, err := json.Marshal(agentOrder{process.Config{
		Shim: filepath.Join(helpers, "gantry-shim"), StateDir: state, Cluster: fmt.Sprintf("test-%d", os.Getpid()), Isolate: isolate,
	}, task, program})
	if err != nil {
		t.Fatal(err)
	}
	agent := exec.Command(os.Args[0])
	agent.Env = append(os.Environ(), agentEnv+"="+string(order))
	agent.Stderr = os.Stderr
	out, err := agent.StdoutPipe()
	if err == nil {
		err = agent.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	ready()
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = agent.Wait() // it was killed
	if pid, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		t.Fatalf("the first agent says %q", line)
	}
	return pid
}

// A task that ended while no agent ran has its exit code, and one that was started before a reboot is lost.
func TestEndsWithoutAgent(t *testing.T) {
	both(t, func(t *testing.T, isolate bool) {
		if can := process.CanIsolate(); isolate && !can.OK {
			t.Skip(can.Why)
		}
		state := t.TempDir()
		task := shell(t, "while [ ! -e go ]; do sleep 0.01; done; exit 6")
		pid := killedAgent(t, state, isolate, task, func() {})
		if err := os.WriteFile(filepath.Join(task.Sandbox, "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the exit file is there", func() bool { return content(t, state, string(task.ID), "exit") != "" })
		d := open(t, state, isolate)
		s := start(t, d, task)
		if s.Exit == nil || s.Exit.Code != 6 || s.Exit.Lost != "" {
			t.Errorf("the second agent found %+v; its pid was %d", s, pid)
		}
	})
}

func TestNodeRestarts(t *testing.T) {
	both(t, func(t *testing.T, isolate bool) {
		state := t.TempDir()
		d := open(t, state, isolate)
		task := shell(t, "sleep 1000")
		s, err := d.Start(limited(t), task)
		if err != nil {
			t.Fatal(err)
		}
		kill(t, parent(t, s.PID))
		if _, err := d.Wait(limited(t), task.ID); err != nil {
			t.Fatal(err)
		}
		config := filepath.Join(state, string(task.ID), "config")
		boot := strings.TrimSpace(content(t, "/proc/sys/kernel/random/boot_id"))
		other := strings.Replace(content(t, config), boot, "another", 1)
		if err := os.WriteFile(config, []byte(other), 0o600); err != nil {
			t.Fatal(err)
		}
		second := open(t, state, isolate)
		if e, err := second.Wait(limited(t), task.ID); err != nil || e.Lost != "the node was restarted" {
			t.Errorf("after a restart of the node, the task ended as %+v, %v", e, err)
		}
		if err := second.Remove(limited(t), task.ID); err != nil {
			t.Error(err)
		}
	})
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// A shim that is killed takes all of its task along, at the latest when the task is removed.
func TestShimIsKilled(t *testing.T) {
	both(t, func(t *testing.T, isolate bool) {
		d := open(t, t.TempDir(), isolate)
		mark := fmt.Sprintf("%d.5", 200000+os.Getpid())
		task := shell(t, "sleep "+mark+" & (sleep "+mark+"); wait")
		s := start(t, d, task)
		eventually(t, "the descendants run", func() bool { return alive(mark) == 2 })
		kill(t, parent(t, s.PID))
		e, err := d.Wait(limited(t), task.ID)
		if err != nil || e.Code != 137 || e.Signal != 9 || e.Lost == "" {
			t.Errorf("it ended as %+v, %v", e, err)
		}
		if err := d.Remove(limited(t), task.ID); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the descendants are gone", func() bool { return alive(mark) == 0 })
	})
}

// A shim that does not answer, because someone stopped it, does not keep a task from being removed.
func TestShimIsStopped(t *testing.T) {
	d := open(t, t.TempDir(), process.CanIsolate().OK)
	task := shell(t, "sleep 1000")
	s := start(t, d, task)
	if err := unix.Kill(parent(t, s.PID), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(limited(t), task.ID); err != nil {
		t.Fatal(err)
	}
	if unix.Kill(s.PID, 0) == nil {
		t.Error("the program outlived its task")
	}
}

// What an agent that was killed in the middle of a start leaves is cleared away, and the task can be started.
func TestLeftovers(t *testing.T) {
	both(t, func(t *testing.T, isolate bool) {
		state := t.TempDir()
		first := open(t, state, isolate)
		task := shell(t, "exit 3")
		start(t, first, task)
		if _, err := first.Wait(limited(t), task.ID); err != nil {
			t.Fatal(err)
		}
		config := content(t, state, string(task.ID), "config")
		for name, files := range map[string]map[string]string{
			"empty":     {},
			"config":    {"config": config},
			"lock":      {"config": config, "lock": "", "exit.new": "\n\n"},
			"power cut": {"config": config[:len(config)/2], "started": "", "lock": ""},
			".gone-x":   {"config": config},
		} {
			dir := filepath.Join(state, name)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for f, text := range files {
				if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		d := open(t, state, isolate)
		if list, err := d.List(limited(t)); err != nil || len(list) != 1 {
			t.Errorf("List returned %+v, %v", list, err)
		}
		if entries, err := os.ReadDir(state); err != nil || len(entries) != 1 {
			t.Errorf("the state directory holds %v, %v", entries, err)
		}
	})
}

// An agent that was killed in the middle of a removal, with the task's directory put aside but its shim and cgroup still
// there, leaves them to the next one.
func TestRemovalCutShort(t *testing.T) {
	both(t, func(t *testing.T, isolate bool) {
		state := t.TempDir()
		first := open(t, state, isolate)
		task := shell(t, "sleep 1000")
		s := start(t, first, task)
		if err := os.Rename(filepath.Join(state, string(task.ID)), filepath.Join(state, ".gone-"+string(task.ID))); err != nil {
			t.Fatal(err)
		}
		open(t, state, isolate)
		eventually(t, "the program is gone", func() bool { return unix.Kill(s.PID, 0) != nil })
		if entries, err := os.ReadDir(state); err != nil || len(entries) > 0 {
			t.Errorf("the state directory holds %v, %v", entries, err)
		}
		for _, pattern := range []string{"/sys/fs/cgroup/gantry/*/", "/sys/fs/cgroup/*/gantry/*/"} {
			if left, err := filepath.Glob(pattern + string(task.ID)); err != nil || len(left) > 0 {
				t.Errorf("cgroups are left: %v, %v", left, err)
			}
		}
	})
}

// The shim itself refuses a directory that another holds, that is gone, or that was used before.
func TestShimTakesADirectoryOnce(t *testing.T) {
	state := t.TempDir()
	d := open(t, state, false)
	task := shell(t, "sleep 1000")
	start(t, d, task)
	dir := filepath.Join(state, string(task.ID))
	run := func(dir string) (words string, code int) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		c := exec.Command(filepath.Join(helpers, "gantry-shim"), "run", dir)
		c.ExtraFiles = []*os.File{w}
		_ = c.Run() // its code is looked at
		_ = w.Close()
		b, _ := bufio.NewReader(r).ReadString(0)
		return strings.TrimSuffix(b, "\x00"), c.ProcessState.ExitCode()
	}
	if w, code := run(dir); w != "held" || code != 3 {
		t.Errorf("a second shim says %q, %d", w, code)
	}
	if w, code := run(filepath.Join(state, "nowhere")); w != "error" || code != 1 {
		t.Errorf("a shim without a directory says %q, %d", w, code)
	}
	if err := d.Signal(limited(t), task.ID, 9); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Wait(limited(t), task.ID); err != nil {
		t.Fatal(err)
	}
	if w, code := run(dir); w != "over" || code != 4 {
		t.Errorf("a shim in a used directory says %q, %d", w, code)
	}
}

// Starting and removing leaves no descriptor, process, file or cgroup.
func TestNothingIsLeft(t *testing.T) {
	both(t, func(t *testing.T, isolate bool) {
		state := t.TempDir()
		d := open(t, state, isolate)
		count := func() int {
			fds, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				t.Fatal(err)
			}
			return len(fds)
		}
		var before int
		for i := range 20 {
			task := shell(t, "exit 0")
			if i%4 == 1 {
				task.Command = []string{"no-such-program"}
			}
			_, err := d.Start(limited(t), task)
			if (err != nil) != (i%4 == 1) {
				t.Fatal(err)
			}
			if i%2 == 0 {
				_, _ = d.Exec(limited(t), task.ID, runtime.Exec{Command: []string{"true"}}) // the task may have ended
			}
			if err := d.Remove(limited(t), task.ID); err != nil {
				t.Fatal(err)
			}
			if i == 3 {
				before = count() // the poller and the like are there now
			}
		}
		eventually(t, "no descriptor is left", func() bool { return count() <= before })
		if entries, err := os.ReadDir(state); err != nil || len(entries) != 0 {
			t.Errorf("the state directory holds %v, %v", entries, err)
		}
		if groups, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/gantry/test-%d/*.main", os.Getpid())); len(groups) != 0 {
			t.Errorf("cgroups are left: %v", groups)
		}
	})
}

// The whole suite holds for an ordinary user.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the other tests run as an ordinary user already")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const nobody = 65534
	tmp := filepath.Join(dir, "tmp")
	if err := errors.Join(os.Mkdir(tmp, 0o755), os.Chown(tmp, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "process.test")
	text, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = os.WriteFile(binary, text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(limited(t), binary, "-test.v", "-test.run", "TestConformancePlain|TestShimIsKilled|TestNothingIsLeft")
	c.Dir = tmp
	c.Env = append(os.Environ(), "TMPDIR="+tmp, helpersEnv+"="+helpers)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestConformancePlain") {
		t.Errorf("%v\n%s", err, out)
	}
}
