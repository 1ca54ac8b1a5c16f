package scheduler

import (
	"fmt"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

func stateful(id model.AppID, sizes ...model.Bytes) *model.AppVersion {
	v := app(id, 500, model.GiB)
	for n, size := range sizes {
		v.Spec.Volumes = append(v.Spec.Volumes, model.Volume{Name: fmt.Sprint("data", n), Persistent: &model.Persistent{Size: size}})
	}
	return v
}

func slotted(app model.AppID, n int, slot uint32) *model.Instance {
	i := pending(app, n)
	i.Slot = slot
	return i
}

// says steps and compares the sentence of an instance that waits.
func (b *bench) says(id model.InstanceID, want string) {
	b.Helper()
	b.now = b.now.Add(time.Minute)
	b.step()
	if i := b.instance(id); i.Node != "" || i.Pending != want {
		b.Fatalf("%s is on %q and says %q, want %q", id, i.Node, i.Pending, want)
	}
}

func (b *bench) placed(id model.InstanceID, at model.NodeID) {
	b.Helper()
	b.now = b.now.Add(time.Minute)
	b.step()
	if i := b.instance(id); i.Node != at || i.Pending != "" {
		b.Fatalf("%s is on %q, want %q: %s", id, i.Node, at, i.Pending)
	}
	b.asFresh()
}

// asFresh checks that the picture is the one that a new leader would have.
func (b *bench) asFresh() {
	b.Helper()
	kept, fresh := b.loop.pic.engine, newPicture(b.db.View(), b.now).engine
	if err := kept.Audit(); err != nil {
		b.Fatal(err)
	}
	if kept.Instances() != fresh.Instances() {
		b.Fatalf("%d places are held, by the records %d", kept.Instances(), fresh.Instances())
	}
	for n := range b.db.View().Nodes() {
		if kept.Free(n.ID) != fresh.Free(n.ID) {
			b.Fatalf("%s has %+v free, by the records %+v", n.ID, kept.Free(n.ID), fresh.Free(n.ID))
		}
	}
	for r := range b.db.View().Roles() {
		if kept.Share(r.ID) != fresh.Share(r.ID) {
			b.Fatalf("role %s has a share of %g, by the records %g", r.ID, kept.Share(r.ID), fresh.Share(r.ID))
		}
	}
}

func (b *bench) nodeState(id model.NodeID, s model.NodeState) {
	b.Helper()
	b.put(func(tx *state.Tx) {
		n := *tx.Node(id)
		n.State = s
		tx.PutNode(&n)
	})
}

// TestHome protects data: an instance goes where the volumes of its slot are or waits and says so, however much room there
// is elsewhere.
func TestHome(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 1000, 2*model.GiB, 0, 0))
		tx.PutVersion(stateful("/db", 10*model.GiB, model.GiB))
		tx.PutInstance(slotted("/db", 1, 1))
	})
	b.placed("db-00001", "a")
	b.put(func(tx *state.Tx) { tx.PutNode(node("b", 8000, 16*model.GiB, 0, 0)) })
	b.change("db-00001", over)
	b.nodeState("a", model.NodeUnreachable)
	b.put(func(tx *state.Tx) { tx.PutInstance(slotted("/db", 2, 1)) })
	b.says("db-00002", "its volume data0 is on a: the node is unreachable")
	b.nodeState("a", model.NodeReady)
	b.put(func(tx *state.Tx) {
		v := app("/web", 800, model.GiB)
		v.Spec.Constraints = []model.Constraint{{Attribute: "hostname", Operator: model.OpIs, Value: "a"}}
		v.Spec.Priority = new(int)
		*v.Spec.Priority = 90
		tx.PutVersion(v)
		i := pending("/web", 1)
		i.Node, i.Status.Phase = "a", model.PhaseRunning
		tx.PutInstance(i)
	})
	b.says("db-00002", "its volume data0 is on a: the node lacks CPUs: wants 0.5, most free is 0.2 on a")
	b.put(func(tx *state.Tx) { tx.DeleteNode("a") })
	b.says("db-00002", "its volume data0 is on a, a node that is not known any more")
	b.put(func(tx *state.Tx) { tx.PutNode(node("a", 1000, 2*model.GiB, 0, 0)) })
	b.change("web-00001", over)
	b.placed("db-00002", "a")
}

