package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/test/images"
)

// A real redis answers PING and keeps a value across a restart of its instance.
func TestRedisKeepsItsData(t *testing.T) {
	needRoot(t)
	c := start(t)
	image := pushed(t, "redis", images.Debian(t, "redis-server"))
	data := filepath.Join(t.TempDir(), "redis")
	spec := &model.Spec{
		ID: "/redis",
		Containers: []model.Container{{
			Image:   image,
			Command: []string{"redis-server", "--port", "$PORT0", "--bind", "127.0.0.1", "--dir", "/data", "--appendonly", "yes", "--appendfsync", "always"},
			CPUs:    500, Memory: 128 * model.MiB,
			Mounts: []model.Mount{{Volume: "data", Path: "/data"}},
		}},
		Volumes:   []model.Volume{{Name: "data", HostPath: data}},
		Endpoints: []model.Endpoint{{Name: "redis"}},
		Health:    []model.Check{{TCP: &model.TCPCheck{Endpoint: "redis"}}},
		Readiness: []model.Check{{Command: &model.CommandCheck{Command: []string{"redis-cli", "-p", "$PORT0", "ping"}}}},
	}
	i := c.deploy(spec)[0]
	if got := redis(t, i, "PING"); got != "+PONG" {
		t.Fatalf("PING answered %q", got)
	}
	if got := redis(t, i, "SET k gantry"); got != "+OK" {
		t.Fatalf("SET answered %q", got)
	}
	change, err := c.RestartApp(testContext(t), "/redis")
	if err != nil {
		t.Fatal(err)
	}
	if d := c.wait(change); d.State != model.DeploySucceeded {
		t.Fatalf("restart is %s: %s", d.State, d.Message)
	}
	again := c.running("/redis")
	if len(again) != 1 || again[0].ID == i.ID {
		t.Fatalf("after the restart %d instances run, the first is %s as before", len(again), i.ID)
	}
	if got := redis(t, again[0], "GET k"); got != "gantry" {
		t.Errorf("GET answered %q after the restart, want gantry", got)
	}
}

// The redis example of the README works as it stands, with the image loaded from an archive.
func TestRedisExample(t *testing.T) {
	needRoot(t)
	c := start(t)
	tar := images.SaveTar(t, images.Debian(t, "redis-server"), "redis:7")
	if out, errs, code := c.gantry("image", "load", tar); code != 0 {
		t.Fatalf("image load: %d, %s%s", code, out, errs)
	}
	for _, want := range []string{"created", "restarted"} {
		args := []string{"run", "../../examples/redis.yaml"}
		if want == "restarted" {
			args = []string{"restart", "redis"}
		}
		if out, errs, code := c.gantry(args...); code != 0 {
			t.Fatalf("gantry %v: %d, %s%s", args, code, out, errs)
		}
	}
	if got := redis(t, c.running("/redis")[0], "PING"); got != "+PONG" {
		t.Errorf("PING answered %q", got)
	}
}

// A port that a program outside Gantry listens on is said to be taken when it is fixed, and given up for another one
// when it was assigned.
func TestPortTakenByOthers(t *testing.T) {
	needRoot(t)
	c := start(t)
	nodes, err := c.Nodes(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	first := nodes[0].Ports.First
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first))
	if err == nil { // else it is taken already, which serves as well
		defer l.Close()
	}
	fixed := shell("/fixed", "sleep 100000")
	fixed.Endpoints = []model.Endpoint{{Name: "http", Port: int(first)}}
	if _, err := c.PutApp(testContext(t), fixed); err != nil {
		t.Fatal(err)
	}
	c.until("the taken port to be explained", func() bool {
		app, err := c.App(testContext(t), "/fixed")
		return err == nil && strings.Contains(app.Why, fmt.Sprintf("port %d", first))
	})
	change, err := c.DeleteApp(testContext(t), "/fixed")
	if err != nil {
		t.Fatal(err)
	}
	c.wait(change)
	assigned := shell("/assigned", "sleep 100000")
	assigned.Endpoints = []model.Endpoint{{Name: "http"}}
	if i := c.deploy(assigned)[0]; i.Ports[0] == first {
		t.Errorf("the instance runs with port %d, which another program has", first)
	}
}

// redis sends one inline command and returns the first line of the answer, or the value of a bulk answer.
func redis(t *testing.T, i client.Instance, command string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", i.Addr, i.Endpoints["redis"]), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "%s\r\n", command); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(line, "$") && line != "$-1\r\n" {
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	return strings.TrimSpace(line)
}

