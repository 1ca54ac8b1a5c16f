package app

import "github.com/gantry-os/gantry/model"

// fill creates what is missing, and a replacement for each that has to leave, as far as the ceiling allows.
func (p *planner) fill() {
	if p.stateful {
		p.fillSlots()
		return
	}
	short := max(0, min(p.count-(len(p.current)-p.pairs)-p.held, p.room()))
	var leave []*model.Instance
	if p.ceiling > p.count {
		leave = p.heirless(p.current)
		leave = leave[:max(0, min(len(leave), p.room()-short))]
	}
	c := Create{Version: p.target.Version, Count: short + len(leave)}
	old := append(p.heirless(p.old), p.unreplaced()...) // what is missing replaces them anyway
	for _, i := range append(leave, old[:min(len(old), short)]...) {
		c.Replaces = append(c.Replaces, i.ID)
	}
	p.create(c)
}

// fillSlots creates an instance for each free slot, from the lowest, as far as the ceiling allows.
func (p *planner) fillSlots() {
	var free []uint32
	for slot := uint32(1); int(slot) <= p.count && len(free) < p.room(); slot++ {
		if p.hold(slot) {
			free = append(free, slot)
		}
	}
	p.create(Create{Version: p.target.Version, Count: len(free), Slots: free})
}

// hold takes a slot and reports whether it could be taken: who was asked to end, or is on a node that does not answer,
// still has it. An instance without slots can always be had.
func (p *planner) hold(slot uint32) bool {
	if slot == 0 {
		return true
	}
	if p.slots == nil {
		p.slots = map[uint32]bool{}
		for _, i := range p.s.Instances {
			if !i.Over() {
				p.slots[i.Slot] = true
			}
		}
	}
	if p.slots[slot] {
		return false
	}
	p.slots[slot] = true
	return true
}
