package scheduler

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/engine"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// bench is a store, a clock and a loop.
type bench struct {
	testing.TB
	now  time.Time
	db   *state.DB
	loop *Loop
	made int // apps
}

func newBench(t testing.TB) *bench {
	b := &bench{TB: t, now: epoch}
	clock := func() time.Time { return b.now }
	b.db = memory.Open(clock)
	b.loop = New(b.db, Config{Now: clock})
	return b
}

func (b *bench) put(fn func(*state.Tx)) {
	b.Helper()
	if err := b.db.Update(context.Background(), func(tx *state.Tx) error { fn(tx); return nil }); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) step() time.Time {
	b.Helper()
	next, err := b.loop.Step(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	return next
}

func node(id string, cpus model.CPU, memory model.Bytes, first, last uint16) *model.Node {
	return &model.Node{
		ID: model.NodeID(id), Name: id, State: model.NodeReady, OCI: model.Ability{OK: true},
		Capacity: model.Resources{CPUs: cpus, Memory: memory, Disk: 100 * model.GiB}, Ports: model.PortRange{First: first, Last: last},
	}
}

func app(id model.AppID, cpus model.CPU, memory model.Bytes, endpoints ...model.Endpoint) *model.AppVersion {
	return &model.AppVersion{App: id, Version: 1, Spec: &model.Spec{
		ID: id, Containers: []model.Container{{Shell: "run", CPUs: cpus, Memory: memory}}, Endpoints: endpoints,
	}}
}

func pending(app model.AppID, n int) *model.Instance {
	return &model.Instance{
		ID: model.InstanceID(fmt.Sprintf("%s-%05d", app.Name(), n)), App: app, Version: 1, Created: epoch, Desired: model.Run,
		Status: model.Status{Phase: model.PhasePending, Since: epoch},
	}
}

func (b *bench) instance(id model.InstanceID) *model.Instance {
	b.Helper()
	i := b.db.View().Instance(id)
	if i == nil {
		b.Fatalf("no instance %s", id)
	}
	return i
}

func (b *bench) change(id model.InstanceID, fn func(*model.Instance)) {
	b.Helper()
	b.put(func(tx *state.Tx) {
		i := tx.Instance(id).Clone()
		fn(i)
		tx.PutInstance(i)
	})
}

func over(i *model.Instance) { i.Status.Phase = model.PhaseStopped }

// TestPlacedInstance protects what a placement writes.
func TestPlacedInstance(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 1000, model.GiB, 31000, 31009))
		tx.PutVersion(app("/web", 500, 128*model.MiB,
			model.Endpoint{Name: "one"}, model.Endpoint{Name: "two", Port: 53, Protocol: "udp"}, model.Endpoint{Name: "three", Protocol: "udp"}))
		i := pending("/web", 1)
		i.Pending = "no node has joined yet"
		tx.PutInstance(i)
	})
	b.now = epoch.Add(time.Second)
	b.step()
	i := b.instance("web-00001")
	if i.Node != "a" || !slices.Equal(i.Ports, []uint16{31000, 53, 31001}) || i.Pending != "" ||
		i.Status.Phase != model.PhaseAssigned || i.Status.Attempt != 0 || !i.Status.Since.Equal(b.now) {
		t.Fatalf("placed as %+v", i)
	}
}

// TestHeldUntilOver protects what is still running: an instance that was told to stop keeps its resources and ports.
func TestHeldUntilOver(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 1000, model.GiB, 31000, 31009))
		tx.PutVersion(app("/web", 600, 128*model.MiB))
		tx.PutInstance(pending("/web", 1))
	})
	b.step()
	b.put(func(tx *state.Tx) { tx.PutInstance(pending("/web", 2)) })
	b.change("web-00001", func(i *model.Instance) { i.Desired = model.Halt })
	b.step()
	if i := b.instance("web-00002"); i.Node != "" || i.Pending != "1 node lacks CPUs: wants 0.6, most free is 0.4 on a" {
		t.Fatalf("on %q: %s", i.Node, i.Pending)
	}
	b.change("web-00001", over)
	b.step()
	if i := b.instance("web-00002"); i.Node != "a" || i.Pending != "" {
		t.Fatalf("on %q: %s", i.Node, i.Pending)
	}
}

