package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// fakePlacer puts instances on the first node of their pool that has memory for them.
type fakePlacer struct {
	db  *state.DB
	err error // for every call, when set
}

// free returns what is left of the memory of each ready node, by a filter that tells why others do not count.
func (p *fakePlacer) free(s *model.Spec) (free map[model.NodeID]model.Bytes, f model.Funnel) {
	v, free := p.db.View(), map[model.NodeID]model.Bytes{}
	sizes := newSizes(v)
	away, pool, small := 0, 0, 0
	for n := range v.Nodes() {
		f.Nodes++
		left := n.Capacity.Memory
		for i := range v.InstancesOn(n.ID) {
			left -= sizes.of(i).Memory
		}
		switch {
		case n.State != model.NodeReady:
			away++
		case poolOf(n.Pool) != poolOf(s.Pool):
			pool++
		case left < s.Resources().Memory:
			small++
		default:
			free[n.ID] = left
			f.Fit++
		}
	}
	left := f.Nodes
	for _, step := range []model.FunnelStep{{Filter: "state", Removed: away}, {Filter: "pool", Removed: pool}, {Filter: "memory", Removed: small}} {
		left -= step.Removed
		step.Left = left
		f.Steps = append(f.Steps, step)
	}
	if f.Fit == 0 {
		f.Reason = fmt.Sprintf("%d nodes are unreachable; %d are not in the pool; %d lack memory", away, pool, small)
	}
	return free, f
}

func (p *fakePlacer) Plan(_ context.Context, s *model.Spec) (model.Plan, error) {
	free, f := p.free(s)
	out := model.Plan{App: s.ID, Instances: s.Count(), Funnel: f}
	for n := range p.db.View().Nodes() {
		at := model.PlanNode{Node: n.ID, Name: n.Name}
		for free[n.ID] >= s.Resources().Memory && out.Placed < s.Count() {
			free[n.ID] -= s.Resources().Memory
			at.Instances++
			out.Placed++
		}
		if at.Free.Memory = free[n.ID]; at.Instances > 0 {
			out.Nodes = append(out.Nodes, at)
		}
	}
	out.Waiting = out.Instances - out.Placed
	return out, p.err
}

func (p *fakePlacer) Funnel(_ context.Context, app model.AppID) (model.Funnel, error) {
	if p.err != nil {
		return model.Funnel{}, p.err
	}
	_, f := p.free(p.db.View().Target(app).Spec)
	return f, nil
}

// Moves proposes to move every instance of a pool to another node of it.
func (p *fakePlacer) Moves(_ context.Context, pool string) ([]model.Move, error) {
	v := p.db.View()
	var out []model.Move
	for i := range v.Instances() {
		from := v.Node(i.Node)
		for to := range v.Nodes() {
			if from != nil && to.ID != from.ID && poolOf(to.Pool) == poolOf(from.Pool) && (pool == "" || pool == poolOf(to.Pool)) {
				out = append(out, model.Move{Instance: i.ID, App: i.App, From: from.ID, To: to.ID, Gain: "room in one piece"})
			}
		}
	}
	return out, p.err
}

var _ Placer = (*fakePlacer)(nil)

// addNode joins a node with 8 GiB of memory.
func (d *door) addNode(id model.NodeID, name, pool string) {
	d.t.Helper()
	d.put(func(tx *state.Tx) {
		tx.PutNode(&model.Node{ID: id, Name: name, Addr: "10.0.0.2", State: model.NodeReady, Seen: epoch, Pool: pool,
			Capacity: model.Resources{CPUs: 4000, Memory: 8 * model.GiB, Disk: 100 * model.GiB}})
	})
}

// refusals sends bodies that must be refused, and wants each answer to have the status and all the words.
func (d *door) refusals(method, path string, want map[string]string) {
	d.t.Helper()
	for body, words := range want {
		code, text, _ := d.call(method, path, body)
		status, rest, _ := strings.Cut(words, " ")
		if fmt.Sprint(code) != status {
			d.t.Errorf("%s %s %s: status %d, want %s: %s", method, path, body, code, status, text)
		}
		for _, w := range strings.Split(rest, " | ") {
			if !strings.Contains(text, w) {
				d.t.Errorf("%s %s %s: lacks %q: %s", method, path, body, w, text)
			}
		}
	}
}

