package conformance

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// testViewsStay protects that a view never changes, whatever is written while it is read.
func testViewsStay(t *testing.T, s Storage) {
	db := s.Open(t)
	fill(t, db, 1, 40)
	type held struct {
		view state.View
		text string
	}
	var views []held
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() { // reads while writes go on
		for {
			select {
			case <-stop:
				return
			default:
				v := db.View()
				same(t, "one view read twice", dump(v), dump(v))
			}
		}
	})
	for seed := range uint64(10) {
		v := db.View()
		views = append(views, held{v, dump(v)})
		fill(t, db, seed+2, 8)
	}
	close(stop)
	wg.Wait()
	for i, h := range views {
		same(t, fmt.Sprintf("view %d", i), dump(h.view), h.text)
	}
}

// naive is what the store should hold, kept the simplest way.
type naive struct {
	apps        map[model.AppID]*model.App
	versions    map[model.AppID]map[uint64]*model.AppVersion
	instances   map[model.InstanceID]*model.Instance
	deployments map[model.DeploymentID]*model.Deployment
	nodes       map[model.NodeID]*model.Node
	volumes     map[model.VolumeID]*model.PersistentVolume
}

func newNaive() *naive {
	return &naive{
		map[model.AppID]*model.App{}, map[model.AppID]map[uint64]*model.AppVersion{},
		map[model.InstanceID]*model.Instance{}, map[model.DeploymentID]*model.Deployment{}, map[model.NodeID]*model.Node{},
		map[model.VolumeID]*model.PersistentVolume{},
	}
}

// testAnyOperations protects look-ups and indexes: after random transactions they agree with plain maps, on the server
// that wrote, on another, and after reopening.
func testAnyOperations(t *testing.T, s Storage) {
	db, other := s.Open(t), s.Open(t)
	rng := rand.New(rand.NewPCG(1, 2))
	want := newNaive()
	for range 200 {
		update(t, db, func(tx *state.Tx) {
			for range 1 + rng.IntN(6) {
				want.change(tx, rng)
			}
			want.check(t, tx.View)
		})
		want.check(t, db.View())
		if t.Failed() {
			return
		}
	}
	rev := db.View().Revision()
	await(t, other, "all writes on the other server", func(v state.View) bool { return v.Revision() >= rev })
	same(t, "the other server", dump(other.View()), dump(db.View()))
	again := s.Reopen(t)
	want.check(t, again.View())
}

// change does one random thing to tx and to n.
func (n *naive) change(tx *state.Tx, rng *rand.Rand) {
	id := func(of string, most int) string { return fmt.Sprintf("%s%d", of, rng.IntN(most)) }
	a := model.AppID(id("/a", 5))
	switch rng.IntN(11) {
	case 0:
		rec := app(string(a), rng.Uint64N(9))
		n.apps[a] = rec
		tx.PutApp(rec)
	case 1:
		delete(n.apps, a)
		tx.DeleteApp(a)
	case 2:
		v := &model.AppVersion{App: a, Version: rng.Uint64N(12), Created: epoch, Spec: &model.Spec{ID: a}}
		if n.versions[a] == nil {
			n.versions[a] = map[uint64]*model.AppVersion{}
		}
		n.versions[a][v.Version] = v
		tx.PutVersion(v)
	case 3:
		v := rng.Uint64N(12)
		delete(n.versions[a], v)
		tx.DeleteVersion(a, v)
	case 4, 5, 6:
		i := instance(id("i", 30), string(a), "")
		if rng.IntN(2) == 0 {
			i.Node = model.NodeID(id("n", 3))
		}
		i.Desired = []model.Desired{model.Run, model.Halt}[rng.IntN(2)]
		i.Status.Phase = []model.Phase{model.PhasePending, model.PhaseRunning, model.PhaseStopped}[rng.IntN(3)]
		i.Status.Ready = rng.IntN(2) == 0
		n.instances[i.ID] = i
		tx.PutInstance(i)
	case 7:
		i := model.InstanceID(id("i", 30))
		delete(n.instances, i)
		tx.DeleteInstance(i)
	case 8:
		d := &model.Deployment{ID: model.DeploymentID(id("d", 8)), App: a, State: []model.DeploymentState{
			model.DeployRunning, model.DeployPaused, model.DeployFailed, model.DeploySucceeded}[rng.IntN(4)]}
		if rng.IntN(4) == 0 {
			delete(n.deployments, d.ID)
			tx.DeleteDeployment(d.ID)
			return
		}
		n.deployments[d.ID] = d
		tx.PutDeployment(d)
	case 9:
		node := &model.Node{ID: model.NodeID(id("n", 3)), Name: id("host", 100)}
		if rng.IntN(3) == 0 {
			delete(n.nodes, node.ID)
			tx.DeleteNode(node.ID)
			return
		}
		n.nodes[node.ID] = node
		tx.PutNode(node)
	case 10:
		v := &model.PersistentVolume{ID: model.VolumeOf(a, rng.Uint32N(4), "data"), App: a, Node: model.NodeID(id("n", 3)), Created: epoch}
		if rng.IntN(3) == 0 {
			delete(n.volumes, v.ID)
			tx.DeleteVolume(v.ID)
			return
		}
		n.volumes[v.ID] = v
		tx.PutVolume(v)
	}
}

