package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

// ask calls fn and answers what it asks, and checks that nothing is another afterwards.
func (b *bench) ask(fn func(ctx context.Context)) {
	b.Helper()
	before, free := b.db.View().Revision(), b.free()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn(context.Background())
	}()
	for asked := false; !asked; {
		select {
		case call := <-b.loop.asking:
			call()
		case <-done:
			asked = true
		}
	}
	if err := b.loop.pic.engine.Audit(); err != nil {
		b.Fatalf("the picture after a question: %v", err)
	}
	if after := b.free(); fmt.Sprint(after) != fmt.Sprint(free) {
		b.Fatalf("free before a question: %v\nafter: %v", free, after)
	}
	if b.db.View().Revision() != before {
		b.Fatal("a question wrote something")
	}
}

func (b *bench) free() []string {
	var out []string
	for n := range b.db.View().Nodes() {
		out = append(out, fmt.Sprintf("%s %+v later %+v", n.ID, b.loop.pic.engine.Free(n.ID), b.loop.pic.engine.FreeLater(n.ID)))
	}
	return append(out, fmt.Sprint(b.loop.pic.engine.Instances()))
}

func (b *bench) plan(s *model.Spec) model.Plan {
	b.Helper()
	var out model.Plan
	b.ask(func(ctx context.Context) {
		var err error
		if out, err = b.loop.Plan(ctx, s); err != nil {
			b.Error(err)
		}
	})
	return out
}

func (b *bench) funnel(app model.AppID) model.Funnel {
	b.Helper()
	var out model.Funnel
	b.ask(func(ctx context.Context) {
		var err error
		if out, err = b.loop.Funnel(ctx, app); err != nil {
			b.Error(err)
		}
	})
	return out
}

func counted(v *model.AppVersion, n int) *model.AppVersion {
	v.Spec.Instances = &n
	return v
}

// TestPlan protects what people are told before they do it, and that to ask changes nothing.
func TestPlan(t *testing.T) {
	b := newBench(t)
	limit := model.CPU(1000)
	b.put(func(tx *state.Tx) {
		tx.PutNode(node("a", 4000, 8*model.GiB, 31000, 31009))
		tx.PutNode(node("b", 4000, 8*model.GiB, 31000, 31009))
		tx.PutRole(&model.Role{ID: "/small", Limit: model.Quota{CPUs: &limit}})
		tx.PutVersion(prioritized(counted(app("/low", 1000, model.GiB), 3), 10))
		tx.PutApp(&model.App{ID: "/low", Version: 1})
		db := counted(stateful("/db", 60*model.GiB), 2)
		tx.PutVersion(db)
		tx.PutApp(&model.App{ID: "/db", Version: 1})
		for n := range 3 {
			tx.PutInstance(pending("/low", n))
		}
		tx.PutInstance(slotted("/db", 1, 1))
		tx.PutInstance(slotted("/db", 2, 2))
	})
	b.step()
	v := b.db.View()
	for i := range v.Instances() {
		if i.Node == "" {
			t.Fatalf("%s waits: %s", i.ID, i.Pending)
		}
	}
	spec := func(v *model.AppVersion) *model.Spec { return v.Spec }
	role := func(r model.RoleID, v *model.AppVersion) *model.AppVersion {
		v.Spec.Role = r
		return v
	}
	again := counted(stateful("/db", 60*model.GiB, 30*model.GiB), 3).Spec
	for _, x := range []struct {
		name                          string
		spec                          *model.Spec
		kept, placed, waiting, victim int
		reason                        string
	}{
		{"fits", spec(counted(app("/new", 500, model.GiB, model.Endpoint{Name: "main"}), 8)), 0, 8, 0, 0, ""},
		{"does not fit", spec(app("/new", 5000, model.GiB)), 0, 0, 1, 0, "2 nodes lack CPUs: wants 5, most free is 2.5 on b"},
		{"fits in part", spec(counted(prioritized(app("/new", 2000, model.GiB), 10), 4)), 0, 1, 3, 0, "2 nodes lack CPUs: wants 2, most free is 1.5 on a"},
		{"ends others", spec(counted(prioritized(app("/new", 2000, model.GiB), 90), 3)), 0, 3, 0, 3, "2 nodes lack CPUs: wants 2, most free is 1.5 on a"},
		{"is as it is", spec(prioritized(counted(app("/low", 1000, model.GiB), 3), 10)), 3, 0, 0, 0, ""},
		{"is more of it", spec(prioritized(counted(app("/low", 1000, model.GiB), 5), 10)), 3, 2, 0, 0, ""},
		{"is less of it", spec(prioritized(counted(app("/low", 1000, model.GiB), 1), 10)), 1, 0, 0, 0, ""},
		{"is another version", spec(prioritized(counted(app("/low", 1500, model.GiB), 4), 10)), 0, 4, 0, 0, ""},
		{"has data", spec(counted(stateful("/new", 60*model.GiB), 2)), 0, 0, 2, 0, "2 nodes lack disk: wants 60 GiB, most free is 40 GiB on a"},
		{"finds its data", again, 0, 2, 1, 0, "2 nodes lack disk: wants 90 GiB, most free is 10 GiB on a"},
		{"has its data", counted(stateful("/db", 60*model.GiB), 3).Spec, 2, 0, 1, 0, "2 nodes lack disk: wants 60 GiB, most free is 40 GiB on a"},
		{"is within its role", spec(counted(role("/small", app("/new", 500, model.GiB)), 2)), 0, 2, 0, 0, ""},
		{"is beyond its role", spec(counted(role("/small", app("/new", 500, model.GiB)), 3)), 0, 2, 1, 0, "role /small is at its limit: 1 of 1 CPUs are in use, one more takes 0.5"},
		{"has a role that nobody made", spec(counted(role("/small/who", app("/new", 500, model.GiB)), 3)), 0, 2, 1, 0, "role /small is at its limit: 1 of 1 CPUs are in use, one more takes 0.5"},
	} {
		t.Run(x.name, func(t *testing.T) {
			p := b.plan(x.spec)
			if p.Kept != x.kept || p.Placed != x.placed || p.Waiting != x.waiting || len(p.Preempted) != x.victim || p.Funnel.Reason != x.reason {
				t.Errorf("keeps %d, places %d, %d wait, %d end (%s)", p.Kept, p.Placed, p.Waiting, len(p.Preempted), p.Funnel.Reason)
			}
			sum := 0
			for _, n := range p.Nodes {
				sum += n.Instances
				if n.Free.CPUs < 0 || n.Free.Memory < 0 || n.Free.Disk < 0 {
					t.Errorf("%s would have %+v free", n.Node, n.Free)
				}
			}
			if sum != p.Placed {
				t.Errorf("%d are on nodes, %d are placed", sum, p.Placed)
			}
		})
	}
}

