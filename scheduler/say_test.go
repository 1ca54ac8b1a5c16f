package scheduler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// TestWords protects what people read when one thing is in the way: it names it, says how much of it there is and where
// most, so that they know what to change.
func TestWords(t *testing.T) {
	two := model.CPU(2000)
	var place model.Units = 1000
	constrain := func(attr string, op model.Operator, value string) func(*model.Spec) {
		return func(s *model.Spec) { s.Constraints = []model.Constraint{{Attribute: attr, Operator: op, Value: value}} }
	}
	join := func(a ...model.Affinity) func(*model.Spec) { return func(s *model.Spec) { s.Affinity = a } }
	for _, x := range []struct {
		name   string
		placed int // of 4
		change func(*model.Spec)
		want   string
	}{
		{"unique", 3, constrain("hostname", model.OpUnique, ""), "3 nodes are excluded by constraint hostname UNIQUE"},
		{"one for each zone", 2, constrain("zone", model.OpUnique, ""), "3 nodes are excluded by constraint zone UNIQUE"},
		{"at most", 2, constrain("zone", model.OpMaxPer, "1"), "3 nodes are excluded by constraint zone MAX_PER 1"},
		{"no such attribute", 0, constrain("rack", model.OpIs, "r1"), "3 nodes are excluded by constraint rack IS r1"},
		{"cluster is full", 2, func(s *model.Spec) {
			constrain("hostname", model.OpCluster, "")(s)
			s.Containers[0].CPUs = 1500
		}, "1 node lacks CPUs: wants 1.5, most free is 1 on a; 2 nodes are excluded by constraint hostname CLUSTER"},
		{"evenly", 3, func(s *model.Spec) { // zone z2 has one node
			constrain("zone", model.OpGroupBy, "2")(s)
			s.Containers[0].CPUs = 3000
		}, "3 nodes lack CPUs: wants 3, most free is 1 on a; 2 nodes are excluded by constraint zone GROUP_BY 2"},
		{"near to what runs nowhere", 0, join(model.Affinity{App: "/cache"}),
			"3 nodes are excluded by affinity to /cache by hostname: nothing of it has a place"},
		{"near to a group", 0, join(model.Affinity{App: "/shop/*", Over: "zone"}),
			"3 nodes are excluded by affinity to /shop/* by zone: nothing of it has a place"},
		{"near to what runs on a full node", 0, join(model.Affinity{App: "/there"}),
			"1 node lacks CPUs: wants 0.1, most free is 0 on d; 3 nodes are excluded by affinity to /there by hostname"},
		{"away from what runs", 3, join(model.Affinity{App: "/web", Anti: true}),
			"3 nodes are excluded by anti-affinity to /web by hostname"},
		{"kept away", 0, func(s *model.Spec) { s.Pool = "kept" }, "3 nodes are not in pool kept; 1 node is excluded by the anti-affinity of /hermit"},
		{"no such pool", 0, func(s *model.Spec) { s.Pool = "none" }, "3 nodes are not in pool none"},
		{"another model", 0, func(s *model.Spec) { s.Containers[0].GPUs, s.Containers[0].GPUModels = 1000, []string{"A100", "H100"} },
			"3 nodes lack GPUs: wants 1 A100 or H100, most free is 0 on a"},
		{"more devices", 1, func(s *model.Spec) { s.Containers[0].GPUs = 2000 }, "3 nodes lack GPUs: wants 2, most free is 0 on a"},
		{"a share of one", 2, func(s *model.Spec) { s.Containers[0].GPUs = 600 }, "3 nodes lack GPUs: wants 0.6, most free is 0.4 on a"},
		{"custom", 1, func(s *model.Spec) { s.Containers[0].Custom = map[string]model.Units{"licence": place} },
			"3 nodes lack licence: wants 1, most free is 0 on a"},
		{"limit", 2, func(s *model.Spec) { s.Role, s.Containers[0].CPUs = "/limited", 1000 },
			"role /limited is at its limit: 2 of 2 CPUs are in use, one more takes 1"},
		{"limit above", 2, func(s *model.Spec) { s.Role, s.Containers[0].CPUs = "/limited/below", 900 },
			"role /limited is at its limit: 1.8 of 2 CPUs are in use, one more takes 0.9"},
		{"images", 0, func(s *model.Spec) { s.Containers[0].Image = "x" }, "3 nodes cannot run images: runc is missing"},
		{"machines", 0, func(s *model.Spec) { s.Isolation = model.IsolationVM }, "3 nodes cannot run virtual machines: no /dev/kvm"},
		{"disk", 0, func(s *model.Spec) { s.Containers[0].Disk = 200 * model.GiB }, "3 nodes lack disk: wants 200 GiB, most free is 100 GiB on a"},
	} {
		t.Run(x.name, func(t *testing.T) {
			b := newBench(t)
			ver := counted(app("/web", 100, model.GiB), 4)
			x.change(ver.Spec)
			b.put(func(tx *state.Tx) {
				for n, id := range []string{"a", "b", "c"} {
					m := node(id, 4000, 64*model.GiB, 0, 0)
					m.Zone = []string{"z1", "z1", "z2"}[n]
					m.OCI, m.VM = model.Ability{Why: "runc is missing"}, model.Ability{Why: "no /dev/kvm"}
					if n == 0 {
						m.GPUs = []model.GPUDevice{{ID: "0", Model: "T4"}, {ID: "1", Model: "T4"}}
						m.Custom = map[string]model.Custom{"licence": {Amount: 1000}}
					}
					tx.PutNode(m)
				}
				tx.PutRole(&model.Role{ID: "/limited", Limit: model.Quota{CPUs: &two}})
				tx.PutVersion(ver)
				if strings.Contains(x.name, "full node") {
					tx.PutNode(node("d", 1000, 64*model.GiB, 0, 0))
					tx.PutVersion(app("/there", 1000, model.GiB))
					i := pending("/there", 1)
					i.Node, i.Status.Phase = "d", model.PhaseRunning
					tx.PutInstance(i)
				}
				if x.name == "kept away" {
					m := node("d", 4000, 64*model.GiB, 0, 0)
					m.Pool = "kept"
					tx.PutNode(m)
					hermit := app("/hermit", 100, model.GiB)
					hermit.Spec.Affinity = []model.Affinity{{App: "/*", Anti: true}}
					tx.PutVersion(hermit)
					i := pending("/hermit", 1)
					i.Node, i.Status.Phase = "d", model.PhaseRunning
					tx.PutInstance(i)
				}
				for n := range 4 {
					tx.PutInstance(pending("/web", n))
				}
			})
			b.step()
			if n := placed(b.db.View(), "/web"); n != x.placed {
				t.Errorf("%d are placed, want %d", n, x.placed)
			}
			for i := range b.db.View().Pending() {
				any := strings.NewReplacer("free is 1 on b", "free is 1 on a", "free is 1 on c", "free is 1 on a") // as the policy likes
				if any.Replace(i.Pending) != x.want {
					t.Errorf("says %q\nwant %q", i.Pending, x.want)
				}
				break
			}
		})
	}
}

