package fleet

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

const (
	retryPause = time.Second // between tries to write down what became of nodes
	leastPause = 100 * time.Millisecond
	healPause  = time.Second      // from the return of a node to the judgement whether an outage is over
	lookEvery  = 30 * time.Second // how often all nodes are looked at
	mostAway   = 4000             // instances of lost nodes in one transaction, unless one node has more
)

// Loss says when a node counts as lost, and what follows from it. Zero fields take their defaults.
type Loss struct {
	Grace time.Duration // from the end of a node's session to when it is unreachable; default 10s
	Gone  time.Duration // after being lost for so long, a node is gone; default 24h

	Flaps      int           // a node that was lost and came back this often, each time within FlapWindow, is unstable; default 3
	FlapWindow time.Duration // default 10m
	Calm       time.Duration // how long it takes no new work then, doubled with each further time; default 2m
	CalmMost   time.Duration // and at most; default 1h

	OutageShare  float64       // more than this share of the nodes, lost within OutageWindow, are an outage; default 0.3
	OutageLeast  int           // and at least so many nodes; default 3
	OutageWindow time.Duration // default 5m
}

// DefaultLoss returns what holds where the operator says nothing.
func DefaultLoss() Loss { return Loss{}.withDefaults() }

// Validate returns the first thing wrong with l, whose fields are set, naming the flag of it.
func (l Loss) Validate() error {
	switch {
	case l.Grace < time.Second || l.Grace > time.Hour:
		return fmt.Errorf("--unreachable-after %v is outside 1s to 1h", l.Grace)
	case l.Gone < l.Grace:
		return fmt.Errorf("--gone-after %v is before a node is unreachable, after %v", l.Gone, l.Grace)
	case l.Calm < time.Second || l.Calm > l.CalmMost:
		return fmt.Errorf("--calm %v is outside 1s to %v", l.Calm, l.CalmMost)
	case !(l.OutageShare > 0 && l.OutageShare <= 1):
		return fmt.Errorf("--outage-share %v is outside 0 to 1: 0.3 means 30%% of the nodes", l.OutageShare)
	}
	return nil
}

func (l Loss) withDefaults() Loss {
	l.Grace = cmp.Or(l.Grace, 10*time.Second)
	l.Gone = cmp.Or(l.Gone, 24*time.Hour)
	l.Flaps = cmp.Or(l.Flaps, 3)
	l.FlapWindow = cmp.Or(l.FlapWindow, 10*time.Minute)
	l.Calm = cmp.Or(l.Calm, 2*time.Minute)
	l.CalmMost = cmp.Or(l.CalmMost, time.Hour)
	l.OutageShare = cmp.Or(l.OutageShare, 0.3)
	l.OutageLeast = cmp.Or(l.OutageLeast, 3)
	l.OutageWindow = cmp.Or(l.OutageWindow, 5*time.Minute)
	return l
}

// lookout notices which nodes are lost. It belongs to speak's goroutine.
type lookout struct {
	f     *Fleet
	away  map[model.NodeID]time.Time // nodes without a session that are not written down as lost, and since when
	full  time.Time                  // when to look at all nodes next
	next  time.Time                  // when timer goes off
	timer *time.Timer
}

// newLookout gives all nodes that were connected to an earlier server the time to come to this one.
func newLookout(f *Fleet, v state.View) *lookout {
	now := f.cfg.Now()
	l := &lookout{f: f, away: map[model.NodeID]time.Time{}, full: now.Add(lookEvery), timer: time.NewTimer(lookEvery)}
	for n := range v.Nodes() {
		if n.State == model.NodeReady {
			l.away[n.ID] = now
		}
	}
	l.set(now)
	return l
}

// lose notes that a session has ended.
func (l *lookout) lose(s *session) {
	if l.f.leave(s) {
		now := l.f.cfg.Now()
		l.away[s.id] = now
		l.by(now, now.Add(l.f.cfg.Loss.Grace))
	}
}

// joined notes that a node came back, which may be the end of an outage.
func (l *lookout) joined() {
	if l.f.store.View().Outage() == nil {
		return
	}
	now := l.f.cfg.Now()
	if soon := now.Add(healPause); soon.Before(l.full) {
		l.full = soon
		l.by(now, soon)
	}
}

// by has the timer go off at a moment, unless it does so before.
func (l *lookout) by(now, at time.Time) {
	if at.Before(l.next) {
		l.next = at
		l.timer.Reset(max(leastPause, at.Sub(now)))
	}
}

