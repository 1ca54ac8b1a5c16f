// Package fleet is the servers' end of node sessions: it sends each node its assignments and writes down what the
// agents report. It is the single writer of nodes and of instances' status, on the agents' word.
//
// A node's picture of its assignments is made of one full message when it connects and deltas after it, both derived from
// the same store; see agent/wire for the protocol. Reports of all nodes that arrive together become one transaction.
//
// The endpoint table is derived from the same store, in routes.go, and told to all nodes that ask for it.
//
// A node whose session ended has a moment to come back before it counts as lost; see lost.go for that, for nodes that flap,
// and for the loss of many nodes at once.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// idlePause is how long what is not urgent may wait for something urgent, to be told together.
const idlePause = 250 * time.Millisecond

// Config is what a Fleet needs beside the store. Zero fields take their defaults.
type Config struct {
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default
	Loss   Loss
}

// Fleet holds the sessions of all connected nodes.
type Fleet struct {
	store state.Store
	cfg   Config
	inbox inbox
	hello chan up // written down
	gone  chan *session
	done  chan struct{} // closed when Run has returned

	routes routes

	// Only speak's goroutine uses these.
	idle  map[*session]struct{}             // with something to tell that is not urgent
	drops map[model.VolumeID]model.NodeID   // volumes that a node was told to delete
	homes map[model.InstanceID]model.NodeID // whose session was told of each instance
	specs map[specKey]*model.Spec           // shared between assignments of one version

	mu     sync.RWMutex
	nodes  map[model.NodeID]*session
	greets map[model.NodeID]int // hellos under way: read, and not joined yet
	joined chan struct{}        // closed, and made anew, when a node joins
}

// New returns a Fleet. Run must be called for anything to happen.
func New(store state.Store, cfg Config) *Fleet {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	cfg.Loss = cfg.Loss.withDefaults()
	return &Fleet{
		store: store, cfg: cfg,
		inbox: inbox{ready: make(chan struct{}, 1)}, hello: make(chan up), gone: make(chan *session), done: make(chan struct{}),
		idle: map[*session]struct{}{}, drops: map[model.VolumeID]model.NodeID{},
		homes: map[model.InstanceID]model.NodeID{}, specs: map[specKey]*model.Spec{},
		routes: routes{sessions: map[*session]struct{}{}},
		nodes:  map[model.NodeID]*session{}, greets: map[model.NodeID]int{}, joined: make(chan struct{}),
	}
}

// Node returns what reaches the agent of a connected node.
func (f *Fleet) Node(id model.NodeID) (wire.Node, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	s, ok := f.nodes[id]
	if !ok {
		return nil, false
	}
	return s.node, true
}

// WaitNode returns once a node is connected.
func (f *Fleet) WaitNode(ctx context.Context, id model.NodeID) error {
	for {
		f.mu.RLock()
		_, ok := f.nodes[id]
		joined := f.joined
		f.mu.RUnlock()
		if ok {
			return nil
		}
		select {
		case <-joined:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Run serves all sessions until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	defer close(f.done)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.listen(ctx) })
	group.Go(func() error { return f.speak(ctx) })
	group.Go(func() error { return f.follow(ctx) })
	return group.Wait()
}

// speak tells agents what changed for them, and writes down which nodes went away.
func (f *Fleet) speak(ctx context.Context) error {
	view, watch := f.store.Watch()
	defer watch.Close()
	l := newLookout(f, view)
	defer l.timer.Stop()
	tell := time.NewTimer(idlePause)
	defer tell.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case u := <-f.hello:
			f.join(u.from, u.msg.Hello.ID)
			if u.msg.WantRoutes {
				f.routes.join(u.from, f.store.View())
			}
			u.err <- nil
			l.joined()
			if u.from.over() { // it may have gone before
				l.lose(u.from)
			}
		case s := <-f.gone:
			l.lose(s)
		case <-l.timer.C:
			if err := l.look(ctx); errors.Is(err, state.ErrDeposed) {
				return err
			} else if err != nil && ctx.Err() == nil {
				f.cfg.Logger.Warn("what became of nodes cannot be written down; trying again", "nodes", len(l.away), "error", err)
			}
		case <-watch.Ready():
			view, changes := watch.Take()
			none := len(f.idle) == 0
			if f.spread(view, changes); none && len(f.idle) > 0 {
				tell.Reset(idlePause)
			}
		case <-tell.C:
			var woken pace
			for s := range f.idle {
				if s.nudge() {
					woken.one()
				}
			}
			clear(f.idle)
		}
	}
}

// join makes a session known under its node's id, in place of any older one, and sends it all its assignments.
func (f *Fleet) join(s *session, id model.NodeID) {
	f.mu.Lock()
	old := f.nodes[id]
	f.nodes[id] = s
	f.greetLocked(id, -1)
	close(f.joined)
	f.joined = make(chan struct{})
	f.mu.Unlock()
	if old != nil && old != s {
		old.end(errors.New("the node has connected again"))
	}
	s.id = id
	s.reset(f.store.View())
}

// greet counts the hellos of a node that are under way.
func (f *Fleet) greet(id model.NodeID, by int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.greetLocked(id, by)
}

func (f *Fleet) greetLocked(id model.NodeID, by int) {
	if f.greets[id] += by; f.greets[id] <= 0 {
		delete(f.greets, id)
	}
}

// here reports whether a node has a session, or is about to have one.
func (f *Fleet) here(id model.NodeID) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.nodes[id] != nil || f.greets[id] > 0
}

// leave forgets a session that has ended, and reports whether its node has no other.
func (f *Fleet) leave(s *session) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nodes[s.id] != s {
		return false
	}
	delete(f.nodes, s.id)
	return true
}

