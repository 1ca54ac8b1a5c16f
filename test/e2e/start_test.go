package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// Nobody gets in without the token, which only its owner can read; the OpenAPI document and the liveness page are open.
func TestNobodyGetsInUnasked(t *testing.T) {
	c := start(t)
	info, err := os.Stat(filepath.Join(c.dir, "admin.token"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("admin.token: %v, %v; want mode 0600", info, err)
	}
	for _, token := range []string{"", "gantry_wrong"} {
		_, err := client.New("http://"+c.addr, token).Apps(testContext(t))
		var problem *client.Error
		if !errors.As(err, &problem) || problem.Status != http.StatusUnauthorized {
			t.Errorf("with token %q: %v, want 401", token, err)
		}
	}
	stranger := client.New("http://"+c.addr, "")
	if err := stranger.Healthy(testContext(t)); err != nil {
		t.Errorf("healthz: %v", err)
	}
	doc, err := stranger.OpenAPI(testContext(t))
	var parsed struct {
		OpenAPI string         `json:"openapi"`
		Paths   map[string]any `json:"paths"`
	}
	if err != nil || json.Unmarshal(doc, &parsed) != nil || !strings.HasPrefix(parsed.OpenAPI, "3.1") || len(parsed.Paths) < 15 {
		t.Errorf("openapi.json: version %q, %d paths, %v", parsed.OpenAPI, len(parsed.Paths), err)
	}
	metrics, err := c.Metrics(testContext(t))
	if err != nil || !strings.Contains(string(metrics), "gantry_nodes") {
		t.Errorf("metrics lack gantry_nodes: %v", err)
	}
}

// Flags that cannot work are refused with a sentence and the exit code for usage.
func TestBadFlagsAreRefused(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"--auth none --http-addr 0.0.0.0:7999", "loopback"},
		{"--auth none --http-addr [::]:7999", "loopback"},
		{"--auth maybe", "token or none"},
		{"--http-addr nonsense", "--http-addr"},
		{"--log-size 1", "--log-size"},
		{"--resource cpus=2", "--node-cpus"},
		{"--resource lines={a,a}", "twice"},
		{"--gpu id=0 --gpu id=0", "twice"},
		{"--gpu id=0,memory=much", "--gpu"},
		{"--attribute rack", "key=value"},
		{"--reserve-cpus 1 --node-cpus 1", "--reserve-cpus"},
	} {
		args := append([]string{"up", "--data-dir", filepath.Join(t.TempDir(), "d")}, strings.Fields(test.args)...)
		out, err := exec.Command(filepath.Join(bin, "gantry"), args...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), test.want) {
			t.Errorf("gantry up %s: %v, %q; want exit code 2 and %q", test.args, err, out, test.want)
		}
	}
}

// A node is what its operator says, beside what is found out about it.
func TestNodeIsWhatWasDeclared(t *testing.T) {
	c := start(t, "--pool", "batch", "--region", "north", "--zone", "a", "--attribute", "rack=r1", "--resource", "licenses=4",
		"--resource", "lines={l1,l2}", "--gpu", "id=0,model=T4,memory=16GiB", "--gpu", "id=1", "--reserve-cpus", "0.5")
	list, err := c.Nodes(testContext(t))
	if err != nil || len(list) != 1 {
		t.Fatalf("nodes: %v, %v", list, err)
	}
	n := list[0]
	if n.Pool != "batch" || n.Region != "north" || n.Zone != "a" || n.Attributes["rack"] != "r1" || n.Attributes["os"] != "linux" {
		t.Errorf("the node is in pool %q, region %q, zone %q, with attributes %v", n.Pool, n.Region, n.Zone, n.Attributes)
	}
	if n.Custom["licenses"].Amount != 4000 || len(n.Custom["lines"].Items) != 2 {
		t.Errorf("its custom resources are %+v", n.Custom)
	}
	if len(n.GPUs) != 2 || n.GPUs[0] != (model.GPUDevice{ID: "0", Model: "T4", Memory: 16 * model.GiB}) || n.Capacity.GPUs != 2000 {
		t.Errorf("its devices are %+v, %v in all", n.GPUs, n.Capacity.GPUs)
	}
	if n.Capacity.CPUs%1000 != 500 {
		t.Errorf("%v cores are left of whole ones, with half a core kept", n.Capacity.CPUs)
	}
	if n.VM.OK || n.VM.Why == "" {
		t.Errorf("virtual machines: %+v, want why there are none", n.VM)
	}
}

// A second server on the same data directory is refused and disturbs nothing.
func TestOneServerPerDataDirectory(t *testing.T) {
	c := start(t)
	out, err := exec.Command(filepath.Join(bin, "gantry"), "up", "--data-dir", c.dir, "--http-addr", freeAddr(t)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprint(c.cmd.Process.Pid)) {
		t.Errorf("a second server: %v, %q; want a refusal that names process %d", err, out, c.cmd.Process.Pid)
	}
	if err := c.Healthy(testContext(t)); err != nil {
		t.Errorf("the first server: %v", err)
	}
}

