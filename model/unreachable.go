package model

import (
	"cmp"
	"time"
)

// Unreachable is the policy for instances whose node does not answer. Nobody knows whether they run. Times count from when
// the node was last heard of.
type Unreachable struct {
	ReplaceAfter   Duration `json:"replaceAfter,omitempty" doc:"When another instance is started in place of each. Default 1m. Should the node be back in time, the one too many is stopped."`
	ExpungeAfter   Duration `json:"expungeAfter,omitempty" doc:"When it is given up: its node stops it, should that come back. Default 10m, or replaceAfter when that is longer."`
	Never          bool     `json:"never,omitempty" doc:"Wait for the node, however long it takes, or until an operator removes it. Default false; true with persistent volumes."`
	AbandonVolumes bool     `json:"abandonVolumes,omitempty" doc:"Replace instances with persistent volumes too, which begin elsewhere with empty ones. What the volumes of the lost node hold is given up, and until the node is back two instances may run with the same slot."`
}

// Defaults of Unreachable.
const (
	DefaultReplaceAfter = Duration(time.Minute)
	DefaultExpungeAfter = Duration(10 * time.Minute)
)

// unreachable returns the policy for lost nodes, defaults included.
func (s *Spec) unreachable() *Unreachable {
	var u Unreachable
	if s.Unreachable != nil {
		u = *s.Unreachable
	}
	if u.Never || s.Stateful() && !u.AbandonVolumes {
		return &Unreachable{Never: true}
	}
	u.ReplaceAfter = cmp.Or(u.ReplaceAfter, DefaultReplaceAfter)
	if !u.AbandonVolumes {
		u.ExpungeAfter = cmp.Or(u.ExpungeAfter, max(DefaultExpungeAfter, u.ReplaceAfter))
	}
	return &u
}

// ReplaceAt returns when an instance whose node was lost at a time is replaced, zero for never.
func (u *Unreachable) ReplaceAt(lost time.Time) time.Time {
	if u.Never {
		return time.Time{}
	}
	return lost.Add(u.ReplaceAfter.Std())
}

// ExpungeAt returns when such an instance is given up, zero for never. Where nothing may run beside it, as its slot is to
// be free, that is when it is replaced.
func (u *Unreachable) ExpungeAt(lost time.Time) time.Time {
	switch {
	case u.Never:
		return time.Time{}
	case u.AbandonVolumes:
		return u.ReplaceAt(lost)
	}
	return lost.Add(u.ExpungeAfter.Std())
}

func (s *Spec) validateUnreachable(errs *FieldErrors) {
	u := s.Unreachable
	if u == nil {
		return
	}
	atLeast(errs, "unreachable.replaceAfter", u.ReplaceAfter, 0)
	atLeast(errs, "unreachable.expungeAfter", u.ExpungeAfter, 0)
	stateful := s.Stateful()
	switch {
	case u.Never && (u.ReplaceAfter != 0 || u.ExpungeAfter != 0 || u.AbandonVolumes):
		errs.add("unreachable.never", "goes with nothing else: such instances are neither replaced nor given up")
	case u.AbandonVolumes && !stateful:
		errs.add("unreachable.abandonVolumes", "has no meaning without a persistent volume")
	case u.AbandonVolumes && u.ExpungeAfter != 0:
		errs.add("unreachable.expungeAfter", "has no meaning with abandonVolumes: an instance with persistent volumes is given up when it is replaced")
	case stateful && !u.AbandonVolumes && (u.ReplaceAfter != 0 || u.ExpungeAfter != 0):
		field := "unreachable.replaceAfter"
		if u.ReplaceAfter == 0 {
			field = "unreachable.expungeAfter"
		}
		errs.add(field, "an instance with persistent volumes waits for its node, where its data is and where it may still run; "+
			"with unreachable.abandonVolumes: true its replacement begins elsewhere, without the data")
	case u.ExpungeAfter != 0 && u.ExpungeAfter < cmp.Or(u.ReplaceAfter, DefaultReplaceAfter):
		errs.add("unreachable.expungeAfter", "%v is before an instance is replaced, after %v", u.ExpungeAfter, cmp.Or(u.ReplaceAfter, DefaultReplaceAfter))
	}
}