// Refuse writes down why the agent of a node is not let in, until it is.
func (f *Fleet) Refuse(ctx context.Context, id model.NodeID, why string) error {
	if n := f.store.View().Node(id); n == nil || n.Refused == why {
		return nil
	}
	return f.store.Update(ctx, func(tx *state.Tx) error {
		n := tx.Node(id)
		if n == nil || n.Refused == why {
			return nil
		}
		next := *n
		next.Refused = why
		tx.PutNode(&next)
		tx.Emit(model.Event{Type: "node.refused", Node: id, Message: why})
		return nil
	})
}

// putStatus writes down a report of a node, unless it is old news or about an instance that is not on that node. Whatever it
// says, the node of the instance answers. A report of what is known is no write: an agent that connects again tells of all that it
// runs.
func (f *Fleet) putStatus(tx *state.Tx, node model.NodeID, r wire.Report) {
	i := tx.Instance(r.ID)
	if i == nil || i.Over() {
		return
	}
	if i.Node != node {
		f.cfg.Logger.Warn("a node speaks of an instance that is not its own", "node", node, "instance", r.ID)
		return
	}
	status := i.Status
	if r.Status.CanFollow(i.Status) {
		status = dated(r.Status, i.Status, f.cfg.Now())
	}
	status.Away = time.Time{} // it is not the agent's to say
	if status.Equal(i.Status) {
		return
	}
	next := i.Clone()
	next.Status = status
	tx.PutInstance(next)
	if e, ok := statusEvent(i, next); ok {
		tx.Emit(e)
	}
}

// deleteVolume forgets a volume that its node has deleted, if that is what a user asked for.
func (f *Fleet) deleteVolume(tx *state.Tx, node model.NodeID, id model.VolumeID) {
	v := tx.Volume(id)
	if v == nil || v.Node != node || !v.Removing {
		return
	}
	tx.DeleteVolume(id)
	tx.Emit(model.Event{Type: "volume.deleted", App: v.App, Node: node, Message: fmt.Sprintf("volume %s is deleted", id)})
}

// statusEvent says what changed from one status to the next, if people would want to know.
func statusEvent(old, now *model.Instance) (model.Event, bool) {
	e := model.Event{App: now.App, Instance: now.ID, Node: now.Node}
	was, is := old.Status, now.Status
	switch {
	case was.Phase != is.Phase || was.Attempt != is.Attempt:
		e.Type = "instance." + string(is.Phase)
		e.Message = string(now.ID) + " " + phaseWords(is.Phase)
	case was.Healthy != is.Healthy && is.Healthy != model.HealthUnknown:
		e.Type = "instance." + string(is.Healthy)
		e.Message = fmt.Sprintf("%s is %s", now.ID, is.Healthy)
	case was.Ready != is.Ready:
		e.Type, e.Message = "instance.ready", fmt.Sprintf("%s is ready", now.ID)
		if !is.Ready {
			e.Type, e.Message = "instance.unready", fmt.Sprintf("%s is no longer ready", now.ID)
		}
	default:
		return e, false
	}
	if is.Message != "" {
		e.Message += ": " + is.Message
	}
	return e, true
}

// phaseWords says what an instance does in a phase. The message of a stopped one tells how it ended, and those that wait
// to start again tell why.
func phaseWords(p model.Phase) string {
	switch p {
	case model.PhaseBackoff:
		return "waits to start again"
	case model.PhaseStopped:
		return "is over"
	}
	return "is " + string(p)
}

// spec returns a version's spec with its defaults, nil when there is no such version.
func (f *Fleet) spec(view state.View, i *model.Instance) *model.Spec {
	key := specKey{i.App, i.Version}
	if spec := f.specs[key]; spec != nil {
		return spec
	}
	v := view.Version(i.App, i.Version)
	if v == nil {
		return nil
	}
	if len(f.specs) >= maxSpecs {
		clear(f.specs)
	}
	f.specs[key] = v.Spec.WithDefaults()
	return f.specs[key]
}

// spread passes changes on to the sessions they concern.
func (f *Fleet) spread(view state.View, c state.Changes) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if c.Full {
		clear(f.homes)
		for _, s := range f.nodes {
			s.reset(view)
		}
		return
	}
	for id := range c.Nodes {
		if s := f.nodes[id]; s != nil && view.Node(id) == nil {
			s.end(errRemoved)
		}
	}
	f.spreadVolumes(view, c) // first: an instance may use a volume of the same id as one that is gone
	var woken pace
	for id := range c.Instances {
		i := view.Instance(id)
		home := f.homes[id]
		if i == nil {
			delete(f.homes, id)
		} else {
			home = i.Node
		}
		s := f.nodes[home]
		if s == nil {
			continue
		}
		switch {
		case i == nil && s.drop(id), i != nil && i.Over() && s.set(view, i):
			f.idle[s] = struct{}{} // the node has nothing to do for it
		case i != nil && !i.Over() && s.set(view, i):
			s.nudge()
			woken.one()
		}
	}
}

// spreadVolumes tells nodes which volumes are to be deleted, each once. An id may come to name another volume, which nothing
// that was said of the first one may hurt.
func (f *Fleet) spreadVolumes(view state.View, c state.Changes) {
	for id := range c.Volumes {
		v := view.Volume(id)
		told, ok := f.drops[id]
		if v != nil && v.Removing && (!ok || told != v.Node) {
			if s := f.nodes[v.Node]; s != nil {
				f.drops[id] = v.Node
				s.dropVolume(id)
			}
		} else if ok && (v == nil || !v.Removing) {
			delete(f.drops, id)
			if s := f.nodes[told]; s != nil {
				s.keepVolume(id)
			}
		}
	}
}
