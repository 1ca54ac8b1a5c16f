// Package loss runs fleet, orchestrator and scheduler together over nodes that are lost, come back and flap.
package loss

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/fleet"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/orchestrator/app"
	"github.com/gantry-os/gantry/scheduler"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

const (
	nodes  = 8
	seeds  = 12
	trials = 60 // things that happen with each

	mostWanted = 7 // instances of an app
	surge      = 2
)

// TestNodesComeAndGo protects, over random losses, returns, flaps and deaths of nodes and deployments in the midst of them:
// no slot is held by two programs at any time, on whatever node, reachable or not; nothing that is replaced leaves more
// behind than was asked for; and once all is healed, exactly what was asked for runs, and nothing else.
func TestNodesComeAndGo(t *testing.T) {
	for seed := range uint64(seeds) {
		synctest.Test(t, func(t *testing.T) { newWorld(t, seed).live() })
	}
}

// TestUnstableNodeTakesNoNewWork protects that a node which comes and goes gets work again once it was calm, by itself, and
// that what waits for it says so.
func TestUnstableNodeTakesNoNewWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		ctx, end := w.start(1)
		defer end()
		n := w.nodes[0]
		for range 3 {
			n.connect(ctx)
			w.pass(time.Minute)
			n.cut()
			w.pass(time.Minute)
		}
		n.connect(ctx)
		w.deploy("/web", 1)
		w.pass(time.Minute)
		for i := range w.store.View().InstancesOf("/web") {
			if i.Node != "" || !strings.Contains(i.Pending, "unstable: it takes no new work until") {
				t.Errorf("%s is on %q, and waits: %q", i.ID, i.Node, i.Pending)
			}
		}
		w.pass(time.Minute + 5*time.Second)
		if wrong := w.unlike(); wrong != "" {
			t.Error(wrong)
		}
		n.cut()
	})
}

type world struct {
	t     *testing.T
	at    string
	rnd   *rand.Rand
	store *state.DB
	fleet *fleet.Fleet
	nodes []*node
	ver   uint64
	over  int // for how many seconds too many instances were known
}

func newWorld(t *testing.T, seed uint64) *world {
	return &world{t: t, at: fmt.Sprint("seed ", seed), rnd: rand.New(rand.NewPCG(seed, 9)), store: memory.Open(time.Now)}
}

var errEnd = errors.New("the end")

// start runs all loops beside some nodes that are not connected yet.
func (w *world) start(nodes int) (ctx context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(w.t.Context())
	var parts sync.WaitGroup
	log := slog.New(slog.DiscardHandler)
	w.fleet = fleet.New(w.store, fleet.Config{Logger: log})
	for name, run := range map[string]func(context.Context) error{
		"fleet":        w.fleet.Run,
		"orchestrator": app.New(w.store, app.Config{Logger: log}).Run,
		"scheduler":    scheduler.New(w.store, scheduler.Config{Logger: log}).Run,
	} {
		parts.Go(func() {
			if err := run(ctx); !errors.Is(err, errEnd) {
				w.t.Errorf("%s: %s: %v", w.at, name, err)
			}
		})
	}
	for n := range nodes {
		w.nodes = append(w.nodes, &node{w: w, id: model.NodeID(fmt.Sprint("n", n)), runs: map[model.InstanceID]*program{}})
	}
	return ctx, func() { cancel(errEnd); parts.Wait() }
}

func (w *world) live() {
	ctx, end := w.start(nodes)
	defer end()
	for _, n := range w.nodes {
		n.connect(ctx)
	}
	w.deploy("/web", 6)
	w.deploy("/db", 3)
	for range trials {
		w.happen(ctx)
		seconds := w.rnd.IntN(90)
		if w.rnd.IntN(12) == 0 {
			seconds = 12 * 60 // long enough for instances to be given up
		}
		for range seconds {
			w.pass(time.Second)
		}
	}
	w.heal(ctx)
	for _, n := range w.nodes {
		n.cut()
	}
}

// happen lets something happen to a node or an app.
func (w *world) happen(ctx context.Context) {
	n := w.nodes[w.rnd.IntN(len(w.nodes))]
	switch w.rnd.IntN(12) {
	case 0, 1, 2, 3:
		n.cut()
	case 4, 5, 6, 7:
		n.connect(ctx)
	case 8: // a partition of many
		for _, n := range w.nodes[:w.rnd.IntN(len(w.nodes))] {
			n.cut()
		}
	case 9:
		n.reboot()
	case 10:
		w.deploy("/web", 4+w.rnd.IntN(4))
	case 11:
		w.deploy("/db", 2+w.rnd.IntN(3))
	}
}

