// Package sim is a runtime driver that runs nothing: its tasks are entries in memory which start, end and answer signals
// as a script says. It does no I/O and keeps time by package time alone, so it works inside a testing/synctest bubble and
// thousands of nodes fit into one process.
//
// What a task does is looked up by its command: Script sets it for one command, and a command without a script runs until
// it is ended.
package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// Signals that have a meaning here.
const (
	sigKill = 9
	sigTerm = 15
)

// Behavior is what a task does. The zero value starts at once and runs until a signal ends it.
type Behavior struct {
	StartErr    error         // Start fails with it; wrap runtime.ErrInvalid for what can never start
	StartDelay  time.Duration // how long Start takes
	Exits       bool          // it ends by itself
	After       time.Duration // when, counted from start
	Code        int           // its exit code then
	OOM         bool          // it ends because it reached its memory limit; the code is 137
	IgnoreTerm  bool          // every signal but SIGKILL is ignored
	HandlesTerm bool          // SIGTERM makes it exit with Code instead of ending it
	StopDelay   time.Duration // time between a signal that ends it and its end
	Usage       model.Usage   // what Usage returns, At apart
}

// Driver is a simulated node. Make it with New; Reopen makes a second one on the same tasks.
type Driver struct {
	n *node
}

// node is the machine that drivers share.
type node struct {
	mu      sync.Mutex
	tasks   map[runtime.TaskID]*task
	scripts map[string]Behavior
	exec    func(runtime.Task, runtime.Exec) (int, error)
	down    error
	nextPID int
	starts  map[runtime.TaskID]int
}

type task struct {
	spec     runtime.Task
	behavior Behavior
	state    runtime.State
	ended    chan struct{}
	timer    *time.Timer // of the end that is to come, nil for none
}

// Compile-time checks of what the driver can do.
var (
	_ runtime.Driver = (*Driver)(nil)
	_ runtime.Execer = (*Driver)(nil)
	_ runtime.Meter  = (*Driver)(nil)
)

// New returns a node without tasks.
func New() *Driver {
	return &Driver{&node{
		tasks:   map[runtime.TaskID]*task{},
		scripts: map[string]Behavior{},
		starts:  map[runtime.TaskID]int{},
		nextPID: 1000,
	}}
}

// Reopen returns another driver for the same node, as a restarted agent would make.
func (d *Driver) Reopen() *Driver { return &Driver{d.n} }

// Script says what tasks do whose command, with its words joined by single spaces, is command. It holds for later starts.
func (d *Driver) Script(command string, b Behavior) {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	d.n.scripts[command] = b
}

// OnExec sets what Exec does; without it every program exits with 0 at once.
func (d *Driver) OnExec(f func(runtime.Task, runtime.Exec) (code int, err error)) {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	d.n.exec = f
}

// Down makes every call fail with err, until it is called with nil. Tasks run on.
func (d *Driver) Down(err error) {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	d.n.down = err
}

// Reboot ends every running task as a reboot of the node would: how is not known.
func (d *Driver) Reboot() {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	for _, t := range d.n.tasks {
		t.end(model.Exit{Lost: "the node was restarted"})
	}
}

// End makes a running task end now, as by itself.
func (d *Driver) End(id runtime.TaskID, e model.Exit) {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	if t := d.n.tasks[id]; t != nil {
		t.end(e)
	}
}

// Starts returns how often a program was started for the task.
func (d *Driver) Starts(id runtime.TaskID) int {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	return d.n.starts[id]
}

// Task returns the task as it was given to Start.
func (d *Driver) Task(id runtime.TaskID) (runtime.Task, bool) {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	t := d.n.tasks[id]
	if t == nil {
		return runtime.Task{}, false
	}
	return t.spec, true
}

// Start implements runtime.Driver.
func (d *Driver) Start(ctx context.Context, spec runtime.Task) (runtime.State, error) {
	if err := ctx.Err(); err != nil {
		return runtime.State{}, err
	}
	state, b, err := d.n.before(spec)
	if err != nil || state != nil {
		return deref(state), err
	}
	if b.StartDelay > 0 {
		timer := time.NewTimer(b.StartDelay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return runtime.State{}, ctx.Err()
		}
	}
	if b.StartErr != nil {
		return runtime.State{}, b.StartErr
	}
	return d.n.start(spec, b)
}

func deref(s *runtime.State) runtime.State {
	if s == nil {
		return runtime.State{}
	}
	return *s
}

// before returns the state of the task when it exists, else what it will do.
func (n *node) before(spec runtime.Task) (*runtime.State, Behavior, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down != nil {
		return nil, Behavior{}, n.down
	}
	if t := n.tasks[spec.ID]; t != nil {
		s, err := t.again(spec)
		return &s, Behavior{}, err
	}
	return nil, n.scripts[strings.Join(spec.Command, " ")], nil
}

