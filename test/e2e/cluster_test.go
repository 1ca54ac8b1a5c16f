// Package e2e drives the built binary as users do: real programs, images, signals and kills, over the API and the CLI.
//
// Each test starts its own Gantry with its own data directory and address, and checks at its end that nothing is
// left: no process, mount or cgroup.
package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/test/images"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// patience bounds every wait. It is long because the machine may be busy; nothing waits that long when all is well.
const patience = 90 * time.Second

var bin string // absolute path of bin/, or of GANTRY_BIN

func TestMain(m *testing.M) {
	dir, err := filepath.Abs(cmp.Or(os.Getenv("GANTRY_BIN"), "../../bin"))
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "gantry"))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %s/gantry is missing; run `make build` first\n", dir)
		os.Exit(1)
	}
	bin = dir
	os.Exit(m.Run())
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root, for namespaces, cgroups and containers")
	}
}

// cluster is one Gantry under test.
type cluster struct {
	t    testing.TB
	dir  string
	addr string
	args []string
	cmd  *exec.Cmd
	out  *lockedBuffer
	*client.Client
}

// start runs `gantry up` with further arguments and waits until it is ready.
func start(t testing.TB, args ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "data"), addr: freeAddr(t), args: args}
	t.Cleanup(c.cleanup)
	c.up()
	return c
}

// freeAddr returns a loopback address with a port that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// up starts the server and waits for its ready line.
func (c *cluster) up() {
	c.t.Helper()
	r := c.launch()
	defer r.Close()
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil || !strings.Contains(line, "ready") {
		c.t.Fatalf("gantry up printed %q (%v), want its ready line\n%s", line, err, c.out)
	}
	token := ""
	if b, err := os.ReadFile(filepath.Join(c.dir, "admin.token")); err == nil {
		token = strings.TrimSpace(string(b))
	}
	c.Client = client.New("http://"+c.addr, token)
}

// launch starts the server and returns its standard output.
func (c *cluster) launch() *os.File {
	c.t.Helper()
	args := append([]string{"up", "--data-dir", c.dir, "--http-addr", c.addr}, c.args...)
	c.cmd = exec.Command(filepath.Join(bin, "gantry"), args...)
	c.out = &lockedBuffer{}
	r, w, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	defer w.Close()
	c.cmd.Stdout, c.cmd.Stderr = w, c.out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// kill ends the server with SIGKILL.
func (c *cluster) kill() {
	c.t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	_ = c.cmd.Wait() // its exit status says "killed", as it should
}

// restart kills the server and starts it again.
func (c *cluster) restart() {
	c.t.Helper()
	c.kill()
	c.up()
}

// down ends the server and all instances, as `gantry down` does.
func (c *cluster) down() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if c.Client == nil {
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
	} else if err := c.Shutdown(ctx, client.Shutdown{}); err != nil {
		c.t.Errorf("shut down: %v", err)
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
	}
	done := make(chan error, 1)
	go func() { done <- c.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			c.t.Errorf("gantry ended with %v\n%s", err, c.out)
		}
	case <-ctx.Done():
		c.t.Errorf("gantry did not end within %v\n%s", patience, c.out)
		_ = c.cmd.Process.Kill()
		<-done
	}
}

func (c *cluster) cleanup() {
	if c.cmd == nil || c.cmd.Process == nil {
		return
	}
	if c.cmd.ProcessState == nil {
		c.down()
	}
	if c.t.Failed() {
		c.t.Logf("what gantry printed:\n%s", c.out)
	}
	c.checkNothingLeft()
}

// cgroups returns the directories of the cluster's cgroups in every hierarchy, and what is directly below them.
func (c *cluster) cgroups() (own, below []string) {
	c.t.Helper()
	name := hash(c.dir, 4)
	for _, pattern := range []string{"/sys/fs/cgroup/gantry/" + name, "/sys/fs/cgroup/*/gantry/" + name} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			c.t.Fatal(err)
		}
		own = append(own, found...)
	}
	for _, dir := range own {
		entries, _ := os.ReadDir(dir) // it may just have been removed
		for _, e := range entries {
			if e.IsDir() {
				below = append(below, filepath.Join(dir, e.Name()))
			}
		}
	}
	return own, below
}

// removeCgroups clears up after a failed test: containers' processes are known by nothing but their cgroup.
func (c *cluster) removeCgroups(dirs []string) {
	for _, dir := range dirs {
		text, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, pid := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(pid); err == nil && n > 0 {
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
	}
	for _, dir := range dirs {
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			err := os.Remove(dir)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if time.Now().After(end) {
				c.t.Errorf("remove cgroup: %v", err)
				break
			}
		}
	}
}

// sockets returns the directory of the container engine's sockets.
func (c *cluster) sockets() string {
	return filepath.Join("/run/gantry", hash(filepath.Join(c.dir, "containerd"), 6))
}

// hash returns the short name that Gantry makes of a path.
func hash(path string, size int) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:size])
}

