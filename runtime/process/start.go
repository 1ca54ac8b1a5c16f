package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/cgroup"
)

// Start implements runtime.Driver.
func (d *Driver) Start(ctx context.Context, spec runtime.Task) (runtime.State, error) {
	if err := ctx.Err(); err != nil {
		return runtime.State{}, fmt.Errorf("start task %s: %w", spec.ID, err)
	}
	if err := check(spec); err != nil {
		return runtime.State{}, err
	}
	t, err := d.begin(spec)
	if err != nil {
		return runtime.State{}, fmt.Errorf("start task: %w", err)
	}
	if t != nil {
		return again(t, spec)
	}
	defer d.finish(spec.ID)
	t, err = d.startNew(ctx, spec)
	switch {
	case errors.Is(err, errExists):
		if t, err = d.adopt(spec.ID); err == nil {
			d.hold(t)
			return again(t, spec)
		}
	case err != nil:
		// ctx may have ended, which must not leave half a task behind.
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, d.clear(cctx, spec.ID))
	}
	if err != nil {
		return runtime.State{}, err
	}
	d.hold(t)
	return t.state(), nil
}

func (d *Driver) hold(t *task) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.add(t)
}

// again answers the start of a task that exists.
func again(t *task, spec runtime.Task) (runtime.State, error) {
	if t.attempt != spec.Attempt {
		return runtime.State{}, fmt.Errorf("start task %s: attempt %d of it still exists", spec.ID, t.attempt)
	}
	return t.state(), nil
}

// begin returns the task if it exists; else it reserves the id, until finish.
func (d *Driver) begin(spec runtime.Task) (*task, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.busy[spec.ID] {
		return nil, fmt.Errorf("%s is being started or removed", spec.ID)
	}
	t, err := d.findLocked(spec.ID)
	if !errors.Is(err, runtime.ErrNotFound) {
		return t, err
	}
	d.busy[spec.ID] = true
	return nil, nil
}

func (d *Driver) finish(id runtime.TaskID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.busy, id)
}

// check refuses what can never run here.
func check(spec runtime.Task) error {
	if err := checkID(spec.ID); err != nil {
		return err
	}
	switch {
	case spec.Image != "":
		return fmt.Errorf("%w: images are not run as plain processes", runtime.ErrInvalid)
	case len(spec.Command) == 0 || spec.Command[0] == "":
		return fmt.Errorf("%w: a program of the node needs a command", runtime.ErrInvalid)
	case !filepath.IsAbs(spec.Sandbox):
		return fmt.Errorf("%w: the sandbox %q is not an absolute path", runtime.ErrInvalid, spec.Sandbox)
	}
	for _, text := range append([]string{spec.Sandbox, spec.Dir, spec.Logs.Dir}, spec.Command...) {
		if strings.ContainsRune(text, 0) {
			return fmt.Errorf("%w: the command or a path of it has a NUL byte: %q", runtime.ErrInvalid, text)
		}
	}
	return checkEnv(spec.Env)
}

func checkEnv(env map[string]string) error {
	for k, v := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return fmt.Errorf("%w: the environment variable %q cannot be set", runtime.ErrInvalid, k)
		}
	}
	return nil
}