// TestVolumeIsDeleted protects from data that is about to go: nothing is placed onto a volume that is being deleted, also
// when a user says so in the last moment, and when it is gone a new one may be anywhere.
func TestVolumeIsDeleted(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 1000, 2*model.GiB, 0, 0))
		tx.PutVersion(stateful("/db", 10*model.GiB))
		tx.PutInstance(slotted("/db", 1, 1))
	})
	b.placed("db-00001", "a")
	b.change("db-00001", over)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("b", 500, 2*model.GiB, 0, 0))
		tx.PutInstance(slotted("/db", 2, 1))
	})
	remove := func(tx *state.Tx) {
		vol := *tx.Volume("/db:1:data0")
		vol.Removing = true
		tx.PutVolume(&vol)
	}
	b.loop.store = &interloper{Store: b.db, do: remove}
	b.step()
	b.says("db-00002", "its volume data0 is being deleted")
	b.put(func(tx *state.Tx) {
		tx.PutSettings(&model.NodeSettings{ID: "a", Cordoned: true})
		tx.DeleteVolume("/db:1:data0")
	})
	b.placed("db-00002", "b")
	if vol := b.db.View().Volume("/db:1:data0"); vol == nil || vol.Node != "b" {
		t.Fatalf("the new volume is %+v", vol)
	}
}

// TestVolumeSentenceFollows protects the sentence of an instance that waits while its volume is deleted under it.
func TestVolumeSentenceFollows(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 1000, 2*model.GiB, 0, 0))
		tx.PutVersion(stateful("/db", 10*model.GiB))
		tx.PutVolume(&model.PersistentVolume{ID: "/db:1:data0", App: "/db", Slot: 1, Name: "data0", Node: "a", Size: 10 * model.GiB})
		tx.PutSettings(&model.NodeSettings{ID: "a", Cordoned: true, Why: "smells"})
		tx.PutInstance(slotted("/db", 1, 1))
	})
	b.says("db-00001", "its volume data0 is on a: the node is cordoned: smells")
	b.put(func(tx *state.Tx) {
		vol := *tx.Volume("/db:1:data0")
		vol.Removing = true
		tx.PutVolume(&vol)
	})
	b.says("db-00001", "its volume data0 is being deleted")
}

// TestVolumeKeepsDisk protects the disk of volumes: it is not given away while no instance runs, and is not counted twice
// when one comes back.
func TestVolumeKeepsDisk(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 4000, 8*model.GiB, 0, 0)) // with 100 GiB of disk
		tx.PutVersion(stateful("/db", 60*model.GiB))
		tx.PutInstance(slotted("/db", 1, 1))
	})
	b.placed("db-00001", "a")
	b.change("db-00001", over)
	b.put(func(tx *state.Tx) {
		v := app("/web", 100, model.GiB)
		v.Spec.Containers[0].Disk = 50 * model.GiB
		tx.PutVersion(v)
		tx.PutInstance(pending("/web", 1))
		tx.PutInstance(slotted("/db", 2, 1))
		tx.PutInstance(slotted("/db", 3, 2))
	})
	b.says("web-00001", "1 node lacks disk: wants 50 GiB, most free is 40 GiB on a")
	b.placed("db-00002", "a")
	b.says("db-00003", "1 node lacks disk: wants 60 GiB, most free is 40 GiB on a")
	b.change("db-00002", over)
	b.put(func(tx *state.Tx) { tx.DeleteVolume("/db:1:data0") })
	b.placed("db-00003", "a")
	b.asFresh()
}

// TestAppMadeAgain protects from an app's past: one that is removed and made again under its name and version asks for
// what it asks for now.
func TestAppMadeAgain(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 1000, 2*model.GiB, 0, 0))
		tx.PutVersion(app("/web", 900, model.GiB))
		tx.PutInstance(pending("/web", 1))
	})
	b.placed("web-00001", "a")
	b.change("web-00001", over)
	b.put(func(tx *state.Tx) {
		tx.DeleteInstance("web-00001")
		tx.DeleteVersion("/web", 1)
	})
	b.step()
	b.put(func(tx *state.Tx) {
		tx.PutVersion(app("/web", 500, model.GiB))
		tx.PutInstance(pending("/web", 2))
		tx.PutInstance(pending("/web", 3))
	})
	b.placed("web-00002", "a")
	b.placed("web-00003", "a")
}