// TestPlanTellsTheTruth protects plans from being guesses: what is done right after one is what it said. With a policy that
// learns from what is asked for, and so from the plan's app once it is there, only the numbers are.
func TestPlanTellsTheTruth(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		for n := range 5 {
			tx.PutNode(node(fmt.Sprint("n", n), model.CPU(1000*(n+1)), 8*model.GiB, 31000, 31009))
		}
	})
	b.step()
	v := counted(app("/web", 700, model.GiB, model.Endpoint{Name: "main"}), 9)
	v.Spec.Constraints = []model.Constraint{{Attribute: "hostname", Operator: model.OpMaxPer, Value: "3"}}
	v.Spec.Placement = model.PolicyBalanced
	p := b.plan(v.Spec)
	b.put(func(tx *state.Tx) {
		tx.PutVersion(v)
		for n := range 9 {
			tx.PutInstance(pending("/web", n))
		}
	})
	b.step()
	on := map[model.NodeID]int{}
	for i := range b.db.View().InstancesOf("/web") {
		on[i.Node]++
	}
	for _, n := range p.Nodes {
		if on[n.Node] != n.Instances {
			t.Errorf("%d are on %s, planned were %d", on[n.Node], n.Node, n.Instances)
		}
		if got := b.loop.pic.engine.Free(n.Node); got != n.Free {
			t.Errorf("%s has %+v free, planned was %+v", n.Node, got, n.Free)
		}
	}
	if p.Placed != 9 || on[""] != 0 {
		t.Errorf("%d were planned, %d wait", p.Placed, on[""])
	}
}

// TestFunnel protects the way from all nodes to those that fit.
func TestFunnel(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		for n := range 6 {
			x := node(fmt.Sprint("n", n), 4000, 8*model.GiB, 0, 0)
			x.Attributes = map[string]string{"rack": fmt.Sprint("r", n%3)}
			tx.PutNode(x)
		}
		tx.PutSettings(&model.NodeSettings{ID: "n0", Cordoned: true})
		v := app("/web", 2000, 9*model.GiB)
		v.Spec.Constraints = []model.Constraint{{Attribute: "rack", Operator: model.OpUnlike, Value: "r1"}}
		tx.PutVersion(v)
		tx.PutApp(&model.App{ID: "/web", Version: 1})
		tx.PutInstance(pending("/web", 1))
	})
	b.step()
	f := b.funnel("/web")
	got := fmt.Sprint(f.Nodes)
	for _, s := range f.Steps {
		got += fmt.Sprintf(", %s %d %d", s.Filter, s.Removed, s.Left)
	}
	if want := "6, state cordoned 1 5, constraint rack UNLIKE r1 2 3, memory 3 0"; got != want || f.Fit != 0 || f.Reason != b.instance("web-00001").Pending {
		t.Errorf("%s: %s", got, f.Reason)
	}
	b.ask(func(ctx context.Context) {
		if _, err := b.loop.Funnel(ctx, "/none"); err == nil || err.Error() != "app /none does not exist" {
			t.Errorf("an app that does not exist: %v", err)
		}
	})
}

