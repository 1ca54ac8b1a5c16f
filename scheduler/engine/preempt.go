package engine

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/policy"
)

// Preemption is a place that an instance gets once others have ended.
type Preemption struct {
	ID      model.InstanceID
	Node    model.NodeID
	Victims []Victim
}

// Victim is an instance that has to end.
type Victim struct {
	ID       model.InstanceID
	App      model.AppID
	Node     model.NodeID
	Priority int
	Breaks   bool   // its app falls below the floor of its update policy
	Why      string // a sentence
}

// maxLooked bounds how many nodes with victims are compared. The next search goes on where the last one stopped.
const maxLooked = 512

// Preempt finds whom to end so that one more instance of c gets a place, and keeps the place for it: until the victims
// are over nobody else gets it. They are of the class's own role and less important, or of roles that have more than
// their guarantee while the class's role lacks its own. Of all ways on one node the one is taken that breaks the fewest
// floors of apps, then whose most important victim is the least, then with the fewest victims. spare returns how many
// instances an app can lose before it falls below its floor.
func (e *Engine) Preempt(c *Class, id model.InstanceID, spare func(model.AppID) int) (Preemption, bool) {
	e.judge(c)
	if c.role.room(&c.vector, 1) == 0 {
		return e.preemptQuota(c, id, spare)
	}
	if c.Priority == 0 && !c.role.lacks(&c.vector) {
		return Preemption{}, false
	}
	best := e.bestTrial(c, spare)
	if best == nil || len(best.victims) == 0 { // without any: what leaves already will do
		return Preemption{}, false
	}
	p := Preemption{ID: id, Node: e.info[best.row].ID, Victims: e.condemn(best.victims, c, spare)}
	e.keep(id, c, best.row)
	return p, true
}

// bestTrial returns the best way to make room on one row; nil when there is none.
func (e *Engine) bestTrial(c *Class, spare func(model.AppID) int) *trial {
	var best *trial
	looked, n := 0, int32(len(e.info))
	from := e.hunted
	for i := range n {
		r := (from + i) % n
		if !e.able(c, r) || !c.rules.allow(r) || !e.rulesAllow(c, r) {
			continue
		}
		t := e.try(c, r, spare, best)
		if t == nil {
			continue
		}
		if best == nil || t.before(best) {
			best = t
		}
		if looked++; looked >= maxLooked {
			e.hunted = (r + 1) % n
			break
		}
	}
	return best
}

// keep keeps a place on a row for an instance, as it will be once those that leave are gone.
func (e *Engine) keep(id model.InstanceID, c *Class, r int32) {
	gone := e.leavers(r)
	for _, h := range gone {
		e.lift(h, true)
	}
	e.take(id, c, r)
	e.at(e.index[id]).waits = true
	e.claims[r]++
	for _, h := range gone {
		e.lift(h, false)
	}
	e.touch(r)
}

// leavers returns the holds of a row that were asked to leave.
func (e *Engine) leavers(r int32) []int32 {
	var list []int32
	for h := e.first[r]; h != none; h = e.at(h).next {
		if e.at(h).leaving {
			list = append(list, h)
		}
	}
	return list
}

// unclaim forgets that a hold waits.
func (e *Engine) unclaim(h *hold) {
	if e.claims[h.row]--; e.claims[h.row] == 0 {
		delete(e.claims, h.row)
	}
	if h.class.Volumes > 0 {
		e.RemoveVolume(model.VolumeID(h.id))
	}
}

// reclaim marks all ports of a row's holds again, after some were given back which two had: one that leaves, and one that
// waits for it.
func (e *Engine) reclaim(r int32) {
	if e.claims[r] == 0 {
		return
	}
	for h := e.first[r]; h != none; h = e.at(h).next {
		if x := e.at(h); x.extra != nil && !x.lifted {
			e.ports[r].retake(x.class.Ports, x.extra.ports)
		}
	}
}

// lacks reports whether r, or a role above it, has a guarantee that one more instance of v still is within.
func (r *role) lacks(v *vector) bool {
	for ; r != nil; r = r.parent {
		if r.short(v) {
			return true
		}
	}
	return false
}

