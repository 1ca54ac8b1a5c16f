package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/cgroup"
)

// Driver runs tasks from OCI images. It implements runtime.Driver, Execer, Meter, Images and StopSignaler.
// While the engine is down, methods wait for it for a while before they fail with runtime.ErrUnavailable.
type Driver struct {
	config      Config
	tools       tools
	groups      *cgroup.Tree
	snapshotter string
	engine      *Engine
	wait        time.Duration // for the engine

	mu     sync.Mutex
	pulls  map[string]*pull // under way, by reference and credentials
	busy   map[runtime.TaskID]operation
	images map[digest.Digest]*image // by manifest, of those started lately
}

// Labels of a container.
const (
	labelAttempt = "gantry/attempt"
	labelBoot    = "gantry/boot"        // which boot of the machine it was started in
	labelStarted = "gantry/started"     // when its program was executed; without it, it never was
	labelStop    = "gantry/stop-signal" // the image's own
	labelMemory  = "gantry/memory"      // its limit, in bytes
)

// lostCode is the exit code of tasks whose own is not known.
const lostCode = 255

// Run runs the engine until ctx ends. Tasks run on.
func (d *Driver) Run(ctx context.Context) error { return d.engine.Run(ctx) }

// Ready waits until the engine answers.
func (d *Driver) Ready(ctx context.Context) error { return d.engine.Ready(ctx) }

// Engine returns the engine below the driver.
func (d *Driver) Engine() *Engine { return d.engine }

// client returns a client of the running engine and a context that names the namespace.
func (d *Driver) client(ctx context.Context) (context.Context, *client.Client, error) {
	waiting, cancel := context.WithTimeout(ctx, d.wait)
	defer cancel()
	cli, err := d.engine.connect(waiting)
	return log.WithLogger(namespaces.WithNamespace(ctx, namespace), silent), cli, err
}

// silent keeps containerd's client libraries from writing to standard error. What they log, their errors say too.
var silent = func() *log.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}()

// List returns every task, with the exits of those that have ended.
func (d *Driver) List(ctx context.Context) ([]runtime.State, error) {
	ctx, cli, err := d.client(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	all, err := cli.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", d.failure(ctx, err))
	}
	running, err := cli.TaskService().List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", d.failure(ctx, err))
	}
	processes := make(map[string]*tasktypes.Process, len(running.Tasks))
	for _, p := range running.Tasks {
		processes[p.ID] = p
	}
	var out []runtime.State
	for _, c := range all {
		s, ok := d.state(c, processes[c.ID])
		if ok && s.Exit != nil && s.Exit.Lost != "" { // unless it was removed between the two questions
			_, err := d.container(ctx, cli, s.ID)
			if ok = !errors.Is(err, runtime.ErrNotFound); ok && err != nil {
				return nil, fmt.Errorf("list containers: %w", err)
			}
		}
		if ok {
			out = append(out, s)
		}
	}
	return out, nil
}

// Wait blocks until the task has ended. It goes on waiting over a restart of the engine.
func (d *Driver) Wait(ctx context.Context, id runtime.TaskID) (model.Exit, error) {
	for {
		exit, err := d.waitOnce(ctx, id)
		if err == nil || ctx.Err() != nil || !errors.Is(err, errAgain) {
			return exit, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond): // the shim or the engine has just gone; containerd needs a moment to notice
		}
	}
}

// errAgain says that the engine or a shim went away during a call.
var errAgain = errors.New("the engine was interrupted")

func (d *Driver) waitOnce(ctx context.Context, id runtime.TaskID) (model.Exit, error) {
	ctx, cli, err := d.client(ctx)
	if err != nil {
		return model.Exit{}, fmt.Errorf("wait for %s: %w", id, err)
	}
	c, p, err := d.find(ctx, cli, id)
	if err != nil {
		return model.Exit{}, fmt.Errorf("wait for %s: %w", id, again(err))
	}
	if runs(p) {
		r, err := cli.TaskService().Wait(ctx, &tasksapi.WaitRequest{ContainerID: c.ID})
		if err != nil {
			return model.Exit{}, fmt.Errorf("wait for %s: %w: %w", id, errAgain, d.failure(ctx, err))
		}
		return d.exit(c, r.ExitStatus, r.ExitedAt.AsTime()), nil
	}
	s, ok := d.state(c, p)
	if ok && s.Exit != nil && s.Exit.Lost != "" { // what is said to have ended must not run on
		if err := d.group(id).Kill(ctx); err != nil {
			return model.Exit{}, fmt.Errorf("wait for %s: %w", id, err)
		}
	}
	if !ok || s.Exit == nil {
		return model.Exit{}, fmt.Errorf("wait for %s: %w", id, errAgain) // in the midst of being started
	}
	return *s.Exit, nil
}

// again turns a failure of the engine into a reason to ask again.
func again(err error) error {
	if errors.Is(err, runtime.ErrUnavailable) {
		return fmt.Errorf("%w: %w", errAgain, err)
	}
	return err
}

