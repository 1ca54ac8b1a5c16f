package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// expect waits until a stream of the task holds want and nothing else.
func expect(t *testing.T, task runtime.Task, stream, want string) {
	t.Helper()
	var got string
	defer func() {
		if t.Failed() {
			t.Logf("%s is %q, want %q", stream, clip(got), clip(want))
		}
	}()
	eventually(t, stream+" is complete", func() bool {
		got = output(t, task, stream)
		return got == want
	})
}

func clip(s string) string {
	if len(s) > 400 {
		return fmt.Sprintf("%s ... %s (%d bytes)", s[:200], s[len(s)-200:], len(s))
	}
	return s
}

func testStreamsApart(t *testing.T, h Harness) {
	task := h.Task(t, Program{Line: "echo to out; echo to err >&2; printf 'no newline at the end'"})
	start(t, h, task)
	wait(t, h.Driver, task.ID)
	expect(t, task, "stdout", "to out\nno newline at the end")
	expect(t, task, "stderr", "to err\n")
}

// chatty is a line that writes the numbers from 0 to n-1 as fast as it can.
func chatty(n int) string {
	return fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo \"line number $i\"; i=$((i+1)); done", n)
}

func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "line number %d\n", i)
	}
	return b.String()
}

func testLogsComplete(t *testing.T, h Harness) {
	const n = 30000
	task := h.Task(t, Program{Line: chatty(n)})
	task.Logs.Size, task.Logs.Keep = 64*model.KiB, 20
	start(t, h, task)
	wait(t, h.Driver, task.ID)
	expect(t, task, "stdout", numbered(n))
}