// checkNothingLeft fails the test for every process, mount, cgroup and socket that still belongs to the data directory.
func (c *cluster) checkNothingLeft() {
	c.t.Helper()
	c.awaitShims()
	groups, below := c.cgroups()
	for _, dir := range groups {
		c.t.Errorf("cgroup is left: %s", dir)
	}
	defer c.removeCgroups(append(below, groups...))
	if left, err := filepath.Glob(c.sockets() + "/*"); err != nil || len(left) > 0 {
		c.t.Errorf("sockets are left: %v, %v", left, err)
	}
	for pid, cmdline := range c.processes() {
		c.t.Errorf("process %d is left: %s", pid, cmdline)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		c.t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, c.dir) {
			c.t.Errorf("mount is left: %s", line)
			_ = syscall.Unmount(strings.Fields(line)[4], syscall.MNT_DETACH)
		}
	}
}

// shimsEnd bounds how long a shim may outlive the server that ended its last task: it waits that long for another one.
const shimsEnd = 20 * time.Second

// awaitShims returns when no process is left, or its time is up. A shim ends by itself, which nobody waits for.
func (c *cluster) awaitShims() {
	for deadline := time.Now().Add(shimsEnd); len(c.processes()) > 0 && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
	}
}

// processes returns the processes whose command line or environment names the data directory, or that of the sockets.
func (c *cluster) processes() map[int]string {
	found := map[int]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue // it ended meanwhile, or is a zombie
		}
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ")) // gone when it just ended
		if bytes.Contains(cmdline, []byte(c.dir)) || bytes.Contains(environ, []byte(c.dir)) || bytes.Contains(cmdline, []byte(c.sockets())) {
			found[pid] = string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '}))
		}
	}
	return found
}

// containerd returns the pid of the server's containerd child.
func (c *cluster) containerd() int {
	c.t.Helper()
	for pid, cmdline := range c.processes() {
		if strings.Contains(cmdline, "gantry containerd") {
			return pid
		}
	}
	c.t.Fatal("no containerd runs")
	return 0
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// put deploys a spec and waits for the end of its deployment.
func (c *cluster) put(spec *model.Spec) model.Deployment {
	c.t.Helper()
	change, err := c.PutApp(testContext(c.t), spec)
	if err != nil {
		c.t.Fatalf("put %s: %v", spec.ID, err)
	}
	return c.wait(change)
}

// wait waits for the end of a change's deployment.
func (c *cluster) wait(change client.Change) model.Deployment {
	c.t.Helper()
	d, err := c.WaitDeployment(testContext(c.t), change.Deployment, nil)
	if err != nil {
		c.t.Fatalf("wait for %s: %v; it said: %s", change.Deployment, err, d.Message)
	}
	return d
}

// deploy is put, and fails the test unless the deployment succeeds.
func (c *cluster) deploy(spec *model.Spec) []client.Instance {
	c.t.Helper()
	if d := c.put(spec); d.State != model.DeploySucceeded {
		c.t.Fatalf("deployment of %s is %s: %s", spec.ID, d.State, d.Message)
	}
	return c.running(spec.ID)
}

// running returns the app's running instances.
func (c *cluster) running(id model.AppID) []client.Instance {
	c.t.Helper()
	list, err := c.Instances(testContext(c.t), client.InstanceFilter{App: id})
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.DeleteFunc(list, func(i client.Instance) bool { return i.Status.Phase != model.PhaseRunning })
}

// until polls a condition on the outside world until it holds.
func (c *cluster) until(what string, ok func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			c.t.Fatalf("waited %v for: %s\n%s", patience, what, c.describe())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// describe returns what the server knows, for the message of a failed test.
func (c *cluster) describe() string {
	if c.Client == nil {
		return "it never was ready: " + c.out.String()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	list, err := c.Instances(ctx, client.InstanceFilter{All: true})
	if err != nil {
		return err.Error()
	}
	b, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// logs returns what an instance has written so far.
func (c *cluster) logs(id model.InstanceID, stream string) string {
	c.t.Helper()
	r, err := c.Logs(testContext(c.t), id, client.LogOptions{Stream: stream, Tail: -1})
	if err != nil {
		c.t.Fatalf("logs of %s: %v", id, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		c.t.Fatalf("logs of %s: %v", id, err)
	}
	return string(b)
}

// exec runs a program in an instance and returns what it printed.
func (c *cluster) exec(id model.InstanceID, command ...string) (string, int) {
	c.t.Helper()
	var out bytes.Buffer
	code, err := c.Exec(testContext(c.t), id, client.ExecOptions{Command: command, Stdout: &out, Stderr: &out})
	if err != nil {
		c.t.Fatalf("exec in %s: %v", id, err)
	}
	return out.String(), code
}

// gantry runs the CLI and returns what it printed and its exit code.
func (c *cluster) gantry(args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	cmd := exec.CommandContext(testContext(c.t), filepath.Join(bin, "gantry"), append([]string{"--data-dir", c.dir}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// pushed stores an image in a registry of the test's own and returns its reference.
func pushed(t testing.TB, name string, image v1.Image) string {
	t.Helper()
	ref := images.Registry(t) + "/" + name + ":1"
	images.Push(t, image, ref)
	return ref
}

func pids(list []client.Instance) map[model.InstanceID]int {
	out := map[model.InstanceID]int{}
	for _, i := range list {
		for _, task := range i.Status.Tasks {
			out[i.ID] = task.PID
		}
	}
	return out
}

func shell(id model.AppID, line string) *model.Spec {
	return &model.Spec{ID: id, Containers: []model.Container{{Shell: line, CPUs: 100, Memory: 32 * model.MiB}}}
}

func ptr[T any](v T) *T { return &v }

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
