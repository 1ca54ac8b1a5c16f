package engine

import (
	"slices"

	"github.com/gantry-os/gantry/model"
)

// Keep keeps a place for an instance of c where what was asked to leave already will do, as Preempt does with victims. It
// returns the node, and reports whether there is one.
func (e *Engine) Keep(c *Class, id model.InstanceID) (model.NodeID, bool) {
	e.judge(c)
	if c.role.room(&c.vector, 1) == 0 {
		return "", false
	}
	best := e.bestTrial(c, func(model.AppID) int { return 0 })
	if best == nil || len(best.victims) > 0 {
		return "", false
	}
	e.keep(id, c, best.row)
	return e.info[best.row].ID, true
}

// FitsWithout reports whether there is a place for one more instance of c once some are no more, whatever its role may
// take. To end them for a limit alone would be in vain, again and again.
func (e *Engine) FitsWithout(c *Class, victims []Victim) bool {
	e.judge(c)
	for _, x := range victims {
		e.lift(e.index[x.ID], true)
	}
	found := false
	for r := int32(0); r < int32(len(e.info)) && !found; r++ {
		found = e.able(c, r) && e.fits(c, r) && e.rulesAllow(c, r)
	}
	for _, x := range slices.Backward(victims) {
		e.lift(e.index[x.ID], false)
	}
	return found
}
