package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/runtime/lockfile"

	"github.com/gantry-os/gantry/runtime"
)

// Engine keeps one containerd running. When it dies it is started anew; what it runs does not notice.
type Engine struct {
	config Config
	tools  tools
	run    string // directory of the sockets

	mu     sync.Mutex
	client *client.Client
	up     chan struct{} // closed while the engine answers
	pid    int           // of containerd, 0 while it is down
}

func newEngine(c Config, t tools) *Engine {
	return &Engine{config: c, tools: t, run: c.runDir(), up: make(chan struct{})}
}

// Limits of the engine's own life.
const (
	startTimeout = 30 * time.Second // until containerd answers; it looks at every shim before it does
	stopTimeout  = 5 * time.Second  // until containerd, asked to end, is killed
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 10 * time.Second
	steadyAfter  = time.Minute // a containerd that ran this long resets the backoff
	maxLog       = 4 << 20     // bytes of containerd's own log, before it is begun anew
)

// Run keeps containerd running until ctx ends, and then stops it. Containers run on. An older containerd of the same
// directory, left by a gantry that was killed, is stopped first.
func (e *Engine) Run(ctx context.Context) error {
	defer e.close()
	backoff := firstBackoff
	for {
		began := time.Now()
		err := e.once(ctx)
		if ctx.Err() != nil {
			return err
		}
		if time.Since(began) > steadyAfter {
			backoff = firstBackoff
		}
		e.config.Log.Warn("containerd ended and is started again", "error", err, "wait", backoff)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// Ready waits until containerd answers. It fails with runtime.ErrUnavailable when ctx ends before that.
func (e *Engine) Ready(ctx context.Context) error {
	_, err := e.connect(ctx)
	return err
}

// PID returns containerd's process id, 0 while it is down.
func (e *Engine) PID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pid
}

// connect returns a client of the running containerd, once there is one.
func (e *Engine) connect(ctx context.Context) (*client.Client, error) {
	for {
		e.mu.Lock()
		cli, up := e.client, e.up
		e.mu.Unlock()
		if cli != nil {
			return cli, nil
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", runtime.ErrUnavailable, context.Cause(ctx))
		}
	}
}

// once runs one containerd from start to end.
func (e *Engine) once(ctx context.Context) error {
	if err := e.prepare(); err != nil {
		return err
	}
	cmd, err := e.start()
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer e.down()
	if err := e.await(ctx, cmd.Process.Pid, ended); err != nil && ctx.Err() == nil {
		return errors.Join(err, stop(cmd, ended))
	}
	select {
	case err := <-ended:
		return fmt.Errorf("containerd ended: %v", exitText(err))
	case <-ctx.Done():
		return stop(cmd, ended)
	}
}

func exitText(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// prepare makes place for a containerd: directories, configuration, and no other one.
func (e *Engine) prepare() error {
	for _, d := range []string{e.path("root"), e.path("state"), e.path("tmp"), e.run} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return fmt.Errorf("prepare containerd: %w", err)
		}
	}
	if err := e.stopOther(); err != nil {
		return fmt.Errorf("stop the containerd before: %w", err)
	}
	if err := e.forgetBoot(); err != nil {
		return fmt.Errorf("forget the state of another boot: %w", err)
	}
	if err := e.sweep(); err != nil { // it is not in the way of anything
		e.config.Log.Warn("what a containerd before has left cannot be removed", "error", err)
	}
	text := configuration(e.config.Dir, e.run)
	if err := os.WriteFile(e.path("config.toml"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("configure containerd: %w", err)
	}
	return nil
}

func (e *Engine) path(name string) string { return filepath.Join(e.config.Dir, name) }

func (e *Engine) start() (*exec.Cmd, error) {
	out, err := openLog(e.path("containerd.log"))
	if err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	defer out.Close()
	args := append(slices.Clone(e.config.Command[1:]), e.lock(), "--config", e.path("config.toml"))
	cmd := exec.Command(e.config.Command[0], args...)
	cmd.Dir = e.config.Dir
	cmd.Stdout, cmd.Stderr = out, out
	// Programs that containerd runs by name, such as mount helpers, are found as before.
	cmd.Env = append(os.Environ(), "GOGC=50", "TMPDIR="+e.path("tmp"))
	cmd.Env = append(cmd.Env, e.config.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is for gantry
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	return cmd, nil
}

// await connects to the new containerd, and publishes the client once it answers.
func (e *Engine) await(ctx context.Context, pid int, ended chan error) error {
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	for !listens(e.socket()) {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			ended <- err
			return fmt.Errorf("containerd ended at start (%s): see %s", exitText(err), e.path("containerd.log"))
		case <-timeout.C:
			return fmt.Errorf("containerd does not answer after %v: see %s", startTimeout, e.path("containerd.log"))
		case <-time.After(3 * time.Millisecond):
		}
	}
	cli, err := client.New(e.socket(), client.WithDefaultNamespace(namespace),
		client.WithDefaultRuntime(e.tools.shim), client.WithTimeout(time.Second))
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	if _, err := cli.Version(ctx); err != nil {
		return errors.Join(fmt.Errorf("connect to containerd: %w", err), cli.Close())
	}
	e.publish(cli, pid)
	return nil
}

func (e *Engine) socket() string { return filepath.Join(e.run, "c.sock") }

// listens reports whether someone takes connections at a socket.
func listens(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

func (e *Engine) publish(cli *client.Client, pid int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.client, e.pid = cli, pid
	close(e.up)
}

// down withdraws the client. Calls that are under way fail.
func (e *Engine) down() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client == nil {
		return
	}
	_ = e.client.Close() // nothing is buffered in it
	e.client, e.pid, e.up = nil, 0, make(chan struct{})
}

// close removes the sockets' directory, unless shims still need it.
func (e *Engine) close() {
	shims, err := filepath.Glob(filepath.Join(e.run, "s", "*"))
	if err != nil || slices.ContainsFunc(shims, listens) {
		return
	}
	if err := os.RemoveAll(e.run); err != nil {
		e.config.Log.Warn("the directory of containerd's sockets is left behind", "error", err)
	}
	_ = os.Remove(filepath.Dir(e.run)) // fails while another engine has its directory there
}

// stop ends containerd by SIGTERM, and by SIGKILL if it takes too long. Shims are not its process group.
func stop(cmd *exec.Cmd, ended chan error) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop containerd: %w", err)
	}
	select {
	case <-ended:
		return nil
	case <-time.After(stopTimeout):
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill containerd: %w", err)
	}
	<-ended
	return nil
}

