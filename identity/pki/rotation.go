package pki

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// Phase is how far a rotation of the cluster's authority has come.
//
//	steady ---> spreading ---> issuing ---> steady
//
// A rotation adds a root. While it is spreading, machines come to trust it, and the old root signs. Once all have said that
// they do, it is the new root that signs, and machines get new certificates. Once all have said that they use one, the old
// root goes. So at every moment each certificate in use comes from a root that every machine trusts.
//
// That a machine uses something is only believed when the machine says so, by a CheckIn with what it uses; a machine never
// goes back, and a join cannot slip in beside a change of phase (see model.Cluster.Joins). Servers are waited for until they
// are removed, agents until their certificates have expired: until then they could not have talked to anyone.
type Phase string

// Phases.
const (
	Steady    Phase = "steady"
	Spreading Phase = "spreading"
	Issuing   Phase = "issuing"
)

// PhaseOf returns the phase that a cluster is in.
func PhaseOf(c *model.Cluster) Phase {
	switch {
	case len(c.Roots) < 2:
		return Steady
	case c.Issuer == c.Roots[0].Fingerprint:
		return Spreading
	}
	return Issuing
}

// Rotation says how a rotation goes.
type Rotation struct {
	Phase  Phase
	Since  time.Time
	Of     int               // machines that count
	Waits  []model.MachineID // of them, those that are waited for
	Reason string            // a sentence
	next   time.Time         // when one of Waits no longer counts
}

// RotationOf returns how a rotation goes, as v has it.
func RotationOf(v state.View, now time.Time) Rotation {
	c := v.Cluster()
	if c == nil {
		return Rotation{Phase: Steady, Reason: "The cluster has no authority yet."}
	}
	r := Rotation{Phase: PhaseOf(c), Since: c.Changed}
	for m := range v.Machines() {
		role, _ := m.ID.Split()
		if role == model.AgentMachine && !m.Expires.After(now) {
			continue
		}
		r.Of++
		if r.Phase == Spreading && m.Trust < c.Trust || r.Phase == Issuing && m.Issuer != c.Issuer {
			r.Waits = append(r.Waits, m.ID)
			if role == model.AgentMachine && (r.next.IsZero() || m.Expires.Before(r.next)) {
				r.next = m.Expires
			}
		}
	}
	r.Reason = r.say()
	return r
}

func (r Rotation) say() string {
	what := map[Phase]string{Spreading: "trust the new root", Issuing: "use a certificate of the new root"}[r.Phase]
	switch {
	case r.Phase == Steady:
		return "The cluster's authority is not being rotated."
	case len(r.Waits) == 0:
		return fmt.Sprintf("All %d machines %s.", r.Of, what)
	}
	first := r.Waits[len(r.Waits)-1] // servers sort last, and are not waited out
	sentence := fmt.Sprintf("%d of %d machines do not yet %s, %s among them.", len(r.Waits), r.Of, what, first)
	if role, _ := first.Split(); role == model.ServerMachine {
		return sentence + " A server is waited for until it has checked in or is removed."
	}
	return sentence + " Agents are waited for until they have checked in or their certificates have expired."
}

// Next returns the record of the phase after c's, as it is at now, or nil while r waits.
func (r Rotation) Next(c *model.Cluster, now time.Time) *model.Cluster {
	if r.Phase == Steady || len(r.Waits) > 0 {
		return nil
	}
	next := *c
	next.Trust++
	next.Changed = now
	newest := c.Roots[len(c.Roots)-1]
	if r.Phase == Spreading {
		next.Issuer = newest.Fingerprint
	} else {
		next.Roots = []model.Root{newest}
	}
	return &next
}

