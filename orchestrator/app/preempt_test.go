package app_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/orchestrator/app"
	"github.com/gantry-os/gantry/scheduler"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

// pair is both loops, stepped by hand, over one store, with agents that do at once what they are told, but end
// programs only when ends is set.
type pair struct {
	testing.TB
	now     time.Time
	db      *state.DB
	apps    *app.Loop
	places  *scheduler.Loop
	made    int
	ends    bool
	evicted map[model.InstanceID]model.EvictKind // all that ever were
}

func newPair(t testing.TB, nodes ...*model.Node) *pair {
	c := &pair{TB: t, now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), ends: true, evicted: map[model.InstanceID]model.EvictKind{}}
	c.db = memory.Open(c.clock)
	c.lead()
	c.put(func(tx *state.Tx) {
		for _, n := range nodes {
			tx.PutNode(n)
		}
	})
	return c
}

func (c *pair) clock() time.Time { return c.now }

// lead begins both loops anew, as another server would.
func (c *pair) lead() {
	log := slog.New(slog.DiscardHandler)
	c.apps = app.New(c.db, app.Config{Now: c.clock, Logger: log, NewID: func(prefix string) string {
		c.made++
		return fmt.Sprintf("%s-%04d", prefix, c.made)
	}})
	c.places = scheduler.New(c.db, scheduler.Config{Now: c.clock, Logger: log})
}

func machine(id string, cpus model.CPU) *model.Node {
	return &model.Node{
		ID: model.NodeID(id), Name: id, State: model.NodeReady, Ports: model.PortRange{First: 31000, Last: 31999},
		Capacity: model.Resources{CPUs: cpus, Memory: 64 * model.GiB, Disk: 100 * model.GiB},
	}
}

func (c *pair) put(fn func(*state.Tx)) {
	c.Helper()
	if err := c.db.Update(context.Background(), func(tx *state.Tx) error { fn(tx); return nil }); err != nil {
		c.Fatal(err)
	}
}

// deploy asks for an app, or another version of it.
func (c *pair) deploy(id model.AppID, count int, cpus model.CPU, change func(*model.Spec)) {
	c.Helper()
	s := &model.Spec{
		ID: id, Instances: &count, Containers: []model.Container{{Shell: "run", CPUs: cpus}},
		Update: &model.Update{MinHealthy: "0", MinHealthyTime: new(model.Duration)},
	}
	if change != nil {
		change(s)
	}
	c.put(func(tx *state.Tx) {
		a := model.App{ID: id}
		if old := tx.App(id); old != nil {
			a = *old
		}
		a.Version++
		c.made++
		a.Deployment = model.DeploymentID(fmt.Sprintf("d-%04d", c.made))
		tx.PutApp(&a)
		tx.PutVersion(&model.AppVersion{App: id, Version: a.Version, Spec: s, Created: c.now})
		tx.PutDeployment(&model.Deployment{
			ID: a.Deployment, App: id, Kind: model.DeployUpdate, From: a.Version - 1, To: a.Version, State: model.DeployRunning, Created: c.now, Moved: c.now,
		})
	})
}

func priority(n int) func(*model.Spec) { return func(s *model.Spec) { s.Priority = &n } }

func role(id model.RoleID, n int) func(*model.Spec) {
	return func(s *model.Spec) { s.Role, s.Priority = id, &n }
}

// turn lets everyone act once.
func (c *pair) turn() {
	c.Helper()
	c.now = c.now.Add(time.Second)
	if _, err := c.places.Step(context.Background()); err != nil {
		c.Fatal(err)
	}
	c.see()
	if _, err := c.apps.Step(context.Background()); err != nil {
		c.Fatal(err)
	}
	c.put(func(tx *state.Tx) {
		for i := range tx.Instances() {
			i = i.Clone()
			switch {
			case i.Over():
				continue
			case i.Desired == model.Halt && (c.ends || i.Node == ""):
				i.Status = model.Status{Phase: model.PhaseStopped, Since: c.now}
			case i.Desired == model.Run && i.Status.Phase == model.PhaseAssigned:
				i.Status = model.Status{Attempt: 1, Phase: model.PhaseRunning, Ready: true, Since: c.now}
			default:
				continue
			}
			tx.PutInstance(i)
		}
	})
}

// see takes note of who is evicted.
func (c *pair) see() {
	for i := range c.db.View().Instances() {
		if i.Evict != nil {
			c.evicted[i.ID] = i.Evict.Kind
		}
	}
}