// Signal sends a signal to the task's program.
func (d *Driver) Signal(ctx context.Context, id runtime.TaskID, signal int) error {
	ctx, cli, err := d.client(ctx)
	if err != nil {
		return fmt.Errorf("signal %s: %w", id, err)
	}
	_, err = cli.TaskService().Kill(ctx, &tasksapi.KillRequest{ContainerID: string(id), Signal: uint32(signal)})
	if err == nil {
		return nil
	}
	if err = d.failure(ctx, err); !ended(err) {
		return fmt.Errorf("signal %s: %w", id, err)
	}
	_, _, err = d.find(ctx, cli, id) // it has ended, or never was
	if err != nil {
		return fmt.Errorf("signal %s: %w", id, err)
	}
	return nil
}

// Remove kills what runs of the task and frees what it holds.
func (d *Driver) Remove(ctx context.Context, id runtime.TaskID) error {
	ctx, cli, err := d.client(ctx)
	if err != nil {
		return fmt.Errorf("remove %s: %w", id, err)
	}
	if err := d.remove(ctx, cli, id); err != nil {
		return fmt.Errorf("remove %s: %w", id, err)
	}
	return nil
}

// remove takes apart what Start built, in reverse, whatever of it is there.
func (d *Driver) remove(ctx context.Context, cli *client.Client, id runtime.TaskID) error {
	defer d.mark(id, removing)()
	if err := d.removeTask(ctx, cli, id); err != nil {
		return err
	}
	if err := d.removeBundle(ctx, id); err != nil {
		return err
	}
	err := cli.ContainerService().Delete(ctx, string(id))
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container: %w", d.failure(ctx, err))
	}
	err = cli.SnapshotService(d.snapshotter).Remove(ctx, string(id))
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete snapshot: %w", d.failure(ctx, err))
	}
	return nil
}

// bundleTimeout is how long containerd may take to clean up after a shim that was killed.
const bundleTimeout = 5 * time.Second

// removeBundle sees to it that nothing of the task runs or is mounted. That is so once its task is deleted, but if its
// shim was killed, containerd cleans up meanwhile or has failed to.
func (d *Driver) removeBundle(ctx context.Context, id runtime.TaskID) error {
	dir := d.engine.path(filepath.Join("state", "io.containerd.runtime.v2.task", namespace, string(id)))
	for end := time.Now().Add(bundleTimeout); exists(dir) && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	g := d.group(id)
	if g.Exists() {
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			return err
		}
	}
	work := d.engine.path(filepath.Join("root", "io.containerd.runtime.v2.task", namespace, string(id)))
	if !exists(dir) && !exists(work) {
		return nil
	}
	return errors.Join(removeMounted(dir), os.RemoveAll(work), d.engine.sweepSockets())
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// removeTask kills the task's processes, waits for their end and deletes it.
func (d *Driver) removeTask(ctx context.Context, cli *client.Client, id runtime.TaskID) error {
	tasks := cli.TaskService()
	r, err := tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: string(id)})
	if err = d.failure(ctx, err); errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look up task: %w", err)
	}
	if r.Process.Status != tasktypes.Status_STOPPED {
		if err := d.killTask(ctx, tasks, id); err != nil {
			return err
		}
	}
	_, err = tasks.Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: string(id)})
	if err = d.failure(ctx, err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete task: %w", err)
	}
	return nil
}

func (d *Driver) killTask(ctx context.Context, tasks tasksapi.TasksClient, id runtime.TaskID) error {
	_, err := tasks.Kill(ctx, &tasksapi.KillRequest{ContainerID: string(id), Signal: uint32(unix.SIGKILL)})
	if err = d.failure(ctx, err); err != nil && !ended(err) {
		return fmt.Errorf("kill task: %w", err)
	}
	_, err = tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: string(id)})
	if err = d.failure(ctx, err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("wait for task: %w", err)
	}
	return nil
}

// ended reports whether a signal failed since the process has ended.
func ended(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)
}

// Usage returns what a running task uses.
func (d *Driver) Usage(_ context.Context, id runtime.TaskID) (model.Usage, error) {
	u, err := d.group(id).Usage()
	if errors.Is(err, fs.ErrNotExist) {
		return model.Usage{}, fmt.Errorf("measure %s: %w", id, runtime.ErrNotFound)
	}
	if err != nil {
		return model.Usage{}, fmt.Errorf("measure %s: %w", id, err)
	}
	return model.Usage{At: time.Now(), CPUTime: model.Duration(u.CPUTime), Memory: u.Memory, Peak: u.Peak}, nil
}

// StopSignal returns the signal by which the task's image wants to be stopped, or 0.
func (d *Driver) StopSignal(ctx context.Context, id runtime.TaskID) (int, error) {
	ctx, cli, err := d.client(ctx)
	if err != nil {
		return 0, fmt.Errorf("find stop signal of %s: %w", id, err)
	}
	c, err := d.container(ctx, cli, id)
	if err != nil {
		return 0, fmt.Errorf("find stop signal of %s: %w", id, err)
	}
	n, _ := strconv.Atoi(c.Labels[labelStop]) // no label: none
	return n, nil
}