// Rotate begins a rotation of the cluster's authority. The Warden takes it from there.
func (r *Registrar) Rotate(ctx context.Context) error {
	c := r.cfg.Store.View().Cluster()
	if c == nil {
		return errNoCluster
	}
	now := r.cfg.Now()
	root, err := r.cfg.Authority.newRoot(c, now)
	if err != nil {
		return fmt.Errorf("make a new root: %w", err)
	}
	err = r.cfg.Store.Update(ctx, func(tx *state.Tx) error {
		cur := tx.Cluster()
		if PhaseOf(cur) != Steady {
			return fmt.Errorf("%w: the cluster's authority is being rotated already: %s", ErrBusy, RotationOf(tx.View, now).Reason)
		}
		if cur.Trust != c.Trust {
			return errMoved
		}
		next := *cur
		next.Roots = append(slices.Clone(cur.Roots), *root)
		next.Trust++
		next.Changed = now
		tx.PutCluster(&next)
		tx.Emit(model.Event{Type: "authority.rotating", Message: "The rotation of the cluster's authority began: a new root was made."})
		return nil
	})
	if errors.Is(err, errMoved) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return storeError(err)
}

// Warden is the leader's loop: it takes a rotation on, and forgets tokens, revocations and agents whose time is over.
type Warden struct {
	store  state.Store
	now    func() time.Time
	grace  time.Duration
	logger *slog.Logger
	watch  *state.Watch
	due    time.Time // when to look, though nothing has changed; zero for now
}

// NewWarden returns a loop over the leader's store. grace is the Registrar's.
func NewWarden(leader state.Store, now func() time.Time, grace time.Duration, logger *slog.Logger) *Warden {
	return &Warden{store: leader, now: now, grace: grace, logger: logger}
}

// kept is how long a join token is kept after its end, to say that it has expired.
const kept = 24 * time.Hour

// Run works until ctx ends, or this server is no longer the leader. It is called once.
func (w *Warden) Run(ctx context.Context) error {
	_, w.watch = w.store.Watch()
	defer w.watch.Close()
	return state.Loop{Name: "identity", Now: w.now, Logger: w.logger, Step: w.Step, Ready: w.watch.Ready}.Run(ctx)
}

// Step does what there is to do now, and returns when there will be something though nothing changes.
func (w *Warden) Step(ctx context.Context) (time.Time, error) {
	v, now := w.store.View(), w.now()
	if w.watch != nil {
		var changes state.Changes
		if v, changes = w.watch.Take(); !changes.Trust && !changes.Full && now.Before(w.due) {
			return w.due, nil
		}
	}
	next, err := w.step(ctx, v, now)
	if w.due = next; err != nil {
		w.due = time.Time{}
	}
	return next, err
}

func (w *Warden) step(ctx context.Context, v state.View, now time.Time) (time.Time, error) {
	next := now.Add(time.Hour)
	r := RotationOf(v, now)
	if !r.next.IsZero() {
		next = earlier(next, r.next.Add(time.Second))
	}
	over := w.over(v, now)
	if len(over) == 0 && (r.Phase == Steady || len(r.Waits) > 0) {
		return next, nil
	}
	err := w.store.Update(ctx, func(tx *state.Tx) error {
		for _, forget := range w.over(tx.View, now) {
			forget(tx)
		}
		r = RotationOf(tx.View, now)
		c := tx.Cluster()
		if c == nil {
			return nil
		}
		if n := r.Next(c, now); n != nil {
			tx.PutCluster(n)
			tx.Emit(model.Event{Type: "authority.rotating", Message: fmt.Sprintf("%s The rotation of the cluster's authority is now %s.", r.Reason, PhaseOf(n))})
		}
		return nil
	})
	return next, err
}

// over returns how to forget what is over: at most some of it at a time.
func (w *Warden) over(v state.View, now time.Time) []func(*state.Tx) {
	const most = 500
	var out []func(*state.Tx)
	for t := range v.Tokens() {
		if now.After(t.Expires.Add(kept)) {
			out = append(out, func(tx *state.Tx) { tx.DeleteToken(t.ID) })
		}
	}
	for r := range v.Revocations() {
		if !r.Until.IsZero() && now.After(r.Until) {
			out = append(out, func(tx *state.Tx) { tx.DeleteRevocation(model.RevocationKey(r.ID, r.Epoch)) })
		}
	}
	for m := range v.Machines() {
		if role, _ := m.ID.Split(); role == model.AgentMachine && now.After(m.Expires.Add(w.grace)) {
			out = append(out, func(tx *state.Tx) { tx.DeleteMachine(m.ID) })
		}
	}
	return out[:min(len(out), most)]
}