// condemn marks holds as ones that leave.
func (e *Engine) condemn(list []int32, c *Class, spare func(model.AppID) int) []Victim {
	var out []Victim
	lost := map[model.AppID]int{}
	for _, h := range list {
		x := e.at(h)
		app := x.class.App
		lost[app]++
		v := Victim{ID: x.id, App: app, Node: e.info[x.row].ID, Priority: x.class.Priority, Breaks: lost[app] > spare(app)}
		if x.class.role.id.Within(c.role.id) && x.class.Priority < c.Priority {
			v.Why = fmt.Sprintf("%s with priority %d needs its place; its own priority is %d", c.App, c.Priority, x.class.Priority)
		} else {
			v.Why = fmt.Sprintf("%s needs its place, which is guaranteed to role %s", c.App, c.role.id)
		}
		out = append(out, v)
	}
	for _, h := range list {
		e.Leaving(e.at(h).id, true)
	}
	return out
}

// victim reports whether a hold may be ended for an instance of c.
func (e *Engine) victim(h *hold, c *Class) bool {
	v := h.class
	if h.leaving || h.waits {
		return false
	}
	if v.role.id.Within(c.role.id) && v.Priority < c.Priority {
		return true
	}
	for up := c.role; up != nil; up = up.parent {
		if up.short(&c.vector) && !v.role.id.Within(up.id) && v.role.giving(&v.vector, up) {
			return true
		}
	}
	return false
}

// giving reports whether r and the roles above it, up to those that it shares with other, keep their guarantees without v.
func (r *role) giving(v *vector, other *role) bool {
	for ; r != nil && !other.id.Within(r.id); r = r.parent {
		if !r.beyond(v) {
			return false
		}
	}
	return true
}

// try finds the best victims on a row, or nil when there are none, or none that are better than those of best.
func (e *Engine) try(c *Class, r int32, spare func(model.AppID) int, best *trial) *trial {
	sum := e.freeFor(c.role, r)
	s := hunt{e: e, c: c, row: r, spare: spare, best: best, fits: func() bool { return e.fits(c, r) }}
	s.lift = func(h int32, up bool) {
		e.lift(h, up)
		e.depart(h, up)
	}
	for h := e.first[r]; h != none; h = e.at(h).next {
		x := e.at(h)
		if !x.leaving {
			if !e.victim(x, c) {
				continue
			}
			s.list = append(s.list, h)
		}
		sum = plus(sum, x.class.need)
	}
	if !within(c.want, sum) {
		return nil
	}
	slices.SortFunc(s.list, func(a, b int32) int {
		x, y := e.at(a), e.at(b)
		return cmp.Or(cmp.Compare(x.class.Priority, y.class.Priority), -cmp.Compare(e.weigh(x.class, r), e.weigh(y.class, r)), compareHolds(x, y))
	})
	for _, h := range s.list {
		s.most = most(s.most, e.at(h).class.need)
	}
	s.short = func(n int64) bool {
		f, w := e.freeFor(c.role, r), &c.want
		return w.CPU-f.CPU > n*s.most.CPU || w.Memory-f.Memory > n*s.most.Memory || w.Disk-f.Disk > n*s.most.Disk
	}
	gone := e.leavers(r)
	for _, h := range gone {
		e.lift(h, true)
	}
	t := s.run()
	for _, h := range gone {
		e.lift(h, false)
	}
	return t
}

func most(a, b policy.Amounts) policy.Amounts {
	return policy.Amounts{CPU: max(a.CPU, b.CPU), Memory: max(a.Memory, b.Memory), Disk: max(a.Disk, b.Disk)}
}

// compareHolds brings those together that are alike.
func compareHolds(x, y *hold) int {
	return cmp.Or(cmp.Compare(x.class.App, y.class.App), cmp.Compare(x.class.Template, y.class.Template), cmp.Compare(x.id, y.id))
}

// weigh returns what part of a row an instance of c takes.
func (e *Engine) weigh(c *Class, r int32) float64 {
	t := &e.total[r]
	return float64(c.need.CPU)/float64(max(1, t.CPU)) + float64(c.need.Memory)/float64(max(1, t.Memory)) +
		float64(c.vector.gpus)/float64(max(1, wholeDevice*len(e.gpu[r].free)))
}

