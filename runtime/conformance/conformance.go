// Package conformance holds what every runtime driver must do, as tests that each driver's own tests run.
//
// The suite describes tasks by a Program: a line for a POSIX shell, and beside it in plain words what that line does, so
// that a driver which only pretends can act alike. A driver's test gives the suite a Harness, whose Task turns a Program
// into a runtime.Task; Shell does most of it. Lines use nothing but the shell's builtins and sleep.
package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// Program is something for a task to run.
type Program struct {
	Line string // for /bin/sh -c

	// What the line does.
	Exits       bool // it ends by itself, soon, with Code; else it runs until a signal
	Code        int
	IgnoresTerm bool
	HandlesTerm bool // exits with Code on SIGTERM
}

// Harness is a driver to test. Each test asks for a new one and may share the engine behind it with others.
type Harness struct {
	Driver runtime.Driver
	// Reopen returns another driver for the same tasks, as an agent that was restarted makes it.
	Reopen func(t *testing.T) runtime.Driver
	// Task returns a task that runs p under an id of its own. The suite may change the result before it starts it.
	Task func(t *testing.T, p Program) runtime.Task

	Pretends       bool // programs do not really run: they write nothing and use nothing
	Isolated       bool // tasks have a pid namespace and limits on CPU and memory
	Users          bool // tasks can run as other users
	DefaultSignals bool // signals that a program does not handle end it, which is not so where it is pid 1
}

var serial atomic.Int64

// Shell returns a task that runs p by /bin/sh on the node itself, with a new id, sandbox and log directory.
func Shell(t *testing.T, p Program) runtime.Task {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // programs of other users pass through
		t.Fatal(err)
	}
	task := runtime.Task{
		ID:      runtime.TaskID(fmt.Sprintf("conf-%d-%d.main", os.Getpid(), serial.Add(1))),
		Attempt: 1,
		Command: []string{"/bin/sh", "-c", p.Line},
		CPUs:    1000,
		Memory:  64 * model.MiB,
		Sandbox: filepath.Join(dir, "sandbox"),
		Logs:    runtime.LogFiles{Dir: filepath.Join(dir, "logs"), Size: model.MiB, Keep: 3},
	}
	for _, d := range []string{task.Sandbox, task.Logs.Dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return task
}

// Run runs the suite. open makes the harness of one test and cleans up after it.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for _, c := range []struct {
		name string
		need func(Harness) bool
		run  func(*testing.T, Harness)
	}{
		{"ExitCodes", always, testExitCodes},
		{"KilledBySignal", always, testKilled},
		{"HandledSignal", always, testHandledSignal},
		{"DefaultSignal", func(h Harness) bool { return h.DefaultSignals }, testDefaultSignal},
		{"IgnoredSignal", always, testIgnoredSignal},
		{"StartAgain", always, testStartAgain},
		{"StartOtherAttempt", always, testOtherAttempt},
		{"StartAfterRemove", always, testStartAfterRemove},
		{"CancelledStart", always, testCancelledStart},
		{"UnknownTask", always, testUnknown},
		{"WaitIsInterrupted", always, testWaitInterrupted},
		{"RemoveRunning", always, testRemoveRunning},
		{"RemoveDescendants", real, testRemoveDescendants},
		{"EndsWithItsDescendants", real, testEndsWithDescendants},
		{"AdoptRunning", always, testAdoptRunning},
		{"AdoptEnded", always, testAdoptEnded},
		{"List", always, testList},
		{"ConcurrentStarts", always, testConcurrentStarts},
		{"NoSuchProgram", real, testNoSuchProgram},
		{"NoSuchUser", func(h Harness) bool { return real(h) && h.Users }, testNoSuchUser},
		{"StreamsApart", real, testStreamsApart},
		{"LogsAreComplete", real, testLogsComplete},
		{"LogsRotate", real, testLogsRotate},
		{"LogsAppend", real, testLogsAppend},
		{"Environment", real, testEnvironment},
		{"User", func(h Harness) bool { return real(h) && h.Users }, testUser},
		{"Mounts", isolated, testMounts},
		{"OwnMount", func(h Harness) bool { return isolated(h) && h.Users }, testOwnMount},
		{"OutOfMemory", isolated, testOOM},
		{"CPULimit", isolated, testCPULimit},
		{"Usage", real, testUsage},
		{"Exec", real, testExec},
		{"ExecNoSuchProgram", real, testExecNoSuchProgram},
		{"ExecIsInterrupted", real, testExecInterrupted},
		{"ExecDiesWithTask", real, testExecDiesWithTask},
		{"ExecTerminal", real, testExecTerminal},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := open(t)
			if !c.need(h) {
				t.Skip("the driver under test does not promise this")
			}
			c.run(t, h)
		})
	}
}

func always(Harness) bool     { return true }
func real(h Harness) bool     { return !h.Pretends }
func isolated(h Harness) bool { return h.Isolated }

// Programs that several tests use.
var (
	forever = Program{Line: "while :; do sleep 1000; done"}
	polite  = Program{Line: "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done", HandlesTerm: true, Code: 7}
	deaf    = Program{Line: "trap '' TERM; echo ready; while :; do sleep 0.05; done", IgnoresTerm: true}
)

func exits(code int) Program {
	return Program{Line: fmt.Sprintf("exit %d", code), Exits: true, Code: code}
}

// deadline bounds each wait: long enough for a busy machine, short enough to show what hangs.
const deadline = 30 * time.Second

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// start starts a task and removes it at the end of the test.
func start(t *testing.T, h Harness, task runtime.Task) runtime.State {
	t.Helper()
	t.Cleanup(func() { remove(t, h.Driver, task.ID) })
	s, err := h.Driver.Start(limited(t), task)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	return s
}

func remove(t *testing.T, d runtime.Driver, id runtime.TaskID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := d.Remove(ctx, id); err != nil {
		t.Errorf("remove: %v", err)
	}
}

func wait(t *testing.T, d runtime.Driver, id runtime.TaskID) model.Exit {
	t.Helper()
	e, err := d.Wait(limited(t), id)
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	return e
}

func signal(t *testing.T, d runtime.Driver, id runtime.TaskID, n int) {
	t.Helper()
	if err := d.Signal(limited(t), id, n); err != nil {
		t.Fatalf("signal: %v", err)
	}
}

// ready waits until a program has said that it is: before, its signal handlers may not be in place.
func ready(t *testing.T, h Harness, task runtime.Task) {
	t.Helper()
	if h.Pretends {
		return
	}
	eventually(t, "the program says that it is ready", func() bool {
		return len(output(t, task, "stdout")) > 0
	})
}

// eventually waits for something that can only be looked at, such as a file's content.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(deadline); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain until %s", deadline, what)
		}
	}
}

// output returns what a task wrote to one stream and is still kept, rotated files included.
func output(t *testing.T, task runtime.Task, stream string) string {
	t.Helper()
	var all []byte
	for i := task.Logs.Keep; i >= 0; i-- {
		name := filepath.Join(task.Logs.Dir, stream)
		if i > 0 {
			name = fmt.Sprintf("%s.%d", name, i)
		}
		b, err := os.ReadFile(name)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return string(all)
}
