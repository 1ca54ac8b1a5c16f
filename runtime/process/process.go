// Package process runs programs of the node itself, without an image.
//
// Every task has a helper of its own, gantry-shim (see shim/shim.c), which outlives the agent: it starts the program,
// writes its output to the log files, and writes down how it ended. There is nothing that all tasks depend on. Where
// Gantry may (see CanIsolate), a task gets its own pid and mount namespaces, whose init is the shim, and a cgroup for its
// program; the shim itself stays outside of the cgroup. Killing the shim ends the task.
//
// Without isolation, a task shares the node's namespaces and has no limits. Its descendants are still found and ended,
// because the shim adopts them.
//
// Truth is in the file system: a directory per task, whose files shim/shim.c lists. A running shim holds a lock on one of
// them, by which the kernel tells its pid, so a pid that another process has got since is never mistaken for it. A Driver
// holds a pidfd for each running task, and waits for all of them through the poller of the Go runtime.
package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/cgroup"
)

// Config is what a Driver needs.
type Config struct {
	Shim     string       // absolute path of gantry-shim
	StateDir string       // a directory for the tasks' state, made when it does not exist
	Cluster  string       // short name that keeps the cgroups of Gantrys on one machine apart
	Isolate  bool         // namespaces and cgroups; New fails when CanIsolate says no
	Logger   *slog.Logger // nil for slog.Default
}

// Driver runs tasks. It implements runtime.Driver, runtime.Execer and runtime.Meter.
type Driver struct {
	cfg  Config
	log  *slog.Logger
	boot string       // id of the node's current boot
	tree *cgroup.Tree // nil without isolation
	self *user.User   // whom Gantry runs as
	null *os.File

	mu       sync.Mutex
	tasks    map[runtime.TaskID]*task
	busy     map[runtime.TaskID]bool // being started or removed: what is on disk is in motion
	closed   chan struct{}
	watchers sync.WaitGroup
}

// Compile-time checks of what the driver can do.
var (
	_ runtime.Driver = (*Driver)(nil)
	_ runtime.Execer = (*Driver)(nil)
	_ runtime.Meter  = (*Driver)(nil)
)

// New returns a driver for the tasks in the state directory. It adopts those that run, learns how those that ended did, and
// clears away what an agent left that was killed in the middle of a start.
func New(cfg Config) (*Driver, error) {
	d := &Driver{
		cfg: cfg, log: cfg.Logger, closed: make(chan struct{}),
		tasks: map[runtime.TaskID]*task{}, busy: map[runtime.TaskID]bool{},
	}
	if d.log == nil {
		d.log = slog.Default()
	}
	if err := d.prepare(); err != nil {
		return nil, fmt.Errorf("open process driver: %w", err)
	}
	if err := d.adoptAll(); err != nil {
		return nil, fmt.Errorf("open process driver: %w", errors.Join(err, d.Close()))
	}
	return d, nil
}

func (d *Driver) prepare() (err error) {
	if !filepath.IsAbs(d.cfg.Shim) || !filepath.IsAbs(d.cfg.StateDir) {
		return fmt.Errorf("paths of the shim (%q) and the state (%q) must be absolute", d.cfg.Shim, d.cfg.StateDir)
	}
	if err := unix.Access(d.cfg.Shim, unix.X_OK); err != nil {
		return fmt.Errorf("find the helper %s: %w", d.cfg.Shim, err)
	}
	if d.cfg.Isolate {
		if a := CanIsolate(); !a.OK {
			return errors.New(a.Why)
		}
		if d.cfg.Cluster == "" || strings.ContainsAny(d.cfg.Cluster, "/\x00") {
			return fmt.Errorf("cluster name %q cannot name a cgroup", d.cfg.Cluster)
		}
		if d.tree, err = cgroup.Find(); err != nil {
			return err
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	d.boot = strings.TrimSpace(string(boot))
	if d.self, err = user.Current(); err != nil {
		d.self = &user.User{Username: strconv.Itoa(os.Getuid()), HomeDir: "/"}
	}
	if err := os.MkdirAll(d.cfg.StateDir, 0o700); err != nil {
		return err
	}
	d.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	return err
}

// CanIsolate says whether tasks can have namespaces and cgroups here, and if not, why.
func CanIsolate() model.Ability {
	if os.Geteuid() != 0 {
		return model.Ability{Why: "Gantry does not run as root, so programs have no namespaces and no limits"}
	}
	if !mayAdminister() {
		return model.Ability{Why: "Gantry lacks the capability CAP_SYS_ADMIN, so programs have no namespaces and no limits"}
	}
	for _, ns := range []string{"pid", "mnt"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			return model.Ability{Why: "the kernel has no " + ns + " namespaces"}
		}
	}
	tree, err := cgroup.Find()
	if err != nil {
		return model.Ability{Why: err.Error()}
	}
	a := tree.Ability()
	if a.OK {
		a.Why = "pid and mount namespaces, " + a.Why
	}
	return a
}

// mayAdminister reports whether the process has CAP_SYS_ADMIN.
func mayAdminister() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if set, ok := strings.CutPrefix(line, "CapEff:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(set), 16, 64)
			return err == nil && n&(1<<unix.CAP_SYS_ADMIN) != 0
		}
	}
	return false
}

