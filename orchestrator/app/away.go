package app

import (
	"fmt"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
)

// writeOff decides about an instance whose node does not answer, and reports whether it counts no more: it is replaced, or
// given up. An outage keeps what is not replaced yet from being replaced, and all from being given up.
func (p *planner) writeOff(i *model.Instance) bool {
	p.away++
	lost := i.Status.Away
	if p.unreachable == nil || p.unreachable.Never || i.Slot != 0 && !p.unreachable.AbandonVolumes {
		return false
	}
	replace := p.unreachable.ReplaceAt(p.replaceFrom(i))
	expunge := p.unreachable.ExpungeAt(later(lost, p.s.Healed))
	if o := p.s.Outage; o != nil {
		if !replace.Before(o.Noted) {
			p.resting++
			return false
		}
	} else if !expunge.After(p.now) {
		p.gone = append(p.gone, i)
		p.d.Expunge = append(p.d.Expunge, Expunge{i.ID, fmt.Sprintf("its node did not answer for %v (unreachable)", p.now.Sub(lost).Round(time.Second))})
		return true
	} else {
		p.d.wakeAt(expunge)
	}
	switch {
	case p.target == nil || i.Slot != 0: // of a removed app nothing is replaced, and a slot is not held twice
		return false
	case replace.After(p.now):
		p.d.wakeAt(replace)
		return false
	}
	p.off = append(p.off, i)
	return true
}

// replaceFrom returns from when the time counts until an instance on a lost node is replaced: the end of an outage begins it
// anew, but for those that were replaced before.
func (p *planner) replaceFrom(i *model.Instance) time.Time {
	if lost := i.Status.Away; !lost.Before(p.s.Healed) || p.hasStandIn(i) {
		return lost
	}
	return p.s.Healed
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// hasStandIn reports whether an instance that is not over came for i.
func (p *planner) hasStandIn(i *model.Instance) bool {
	if p.standIns == nil {
		p.standIns = map[model.InstanceID]bool{}
		for _, o := range p.s.Instances {
			if o.Replaces != "" && !o.Over() {
				p.standIns[o.Replaces] = true
			}
		}
	}
	return p.standIns[i.ID]
}

// unreplaced returns those that count no more since their nodes do not answer, and that nobody stands in for.
func (p *planner) unreplaced() []*model.Instance {
	var out []*model.Instance
	for _, list := range [][]*model.Instance{p.off, p.gone} {
		for _, i := range list {
			if i.Desired == model.Run && i.Slot == 0 && !p.hasStandIn(i) {
				out = append(out, i)
			}
		}
	}
	return out
}

// hidden returns those that count, and of whom nobody knows how they are.
func (p *planner) hidden() []*model.Instance {
	var out []*model.Instance
	for _, list := range [][]*model.Instance{instances(p.current), instances(p.old), p.ending} {
		for _, i := range list {
			if !i.Status.Away.IsZero() {
				out = append(out, i)
			}
		}
	}
	return out
}

// blameless reports whether nothing but lost nodes keeps the app's deployment from moving: that is no fault of the version,
// and going back would not help.
func (p *planner) blameless() bool {
	if p.away == 0 || p.resting > 0 {
		return p.resting > 0
	}
	bad := func(m member) bool { return m.rank != healthy && m.Status.Away.IsZero() }
	return len(p.hidden()) > 0 && p.created == 0 && !slices.ContainsFunc(p.current, bad)
}

// standIn replaces those on lost nodes while the app's deployment is paused, each by one of the version that it had.
func (p *planner) standIn() {
	for _, i := range p.unreplaced() {
		p.recreate(i, i.ID)
	}
}
