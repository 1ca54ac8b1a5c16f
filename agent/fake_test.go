package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// fakeDriver holds tasks in memory and outlives the agents of a test, as an engine does.
type fakeDriver struct {
	mu       sync.Mutex
	tasks    map[runtime.TaskID]*fakeTask
	pids     int
	starts   []runtime.Task   // every program that was run
	signals  []string         // "task signal"
	down     bool             // it does not answer
	startErr map[string]error // by container
	ignore   map[int]bool     // signals that programs do not end by
	block    chan struct{}    // Start waits for it when not nil
	busy     int              // Starts at work
	mostBusy int
	execCode int
	pullErr  error
	pulls    int
	pull     chan struct{} // Pull waits for it when not nil
	stopSig  int
}

type fakeTask struct {
	state runtime.State
	done  chan struct{}
}

func newFake() *fakeDriver {
	return &fakeDriver{tasks: map[runtime.TaskID]*fakeTask{}, startErr: map[string]error{}, ignore: map[int]bool{}, pids: 100}
}

func (d *fakeDriver) Start(ctx context.Context, t runtime.Task) (runtime.State, error) {
	d.mu.Lock()
	block := d.block
	d.busy++
	d.mostBusy = max(d.mostBusy, d.busy)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.busy--
		d.mu.Unlock()
	}()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return runtime.State{}, ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return runtime.State{}, fmt.Errorf("start: %w", runtime.ErrUnavailable)
	}
	if old := d.tasks[t.ID]; old != nil {
		if old.state.Attempt != t.Attempt {
			return runtime.State{}, errors.New("another attempt exists")
		}
		return old.state, nil
	}
	_, name, _ := cut(t.ID)
	if err := d.startErr[name]; err != nil {
		return runtime.State{}, err
	}
	d.pids++
	d.starts = append(d.starts, t)
	task := &fakeTask{state: runtime.State{ID: t.ID, Attempt: t.Attempt, PID: d.pids, Started: time.Now()}, done: make(chan struct{})}
	d.tasks[t.ID] = task
	return task.state, nil
}

func cut(id runtime.TaskID) (string, string, bool) {
	for i := range id {
		if id[i] == '.' {
			return string(id[:i]), string(id[i+1:]), true
		}
	}
	return string(id), "", false
}

func (d *fakeDriver) Wait(ctx context.Context, id runtime.TaskID) (model.Exit, error) {
	d.mu.Lock()
	t := d.tasks[id]
	d.mu.Unlock()
	if t == nil {
		return model.Exit{}, runtime.ErrNotFound
	}
	select {
	case <-t.done:
		d.mu.Lock()
		defer d.mu.Unlock()
		return *t.state.Exit, nil
	case <-ctx.Done():
		return model.Exit{}, ctx.Err()
	}
}

func (d *fakeDriver) Signal(_ context.Context, id runtime.TaskID, sig int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return runtime.ErrUnavailable
	}
	d.signals = append(d.signals, fmt.Sprintf("%s %d", id, sig))
	if t := d.tasks[id]; t != nil && !d.ignore[sig] {
		d.endLocked(t, model.Exit{Code: 128 + sig, Signal: sig, At: time.Now()})
	}
	return nil
}

func (d *fakeDriver) Remove(_ context.Context, id runtime.TaskID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return runtime.ErrUnavailable
	}
	if t := d.tasks[id]; t != nil {
		d.endLocked(t, model.Exit{Code: 137, Signal: 9, At: time.Now()})
		delete(d.tasks, id)
	}
	return nil
}

func (d *fakeDriver) List(context.Context) ([]runtime.State, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return nil, runtime.ErrUnavailable
	}
	var out []runtime.State
	for _, t := range d.tasks {
		out = append(out, t.state)
	}
	return out, nil
}

func (d *fakeDriver) Exec(_ context.Context, id runtime.TaskID, e runtime.Exec) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.tasks[id]; t == nil || t.state.Exit != nil {
		return 0, runtime.ErrNotFound
	}
	fmt.Fprint(e.Stdout, e.Command)
	return d.execCode, nil
}

func (d *fakeDriver) StopSignal(context.Context, runtime.TaskID) (int, error) { return d.stopSig, nil }

func (d *fakeDriver) Usage(context.Context, runtime.TaskID) (model.Usage, error) {
	return model.Usage{CPUTime: model.Duration(time.Second), Memory: 10 * model.MiB}, nil
}

func (d *fakeDriver) Pull(ctx context.Context, ref string, _ model.PullPolicy, _ *model.RegistryAuth, say func(string)) (string, error) {
	d.mu.Lock()
	d.pulls++
	wait, err := d.pull, d.pullErr
	d.mu.Unlock()
	say("pulling " + ref)
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	return "sha256:0", err
}

func (d *fakeDriver) Import(context.Context, io.Reader) ([]string, error) { return []string{"a"}, nil }

func (d *fakeDriver) ListImages(context.Context) ([]runtime.Image, error) {
	return []runtime.Image{{Name: "a"}}, nil
}

