package containerd

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/test/images"
)

// The three policies differ in when they ask the registry; what has been pulled must run.
func TestPullPolicies(t *testing.T) {
	n := newNode(t)
	ref := images.Registry(t) + "/test/box:1"
	if _, err := n.Pull(limited(t), ref, model.PullNever, nil, nil); !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), "never") {
		t.Errorf("never, without the image: %v", err)
	}
	if _, err := n.Pull(limited(t), ref, model.PullMissing, nil, nil); !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), "no image of this name") {
		t.Errorf("missing, which the registry does not have: %v", err)
	}
	box := images.Busybox(t)
	first := images.Push(t, box, ref)
	var said []string
	pull := func(policy model.PullPolicy) string {
		t.Helper()
		digest, err := n.Pull(limited(t), ref, policy, nil, func(s string) { said = append(said, s) })
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}
	if got := pull(model.PullMissing); got != first {
		t.Errorf("pulled %s, pushed %s", got, first)
	}
	if len(said) == 0 || !strings.HasPrefix(said[0], "pulling "+ref) {
		t.Errorf("progress was %q", said)
	}
	second := images.Push(t, images.With(t, box, func(c *v1.Config) { c.Cmd = []string{"/bin/sh", "-c", "exit 9"} }), ref)
	if got := pull(model.PullMissing); got != first {
		t.Errorf("missing pulled %s though %s is present", got, first)
	}
	if got := pull(model.PullAlways); got != second {
		t.Errorf("always pulled %s, the registry has %s", got, second)
	}
	if got := pull(model.PullNever); got != second {
		t.Errorf("never found %s", got)
	}
	task := n.task(t, "pulled-1.main", ref, "")
	task.Command = nil
	n.launchTask(t, task)
	if e := n.exitOf(t, task.ID); e.Code != 9 {
		t.Errorf("the image's own command ended as %+v", e)
	}
}

// A registry that asks for credentials gets those of the app and no others, and a refusal is told as one.
func TestPullCredentials(t *testing.T) {
	n := newNode(t)
	ref := images.PrivateRegistry(t, "anna", "secret") + "/box:1"
	images.PushAs(t, images.Busybox(t), ref, "anna", "secret")
	for _, auth := range []*model.RegistryAuth{nil, {Username: "anna", Password: "guess"}} {
		_, err := n.Pull(limited(t), ref, model.PullMissing, auth, nil)
		if !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), "credentials") {
			t.Errorf("pulled with %+v: %v", auth, err)
		}
		if err != nil && strings.Contains(err.Error(), "guess") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	if _, err := n.Pull(limited(t), ref, model.PullMissing, &model.RegistryAuth{Username: "anna", Password: "secret"}, nil); err != nil {
		t.Error(err)
	}
}

// A registry that is not there may come back: that is no reason to give an app up.
func TestPullUnreachable(t *testing.T) {
	n := newNode(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ref := l.Addr().String() + "/box:1"
	l.Close()
	_, err = n.Pull(limited(t), ref, model.PullMissing, nil, nil)
	if err == nil || errors.Is(err, runtime.ErrInvalid) || errors.Is(err, runtime.ErrUnavailable) || !strings.Contains(err.Error(), "registry") {
		t.Errorf("pulled from nowhere: %v", err)
	}
}

// Instances that start together must not each download their image.
func TestPullsAreMerged(t *testing.T) {
	n := newNode(t)
	upstream := images.Registry(t)
	images.Push(t, images.Busybox(t), upstream+"/box:1")
	var blobs atomic.Int64
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: upstream})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			blobs.Add(1)
			time.Sleep(50 * time.Millisecond) // a slow line, so that the pulls overlap
		}
		proxy.ServeHTTP(w, r)
	}))
	defer s.Close()
	ref := strings.TrimPrefix(s.URL, "http://") + "/box:1"
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := n.Pull(limited(t), ref, model.PullMissing, nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := blobs.Load(); got > 3 { // configuration and layer, the latter perhaps in parts
		t.Errorf("the registry served %d blobs", got)
	}
}