// TestManyWaitingApps protects both sides of a cluster on which hundreds of different apps wait: each of them has its
// sentence soon, while others come and go all the time and are placed at once; and the store is not flooded with numbers.
func TestManyWaitingApps(t *testing.T) {
	const waiting = 300
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		for n := range 2000 { // so that not all of them can be explained in one step
			tx.PutNode(node(fmt.Sprintf("n%04d", n), 1000, 4*model.GiB, 0, 0))
		}
		tx.PutVersion(app("/churn", 500, model.GiB))
		for n := range waiting {
			id := model.AppID(fmt.Sprintf("/wait%03d", n))
			tx.PutVersion(app(id, model.CPU(1100+n), model.GiB))
			tx.PutInstance(pending(id, 0))
		}
	})
	said := map[model.InstanceID]int{}
	last := map[model.InstanceID]string{}
	for n := range 30 {
		b.now = b.now.Add(100 * time.Millisecond)
		b.put(func(tx *state.Tx) {
			if n > 0 {
				i := tx.Instance(pending("/churn", n-1).ID).Clone()
				over(i)
				tx.PutInstance(i)
			}
			tx.PutInstance(pending("/churn", n))
		})
		b.step()
		if i := b.instance(pending("/churn", n).ID); i.Node == "" {
			t.Fatalf("step %d: it waits with the others: %s", n, i.Pending)
		}
		for i := range b.db.View().Pending() {
			if i.Pending != last[i.ID] {
				said[i.ID]++
				last[i.ID] = i.Pending
			}
		}
		if n == 4 && len(last) < waiting {
			t.Errorf("%d of %d have a sentence after %d steps", len(last), waiting, n+1)
		}
	}
	for id, n := range said {
		if n > 4 {
			t.Fatalf("%s was told %d times in 3 s", id, n)
		}
	}
	for n := range 3 { // then all is still
		b.now = b.now.Add(10 * time.Second)
		b.step()
		b.step()
		b.step()
		if next := b.step(); n == 2 && !next.IsZero() {
			t.Errorf("something is to be said at %v though nothing changes", next)
		}
	}
}

// TestOwnSentencesDoNotFlood protects the store from those that wait for a node of their own, each with its own numbers.
func TestOwnSentencesDoNotFlood(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 10_000, 64*model.GiB, 0, 0))
		tx.PutVersion(stateful("/db", model.GiB))
		tx.PutVersion(app("/churn", 100, model.GiB))
		tx.PutVersion(app("/full", 9000, model.GiB))
		i := pending("/full", 1)
		i.Node, i.Status.Phase = "a", model.PhaseRunning
		tx.PutInstance(i)
		for n := range 50 {
			v := model.PersistentVolume{ID: model.VolumeOf("/db", uint32(n+1), "data0"), App: "/db", Slot: uint32(n + 1), Name: "data0", Node: "a", Size: model.GiB}
			tx.PutVolume(&v)
			tx.PutInstance(slotted("/db", n, uint32(n+1)))
		}
		for n := range 10 {
			i := pending("/churn", n)
			i.Node, i.Status.Phase = "a", model.PhaseRunning
			tx.PutInstance(i)
		}
	})
	b.step()
	b.says("db-00049", "its volume data0 is on a: the node lacks CPUs: wants 0.5, most free is 0 on a")
	before := b.db.View().Revision()
	for n := range 4 {
		b.change(pending("/churn", n).ID, over)
		b.step()
	}
	if writes := int(b.db.View().Revision()-before) - 4; writes > 1 { // a minute has passed
		t.Errorf("%d transactions to repeat sentences in the same moment", writes)
	}
	b.says("db-00049", "its volume data0 is on a: the node lacks CPUs: wants 0.5, most free is 0.4 on a")
	b.put(func(tx *state.Tx) { tx.PutSettings(&model.NodeSettings{ID: "a", Cordoned: true}) })
	b.step() // another reason is told at once
	if got := b.instance("db-00049").Pending; got != "its volume data0 is on a: the node is cordoned" {
		t.Errorf("says %q", got)
	}
}