// TestFreedPortRests protects clients of an instance that just ended: its port is not another's at once.
func TestFreedPortRests(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 100_000, 64*model.GiB, 31000, 31003))
		tx.PutVersion(app("/web", 100, 128*model.MiB, model.Endpoint{Name: "main"}))
	})
	var got []uint16
	for n := range 6 {
		b.put(func(tx *state.Tx) { tx.PutInstance(pending("/web", n)) })
		b.step()
		id := pending("/web", n).ID
		got = append(got, b.instance(id).Ports...)
		b.change(id, over)
	}
	if want := []uint16{31000, 31001, 31002, 31003, 31000, 31001}; !slices.Equal(got, want) {
		t.Fatalf("ports were %v, want %v", got, want)
	}
	b.put(func(tx *state.Tx) {
		for n := range 5 {
			tx.PutInstance(pending("/web", 10+n))
		}
	})
	b.step()
	if i := b.instance("web-00014"); i.Pending != "1 node lacks free ports to assign: wants 1" {
		t.Fatalf("a fifth instance on four ports: on %q %v: %s", i.Node, i.Ports, i.Pending)
	}
}

// TestLateChangesWin protects the re-check in the transaction: an instance that was stopped, or a node that went away,
// after the ledger was asked.
func TestLateChangesWin(t *testing.T) {
	for name, late := range map[string]func(*state.Tx){
		"stopped": func(tx *state.Tx) {
			i := tx.Instance("web-00001").Clone()
			i.Desired, i.Status.Phase = model.Halt, model.PhaseStopped
			tx.PutInstance(i)
		},
		"gone": func(tx *state.Tx) { tx.DeleteInstance("web-00001") },
		"unreachable": func(tx *state.Tx) {
			n := *tx.Node("a")
			n.State = model.NodeUnreachable
			tx.PutNode(&n)
		},
		"removed": func(tx *state.Tx) { tx.DeleteNode("a") },
		"placed": func(tx *state.Tx) {
			i := tx.Instance("web-00001").Clone()
			i.Node, i.Status.Phase = "b", model.PhaseAssigned
			tx.PutInstance(i)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.put(func(tx *state.Tx) {
				tx.PutNode(node("a", 1000, model.GiB, 31000, 31009))
				tx.PutVersion(app("/web", 600, 128*model.MiB))
				tx.PutInstance(pending("/web", 1))
			})
			b.loop.store = &interloper{Store: b.db, do: late}
			b.step()
			b.step()
			if i := b.db.View().Instance("web-00001"); i != nil && i.Node == "a" {
				t.Fatalf("placed on %s", i.Node)
			}
			if e := b.loop.pic.engine; name != "placed" && e.Instances() != 0 || e.Free("a").CPUs%1000 != 0 {
				t.Fatalf("its place is still held: %v is free", e.Free("a"))
			}
		})
	}
}

// interloper writes once, in the first transaction, before its owner does, and sees each of them.
type interloper struct {
	state.Store
	do   func(*state.Tx)
	each func()
}

func (s *interloper) Update(ctx context.Context, fn func(*state.Tx) error) error {
	return s.Store.Update(ctx, func(tx *state.Tx) error {
		if s.do != nil {
			s.do(tx)
			s.do = nil
		}
		if s.each != nil {
			s.each()
		}
		return fn(tx)
	})
}