func testLogsRotate(t *testing.T, h Harness) {
	const n = 5000
	task := h.Task(t, Program{Line: chatty(n)})
	task.Logs.Size, task.Logs.Keep = 16*model.KiB, 2
	start(t, h, task)
	wait(t, h.Driver, task.ID)
	want := numbered(n)
	eventually(t, "the last line is in the log", func() bool {
		got := output(t, task, "stdout")
		return got != "" && strings.HasSuffix(want, got)
	})
	files, err := filepath.Glob(filepath.Join(task.Logs.Dir, "stdout*"))
	if err != nil || len(files) != 3 {
		t.Fatalf("log files: %v, %v", files, err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > int64(task.Logs.Size) {
			t.Errorf("%s: %v, %v", f, info.Size(), err)
		}
	}
	if got := output(t, task, "stdout"); len(got) <= 2*int(task.Logs.Size)*9/10 {
		t.Errorf("only %d bytes are kept", len(got))
	}
}

func testLogsAppend(t *testing.T, h Harness) {
	task := h.Task(t, Program{Line: "echo attempt"})
	for i := range 2 {
		task.Attempt = uint32(i + 1)
		start(t, h, task)
		wait(t, h.Driver, task.ID)
		expect(t, task, "stdout", strings.Repeat("attempt\n", i+1))
		remove(t, h.Driver, task.ID)
	}
	expect(t, task, "stdout", "attempt\nattempt\n")
}

func testEnvironment(t *testing.T, h Harness) {
	task := h.Task(t, Program{Line: `echo "$A|$B|${PATH:+path}"; pwd; read x; echo "read $?"; umask`})
	task.Env = map[string]string{"A": "one two", "B": "=\n$x"}
	task.Dir = "/etc"
	start(t, h, task)
	wait(t, h.Driver, task.ID)
	expect(t, task, "stdout", "one two|=\n$x|path\n/etc\nread 1\n0022\n")
}

func testUser(t *testing.T, h Harness) {
	task := h.Task(t, Program{Line: "while read k a b c d; do case $k in Uid:|Gid:) echo $k $a $b $c $d;; esac; done </proc/self/status"})
	task.User, task.Dir = "12345:23456", "/"
	start(t, h, task)
	wait(t, h.Driver, task.ID)
	expect(t, task, "stdout", "Uid: 12345 12345 12345 12345\nGid: 23456 23456 23456 23456\n")
}

func testMounts(t *testing.T, h Harness) {
	task := h.Task(t, Program{Line: "read x </mnt/file; echo $x; echo two >/mnt/new && echo written; (echo no >/srv/new) 2>/dev/null || echo refused"})
	rw, ro := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(rw, "file"), []byte("one\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	task.Mounts = []runtime.Mount{{Source: rw, Target: "/mnt"}, {Source: ro, Target: "/srv", ReadOnly: true}}
	start(t, h, task)
	wait(t, h.Driver, task.ID)
	expect(t, task, "stdout", "one\nwritten\nrefused\n")
	if b, err := os.ReadFile(filepath.Join(rw, "new")); err != nil || string(b) != "two\n" {
		t.Errorf("the volume has %q, %v", b, err)
	}
}

// A volume of its own belongs to the task's user from its first task on, and never changes hands again.
func testOwnMount(t *testing.T, h Harness) {
	own, other := t.TempDir(), t.TempDir()
	for _, user := range []string{"12345:23456", "12346"} {
		task := h.Task(t, Program{Line: "true", Exits: true})
		task.User, task.Dir = user, "/"
		task.Mounts = []runtime.Mount{{Source: own, Target: "/mnt", Own: true}, {Source: other, Target: "/srv"}}
		start(t, h, task)
		wait(t, h.Driver, task.ID)
		for dir, want := range map[string][2]uint32{own: {12345, 23456}, other: {uint32(os.Geteuid()), uint32(os.Getegid())}} {
			info, err := os.Stat(dir)
			if err != nil {
				t.Fatal(err)
			}
			if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != want[0] || st.Gid != want[1] {
				t.Errorf("%s belongs to %d:%d, want %v", dir, st.Uid, st.Gid, want)
			}
		}
	}
}

func testOOM(t *testing.T, h Harness) {
	task := h.Task(t, Program{Line: "x=0123456789abcdef0123456789abcdef; while :; do x=$x$x; done"})
	task.Memory = 32 * model.MiB
	start(t, h, task)
	e := wait(t, h.Driver, task.ID)
	if !e.OOM || e.Signal != 9 || e.Code != 137 || e.Limit != task.Memory || e.Peak < task.Memory/2 || e.Peak > task.Memory {
		t.Errorf("a program out of memory ended as %+v", e)
	}
	if s, ok := lookup(t, h.Reopen(t), task.ID); !ok || s.Exit == nil || !s.Exit.OOM {
		t.Errorf("a second driver says %+v, %v", s, ok)
	}
}

func testCPULimit(t *testing.T, h Harness) {
	meter, ok := h.Driver.(runtime.Meter)
	if !ok {
		t.Skip("the driver does not measure")
	}
	task := h.Task(t, Program{Line: "while :; do :; done"})
	task.CPUs = 200
	start(t, h, task)
	begin := time.Now()
	first, err := meter.Usage(limited(t), task.ID)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has used 0.2 s of CPU", func() bool {
		u, err := meter.Usage(limited(t), task.ID)
		return err == nil && (u.CPUTime-first.CPUTime).Std() > 200*time.Millisecond
	})
	if took := time.Since(begin); took < 600*time.Millisecond { // at 0.2 cores it takes a second, less a period's quota at each end
		t.Errorf("0.2 s of CPU took %v in spite of a ceiling of 0.2 cores", took)
	}
}

func testUsage(t *testing.T, h Harness) {
	meter, ok := h.Driver.(runtime.Meter)
	if !ok {
		t.Skip("the driver does not measure")
	}
	task := h.Task(t, Program{Line: "x=0123456789abcdef; while [ ${#x} -lt 4000000 ]; do x=$x$x; done; echo ready; " +
		"i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; while :; do sleep 1000; done"}) // some systems count processor time in hundredths of a second
	start(t, h, task)
	ready(t, h, task)
	eventually(t, "it has used processor time", func() bool {
		u, err := meter.Usage(limited(t), task.ID)
		return err == nil && u.CPUTime > 0
	})
	u, err := meter.Usage(limited(t), task.ID)
	if err != nil || u.Memory < 4*model.MiB || u.Memory > task.Memory || u.At.IsZero() {
		t.Errorf("Usage returned %+v, %v", u, err)
	}
}