// --ephemeral leaves no process, mount, cgroup or file when it is asked to end.
func TestEphemeralLeavesNothing(t *testing.T) {
	tmp := t.TempDir()
	if err := os.Chmod(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, dir: tmp, addr: freeAddr(t)} // its data directory lies below TMPDIR
	t.Setenv("TMPDIR", tmp)
	c.args = []string{"--ephemeral", "--auth", "none"}
	t.Cleanup(c.cleanup)
	c.upEphemeral()
	c.deploy(shell("/a", "exec sleep 100000"))
	if len(c.processes()) < 2 {
		t.Fatalf("only %v run", c.processes())
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Wait(); err != nil {
		t.Errorf("gantry ended with %v\n%s", err, c.out)
	}
	left, err := filepath.Glob(filepath.Join(tmp, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("files are left: %v %v", left, err)
	}
}

// upEphemeral is up without --data-dir.
func (c *cluster) upEphemeral() {
	c.t.Helper()
	c.cmd = exec.Command(filepath.Join(bin, "gantry"), append([]string{"up", "--http-addr", c.addr}, c.args...)...)
	c.out = &lockedBuffer{}
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.out
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.Client = client.New("http://"+c.addr, "")
	c.until("the server to be ready", func() bool { return strings.Contains(c.out.String(), "ready") })
}

// An ordinary user can start Gantry and run programs, without isolation, and is told so; images are refused with the reason.
func TestOrdinaryUser(t *testing.T) {
	needRoot(t) // to become somebody else
	tmp, err := os.MkdirTemp("", "gantry-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	const nobody = 65534
	if err := os.Chown(tmp, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(tmp, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	// The build may lie where only root can go.
	for _, name := range []string{"gantry", "gantry-shim", "gantry-log"} {
		if out, err := exec.Command("cp", filepath.Join(bin, name), filepath.Join(tmp, "bin", name)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	c := &cluster{t: t, dir: filepath.Join(tmp, "data"), addr: freeAddr(t)}
	t.Cleanup(c.cleanup)
	c.cmd = exec.Command(filepath.Join(tmp, "bin", "gantry"), "up", "--data-dir", c.dir, "--http-addr", c.addr)
	c.cmd.Env = append(os.Environ(), "HOME="+tmp, "XDG_RUNTIME_DIR="+tmp)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	c.out = &lockedBuffer{}
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.out
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.until("the server to be ready", func() bool { return strings.Contains(c.out.String(), "ready") })
	if !strings.Contains(c.out.String(), "isolation") {
		t.Errorf("nothing says that isolation is missing: %s", c.out)
	}
	token, err := os.ReadFile(filepath.Join(c.dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	c.Client = client.New("http://"+c.addr, strings.TrimSpace(string(token)))

	i := c.deploy(shell("/plain", "id -u; exec sleep 100000"))[0]
	if out := c.logs(i.ID, "stdout"); out != fmt.Sprintln(nobody) {
		t.Errorf("the program ran as %q", out)
	}
	boxed := &model.Spec{ID: "/boxed", Containers: []model.Container{{Image: "localhost:1/x"}}}
	if _, err := c.PutApp(testContext(t), boxed); err != nil {
		t.Fatal(err)
	}
	c.until("the image to be refused with the reason", func() bool {
		app, err := c.App(testContext(t), "/boxed")
		return err == nil && strings.Contains(app.Why, "root")
	})
}

// Ending gantry by a signal leaves instances running, and the next start adopts them; --detach starts in the background.
func TestSignalLeavesInstancesAndDetach(t *testing.T) {
	needRoot(t)
	c := start(t)
	before := pids(c.deploy(shell("/a", "exec sleep 100000")))
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Wait(); err != nil {
		t.Fatalf("gantry ended with %v\n%s", err, c.out)
	}
	out, err := exec.Command(filepath.Join(bin, "gantry"), "up", "--detach", "--data-dir", c.dir, "--http-addr", c.addr).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ready") {
		t.Fatalf("up --detach: %v, %s", err, out)
	}
	again, err := exec.Command(filepath.Join(bin, "gantry"), "up", "--detach", "--data-dir", c.dir).CombinedOutput()
	if err != nil || !strings.Contains(string(again), "already") {
		t.Errorf("a second up --detach: %v, %s; want it to say that one runs already", err, again)
	}
	c.until("the instance to be adopted", func() bool {
		return fmt.Sprint(pids(c.running("/a"))) == fmt.Sprint(before)
	})
	if out, errs, code := c.gantry("down"); code != 0 {
		t.Errorf("gantry down: %d, %s%s", code, out, errs)
	}
	c.until("all processes to end", func() bool { return len(c.processes()) == 0 })
}

// Logs are followed live, events are streamed, and both end when their reader does.
func TestFollowing(t *testing.T) {
	needRoot(t)
	c := start(t)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	seen := make(chan model.Event, 256)
	streamed := make(chan error, 1)
	go func() {
		streamed <- c.FollowEvents(ctx, client.EventFilter{}, func(e model.Event) error { seen <- e; return nil })
	}()
	i := c.deploy(shell("/talk", "echo one; sleep 1; echo two; sleep 100000"))[0]
	r, err := c.Logs(ctx, i.ID, client.LogOptions{Stream: "stdout", Tail: -1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	buf := make([]byte, 0, 64)
	for string(buf) != "one\ntwo\n" {
		chunk := make([]byte, 64)
		n, err := r.Read(chunk)
		if err != nil {
			t.Fatalf("after %q: %v", buf, err)
		}
		buf = append(buf, chunk[:n]...)
	}
	timeout := time.After(patience)
	for {
		select {
		case e := <-seen:
			if e.Type == "instance.running" && e.Instance == i.ID {
				cancel()
				<-streamed
				return
			}
		case <-timeout:
			t.Fatal("no instance.running event came")
		}
	}
}