// TestSentences protects what people read about a pending instance.
func TestSentences(t *testing.T) {
	b := newBench(t)
	big := app("/big", 500, 4*model.GiB)
	image := app("/image", 100, 128*model.MiB)
	image.Spec.Containers[0].Image = "nginx"
	b.put(func(tx *state.Tx) {
		tx.PutVersion(big)
		tx.PutVersion(image)
		tx.PutInstance(pending("/big", 1))
	})
	says := func(id model.InstanceID, want string) {
		t.Helper()
		b.now = b.now.Add(time.Minute)
		b.step()
		b.step()
		if got := b.instance(id).Pending; got != want {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
	}
	says("big-00001", "no node has joined yet")
	a, c := node("a", 4000, 5*model.GiB/2, 0, 0), node("c", 300, 2*model.GiB, 0, 0)
	a.OCI = model.Ability{Why: "needs root"}
	b.put(func(tx *state.Tx) { tx.PutNode(a); tx.PutNode(c) })
	says("big-00001", "2 nodes lack memory: wants 4 GiB, most free is 2.5 GiB on a; 1 node lacks CPUs: wants 0.5, most free is 0.3 on c")
	away := *c
	away.State = model.NodeUnreachable
	b.put(func(tx *state.Tx) { tx.PutNode(&away); tx.PutInstance(pending("/image", 1)) })
	says("image-00001", "1 node cannot run images: needs root; 1 node is unreachable")
	b.put(func(tx *state.Tx) {
		tx.PutVersion(app("/redis", 100, 128*model.MiB, model.Endpoint{Name: "main", Port: 6379}))
		tx.PutInstance(pending("/redis", 1))
	})
	says("redis-00001", "")
	b.put(func(tx *state.Tx) { tx.PutInstance(pending("/redis", 2)) })
	says("redis-00002", "port 6379/tcp is taken on 1 node (by redis-00001); 1 node is unreachable")
	b.put(func(tx *state.Tx) { tx.PutInstance(pending("/nothing", 1)) })
	says("nothing-00001", "version 1 of /nothing does not exist")
}

// TestSentencesDoNotFlood protects the store: while a class waits and only the numbers of its sentence change, it is
// written now and then, not every time; nothing at all is written when nothing changes.
func TestSentencesDoNotFlood(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 10_000, 64*model.GiB, 0, 0))
		tx.PutVersion(app("/huge", 20_000, model.GiB))
		tx.PutVersion(app("/small", 100, model.GiB))
		for n := range 1000 {
			tx.PutInstance(pending("/huge", n))
		}
		for n := range 20 {
			tx.PutInstance(pending("/small", n))
		}
	})
	b.step()
	writes := 0
	for n := range 20 {
		b.change(pending("/small", n).ID, over)
		before := b.db.View().Revision()
		b.step()
		writes += int(b.db.View().Revision() - before)
	}
	if writes != 0 {
		t.Errorf("%d transactions to repeat a sentence within the same moment", writes)
	}
	next := b.step()
	if next.IsZero() || next.Sub(b.now) > 5*time.Second {
		t.Fatalf("the sentence will be brought up to date at %v", next)
	}
	b.now = next
	b.step()
	if got, want := b.instance("huge-00999").Pending, "1 node lacks CPUs: wants 20, most free is 10 on a"; got != want {
		t.Errorf("says %q, want %q", got, want)
	}
	before := b.db.View().Revision()
	b.now = b.now.Add(time.Hour)
	if next := b.step(); !next.IsZero() || b.db.View().Revision() != before {
		t.Errorf("something was written, or will be at %v, though nothing changed", next)
	}
}

// TestRestart protects that a picture built from a view is the same as one that followed every change.
func TestRestart(t *testing.T) {
	b := newBench(t)
	rnd := rand.New(rand.NewPCG(7, 7))
	life(b, rnd, 300)
	b.step()
	fresh, kept := newPicture(b.db.View(), b.now).engine, b.loop.pic.engine
	for n := range b.db.View().Nodes() {
		if fresh.Free(n.ID) != kept.Free(n.ID) {
			t.Errorf("%s: %v is free, %v when followed", n.ID, fresh.Free(n.ID), kept.Free(n.ID))
		}
	}
	if fresh.Instances() != kept.Instances() {
		t.Errorf("%d holds, %d when followed", fresh.Instances(), kept.Instances())
	}
	for _, e := range []*engine.Engine{fresh, kept} {
		if err := e.Audit(); err != nil {
			t.Error(err)
		}
	}
}

