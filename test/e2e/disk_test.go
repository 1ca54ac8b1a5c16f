package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gantry-os/gantry/api/client"
)

// On a full disk nothing that runs stops, changes are refused and say why, a server does not start without it and says so
// too; once there is space all goes on by itself.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	disk := t.TempDir()
	if err := syscall.Mount("none", disk, "tmpfs", 0, "size=256m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	c := &cluster{t: t, dir: filepath.Join(disk, "data"), addr: freeAddr(t)}
	t.Cleanup(c.cleanup)
	c.up()
	spec := counter("/web")
	spec.Instances = ptr(1)
	first := c.deploy(spec)[0]
	alive := func(when string) {
		t.Helper()
		if err := syscall.Kill(first.Status.Tasks[0].PID, 0); err != nil {
			t.Fatalf("the program ended %s: %v", when, err)
		}
	}

	space := fill(t, disk)
	if _, err := c.ScaleApp(testContext(t), "/web", 2); err == nil || !strings.Contains(err.Error(), "the store is full") {
		t.Fatalf("a change on a full disk: %v", err)
	}
	alive("when the disk was full")

	c.kill()
	out := c.launch()
	defer out.Close()
	if err := c.cmd.Wait(); err == nil || !strings.Contains(c.out.String(), "space") {
		t.Errorf("started on a full disk it ended with %v and said %q", err, c.out)
	}
	alive("when gantry could not start")

	if err := os.Remove(space); err != nil {
		t.Fatal(err)
	}
	c.up()
	if _, err := c.ScaleApp(testContext(t), "/web", 2); err != nil {
		t.Fatalf("a change once there is space: %v", err)
	}
	c.until("both instances to run once there is space", func() bool { return len(c.running("/web")) == 2 })
	alive("once there was space")
}

// fill takes all space of a disk by a file, which it returns.
func fill(t *testing.T, disk string) string {
	t.Helper()
	name := filepath.Join(disk, "fill")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096} {
		block := make([]byte, size)
		for err = nil; err == nil; {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	return name
}

// Whoever reads what a server prints may go away; it goes on.
func TestOutputClosed(t *testing.T) {
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "data"), addr: freeAddr(t)}
	t.Cleanup(c.cleanup)
	out := c.launch()
	out.Close()
	c.Client = client.New("http://"+c.addr, "")
	c.until("the server to answer", func() bool { return c.Healthy(testContext(t)) == nil })
	token, err := os.ReadFile(filepath.Join(c.dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	c.Client = client.New("http://"+c.addr, strings.TrimSpace(string(token)))
	c.deploy(shell("/web", "exec sleep 1000")) // by then it has printed all it had to
}