func big(id model.AppID, n int) *model.Spec {
	return &model.Spec{ID: id, Instances: &n, Containers: []model.Container{{Command: []string{"serve"}, CPUs: 500, Memory: 3 * model.GiB}}}
}

// A plan answers before anything is written, and refuses what a write would refuse.
func TestPlan(t *testing.T) {
	d := newDoor(t)
	d.addNode("n2", "beta", "")
	p := must(d.c.Plan(t.Context(), big("/big", 5)))(t)
	if p.Placed != 4 || p.Waiting != 1 || len(p.Nodes) != 2 || p.Nodes[0].Free.Memory != 2*model.GiB || p.Funnel.Nodes != 2 {
		t.Errorf("plan is %+v", p)
	}
	if v := d.db.View(); v.AppCount() != 0 || v.InstanceCount() != 0 {
		t.Error("a plan has written something")
	}
	d.put(func(tx *state.Tx) { tx.PutRole(&model.Role{ID: "/batch"}) })
	d.refusals("POST", "/v1/plan", map[string]string{
		``: "400 no body",
		`{"id":"/a","containers":[{"command":["x"]}],"role":"/bach"}`:                        "422 body.role | did you mean /batch?",
		`{"id":"/a","containers":[{"command":["x"]}],"constraints":[{"attribute":"rack"}]}`:  "422 body.constraints[0].operator",
		`{"id":"/a","containers":[{"command":["x"],"gpus":"many"}],"priority":200}`:          "422 body.containers[0].gpus | body.priority",
		`{"id":"/a","containers":[{"command":["x"],"custom":{"licence":-1}}],"spread":[{}]}`: "422 body.containers[0].custom | body.spread[0].over",
	})
}

// Who asks a server without a scheduler, or one whose scheduler is not ready, is told to come back.
func TestPlacerIsAway(t *testing.T) {
	d := newDoor(t)
	d.create(big("/big", 1))
	d.run("big-1", "/big", func(i *model.Instance) { i.Node, i.Status.Phase = "", model.PhasePending })
	check := func(words string) {
		t.Helper()
		_, planErr := d.c.Plan(t.Context(), big("/a", 1))
		_, funnelErr := d.c.Funnel(t.Context(), "/big")
		_, movesErr := d.c.Moves(t.Context(), "")
		for _, err := range []error{planErr, funnelErr, movesErr} {
			if status(err) != http.StatusServiceUnavailable || !strings.Contains(err.Error(), words) {
				t.Errorf("got %v, want %q", err, words)
			}
		}
		if a := must(d.c.App(t.Context(), "/big"))(t); a.Funnel != nil {
			t.Errorf("funnel is %+v", a.Funnel)
		}
	}
	d.placer.err = errors.New("not the leader")
	check("not the leader")
	h, err := New(Config{Store: d.db, Auth: identity.WithToken(d.token)})
	if err != nil {
		t.Fatal(err)
	}
	d.serve(h, nil)
	check("no scheduler")
}