// Archives of all common kinds must load and run, whatever they say of names.
func TestImport(t *testing.T) {
	n := newNode(t)
	box := images.Busybox(t)
	oci := func(annotations map[string]string) string {
		dir := t.TempDir()
		img := images.With(t, box, func(c *v1.Config) { c.Labels = annotations }) // differ in digest
		p, err := layout.Write(dir, empty.Index)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.AppendImage(img, layout.WithAnnotations(annotations)); err != nil {
			t.Fatal(err)
		}
		return tarOf(t, dir)
	}
	const refName = "org.opencontainers.image.ref.name"
	cases := map[string]struct{ archive, want string }{
		"docker":         {images.SaveTar(t, box, "shop/box:2"), "shop/box:2"},
		"docker gzipped": {gzipped(t, images.SaveTar(t, box, "shop/zipped:2")), "shop/zipped:2"},
		"oci named":      {oci(map[string]string{refName: "registry.test/box:3"}), "registry.test/box:3"},
		"oci tag":        {oci(map[string]string{refName: "1.35"}), "imported:1.35"},
		"oci nameless":   {oci(nil), "imported:"},
	}
	serial := 0
	for name, c := range cases {
		serial++
		t.Run(name, func(t *testing.T) {
			names := n.load(t, c.archive)
			if len(names) != 1 || !strings.HasPrefix(names[0], c.want) {
				t.Fatalf("imported %q, want %q", names, c.want)
			}
			id := "import-" + strconv.Itoa(serial) + ".main"
			n.launchTask(t, n.task(t, id, names[0], "exit 4"))
			if e := n.exitOf(t, runtime.TaskID(id)); e.Code != 4 {
				t.Errorf("it ended as %+v", e)
			}
		})
	}
	list, err := n.ListImages(limited(t))
	if err != nil || len(list) != len(cases) {
		t.Errorf("images: %+v, %v", list, err)
	}
	for _, i := range list {
		if i.Size < 500*model.KiB || i.Created.IsZero() || !strings.HasPrefix(i.Digest, "sha256:") {
			t.Errorf("listed %+v", i)
		}
	}
}

func TestImportRefusesOtherFiles(t *testing.T) {
	n := newNode(t)
	for _, text := range []string{"", "this is no archive", strings.Repeat("\x00", 4096)} {
		if names, err := n.Import(limited(t), strings.NewReader(text)); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("imported %q from %.20q: %v", names, text, err)
		}
	}
}

// What the image says about its program holds unless the task says otherwise.
func TestImageConfiguration(t *testing.T) {
	n := newNode(t)
	ref := images.Registry(t) + "/box:1"
	images.Push(t, images.With(t, images.Busybox(t), func(c *v1.Config) {
		c.Entrypoint = []string{"/bin/sh", "-c", `echo "$0 $1|$A $B|$(pwd)|$(id -u):$(id -g)"`}
		c.Cmd = []string{"cmd"}
		c.Env = append(c.Env, "A=image", "B=image")
		c.WorkingDir = "/srv"
		c.User = "www-data"
		c.StopSignal = "SIGQUIT"
	}), ref)
	if _, err := n.Pull(limited(t), ref, model.PullMissing, nil, nil); err != nil {
		t.Fatal(err)
	}
	serial := 0
	for want, change := range map[string]func(*runtime.Task){
		"cmd |image image|/srv|33:33\n":                               func(*runtime.Task) {},
		"one two|image image|/srv|33:33\n":                            func(k *runtime.Task) { k.Args = []string{"one", "two"} },
		"cmd |image task|/tmp|101:65534\n":                            func(k *runtime.Task) { k.Env, k.Dir, k.User = map[string]string{"B": "task"}, "/tmp", "redis:nogroup" },
		"cmd |image image|" + runtime.SandboxPath + "/in|4242:4343\n": func(k *runtime.Task) { k.Dir, k.User = "in", "4242:4343" },
		"mine\n": func(k *runtime.Task) { k.Command = []string{"/bin/echo", "mine"} },
	} {
		serial++
		task := n.task(t, "config-"+strconv.Itoa(serial)+".main", ref, "")
		task.Command = nil
		if err := os.Mkdir(filepath.Join(task.Sandbox, "in"), 0o755); err != nil {
			t.Fatal(err)
		}
		change(&task)
		n.launchTask(t, task)
		n.exitOf(t, task.ID)
		eventually(t, "the output is "+want, func() bool { return read(t, filepath.Join(task.Logs.Dir, "stdout")) == want })
		if sig, err := n.StopSignal(limited(t), task.ID); err != nil || sig != 3 {
			t.Errorf("stop signal %d, %v", sig, err)
		}
	}
}