// nginxSpec is an nginx that serves the file index.html of version under a host-path volume.
func nginxSpec(t *testing.T, image, page string) *model.Spec {
	t.Helper()
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := `daemon off; pid /tmp/nginx.pid; error_log stderr; worker_processes 1; user root;
events {} http { access_log off; server { listen 127.0.0.1:PORT reuseport; root /www; } }`
	for name, text := range map[string]string{"index.html": page, "nginx.conf": conf} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &model.Spec{
		ID: "/shop/web", Instances: ptr(3),
		Containers: []model.Container{{
			Image: image,
			Shell: "sed s/PORT/$PORT0/ /www/nginx.conf > /tmp/nginx.conf && exec nginx -c /tmp/nginx.conf",
			CPUs:  200, Memory: 64 * model.MiB,
			Mounts: []model.Mount{{Volume: "www", Path: "/www", ReadOnly: true}},
		}},
		Volumes:   []model.Volume{{Name: "www", HostPath: root}},
		Endpoints: []model.Endpoint{{Name: "http"}},
		Health:    []model.Check{{HTTP: &model.HTTPCheck{Endpoint: "http"}, Interval: model.Duration(time.Second)}},
		Stop:      &model.Stop{Signal: "SIGQUIT"}, // nginx finishes its requests, then ends
	}
}

// A real nginx is rolled to a new version under constant load without a failed request.
//
// The client stands for a load balancer: it asks only instances which are ready and wanted, as the API lists them.
func TestNginxRollsUnderLoad(t *testing.T) {
	needRoot(t)
	c := start(t)
	image := pushed(t, "nginx", images.Debian(t, "nginx-light", "dash", "sed"))
	c.deploy(nginxSpec(t, image, "version one"))

	load := &load{c: c, app: "/shop/web"}
	load.start()
	c.until("load on the first version", func() bool { return load.pages("version one") > 50 })
	next := nginxSpec(t, image, "version two")
	next.Containers[0].Env = map[string]string{"RELEASE": "2"}
	if d := c.put(next); d.State != model.DeploySucceeded {
		t.Fatalf("update is %s: %s", d.State, d.Message)
	}
	seen := load.pages("version two")
	c.until("load on the second version", func() bool { return load.pages("version two") > seen+50 })
	load.stop()
	if n := load.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed, the first with: %v", n, load.sent.Load(), load.first)
	}
	t.Logf("%d requests, %d failed", load.sent.Load(), load.failed.Load())
	if app, err := c.App(testContext(t), "/shop/web"); err != nil || app.Healthy != 3 || app.Target != 2 {
		t.Errorf("after the update: %d healthy of version %d (%v), want 3 of version 2", app.Healthy, app.Target, err)
	}
}

// load sends requests to an app's ready instances, one after another, until it is stopped.
type load struct {
	c            *cluster
	app          model.AppID
	done         chan struct{}
	wg           sync.WaitGroup
	sent, failed atomic.Int64

	mu    sync.Mutex
	count map[string]int
	first error
}

func (l *load) start() {
	l.done, l.count = make(chan struct{}), map[string]int{}
	l.wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-l.done:
				return
			default:
				l.request(n)
			}
		}
	})
}

func (l *load) stop() { close(l.done); l.wg.Wait() }

func (l *load) pages(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count[text]
}

func (l *load) request(n int) {
	list, err := l.c.Instances(testContext(l.c.t), client.InstanceFilter{App: l.app})
	if err != nil {
		l.fail(err)
		return
	}
	var ready []client.Instance
	for _, i := range list {
		if _, ok := i.HealthySince(); ok {
			ready = append(ready, i)
		}
	}
	if len(ready) < 3 {
		l.fail(fmt.Errorf("only %d instances are ready, the floor is 3", len(ready)))
		return
	}
	i := ready[n%len(ready)]
	l.sent.Add(1)
	resp, err := http.Get(fmt.Sprintf("http://%s:%d/", i.Addr, i.Endpoints["http"]))
	if err != nil {
		l.fail(fmt.Errorf("%s: %w", i.ID, err))
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		l.fail(fmt.Errorf("%s: status %d, %w", i.ID, resp.StatusCode, err))
		return
	}
	l.mu.Lock()
	l.count[string(body)]++
	l.mu.Unlock()
}

func (l *load) fail(err error) {
	if l.failed.Add(1) == 1 {
		l.mu.Lock()
		l.first = err
		l.mu.Unlock()
	}
}