// An app shows its funnel when it waits, and only then.
func TestFunnelOfWaitingApp(t *testing.T) {
	d := newDoor(t)
	d.create(big("/big", 1))
	d.run("big-1", "/big", func(i *model.Instance) {
		i.Slot, i.GPUs, i.Items = 2, []model.GPUShare{{ID: "g0", Share: 250}}, map[string][]string{"licence": {"l1"}}
	})
	d.put(func(tx *state.Tx) {
		tx.PutVolume(&model.PersistentVolume{ID: "/big:2:data", App: "/big", Slot: 2, Name: "data", Node: "n1", Size: model.GiB})
	})
	a := must(d.c.App(t.Context(), "/big"))(t)
	if a.Funnel != nil {
		t.Errorf("nothing waits, but funnel is %+v", a.Funnel)
	}
	if i := a.List[0]; i.Slot != 2 || len(i.GPUs) != 1 || i.GPUs[0].Share != 250 || i.Items["licence"][0] != "l1" {
		t.Errorf("instance is %+v", i)
	}
	if len(a.Volumes) != 1 || a.Volumes[0].Instance != "big-1" || a.Volumes[0].NodeName != "alpha" {
		t.Errorf("volumes are %+v", a.Volumes)
	}
	d.run("big-2", "/big", func(i *model.Instance) { i.Node, i.Status.Phase = "", model.PhasePending })
	d.put(func(tx *state.Tx) {
		n := *tx.Node("n1")
		n.State = model.NodeUnreachable
		tx.PutNode(&n)
	})
	a = must(d.c.App(t.Context(), "/big"))(t)
	if a.Funnel == nil || a.Funnel.Fit != 0 || a.Funnel.Steps[0].Removed != 1 || a.Funnel.Reason == "" {
		t.Errorf("funnel is %+v", a.Funnel)
	}
	if f := must(d.c.Funnel(t.Context(), "/big"))(t); f.Reason != a.Funnel.Reason {
		t.Errorf("funnel is %+v", f)
	}
	if _, err := d.c.Funnel(t.Context(), "/bigg"); status(err) != http.StatusNotFound || !strings.Contains(err.Error(), "/big") {
		t.Errorf("of no app: %v", err)
	}
}

func TestMoves(t *testing.T) {
	d := newDoor(t)
	d.create(web(1))
	d.run("web-1", shop, nil)
	d.addNode("n2", "beta", "gpu")
	if list := must(d.c.Moves(t.Context(), ""))(t); list == nil || len(list) != 0 {
		t.Errorf("moves are %v", list)
	}
	d.addNode("n3", "gamma", "")
	if list := must(d.c.Moves(t.Context(), ""))(t); len(list) != 1 || list[0].To != "n3" {
		t.Errorf("moves are %v", list)
	}
	if list := must(d.c.Moves(t.Context(), "gpu"))(t); len(list) != 0 {
		t.Errorf("moves of another pool are %v", list)
	}
	if _, err := d.c.Moves(t.Context(), "gup"); status(err) != http.StatusNotFound || !strings.Contains(err.Error(), "did you mean gpu?") {
		t.Errorf("of no pool: %v", err)
	}
}

// An instance that has to leave says why, and where to.
func TestEvictionIsExplained(t *testing.T) {
	d := newDoor(t)
	d.create(web(1))
	d.run("web-1", shop, func(i *model.Instance) {
		i.Evict = &model.Eviction{Kind: model.EvictMove, Why: "then 4 GiB are free in one piece", To: "n2", At: epoch}
	})
	i := must(d.c.Instance(t.Context(), "web-1"))(t)
	if want := "it is to move to n2: then 4 GiB are free in one piece"; i.Why != want || i.Evict == nil {
		t.Errorf("why is %q, want %q", i.Why, want)
	}
}

func limit(n model.CPU) model.Quota    { return model.Quota{CPUs: &n} }
func role(id model.RoleID) *model.Role { return &model.Role{ID: id} }
func roleIDs(list []client.RoleDetail) (ids []model.RoleID) {
	for _, r := range list {
		ids = append(ids, r.ID)
	}
	return ids
}