// life makes random nodes, apps and instances come and go.
func life(b *bench, rnd *rand.Rand, steps int) {
	for range steps {
		b.made++
		b.put(func(tx *state.Tx) {
			n := node(fmt.Sprint("n", rnd.IntN(4)), model.CPU(rnd.IntN(40)*100), model.Bytes(rnd.IntN(16))*model.GiB, 31000, 31005)
			n.OCI.OK = rnd.IntN(2) == 0
			if rnd.IntN(4) == 0 {
				n.State = model.NodeUnreachable
			}
			if old := tx.Node(n.ID); old == nil || old.State != n.State {
				if old != nil {
					n.Capacity = old.Capacity
				}
				tx.PutNode(n)
			}
			id := model.AppID(fmt.Sprintf("/app%02d", b.made))
			var ends []model.Endpoint
			for e := range rnd.IntN(3) {
				ends = append(ends, model.Endpoint{
					Name: fmt.Sprint("e", e), Port: []int{0, 31002 + e, 6379 + e}[rnd.IntN(3)], Protocol: []string{"tcp", "udp", ""}[rnd.IntN(3)],
				})
			}
			v := app(id, model.CPU(1+rnd.IntN(10))*100, model.Bytes(1+rnd.IntN(8))*model.GiB/2, ends...)
			if rnd.IntN(3) == 0 {
				v.Spec.Containers[0].Image = "x"
			}
			tx.PutVersion(v)
			for k := range rnd.IntN(5) {
				tx.PutInstance(pending(id, k))
			}
			for i := range tx.Instances() {
				if rnd.IntN(5) == 0 {
					i = i.Clone()
					i.Desired = model.Halt
					if rnd.IntN(2) == 0 || i.Node == "" {
						i.Status.Phase = model.PhaseStopped
					}
					tx.PutInstance(i)
				}
			}
		})
		b.now = b.now.Add(10 * time.Second)
		b.step()
		b.step()
	}
}

// TestNeverOvercommits protects, over random lives: what is placed fits its node, no port is given twice, and whatever
// is left pending fits nowhere, as a count from scratch of every record says.
func TestNeverOvercommits(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		b := newBench(t)
		for s := range 10 {
			life(b, rnd, 3)
			if msg := audit(b.db.View()); msg != "" {
				t.Fatalf("seed %d after %d: %s", seed, s, msg)
			}
		}
	}
}

// free is one node's resources, counted from the records without the ledger.
type free struct {
	node  *model.Node
	res   model.Resources
	ports map[string]model.InstanceID
}

func protocol(e model.Endpoint) string {
	if e.Protocol == "udp" {
		return "udp"
	}
	return "tcp"
}

func audit(v state.View) string {
	var all []*free
	for n := range v.Nodes() {
		f := &free{n, n.Capacity, map[string]model.InstanceID{}}
		for i := range v.InstancesOn(n.ID) {
			if i.Over() {
				continue
			}
			spec := v.Version(i.App, i.Version).Spec
			f.res = f.res.Sub(spec.Resources())
			if len(i.Ports) != len(spec.Endpoints) {
				return fmt.Sprintf("%s has %d ports for %d endpoints", i.ID, len(i.Ports), len(spec.Endpoints))
			}
			for k, e := range spec.Endpoints {
				key := fmt.Sprintf("%d/%s", i.Ports[k], protocol(e))
				if f.ports[key] != "" {
					return fmt.Sprintf("%s on %s is given to %s and %s", key, n.ID, f.ports[key], i.ID)
				}
				f.ports[key] = i.ID
				if e.Port != 0 && int(i.Ports[k]) != e.Port || e.Port == 0 && (i.Ports[k] < n.Ports.First || i.Ports[k] > n.Ports.Last) {
					return fmt.Sprintf("%s has port %d for %+v", i.ID, i.Ports[k], e)
				}
			}
		}
		if f.res.CPUs < 0 || f.res.Memory < 0 {
			return fmt.Sprintf("%s is overcommitted: %+v", n.ID, f.res)
		}
		all = append(all, f)
	}
	for i := range v.Pending() {
		if i.Pending == "" {
			return fmt.Sprintf("%s waits without a sentence", i.ID)
		}
		for _, f := range all {
			if f.fits(v.Version(i.App, i.Version).Spec) {
				return fmt.Sprintf("%s waits (%s) though %s has room: %+v", i.ID, i.Pending, f.node.ID, f.res)
			}
		}
	}
	return ""
}