// Close lets go of all tasks, which run on. Calls in progress return an error.
func (d *Driver) Close() error {
	d.mu.Lock()
	select {
	case <-d.closed:
		d.mu.Unlock()
		return nil
	default:
	}
	close(d.closed)
	for _, t := range d.tasks {
		t.letGo()
	}
	d.mu.Unlock()
	d.watchers.Wait()
	if d.tree != nil {
		d.tree.Open(d.groupPath("")).Prune()
	}
	return d.null.Close()
}

// dir returns the directory of a task's state.
func (d *Driver) dir(id runtime.TaskID) string { return filepath.Join(d.cfg.StateDir, string(id)) }

func (d *Driver) groupPath(id runtime.TaskID) string {
	return filepath.Join("/gantry", d.cfg.Cluster, string(id))
}

// group returns the task's cgroup, nil without isolation.
func (d *Driver) group(id runtime.TaskID) *cgroup.Group {
	if d.tree == nil {
		return nil
	}
	return d.tree.Open(d.groupPath(id))
}

// gone is the prefix of directories that wait to be deleted.
const gone = ".gone-"

func (d *Driver) adoptAll() error {
	entries, err := os.ReadDir(d.cfg.StateDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if id, ok := strings.CutPrefix(e.Name(), gone); ok {
			err = errors.Join(err, d.bury(context.Background(), runtime.TaskID(id)))
			continue
		}
		id := runtime.TaskID(e.Name())
		t, aerr := d.adopt(id)
		switch {
		case errors.Is(aerr, errLeftover):
			d.log.Info("clearing away a task that was never started", "task", id)
			err = errors.Join(err, d.clear(context.Background(), id))
		case aerr != nil:
			err = errors.Join(err, aerr)
		default:
			d.mu.Lock()
			d.add(t)
			d.mu.Unlock()
		}
	}
	return err
}

// add makes the driver hold a task and watch it. The caller holds the lock.
func (d *Driver) add(t *task) {
	d.tasks[t.id] = t
	if t.shim != nil {
		d.watchers.Go(func() { d.watch(t) })
	}
}

// find returns a task that the driver holds or that has appeared on disk since.
func (d *Driver) find(id runtime.TaskID) (*task, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.findLocked(id)
}

func (d *Driver) findLocked(id runtime.TaskID) (*task, error) {
	select {
	case <-d.closed:
		return nil, fmt.Errorf("the process driver is closed: %w", runtime.ErrUnavailable)
	default:
	}
	if t := d.tasks[id]; t != nil {
		return t, nil
	}
	if d.busy[id] || checkID(id) != nil {
		return nil, fmt.Errorf("%s: %w", id, runtime.ErrNotFound)
	}
	t, err := d.adopt(id)
	if errors.Is(err, errLeftover) || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", id, runtime.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	d.add(t)
	return t, nil
}

// checkID refuses ids that are not safe as file names.
func checkID(id runtime.TaskID) error {
	if id == "" || id[0] == '.' || len(id) > 200 || strings.ContainsAny(string(id), "/\x00\n") {
		return fmt.Errorf("%w: %q is not a task id", runtime.ErrInvalid, string(id))
	}
	return nil
}

// Wait implements runtime.Driver.
func (d *Driver) Wait(ctx context.Context, id runtime.TaskID) (model.Exit, error) {
	t, err := d.find(id)
	if err != nil {
		return model.Exit{}, fmt.Errorf("wait for task: %w", err)
	}
	select {
	case <-t.done:
		return t.exit, nil
	default:
	}
	select {
	case <-t.done:
		return t.exit, nil
	case <-ctx.Done():
		return model.Exit{}, fmt.Errorf("wait for task %s: %w", id, ctx.Err())
	case <-d.closed:
		return model.Exit{}, fmt.Errorf("wait for task %s: the process driver is closed: %w", id, runtime.ErrUnavailable)
	}
}

// Signal implements runtime.Driver. The signal goes through the task's shim, which knows whether the program still exists.
func (d *Driver) Signal(_ context.Context, id runtime.TaskID, signal int) error {
	if signal < 1 || signal > 64 {
		return fmt.Errorf("signal task %s: there is no signal %d", id, signal)
	}
	t, err := d.find(id)
	if err != nil {
		return fmt.Errorf("signal task: %w", err)
	}
	if err := t.forward(signal); err != nil {
		return fmt.Errorf("signal task %s: %w", id, err)
	}
	return nil
}

// List implements runtime.Driver.
func (d *Driver) List(context.Context) ([]runtime.State, error) {
	entries, err := os.ReadDir(d.cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range entries {
		if _, err := d.findLocked(runtime.TaskID(e.Name())); err != nil && !errors.Is(err, runtime.ErrNotFound) {
			return nil, fmt.Errorf("list tasks: %w", err)
		}
	}
	out := make([]runtime.State, 0, len(d.tasks))
	for _, t := range d.tasks {
		out = append(out, t.state())
	}
	slices.SortFunc(out, func(a, b runtime.State) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out, nil
}