// What is used of a role counts for all above it, once it has a place and until it is over.
func TestRoles(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	for _, id := range []model.RoleID{"/analytics", "/analytics/batch", "/web"} {
		must(d.c.PutRole(ctx, role(id)))(t)
	}
	s := big("/jobs/etl", 3)
	s.Role = "/analytics/batch"
	s.Containers[0].Custom = map[string]model.Units{"licence": 2000}
	d.create(s)
	d.run("etl-1", s.ID, nil)
	d.run("etl-2", s.ID, func(i *model.Instance) { i.Node, i.Status.Phase = "", model.PhasePending })
	d.run("etl-3", s.ID, func(i *model.Instance) { i.Status.Phase = model.PhaseStopped })
	list := must(d.c.Roles(ctx))(t)
	if want := []model.RoleID{"/", "/analytics", "/analytics/batch", "/web"}; !slices.Equal(roleIDs(list), want) {
		t.Fatalf("roles are %v", roleIDs(list))
	}
	for _, r := range list[:3] {
		if r.Instances != 1 || r.Used.CPUs != 500 || r.Used.Memory != 3*model.GiB || r.Used.Custom["licence"] != 2000 {
			t.Errorf("role %s is used %+v", r.ID, r)
		}
		if r.Dominant != model.ResMemory || r.Share != 3.0/8 {
			t.Errorf("role %s has a share of %v of %s", r.ID, r.Share, r.Dominant)
		}
	}
	if list[2].Apps != 1 || list[1].Apps != 0 || list[3].Instances != 0 || list[3].Share != 0 {
		t.Errorf("roles are %+v", list)
	}
	if r := must(d.c.Role(ctx, "/"))(t); r.ID != "/" || r.Instances != 1 {
		t.Errorf("root is %+v", r)
	}
	if _, err := d.c.Role(ctx, "/analytic"); status(err) != http.StatusNotFound || !strings.Contains(err.Error(), "did you mean /analytics?") {
		t.Errorf("no role: %v", err)
	}
}

// A role that is written twice is written once.
func TestPutRoleIsIdempotent(t *testing.T) {
	d := newDoor(t)
	r := &model.Role{ID: "/web", Limit: limit(4000), Weight: 2, Weights: map[string]float64{"gpus": 3}}
	must(d.c.PutRole(t.Context(), r))(t)
	before := d.db.View()
	if got := must(d.c.PutRole(t.Context(), r))(t); got.Weight != 2 || *got.Limit.CPUs != 4000 {
		t.Errorf("role is %+v", got)
	}
	if now := d.db.View(); now.Revision() != before.Revision() || len(now.Events()) != len(before.Events()) {
		t.Error("writing the same again has changed something")
	}
}

// Guarantees and limits agree all over the tree, whichever end of it is written.
func TestRoleTree(t *testing.T) {
	d := newDoor(t)
	for _, r := range []*model.Role{
		{ID: "/", Limit: limit(100_000)},
		{ID: "/a", Guarantee: limit(10_000), Limit: limit(20_000)},
		{ID: "/a/x", Guarantee: limit(6000)},
		{ID: "/a/y"},
		{ID: "/a/y/z", Guarantee: limit(2000), Limit: limit(15_000)},
		{ID: "/free"},
	} {
		must(d.c.PutRole(t.Context(), r))(t)
	}
	for _, c := range []struct{ role, body, want string }{
		{"b%2Fc", `{}`, "422 body.id | below a role that does not exist | gantry role set /b"},
		{"fre%2Fc", `{}`, "422 body.id | did you mean /free?"},
		{"a%2Fy%2Fz", `{"guarantee":{"cpus":5}}`, "422 body.guarantee.cpus | makes 11 with | below /a, which is guaranteed 10 itself"},
		{"a%2Fnew", `{"guarantee":{"cpus":3}}`, "422 body.guarantee.cpus | makes 11"},
		{"a", `{"guarantee":{"cpus":7}}`, "422 body.guarantee.cpus | 7 is less than the 8 that the roles below"},
		{"a", `{"limit":{"cpus":7}}`, "422 body.limit.cpus | 7 is less than the 8 that the roles below | less than the limit of /a/y/z, 15"},
		{"a%2Fx", `{"limit":{"cpus":"21"}}`, "422 body.limit.cpus | 21 is more than the limit of /a, 20"},
		{"a%2Fy%2Fz%2Fq", `{"limit":{"cpus":16}}`, "422 more than the limit of /a/y/z, 15"},
		{"free", `{"guarantee":{"cpus":95}}`, "422 body.guarantee.cpus | makes 105 | below /, whose limit is 100"},
		{"", `{"id":"/","guarantee":{"memory":"1GiB"}}`, "422 body.guarantee | the whole cluster"},
		{"free", `{"guarantee":{"cpus":5},"limit":{"cpus":4}}`, "422 body.guarantee.cpus"},
		{"free", `{"weight":-1,"weights":{"cpus":"x"},"limit":{"custom":{"a b":1}}}`, "422 body.weight\" | weights | body.limit.custom"},
		{"free", `{"id":"/other"}`, "422 body.id | the path names /free"},
		{"free", `{"id":"free"}`, "422 body.id | write it as"},
		{"Free", `{}`, "422 lower-case"},
	} {
		path := "/v1/roles/" + c.role
		if c.role == "" {
			path += "-"
		}
		d.refusals("PUT", path, map[string]string{c.body: c.want})
	}
	// A role without a guarantee of its own has that of those below it; memory is nobody's business here.
	must(d.c.PutRole(t.Context(), &model.Role{ID: "/a/x", Guarantee: model.Quota{CPUs: new(model.CPU(8000)), Memory: new(model.TiB)}}))(t)
}

