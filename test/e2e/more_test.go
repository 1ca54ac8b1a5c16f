package e2e

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
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
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// get returns the body of a page of the API, whatever its status.
func (c *cluster) get(path string) string {
	c.t.Helper()
	status, body := c.send(http.MethodGet, path, "")
	if status == http.StatusNotFound {
		c.t.Fatalf("GET %s: %s", path, body)
	}
	return body
}

// send makes a request of the API as it stands, and returns status and body.
func (c *cluster) send(method, path, body string) (int, string) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(testContext(c.t), method, "http://"+c.addr+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(c.dir, "admin.token"))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

// apply puts a spec without waiting for anything.
func (c *cluster) apply(spec *model.Spec) client.Change {
	c.t.Helper()
	change, err := c.PutApp(testContext(c.t), spec)
	if err != nil {
		c.t.Fatalf("put %s: %v", spec.ID, err)
	}
	return change
}

// why waits until the app says something about what is not as asked that has all the words.
func (c *cluster) why(id model.AppID, words ...string) string {
	c.t.Helper()
	var why string
	c.until(fmt.Sprintf("%s to explain itself with %q", id, words), func() bool {
		app, err := c.App(testContext(c.t), id)
		if err != nil {
			return false
		}
		why = app.Why
		for _, w := range words {
			if !strings.Contains(why, w) {
				return false
			}
		}
		return true
	})
	return why
}

// remove removes an app and waits until it is gone.
func (c *cluster) remove(id model.AppID) {
	c.t.Helper()
	change, err := c.DeleteApp(testContext(c.t), id)
	if err != nil {
		c.t.Fatalf("remove %s: %v", id, err)
	}
	if d := c.wait(change); d.State != model.DeploySucceeded {
		c.t.Fatalf("removal of %s is %s: %s", id, d.State, d.Message)
	}
}

// boxed is an app of a shell line in an image.
func boxed(id model.AppID, image, line string) *model.Spec {
	s := shell(id, line)
	s.Containers[0].Image = image
	s.Stop = &model.Stop{Signal: "SIGKILL"} // a first process that has no handler for a signal never gets it
	return s
}

// An image of a private registry is pulled with its credentials; wrong ones are refused with a sentence; and neither
// password is ever shown again, by the API, the CLI, events, metrics or the server's own log.
func TestPrivateRegistry(t *testing.T) {
	needRoot(t)
	c := start(t, "--log-level", "debug")
	const right, wrong, stray = "correct-horse-7261", "battery-staple-9934", "stray-password-5512"
	ref := images.PrivateRegistry(t, "alice", right) + "/team/busybox:1"
	images.PushAs(t, images.Busybox(t), ref, "alice", right)

	refused := boxed("/refused", ref, "sleep 100000")
	refused.Containers[0].Auth = &model.RegistryAuth{Username: "alice", Password: wrong}
	c.apply(refused)
	c.why("/refused", ref, "refused the credentials")
	none := boxed("/none", ref, "sleep 100000")
	c.apply(none)
	c.why("/none", ref, "credentials")

	good := boxed("/good", ref, "echo started; exec sleep 100000")
	good.Containers[0].Auth = &model.RegistryAuth{Username: "alice", Password: right}
	i := c.deploy(good)[0]
	good.Containers[0].Env = map[string]string{"RELEASE": "2"}
	c.deploy(good)
	if _, err := c.RollbackApp(testContext(t), "/good", 0); err != nil {
		t.Fatal(err)
	}

	shown := map[string]string{"the log of gantry": ""}
	for _, path := range []string{
		"/v1/apps", "/v1/apps/good", "/v1/apps/refused", "/v1/apps/good/versions", "/v1/instances?all=true", "/v1/instances/" + string(i.ID),
		"/v1/deployments", "/v1/events", "/v1/nodes", "/v1/images", "/v1/usage", "/metrics",
	} {
		shown[path] = c.get(path)
	}
	for _, body := range []string{
		`{"id":"/bad","containers":[{"image":"x","auth":{"username":"a","password":["` + stray + `"]}}]}`,
		`{"id":"/bad","containers":[{"image":"x","auth":{"username":"a","pasword":"` + stray + `"}}]}`,
		`{"id":"/bad","containers":[{"image":"x","auth":{"username":"","password":"` + stray + `"}}]}`,
		`{"id":"/bad","containers":[{"image":"x","auth":"` + stray + `"}]}`,
		`{"id":"/bad","containers":[{"command":["x"],"auth":{"username":"a","password":"` + stray + `"}}]}`,
		`{"id":"/bad","instances":"x","containers":{"auth":{"username":"a","password":"` + stray + `"}}}`,
	} {
		status, answer := c.send(http.MethodPut, "/v1/apps/bad", body)
		if status < 400 || status >= 500 {
			t.Errorf("PUT %s: status %d, want a refusal", body, status)
		}
		shown["PUT "+body] = answer
	}
	out, errs, _ := c.gantry("--json", "status", "refused")
	shown["gantry status"] = out + errs
	shown["the log of gantry"] = c.out.String()
	for where, text := range shown {
		for _, secret := range []string{right, wrong, stray} {
			if strings.Contains(text, secret) {
				t.Errorf("%s shows the password %s: %.2000s", where, secret, text)
			}
		}
	}
}