func (c *pair) turns(n int) {
	c.Helper()
	for range n {
		c.turn()
	}
}

// live returns the instances of an app that are wanted, those with a place first.
func (c *pair) live(id model.AppID) (placed, waiting []*model.Instance) {
	for i := range c.db.View().InstancesOf(id) {
		switch {
		case i.Live() && i.Node != "":
			placed = append(placed, i)
		case i.Live():
			waiting = append(waiting, i)
		}
	}
	return placed, waiting
}

func (c *pair) wants(id model.AppID, placed, waiting int) {
	c.Helper()
	p, w := c.live(id)
	if len(p) != placed || len(w) != waiting {
		why := ""
		if len(w) > 0 {
			why = ": " + w[0].Pending
		}
		c.Fatalf("%s has %d placed and %d waiting, want %d and %d%s", id, len(p), len(w), placed, waiting, why)
	}
}

// lost returns how many instances of an app were ever evicted.
func (c *pair) lost(id model.AppID) int {
	n := 0
	for i := range c.evicted {
		if strings.HasPrefix(string(i), id.Name()+"-") {
			n++
		}
	}
	return n
}

func (c *pair) says(id model.AppID, want string) {
	c.Helper()
	_, w := c.live(id)
	if len(w) == 0 {
		c.Fatalf("nothing of %s waits", id)
	}
	if w[0].Pending != want {
		c.Errorf("%s says %q, want %q", w[0].ID, w[0].Pending, want)
	}
}

// TestPreemptionEndsFewest protects the less important: as few of them as will do are ended, the least important first, once,
// whoever leads; what waits says what for; and nobody takes the place meanwhile.
func TestPreemptionEndsFewest(t *testing.T) {
	for _, change := range []bool{false, true} {
		c := newPair(t, machine("a", 4000), machine("b", 4000), machine("c", 4000))
		c.deploy("/mid", 4, 1000, priority(30))
		c.turns(3)
		c.deploy("/low", 7, 1000, priority(10))
		c.turns(3)
		c.ends = false
		c.deploy("/high", 1, 2000, priority(90))
		c.turns(3)
		if c.lost("/mid") != 0 || c.lost("/low") != 1 { // one CPU was free
			t.Fatalf("%d of mid and %d of low were ended: %v", c.lost("/mid"), c.lost("/low"), c.evicted)
		}
		var victim, on string
		for id := range c.evicted {
			victim, on = string(id), string(c.db.View().Instance(id).Node)
		}
		c.says("/high", fmt.Sprintf("it takes the place, on %s, of %s, which has to end first", on, victim))
		if why := c.db.View().Instance(model.InstanceID(victim)).Why; why != "/high with priority 90 needs its place; its own priority is 10" {
			t.Errorf("the victim says %q", why)
		}
		c.says("/low", "3 nodes lack CPUs: wants 1, most free is 0 on a")
		if change {
			c.lead()
			c.turns(2)
			c.says("/high", "it takes the place of what is about to end on "+on)
		}
		c.deploy("/thief", 3, 500, priority(95)) // it has to find its own
		c.turns(2)
		c.ends = true
		c.turns(10)
		c.wants("/high", 1, 0)
		c.wants("/mid", 4, 0)
		c.wants("/thief", 3, 0)
		if n := c.lost("/low") + c.lost("/mid") + c.lost("/high"); n != 3 || c.lost("/low") != 3 {
			t.Errorf("change %t: %d were ended for 3.5 CPUs where one was free: %v", change, n, c.evicted)
		}
		was := len(c.evicted)
		for range 3 {
			c.lead()
			c.turns(5)
		}
		if len(c.evicted) != was {
			t.Errorf("change %t: others were ended later: %v", change, c.evicted)
		}
	}
}

