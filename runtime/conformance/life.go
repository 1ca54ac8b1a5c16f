package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

func testExitCodes(t *testing.T, h Harness) {
	for _, code := range []int{0, 1, 3, 127, 255} {
		task := h.Task(t, exits(code))
		before := time.Now().Add(-time.Second)
		s := start(t, h, task)
		if s.ID != task.ID || s.Attempt != 1 || s.Started.Before(before) {
			t.Errorf("Start returned %+v", s)
		}
		e := wait(t, h.Driver, task.ID)
		if e.Code != code || e.Signal != 0 || e.OOM || e.Lost != "" {
			t.Errorf("exit %d is reported as %+v", code, e)
		}
		if e.At.Before(before) || e.At.After(time.Now().Add(time.Second)) {
			t.Errorf("the end is dated %v", e.At)
		}
		if again := wait(t, h.Driver, task.ID); again != e {
			t.Errorf("a second Wait returned %+v, the first %+v", again, e)
		}
	}
}

func testKilled(t *testing.T, h Harness) {
	task := h.Task(t, forever)
	start(t, h, task)
	signal(t, h.Driver, task.ID, int(unix.SIGKILL))
	if e := wait(t, h.Driver, task.ID); e.Code != 137 || e.Signal != 9 || e.OOM || e.Lost != "" {
		t.Errorf("a task killed by signal 9 is reported as %+v", e)
	}
}

func testHandledSignal(t *testing.T, h Harness) {
	task := h.Task(t, polite)
	start(t, h, task)
	ready(t, h, task)
	signal(t, h.Driver, task.ID, int(unix.SIGTERM))
	if e := wait(t, h.Driver, task.ID); e.Code != 7 || e.Signal != 0 {
		t.Errorf("a program that handles SIGTERM by exit 7 is reported as %+v", e)
	}
	signal(t, h.Driver, task.ID, int(unix.SIGTERM)) // to a task that has ended: ignored
}

func testDefaultSignal(t *testing.T, h Harness) {
	task := h.Task(t, Program{Line: "exec sleep 1000"})
	start(t, h, task)
	signal(t, h.Driver, task.ID, int(unix.SIGTERM))
	if e := wait(t, h.Driver, task.ID); e.Code != 143 || e.Signal != 15 {
		t.Errorf("a program without handlers that got SIGTERM is reported as %+v", e)
	}
}

func testIgnoredSignal(t *testing.T, h Harness) {
	task := h.Task(t, deaf)
	start(t, h, task)
	ready(t, h, task)
	signal(t, h.Driver, task.ID, int(unix.SIGTERM))
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if e, err := h.Driver.Wait(ctx, task.ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Wait returned %+v, %v for a program that ignores SIGTERM", e, err)
	}
	signal(t, h.Driver, task.ID, int(unix.SIGKILL))
	if e := wait(t, h.Driver, task.ID); e.Signal != 9 {
		t.Errorf("it ended as %+v", e)
	}
}

func testStartAgain(t *testing.T, h Harness) {
	task := h.Task(t, Program{Line: "echo once; sleep 1000"})
	first := start(t, h, task)
	again, err := h.Driver.Start(limited(t), task)
	if err != nil || again.PID != first.PID || !again.Started.Equal(first.Started) {
		t.Fatalf("starting again returned %+v, %v; first %+v", again, err, first)
	}
	ready(t, h, task)
	signal(t, h.Driver, task.ID, int(unix.SIGKILL))
	e := wait(t, h.Driver, task.ID)
	ended, err := h.Driver.Start(limited(t), task)
	if err != nil || ended.Exit == nil || *ended.Exit != e || ended.PID != 0 {
		t.Fatalf("starting the same attempt after its end returned %+v, %v", ended, err)
	}
	if got := output(t, task, "stdout"); !h.Pretends && got != "once\n" {
		t.Errorf("the program wrote %q", got)
	}
}

func testOtherAttempt(t *testing.T, h Harness) {
	task := h.Task(t, forever)
	first := start(t, h, task)
	next := task
	next.Attempt = 2
	if s, err := h.Driver.Start(limited(t), next); err == nil {
		t.Fatalf("a second attempt started beside the first: %+v", s)
	}
	list, err := h.Driver.List(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.ID == task.ID && (s.PID != first.PID || s.Attempt != 1) {
			t.Errorf("the first attempt became %+v", s)
		}
	}
}

