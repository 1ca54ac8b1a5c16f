package app

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
)

// heir is a live instance that takes over from another live one.
type heir struct {
	member
	from     rank // of the other
	pair     bool // it is above the count for a while, since the other counts and has to leave
	needless bool // the other need not leave any more
}

// leaving reports whether m is to go once another does its work. Nobody else can have a slot's volumes, so an instance
// with a slot stays where it is.
func leaving(m member) bool {
	return m.Evict != nil && m.Evict.Kind != model.EvictPreempt && m.Node != "" && m.Slot == 0
}

// preempt stops at once who was evicted for more important work, whatever the floor: the scheduler has weighed that.
func (p *planner) preempt() {
	if !p.evicted {
		return
	}
	preempted := func(m member) (string, string) {
		if m.Evict == nil || m.Evict.Kind != model.EvictPreempt {
			return "", ""
		}
		return evictedWhy(m.Evict), "instance.preempted"
	}
	p.retire(&p.current, preempted)
	p.retire(&p.old, preempted)
}

// evictedWhy says why an instance stops that nobody has taken over from.
func evictedWhy(e *model.Eviction) string {
	if e.Kind == model.EvictPreempt {
		return cmp.Or(e.Why, "its place is needed by more important work")
	}
	return "it has to leave its node" + colon(e.Why)
}

// retireOverdue stops at once who is still on a node that was to be empty by now, whatever the floor. Who has a slot goes
// last: once nothing else is left there.
func (p *planner) retireOverdue() {
	if !p.evicted {
		return
	}
	overdue := func(m member) (string, string) {
		if !p.overdue(m) {
			return "", ""
		}
		return evictedWhy(m.Evict), "instance.moving"
	}
	p.retire(&p.current, overdue)
	p.retire(&p.old, overdue)
}

func (p *planner) overdue(m member) bool {
	d := p.deadline(m)
	switch {
	case d.Deadline.IsZero():
		return false
	case d.Deadline.After(p.now):
		p.d.wakeAt(d.Deadline)
		return false
	case m.Slot != 0 && d.Others:
		p.d.wakeAt(p.now.Add(time.Second))
		return false
	}
	return true
}

// deadline returns by when the node of m is to be empty, if it is.
func (p *planner) deadline(m member) Drain {
	if m.Evict == nil || m.Evict.Kind != model.EvictDrain || m.Node == "" {
		return Drain{}
	}
	return p.s.Drains[m.Node]
}

// findHeirs finds out who takes over from whom. Only current instances do, and while the app's deployment is paused any.
func (p *planner) findHeirs(paused bool) {
	by := map[model.InstanceID]heir{}
	find := func(list []member) {
		for _, m := range list {
			if m.Replaces == "" {
				continue
			}
			if other, ok := by[m.Replaces]; !ok || other.rank < m.rank {
				by[m.Replaces] = heir{member: m}
			}
		}
	}
	find(p.current)
	if paused {
		find(p.old)
	}
	if len(by) == 0 {
		return
	}
	p.heirs = map[model.InstanceID]heir{}
	p.match(by, p.current, true)
	p.match(by, p.old, paused)
}

// match notes the heirs of list. Those of instances that count are pairs with them.
func (p *planner) match(by map[model.InstanceID]heir, list []member, counts bool) {
	for _, m := range list {
		h, ok := by[m.ID]
		if !ok {
			continue
		}
		h.from, h.pair, h.needless = m.rank, counts && leaving(m), counts && m.Evict == nil
		if h.pair {
			p.pairs++
		}
		p.heirs[m.ID] = h
	}
}

// part ends the pairs that m belongs to and returns how many: what is left of each counts as one, as before.
func (p *planner) part(m member) int {
	n := 0
	for _, id := range []model.InstanceID{m.ID, m.Replaces} {
		if h, ok := p.heirs[id]; ok && h.pair && (id == m.ID || h.ID == m.ID) {
			delete(p.heirs, id)
			n++
		}
	}
	p.pairs -= n
	return n
}

// retireMoved stops those of list that have to leave: once their heirs do as much as they do, or first when none may
// exist above the count.
func (p *planner) retireMoved(list *[]member) {
	if !p.evicted {
		return
	}
	leavers := slices.DeleteFunc(slices.Clone(*list), func(m member) bool { return !leaving(m) })
	p.order(leavers)
	gone := map[model.InstanceID]bool{}
	for _, m := range leavers {
		if why, event := p.moved(m); why != "" {
			p.part(m)
			p.halt(m, why, event)
			gone[m.ID] = true
		}
	}
	*list = slices.DeleteFunc(*list, func(m member) bool { return gone[m.ID] })
}