// TestMoves protects that proposals are made to whoever asks where nothing is moved by itself, but not where it is off.
func TestMoves(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		for _, id := range []string{"a", "b"} {
			tx.PutNode(node(id, 4000, 8*model.GiB, 0, 0))
			i := pending("/web", int(id[0]))
			i.Node, i.Status.Phase, i.Status.Ready = model.NodeID(id), model.PhaseRunning, true
			tx.PutInstance(i)
		}
		tx.PutVersion(counted(app("/web", 500, model.GiB), 2))
		tx.PutApp(&model.App{ID: "/web", Version: 1})
	})
	b.step()
	moves := func(pool string) []model.Move {
		var out []model.Move
		b.ask(func(ctx context.Context) {
			var err error
			if out, err = b.loop.Moves(ctx, pool); err != nil {
				t.Error(err)
			}
		})
		return out
	}
	for _, pool := range []string{"", model.DefaultPool} {
		list := moves(pool)
		if len(list) != 1 || list[0].From != "a" || list[0].To != "b" || list[0].Gain != "a becomes empty: 4 CPUs and 8 GiB in one piece" {
			t.Errorf("pool %q: %+v", pool, list)
		}
	}
	if list := moves("other"); len(list) != 0 {
		t.Errorf("another pool: %+v", list)
	}
	b.put(func(tx *state.Tx) { tx.PutPool(&model.Pool{Name: model.DefaultPool, Defragment: model.DefragmentOff}) })
	b.step()
	if list := moves(""); len(list) != 0 {
		t.Errorf("off: %+v", list)
	}
}

// TestQuestionsWhileBusy protects a round from questions in the middle of it, and those who ask from waiting for its end: what is
// asked is answered, and what is placed is placed as if nobody had asked.
func TestQuestionsWhileBusy(t *testing.T) {
	db := memory.Open(time.Now)
	l := New(db, Config{Logger: slog.New(slog.DiscardHandler)})
	l.chunk = 20
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Run(ctx) })
	write := func(fn func(*state.Tx)) {
		if err := db.Update(ctx, func(tx *state.Tx) error { fn(tx); return nil }); err != nil {
			t.Error(err)
		}
	}
	write(func(tx *state.Tx) {
		for n := range 40 {
			tx.PutNode(node(fmt.Sprintf("n%02d", n), 10_000, 64*model.GiB, 31000, 31999))
		}
		tx.PutVersion(counted(app("/web", 100, 128*model.MiB, model.Endpoint{Name: "main"}), 1000))
		tx.PutApp(&model.App{ID: "/web", Version: 1})
	})
	var askers sync.WaitGroup
	var done atomic.Bool
	for range 3 {
		askers.Go(func() {
			for !done.Load() {
				p, err := l.Plan(ctx, counted(app("/plan", 100, model.GiB), 10).Spec)
				if err != nil || p.Placed != 10 {
					t.Errorf("%d of 10 are placed: %v", p.Placed, err)
				}
				if _, err := l.Funnel(ctx, "/web"); err != nil {
					t.Error(err)
				}
				if _, err := l.Moves(ctx, ""); err != nil {
					t.Error(err)
				}
			}
		})
	}
	_, watch := db.Watch()
	defer watch.Close()
	for n := range 10 {
		write(func(tx *state.Tx) {
			for k := range 100 {
				tx.PutInstance(pending("/web", 100*n+k))
			}
		})
		for placed(db.View(), "/web") < 100*(n+1) {
			<-watch.Ready()
		}
	}
	done.Store(true)
	askers.Wait()
	stop()
	wg.Wait()
	if msg := audit(db.View()); msg != "" {
		t.Error(msg)
	}
	if db.View().InstanceCount() != 1000 {
		t.Errorf("there are %d instances", db.View().InstanceCount())
	}
	if _, err := l.Plan(context.Background(), app("/x", 1, 1).Spec); !errors.Is(err, ErrStopped) {
		t.Errorf("after its end: %v", err)
	}
}