// set sets the timer to when there is something to do next.
func (l *lookout) set(now time.Time) {
	l.next = l.full
	for _, at := range l.away {
		if due := at.Add(l.f.cfg.Loss.Grace); due.Before(l.next) {
			l.next = due
		}
	}
	l.timer.Reset(max(leastPause, l.next.Sub(now)))
}

// look writes down which nodes are lost, which are gone, and whether there is an outage.
func (l *lookout) look(ctx context.Context) error {
	now := l.f.cfg.Now()
	err := l.write(ctx, now)
	if err != nil {
		l.next = now.Add(retryPause)
		l.timer.Reset(retryPause)
		return err
	}
	l.set(now)
	return nil
}

func (l *lookout) write(ctx context.Context, now time.Time) error {
	for batch := range l.due(now) {
		if err := l.f.markLost(ctx, batch, now); err != nil {
			return err
		}
		for _, n := range batch {
			if !l.f.here(n.id) { // else it is back, or is not known to be
				delete(l.away, n.id)
			}
		}
	}
	if l.full.After(now) {
		return nil
	}
	if err := l.f.review(ctx, now); err != nil {
		return err
	}
	l.full = now.Add(lookEvery)
	return nil
}

// missing is a node without a session.
type missing struct {
	id model.NodeID
	at time.Time // since when
}

// due returns the nodes whose grace is over, in groups whose instances fit into one transaction each.
func (l *lookout) due(now time.Time) func(yield func([]missing) bool) {
	return func(yield func([]missing) bool) {
		v := l.f.store.View()
		var batch []missing
		size := 0
		for _, id := range slices.Sorted(maps.Keys(l.away)) {
			at := l.away[id]
			if _, ok := l.f.Node(id); ok {
				delete(l.away, id)
				continue
			}
			if at.Add(l.f.cfg.Loss.Grace).After(now) {
				continue
			}
			n := 1
			for range v.InstancesOn(id) {
				n++
			}
			if size > 0 && size+n > mostAway {
				if !yield(batch) {
					return
				}
				batch, size = nil, 0
			}
			batch = append(batch, missing{id, at})
			size += n
		}
		if size > 0 {
			yield(batch)
		}
	}
}

// markLost writes down that nodes do not answer, and that nobody knows how their instances are. A node that says hello at
// this time is none of them.
func (f *Fleet) markLost(ctx context.Context, batch []missing, now time.Time) error {
	return f.store.Update(ctx, func(tx *state.Tx) error {
		for _, m := range batch {
			n := tx.Node(m.id)
			if n == nil || n.State != model.NodeReady || f.here(m.id) {
				continue
			}
			next := *n
			next.State, next.Lost = model.NodeUnreachable, m.at
			tx.PutNode(&next)
			tx.Emit(model.Event{Type: "node.unreachable", Node: n.ID, Message: lostWords(n.Name, putAway(tx, m))})
		}
		f.judge(tx, now)
		return nil
	})
}

// putAway marks the instances of a lost node and returns how many there are.
func putAway(tx *state.Tx, m missing) int {
	count := 0
	for i := range tx.InstancesOn(m.id) {
		if i.Over() {
			continue
		}
		count++
		if i.Status.Away.IsZero() {
			next := i.Clone()
			next.Status.Away = m.at
			tx.PutInstance(next)
		}
	}
	return count
}

func lostWords(name string, instances int) string {
	switch instances {
	case 0:
		return fmt.Sprintf("node %s does not answer; nothing ran on it", name)
	case 1:
		return fmt.Sprintf("node %s does not answer; nobody knows how its instance is", name)
	}
	return fmt.Sprintf("node %s does not answer; nobody knows how its %d instances are", name, instances)
}