// lift gives back, or takes again, what a hold has of its row, for a trial.
func (e *Engine) lift(n int32, up bool) {
	h := e.at(n)
	h.lifted = up
	sign := int64(1)
	if !up {
		sign = -1
	}
	e.takeExtras(h.row, h, -int32(sign))
	if e.booked[h.row] != nil {
		e.recompute(h.row)
	} else {
		need := h.class.need
		e.free[h.row] = plus(e.free[h.row], policy.Amounts{CPU: sign * need.CPU, Memory: sign * need.Memory, Disk: sign * need.Disk})
	}
	switch {
	case h.extra == nil:
	case up:
		e.ports[h.row].give(h.class.Ports, h.extra.ports)
		e.reclaim(h.row)
	default:
		e.ports[h.row].retake(h.class.Ports, h.extra.ports)
	}
}

// depart counts a hold among those that leave its role, or no longer.
func (e *Engine) depart(h int32, up bool) {
	n := int64(1)
	if !up {
		n = -1
	}
	c := e.at(h).class
	c.role.leave(&c.vector, n)
}

// preemptQuota finds victims in the role of c, wherever they are, so that no limit keeps one more instance out.
func (e *Engine) preemptQuota(c *Class, id model.InstanceID, spare func(model.AppID) int) (Preemption, bool) {
	s := hunt{e: e, c: c, row: none, spare: spare, lift: e.depart}
	s.fits = func() bool {
		for r := c.role; r != nil; r = r.parent {
			used := r.used.sub(r.going)
			if !each(&r.set.Limit, &used, &c.vector, func(_ string, limit, used, one int64) bool { return one == 0 || used+one <= limit }) {
				return false
			}
		}
		return true
	}
	s.short = func(int64) bool { return false }
	for h := range e.all {
		if x := e.at(h); !x.waits && !x.leaving && x.class.role.id.Within(c.role.id) && x.class.Priority < c.Priority {
			s.list = append(s.list, h)
		}
	}
	slices.SortFunc(s.list, func(a, b int32) int {
		x, y := e.at(a), e.at(b)
		return cmp.Or(cmp.Compare(x.class.Priority, y.class.Priority), compareHolds(x, y))
	})
	t := s.run()
	if t == nil || len(t.victims) == 0 {
		return Preemption{}, false
	}
	return Preemption{ID: id, Victims: e.condemn(t.victims, c, spare)}, true
}

// Settle gives an instance for which others had to end its place, once they are over. It reports whether the place is
// still kept for it: when neither, the instance waits like any other again.
func (e *Engine) Settle(id model.InstanceID) (p Placement, placed, kept bool) {
	h, ok := e.index[id]
	if !ok || !e.at(h).waits {
		return Placement{}, false, false
	}
	r, c, x := e.at(h).row, e.at(h).class, e.at(h).extra
	c.live++ // Release must not be the end of it
	defer e.unref(c)
	e.Release(id)
	e.judge(c)
	if !e.able(c, r) || !e.rulesAllow(c, r) || c.role.room(&c.vector, 1) == 0 {
		return Placement{}, false, false
	}
	if e.fits(c, r) {
		return e.take(id, c, r), true, true
	}
	if len(e.leavers(r)) == 0 {
		return Placement{}, false, false
	}
	e.rekeep(id, c, r, x)
	return Placement{}, false, true
}

// rekeep keeps for an instance what was kept for it.
func (e *Engine) rekeep(id model.InstanceID, c *Class, r int32, x *extra) {
	h := e.at(e.seize(id, c, r, x))
	h.waits = true
	e.claims[r]++
	e.takeExtras(r, h, 1)
	if x != nil {
		e.ports[r].retake(c.Ports, x.ports)
	}
	if c.Volumes > 0 {
		e.SetVolume(model.VolumeID(id), e.info[r].ID, c.Volumes)
	}
	if e.booked[r] != nil {
		e.refresh(r)
	}
}

// Kept returns the node where a place is kept for an instance until others have ended.
func (e *Engine) Kept(id model.InstanceID) (model.NodeID, bool) {
	h, ok := e.index[id]
	if !ok || !e.at(h).waits {
		return "", false
	}
	return e.info[e.at(h).row].ID, true
}