// startNew starts a task of which nothing is known. On failure, something of it may be left.
func (d *Driver) startNew(ctx context.Context, spec runtime.Task) (*task, error) {
	c, err := d.configure(spec)
	if err != nil {
		return nil, err
	}
	if err := d.clear(ctx, spec.ID); err != nil { // of a start that was cut short
		return nil, fmt.Errorf("start task %s: %w", spec.ID, err)
	}
	dir := d.dir(spec.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("start task %s: %w", spec.ID, err)
	}
	if g := d.group(spec.ID); g != nil {
		if err := g.Create(cgroup.Limits{CPUs: spec.CPUs, Memory: spec.Memory}); err != nil {
			return nil, fmt.Errorf("start task %s: %w", spec.ID, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "config"), c.encode(), 0o600); err != nil {
		return nil, fmt.Errorf("start task %s: %w", spec.ID, err)
	}
	t := &task{id: spec.ID, attempt: spec.Attempt, limit: spec.Memory, boot: d.boot, done: make(chan struct{})}
	if err := d.launch(ctx, t, c); err != nil {
		return nil, err
	}
	return t, nil
}

// configure turns a task into what its shim is told.
func (d *Driver) configure(spec runtime.Task) (*config, error) {
	who, err := d.identify(spec.User)
	if err != nil {
		return nil, err
	}
	c := &config{
		attempt: spec.Attempt, limit: spec.Memory, boot: d.boot, isolate: d.cfg.Isolate,
		sandbox: spec.Sandbox, logs: spec.Logs.Dir, logSize: spec.Logs.Size, logKeep: spec.Logs.Keep,
		who: who.identity, dir: spec.Dir, args: spec.Command, env: who.env(),
	}
	if c.dir == "" {
		c.dir = spec.Sandbox
	}
	for k, v := range spec.Env {
		c.env[k] = v
	}
	if !d.cfg.Isolate {
		name, value, _ := strings.Cut(mark(spec.ID, spec.Attempt), "=")
		c.env[name] = value
	}
	if g := d.group(spec.ID); g != nil {
		e := g.Entry()
		c.tasks, c.cgroup = e.Tasks, e.Dir
		c.oom, c.peak = g.MemoryFiles()
	}
	if c.binds, err = d.binds(spec); err != nil || who.identity == nil {
		return c, err
	}
	return c, runtime.Give(spec.Mounts, who.uid, who.gid)
}

func (d *Driver) binds(spec runtime.Task) ([]bind, error) {
	var out []bind
	for _, m := range spec.Mounts {
		if strings.ContainsRune(m.Source+m.Target, 0) || m.Target == "" || !filepath.IsAbs(m.Target) && !filepath.IsLocal(m.Target) {
			return nil, fmt.Errorf("%w: nothing can be mounted at %q", runtime.ErrInvalid, m.Target)
		}
		if !filepath.IsAbs(m.Source) {
			return nil, fmt.Errorf("%w: the volume's directory %q is not an absolute path", runtime.ErrInvalid, m.Source)
		}
		if !d.cfg.Isolate {
			if err := link(spec.Sandbox, m); err != nil {
				return nil, err
			}
			continue
		}
		out = append(out, bind{m.Source, m.Target, m.ReadOnly})
	}
	return out, nil
}

// link shows a directory in the sandbox to a task without a mount namespace.
func link(sandbox string, m runtime.Mount) error {
	switch {
	case m.ReadOnly:
		return fmt.Errorf("%w: a volume cannot be read-only for a program without isolation", runtime.ErrInvalid)
	case filepath.IsAbs(m.Target) && filepath.Clean(m.Target) == filepath.Clean(m.Source):
		return nil
	case filepath.IsAbs(m.Target):
		return fmt.Errorf("%w: without isolation, volumes can only be below the sandbox, which %q is not", runtime.ErrInvalid, m.Target)
	}
	root, err := os.OpenRoot(sandbox)
	if err != nil {
		return fmt.Errorf("link volume: %w", err)
	}
	defer root.Close()
	if old, err := root.Readlink(m.Target); err == nil && old == m.Source {
		return nil
	}
	if err := root.MkdirAll(filepath.Dir(m.Target), 0o755); err != nil {
		return fmt.Errorf("link volume: %w", err)
	}
	// What is in the way goes if it is a link or an empty directory.
	if err := root.Remove(m.Target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("link volume: %w", err)
	}
	if err := root.Symlink(m.Source, m.Target); err != nil {
		return fmt.Errorf("link volume: %w", err)
	}
	return nil
}

// errExists says that a shim found the task's directory in use: one that an earlier agent had just started.
var errExists = errors.New("the task exists")

// launch starts the shim and waits until its program executes.
func (d *Driver) launch(ctx context.Context, t *task, c *config) error {
	var flags uintptr
	if c.isolate {
		flags = unix.CLONE_NEWPID | unix.CLONE_NEWNS
	}
	status, shim, err := d.fork([]string{"gantry-shim", "run", d.dir(t.id)}, flags)
	if err != nil {
		return fmt.Errorf("start task %s: %w", t.id, err)
	}
	words, err := readStatus(ctx, status)
	if err == nil {
		err = t.understand(words, c)
	} else {
		err = fmt.Errorf("start task %s: %w", t.id, err)
	}
	if err != nil {
		return errors.Join(err, discard(shim))
	}
	t.shim = shim
	return nil
}

// discard ends a shim that is of no use.
func discard(shim *handle) error {
	defer shim.close()
	if err := shim.kill(); err != nil {
		return err
	}
	return shim.wait()
}

// fork starts the shim with the write end of a pipe as its status.
func (d *Driver) fork(argv []string, flags uintptr) (*os.File, *handle, error) {
	r, w, err := pipe()
	if err != nil {
		return nil, nil, err
	}
	pidfd := -1
	null := d.null.Fd()
	_, err = syscall.ForkExec(d.cfg.Shim, argv, &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: []uintptr{null, null, null, uintptr(w)},
		Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: flags, PidFD: &pidfd},
	})
	_ = unix.Close(w)
	if err == nil && pidfd < 0 {
		err = errors.New("the kernel is too old: it has no pidfd")
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("run %s: %w", d.cfg.Shim, err), r.Close())
	}
	shim, err := newHandle(pidfd)
	if err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	return r, shim, nil
}

// pipe returns a pipe to read from through the poller, and to write to by another process.
func pipe() (r *os.File, w int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, 0, fmt.Errorf("make pipe: %w", err)
	}
	if err := unix.SetNonblock(p[0], true); err != nil {
		return nil, 0, fmt.Errorf("make pipe: %w", errors.Join(err, unix.Close(p[0]), unix.Close(p[1])))
	}
	return os.NewFile(uintptr(p[0]), "status"), p[1], nil
}

// readStatus reads the words that a shim reports until it closes the pipe, or ctx ends.
func readStatus(ctx context.Context, r *os.File) ([]string, error) {
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	text, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("read the helper's report: %w", err)
	}
	if len(text) == 0 {
		return nil, errors.New("the helper process ended without a report")
	}
	return append(strings.Split(string(text), "\x00"), "", "", ""), nil
}

// understand takes in how the start went.
func (t *task) understand(words []string, c *config) error {
	switch words[0] {
	case "started":
		pid, err := strconv.Atoi(words[1])
		at, terr := strconv.ParseInt(words[2], 10, 64)
		if err = errors.Join(err, terr); err != nil {
			return fmt.Errorf("start task %s: read the helper's report: %w", t.id, err)
		}
		t.pid, t.started = pid, time.Unix(0, at)
		return nil
	case "held", "over":
		return errExists
	}
	return failure(words, c)
}