func testStartAfterRemove(t *testing.T, h Harness) {
	task := h.Task(t, forever)
	start(t, h, task)
	remove(t, h.Driver, task.ID)
	task.Attempt = 2
	if s := start(t, h, task); s.Attempt != 2 {
		t.Errorf("Start returned %+v", s)
	}
}

func testCancelledStart(t *testing.T, h Harness) {
	task := h.Task(t, forever)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := h.Driver.Start(ctx, task); !errors.Is(err, context.Canceled) {
		t.Fatalf("Start with a context that has ended returned %v", err)
	}
	if s, ok := lookup(t, h.Driver, task.ID); ok {
		t.Errorf("it left %+v", s)
	}
}

func testUnknown(t *testing.T, h Harness) {
	ctx := limited(t)
	const id = runtime.TaskID("conf-nobody.main")
	if _, err := h.Driver.Wait(ctx, id); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("Wait: %v", err)
	}
	if err := h.Driver.Signal(ctx, id, 15); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("Signal: %v", err)
	}
	if err := h.Driver.Remove(ctx, id); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if x, ok := h.Driver.(runtime.Execer); ok {
		if _, err := x.Exec(ctx, id, runtime.Exec{Command: []string{"true"}}); !errors.Is(err, runtime.ErrNotFound) {
			t.Errorf("Exec: %v", err)
		}
	}
	if m, ok := h.Driver.(runtime.Meter); ok {
		if _, err := m.Usage(ctx, id); !errors.Is(err, runtime.ErrNotFound) {
			t.Errorf("Usage: %v", err)
		}
	}
}

func testWaitInterrupted(t *testing.T, h Harness) {
	task := h.Task(t, forever)
	start(t, h, task)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := h.Driver.Wait(ctx, task.ID)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Wait returned %v when its context ended", err)
	}
}

func testRemoveRunning(t *testing.T, h Harness) {
	task := h.Task(t, deaf)
	s := start(t, h, task)
	ready(t, h, task)
	done := make(chan error, 1)
	ctx := limited(t)
	go func() {
		_, err := h.Driver.Wait(ctx, task.ID)
		done <- err
	}()
	remove(t, h.Driver, task.ID)
	if err := <-done; err != nil && !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("Wait returned %v when the task was removed", err)
	}
	if s, ok := lookup(t, h.Driver, task.ID); ok {
		t.Errorf("after Remove, List has %+v", s)
	}
	if !h.Pretends && unix.Kill(s.PID, 0) == nil {
		t.Errorf("process %d outlived its task", s.PID)
	}
	if _, err := os.Stat(task.Sandbox); err != nil {
		t.Errorf("the sandbox: %v", err)
	}
}

// marked returns a line that leaves two further processes behind, in a session of their own where there is setsid, which
// bear a mark, and the mark.
func marked() (line, mark string) {
	mark = fmt.Sprintf("%d.%d", 100000+os.Getpid(), serial.Add(1))
	return fmt.Sprintf("sleep %s & (trap '' HUP TERM; sleep %s) & echo ready; ", mark, mark), mark
}

// bearing returns how many processes of the machine have mark as an argument.
func bearing(t *testing.T, mark string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		b, _ := os.ReadFile(f) // a process that has just ended
		if strings.HasPrefix(string(b), "sleep\x00"+mark) {
			n++
		}
	}
	return n
}

func testRemoveDescendants(t *testing.T, h Harness) {
	line, mark := marked()
	task := h.Task(t, Program{Line: line + "while :; do sleep 1000; done"})
	start(t, h, task)
	eventually(t, "the descendants run", func() bool { return bearing(t, mark) == 2 })
	remove(t, h.Driver, task.ID)
	if n := bearing(t, mark); n != 0 {
		t.Errorf("%d descendants outlived the task", n)
	}
}

func testEndsWithDescendants(t *testing.T, h Harness) {
	line, mark := marked()
	task := h.Task(t, Program{Line: line + "while :; do sleep 0.05; done"})
	start(t, h, task)
	eventually(t, "the descendants run", func() bool { return bearing(t, mark) == 2 })
	signal(t, h.Driver, task.ID, int(unix.SIGKILL))
	wait(t, h.Driver, task.ID)
	eventually(t, "the descendants are gone", func() bool { return bearing(t, mark) == 0 })
}