func (d *Driver) container(ctx context.Context, cli *client.Client, id runtime.TaskID) (containers.Container, error) {
	c, err := cli.ContainerService().Get(ctx, string(id))
	if errdefs.IsNotFound(err) {
		return c, runtime.ErrNotFound
	}
	return c, d.failure(ctx, err)
}

// find returns a container and its process, nil when it has none.
func (d *Driver) find(ctx context.Context, cli *client.Client, id runtime.TaskID) (containers.Container, *tasktypes.Process, error) {
	c, err := d.container(ctx, cli, id)
	if err != nil {
		return c, nil, err
	}
	r, err := cli.TaskService().Get(ctx, &tasksapi.GetRequest{ContainerID: c.ID})
	if err = d.failure(ctx, err); err != nil && !errdefs.IsNotFound(err) {
		return c, nil, err
	}
	return c, r.GetProcess(), nil
}

// state tells how a task stands. It is not ok while the task is being started or removed, or when it is none of this
// driver's.
func (d *Driver) state(c containers.Container, p *tasktypes.Process) (runtime.State, bool) {
	attempt, err := strconv.ParseUint(c.Labels[labelAttempt], 10, 32)
	if err != nil {
		return runtime.State{}, false
	}
	s := runtime.State{ID: runtime.TaskID(c.ID), Attempt: uint32(attempt), Started: c.CreatedAt}
	if at, err := time.Parse(time.RFC3339Nano, c.Labels[labelStarted]); err == nil {
		s.Started = at
	}
	op := d.operation(s.ID)
	switch {
	case runs(p):
		s.PID = int(p.Pid)
	case p.GetStatus() == tasktypes.Status_STOPPED:
		exit := d.exit(c, p.ExitStatus, p.ExitedAt.AsTime())
		s.Exit = &exit
	case op == removing || op == starting && !begun(c, p):
		return s, false
	default:
		s.Exit = &model.Exit{Code: lostCode, Lost: d.whyLost(c), At: time.Now()}
	}
	return s, true
}

func runs(p *tasktypes.Process) bool {
	s := p.GetStatus()
	return s == tasktypes.Status_RUNNING || s == tasktypes.Status_PAUSED || s == tasktypes.Status_PAUSING
}

// begun reports whether the container's program was ever executed.
func begun(c containers.Container, p *tasktypes.Process) bool {
	return c.Labels[labelStarted] != "" || runs(p) || p.GetStatus() == tasktypes.Status_STOPPED
}

// operation is what this driver is doing to a task, so that the parts of it which are there are not taken for a whole.
type operation int

const (
	none operation = iota
	starting
	removing
)

func (d *Driver) operation(id runtime.TaskID) operation {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.busy[id]
}

// mark notes an operation until the function that it returns is called.
func (d *Driver) mark(id runtime.TaskID, op operation) (done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.busy[id]
	d.busy[id] = op
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if before == none {
			delete(d.busy, id)
		} else {
			d.busy[id] = before
		}
	}
}

// whyLost says why a task that was started is not known to its engine any more.
func (d *Driver) whyLost(c containers.Container) string {
	switch {
	case c.Labels[labelBoot] != d.config.BootID:
		return "the node was restarted"
	case c.Labels[labelStarted] == "":
		return "Gantry was killed while it started the container"
	}
	return "the process that held the container was killed"
}

// exit describes how a task ended. Whether memory ran out, its cgroup tells for as long as the task is not removed.
func (d *Driver) exit(c containers.Container, code uint32, at time.Time) model.Exit {
	e := model.Exit{Code: int(code), At: at}
	if n := e.Code - 128; n > 0 && n <= 64 {
		e.Signal = n
	}
	if e.Code == 0 {
		return e
	}
	limit, err := strconv.ParseInt(c.Labels[labelMemory], 10, 64)
	if err != nil || limit == 0 {
		return e
	}
	g := d.group(runtime.TaskID(c.ID))
	if kills, err := g.OOMKills(); err != nil || kills == 0 {
		return e
	}
	e.OOM, e.Limit = true, model.Bytes(limit)
	e.Peak, _ = g.Peak() // 0 where the kernel does not tell
	return e
}

func (d *Driver) group(id runtime.TaskID) *cgroup.Group {
	return d.groups.Open("/gantry/" + d.config.Cluster + "/" + string(id))
}

// failure says of an error of containerd's whether the engine is at fault.
func (d *Driver) failure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, ok := status.FromError(err); ok { // those of some services are converted already
		err = errgrpc.ToNative(err)
	}
	if errdefs.IsUnavailable(err) || errdefs.IsCanceled(err) {
		return fmt.Errorf("%w: %w", runtime.ErrUnavailable, err)
	}
	return err
}
