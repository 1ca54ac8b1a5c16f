package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// What programs write into their persistent volumes is there after a kill, a restart, an update, and the end of Gantry; each
// slot has its own.
func TestDataStays(t *testing.T) {
	needRoot(t)
	c := start(t)
	if err := os.Chmod(filepath.Dir(filepath.Dir(c.dir)), 0o755); err != nil { // another user passes through
		t.Fatal(err)
	}
	spec := &model.Spec{
		ID: "/db", Instances: ptr(2),
		Containers: []model.Container{{
			// It appends its slot, and prints all that was ever appended.
			Shell: "echo $SLOT >>data/log && cat data/log && exec sleep 100000", User: "nobody", CPUs: 100, Memory: 32 * model.MiB,
			Mounts: []model.Mount{{Volume: "data", Path: "data"}},
		}},
		Volumes: []model.Volume{{Name: "data", Persistent: &model.Persistent{Size: 16 * model.MiB}}},
		Restart: &model.Restart{Backoff: model.Duration(10 * time.Millisecond)},
	}
	// want checks that both slots have started so often, and lost nothing.
	want := func(after string, starts int) {
		t.Helper()
		c.until(fmt.Sprintf("%s, each slot has its %d lines", after, starts), func() bool {
			seen := map[uint32]bool{}
			for _, i := range c.running("/db") {
				if i.Slot == 0 {
					return false
				}
				var out bytes.Buffer
				_, err := c.Exec(testContext(t), i.ID, client.ExecOptions{Command: []string{"cat", "data/log"}, Stdout: &out})
				if err != nil || out.String() != strings.Repeat(fmt.Sprintln(i.Slot), starts) {
					return false // it may just have ended
				}
				seen[i.Slot] = true
			}
			return len(seen) == 2 && seen[1] && seen[2]
		})
	}
	c.deploy(spec)
	want("after the start", 1)

	for _, i := range c.running("/db") {
		if out, _ := c.exec(i.ID, "stat", "-c", "%U", "data"); out != "nobody\n" {
			t.Errorf("the volume belongs to %q", out)
		}
		if err := syscall.Kill(i.Status.Tasks[0].PID, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	want("after their ends", 2)

	change, err := c.RestartApp(testContext(t), "/db")
	if err != nil {
		t.Fatal(err)
	}
	c.wait(change)
	want("after a restart", 3)

	spec.Containers[0].Env = map[string]string{"VERSION": "2"}
	c.deploy(spec)
	want("after an update", 4)

	c.down()
	c.up()
	want("after Gantry was down", 5)
}
