package engine

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// What is proposed can be done, one move after the other, with every rule kept, and empties the nodes that it says.
// Proposing changes nothing, and moves nobody who may not be moved.
func TestDefragIsApplicable(t *testing.T) {
	moved := 0
	for seed := range uint64(600) {
		rnd := rand.New(rand.NewPCG(seed, 6))
		w, classes, _ := people(t, rnd, smallCluster)
		w.off = seed%2 > 0
		w.e.SetSpread("default", !w.off)
		for i, c := range classes { // more that can be moved
			a := c.Ask
			a.Need = model.Resources{CPUs: a.Need.CPUs / 2, Memory: a.Need.Memory / 4}
			if rnd.IntN(4) > 0 {
				a.Policy, a.Spread, a.Volumes, a.Image = "", nil, 0, false
			}
			w.e.Drop(c)
			classes[i] = w.e.Class(a)
		}
		for range 12 {
			w.place(classes[rnd.IntN(len(classes))], 1+rnd.IntN(3))
		}
		for _, id := range slices.Sorted(maps.Keys(w.on)) {
			if rnd.IntN(2) == 0 {
				w.release(id)
			}
		}
		stays := map[model.InstanceID]bool{}
		for id := range w.on {
			stays[id] = rnd.IntN(6) == 0
		}
		for _, c := range classes {
			w.e.judge(c)
		}
		before := digest(w.e)
		moves := w.e.Defrag("default", func(id model.InstanceID) bool { return !stays[id] })
		same(t, "proposing moves", before, digest(w.e))
		if again := w.e.Defrag("default", func(id model.InstanceID) bool { return !stays[id] }); !slices.Equal(again, moves) {
			t.Fatalf("seed %d: a second proposal is another", seed)
		}
		from, to := map[model.NodeID]bool{}, map[model.NodeID]bool{}
		for _, m := range moves {
			moved++
			from[m.From], to[m.To] = true, true
			p := w.on[m.Instance]
			if p.Node != m.From || stays[m.Instance] || p.ask.App != m.App {
				t.Fatalf("seed %d: %+v moves %+v", seed, m, p)
			}
			_, c, _ := w.e.Held(m.Instance)
			if c.Volumes > 0 || c.Policy == model.PolicySpread || len(c.Spread) > 0 {
				t.Fatalf("seed %d: %+v moves what is where it wants to be: %+v", seed, m, c.Ask)
			}
			if a, b := w.nodes[m.From], w.nodes[m.To]; w.evenly(p.ask) && (a.Zone != b.Zone || a.Region != b.Region) {
				t.Fatalf("seed %d: %+v leaves its zone", seed, m)
			}
			w.release(m.Instance)
			if why := w.refuses(p.ask, m.To); why != "" {
				t.Fatalf("seed %d: %+v is not possible: %s", seed, m, why)
			}
			got, ok := w.e.PlaceOn(c, m.Instance, m.To)
			if !ok {
				t.Fatalf("seed %d: %+v is refused: %s", seed, m, w.e.ExplainOn(c, m.To).Text)
			}
			w.checkGiven(p.ask, got)
			w.on[m.Instance] = placed{got, p.ask}
			w.audit()
		}
		for id, p := range w.on {
			if from[p.Node] {
				t.Fatalf("seed %d: %s is still on %s, which was to be emptied", seed, id, p.Node)
			}
		}
		for node := range from {
			if to[node] {
				t.Fatalf("seed %d: %s is emptied and filled", seed, node)
			}
		}
	}
	if moved < 100 {
		t.Errorf("only %d moves were proposed: the test tests little", moved)
	}
}

// A pool in which work is to be spread or balanced is not consolidated.
func TestDefragLeavesSpreadPoolsAlone(t *testing.T) {
	for policy, want := range map[model.Policy]int{"": 1, model.PolicyPack: 1, model.PolicySpread: 0, model.PolicyBalanced: 0} {
		e := New(Config{})
		need := model.Resources{CPUs: 1000, Memory: model.GiB}
		c := e.Class(Ask{App: "/a", Need: need})
		for i := range 2 {
			id := model.NodeID(fmt.Sprint("n", i))
			e.SetNode(Node{ID: id, Capacity: model.Resources{CPUs: 4000, Memory: 4 * model.GiB}})
			e.PlaceOn(c, model.InstanceID(id), id)
		}
		e.SetPool("default", policy)
		if got := e.Defrag("default", func(model.InstanceID) bool { return true }); len(got) != want {
			t.Errorf("policy %q: %d moves, want %d", policy, len(got), want)
		}
	}
}
