package process_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/process"
)

// With cgroup version 2, programs of Start and Exec are born in the task's group, and the shim is not in it.
func TestCgroupVersion2(t *testing.T) {
	const root = "/sys/fs/cgroup/unified"
	group := fmt.Sprintf("/gantry-test-%d", os.Getpid())
	if err := unix.Mkdir(root+group, 0o755); err != nil {
		t.Skipf("cannot make a group in %s: %v", root, err)
	}
	t.Cleanup(func() {
		eventually(t, "the group is empty", func() bool { return unix.Rmdir(root+group) == nil })
	})
	d := open(t, t.TempDir(), true)
	task := shell(t, "sleep 1000")
	s, err := d.StartIn(limited(t), task, root+group)
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, fmt.Sprintf("/proc/%d/cgroup", s.PID)); !strings.Contains(got, "0::"+group+"\n") {
		t.Errorf("the program is in %s", got)
	}
	if got := content(t, fmt.Sprintf("/proc/%d/cgroup", parent(t, s.PID))); strings.Contains(got, group) {
		t.Errorf("the shim is in %s", got)
	}
	var out bytes.Buffer
	code, err := d.Exec(limited(t), task.ID, runtime.Exec{Command: []string{"cat", "/proc/self/cgroup"}, Stdout: &out})
	if err != nil || code != 0 || !strings.Contains(out.String(), "0::"+group+"\n") {
		t.Errorf("Exec returned %d, %v; %q", code, err, out.String())
	}
	if err := d.Remove(limited(t), task.ID); err != nil {
		t.Error(err)
	}
}

// Exec returns when its program has ended, though a descendant keeps the streams, and though the caller's input never ends.
func TestExecDoesNotWaitForOthers(t *testing.T) {
	d := open(t, t.TempDir(), true)
	task := shell(t, "sleep 1000")
	start(t, d, task)
	var wg sync.WaitGroup
	for _, tty := range []bool{false, true} {
		wg.Go(func() {
			in, feed, err := os.Pipe()
			if err != nil {
				t.Error(err)
				return
			}
			defer in.Close()
			defer feed.Close()
			var out, errs bytes.Buffer
			begin := time.Now()
			code, err := d.Exec(limited(t), task.ID, runtime.Exec{
				Command: []string{"/bin/sh", "-c", "trap '' HUP; sleep 1000 & echo done; exit 5"}, TTY: tty, Stdin: in, Stdout: &out, Stderr: &errs,
			})
			if err != nil || code != 5 || !strings.HasPrefix(out.String(), "done") || time.Since(begin) > 20*time.Second {
				t.Errorf("tty %v: Exec returned %d, %v after %v; %q", tty, code, err, time.Since(begin), out.String())
			}
		})
	}
	wg.Wait()
}

// A program that Exec runs ends with the agent that asked for it, though the task runs on.
func TestExecEndsWithAgent(t *testing.T) {
	both(t, func(t *testing.T, isolate bool) {
		if can := process.CanIsolate(); isolate && !can.OK {
			t.Skip(can.Why)
		}
		state, task := t.TempDir(), shell(t, "sleep 1000")
		mark := fmt.Sprintf("%d.9", 300000+os.Getpid())
		killedAgent(t, state, isolate, task, func() {
			eventually(t, "the program runs", func() bool { return alive(mark) == 1 })
		}, "sleep", mark)
		eventually(t, "the program is gone", func() bool { return alive(mark) == 0 })
		if s := start(t, open(t, state, isolate), task); s.Exit != nil {
			t.Errorf("the task ended too: %+v", s)
		}
	})
}

func TestExecRefuses(t *testing.T) {
	d := open(t, t.TempDir(), false)
	task := shell(t, "exit 0")
	start(t, d, task)
	for _, e := range []runtime.Exec{{}, {Command: []string{"a\x00"}}, {Command: []string{"true"}, Env: map[string]string{"": "x"}}} {
		if _, err := d.Wait(limited(t), task.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Exec(limited(t), task.ID, e); err == nil {
			t.Errorf("Exec(%+v) in a task that has ended succeeded", e)
		}
	}
	running := shell(t, "sleep 1000")
	start(t, d, running)
	for _, e := range []runtime.Exec{{}, {Command: []string{"a\x00"}}, {Command: []string{"true"}, Env: map[string]string{"": "x"}}, {Command: []string{"true"}, Dir: "/no/where"}} {
		if _, err := d.Exec(limited(t), running.ID, e); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("Exec(%+v) returned %v", e, err)
		}
	}
}

// Two hundred tasks asked for at the same moment all run, and soon.
func TestManyStartsAtOnce(t *testing.T) {
	both(t, func(t *testing.T, isolate bool) {
		d := open(t, t.TempDir(), isolate)
		base := shell(t, "")
		base.Command = []string{"/bin/sleep", "1000"}
		var wg sync.WaitGroup
		ids := make([]runtime.TaskID, 200)
		begin := time.Now()
		for i := range ids {
			task := base
			task.ID = runtime.TaskID(fmt.Sprintf("many-%d.main", i))
			ids[i] = task.ID
			wg.Go(func() {
				if _, err := d.Start(limited(t), task); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		t.Logf("200 starts took %v", time.Since(begin))
		for _, id := range ids {
			wg.Go(func() {
				if err := d.Remove(limited(t), id); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}
