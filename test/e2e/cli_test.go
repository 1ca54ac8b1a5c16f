package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/test/images"
)

// The commands of the README do what it says, print plain lines when piped, and tell their kinds of failure apart.
func TestCommandLine(t *testing.T) {
	needRoot(t)
	c := start(t)
	run := func(want int, args ...string) string {
		t.Helper()
		out, errs, code := c.gantry(args...)
		if code != want {
			t.Fatalf("gantry %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, want, out, errs)
		}
		if strings.Contains(out, "\x1b[") {
			t.Errorf("gantry %s prints escape codes into a pipe: %q", strings.Join(args, " "), out)
		}
		return out + errs
	}
	has := func(text string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("%q is missing in:\n%s", want, text)
			}
		}
	}
	run(0, "run", "--name", "hello", "--cpus", "0.2", "--", "python3", "-m", "http.server", "$PORT0")
	has(run(0, "ps"), "/hello", "1/1")
	has(run(0, "status", "hello"), "/hello", "running")
	run(0, "scale", "hello", "2")
	list := c.running("/hello")
	if len(list) != 2 {
		t.Fatalf("%d instances run after scale 2", len(list))
	}
	for _, i := range list {
		resp, err := http.Get(fmt.Sprintf("http://%s:%d/", i.Addr, i.Ports[0]))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	has(run(0, "logs", "hello"), "GET /")
	has(run(5, "exec", string(list[0].ID), "--", "sh", "-c", "echo in $GANTRY_APP_ID; exit 5"), "in /hello")
	has(run(0, "update", "hello", "--env", "GREETING=hi"), "hello")
	has(run(0, "exec", "hello", "--", "sh", "-c", "echo $GREETING"), "hi")
	run(0, "rollback", "hello")
	run(0, "restart", "hello")
	has(run(0, "deployments", "hello"), "restart", "rollback", "update", "scale", "create")
	has(run(0, "events"), "instance.running")
	has(run(0, "nodes"), "ready")
	has(run(0, "top", "-1"), "hello")
	has(run(0, "versions", "hello"), "roll back")

	var apps []client.AppSummary
	if err := json.Unmarshal([]byte(run(0, "ps", "--json")), &apps); err != nil || len(apps) != 1 || apps[0].Instances != 2 {
		t.Errorf("ps --json: %v, %+v", err, apps)
	}

	has(run(3, "status", "nothere"), "nothere")
	has(run(2, "scale", "hello"), "scale")
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("id: /bad\ncontainers:\n- imagee: x\n  memory: lots\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	has(run(4, "run", bad), "imagee", "memory")
	has(run(5, "run", "--name", "never", "--memory", "4TiB", "--timeout", "3s", "--", "sleep", "60"), "memory")
	id := strings.TrimSpace(run(0, "run", "--name", "later", "--no-wait", "--", "sleep", "100000"))
	if _, err := c.Deployment(testContext(t), model.DeploymentID(id)); err != nil {
		t.Errorf("--no-wait printed %q: %v", id, err)
	}
	run(0, "rm", "hello", "never", "later")
	if list, err := c.Apps(testContext(t)); err != nil || len(list) != 0 {
		t.Errorf("apps are left after rm: %+v %v", list, err)
	}
	for _, sh := range []string{"bash", "zsh", "fish"} {
		has(run(0, "completion", sh), "gantry")
	}
}

// An image archive is loaded and run without any registry.
func TestImageLoad(t *testing.T) {
	needRoot(t)
	c := start(t)
	tar := images.SaveTar(t, images.Busybox(t), "example.test/busybox:1")
	out, errs, code := c.gantry("image", "load", tar)
	if code != 0 || !strings.Contains(out, "example.test/busybox:1") {
		t.Fatalf("image load: %d, %s%s", code, out, errs)
	}
	if out, _, _ := c.gantry("image", "ls"); !strings.Contains(out, "example.test/busybox:1") {
		t.Errorf("image ls: %s", out)
	}
	out, errs, code = c.gantry("run", "--name", "box", "--pull", "never", "example.test/busybox:1", "--", "sh", "-c", "echo boxed; sleep 100000")
	if code != 0 {
		t.Fatalf("run: %d, %s%s", code, out, errs)
	}
	if got := c.logs(c.running("/box")[0].ID, "stdout"); got != "boxed\n" {
		t.Errorf("the container said %q", got)
	}
}