func (w *world) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
	w.check()
}

// check holds what is true at every moment.
func (w *world) check() {
	held := map[string]model.InstanceID{}
	for _, n := range w.nodes {
		n.mu.Lock()
		for id, p := range n.runs {
			if p.slot == 0 || !p.up {
				continue
			}
			key := fmt.Sprint(p.app, p.slot)
			if other := held[key]; other != "" {
				w.t.Fatalf("%s: %s and %s run in slot %s at once", w.at, other, id, key)
			}
			held[key] = id
		}
		n.mu.Unlock()
	}
	known := map[model.AppID]int{}
	for i := range w.store.View().Instances() {
		if i.Live() && i.Status.Away.IsZero() && time.Since(i.Created) > time.Minute {
			known[i.App]++
		}
	}
	if known["/web"] <= mostWanted+surge {
		w.over = 0
	}
	for id, n := range known {
		if n > mostWanted+surge {
			w.over++
		}
		if w.over > 5 { // those that came back, with those that stood in for them
			w.t.Fatalf("%s: %d instances of %s are wanted and known for seconds", w.at, n, id)
		}
	}
}

func (w *world) deploy(id model.AppID, count int) {
	w.ver++
	spec := &model.Spec{
		ID: id, Instances: &count, Containers: []model.Container{{Shell: fmt.Sprint("run ", w.ver%3), CPUs: 100, Memory: 64 * model.MiB}},
		Update: &model.Update{MinHealthyTime: new(model.Duration)},
	}
	if id == "/db" {
		spec.Volumes = []model.Volume{{Name: "data", Persistent: &model.Persistent{Size: model.GiB}}}
	}
	if errs := spec.Validate(); errs != nil {
		w.t.Fatal(errs)
	}
	w.update(func(tx *state.Tx) {
		a := &model.App{ID: id, Created: time.Now()}
		from := uint64(0)
		if old := tx.App(id); old != nil {
			*a = *old
			from = tx.Target(id).Version
			if tx.Version(id, a.Version).Version >= w.ver {
				return
			}
		}
		a.Version, a.Deployment = w.ver, model.DeploymentID(fmt.Sprint("d-", w.ver))
		tx.PutApp(a)
		tx.PutVersion(&model.AppVersion{App: id, Version: w.ver, Created: time.Now(), Spec: spec})
		tx.PutDeployment(&model.Deployment{ID: a.Deployment, App: id, Kind: model.DeployUpdate, From: from, To: w.ver, Created: time.Now(), State: model.DeployRunning})
	})
}

func (w *world) update(fn func(*state.Tx)) {
	w.t.Helper()
	if err := w.store.Update(w.t.Context(), func(tx *state.Tx) error { fn(tx); return nil }); err != nil {
		w.t.Fatal(err)
	}
}

// heal lets all nodes come back, and holds that all is as asked some time after.
func (w *world) heal(ctx context.Context) {
	for _, n := range w.nodes {
		n.connect(ctx)
	}
	wrong := ""
	for range 40 * 60 {
		w.pass(time.Second)
		if wrong = w.unlike(); wrong == "" {
			return
		}
	}
	w.t.Fatalf("%s: a while after healing: %s", w.at, wrong)
}

// unlike says how what runs differs from what was asked for.
func (w *world) unlike() string {
	v := w.store.View()
	up := map[model.InstanceID]bool{}
	for _, n := range w.nodes {
		n.mu.Lock()
		for id, p := range n.runs {
			up[id] = p.up
		}
		n.mu.Unlock()
	}
	for a := range v.Apps() {
		want, live := v.Target(a.ID).Spec.Count(), 0
		for i := range v.InstancesOf(a.ID) {
			_, healthy := i.HealthySince()
			switch {
			case i.Over():
			case !healthy || !up[i.ID]:
				return fmt.Sprintf("%s is %+v on %s, and its program runs: %t; pending: %s", i.ID, i.Status, i.Node, up[i.ID], i.Pending)
			default:
				live++
				delete(up, i.ID)
			}
		}
		if live != want {
			return fmt.Sprintf("%d of %s run, want %d", live, a.ID, want)
		}
	}
	for id, runs := range up {
		if runs {
			return fmt.Sprintf("%s runs, and nobody asked for it", id)
		}
	}
	return ""
}