// execer starts a task to run programs beside.
func execer(t *testing.T, h Harness, p Program) (runtime.Execer, runtime.Task) {
	t.Helper()
	x, ok := h.Driver.(runtime.Execer)
	if !ok {
		t.Skip("the driver cannot run further programs")
	}
	task := h.Task(t, p)
	task.Env = map[string]string{"FROM": "task"}
	start(t, h, task)
	return x, task
}

func testExec(t *testing.T, h Harness) {
	x, task := execer(t, h, forever)
	var out, errs bytes.Buffer
	code, err := x.Exec(limited(t), task.ID, runtime.Exec{
		Command: []string{"/bin/sh", "-c", `read x; echo "$x $FROM $MORE"; pwd; echo oops >&2; exit 9`},
		Env:     map[string]string{"MORE": "exec"},
		Dir:     "/etc",
		Stdin:   strings.NewReader("hello\n"),
		Stdout:  &out,
		Stderr:  &errs,
	})
	if err != nil || code != 9 || out.String() != "hello task exec\n/etc\n" || errs.String() != "oops\n" {
		t.Errorf("Exec returned %d, %v; out %q, err %q", code, err, out.String(), errs.String())
	}
	out.Reset()
	code, err = x.Exec(limited(t), task.ID, runtime.Exec{
		Command: []string{"cat"}, Stdin: strings.NewReader("to the end"), Stdout: &out,
	})
	if err != nil || code != 0 || out.String() != "to the end" {
		t.Errorf("a program that reads its input to the end: %d, %v; out %q", code, err, out.String())
	}
	code, err = x.Exec(limited(t), task.ID, runtime.Exec{Command: []string{"/bin/sh", "-c", "kill -9 $$"}})
	if err != nil || code != 137 {
		t.Errorf("a program that kills itself: %d, %v", code, err)
	}
}

func testExecNoSuchProgram(t *testing.T, h Harness) {
	x, task := execer(t, h, forever)
	if code, err := x.Exec(limited(t), task.ID, runtime.Exec{Command: []string{"no-such-program"}}); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("Exec returned %d, %v", code, err)
	}
}

func testExecInterrupted(t *testing.T, h Harness) {
	x, task := execer(t, h, forever)
	mark := fmt.Sprintf("%d.%d", 100000+os.Getpid(), serial.Add(1))
	ctx, cancel := context.WithCancel(limited(t))
	done := make(chan error, 1)
	go func() {
		_, err := x.Exec(ctx, task.ID, runtime.Exec{Command: []string{"sleep", mark}})
		done <- err
	}()
	eventually(t, "the program runs", func() bool { return bearing(t, mark) == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Exec returned %v", err)
	}
	eventually(t, "the program is gone", func() bool { return bearing(t, mark) == 0 })
}

func testExecDiesWithTask(t *testing.T, h Harness) {
	x, task := execer(t, h, forever)
	mark := fmt.Sprintf("%d.%d", 100000+os.Getpid(), serial.Add(1))
	ctx := limited(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = x.Exec(ctx, task.ID, runtime.Exec{Command: []string{"sleep", mark}}) // how it ends depends on the driver
	}()
	eventually(t, "the program runs", func() bool { return bearing(t, mark) == 1 })
	signal(t, h.Driver, task.ID, int(unix.SIGKILL))
	wait(t, h.Driver, task.ID)
	eventually(t, "the program is gone", func() bool { return bearing(t, mark) == 0 })
	<-done
}

func testExecTerminal(t *testing.T, h Harness) {
	x, task := execer(t, h, forever)
	sizes := make(chan runtime.Size, 1)
	sizes <- runtime.Size{Columns: 100, Rows: 30}
	var out bytes.Buffer
	code, err := x.Exec(limited(t), task.ID, runtime.Exec{
		Command: []string{"/bin/sh", "-c", "[ -t 0 ] && [ -t 1 ] && echo terminal; stty size; read x; echo got $x; exit 4"},
		TTY:     true,
		Stdin:   strings.NewReader("word\n"),
		Stdout:  &out,
		Resize:  sizes,
	})
	if err != nil || code != 4 || !strings.Contains(out.String(), "terminal\r\n") || !strings.Contains(out.String(), "30 100\r\n") || !strings.Contains(out.String(), "got word\r\n") {
		t.Errorf("Exec returned %d, %v; out %q", code, err, out.String())
	}
}
