package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/test/images"
)

// counter is an app that writes consecutive numbers, so that a hole in its log shows.
func counter(id model.AppID) *model.Spec {
	return shell(id, "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done")
}

// checkCounts fails unless out is 0, 1, 2, ... without a hole, and returns the last number.
func checkCounts(t *testing.T, out string) int {
	t.Helper()
	next := 0
	for line := range strings.Lines(out) {
		if !strings.HasSuffix(line, "\n") {
			break // the program is in the middle of it
		}
		if strings.TrimSpace(line) != strconv.Itoa(next) {
			t.Fatalf("the log goes on with %q after %d", line, next-1)
		}
		next++
	}
	return next - 1
}

// Killing gantry, its containerd, or both stops no instance: the same processes go on, their logs have no hole, and
// those that ended meanwhile are known with their codes.
func TestKillsStopNothing(t *testing.T) {
	needRoot(t)
	c := start(t)
	image := pushed(t, "busybox", images.Busybox(t))

	plain, boxed := counter("/plain"), counter("/boxed")
	boxed.Containers[0].Image = image
	gate := filepath.Join(t.TempDir(), "gate")
	ends := shell("/ends", fmt.Sprintf("while [ ! -e %s ]; do sleep 0.05; done; exit 42", gate))
	ends.Restart = &model.Restart{Backoff: model.Duration(time.Hour), Max: model.Duration(time.Hour)}
	before := map[model.AppID]client.Instance{}
	for _, spec := range []*model.Spec{plain, boxed, ends} {
		before[spec.ID] = c.deploy(spec)[0]
	}

	same := func(what string) {
		t.Helper()
		for _, id := range []model.AppID{"/plain", "/boxed"} {
			c.until(string(id)+" to be adopted after "+what, func() bool {
				now := c.running(id)
				return len(now) == 1 && now[0].ID == before[id].ID && now[0].Status.Tasks[0].PID == before[id].Status.Tasks[0].PID
			})
			last := checkCounts(t, c.logs(before[id].ID, "stdout"))
			c.until("the log of "+string(id)+" to go on after "+what, func() bool {
				return checkCounts(t, c.logs(before[id].ID, "stdout")) > last+5
			})
		}
	}

	if err := syscall.Kill(c.containerd(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	same("containerd was killed")

	c.restart()
	same("gantry was killed")

	child := c.containerd()
	c.kill()
	_ = syscall.Kill(child, syscall.SIGKILL) // it may have ended with its parent
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.until("the program at the gate to end while no gantry runs", func() bool {
		return syscall.Kill(before["/ends"].Status.Tasks[0].PID, 0) != nil
	})
	c.up()
	same("both were killed")
	c.until("the exit to be known with its code", func() bool {
		i, err := c.Instance(testContext(t), before["/ends"].ID)
		return err == nil && i.Status.Phase == model.PhaseBackoff && i.Status.Tasks[0].Exit.Code == 42
	})
}

// After a reboot (all processes gone, all mounts of the container engine gone) every app comes back.
func TestReboot(t *testing.T) {
	needRoot(t)
	c := start(t)
	image := pushed(t, "busybox", images.Busybox(t))
	plain, boxed := counter("/plain"), counter("/boxed")
	boxed.Containers[0].Image = image
	old := pids(append(c.deploy(plain), c.deploy(boxed)...))

	c.kill()
	c.until("every process to be gone", func() bool {
		left := c.processes()
		for pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		for _, pid := range old {
			if syscall.Kill(pid, 0) == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				return false
			}
		}
		return len(left) == 0
	})
	unmountBelow(t, c.dir)
	c.up()
	for _, id := range []model.AppID{"/plain", "/boxed"} {
		c.until(string(id)+" to run again", func() bool {
			now := c.running(id)
			return len(now) == 1 && now[0].Status.Tasks[0].PID != old[now[0].ID] && now[0].Status.Tasks[0].PID != 0
		})
	}
}

func unmountBelow(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if target := strings.Fields(line)[4]; strings.HasPrefix(target, dir) || strings.HasPrefix(target, "/run/gantry/") {
			if err := syscall.Unmount(target, syscall.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", target, err)
			}
		}
	}
}
