package app_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

func (c *pair) on(id model.NodeID) []*model.Instance {
	var out []*model.Instance
	for i := range c.db.View().InstancesOn(id) {
		if !i.Over() {
			out = append(out, i)
		}
	}
	return out
}

func (c *pair) healthy(id model.AppID) int { return c.db.View().HealthyCount(id) }

// minutes lets time pass in steps of ten seconds, and calls check after each.
func (c *pair) minutes(n int, check func()) {
	c.Helper()
	for range 6 * n {
		c.now = c.now.Add(9 * time.Second)
		c.turn()
		if check != nil {
			check()
		}
	}
}

func surge(floor, more model.Amount) func(*model.Spec) {
	return func(s *model.Spec) { s.Update.MinHealthy, s.Update.MaxSurge = floor, more }
}

// only lets one node take new work, empty for all.
func (c *pair) only(id model.NodeID) {
	c.put(func(tx *state.Tx) {
		for n := range tx.Nodes() {
			tx.PutSettings(&model.NodeSettings{ID: n.ID, Cordoned: id != "" && n.ID != id})
		}
	})
}

// TestDrain protects what runs on a node that is to be empty: it goes elsewhere without its app falling below its floor,
// with or without one more for a while; what has its data there stays, and says so.
func TestDrain(t *testing.T) {
	c := newPair(t, machine("a", 8000), machine("b", 8000))
	c.deploy("/surge", 4, 500, surge("4", "1"))
	c.deploy("/tight", 4, 500, surge("3", "0"))
	c.deploy("/db", 2, 500, func(s *model.Spec) {
		s.Volumes = []model.Volume{{Name: "data", Persistent: &model.Persistent{Size: model.GiB}}}
	})
	c.turns(4)
	from := c.on("a")
	if len(from) != 10 {
		t.Fatalf("%d are on a, want all", len(from))
	}
	c.put(func(tx *state.Tx) { tx.PutSettings(&model.NodeSettings{ID: "a", Draining: true, Why: "new disks"}) })
	for range 40 {
		c.turn()
		if c.healthy("/surge") < 4 || c.healthy("/tight") < 3 {
			t.Fatalf("%d of surge and %d of tight are healthy", c.healthy("/surge"), c.healthy("/tight"))
		}
	}
	left := c.on("a")
	if len(left) != 2 {
		t.Fatalf("%d are left on a, want the two with volumes", len(left))
	}
	for _, i := range left {
		if i.App != "/db" || i.Why != "stays, since its persistent volumes are on its node: node a is to be empty: new disks" {
			t.Errorf("%s stays: %q", i.ID, i.Why)
		}
	}
	c.put(func(tx *state.Tx) { tx.DeleteSettings("a") })
	c.turns(3)
	for _, i := range c.on("a") {
		if i.Evict != nil || i.Why != "" {
			t.Errorf("%s is to leave still: %+v %q", i.ID, i.Evict, i.Why)
		}
	}
}

// TestUndrain protects those whose heirs have no place yet: they stay when their node need not be empty any more, also
// when the word of it comes under another leader.
func TestUndrain(t *testing.T) {
	for _, change := range []bool{false, true} {
		c := newPair(t, machine("a", 2000))
		c.deploy("/web", 2, 1000, surge("2", "2"))
		c.turns(3)
		c.put(func(tx *state.Tx) { tx.PutSettings(&model.NodeSettings{ID: "a", Draining: true}) })
		c.turns(4)
		c.wants("/web", 2, 2)
		c.says("/web", "1 node is draining")
		c.put(func(tx *state.Tx) { tx.DeleteSettings("a") })
		if change {
			c.lead()
		}
		c.turns(4)
		c.wants("/web", 2, 0)
		for _, i := range c.on("a") {
			if i.Evict != nil {
				t.Errorf("%s is to leave still: %+v", i.ID, i.Evict)
			}
		}
		if len(c.evicted) != 2 {
			t.Errorf("to leave were %v", c.evicted)
		}
	}
}

// TestMaintenanceWindow protects the timetable: when a window begins, the node takes no new work and says until when, and what
// runs there leaves if the window says so; when it ends, all is as before. Both happen though nothing else does.
func TestMaintenanceWindow(t *testing.T) {
	c := newPair(t, machine("a", 2000), machine("b", 1000))
	start := c.now.Add(time.Hour)
	c.deploy("/web", 2, 1000, surge("0", "1"))
	c.turns(3)
	c.put(func(tx *state.Tx) {
		tx.PutSettings(&model.NodeSettings{ID: "a", Windows: []model.Maintenance{
			{Start: start, Duration: model.Duration(30 * time.Minute), Every: model.Duration(24 * time.Hour), Drain: true, Why: "kernel"},
		}})
	})
	c.turns(3)
	wakes := func(at time.Time) {
		t.Helper()
		next, err := c.places.Step(t.Context())
		if err != nil || !next.Equal(at) {
			t.Fatalf("wakes at %v (%v), want %v", next, err, at)
		}
		c.now = at.Add(-time.Second) // turn adds it
	}
	for day := range 2 {
		begin := start.Add(time.Duration(day) * 24 * time.Hour)
		if len(c.on("a")) == 0 {
			t.Fatalf("day %d: nothing is on a before the window", day)
		}
		wakes(begin)
		c.turns(5)
		if n := len(c.on("b")); n != 1 {
			t.Fatalf("day %d: %d moved to b", day, n)
		}
		c.says("/web", fmt.Sprintf("1 node lacks CPUs: wants 1, most free is 0 on b; 1 node is in maintenance until %s: kernel",
			begin.Add(30*time.Minute).Format("2006-01-02 15:04 MST")))
		wakes(begin.Add(30 * time.Minute))
		c.turns(5)
		c.wants("/web", 2, 0)
		for _, i := range c.on("a") {
			if i.Evict != nil {
				t.Errorf("day %d: %s is to leave still", day, i.ID)
			}
		}
	}
}