// An update that never becomes healthy goes back by itself, while the old instances go on; a fixed one succeeds; and
// a user can go back to any kept version.
func TestRollBack(t *testing.T) {
	needRoot(t)
	c := start(t)
	good := shell("/web", "exec sleep 100000")
	good.Instances = ptr(2)
	good.Update = &model.Update{Deadline: model.Duration(2 * time.Second)}
	before := pids(c.deploy(good))

	bad := good.Clone()
	bad.Containers[0].Shell = "exit 1"
	d := c.put(bad)
	if d.State != model.DeployRolledBack || !strings.Contains(d.Message, "exit") {
		t.Fatalf("the bad update is %s: %q, want rolledback and how the program ends", d.State, d.Message)
	}
	c.until("only the good version to run", func() bool {
		app, err := c.App(testContext(t), "/web")
		return err == nil && app.Version == 2 && app.Target == 1 && app.State == "running" && len(c.running("/web")) == 2
	})
	if after := pids(c.running("/web")); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("processes %v became %v, though the good version was never to stop", before, after)
	}

	fixed := good.Clone()
	fixed.Containers[0].Shell = "exec sleep 200000"
	if d := c.put(fixed); d.State != model.DeploySucceeded {
		t.Fatalf("the fixed update is %s: %s", d.State, d.Message)
	}
	change, err := c.RollbackApp(testContext(t), "/web", 1)
	if err != nil {
		t.Fatal(err)
	}
	if d := c.wait(change); d.State != model.DeploySucceeded {
		t.Fatalf("roll back is %s: %s", d.State, d.Message)
	}
	versions, err := c.Versions(testContext(t), "/web")
	if err != nil || len(versions) != 4 || !versions[0].Deployed || versions[0].Spec.Containers[0].Shell != good.Containers[0].Shell {
		t.Errorf("versions = %+v (%v), want 4, the newest deployed and like the first", versions, err)
	}
}

// A paused deployment takes no step until it is resumed.
func TestPauseAndResume(t *testing.T) {
	needRoot(t)
	c := start(t)
	spec := shell("/web", "exec sleep 100000")
	spec.Instances = ptr(4)
	spec.Update = &model.Update{MinHealthy: "75%", MaxSurge: "0", MinHealthyTime: ptr(model.Duration(time.Second))}
	c.deploy(spec)
	next := spec.Clone()
	next.Containers[0].Shell = "exec sleep 200000"
	change, err := c.PutApp(testContext(t), next)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.PauseDeployment(testContext(t), change.Deployment); err != nil {
		t.Fatal(err)
	}
	old := func() (n int) {
		for _, i := range c.running("/web") {
			if i.Version == 1 && i.Desired == model.Run {
				n++
			}
		}
		return n
	}
	c.until("the step under way to end", func() bool { return len(c.running("/web")) >= 3 })
	held := old()
	if held < 2 {
		t.Fatalf("%d old instances are left after pausing at once, want most", held)
	}
	begin := time.Now()
	c.until("three seconds to pass", func() bool { return time.Since(begin) > 3*time.Second })
	if now := old(); now != held {
		t.Errorf("%d old instances became %d while paused", held, now)
	}
	if _, err := c.ResumeDeployment(testContext(t), change.Deployment); err != nil {
		t.Fatal(err)
	}
	if d := c.wait(change); d.State != model.DeploySucceeded || old() != 0 {
		t.Errorf("after resuming: %s (%s), %d old instances", d.State, d.Message, old())
	}
}

// Stopping sends the app's signal, waits for its grace, then kills.
func TestGracefulStop(t *testing.T) {
	needRoot(t)
	c := start(t)
	polite := shell("/polite", `trap 'echo bye; exit 0' USR1; while :; do sleep 0.05; done`)
	polite.Stop = &model.Stop{Signal: "SIGUSR1", Grace: model.Duration(30 * time.Second)}
	deaf := shell("/deaf", `trap '' TERM; echo $$; while :; do sleep 0.05; done`)
	deaf.Stop = &model.Stop{Grace: model.Duration(time.Second)}
	for _, spec := range []*model.Spec{polite, deaf} {
		i := c.deploy(spec)[0]
		begin := time.Now()
		change, err := c.ScaleApp(testContext(t), spec.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.wait(change)
		took := time.Since(begin)
		got, err := c.Instance(testContext(t), i.ID)
		if err != nil || got.Status.Phase != model.PhaseStopped {
			t.Fatalf("%s is %s (%v), want stopped", i.ID, got.Status.Phase, err)
		}
		exit := got.Status.Tasks[0].Exit
		switch spec.ID {
		case "/polite":
			if out := c.logs(i.ID, "stdout"); out != "bye\n" || exit == nil || exit.Code != 0 {
				t.Errorf("polite said %q and ended with %+v: its logs must be kept and its signal sent", out, exit)
			}
		case "/deaf":
			if exit == nil || exit.Signal != 9 || took < time.Second {
				t.Errorf("deaf ended after %v with %+v, want killed after a second", took, exit)
			}
		}
	}
}
