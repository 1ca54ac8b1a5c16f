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

// maxLooked bounds how many nodes are searched for victims.
const maxLooked = 512

// Preempt finds whom to end so that one more instance of c gets a place, and keeps the place for it: until the victims
// are over nobody else gets it. Where what leaves already will do there are no victims, but the place is kept as well. They are of the class's own role and less important, or of roles that have more than
// their guarantee while the class's role lacks its own. Fewest go, the least important first; none whose app would fall
// below its floor, unless nothing else can help. spare returns how many instances an app can lose before that.
func (e *Engine) Preempt(c *Class, id model.InstanceID, spare func(model.AppID) int) (Preemption, bool) {
	e.judge(c)
	if c.role.room(&c.vector, 1) == 0 {
		return e.preemptQuota(c, id, spare)
	}
	if c.Priority == 0 && !c.role.lacks(&c.vector) {
		return Preemption{}, false
	}
	var best *trial
	looked := 0
	for r := range int32(len(e.info)) {
		if !e.able(c, r) || !c.rules.allow(r) || !e.rulesAllow(c, r) {
			continue
		}
		t := e.try(c, r, spare)
		if t == nil {
			continue
		}
		if looked++; best == nil || t.before(best) {
			best = t
		}
		if looked >= maxLooked {
			break
		}
	}
	if best == nil { // without any victims what leaves already will do
		return Preemption{}, false
	}
	p := Preemption{ID: id, Node: e.info[best.row].ID}
	for _, v := range best.victims {
		p.Victims = append(p.Victims, e.condemn(v, c, spare))
	}
	e.at(e.seize(id, c, best.row, nil)).waits = true
	if e.booked[best.row] != nil {
		e.refresh(best.row)
	}
	return p, true
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

// condemn marks a hold as one that leaves.
func (e *Engine) condemn(h int32, c *Class, spare func(model.AppID) int) Victim {
	x := e.at(h)
	x.leaving = true
	v := Victim{ID: x.id, App: x.class.App, Node: e.info[x.row].ID, Priority: x.class.Priority, Breaks: spare(x.class.App) <= 0}
	if x.class.role.id.Within(c.role.id) && x.class.Priority < c.Priority {
		v.Why = fmt.Sprintf("%s with priority %d needs its place; its own priority is %d", c.App, c.Priority, x.class.Priority)
	} else {
		v.Why = fmt.Sprintf("%s needs its place, which is guaranteed to role %s", c.App, c.role.id)
	}
	return v
}

// trial is a row on which an instance would fit without its victims.
type trial struct {
	row     int32
	victims []int32
	breaks  int
	top     int // highest priority of a victim
	size    float64
}

func (t *trial) before(o *trial) bool {
	return cmp.Or(cmp.Compare(t.breaks, o.breaks), cmp.Compare(t.top, o.top), cmp.Compare(len(t.victims), len(o.victims)), cmp.Compare(t.size, o.size)) < 0
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

// try finds the fewest victims on a row, or nil.
func (e *Engine) try(c *Class, r int32, spare func(model.AppID) int) *trial {
	var list []int32
	sum := e.freeFor(c.role, r)
	for h := e.first[r]; h != none; h = e.at(h).next {
		if x := e.at(h); x.leaving || e.victim(x, c) {
			list = append(list, h)
			sum = plus(sum, x.class.need)
		}
	}
	if !within(c.want, sum) {
		return nil
	}
	last := func(h int32) bool { return !e.at(h).leaving && spare(e.at(h).class.App) <= 0 }
	slices.SortFunc(list, func(a, b int32) int {
		x, y := e.at(a), e.at(b)
		return cmp.Or(-compareBool(x.leaving, y.leaving), compareBool(last(a), last(b)), cmp.Compare(x.class.Priority, y.class.Priority),
			-cmp.Compare(e.weigh(x.class, r), e.weigh(y.class, r)), cmp.Compare(x.id, y.id))
	})
	n := 0
	for ; n < len(list) && !e.fits(c, r); n++ {
		e.lift(list[n], 1)
	}
	fits := e.fits(c, r)
	var victims []int32
	for i := n - 1; i >= 0; i-- { // those that turn out not to be needed stay
		h := list[i]
		e.lift(h, -1)
		if e.fits(c, r) {
			continue
		}
		e.lift(h, 1)
		victims = append(victims, h)
	}
	for _, h := range victims {
		e.lift(h, -1)
	}
	if !fits {
		return nil
	}
	t := &trial{row: r}
	lost := map[model.AppID]int{}
	for _, h := range victims {
		x := e.at(h)
		if x.leaving {
			continue
		}
		t.victims = append(t.victims, h)
		t.top = max(t.top, x.class.Priority+1)
		t.size += e.weigh(x.class, r)
		if lost[x.class.App]++; lost[x.class.App] > spare(x.class.App) {
			t.breaks++
		}
	}
	return t
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// weigh returns what part of a row an instance of c takes.
func (e *Engine) weigh(c *Class, r int32) float64 {
	t := &e.total[r]
	return float64(c.need.CPU)/float64(max(1, t.CPU)) + float64(c.need.Memory)/float64(max(1, t.Memory)) +
		float64(c.vector.gpus)/float64(max(1, wholeDevice*len(e.gpu[r].free)))
}

// lift gives back, or with -1 takes again, what a hold has of its row, for a trial.
func (e *Engine) lift(n int32, sign int64) {
	h := e.at(n)
	need := h.class.need
	e.free[h.row] = plus(e.free[h.row], policy.Amounts{CPU: sign * need.CPU, Memory: sign * need.Memory, Disk: sign * need.Disk})
	if h.waits {
		return
	}
	e.takeExtras(h.row, h, -int32(sign))
	if h.extra == nil {
		return
	}
	if sign > 0 {
		e.ports[h.row].give(h.class.Ports, h.extra.ports)
	} else {
		e.ports[h.row].retake(h.class.Ports, h.extra.ports)
	}
}

// preemptQuota finds victims in the role that is at its limit, wherever they are.
func (e *Engine) preemptQuota(c *Class, id model.InstanceID, spare func(model.AppID) int) (Preemption, bool) {
	full := c.role
	for full != nil && full.alone(&c.vector) {
		full = full.parent
	}
	if full == nil {
		return Preemption{}, false
	}
	var list []int32
	used := full.used
	for n := range e.all {
		h := e.at(n)
		if h.waits || !h.class.role.id.Within(full.id) || !h.class.role.id.Within(c.role.id) {
			continue
		}
		if h.leaving { // it goes already
			used = used.sub(h.class.vector)
		} else if h.class.Priority < c.Priority {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b int32) int {
		x, y := e.at(a), e.at(b)
		return cmp.Or(compareBool(spare(x.class.App) <= 0, spare(y.class.App) <= 0), cmp.Compare(x.class.Priority, y.class.Priority), cmp.Compare(x.id, y.id))
	})
	n := 0
	for ; n < len(list) && !limited(full, &used, &c.vector); n++ {
		used = used.sub(e.at(list[n]).class.vector)
	}
	if !limited(full, &used, &c.vector) || !e.fitsWithout(c, list[:n]) {
		return Preemption{}, false
	}
	p := Preemption{ID: id}
	for _, h := range list[:n] {
		p.Victims = append(p.Victims, e.condemn(h, c, spare))
	}
	return p, len(p.Victims) > 0
}

// fitsWithout reports whether there is a place for c once some holds are no more. To end them for a limit alone would be
// in vain, again and again.
func (e *Engine) fitsWithout(c *Class, holds []int32) bool {
	for _, h := range holds {
		e.lift(h, 1)
	}
	found := false
	for r := range int32(len(e.info)) {
		if e.able(c, r) && e.fits(c, r) && e.rulesAllow(c, r) {
			found = true
			break
		}
	}
	for _, h := range slices.Backward(holds) {
		e.lift(h, -1)
	}
	return found
}

// alone reports whether r's own limit, not those above it, lets one more instance of v in.
func (r *role) alone(v *vector) bool { return limited(r, &r.used, v) }

// limited reports whether used and v together are within r's limit.
func limited(r *role, used, v *vector) bool {
	return each(&r.set.Limit, used, v, func(_ string, limit, used, one int64) bool { return one == 0 || used+one <= limit })
}

// Settle gives an instance for which others had to end its place, once they are over. It reports whether the place is
// still kept for it: when neither, the instance waits like any other again.
func (e *Engine) Settle(id model.InstanceID) (p Placement, placed, kept bool) {
	h, ok := e.index[id]
	if !ok || !e.at(h).waits {
		return Placement{}, false, false
	}
	r, c := e.at(h).row, e.at(h).class
	c.live++ // Release must not be the end of it
	defer e.unref(c)
	e.Release(id)
	e.judge(c)
	if !e.able(c, r) || !e.rulesAllow(c, r) {
		return Placement{}, false, false
	}
	if e.fits(c, r) && c.role.room(&c.vector, 1) > 0 {
		return e.take(id, c, r), true, true
	}
	for h := e.first[r]; h != none; h = e.at(h).next {
		if e.at(h).leaving {
			e.at(e.seize(id, c, r, nil)).waits = true
			if e.booked[r] != nil {
				e.refresh(r)
			}
			return Placement{}, false, true
		}
	}
	return Placement{}, false, false
}

// Kept returns the node where a place is kept for an instance until others have ended.
func (e *Engine) Kept(id model.InstanceID) (model.NodeID, bool) {
	h, ok := e.index[id]
	if !ok || !e.at(h).waits {
		return "", false
	}
	return e.info[e.at(h).row].ID, true
}