func testAdoptRunning(t *testing.T, h Harness) {
	task := h.Task(t, polite)
	first := start(t, h, task)
	ready(t, h, task)
	second := h.Reopen(t)
	s, ok := lookup(t, second, task.ID)
	if !ok || s.PID != first.PID || s.Attempt != first.Attempt || s.Exit != nil {
		t.Fatalf("the second driver found %+v, %v; the first started %+v", s, ok, first)
	}
	if d := s.Started.Sub(first.Started); d < -time.Second || d > time.Second {
		t.Errorf("started %v, before %v", s.Started, first.Started)
	}
	again, err := second.Start(limited(t), task)
	if err != nil || again.PID != first.PID {
		t.Fatalf("the second driver started %+v, %v", again, err)
	}
	signal(t, second, task.ID, int(unix.SIGTERM))
	if e := wait(t, second, task.ID); e.Code != 7 || e.Lost != "" {
		t.Errorf("it ended as %+v", e)
	}
	remove(t, second, task.ID)
	if s, ok := lookup(t, h.Reopen(t), task.ID); ok {
		t.Errorf("after Remove, a third driver found %+v", s)
	}
}

func testAdoptEnded(t *testing.T, h Harness) {
	task := h.Task(t, exits(5))
	start(t, h, task)
	e := wait(t, h.Driver, task.ID)
	second := h.Reopen(t)
	s, ok := lookup(t, second, task.ID)
	if !ok || s.Exit == nil || s.Exit.Code != 5 || s.PID != 0 || s.Exit.Lost != "" {
		t.Fatalf("the second driver found %+v, %v", s, ok)
	}
	if got := wait(t, second, task.ID); got.Code != e.Code || !got.At.Equal(e.At) {
		t.Errorf("the second driver says %+v, the first %+v", got, e)
	}
	if s, err := second.Start(limited(t), task); err != nil || s.Exit == nil {
		t.Errorf("the second driver started it again: %+v, %v", s, err)
	}
}

func lookup(t *testing.T, d runtime.Driver, id runtime.TaskID) (runtime.State, bool) {
	t.Helper()
	list, err := d.List(limited(t))
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	for _, s := range list {
		if s.ID == id {
			return s, true
		}
	}
	return runtime.State{}, false
}

func testList(t *testing.T, h Harness) {
	running, ended := h.Task(t, forever), h.Task(t, exits(4))
	start(t, h, running)
	start(t, h, ended)
	wait(t, h.Driver, ended.ID)
	r, ok := lookup(t, h.Driver, running.ID)
	if !ok || r.Exit != nil || r.PID == 0 || r.Started.IsZero() {
		t.Errorf("the running task is listed as %+v, %v", r, ok)
	}
	e, ok := lookup(t, h.Driver, ended.ID)
	if !ok || e.Exit == nil || e.Exit.Code != 4 || e.PID != 0 {
		t.Errorf("the ended task is listed as %+v, %v", e, ok)
	}
}

func testConcurrentStarts(t *testing.T, h Harness) {
	const n = 24
	tasks := make([]runtime.Task, n)
	for i := range tasks {
		tasks[i] = h.Task(t, exits(i))
		t.Cleanup(func() { remove(t, h.Driver, tasks[i].ID) })
	}
	ctx := limited(t)
	exit, errs := make([]model.Exit, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range tasks {
		wg.Go(func() {
			if _, errs[i] = h.Driver.Start(ctx, tasks[i]); errs[i] == nil {
				exit[i], errs[i] = h.Driver.Wait(ctx, tasks[i].ID)
			}
		})
	}
	wg.Wait()
	for i := range tasks {
		if errs[i] != nil || exit[i].Code != i {
			t.Errorf("task %d: %+v, %v", i, exit[i], errs[i])
		}
	}
}

func testNoSuchProgram(t *testing.T, h Harness) {
	for _, program := range []string{"no-such-program", "/no/such/program"} {
		task := h.Task(t, forever)
		task.Command = []string{program}
		_, err := h.Driver.Start(limited(t), task)
		if !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), program) {
			t.Errorf("starting %s returned %v", program, err)
		}
		if s, ok := lookup(t, h.Driver, task.ID); ok {
			t.Errorf("it left %+v", s)
		}
	}
}

func testNoSuchUser(t *testing.T, h Harness) {
	task := h.Task(t, forever)
	task.User = "no-such-user"
	if _, err := h.Driver.Start(limited(t), task); !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), task.User) {
		t.Errorf("Start returned %v", err)
	}
}