// moved says why m, which has to leave, may stop now; nothing when it may not.
func (p *planner) moved(m member) (why, event string) {
	h, ok := p.heirs[m.ID]
	switch {
	case !p.spare(m):
	case ok && h.rank > unplaced && h.rank >= m.rank:
		return fmt.Sprintf("%s took over from it%s", h.ID, colon(m.Evict.Why)), ""
	case !ok && p.ceiling == p.count:
		return evictedWhy(m.Evict), "instance.moving"
	}
	return "", ""
}

// heirless returns those of list that have to leave and are to have an heir now. There are none while what was lost
// moments after its creation waits to be replaced: it may have been an heir.
func (p *planner) heirless(list []member) []*model.Instance {
	if !p.evicted || p.held > 0 {
		return nil
	}
	var out []*model.Instance
	for _, m := range list {
		if _, ok := p.heirs[m.ID]; !ok && leaving(m) {
			out = append(out, m.Instance)
		}
	}
	return out
}

// moveWhilePaused fulfils evictions in a mix of versions that is to stay as it is: each replacement is like the one
// that it takes over from.
func (p *planner) moveWhilePaused(dep *model.Deployment) {
	p.retireMoved(&p.current)
	p.retireMoved(&p.old)
	p.retireNeedless()
	p.repay(dep)
	p.standIn()
	if p.ceiling == p.count {
		return
	}
	for _, i := range append(p.heirless(p.current), p.heirless(p.old)...) {
		p.recreate(i, i.ID)
	}
}

// retireNeedless stops heirs of instances that need not leave any more.
func (p *planner) retireNeedless() {
	extra := len(p.current) + len(p.old) - p.pairs - p.count
	reason := func(m member) (string, string) {
		if extra <= 0 || !p.needless(m) || m.rank > p.heirs[m.Replaces].from || !p.spare(m) {
			return "", ""
		}
		extra--
		return needlessWhy(m), ""
	}
	p.retire(&p.current, reason)
	p.retire(&p.old, reason)
}

// needless reports whether m came for one that need not leave any more.
func (p *planner) needless(m member) bool {
	h, ok := p.heirs[m.Replaces]
	return ok && h.needless && h.ID == m.ID
}

func needlessWhy(m member) string {
	return fmt.Sprintf("it came for %s, which can stay", m.Replaces)
}

// repay replaces those that were evicted during the pause, since the count, which else asks for it, rests.
func (p *planner) repay(dep *model.Deployment) {
	short := p.count - (len(p.current) + len(p.old) - p.pairs) - p.held - p.created
	if short <= 0 {
		return
	}
	replaced := map[model.InstanceID]bool{}
	for _, i := range p.s.Instances {
		replaced[i.Replaces] = true
	}
	for _, i := range slices.Concat(p.ending, p.past) {
		owed := i.Evict != nil && !i.Evict.At.Before(dep.Created) && (i.Desired == model.Run || i.Why == evictedWhy(i.Evict))
		if short > 0 && owed && !replaced[i.ID] && p.recreate(i, i.ID) {
			short--
		}
	}
}

// explainStays writes down what those wait for that have to leave their nodes.
func (p *planner) explainStays() {
	for _, list := range [][]member{p.current, p.old} {
		for _, m := range list {
			if m.Evict == nil && m.Why == "" {
				continue
			}
			if why := p.stays(m); why != m.Why {
				p.d.Stay = append(p.d.Stay, Stay{m.ID, why})
			}
		}
	}
}

func (p *planner) stays(m member) string {
	if m.Evict == nil || m.Node == "" {
		return ""
	}
	var why, until string
	if d := p.deadline(m).Deadline; !d.IsZero() {
		until = " until " + d.UTC().Format(time.RFC3339)
	}
	switch h, ok := p.heirs[m.ID]; {
	case m.Slot != 0:
		why = "stays" + until + ", since its persistent volumes are on its node"
	case ok && h.rank < m.rank:
		why = fmt.Sprintf("stays until %s has taken over", h.ID)
	case !m.Status.Away.IsZero():
		why = "stays, since its node does not answer"
	case !p.spare(m):
		why = fmt.Sprintf("stays%s, since the floor is %d healthy (update.minHealthy)", until, p.floor)
	case p.room() <= 0:
		why = fmt.Sprintf("stays while no further instance may exist: at most %d (update.maxSurge)", p.ceiling)
	default:
		return "" // its replacement is on the way
	}
	return why + colon(m.Evict.Why)
}