// fragmented is three apps, one of each of which runs on every one of four nodes.
func fragmented(t *testing.T) *pair {
	c := newPair(t, machine("a", 8000), machine("b", 8000), machine("c", 8000), machine("d", 8000))
	for n, at := range []model.NodeID{"a", "b", "c", "d"} {
		c.only(at)
		for _, id := range []model.AppID{"/one", "/two", "/three"} {
			c.deploy(id, n+1, 500, surge(model.Amount(fmt.Sprint(n+1)), "1"))
		}
		c.turns(4)
	}
	c.only("")
	if len(c.on("a")) != 3 || len(c.on("d")) != 3 {
		t.Fatalf("%d and %d are on a and d", len(c.on("a")), len(c.on("d")))
	}
	c.put(func(tx *state.Tx) {
		tx.PutPool(&model.Pool{Name: model.DefaultPool, Defragment: model.DefragmentPerform})
	})
	return c
}

// moving returns the nodes that instances are moved off now.
func (c *pair) moving() map[model.NodeID]bool {
	out := map[model.NodeID]bool{}
	for i := range c.db.View().Instances() {
		if i.Live() && i.Evict != nil && i.Evict.Kind == model.EvictMove {
			out[i.Node] = true
		}
	}
	return out
}

// TestDefragmenterSettles protects what runs from the defragmenter: it empties one node after the other, keeps floors, moves
// nothing twice, and stops when nothing is gained any more.
func TestDefragmenterSettles(t *testing.T) {
	c := fragmented(t)
	c.minutes(20, func() {
		if at := c.moving(); len(at) > 1 {
			t.Fatalf("instances are moved off %v at once", at)
		}
		for _, id := range []model.AppID{"/one", "/two", "/three"} {
			if n := c.healthy(id); n < 4 {
				t.Fatalf("%d of %s are healthy", n, id)
			}
		}
	})
	empty := 0
	for _, id := range []model.NodeID{"a", "b", "c", "d"} {
		if len(c.on(id)) == 0 {
			empty++
		}
	}
	if empty != 3 || len(c.evicted) != 9 {
		t.Errorf("%d nodes are empty after %d moves, want 3 after 9", empty, len(c.evicted))
	}
	c.lead()
	c.minutes(20, nil)
	if len(c.evicted) != 9 {
		t.Errorf("it went on moving: %v", c.evicted)
	}
}

// TestWaitingAppStopsNoDefragmenter protects the defragmenter from an app that fits nowhere: its moves are what may help.
func TestWaitingAppStopsNoDefragmenter(t *testing.T) {
	c := fragmented(t)
	c.deploy("/large", 1, 8000, nil)
	c.deploy("/larger", 1, 9000, nil)
	c.minutes(5, nil)
	c.wants("/large", 1, 0)
	c.wants("/larger", 0, 1)
}

// TestMoveIsGivenUp protects an instance that is to move where nothing is free any more: it waits, says so, and after a
// while need not move.
func TestMoveIsGivenUp(t *testing.T) {
	c := fragmented(t)
	var to model.NodeID
	for n := 0; len(c.moving()) == 0; n++ {
		if n > 100 {
			t.Fatal("nothing is moved")
		}
		c.now = c.now.Add(5 * time.Second)
		if _, err := c.places.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range c.db.View().Instances() {
		if i.Evict != nil {
			to = i.Evict.To
		}
	}
	c.put(func(tx *state.Tx) { tx.PutSettings(&model.NodeSettings{ID: to, Cordoned: true, Why: "odd noises"}) })
	c.minutes(3, nil)
	heirs := 0
	for i := range c.db.View().Pending() {
		heirs++
		if !strings.HasSuffix(i.Pending, fmt.Sprintf(" is to move to %s: the node is cordoned: odd noises", to)) {
			t.Errorf("%s says %q", i.ID, i.Pending)
		}
	}
	if heirs != 3 {
		t.Fatalf("%d heirs wait", heirs)
	}
	c.minutes(10, nil)
	for i := range c.db.View().Pending() {
		t.Errorf("%s waits still: %s", i.ID, i.Pending)
	}
	if at := c.moving(); len(at) > 0 {
		t.Errorf("instances are moved off %v", at)
	}
}

// TestTightAppsAreNotMoved protects apps that may not have one more: a move would stop them.
func TestTightAppsAreNotMoved(t *testing.T) {
	c := newPair(t, machine("a", 8000), machine("b", 8000))
	for n, at := range []model.NodeID{"a", "b"} {
		c.only(at)
		c.deploy("/web", n+1, 500, surge("0", "0"))
		c.turns(3)
	}
	c.only("")
	c.put(func(tx *state.Tx) {
		tx.PutPool(&model.Pool{Name: model.DefaultPool, Defragment: model.DefragmentPerform})
	})
	c.minutes(5, nil)
	if len(c.evicted) > 0 {
		t.Errorf("moved: %v", c.evicted)
	}
}
