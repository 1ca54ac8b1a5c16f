package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
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

// kill -9 at 200 random moments, amid scaling, updating and removing, loses no acknowledged write and never runs more
// instances than were asked for at any time since.
func TestKillAtRandomMoments(t *testing.T) {
	needRoot(t)
	rounds := 200
	if s := os.Getenv("GANTRY_KILLS"); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))

	c := start(t)
	mark := filepath.Base(filepath.Dir(c.dir)) + "-" + strconv.FormatUint(seed, 36)
	spec := shell("/chaos", "exec sleep 100000")
	spec.Containers[0].Env = map[string]string{"CHAOS": mark}
	spec.Containers[0].CPUs = 10
	spec.Update = &model.Update{MinHealthy: "0", MaxSurge: "0"}
	spec.Instances = ptr(3)
	c.deploy(spec)
	last, most := 3, 3

	for n := range rounds {
		delay := time.Duration(rnd.IntN(300)) * time.Millisecond
		killed := make(chan struct{})
		timer := time.AfterFunc(delay, func() { _ = c.cmd.Process.Kill(); close(killed) })
		want := rnd.IntN(6)
		change, err := c.ScaleApp(testContext(t), "/chaos", want)
		<-killed
		timer.Stop()
		_ = c.cmd.Wait()
		most = max(most, want) // those of a scale down may still be on their way out
		if got := len(marked(t, mark)); got > most {
			t.Fatalf("round %d: %d processes run, at most %d were asked for", n, got, most)
		}
		c.up()
		app, getErr := c.App(testContext(t), "/chaos")
		if getErr != nil {
			t.Fatalf("round %d: the app is lost: %v", n, getErr)
		}
		switch {
		case err == nil && app.Instances != want:
			t.Fatalf("round %d: scaling to %d was acknowledged as %s, but %d are asked for now", n, want, change.Deployment, app.Instances)
		case err != nil && app.Instances != want && app.Instances != last:
			t.Fatalf("round %d: %d instances are asked for, neither %d nor %d", n, app.Instances, want, last)
		}
		last = app.Instances
		if n%10 == 9 {
			c.settle(mark, last)
			most = last
		}
	}
	c.settle(mark, last)
}

// settle waits until exactly want processes with the mark run.
func (c *cluster) settle(mark string, want int) {
	c.t.Helper()
	c.until(fmt.Sprintf("%d instances to run", want), func() bool {
		return len(marked(c.t, mark)) == want && len(c.running("/chaos")) == want
	})
}

// marked returns the processes of the sleep program which have the mark in their environment.
func marked(t testing.TB, mark string) []int {
	t.Helper()
	out, err := exec.Command("pgrep", "-x", "sleep").Output()
	if err != nil && len(out) > 0 {
		t.Fatal(err)
	}
	var found []int
	for _, field := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // gone when it just ended
		if strings.Contains(string(environ), "CHAOS="+mark) {
			found = append(found, pid)
		}
	}
	return found
}
