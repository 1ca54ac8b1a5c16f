package fleet

import (
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// The clocks of machines differ, and jump. What waits for a time that somebody with a clock ahead of others wrote down would
// wait as long as that clock was ahead, so nothing that has happened is left to lie in the future.

// dated returns s, which a node reports of an instance whose status was old, with a time that is not after now.
func dated(s, old model.Status, now time.Time) model.Status {
	if !s.Since.After(now) {
		return s
	}
	same := s.Phase == old.Phase && s.Attempt == old.Attempt && s.Ready == old.Ready && s.Healthy == old.Healthy
	if s.Since = now; same && !old.Since.After(now) {
		s.Since = old.Since // it says again what it said before
	}
	return s
}

// recall corrects what an earlier leader, whose clock was ahead, wrote down of a node that is lost.
func recall(tx *state.Tx, n *model.Node, now time.Time) {
	if n.State == model.NodeReady || !n.Lost.After(now) {
		return
	}
	next := *n
	next.Lost = now
	tx.PutNode(&next)
	for i := range tx.InstancesOn(n.ID) {
		if i.Status.Away.After(now) {
			next := i.Clone()
			next.Status.Away = now
			tx.PutInstance(next)
		}
	}
}