// lock returns the file that a containerd of this directory holds locked from its first moment to its last. Of two that
// an unlucky gantry started, one gets it, and the other ends.
func (e *Engine) lock() string { return e.path("containerd.lock") }

// stopOther stops a containerd of the same directory that outlived its gantry.
func (e *Engine) stopOther() error {
	pid, fd, err := lockfile.Holder(e.lock())
	if err != nil || pid == 0 {
		return err
	}
	defer unix.Close(fd)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); errors.Is(err, unix.ESRCH) {
			return nil
		} else if err != nil {
			return fmt.Errorf("signal process %d: %w", pid, err)
		}
		if endedBy(fd, stopTimeout) {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", pid)
}

// endedBy waits until the process behind a pidfd has ended.
func endedBy(pidfd int, timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if n > 0 {
			return true
		}
		if err == nil || !errors.Is(err, unix.EINTR) {
			return false
		}
	}
}

// forgetBoot empties the state directory when it was written by another boot of the machine: its shims and mounts are
// gone, and containerd would try each of them.
func (e *Engine) forgetBoot() error {
	file := e.path("boot")
	before, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(before) == e.config.BootID {
		return nil
	}
	mounted, err := mountedBelow(e.path("state"))
	if err != nil {
		return err
	}
	if !mounted {
		if err := os.RemoveAll(e.path("state")); err != nil {
			return err
		}
		if err := os.Mkdir(e.path("state"), 0o711); err != nil {
			return err
		}
	}
	return os.WriteFile(file, []byte(e.config.BootID), 0o600)
}

func mountedBelow(dir string) (bool, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	return len(mounts) > 0, err
}

// openLog opens containerd's own log for appending, and begins it anew when it has grown large.
func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// configuration returns containerd's configuration file.
func configuration(dir, run string) string {
	return fmt.Sprintf(`version = 4
root = %q
state = %q

[debug]
  level = "warn"

[plugins."io.containerd.server.v1.grpc"]
  address = %q

[plugins."io.containerd.server.v1.ttrpc"]
  address = %q

[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %q

[plugins."io.containerd.snapshotter.v1.overlayfs"]
  sync_remove = true

# Snapshots and content of what was removed are collected soon, but never during a burst of starts.
[plugins."io.containerd.gc.v1.scheduler"]
  deletion_threshold = 10
  schedule_delay = "2s"
  startup_delay = "10s"
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"),
		filepath.Join(run, "c.sock"), filepath.Join(run, "t.sock"), filepath.Join(run, "s"))
}
