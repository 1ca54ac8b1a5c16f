package engine

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/gantry-os/gantry/model"
)

// Bounds of one search for moves.
const (
	maxEmptied = 8   // nodes that one proposal empties
	maxMoved   = 32  // instances that one node may lose
	maxTargets = 256 // nodes that are tried
)

// Defrag proposes moves after which free room of a pool comes in larger pieces: it empties nodes that little runs on, as far
// as other nodes that are in use already take all of it, keeping every rule. movable says which instances may be moved at
// all; none is that prefers a place, or that makes its volumes where it goes. In a pool where work is to be spread or
// balanced nothing is proposed. Nothing is changed.
func (e *Engine) Defrag(pool string, movable func(model.InstanceID) bool) []model.Move {
	if cmp.Or(e.pools[pool], model.PolicyPack) != model.PolicyPack {
		return nil
	}
	var rows []int32
	for r := range int32(len(e.info)) {
		n := &e.info[r]
		if e.known[r] && n.Shut == "" && n.Pool == pool && e.first[r] != none && e.loaned(r) == 0 {
			rows = append(rows, r)
		}
	}
	fill := func(r int32) float64 {
		t, f := &e.total[r], &e.free[r]
		return max(1-float64(f.CPU)/float64(max(1, t.CPU)), 1-float64(f.Memory)/float64(max(1, t.Memory)))
	}
	slices.SortFunc(rows, func(a, b int32) int { return cmp.Or(cmp.Compare(fill(a), fill(b)), cmp.Compare(a, b)) })
	var moves []model.Move
	var undo []func()
	received := map[int32]bool{} // rows that take what others lose are not emptied themselves
	emptied := 0
	for n, r := range rows {
		if emptied == maxEmptied || n == maxTargets {
			break
		}
		if received[r] {
			continue
		}
		got, back := e.empty(r, rows[n+1:], movable, received)
		if got == nil {
			continue
		}
		emptied++
		moves, undo = append(moves, got...), append(undo, back...)
	}
	for _, back := range slices.Backward(undo) {
		back()
	}
	return moves
}

// settled reports whether instances of c are where they want to be, not only where they fit.
func (c *Class) settled() bool {
	return c.scatter || c.Volumes > 0 || slices.ContainsFunc(c.rules.all, func(u rule) bool { return !u.kind.hard() })
}

func (e *Engine) loaned(r int32) int {
	n := 0
	for _, l := range e.loans {
		if l.row == r {
			n++
		}
	}
	return n
}

// empty finds new places, on other rows, for all instances of a row, and puts them there. It returns nil, and has changed
// nothing, when one has none.
func (e *Engine) empty(r int32, others []int32, movable func(model.InstanceID) bool, received map[int32]bool) ([]model.Move, []func()) {
	var list []int32
	for h := e.first[r]; h != none; h = e.at(h).next {
		if x := e.at(h); x.waits || x.leaving || len(list) == maxMoved || x.class.settled() || !movable(x.id) {
			return nil, nil
		}
		list = append(list, h)
	}
	slices.SortFunc(list, func(a, b int32) int {
		return cmp.Or(-cmp.Compare(e.weigh(e.at(a).class, r), e.weigh(e.at(b).class, r)), cmp.Compare(e.at(a).id, e.at(b).id))
	})
	var moves []model.Move
	var undo []func()
	var to []int32
	gain := fmt.Sprintf("%s becomes empty: %s CPUs and %s in one piece", e.info[r].Name, e.info[r].Capacity.CPUs, e.info[r].Capacity.Memory.Human())
	for _, h := range list {
		x := *e.at(h)
		old := e.placementOf(&x)
		home, next := e.ports[r], e.ports[r].next
		x.class.live++ // the hold is not the last thing that keeps it
		e.Release(x.id)
		undo = append(undo, func() { e.Hold(old, x.class); e.unref(x.class); home.next = next })
		e.judge(x.class)
		best := none
		for i := 0; i < len(others) && i < maxTargets; i++ {
			if o := others[len(others)-1-i]; x.class.domain(o) == x.class.domain(r) && e.able(x.class, o) && e.fits(x.class, o) && e.rulesAllow(x.class, o) { // fullest first
				best = o
				break
			}
		}
		if best == none {
			for _, back := range slices.Backward(undo) {
				back()
			}
			return nil, nil
		}
		there, port := e.ports[best], e.ports[best].next
		undo = append(undo, func() { there.next = port })
		e.take(x.id, x.class, best)
		to = append(to, best)
		moves = append(moves, model.Move{Instance: x.id, App: x.class.App, From: e.info[r].ID, To: e.info[best].ID, Gain: gain})
	}
	for _, o := range to {
		received[o] = true
	}
	return moves, undo
}

// placementOf returns what a hold has.
func (e *Engine) placementOf(h *hold) Placement {
	p := Placement{ID: h.id, Node: e.info[h.row].ID}
	if h.extra != nil {
		p.Ports, p.GPUs, p.Items = h.extra.ports, h.extra.gpus, h.extra.items
	}
	return p
}