func (d *fakeDriver) endLocked(t *fakeTask, e model.Exit) {
	if t.state.Exit == nil {
		t.state.Exit, t.state.PID = &e, 0
		close(t.done)
	}
}

// exit ends a program.
func (d *fakeDriver) exit(id runtime.TaskID, e model.Exit) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.At = time.Now()
	d.endLocked(d.tasks[id], e)
}

func (d *fakeDriver) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// started returns how many programs were run.
func (d *fakeDriver) started() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.starts)
}

func (d *fakeDriver) held() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for id := range maps.Keys(d.tasks) {
		out = append(out, string(id))
	}
	slices.Sort(out)
	return out
}

// server is the other end of a session: it keeps every report and checks that none goes back in life.
type server struct {
	t    *testing.T
	down chan wire.Down

	// forgives reports that are old news, which a server ignores: an agent that lost a record tells again how far it is.
	forgives bool

	mu      sync.Mutex
	hello   *model.Node
	status  map[model.InstanceID]model.Status
	history map[model.InstanceID][]string // "attempt phase"
	sends   int
	removed []model.VolumeID
}

func (s *server) Recv(ctx context.Context) (wire.Down, error) {
	select {
	case d := <-s.down:
		return d, nil
	case <-ctx.Done():
		return wire.Down{}, ctx.Err()
	}
}

func (s *server) Send(_ context.Context, u wire.Up) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sends++
	s.removed = append(s.removed, u.RemovedVolumes...)
	if u.Hello != nil {
		s.hello = u.Hello
	}
	for _, r := range u.Reports {
		old, known := s.status[r.ID]
		if known && !s.forgives && !r.Status.CanFollow(old) && old.Phase != model.PhaseStopped {
			s.t.Errorf("%s: %d %s was reported after %d %s", r.ID, r.Status.Attempt, r.Status.Phase, old.Attempt, old.Phase)
		}
		if known && s.forgives && !r.Status.CanFollow(old) {
			continue
		}
		s.status[r.ID] = r.Status
		step := fmt.Sprintf("%d %s", r.Status.Attempt, r.Status.Phase)
		if h := s.history[r.ID]; len(h) == 0 || h[len(h)-1] != step {
			s.history[r.ID] = append(h, step)
		}
	}
	return nil
}

func (s *server) get(id model.InstanceID) model.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status[id]
}

// world is a node whose agent can be ended and started again.
type world struct {
	t    *testing.T
	dir  string
	node model.Node
	oci  *fakeDriver
	proc *fakeDriver
	srv  *server
	gpus gpuDriver

	kept, dropped []model.VolumeID // what the server says of volumes when the agent connects

	agent *Agent
	end   func()
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), oci: newFake(), proc: newFake()}
	w.node = model.Node{ID: "n1", Name: "node", Addr: "127.0.0.1", Isolated: model.Ability{OK: true}}
	w.srv = &server{t: t, down: make(chan wire.Down, 100), status: map[model.InstanceID]model.Status{}, history: map[model.InstanceID][]string{}}
	return w
}

// up starts the agent and a session with a full set of assignments. Without a set there is no session.
func (w *world) up(full ...wire.Assignment) {
	w.t.Helper()
	a, err := New(Config{Dir: w.dir, Node: w.node, OCI: w.oci, Process: w.proc, Logger: slog.New(slog.DiscardHandler), Starts: 4, PortFree: anyPort, gpus: w.gpus})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := a.Start(ctx); err != nil {
		w.t.Fatal(err)
	}
	var session sync.WaitGroup
	if full != nil {
		w.srv.down <- wire.Down{Full: true, Set: full, Volumes: w.kept, DropVolumes: w.dropped}
		session.Go(func() { a.Session(ctx, w.srv) })
	}
	w.agent = a
	w.end = func() {
		cancel()
		session.Wait()
		a.Wait()
		w.end = func() {}
	}
	synctest.Wait()
}

func (w *world) send(d wire.Down) {
	w.srv.down <- d
	w.wait(50 * time.Millisecond)
}

// wait lets time pass, and all that follows from it.
func (w *world) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) status(id model.InstanceID) model.Status {
	w.t.Helper()
	p := w.agent.pump(id)
	if p == nil {
		w.t.Fatalf("the agent does not know %s", id)
	}
	return p.status()
}

func (w *world) wantPhase(id model.InstanceID, attempt uint32, phase model.Phase) model.Status {
	w.t.Helper()
	s := w.status(id)
	if s.Attempt != attempt || s.Phase != phase {
		w.t.Fatalf("%s is in attempt %d %s (%s), want %d %s", id, s.Attempt, s.Phase, s.Message, attempt, phase)
	}
	return s
}

func program(id model.InstanceID, change ...func(*model.Spec)) wire.Assignment {
	spec := &model.Spec{ID: "/app", Containers: []model.Container{{Command: []string{"sleep", "1"}}}}
	for _, f := range change {
		f(spec)
	}
	return wire.Assignment{ID: id, App: "/app", Version: 3, Desired: model.Run, Spec: spec.WithDefaults()}
}

func stop(a wire.Assignment) wire.Assignment {
	a.Desired = model.Halt
	return a
}