func (f *free) fits(s *model.Spec) bool {
	if f.node.State != model.NodeReady || !f.res.Fits(s.Resources()) || s.Containers[0].Image != "" && !f.node.OCI.OK {
		return false
	}
	wants := map[string]int{}
	own := map[string]bool{}
	for _, e := range s.Endpoints {
		if e.Port == 0 {
			wants[protocol(e)]++
			continue
		}
		key := fmt.Sprintf("%d/%s", e.Port, protocol(e))
		if f.ports[key] != "" || own[key] {
			return false
		}
		own[key] = true
	}
	for proto, n := range wants {
		for p := int(f.node.Ports.First); p <= int(f.node.Ports.Last); p++ {
			if key := fmt.Sprintf("%d/%s", p, proto); f.ports[key] == "" && !own[key] {
				n--
			}
		}
		if n > 0 {
			return false
		}
	}
	return true
}

// TestFeasibility compares with a search through all ways to place a class: as many of its instances are placed as can
// be, on clusters where other work runs already.
func TestFeasibility(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		b := newBench(t)
		life(b, rnd, 3)
		var before []*free
		v := b.db.View()
		for n := range v.Nodes() {
			before = append(before, count(v, n))
		}
		ver := app("/class", model.CPU(1+rnd.IntN(10))*100, model.Bytes(1+rnd.IntN(4))*model.GiB,
			[]model.Endpoint{{Name: "main", Port: []int{0, 80}[rnd.IntN(2)]}}[:rnd.IntN(2)]...)
		want := 1 + rnd.IntN(6)
		b.put(func(tx *state.Tx) {
			for i := range tx.Pending() { // only the class competes
				i = i.Clone()
				i.Desired, i.Status.Phase = model.Halt, model.PhaseStopped
				tx.PutInstance(i)
			}
			tx.PutVersion(ver)
			for k := range want {
				tx.PutInstance(pending("/class", k))
			}
		})
		b.step()
		placed := 0
		for i := range b.db.View().InstancesOf("/class") {
			if i.Node != "" {
				placed++
			}
		}
		if best := search(before, ver.Spec, want); placed != best {
			t.Fatalf("seed %d: placed %d, but %d of %d can be", seed, placed, best, want)
		}
	}
}

func count(v state.View, n *model.Node) *free {
	f := &free{n, n.Capacity, map[string]model.InstanceID{}}
	for i := range v.InstancesOn(n.ID) {
		if i.Over() {
			continue
		}
		spec := v.Version(i.App, i.Version).Spec
		f.res = f.res.Sub(spec.Resources())
		for k, e := range spec.Endpoints {
			f.ports[fmt.Sprintf("%d/%s", i.Ports[k], protocol(e))] = i.ID
		}
	}
	return f
}

// search tries every node for each of n instances and returns how many can be placed at most.
func search(nodes []*free, s *model.Spec, n int) int {
	if n == 0 {
		return 0
	}
	best := 0
	for _, f := range nodes {
		if !f.fits(s) {
			continue
		}
		var took []string
		f.res = f.res.Sub(s.Resources())
		for _, e := range s.Endpoints {
			p := e.Port
			for q := int(f.node.Ports.First); p == 0; q++ {
				if f.ports[fmt.Sprintf("%d/%s", q, protocol(e))] == "" {
					p = q
				}
			}
			key := fmt.Sprintf("%d/%s", p, protocol(e))
			f.ports[key] = "x"
			took = append(took, key)
		}
		best = max(best, 1+search(nodes, s, n-1))
		f.res = f.res.Add(s.Resources())
		for _, key := range took {
			delete(f.ports, key)
		}
		if best == n {
			break
		}
	}
	return best
}

