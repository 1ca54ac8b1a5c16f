package lockfile

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The holder is told from nobody, and from no file at all. The locks of this process are not seen by itself, so another holds it.
func TestHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if os.Getenv("LOCK") != "" {
		f, err := os.OpenFile(os.Getenv("LOCK"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("held\n")
		os.Stdin.Read(make([]byte, 1)) // until the other end closes
		return
	}
	want := func(pid int) {
		t.Helper()
		got, fd, err := Holder(path)
		if err != nil || got != pid {
			t.Errorf("holder is %d, %v; want %d", got, err, pid)
		}
		if got != 0 {
			unix.Close(fd)
		}
	}
	want(0)
	child := exec.Command(os.Args[0], "-test.run", "^TestHolder$")
	child.Env = append(os.Environ(), "LOCK="+path)
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	want(child.Process.Pid)
	in.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	want(0)
}
