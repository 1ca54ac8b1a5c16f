package process_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// logger is a running gantry-log, as containerd starts it.
type logger struct {
	cmd      *exec.Cmd
	out, err *os.File // the container's ends
}

func startLogger(t *testing.T, args ...string) *logger {
	t.Helper()
	l := &logger{cmd: exec.Command(filepath.Join(helpers, "gantry-log"), args...)}
	ends := make([]*os.File, 3)
	var files [3]*os.File
	for i := range files {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		files[i], ends[i] = r, w
	}
	l.out, l.err = ends[0], ends[1]
	l.cmd.ExtraFiles = []*os.File{files[0], files[1], ends[2]}
	l.cmd.Stderr = os.Stderr
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.cmd.Process.Kill() // it has ended, unless the test failed
		_, _ = l.cmd.Process.Wait()
	})
	for _, f := range []*os.File{files[0], files[1], ends[2]} {
		_ = f.Close()
	}
	_ = files[2].SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := files[2].Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
		t.Fatalf("gantry-log does not say that it is ready: %d, %v", n, err)
	}
	_ = files[2].Close()
	return l
}

func (l *logger) wait(t *testing.T) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- l.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("gantry-log does not end")
	}
}

// The logger keeps both streams apart and whole, in files that rotate between lines, whatever the order of its options.
func TestLogger(t *testing.T) {
	dir := t.TempDir()
	l := startLogger(t, "--keep", "50", "--dir", dir, "--size", "1000")
	var want strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	for _, s := range []string{want.String()[:1234], want.String()[1234:]} {
		if _, err := l.out.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.err.WriteString("no newline"); err != nil {
		t.Fatal(err)
	}
	_, _ = l.out.Close(), l.err.Close()
	l.wait(t)
	if got := content(t, dir, "stderr"); got != "no newline" {
		t.Errorf("stderr is %q", got)
	}
	files, err := filepath.Glob(filepath.Join(dir, "stdout*"))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for i := len(files); i > 0; i-- {
		got.WriteString(content(t, dir, fmt.Sprintf("stdout.%d", i)))
	}
	got.WriteString(content(t, dir, "stdout"))
	if got.String() != want.String() {
		t.Errorf("stdout has %d bytes in %d files, want %d", got.Len(), len(files), want.Len())
	}
	for _, f := range files {
		if text := content(t, f); len(text) > 1000 || text != "" && !strings.HasSuffix(text, "\n") {
			t.Errorf("%s has %d bytes and ends %q", f, len(text), text[max(0, len(text)-10):])
		}
	}
}

// Without rotated files to keep, the log starts over; a line longer than a file is cut; a log that was there is continued.
func TestLoggerExtremes(t *testing.T) {
	for _, c := range []struct{ keep, before, write, live, first string }{
		{"0", "", "aaaa\nbbbb\ncc\n", "cc\n", ""},
		{"2", "", strings.Repeat("x", 25), "xxxxx", "xxxxxxxxxx"},
		{"2", "old\n", "new\n", "old\nnew\n", ""},
		{"2", strings.Repeat("o", 40), "new\n", "new\n", strings.Repeat("o", 40)},
		{"1", "", "123456789\n", "", "123456789\n"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "stdout"), []byte(c.before), 0o600); err != nil {
			t.Fatal(err)
		}
		l := startLogger(t, "--dir", dir, "--size", "10", "--keep", c.keep)
		if _, err := l.out.WriteString(c.write); err != nil {
			t.Fatal(err)
		}
		_, _ = l.out.Close(), l.err.Close()
		l.wait(t)
		if live, first := content(t, dir, "stdout"), content(t, dir, "stdout.1"); live != c.live || first != c.first {
			t.Errorf("%+v: live %q, first %q", c, live, first)
		}
	}
}

// Asked to end, the logger writes what it was given, though the streams are still open.
func TestLoggerEndsOnSignal(t *testing.T) {
	dir := t.TempDir()
	l := startLogger(t, "--dir", dir, "--size", "1000000", "--keep", "1")
	text := strings.Repeat("0123456789abcde\n", 3000)
	if _, err := l.out.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.wait(t)
	if got := content(t, dir, "stdout"); got != text {
		t.Errorf("%d bytes of %d are in the log", len(got), len(text))
	}
}

func TestLoggerRefuses(t *testing.T) {
	for _, args := range [][]string{{}, {"--dir"}, {"--dir", "/no/where"}, {"--dir", "/tmp", "--size", "x"}, {"--what", "1"}, {"--dir", "/tmp", "--keep", "-1"}} {
		c := exec.Command(filepath.Join(helpers, "gantry-log"), args...)
		if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "usage") {
			t.Errorf("gantry-log %q: %v, %s", args, err, out)
		}
	}
}