// TestFixedPortsGoFirst protects a fixed port from an assigned one of the same batch.
func TestFixedPortsGoFirst(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 4000, 8*model.GiB, 31000, 31002))
		tx.PutVersion(app("/any", 1000, model.GiB, model.Endpoint{Name: "main"}))
		tx.PutVersion(app("/zzz", 100, 128*model.MiB, model.Endpoint{Name: "any"}, model.Endpoint{Name: "main", Port: 31000}))
		tx.PutInstance(pending("/any", 1))
		tx.PutInstance(pending("/zzz", 1))
	})
	b.step()
	if i := b.instance("zzz-00001"); !slices.Equal(i.Ports, []uint16{31001, 31000}) {
		t.Errorf("zzz has %v: %s", i.Ports, i.Pending)
	}
	if i := b.instance("any-00001"); !slices.Equal(i.Ports, []uint16{31002}) {
		t.Errorf("any has %v: %s", i.Ports, i.Pending)
	}
}

// TestRun protects the loop around it all: it places, outlives a store that fails for a while, and ends when another
// server leads.
func TestRun(t *testing.T) {
	store := memory.New()
	db := store.Open(time.Now)
	leader, err := db.Lead(context.Background(), "one")
	if err != nil {
		t.Fatal(err)
	}
	update := func(fn func(*state.Tx)) {
		if err := db.Update(context.Background(), func(tx *state.Tx) error { fn(tx); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	update(func(tx *state.Tx) {
		tx.PutNode(node("a", 4000, 8*model.GiB, 31000, 31002))
		tx.PutVersion(app("/web", 100, model.GiB))
		tx.PutInstance(pending("/web", 1))
	})
	_, watch := db.Watch()
	done := make(chan error, 1)
	go func() { done <- New(&failing{Store: leader, left: 2}, Config{}).Run(context.Background()) }()
	for db.View().Instance("web-00001").Node == "" {
		select {
		case <-watch.Ready():
		case err := <-done:
			t.Fatalf("Run ended: %v", err)
		}
	}
	if _, err := db.Lead(context.Background(), "two"); err != nil {
		t.Fatal(err)
	}
	update(func(tx *state.Tx) { tx.PutInstance(pending("/web", 2)) })
	if err := <-done; !errors.Is(err, state.ErrDeposed) {
		t.Fatalf("Run of a deposed leader ended with %v", err)
	}
}

type failing struct {
	state.Store
	left int
}

func (s *failing) Update(ctx context.Context, fn func(*state.Tx) error) error {
	if s.left > 0 {
		s.left--
		return state.ErrUnavailable
	}
	return s.Store.Update(ctx, fn)
}

// TestPendingIsAnEvent protects that people who follow events hear once of what cannot be placed.
func TestPendingIsAnEvent(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		tx.PutVersion(app("/web", 100, model.GiB))
		tx.PutInstance(pending("/web", 1))
		tx.PutInstance(pending("/web", 2))
	})
	for range 3 {
		b.step()
	}
	events := b.db.View().Events()
	if len(events) != 1 || !strings.HasPrefix(events[0].Message, "2 instances of version 1 of /web cannot be placed: no node") {
		t.Fatalf("events: %+v", events)
	}
}

func BenchmarkPlace(b *testing.B) {
	for _, size := range []struct{ nodes, instances, classes int }{{100, 10_000, 1}, {100, 10_000, 1000}, {10_000, 10_000, 10}} {
		b.Run(fmt.Sprintf("%d-on-%d-of-%d", size.instances, size.nodes, size.classes), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				k := newBench(b)
				k.put(func(tx *state.Tx) {
					for n := range size.nodes {
						tx.PutNode(node(fmt.Sprintf("n%05d", n), 64_000, 256*model.GiB, 20000, 32000))
					}
					for c := range size.classes {
						tx.PutVersion(app(model.AppID(fmt.Sprint("/app", c)), 100, 128*model.MiB, model.Endpoint{Name: "main"}))
					}
				})
				k.step()
				k.put(func(tx *state.Tx) {
					for n := range size.instances {
						tx.PutInstance(pending(model.AppID(fmt.Sprint("/app", n%size.classes)), n))
					}
				})
				b.StartTimer()
				k.step()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*size.instances), "µs/instance")
		})
	}
}