// A container can use the devices that it was given, and sees no others.
func TestDevices(t *testing.T) {
	const device = "/dev/loop-control"
	if _, err := os.Stat(device); err != nil {
		t.Skip("SKIP: no device here that a container does not have anyhow")
	}
	n := newNode(t)
	line := "(: <" + device + ") 2>/dev/null && echo opened || echo none"
	for i, want := range []string{"none\n", "opened\n"} {
		task := n.task(t, "device-"+strconv.Itoa(i)+".main", n.busybox(t), line)
		if i > 0 {
			task.Devices = []string{device}
		}
		n.launchTask(t, task)
		n.exitOf(t, task.ID)
		eventually(t, "the output is "+want, func() bool { return read(t, filepath.Join(task.Logs.Dir, "stdout")) == want })
	}
}

// A start that can never work says what is wrong, and leaves nothing.
func TestStartRefusals(t *testing.T) {
	n := newNode(t)
	image := n.busybox(t)
	for want, change := range map[string]func(*runtime.Task){
		"is not on this node":     func(k *runtime.Task) { k.Image = "nowhere/such:1" },
		"is not the name":         func(k *runtime.Task) { k.Image = "Not A Name" },
		`no program "nonesuch"`:   func(k *runtime.Task) { k.Command = []string{"nonesuch"} },
		`"/etc" of image`:         func(k *runtime.Task) { k.Command = []string{"/etc"} },
		`"/etc/passwd" of image`:  func(k *runtime.Task) { k.Command = []string{"/etc/passwd"} },
		`no user or group "x"`:    func(k *runtime.Task) { k.User = "x" },
		`"a:b:c" is not a user`:   func(k *runtime.Task) { k.User = "a:b:c" },
		`user or group "root:no"`: func(k *runtime.Task) { k.User = "root:no" },
	} {
		task := n.task(t, "refused-1.main", image, "true")
		change(&task)
		if _, err := n.Start(limited(t), task); !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if list, err := n.List(limited(t)); err != nil || len(list) != 0 {
			t.Errorf("%s: it left %+v, %v", want, list, err)
		}
		if left, err := n.groups.Open("/gantry/" + n.config.Cluster).Groups(); err != nil || len(left) != 0 {
			t.Errorf("%s: it left the cgroups %v, %v", want, left, err)
		}
	}
}