// TestQuestionInTheMiddle protects a round from a question between two of its transactions: both have what they would have
// had alone.
func TestQuestionInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.put(func(tx *state.Tx) {
			tx.PutNode(node("a", 5000, 64*model.GiB, 0, 0))
			tx.PutVersion(app("/web", 100, model.GiB))
		})
		b.step()
		b.loop.chunk = 5
		b.put(func(tx *state.Tx) {
			for n := range 40 {
				tx.PutInstance(pending("/web", n))
			}
		})
		var p model.Plan
		go func() {
			var err error
			if p, err = b.loop.Plan(t.Context(), counted(app("/plan", 100, model.GiB), 10).Spec); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		writes := 0
		b.loop.store = &interloper{Store: b.db, each: func() { writes++ }}
		b.step()
		synctest.Wait()
		if writes != 8 {
			t.Errorf("%d transactions for 8 times 5 instances", writes)
		}
		if p.Placed != 10 || placed(b.db.View(), "/web") != 40 {
			t.Errorf("%d of 10 are planned, %d of 40 placed", p.Placed, placed(b.db.View(), "/web"))
		}
		b.step()
		b.asFresh()
	})
}

// TestImpatientQuestion protects who asks and does not want to wait any more.
func TestImpatientQuestion(t *testing.T) {
	l := New(memory.Open(time.Now), Config{})
	ctx, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	if _, err := l.Moves(ctx, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody works: %v", err)
	}
}

// TestEvenOverZones protects that an app that says nothing itself is spread evenly over zones and packed within them, that a pool
// may leave it to packing, and that people are told how many are where.
func TestEvenOverZones(t *testing.T) {
	b := newBench(t)
	b.put(func(tx *state.Tx) {
		for name, zone := range map[string][2]string{"a": {"north", "x"}, "b": {"north", "x"}, "c": {"north", "y"}, "d": {"south", "y"}} {
			n := node(name, 8000, 16*model.GiB, 31000, 31009)
			n.Region, n.Zone = zone[0], zone[1]
			tx.PutNode(n)
		}
		tx.PutVersion(counted(app("/web", 1000, model.GiB), 5))
		tx.PutApp(&model.App{ID: "/web", Version: 1})
		for n := range 5 {
			tx.PutInstance(pending("/web", n))
		}
	})
	b.step()
	on := map[model.NodeID]int{}
	for i := range b.db.View().Instances() {
		on[i.Node]++
	}
	if x, y, z := on["a"]+on["b"], on["c"], on["d"]; max(x, y, z) > 2 || min(x, y, z) < 1 || min(on["a"], on["b"]) > 0 {
		t.Errorf("they are on %v, and were to be even over three zones, and packed", on)
	}
	if s := b.funnel("/web").Spread; !strings.Contains(s, "north/y has ") || !strings.Contains(s, "south/y has ") || !strings.Contains(s, ", x has ") {
		t.Errorf("the funnel says: spread %s", s)
	}

	six := counted(app("/six", 1000, model.GiB), 6).Spec
	if pl := b.plan(six); pl.Funnel.Spread != "evenly over zones, as the app says nothing itself: north/y has 2, south/y has 2, x has 2" {
		t.Errorf("the plan says: spread %s", pl.Funnel.Spread)
	}
	if pl := b.plan(counted(app("/one", 1000, model.GiB), 1).Spec); pl.Funnel.Spread != "" {
		t.Errorf("of one instance the plan says: spread %s", pl.Funnel.Spread)
	}
	own := counted(app("/own", 1000, model.GiB), 6).Spec
	own.Constraints = []model.Constraint{{Attribute: model.AttrZone, Operator: model.OpCluster}}
	if pl := b.plan(own); pl.Funnel.Spread != "" || pl.Placed != 6 {
		t.Errorf("of an app with a rule of its own the plan says: %d are placed, spread %s", pl.Placed, pl.Funnel.Spread)
	}

	b.put(func(tx *state.Tx) { tx.PutPool(&model.Pool{Name: model.DefaultPool, Spread: model.SpreadOff}) })
	b.step()
	if pl := b.plan(six); pl.Funnel.Spread != "" || len(pl.Nodes) != 1 {
		t.Errorf("in a pool without it the plan says: %+v, spread %s", pl.Nodes, pl.Funnel.Spread)
	}
	b.put(func(tx *state.Tx) { tx.DeletePool(model.DefaultPool) })
	b.step()
	if pl := b.plan(six); pl.Funnel.Spread == "" || len(pl.Nodes) != 3 {
		t.Errorf("in a pool with the defaults again the plan says: %+v, spread %s", pl.Nodes, pl.Funnel.Spread)
	}
}