// node is a machine with an agent that does as the protocol says, and goes on alone while it is cut off.
type node struct {
	w    *world
	id   model.NodeID
	end  context.CancelFunc // nil when it has no session
	gone chan struct{}      // closed when the session has ended

	mu   sync.Mutex
	runs map[model.InstanceID]*program
	wake chan struct{} // of the session
}

type program struct {
	app    model.AppID
	slot   uint32
	up     bool
	halt   bool
	status model.Status
	dirty  bool
}

func (n *node) record() *model.Node {
	return &model.Node{ID: n.id, Name: string(n.id), Capacity: model.Resources{CPUs: 4000, Memory: 4 * model.GiB, Disk: 100 * model.GiB},
		Ports: model.PortRange{First: 31000, Last: 31100}, OCI: model.Ability{OK: true}, Isolated: model.Ability{OK: true}}
}

// connect opens a session, if there is none.
func (n *node) connect(ctx context.Context) {
	if n.end != nil {
		return
	}
	ctx, n.end = context.WithCancel(ctx)
	gone := make(chan struct{})
	n.gone = gone
	go func() {
		defer close(gone)
		n.serve(ctx)
	}()
}

// cut ends the session: what runs goes on.
func (n *node) cut() {
	if n.end == nil {
		return
	}
	n.end()
	<-n.gone
	n.end = nil
}

// reboot ends all programs; they begin again.
func (n *node) reboot() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.runs {
		if p.up {
			p.up = false
			p.set(model.PhaseAssigned)
		}
	}
	n.awake()
}

func (p *program) set(phase model.Phase) {
	attempt := p.status.Attempt
	if phase == model.PhaseAssigned {
		phase, attempt = model.PhasePreparing, attempt+1
	}
	p.status = model.Status{Phase: phase, Attempt: max(1, attempt), Since: time.Now(), Ready: phase == model.PhaseRunning}
	p.up = phase == model.PhaseRunning
	p.dirty = true
}

func (n *node) awake() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *node) serve(ctx context.Context) {
	link := n.w.fleet.Dial(ctx, nil)
	if link.Send(ctx, wire.Up{Hello: n.record()}) != nil {
		return
	}
	n.mu.Lock()
	n.wake = make(chan struct{}, 1)
	n.mu.Unlock()
	downs := make(chan wire.Down)
	go func() {
		defer close(downs)
		for {
			d, err := link.Recv(ctx)
			if err != nil {
				return
			}
			downs <- d
		}
	}()
	step := time.NewTicker(time.Second)
	defer step.Stop()
	for {
		select {
		case d, ok := <-downs:
			if !ok {
				return
			}
			n.apply(d)
		case <-step.C:
			n.step()
		case <-n.wake:
		}
		if link.Send(ctx, wire.Up{Reports: n.reports()}) != nil {
			for range downs {
			}
			return
		}
	}
}

func (n *node) apply(d wire.Down) {
	n.mu.Lock()
	defer n.mu.Unlock()
	named := map[model.InstanceID]bool{}
	for _, a := range d.Set {
		named[a.ID] = true
		p := n.runs[a.ID]
		if p == nil {
			if a.Over {
				continue
			}
			p = &program{app: a.App, slot: a.Slot, status: model.Status{Phase: model.PhaseAssigned, Attempt: a.Attempt}}
			n.runs[a.ID] = p
		}
		p.halt = p.halt || a.Over || a.Desired == model.Halt
		p.dirty = true
	}
	for id, p := range n.runs {
		if d.Full && !named[id] || slices.Contains(d.Drop, id) {
			p.halt = true
		}
		p.dirty = p.dirty || d.Full
	}
}

// step moves every program on.
func (n *node) step() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.runs {
		switch {
		case p.status.Phase == model.PhaseStopped:
		case p.halt:
			p.set(model.PhaseStopped)
		case p.status.Phase == model.PhaseAssigned || p.status.Phase == model.PhasePreparing:
			p.set(model.PhaseRunning)
		}
	}
}

func (n *node) reports() []wire.Report {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []wire.Report
	for _, id := range slices.Sorted(maps.Keys(n.runs)) {
		if p := n.runs[id]; p.dirty {
			out = append(out, wire.Report{ID: id, Status: p.status})
			p.dirty = false
		}
	}
	return out
}