// TestPreemptionKeepsFloors protects floors of update policies from preemption, unless nothing else can help, also while
// those that were told to end have not been stopped yet.
func TestPreemptionKeepsFloors(t *testing.T) {
	c := newPair(t, machine("a", 20_000), machine("b", 20_000))
	c.deploy("/floor", 20, 1000, func(s *model.Spec) {
		priority(10)(s)
		s.Update.MinHealthy = "18"
	})
	c.deploy("/free", 20, 1000, priority(11))
	c.turns(3)
	c.ends = false
	c.deploy("/high", 22, 1000, priority(90))
	c.turn()
	for range 4 { // the orchestrator sleeps
		c.now = c.now.Add(time.Second)
		if _, err := c.places.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.see()
	if c.lost("/floor") != 2 || c.lost("/free") != 20 {
		t.Errorf("%d of floor and %d of free were ended, want 2 and 20", c.lost("/floor"), c.lost("/free"))
	}
	c.ends = true
	c.turns(5)
	c.wants("/high", 22, 0)
	if c.lost("/high") != 0 {
		t.Errorf("high was ended: %v", c.evicted)
	}
}

// TestGuaranteeIsReclaimed protects a role's guarantee: it is taken back from those that have more than theirs, whatever
// their priority, and from nobody else.
func TestGuaranteeIsReclaimed(t *testing.T) {
	c := newPair(t, machine("a", 8000))
	three, four := model.CPU(3000), model.CPU(4000)
	c.put(func(tx *state.Tx) {
		tx.PutRole(&model.Role{ID: "/prod", Guarantee: model.Quota{CPUs: &four}})
		tx.PutRole(&model.Role{ID: "/dev"})
		tx.PutRole(&model.Role{ID: "/safe", Guarantee: model.Quota{CPUs: &three}})
	})
	c.deploy("/safe-app", 3, 1000, role("/safe", 0))
	c.turns(3)
	c.deploy("/dev-app", 6, 1000, role("/dev", 100))
	c.turns(3)
	c.wants("/dev-app", 5, 1)
	c.deploy("/prod-app", 6, 1000, role("/prod", 10))
	c.turns(12)
	c.wants("/prod-app", 4, 2)
	c.wants("/dev-app", 1, 5)
	c.wants("/safe-app", 3, 0)
	if c.lost("/dev-app") != 4 || len(c.evicted) != 4 {
		t.Errorf("ended: %v", c.evicted)
	}
	for id := range c.evicted {
		if why := c.db.View().Instance(id); why != nil && why.Why != "/prod-app needs its place, which is guaranteed to role /prod" {
			t.Errorf("the victim says %q", why.Why)
		}
		break
	}
	c.lead()
	c.turns(5)
	if len(c.evicted) != 4 {
		t.Errorf("ended under the next leader: %v", c.evicted)
	}
}

// TestLimitIsSharedByPriority protects a role that is at its limit: its less important work ends for the more important,
// once, and not when there would be no place for it anyway.
func TestLimitIsSharedByPriority(t *testing.T) {
	c := newPair(t, machine("a", 5000), machine("b", 5000))
	eight := model.CPU(8000)
	c.put(func(tx *state.Tx) {
		tx.PutRole(&model.Role{ID: "/r", Limit: model.Quota{CPUs: &eight}})
		tx.PutRole(&model.Role{ID: "/r/child"}) // has less than the other work of /r, and its turn comes first
	})
	c.deploy("/mid", 4, 1000, role("/r", 50))
	c.turns(3)
	c.deploy("/low", 4, 1000, role("/r/child", 10))
	c.turns(3)
	c.deploy("/large", 1, 5500, role("/r", 90))
	c.turns(6)
	c.says("/large", "role /r is at its limit: 8 of 8 CPUs are in use, one more takes 5.5")
	if len(c.evicted) != 0 {
		t.Fatalf("ended though it fits on no node: %v", c.evicted)
	}
	c.deploy("/high", 2, 1000, role("/r", 90))
	c.turns(12)
	c.wants("/high", 2, 0)
	c.wants("/low", 2, 2)
	c.says("/low", "role /r is at its limit: 8 of 8 CPUs are in use, one more takes 1")
	if len(c.evicted) != 2 {
		t.Errorf("%d were ended, want 2: %v", len(c.evicted), c.evicted)
	}
}

// TestMoreImportantTakesKeptPlace protects the most important from waiting for a place that is kept for the less
// important.
func TestMoreImportantTakesKeptPlace(t *testing.T) {
	c := newPair(t, machine("a", 2000))
	c.deploy("/low", 2, 1000, priority(10))
	c.turns(3)
	c.ends = false
	c.deploy("/mid", 2, 1000, priority(50))
	c.turns(3)
	c.deploy("/high", 1, 2000, priority(90))
	c.turns(3)
	c.ends = true
	c.turns(6)
	c.wants("/high", 1, 0)
	c.wants("/mid", 0, 2)
	if c.lost("/mid") != 0 {
		t.Errorf("mid was started to be ended: %v", c.evicted)
	}
}