func (t *task) again(spec runtime.Task) (runtime.State, error) {
	if t.spec.Attempt != spec.Attempt {
		return runtime.State{}, fmt.Errorf("start %s: attempt %d of it exists", spec.ID, t.spec.Attempt)
	}
	return t.state, nil
}

func (n *node) start(spec runtime.Task, b Behavior) (runtime.State, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if t := n.tasks[spec.ID]; t != nil {
		return t.again(spec)
	}
	n.nextPID++
	n.starts[spec.ID]++
	t := &task{spec: spec, behavior: b, ended: make(chan struct{})}
	t.state = runtime.State{ID: spec.ID, Attempt: spec.Attempt, PID: n.nextPID, Started: time.Now()}
	n.tasks[spec.ID] = t
	state := t.state
	if b.Exits || b.OOM {
		n.endIn(t, b.After, t.ownExit())
	}
	return state, nil
}

func (t *task) ownExit() model.Exit {
	if t.behavior.OOM {
		return model.Exit{Code: 128 + sigKill, Signal: sigKill, OOM: true, Peak: t.spec.Memory, Limit: t.spec.Memory}
	}
	return model.Exit{Code: t.behavior.Code}
}

// endIn makes the task end after a while, in place of an end that was planned before. The caller holds the lock.
func (n *node) endIn(t *task, after time.Duration, e model.Exit) {
	if t.timer != nil {
		t.timer.Stop()
	}
	t.timer = time.AfterFunc(after, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		t.end(e)
	})
}

// end marks the task as ended. The caller holds the lock.
func (t *task) end(e model.Exit) {
	if t.state.Exit != nil {
		return
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	e.At = time.Now()
	t.state.Exit, t.state.PID = &e, 0
	close(t.ended)
}

// find returns a task, or why not. The caller holds the lock.
func (n *node) find(id runtime.TaskID) (*task, error) {
	if n.down != nil {
		return nil, n.down
	}
	t := n.tasks[id]
	if t == nil {
		return nil, fmt.Errorf("%s: %w", id, runtime.ErrNotFound)
	}
	return t, nil
}

// Wait implements runtime.Driver.
func (d *Driver) Wait(ctx context.Context, id runtime.TaskID) (model.Exit, error) {
	d.n.mu.Lock()
	t, err := d.n.find(id)
	d.n.mu.Unlock()
	if err != nil {
		return model.Exit{}, err
	}
	select {
	case <-t.ended:
		d.n.mu.Lock()
		defer d.n.mu.Unlock()
		return *t.state.Exit, nil
	case <-ctx.Done():
		return model.Exit{}, ctx.Err()
	}
}

// Signal implements runtime.Driver. Every signal ends the program unless its behavior says otherwise.
func (d *Driver) Signal(_ context.Context, id runtime.TaskID, signal int) error {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	t, err := d.n.find(id)
	if err != nil || t.state.Exit != nil {
		return err
	}
	e := model.Exit{Code: 128 + signal, Signal: signal}
	switch {
	case signal == sigKill:
	case t.behavior.IgnoreTerm:
		return nil
	case signal == sigTerm && t.behavior.HandlesTerm:
		e = model.Exit{Code: t.behavior.Code}
	}
	if t.behavior.StopDelay == 0 || signal == sigKill {
		t.end(e)
		return nil
	}
	d.n.endIn(t, t.behavior.StopDelay, e)
	return nil
}

// Remove implements runtime.Driver.
func (d *Driver) Remove(_ context.Context, id runtime.TaskID) error {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	if d.n.down != nil {
		return d.n.down
	}
	if t := d.n.tasks[id]; t != nil {
		t.end(model.Exit{Code: 128 + sigKill, Signal: sigKill})
		delete(d.n.tasks, id)
	}
	return nil
}

// List implements runtime.Driver. Tasks come in the order of their ids.
func (d *Driver) List(context.Context) ([]runtime.State, error) {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	if d.n.down != nil {
		return nil, d.n.down
	}
	out := make([]runtime.State, 0, len(d.n.tasks))
	for _, t := range d.n.tasks {
		out = append(out, t.state)
	}
	slices.SortFunc(out, func(a, b runtime.State) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out, nil
}

// Exec implements runtime.Execer with what OnExec set.
func (d *Driver) Exec(ctx context.Context, id runtime.TaskID, e runtime.Exec) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	d.n.mu.Lock()
	t, err := d.n.find(id)
	if err == nil && t.state.Exit != nil {
		err = fmt.Errorf("exec in %s: it has ended: %w", id, runtime.ErrNotFound)
	}
	run := d.n.exec
	d.n.mu.Unlock()
	if err != nil || run == nil {
		return 0, err
	}
	return run(t.spec, e)
}

// Usage implements runtime.Meter with what the task's behavior says.
func (d *Driver) Usage(_ context.Context, id runtime.TaskID) (model.Usage, error) {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	t, err := d.n.find(id)
	if err != nil {
		return model.Usage{}, err
	}
	u := t.behavior.Usage
	u.At = time.Now()
	return u, nil
}