// A role goes when nothing needs it, and says what does.
func TestDeleteRole(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	for _, id := range []model.RoleID{"/a", "/a/b", "/c"} {
		must(d.c.PutRole(ctx, role(id)))(t)
	}
	s := web(1)
	s.Role = "/c"
	d.create(s)
	d.finish(shop, model.DeploySucceeded, "")
	must(d.c.PutReservation(ctx, &model.Reservation{ID: "kept", Role: "/c", Node: "alpha", Resources: model.Resources{CPUs: 1000}}))(t)
	refused := func(id model.RoleID, words ...string) {
		t.Helper()
		err := d.c.DeleteRole(ctx, id)
		if status(err) != http.StatusConflict {
			t.Errorf("delete %s: %v", id, err)
			return
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("delete %s: %q lacks %q", id, err, w)
			}
		}
	}
	refused("/a", "/a/b is below it")
	refused("/c", "/shop/web names it", "kept is reserved for it")
	// Also a version that the app may go back to by itself counts.
	must(d.c.PutApp(ctx, web(1)))(t)
	if err := d.c.DeleteReservation(ctx, "kept"); err != nil {
		t.Error(err)
	}
	refused("/c", "/shop/web names it")
	d.finish(shop, model.DeploySucceeded, "")
	for _, id := range []model.RoleID{"/c", "/a/b", "/a"} {
		if err := d.c.DeleteRole(ctx, id); err != nil {
			t.Errorf("delete %s: %v", id, err)
		}
	}
	if _, err := d.c.RollbackApp(ctx, shop, 1); status(err) != http.StatusConflict || !strings.Contains(err.Error(), "no role /c") {
		t.Errorf("back to a version of a role that is gone: %v", err)
	}
	for _, id := range []model.RoleID{"/c", "/"} {
		if err := d.c.DeleteRole(ctx, id); status(err) != http.StatusNotFound {
			t.Errorf("delete %s: %v", id, err)
		}
	}
	must(d.c.PutRole(ctx, &model.Role{ID: "/", Limit: limit(1000)}))(t)
	if err := d.c.DeleteRole(ctx, "/"); err != nil || must(d.c.Role(ctx, "/"))(t).Limit.CPUs != nil {
		t.Errorf("the root's limits do not go: %v", err)
	}
}

// An app names a role that exists. A pool may come later.
func TestAppNamesRoleAndPool(t *testing.T) {
	d := newDoor(t)
	must(d.c.PutRole(t.Context(), role("/batch")))(t)
	d.refusals("PUT", "/v1/apps/a", map[string]string{
		`{"containers":[{"command":["x"]}],"role":"/bathc"}`: "422 body.role | did you mean /batch?",
		`{"containers":[{"command":["x"]}],"role":"/other"}`: "422 body.role | gantry role set /other makes it",
	})
	s := web(1)
	s.Role, s.Pool = "/batch", "to-come"
	d.create(s)
}

