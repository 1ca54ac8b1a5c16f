package engine

import (
	"cmp"
	"slices"

	"github.com/gantry-os/gantry/model"
)

// Want is the instances of one class that wait for places.
type Want struct {
	Class  *Class
	IDs    []model.InstanceID
	Placed int // how many of IDs, from the first on, got a place
}

// Round hands out places to all that wait, a part at a time. Until End nobody else may begin one, but whatever else is done
// to the engine in between counts.
//
// Places are handed out in turns. At each level of the tree of roles the turn goes to the child that is below its
// guarantee, then to the one with the least dominant share by its weight (hierarchical dominant-resource fairness; Bhattacharya
// et al., SoCC 2013), of those below which something can still be placed; so a role whose work fits nowhere does not hold
// up the others. The work of a role itself competes with the roles below it as one more of them. Within a role the more
// important goes first, then what is hard to place.
type Round struct {
	e    *Engine
	busy []*role // roles with wants of their own
}

// Begin starts a round.
func (e *Engine) Begin(wants []*Want) *Round {
	t := &Round{e: e}
	for _, w := range wants {
		if len(w.IDs) == 0 {
			continue
		}
		r := w.Class.role
		if len(r.wants) == 0 {
			t.busy = append(t.busy, r)
		}
		r.wants = append(r.wants, w)
		w.Class.asked = max(w.Class.asked, len(w.IDs)) // those that nobody learned of
	}
	for _, r := range t.busy {
		slices.SortStableFunc(r.wants, func(a, b *Want) int { return compareClasses(a.Class, b.Class) })
		r.wait(1)
	}
	return t
}

// Place gives places to at most limit instances and appends them to out. When it places none, nothing more fits.
func (t *Round) Place(limit int, out []Placement) []Placement {
	start := len(out)
	for len(t.busy) > 0 && len(out)-start < limit {
		r, turn := t.busy[0], 1
		if len(t.busy) > 1 {
			r = t.e.next(t.e.roles.root)
		}
		w := r.wants[0]
		if len(t.busy) == 1 {
			turn = min(limit-(len(out)-start), len(w.IDs)-w.Placed)
		}
		had := len(out)
		out = t.e.place(w.Class, w.IDs[w.Placed:w.Placed+turn], out)
		got := len(out) - had
		if w.Placed += got; got < turn || w.Placed == len(w.IDs) {
			r.wants = r.wants[1:]
			r.stale()
		}
		if len(r.wants) == 0 {
			t.drop(r)
		}
	}
	return out
}

func (t *Round) drop(r *role) {
	r.wants = nil
	r.wait(-1)
	t.busy = slices.DeleteFunc(t.busy, func(b *role) bool { return b == r })
}

// End ends the round.
func (t *Round) End() {
	for len(t.busy) > 0 {
		t.drop(t.busy[0])
	}
}

// PlaceAll places as many of all wants as fit, and appends their places to out.
func (e *Engine) PlaceAll(wants []*Want, out []Placement) []Placement {
	sum := 0
	for _, w := range wants {
		sum += len(w.IDs)
	}
	t := e.Begin(wants)
	defer t.End()
	return t.Place(sum, slices.Grow(out, min(sum, 1<<20)))
}

// compareClasses orders classes by who goes first.
func compareClasses(a, b *Class) int {
	return cmp.Or(
		cmp.Compare(b.Priority, a.Priority),
		cmp.Compare(b.fixed, a.fixed),
		cmp.Compare(b.vector.gpus, a.vector.gpus),
		cmp.Compare(len(b.rules.all)+len(b.filters), len(a.rules.all)+len(a.filters)),
		cmp.Compare(b.need.Memory, a.need.Memory),
		cmp.Compare(b.need.CPU, a.need.CPU),
		cmp.Compare(a.App, b.App),
		cmp.Compare(a.Template, b.Template),
	)
}

// wait counts n more roles with waiting work at r and above.
func (r *role) wait(n int) {
	r.stale()
	for ; r != nil; r = r.parent {
		r.waiting += n
	}
}

// stale notes that the turns of r and of those above it are out of date.
func (r *role) stale() {
	for ; r != nil; r = r.parent {
		r.turnAt = 0
	}
}

// next returns the role whose turn it is, of r and those below it; nil when none waits.
func (e *Engine) next(r *role) *role {
	for r.waiting > 0 {
		e.updateTurn(r)
		var best *role
		var least turn
		if len(r.wants) > 0 {
			best, least = r, r.own
		}
		for _, b := range r.below {
			if b.waiting == 0 {
				continue
			}
			e.updateTurn(b)
			if best == nil || b.turn.before(least) {
				best, least = b, b.turn
			}
		}
		if best == r {
			return r
		}
		r = best
	}
	return nil
}

// turn is by what siblings are compared.
type turn struct {
	fed   bool // not below its guarantee
	share float64
}

func (t turn) before(o turn) bool {
	if t.fed != o.fed {
		return !t.fed
	}
	return t.share < o.share
}

// updateTurn computes the turn of a role anew, if what it depends on has changed.
func (e *Engine) updateTurn(r *role) {
	if r.turnAt == e.sumGen {
		return
	}
	r.turnAt = e.sumGen
	r.turn = turn{!r.hungry(), e.dominant(r)}
	r.own = turn{true, r.turn.share}
	if len(r.wants) > 0 && len(r.below) > 0 {
		own := role{used: r.used}
		for _, b := range r.below {
			own.used = own.used.sub(b.used)
		}
		r.own.share = e.dominant(&own)
	}
}

// hungry reports whether r, or a role below it, is below its guarantee of something that its waiting work takes.
func (r *role) hungry() bool {
	if !r.guaranty || r.waiting == 0 {
		return false
	}
	lacks := !each(&r.set.Guarantee, &r.used, &r.used, func(name string, least, used, _ int64) bool {
		return used >= least || !r.takes(name)
	})
	return lacks || slices.ContainsFunc(r.below, (*role).hungry)
}

// takes reports whether the work of r and of those below it that is next takes any of a resource.
func (r *role) takes(name string) bool {
	if len(r.wants) > 0 && r.wants[0].Class.vector.of(name) > 0 {
		return true
	}
	return r.waiting > 0 && slices.ContainsFunc(r.below, func(b *role) bool { return b.takes(name) })
}