// check compares v with n.
func (n *naive) check(t *testing.T, v state.View) {
	t.Helper()
	equal := func(what string, got, want []string) {
		t.Helper()
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	where := func(cond func(*model.Instance) bool) (out []string) {
		for id, i := range n.instances {
			if cond(i) {
				out = append(out, string(id))
			}
		}
		return out
	}
	equal("instances", ids(v.Instances(), instanceID), where(func(*model.Instance) bool { return true }))
	equal("pending", ids(v.Pending(), instanceID), where(func(i *model.Instance) bool {
		return i.Node == "" && i.Desired == model.Run && i.Status.Phase != model.PhaseStopped
	}))
	for k := range 5 {
		a := model.AppID(fmt.Sprintf("/a%d", k))
		equal("instances of "+string(a), ids(v.InstancesOf(a), instanceID), where(func(i *model.Instance) bool { return i.App == a }))
		isHealthy := func(i *model.Instance) bool { _, ok := i.HealthySince(); return ok }
		equal("unwell of "+string(a), ids(v.UnwellOf(a), instanceID), where(func(i *model.Instance) bool {
			return i.App == a && !i.Over() && !isHealthy(i)
		}))
		healthy := where(func(i *model.Instance) bool { return i.App == a && isHealthy(i) })
		if got := v.HealthyCount(a); got != len(healthy) {
			t.Errorf("%d of %s are healthy, want %v", got, a, healthy)
		}
		var versions []string
		for num := range n.versions[a] {
			versions = append(versions, fmt.Sprintf("%03d", num))
		}
		equal("versions of "+string(a), ids(v.Versions(a), func(x *model.AppVersion) string { return fmt.Sprintf("%03d", x.Version) }), versions)
	}
	for k := range 3 {
		node := model.NodeID(fmt.Sprintf("n%d", k))
		equal("instances on "+string(node), ids(v.InstancesOn(node), instanceID), where(func(i *model.Instance) bool { return i.Node == node }))
	}
	volumeID := func(v *model.PersistentVolume) string { return string(v.ID) }
	volumes := func(cond func(*model.PersistentVolume) bool) (out []string) {
		for id, v := range n.volumes {
			if cond(v) {
				out = append(out, string(id))
			}
		}
		return out
	}
	for k := range 5 {
		a, node := model.AppID(fmt.Sprintf("/a%d", k)), model.NodeID(fmt.Sprintf("n%d", k))
		equal("volumes of "+string(a), ids(v.VolumesOf(a), volumeID), volumes(func(v *model.PersistentVolume) bool { return v.App == a }))
		equal("volumes on "+string(node), ids(v.VolumesOn(node), volumeID), volumes(func(v *model.PersistentVolume) bool { return v.Node == node }))
	}
	var active []string
	for id, d := range n.deployments {
		if d.State == model.DeployRunning || d.State == model.DeployPaused {
			active = append(active, string(id))
		}
	}
	equal("active", ids(v.ActiveDeployments(), func(d *model.Deployment) string { return string(d.ID) }), active)
	n.checkRecords(t, v)
}

func (n *naive) checkRecords(t *testing.T, v state.View) {
	t.Helper()
	records(t, "app", n.apps, v.AppCount(), v.App)
	records(t, "instance", n.instances, v.InstanceCount(), v.Instance)
	records(t, "deployment", n.deployments, len(ids(v.Deployments(), func(d *model.Deployment) string { return string(d.ID) })), v.Deployment)
	records(t, "volume", n.volumes, len(ids(v.Volumes(), func(v *model.PersistentVolume) string { return string(v.ID) })), v.Volume)
	records(t, "node", n.nodes, len(ids(v.Nodes(), func(n *model.Node) string { return string(n.ID) })), v.Node)
}

// records compares all records of one kind, but for their revisions.
func records[K ~string, V any](t *testing.T, kind string, want map[K]*V, count int, get func(K) *V) {
	t.Helper()
	if count != len(want) {
		t.Errorf("%d %ss, want %d", count, kind, len(want))
	}
	for id, w := range want {
		g := get(id)
		if g == nil {
			t.Errorf("%s %s is missing", kind, id)
			continue
		}
		got, wanted := *g, *w
		for _, p := range []*V{&got, &wanted} {
			reflect.ValueOf(p).Elem().FieldByName("Revision").SetUint(0)
		}
		if !reflect.DeepEqual(got, wanted) {
			t.Errorf("%s %s: %+v, want %+v", kind, id, got, wanted)
		}
	}
}

// fill does random things to db, the same for the same seed.
func fill(t *testing.T, db *state.DB, seed uint64, transactions int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	n := newNaive()
	for range transactions {
		update(t, db, func(tx *state.Tx) {
			for range 1 + rng.IntN(6) {
				n.change(tx, rng)
			}
		})
	}
}