func TestPools(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	d.addNode("n2", "beta", "gpu")
	d.put(func(tx *state.Tx) {
		n := *tx.Node("n2")
		n.GPUs = []model.GPUDevice{{ID: "g0"}, {ID: "g1"}}
		tx.PutNode(&n)
		tx.PutVolume(&model.PersistentVolume{ID: "/db:1:data", App: "/db", Slot: 1, Name: "data", Node: "n2", Size: model.GiB})
	})
	must(d.c.CordonNode(ctx, "n2", ""))(t)
	d.create(web(1))
	d.run("web-1", shop, nil)
	p := must(d.c.PutPool(ctx, &model.Pool{Name: "edge", Placement: model.PolicySpread, Defragment: model.DefragmentPerform}))(t)
	if p.Name != "edge" || p.Nodes != 0 || p.Defragment != model.DefragmentPerform {
		t.Errorf("pool is %+v", p)
	}
	list := must(d.c.Pools(ctx))(t)
	if len(list) != 3 || list[0].Name != "default" || list[1].Name != "edge" || list[2].Name != "gpu" {
		t.Fatalf("pools are %+v", list)
	}
	if p := list[0]; p.Nodes != 1 || p.Ready != 1 || p.Apps != 1 || p.Used.CPUs != 100 || p.Capacity.CPUs != 4000 {
		t.Errorf("pool is %+v", p)
	}
	if p := list[2]; p.Nodes != 1 || p.Ready != 0 || p.Capacity.GPUs != 2000 || p.Used.Disk != model.GiB {
		t.Errorf("pool is %+v", p)
	}
	d.refusals("PUT", "/v1/pools/edge", map[string]string{
		`{"placement":"tight"}`: "422 body.placement | pack", `{"defragment":"yes"}`: "422 body.defragment | perform",
		`{"name":"other"}`: "422 body.name | the path names edge", `{"nodes":3}`: "422 body.nodes | no such field",
	})
	if err := d.c.DeletePool(ctx, "edge"); err != nil {
		t.Error(err)
	}
	for name, words := range map[string]string{"edge": "no pool edge", "gpu": "has the defaults already"} {
		if err := d.c.DeletePool(ctx, name); status(err) != http.StatusNotFound || !strings.Contains(err.Error(), words) {
			t.Errorf("delete %s: %v", name, err)
		}
	}
}

// What is reserved of a node is there, and is not promised twice.
func TestReservations(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	must(d.c.PutRole(ctx, role("/db")))(t)
	first := &model.Reservation{ID: "one", Role: "/db", Node: "alpha", Resources: model.Resources{CPUs: 3000, Memory: 6 * model.GiB}}
	got := must(d.c.PutReservation(ctx, first))(t)
	if got.Node != "n1" || got.NodeName != "alpha" || got.Created.IsZero() {
		t.Errorf("reservation is %+v", got)
	}
	rev := d.db.View().Revision()
	if again := must(d.c.PutReservation(ctx, first))(t); again != got || d.db.View().Revision() != rev {
		t.Errorf("the same again is %+v", again)
	}
	first.Resources.CPUs = 4000
	must(d.c.PutReservation(ctx, first))(t)
	d.refusals("PUT", "/v1/reservations/two", map[string]string{
		`{"role":"/db","node":"n1","resources":{"cpus":1,"memory":"2GiB","disk":0}}`:         "422 body.resources.cpus | 1 is more than alpha has left to reserve: it has 4, of which other reservations keep 4",
		`{"role":"/db","node":"alhpa","resources":{"cpus":1,"memory":0,"disk":0}}`:           "422 body.node | did you mean alpha?",
		`{"role":"/bd","node":"n1","resources":{"cpus":0,"memory":"3GiB","disk":0}}`:         "422 body.role | did you mean /db? | body.resources.memory | it has 8 GiB, of which other reservations keep 6 GiB",
		`{"role":"/db","node":"n1","resources":{"cpus":0,"memory":0,"disk":0}}`:              "422 body.resources | is empty",
		`{"role":"/db","node":"n1","resources":{"cpus":0,"memory":0,"disk":0,"gpus":1}}`:     "422 body.resources.gpus | it has 0",
		`{"id":"three","role":"/db","node":"n1","resources":{"cpus":0,"memory":1,"disk":0}}`: "422 body.id | the path names two",
		`{"role":"","node":"","resources":{"cpus":"x"},"colour":"red"}`:                      "422 body.role | body.node | body.resources.cpus | body.colour",
	})
	if list := must(d.c.Reservations(ctx))(t); len(list) != 1 || list[0].Resources.CPUs != 4000 || list[0].Created != got.Created {
		t.Errorf("reservations are %+v", list)
	}
	if err := d.c.DeleteReservation(ctx, "on"); status(err) != http.StatusNotFound || !strings.Contains(err.Error(), "did you mean one?") {
		t.Errorf("delete: %v", err)
	}
	if err := d.c.DeleteReservation(ctx, "one"); err != nil || len(must(d.c.Reservations(ctx))(t)) != 0 {
		t.Errorf("delete: %v", err)
	}
}