// review writes down which nodes are gone for good, and whether there is still an outage.
func (f *Fleet) review(ctx context.Context, now time.Time) error {
	v := f.store.View()
	var gone, ahead []model.NodeID
	for n := range v.Nodes() {
		if n.State != model.NodeReady && n.Lost.After(now) {
			ahead = append(ahead, n.ID)
		}
		if n.State == model.NodeUnreachable && !n.Lost.Add(f.cfg.Loss.Gone).After(now) {
			gone = append(gone, n.ID)
		}
	}
	if len(gone)+len(ahead) == 0 && v.Outage() == nil {
		return nil
	}
	return f.store.Update(ctx, func(tx *state.Tx) error {
		for _, id := range ahead {
			if n := tx.Node(id); n != nil {
				recall(tx, n, now)
			}
		}
		for _, id := range gone {
			n := tx.Node(id)
			if n == nil || n.State != model.NodeUnreachable {
				continue
			}
			next := *n
			next.State = model.NodeGone
			tx.PutNode(&next)
			tx.Emit(model.Event{Type: "node.gone", Node: id,
				Message: fmt.Sprintf("node %s has not answered for %v; gantry node remove gives up what it ran", n.Name, now.Sub(n.Lost).Round(time.Second))})
		}
		f.judge(tx, now)
		return nil
	})
}

// judge notes that an outage began or ended.
func (f *Fleet) judge(tx *state.Tx, now time.Time) {
	old, nodes, lost := tx.Outage(), 0, 0
	from, first := f.outageFrom(tx, now), now
	for n := range tx.Nodes() {
		if n.State == model.NodeGone {
			continue
		}
		nodes++
		if n.State == model.NodeUnreachable && !n.Lost.Before(from) {
			lost++
			if n.Lost.Before(first) {
				first = n.Lost
			}
		}
	}
	many := lost >= f.cfg.Loss.OutageLeast && float64(lost) > f.cfg.Loss.OutageShare*float64(nodes)
	if many == (old != nil) {
		return
	}
	var next model.Losses
	if c := tx.Losses(); c != nil {
		next = *c
	}
	e := model.Event{Type: "cluster.healed", Message: fmt.Sprintf("instances on lost nodes are replaced again: %d of %d nodes are lost", lost, nodes)}
	next.Outage = nil
	if !many {
		next.Healed = now
	} else {
		next.Outage = &model.Outage{Since: first, Noted: now, Lost: lost, Nodes: nodes}
		e = model.Event{Type: "cluster.outage", Message: next.Outage.Words()}
	}
	tx.PutLosses(&next)
	tx.Emit(e)
}

// outageFrom returns since when nodes must have been lost to count for an outage.
func (f *Fleet) outageFrom(tx *state.Tx, now time.Time) time.Time {
	if o := tx.Outage(); o != nil {
		return o.Since
	}
	from := now.Add(-f.cfg.Loss.OutageWindow)
	if c := tx.Losses(); c != nil && c.Resumed.After(from) {
		return c.Resumed
	}
	return from
}

// welcome writes down a node that has connected.
func (f *Fleet) welcome(tx *state.Tx, n model.Node) {
	old, now := tx.Node(n.ID), f.cfg.Now()
	n.State, n.Seen = model.NodeReady, now
	n.Lost, n.Flaps, n.Unstable, n.Refused = time.Time{}, 0, time.Time{}, ""
	if old != nil {
		n.Lost, n.Flaps, n.Unstable = old.Lost, old.Flaps, old.Unstable
		if most := now.Add(f.cfg.Loss.CalmMost); n.Unstable.After(most) {
			n.Unstable = now.Add(f.cfg.Loss.Calm) // by a clock that was ahead
		}
	}
	message := fmt.Sprintf("node %s is ready", n.Name)
	if old != nil && old.State != model.NodeReady {
		f.flap(&n, old, tx.Outage())
		message = fmt.Sprintf("node %s is back after %v", n.Name, now.Sub(old.Lost).Round(time.Second))
		if n.Unstable.After(now) {
			message += "; " + n.Unsteady()
		}
	}
	tx.PutNode(&n)
	if old == nil || old.State != model.NodeReady {
		tx.Emit(model.Event{Type: "node.ready", Node: n.ID, Message: message})
	}
}

// flap counts how often a node came back, and keeps new work from it for a while when that is too often. Who was lost
// together with many others is not to blame.
func (f *Fleet) flap(n, old *model.Node, outage *model.Outage) {
	if outage != nil && !old.Lost.Before(outage.Since) {
		return
	}
	loss := &f.cfg.Loss
	if old.Lost.Sub(old.Seen) > loss.FlapWindow {
		n.Flaps = 0 // it was stable before
	}
	n.Flaps++
	if over := n.Flaps - loss.Flaps; over >= 0 {
		n.Unstable = n.Seen.Add(min(loss.Calm<<min(over, 16), loss.CalmMost))
	}
}
