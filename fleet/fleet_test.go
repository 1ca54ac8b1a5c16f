package fleet_test

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/fleet"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

// rig is a fleet on a store that holds one app with one version.
type rig struct {
	t     *testing.T
	store *state.DB
	fleet *fleet.Fleet
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, store: memory.Open(time.Now)}
	r.fleet = fleet.New(r.store, fleet.Config{Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.fleet.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	r.update(func(tx *state.Tx) {
		tx.PutVersion(&model.AppVersion{App: "/web", Version: 1, Spec: &model.Spec{
			ID: "/web", Containers: []model.Container{{Shell: "true"}},
		}})
	})
	return r
}

func (r *rig) update(fn func(*state.Tx)) {
	r.t.Helper()
	if err := r.store.Update(r.t.Context(), func(tx *state.Tx) error { fn(tx); return nil }); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) put(id model.InstanceID, node model.NodeID, phase model.Phase) {
	r.t.Helper()
	r.update(func(tx *state.Tx) {
		tx.PutInstance(&model.Instance{ID: id, App: "/web", Version: 1, Desired: model.Run, Node: node, Status: model.Status{Phase: phase}})
	})
}

// join connects a node and returns its link and first message.
func (r *rig) join(ctx context.Context, id model.NodeID) (wire.Link, wire.Down) {
	r.t.Helper()
	link := r.fleet.Dial(ctx, nil)
	if err := link.Send(r.t.Context(), wire.Up{Hello: &model.Node{ID: id, Name: string(id)}}); err != nil {
		r.t.Fatal(err)
	}
	return link, r.recv(link)
}

func (r *rig) recv(link wire.Link) wire.Down {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	d, err := link.Recv(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// A node gets all of its own assignments when it connects, and nothing of others'; then only what changed.
func TestFullThenDeltas(t *testing.T) {
	r := newRig(t)
	r.put("web-1", "a", model.PhaseAssigned)
	r.put("web-2", "b", model.PhaseAssigned)
	link, first := r.join(t.Context(), "a")
	if !first.Full || len(first.Set) != 1 || first.Set[0].ID != "web-1" {
		t.Fatalf("first message = %+v, want a full one with web-1 alone", first)
	}
	if c := first.Set[0].Spec.Containers[0]; c.Name != model.DefaultContainer || c.CPUs != model.DefaultCPUs {
		t.Errorf("the spec came without its defaults: %+v", c)
	}

	r.put("web-3", "a", model.PhaseAssigned)
	if d := r.recv(link); d.Full || len(d.Set) != 1 || d.Set[0].ID != "web-3" {
		t.Fatalf("after web-3 was placed: %+v", d)
	}
	r.update(func(tx *state.Tx) {
		i := tx.Instance("web-1").Clone()
		i.Desired = model.Halt
		tx.PutInstance(i)
	})
	if d := r.recv(link); len(d.Set) != 1 || d.Set[0].Desired != model.Halt {
		t.Fatalf("after web-1 was to stop: %+v", d)
	}
	r.update(func(tx *state.Tx) { tx.DeleteInstance("web-1") })
	if d := r.recv(link); len(d.Drop) != 1 || d.Drop[0] != "web-1" {
		t.Fatalf("after web-1 was deleted: %+v", d)
	}
}

// Reports are durable when Send returns; those that come late change nothing.
func TestReports(t *testing.T) {
	r := newRig(t)
	r.put("web-1", "a", model.PhaseAssigned)
	link, _ := r.join(t.Context(), "a")
	report := func(s model.Status) {
		t.Helper()
		if err := link.Send(t.Context(), wire.Up{Reports: []wire.Report{{ID: "web-1", Status: s}, {ID: "unknown"}}}); err != nil {
			t.Fatal(err)
		}
	}
	report(model.Status{Attempt: 1, Phase: model.PhaseRunning, Ready: true})
	if got := r.store.View().Instance("web-1").Status; got.Phase != model.PhaseRunning || !got.Ready {
		t.Fatalf("status = %+v, want running and ready", got)
	}
	before := r.store.View().Revision()
	report(model.Status{Attempt: 1, Phase: model.PhaseRunning, Ready: true})
	if after := r.store.View().Revision(); after != before {
		t.Errorf("a report of what is known was written: revision %d became %d", before, after)
	}
	report(model.Status{Attempt: 1, Phase: model.PhaseStarting})
	if got := r.store.View().Instance("web-1").Status.Phase; got != model.PhaseRunning {
		t.Errorf("a late report took the instance back to %s", got)
	}
	report(model.Status{Attempt: 2, Phase: model.PhasePreparing, Message: "again"})
	events := r.store.View().Events()
	if last := events[len(events)-1]; last.Type != "instance.preparing" || last.Message != "web-1 is preparing: again" {
		t.Errorf("last event = %+v", last)
	}
}

// A node can say nothing of an instance that is on another one, or on none.
func TestReportsOfOthers(t *testing.T) {
	r := newRig(t)
	r.put("web-1", "b", model.PhaseAssigned)
	r.put("web-2", "", model.PhasePending)
	link, _ := r.join(t.Context(), "a")
	running := model.Status{Attempt: 1, Phase: model.PhaseRunning, Ready: true}
	if err := link.Send(t.Context(), wire.Up{Reports: []wire.Report{{ID: "web-1", Status: running}, {ID: "web-2", Status: running}}}); err != nil {
		t.Fatal(err)
	}
	for i := range r.store.View().Instances() {
		if i.Status.Phase == model.PhaseRunning {
			t.Errorf("node a made %s of node %q run", i.ID, i.Node)
		}
	}
}

// An assignment carries what the scheduler gave the instance.
func TestAssignmentsCarryWhatIsGiven(t *testing.T) {
	r := newRig(t)
	want := model.Instance{
		ID: "web-1", App: "/web", Version: 1, Desired: model.Run, Node: "a", Slot: 2,
		GPUs: []model.GPUShare{{ID: "0", Share: 500}}, Items: map[string][]string{"lines": {"l1"}},
	}
	r.update(func(tx *state.Tx) { tx.PutInstance(want.Clone()) })
	_, first := r.join(t.Context(), "a")
	got := first.Set[0]
	if got.Slot != 2 || !reflect.DeepEqual(got.GPUs, want.GPUs) || !reflect.DeepEqual(got.Items, want.Items) {
		t.Errorf("the assignment is %+v", got)
	}
}

// A node learns when it connects which volumes are its own, and which are to be deleted; and later of each such one once.
// A volume is forgotten on the word of its own node alone, and only when it is to be deleted.
func TestVolumes(t *testing.T) {
	r := newRig(t)
	put := func(id model.VolumeID, node model.NodeID, removing bool) {
		t.Helper()
		r.update(func(tx *state.Tx) {
			tx.PutVolume(&model.PersistentVolume{ID: id, App: "/web", Node: node, Removing: removing})
		})
	}
	put("/web:1:d", "a", false)
	put("/web:2:d", "a", true)
	put("/web:3:d", "b", true)
	a, first := r.join(t.Context(), "a")
	if !slices.Equal(first.Volumes, []model.VolumeID{"/web:1:d"}) || !slices.Equal(first.DropVolumes, []model.VolumeID{"/web:2:d"}) {
		t.Errorf("keep %v, delete %v", first.Volumes, first.DropVolumes)
	}
	put("/web:2:d", "a", true) // nothing new
	put("/web:1:d", "a", true)
	if d := r.recv(a); d.Full || !slices.Equal(d.DropVolumes, []model.VolumeID{"/web:1:d"}) {
		t.Errorf("told %+v, want that slot 1 is to be deleted", d)
	}
	put("/web:4:d", "a", false)
	removed := []model.VolumeID{"/web:1:d", "/web:3:d", "/web:4:d", "/web:9:d"}
	if err := a.Send(t.Context(), wire.Up{RemovedVolumes: removed}); err != nil {
		t.Fatal(err)
	}
	var left []model.VolumeID
	for v := range r.store.View().Volumes() {
		left = append(left, v.ID)
	}
	if want := []model.VolumeID{"/web:2:d", "/web:3:d", "/web:4:d"}; !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
	events := r.store.View().Events()
	if last := events[len(events)-1]; last.Type != "volume.deleted" || last.Node != "a" {
		t.Errorf("last event = %+v", last)
	}

	// The same id names a new volume, which is deleted in its turn.
	put("/web:1:d", "a", false)
	r.put("web-5", "a", model.PhaseAssigned)
	if d := r.recv(a); len(d.DropVolumes) != 0 || len(d.Set) != 1 {
		t.Errorf("told %+v, want web-5 alone", d)
	}
	put("/web:1:d", "a", true)
	if d := r.recv(a); !slices.Equal(d.DropVolumes, []model.VolumeID{"/web:1:d"}) {
		t.Errorf("told %+v, want that slot 1 is to be deleted again", d)
	}
}

// A node that connects again takes the place of its older session.
func TestSessionIsReplaced(t *testing.T) {
	r := newRig(t)
	first, _ := r.join(t.Context(), "a")
	if err := r.fleet.WaitNode(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.fleet.Node("a"); !ok {
		t.Fatal("a connected node cannot be reached")
	}
	r.join(t.Context(), "a")
	if _, err := first.Recv(t.Context()); err == nil {
		t.Error("the older session of a node goes on beside the new one")
	}
	if got := r.store.View().Node("a").State; got != model.NodeReady {
		t.Errorf("node is %s after it connected again, want ready", got)
	}
}

// sick is a store that takes no writes for a while.
type sick struct {
	state.Store
	failing atomic.Bool
	refused chan struct{}
}

func (s *sick) Update(ctx context.Context, fn func(*state.Tx) error) error {
	if s.failing.Load() {
		select {
		case s.refused <- struct{}{}:
		default:
		}
		return state.ErrUnavailable
	}
	return s.Store.Update(ctx, fn)
}

// A store that fails for a while ends no server: the sessions end, and what became of the nodes is written down later.
func TestStoreFailsForAWhile(t *testing.T) {
	synctest.Test(t, testStoreFailsForAWhile)
}

func testStoreFailsForAWhile(t *testing.T) {
	store := &sick{Store: memory.Open(time.Now), refused: make(chan struct{}, 1)}
	f := fleet.New(store, fleet.Config{Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	session, leave := context.WithCancel(ctx)
	link := f.Dial(session, nil)
	if err := link.Send(ctx, wire.Up{Hello: &model.Node{ID: "n1"}}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // in the bubble's time
	store.failing.Store(true)
	leave()
	select {
	case <-store.refused:
	case err := <-ended:
		t.Fatalf("the fleet ended: %v", err)
	}
	_, watch := store.Watch()
	defer watch.Close()
	store.failing.Store(false)
	for n := store.View().Node("n1"); n.State != model.NodeUnreachable; n = store.View().Node("n1") {
		select {
		case <-watch.Ready():
			watch.Take()
		case err := <-ended:
			t.Fatalf("the fleet ended: %v", err)
		}
	}
	cancel()
	<-ended
}