// Data goes when a user says so, never from under an instance; what no node will ever delete goes at once.
func TestVolumes(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	d.addNode("n2", "beta", "")
	d.create(web(1))
	d.run("web-1", shop, func(i *model.Instance) { i.Slot = 1 })
	d.run("web-2", shop, func(i *model.Instance) { i.Slot, i.Node = 2, "" })
	d.put(func(tx *state.Tx) {
		for slot, node := range []model.NodeID{"n1", "n2", "lost"} {
			id := model.VolumeOf(shop, uint32(slot+1), "data")
			tx.PutVolume(&model.PersistentVolume{ID: id, App: shop, Slot: uint32(slot + 1), Name: "data", Node: node, Size: model.GiB, Created: epoch})
		}
		tx.PutVolume(&model.PersistentVolume{ID: "/gone:1:data", App: "/gone", Slot: 1, Name: "data", Node: "n1", Size: model.GiB, Created: epoch})
	})
	count := func(f client.VolumeFilter) int { t.Helper(); return len(must(d.c.Volumes(ctx, f))(t)) }
	if all, app, node, left := count(client.VolumeFilter{}), count(client.VolumeFilter{App: shop}), count(client.VolumeFilter{Node: "beta"}),
		count(client.VolumeFilter{App: "/gone", Node: "lost"}); all != 4 || app != 3 || node != 1 || left != 0 {
		t.Errorf("%d volumes, %d of the app, %d on beta, %d", all, app, node, left)
	}
	for _, f := range []client.VolumeFilter{{App: "/shop/wep"}, {Node: "betta"}} {
		if _, err := d.c.Volumes(ctx, f); status(err) != http.StatusNotFound {
			t.Errorf("%+v: %v", f, err)
		}
	}
	if _, err := d.c.DeleteVolume(ctx, "/shop/web:1:data"); status(err) != http.StatusConflict || !strings.Contains(err.Error(), "web-1") {
		t.Errorf("in use: %v", err)
	}
	for range 2 { // the instance of slot 2 has not got it yet
		if vol := must(d.c.DeleteVolume(ctx, "/shop/web:2:data"))(t); !vol.Removing || vol.NodeName != "beta" {
			t.Errorf("volume is %+v", vol)
		}
	}
	must(d.c.DeleteVolume(ctx, "/shop/web:3:data"))(t)
	v := d.db.View()
	if vol := v.Volume("/shop/web:2:data"); vol == nil || !vol.Removing || v.Volume("/shop/web:3:data") != nil {
		t.Errorf("volume is %+v", vol)
	}
	if _, err := d.c.DeleteVolume(ctx, "/shop/web:1:date"); status(err) != http.StatusNotFound || !strings.Contains(err.Error(), "did you mean /shop/web:1:data?") {
		t.Errorf("no such volume: %v", err)
	}
	if n := must(d.c.Node(ctx, "n1"))(t); n.Used.Disk != 2*model.GiB {
		t.Errorf("disk in use is %s", n.Used.Disk)
	}
}