// TestRoleChange protects instances that run from a change of role or priority, and those that wait from an old count: the
// same instances count for the new role at once.
func TestRoleChange(t *testing.T) {
	b := newBench(t)
	two, n := model.CPU(1000), 3
	version := func(version uint64, role model.RoleID, priority int) func(*state.Tx) {
		return func(tx *state.Tx) {
			v := prioritized(app("/web", 500, model.GiB/4), priority)
			v.Version, v.Spec.Role, v.Spec.Instances = version, role, &n
			tx.PutVersion(v)
			tx.PutApp(&model.App{ID: "/web", Version: version})
		}
	}
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 2000, 4*model.GiB, 0, 0))
		tx.PutRole(&model.Role{ID: "/x", Limit: model.Quota{CPUs: &two}})
		tx.PutRole(&model.Role{ID: "/y", Limit: model.Quota{CPUs: &two}})
		version(1, "/x", 50)(tx)
		other := app("/other", 500, model.GiB/4)
		other.Spec.Role = "/x"
		tx.PutVersion(other)
		tx.PutInstance(pending("/web", 1))
		tx.PutInstance(pending("/web", 2))
	})
	b.step()
	b.put(func(tx *state.Tx) { tx.PutInstance(pending("/other", 1)) })
	b.says("other-00001", "role /x is at its limit: 1 of 1 CPUs are in use, one more takes 0.5")
	b.put(version(2, "/y", 50))
	b.placed("other-00001", "a")
	b.put(func(tx *state.Tx) { tx.PutInstance(pending("/web", 3)) })
	b.says("web-00003", "role /y is at its limit: 1 of 1 CPUs are in use, one more takes 0.5")
	b.put(version(3, "/", 10))
	b.placed("web-00003", "a")
	b.put(func(tx *state.Tx) { // which are less important now
		v := prioritized(app("/top", 500, model.GiB/4), 40)
		tx.PutVersion(v)
		tx.PutInstance(pending("/top", 1))
	})
	b.step()
	evicted := 0
	for i := range b.db.View().Instances() {
		if i.Evict != nil && i.App == "/web" {
			evicted++
		}
		if i.Desired != model.Run || i.Over() {
			t.Errorf("%s was stopped", i.ID)
		}
	}
	if evicted != 1 {
		t.Errorf("%d of web are to make room, want 1", evicted)
	}
	b.step()
	b.put(version(4, "/x", 5)) // while one leaves
	b.step()
	b.put(func(tx *state.Tx) { tx.PutInstance(pending("/top", 2)) })
	b.step()
	for i := range b.db.View().InstancesOf("/web") {
		if i.Evict != nil {
			evicted--
		}
	}
	if evicted != -1 {
		t.Errorf("the one that leaves was taken for another: %d more are to make room, want 1", -evicted)
	}
	if err := b.loop.pic.engine.Audit(); err != nil {
		t.Error(err)
	}
}

// TestStatefulPreempts protects that an app whose volumes are yet to be made gets a place by its priority as others do, with
// room for the volumes; and that one whose volumes are there waits for their node and ends nobody elsewhere.
func TestStatefulPreempts(t *testing.T) {
	b := newBench(t)
	low, high := 10, 90
	weak, strong := app("/weak", 900, 128*model.MiB), stateful("/db", model.GiB)
	weak.Spec.Priority, strong.Spec.Priority = &low, &high
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 1000, 4*model.GiB, 0, 0))
		tx.PutVersion(weak)
		tx.PutVersion(strong)
		tx.PutInstance(pending("/weak", 1))
	})
	b.placed("weak-00001", "a")
	if p := b.plan(strong.Spec); p.Placed != 1 || len(p.Preempted) != 1 {
		t.Fatalf("the plan is %+v", p)
	}
	b.asFresh()
	b.put(func(tx *state.Tx) { tx.PutInstance(slotted("/db", 1, 1)) })
	b.step()
	if i := b.instance("weak-00001"); i.Evict == nil || i.Evict.Kind != model.EvictPreempt {
		t.Fatalf("nobody makes room: %+v; %s", i.Evict, b.instance("db-00001").Pending)
	}
	b.change("weak-00001", over)
	b.placed("db-00001", "a")
	vol := b.db.View().Volume(model.VolumeOf("/db", 1, "data0"))
	if vol == nil || vol.Node != "a" {
		t.Fatalf("its volume is %+v", vol)
	}

	// The node that has the volume is lost, and another is full of weak work.
	b.change("db-00001", over)
	b.put(func(tx *state.Tx) {
		away := *tx.Node("a")
		away.State = model.NodeUnreachable
		tx.PutNode(&away)
		tx.PutNode(node("b", 1000, 4*model.GiB, 0, 0))
		tx.PutInstance(pending("/weak", 2))
	})
	b.placed("weak-00002", "b")
	b.put(func(tx *state.Tx) { tx.PutInstance(slotted("/db", 2, 1)) })
	b.step()
	if i := b.instance("weak-00002"); i.Evict != nil {
		t.Fatalf("it is ended in vain: %+v", i.Evict)
	}
}