// A registry without TLS is spoken to on loopback and where --plain-http names it, and nowhere else.
func TestPlainHTTPElsewhere(t *testing.T) {
	needRoot(t)
	const addr = "198.51.100.7" // of a range for documentation; its traffic does not leave the machine
	if out, err := exec.Command("ip", "address", "add", addr+"/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Skipf("SKIP: no further address for the loopback interface: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "address", "del", addr+"/32", "dev", "lo").CombinedOutput(); err != nil {
			t.Errorf("remove address: %v: %s", err, out)
		}
	})
	serve := func() string {
		l, err := net.Listen("tcp", addr+":0")
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
		s.Listener = l
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.Start()
		t.Cleanup(s.Close)
		return l.Addr().String()
	}
	named, other := serve(), serve()
	c := start(t, "--plain-http", named)
	image := images.Busybox(t)
	images.Push(t, image, named+"/busybox:1")
	images.Push(t, image, other+"/busybox:1")
	if list := c.deploy(boxed("/named", named+"/busybox:1", "exec sleep 100000")); len(list) != 1 {
		t.Errorf("%d instances run, want 1", len(list))
	}
	c.apply(boxed("/other", other+"/busybox:1", "exec sleep 100000"))
	c.why("/other", other, "--plain-http")
}

// Containers of an instance, with and without an image, share its scratch volume and the node's network, have logs and
// exec of their own, and are restarted together when one ends.
func TestContainersOfAnInstance(t *testing.T) {
	needRoot(t)
	c := start(t)
	image := pushed(t, "busybox", images.Busybox(t))
	spec := &model.Spec{
		ID: "/pair",
		Containers: []model.Container{
			{
				Name: "web", Command: []string{"python3", "-u", "-m", "http.server", "$PORT0", "--directory", "shared"},
				CPUs: 300, Memory: 64 * model.MiB, Mounts: []model.Mount{{Volume: "shared", Path: "shared"}},
			},
			{
				Name: "writer", Image: image, Shell: "echo writer $GANTRY_INSTANCE_ID; date +%s.%N >> /out/page; exec sleep 100000",
				CPUs: 100, Memory: 32 * model.MiB, Mounts: []model.Mount{{Volume: "shared", Path: "/out"}},
			},
		},
		Volumes:   []model.Volume{{Name: "shared", Scratch: true}},
		Endpoints: []model.Endpoint{{Name: "http"}},
		Health:    []model.Check{{HTTP: &model.HTTPCheck{Endpoint: "http"}}},
		Stop:      &model.Stop{Signal: "SIGKILL"},
		Restart:   &model.Restart{Backoff: model.Duration(50 * time.Millisecond)},
	}
	i := c.deploy(spec)[0]
	fetch := func() string {
		var out bytes.Buffer
		code, err := c.Exec(testContext(t), i.ID, client.ExecOptions{
			Container: "writer", Stdout: &out,
			Command: []string{"wget", "-q", "-O", "-", fmt.Sprintf("http://127.0.0.1:%d/page", i.Endpoints["http"])},
		})
		if err != nil || code != 0 {
			return ""
		}
		return out.String()
	}
	c.until("one container to be served the other's page", func() bool { return strings.Count(fetch(), "\n") == 1 })
	for container, want := range map[string]string{"web": "GET /page", "writer": "writer " + string(i.ID)} {
		stream := map[string]string{"web": "stderr", "writer": "stdout"}[container]
		c.until("the log of "+container, func() bool {
			r, err := c.Logs(testContext(t), i.ID, client.LogOptions{Container: container, Stream: stream, Tail: -1})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			return err == nil && strings.Contains(string(b), want)
		})
	}
	for _, container := range []string{"web", "writer"} {
		var out bytes.Buffer
		code, err := c.Exec(testContext(t), i.ID, client.ExecOptions{
			Container: container, Command: []string{"sh", "-c", "test -e /etc/debian_version && echo node || echo image"}, Stdout: &out,
		})
		want := map[string]string{"web": "node", "writer": "image"}[container]
		if err != nil || code != 0 || strings.TrimSpace(out.String()) != want {
			t.Errorf("exec in %s: %d, %v, it is in %q, want %s", container, code, err, out.String(), want)
		}
	}
	if _, err := c.Exec(testContext(t), i.ID, client.ExecOptions{Container: "nope", Command: []string{"true"}}); err == nil || !strings.Contains(err.Error(), "nope") {
		t.Errorf("exec in a container that does not exist: %v", err)
	}
	for n, name := range []string{"writer", "web"} {
		before := taskPIDs(c.running("/pair")[0])
		if err := syscall.Kill(before[name], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c.until("both containers to be restarted", func() bool {
			now := c.running("/pair")
			if len(now) != 1 || now[0].ID != i.ID || now[0].Status.Attempt != uint32(n+2) || !now[0].Status.Ready {
				return false
			}
			after := taskPIDs(now[0])
			return after["web"] != before["web"] && after["writer"] != before["writer"]
		})
	}
	c.until("the scratch volume to have kept all pages", func() bool { return strings.Count(fetch(), "\n") == 3 })
}

func taskPIDs(i client.Instance) map[string]int {
	out := map[string]int{}
	for _, task := range i.Status.Tasks {
		out[task.Name] = task.PID
	}
	return out
}

// User, directory, environment, entrypoint and command come from the image where the spec says nothing, and $PORT0 and
// its like are replaced in commands and arguments.
func TestWhatAProgramIsGiven(t *testing.T) {
	needRoot(t)
	c := start(t)
	box := images.Busybox(t)
	plain := pushed(t, "busybox", box)
	shaped := pushed(t, "shaped", images.With(t, images.WithFiles(t, box, map[string]string{
		"/bin/show": "#!/bin/sh\necho $(id -u):$(id -g) $(pwd) $FROM_IMAGE $FROM_BOTH \"$@\"\nexec sleep 100000\n",
	}), func(cfg *v1.Config) {
		cfg.User, cfg.WorkingDir, cfg.Entrypoint, cfg.Cmd = "redis", "/srv/deep", []string{"/bin/show"}, []string{"by", "default"}
		cfg.Env = append(cfg.Env, "FROM_IMAGE=a", "FROM_BOTH=image")
	}))
	if err := os.Chmod(filepath.Dir(filepath.Dir(c.dir)), 0o755); err != nil { // other users must get to their sandbox
		t.Fatal(err)
	}
	container := func(change func(*model.Container)) model.Container {
		out := model.Container{CPUs: 100, Memory: 32 * model.MiB}
		change(&out)
		return out
	}
	for name, test := range map[string]struct {
		container model.Container
		want      string
	}{
		"image": {container(func(c *model.Container) { c.Image = shaped }), "101:101 /srv/deep a image by default"},
		"args": {container(func(c *model.Container) {
			c.Image, c.Args, c.Env = shaped, []string{"port", "$PORT0", "${PORT_HTTP}"}, map[string]string{"FROM_BOTH": "spec"}
		}), "101:101 /srv/deep a spec port PORT PORT"},
		"command": {container(func(c *model.Container) {
			c.Image, c.User, c.Dir = shaped, "33:2", "/tmp"
			c.Command = []string{"/bin/sh", "-c", "echo $(id -u):$(id -g) $(pwd) $0 $FROM_BOTH; sleep 100000", "$PORT0"}
		}), "33:2 /tmp PORT image"},
		"named": {container(func(c *model.Container) {
			c.Image, c.User, c.Shell = plain, "www-data", "echo $(id -u):$(id -g) $HOST $PORT0; sleep 100000"
		}), "33:33 127.0.0.1 PORT"},
		"host-named": {container(func(c *model.Container) {
			c.User, c.Dir, c.Shell = "nobody", "/usr", "echo $(id -u):$(id -g) $(pwd) $PORT0; sleep 100000"
		}), "65534:65534 /usr PORT"},
		"host-numbers": {container(func(c *model.Container) {
			c.User, c.Command = "1234:2345", []string{"sh", "-c", "echo $(id -u):$(id -g) $0; sleep 100000", "$PORT0/$GANTRY_APP_ID"}
		}), "1234:2345 PORT//given/host-numbers"},
	} {
		t.Run(name, func(t *testing.T) {
			c := c.in(t)
			id := model.AppID("/given/" + name)
			i := c.deploy(&model.Spec{ID: id, Containers: []model.Container{test.container}, Stop: &model.Stop{Signal: "SIGKILL"}, Endpoints: []model.Endpoint{{Name: "http"}}})[0]
			port := strconv.Itoa(i.Endpoints["http"])
			want := strings.ReplaceAll(test.want, "PORT", port)
			c.until("a line of output", func() bool { return strings.Contains(c.logs(i.ID, "stdout"), "\n") })
			got := strings.TrimSpace(c.logs(i.ID, "stdout"))
			if got != want {
				t.Errorf("it was given %q, want %q", got, want)
			}
			c.remove(id)
		})
	}
	unknown := shell("/unknown", "sleep 100000")
	unknown.Containers[0].User = "nosuchuser"
	c.apply(unknown)
	c.why("/unknown", `"nosuchuser"`)
}

// in returns the cluster for a subtest, which then fails by itself.
func (c *cluster) in(t *testing.T) *cluster {
	sub := *c
	sub.t = t
	return &sub
}

// Limits hold for containers of images as they do for programs of the node: memory with an explanation, processors by
// measure, and a very small ceiling does not slow the start down. What is used is told per instance.
func TestLimitsOfImages(t *testing.T) {
	needRoot(t)
	c := start(t)
	image := pushed(t, "busybox", images.Busybox(t))
	c.deploy(boxed("/warm", image, "exec sleep 100000")) // pulls the image

	begin := time.Now()
	tiny := boxed("/tiny", image, "while :; do :; done")
	tiny.Containers[0].CPUs = 10
	tiny.Update = &model.Update{MinHealthyTime: ptr(model.Duration(0))}
	tinyID := c.deploy(tiny)[0].ID
	if took := time.Since(begin); took > 1500*time.Millisecond {
		t.Errorf("an instance with 0.01 cores took %v to run: its ceiling holds for its start, too", took)
	}
	busy := boxed("/busy", image, "while :; do :; done")
	busy.Containers[0].CPUs = 200
	busyID := c.deploy(busy)[0].ID

	hog := boxed("/hog", image, "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done")
	hog.Containers[0].Memory, hog.Containers[0].CPUs = 24*model.MiB, 500
	hog.Restart = &model.Restart{Backoff: model.Duration(time.Hour), Max: model.Duration(time.Hour)}
	c.apply(hog)
	c.why("/hog", "memory limit", "24MiB")
	app, err := c.App(testContext(t), "/hog")
	if err != nil {
		t.Fatal(err)
	}
	if exit := app.List[0].Status.Tasks[0].Exit; exit == nil || !exit.OOM || exit.Limit != 24*model.MiB || exit.Peak < 12*model.MiB || exit.Peak > 25*model.MiB {
		t.Errorf("exit = %+v, want out of memory at 24MiB", exit)
	}

	cpu := func() map[model.InstanceID]time.Duration {
		u, err := c.Usage(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		out := map[model.InstanceID]time.Duration{}
		for _, i := range u.Instances {
			out[i.Instance] = i.Usage.CPUTime.Std()
			if i.Instance == busyID && i.Usage.Memory > 0 && (i.Usage.Memory < 64*model.KiB || i.Usage.Memory > 32*model.MiB || i.Limit.CPUs != 200) {
				t.Errorf("usage of a loop in a shell = %+v, limit %+v", i.Usage, i.Limit)
			}
		}
		return out
	}
	var first map[model.InstanceID]time.Duration
	c.until("usage to be known", func() bool { first = cpu(); begin = time.Now(); return first[busyID] > 0 && first[tinyID] > 0 })
	c.until("four seconds to pass", func() bool { return time.Since(begin) > 4*time.Second })
	last, took := cpu(), time.Since(begin)
	for id, most := range map[model.InstanceID]float64{busyID: 0.35, tinyID: 0.03} {
		if share := float64(last[id]-first[id]) / float64(took); share > most || share <= 0 {
			t.Errorf("%s used %.3f cores, want at most about %.2f", id, share, most)
		}
	}

	if out, _ := c.exec(busyID, "sh", "-c", "ls -d /proc/[0-9]* | wc -l"); strings.TrimSpace(out) > "5" || strings.TrimSpace(out) == "" {
		t.Errorf("the container sees %q processes, want only its own few", strings.TrimSpace(out))
	}
	metrics, err := c.Metrics(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gantry_instance_cpu_seconds_total", "gantry_instance_memory_bytes", "gantry_instance_memory_limit_bytes"} {
		if !strings.Contains(string(metrics), fmt.Sprintf(`%s{app="/busy",instance=%q`, name, busyID)) {
			t.Errorf("metrics lack %s of %s", name, busyID)
		}
	}
}

// A volume that is mounted read-only refuses writes, and a mount point that the node lacks is refused with a sentence.
func TestMountRefusals(t *testing.T) {
	needRoot(t)
	c := start(t)
	image := pushed(t, "busybox", images.Busybox(t))
	host := filepath.Join(t.TempDir(), "host")
	if err := os.Mkdir(host, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("kept\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	for kind, ref := range map[string]string{"image": image, "host": ""} {
		spec := boxed(model.AppID("/"+kind), ref, "cat vol/file; (echo lost > vol/file) 2>/dev/null || echo refused; (touch vol/new) 2>/dev/null || echo refused; exec sleep 100000")
		spec.Containers[0].Mounts = []model.Mount{{Volume: "v", Path: "vol", ReadOnly: true}}
		spec.Volumes = []model.Volume{{Name: "v", HostPath: host}}
		if ref != "" {
			spec.Containers[0].Mounts[0].Path, spec.Containers[0].Dir = "/in/vol", "/in"
		}
		i := c.deploy(spec)[0]
		c.until("three lines of "+kind, func() bool { return strings.Count(c.logs(i.ID, "stdout"), "\n") == 3 })
		if out := c.logs(i.ID, "stdout"); out != "kept\nrefused\nrefused\n" {
			t.Errorf("%s: a read-only volume said %q", kind, out)
		}
	}
	lost := shell("/lost", "exec sleep 100000")
	lost.Containers[0].Mounts = []model.Mount{{Volume: "v", Path: "/no/such/place"}}
	lost.Volumes = []model.Volume{{Name: "v", Scratch: true}}
	c.apply(lost)
	c.why("/lost", "/no/such/place", "must exist")
	if _, err := os.Stat("/no"); err == nil {
		t.Error("the mount point was made on the node")
	}
}