// What operators want of a node stands beside what its agent says, and both are one word in the end.
func TestNodeSettings(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	want := func(n client.NodeDetail, word, why string) {
		t.Helper()
		if n.Availability != word || n.Why != why {
			t.Errorf("node is %q because %q, want %q because %q", n.Availability, n.Why, word, why)
		}
	}
	want(must(d.c.Node(ctx, "alpha"))(t), "ready", "")
	want(must(d.c.CordonNode(ctx, "alpha", "new disks"))(t), "cordoned", "new disks")
	rev := d.db.View().Revision()
	want(must(d.c.CordonNode(ctx, "n1", ""))(t), "cordoned", "new disks")
	if d.db.View().Revision() != rev {
		t.Error("a second cordon has written something")
	}
	want(must(d.c.DrainNode(ctx, "n1", client.Drain{Why: "goes back"}))(t), "draining", "goes back")
	want(must(d.c.UncordonNode(ctx, "n1"))(t), "ready", "")
	if d.db.View().Settings("n1") != nil {
		t.Error("settings that say nothing are kept")
	}
	window := model.Maintenance{Start: epoch.Add(-time.Hour), Duration: model.Duration(2 * time.Hour), Every: model.Duration(24 * time.Hour), Why: "firmware"}
	n := must(d.c.PutNodeSettings(ctx, "alpha", &model.NodeSettings{Windows: []model.Maintenance{window}}))(t)
	want(n, "maintenance", "until 2026-01-02T04:04:05Z: firmware")
	if n.Settings == nil || n.Settings.ID != "n1" || len(n.Settings.Windows) != 1 {
		t.Errorf("settings are %+v", n.Settings)
	}
	want(must(d.c.Nodes(ctx))(t)[0], "maintenance", "until 2026-01-02T04:04:05Z: firmware")
	d.put(func(tx *state.Tx) {
		n := *tx.Node("n1")
		n.State = model.NodeUnreachable
		tx.PutNode(&n)
	})
	want(must(d.c.Node(ctx, "n1"))(t), "unreachable", "its agent does not answer")
	must(d.c.PutNodeSettings(ctx, "n1", &model.NodeSettings{}))(t)
	if d.db.View().Settings("n1") != nil {
		t.Error("empty settings are kept")
	}
	var said []string
	for _, e := range d.db.View().Events() {
		said = append(said, e.Message)
	}
	if want := []string{"node alpha is cordoned: new disks", "node alpha is being drained: goes back", "node alpha takes new work",
		"node alpha is under maintenance until 2026-01-02T04:04:05Z: firmware", "node alpha is unreachable: its agent does not answer"}; !slices.Equal(said, want) {
		t.Errorf("events say %q, want %q", said, want)
	}
	d.put(func(tx *state.Tx) {
		n := *tx.Node("n1")
		n.Refused = "its agent is too old"
		tx.PutNode(&n)
	})
	want(must(d.c.Node(ctx, "n1"))(t), "unreachable", "its agent is too old")
	d.refusals("PUT", "/v1/nodes/n1/settings", map[string]string{
		`{"windows":[{"start":"soon","duration":"2h"}]}`:                              "422 body.windows[0].start | 2026-01-31T22:00:00Z",
		`{"windows":[{"start":"2026-01-31T22:00:00Z","duration":"2h","every":"1h"}]}`: "422 body.windows[0].every",
		`{"windows":[{}]}`:   "422 body.windows[0].start | body.windows[0].duration",
		`{"id":"n2"}`:        "422 body.id | the path names n1",
		`{"cordoned":"yes"}`: "422 body.cordoned | true or false",
		`{"why":"` + strings.Repeat("x", 1<<17) + `"}`: "422 body.why",
	})
	d.refusals("POST", "/v1/nodes/alhpa/drain", map[string]string{``: "404 did you mean alpha?"})
	d.refusals("POST", "/v1/nodes/alpha/drain", map[string]string{`{"reason":"x"}`: "422 body.reason"})
}