// redis from Debian's package answers over the node's network and keeps its data in a directory of the node.
func TestRedis(t *testing.T) {
	n := newNode(t)
	image := n.load(t, images.SaveTar(t, images.Debian(t, "redis-server"), "redis:7"))[0]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	data := t.TempDir()
	if err := os.Chown(data, 101, 101); err != nil {
		t.Fatal(err)
	}
	task := n.task(t, "redis-1.main", image, "")
	task.Command = []string{"redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", "/data", "--appendonly", "yes"}
	task.User = "redis"
	task.Mounts = []runtime.Mount{{Source: data, Target: "/data"}}
	if err := errors.Join(os.Chmod(filepath.Dir(data), 0o755), os.Chmod(filepath.Dir(filepath.Dir(data)), 0o755)); err != nil {
		t.Fatal(err)
	}
	for attempt, dialogue := range []struct{ ask, want string }{{"SET k v\r\n", "+OK\r\n"}, {"GET k\r\n", "$1\r\nv\r\n"}} {
		task.Attempt = uint32(attempt + 1)
		n.launchTask(t, task)
		var got string
		eventually(t, "redis answers "+dialogue.want, func() bool {
			got = ask(port, dialogue.ask, len(dialogue.want))
			return got == dialogue.want
		})
		if err := n.Signal(limited(t), task.ID, 15); err != nil {
			t.Error(err)
		}
		if e := n.exitOf(t, task.ID); e.Code != 0 {
			t.Errorf("redis ended as %+v: %s", e, read(t, filepath.Join(task.Logs.Dir, "stdout")))
		}
		if err := n.Remove(limited(t), task.ID); err != nil {
			t.Fatal(err)
		}
	}
}

func ask(port, question string, answer int) string {
	conn, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(conn, question); err != nil {
		return err.Error()
	}
	buf := make([]byte, answer)
	k, _ := io.ReadFull(conn, buf)
	return string(buf[:k])
}

// Only loopback and what is configured may be spoken to without TLS.
func TestPlainHTTP(t *testing.T) {
	d := &Driver{config: Config{PlainHTTP: []string{"registry.lan", "other.lan:5000"}}}
	plain := []string{"localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:80", "[::1]:5000", "registry.lan", "registry.lan:5000", "other.lan:5000"}
	tls := []string{"docker.io", "10.0.0.1:5000", "other.lan", "other.lan:80", "localhost.example.org", "[2001:db8::1]:5000"}
	for _, host := range slices.Concat(plain, tls) {
		if want := slices.Contains(plain, host); d.plain(host) != want {
			t.Errorf("%s: plain is %v", host, !want)
		}
	}
}

// A registry without TLS that was not configured is refused with the option that would allow it.
func TestPlainHTTPRefused(t *testing.T) {
	err := (&Driver{}).refusal(t.Context(), "10.0.0.1:5000/box:1", fmt.Errorf("ask registry: %w", http.ErrSchemeMismatch))
	if !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), "--plain-http 10.0.0.1:5000") {
		t.Errorf("refused with %v", err)
	}
}

func TestNames(t *testing.T) {
	for in, want := range map[string]string{
		"nginx": "docker.io/library/nginx:latest", "shop/web:2": "docker.io/shop/web:2", "127.0.0.1:5000/x": "127.0.0.1:5000/x:latest",
	} {
		if got, err := normalize(in); err != nil || got != want {
			t.Errorf("normalize(%q) = %q, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{
		"latest": importedRepository + ":latest", "v1.2": importedRepository + ":v1.2", "redis": "docker.io/library/redis:latest",
		"a/b:c": "docker.io/a/b:c", "Upper": importedRepository + ":Upper", "no good": "",
	} {
		if got := importedName(in); got != want {
			t.Errorf("importedName(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"nginx", "a/b:c@sha256:00", "", ":", "127.0.0.1:5000/x", "latest"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := normalize(s)
		if err != nil {
			return
		}
		if again, err := normalize(name); err != nil || again != name {
			t.Errorf("%q is named %q, which is named %q, %v", s, name, again, err)
		}
		if again, err := normalize(familiar(name)); err != nil || again != name {
			t.Errorf("%q is shown as %q, which means %q, %v", name, familiar(name), again, err)
		}
		if i := importedName(s); i != "" {
			if _, err := normalize(i); err != nil {
				t.Errorf("importedName(%q) = %q: %v", s, i, err)
			}
		}
	})
}

func gzipped(t *testing.T, path string) string {
	t.Helper()
	out, err := os.Create(path + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	z := gzip.NewWriter(out)
	if _, err := io.WriteString(z, read(t, path)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}

// tarOf packs a directory.
func tarOf(t *testing.T, dir string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "layout.tar")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return out
}
