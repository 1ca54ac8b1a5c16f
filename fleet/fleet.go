// Package fleet is the servers' end of node sessions: it sends each node its assignments and writes down what the
// agents report. It is the single writer of nodes and of instances' status, on the agents' word.
//
// A node's picture of its assignments is made of one full message when it connects and deltas after it, both derived from
// the same store; see agent/wire for the protocol. Reports of all nodes that arrive together become one transaction.
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

// maxBatch bounds how many reports, and messages without any, go into one transaction.
const maxBatch = 5000

// retryPause is the time between tries to write down that nodes went away.
const retryPause = time.Second

// Config is what a Fleet needs beside the store.
type Config struct {
	Now    func() time.Time
	Logger *slog.Logger
}

// Fleet holds the sessions of all connected nodes.
type Fleet struct {
	store state.Store
	cfg   Config
	ups   chan up
	hello chan up // written down
	gone  chan *session
	done  chan struct{} // closed when Run has returned

	// Only speak's goroutine uses these.
	drops map[model.VolumeID]model.NodeID   // volumes that a node was told to delete
	homes map[model.InstanceID]model.NodeID // whose session was told of each instance
	specs map[specKey]*model.Spec           // shared between assignments of one version

	mu     sync.RWMutex
	nodes  map[model.NodeID]*session
	joined chan struct{} // closed, and made anew, when a node joins
}

// up is one message of an agent, and where its sender waits.
type up struct {
	from *session
	msg  wire.Up
	err  chan error
}

// New returns a Fleet. Run must be called for anything to happen.
func New(store state.Store, cfg Config) *Fleet {
	return &Fleet{
		store: store, cfg: cfg,
		ups: make(chan up), hello: make(chan up), gone: make(chan *session), done: make(chan struct{}),
		homes: map[model.InstanceID]model.NodeID{}, specs: map[specKey]*model.Spec{}, drops: map[model.VolumeID]model.NodeID{},
		nodes: map[model.NodeID]*session{}, joined: make(chan struct{}),
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
	return group.Wait()
}

// listen writes down what agents say. While one transaction is written, what they say next gathers for another.
func (f *Fleet) listen(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case u := <-f.ups:
			if err := f.take(ctx, f.batch(u)); errors.Is(err, state.ErrDeposed) {
				return err
			}
		}
	}
}

// speak tells agents what changed for them, and writes down which nodes went away.
func (f *Fleet) speak(ctx context.Context) error {
	_, watch := f.store.Watch()
	defer watch.Close()
	lost := map[model.NodeID]bool{} // nodes that went away, which is not written down yet
	retry := time.NewTimer(retryPause)
	defer retry.Stop()
	lose := func(s *session) {
		if f.leave(s) {
			lost[s.id] = true
			retry.Reset(0)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case u := <-f.hello:
			f.join(u.from, u.msg.Hello.ID)
			u.err <- nil
			if u.from.over() { // it may have gone before
				lose(u.from)
			}
		case s := <-f.gone:
			lose(s)
		case <-retry.C:
			if err := f.markLost(ctx, lost); errors.Is(err, state.ErrDeposed) {
				return err
			} else if err != nil && ctx.Err() == nil {
				f.cfg.Logger.Warn("that nodes went away cannot be written down; trying again", "nodes", len(lost), "error", err)
				retry.Reset(retryPause)
			}
		case <-watch.Ready():
			view, changes := watch.Take()
			f.spread(view, changes)
		}
	}
}

// batch returns first and what else waits already.
func (f *Fleet) batch(first up) []up {
	all := []up{first}
	for size := first.size(); size < maxBatch; {
		select {
		case u := <-f.ups:
			all = append(all, u)
			size += u.size()
		default:
			return all
		}
	}
	return all
}

func (u *up) size() int { return max(1, len(u.msg.Reports)) }

// take writes down what agents said, in one transaction, and answers them. The agents try again what failed.
func (f *Fleet) take(ctx context.Context, batch []up) error {
	err := f.store.Update(ctx, func(tx *state.Tx) error {
		for _, u := range batch {
			if u.msg.Hello != nil {
				f.putNode(tx, *u.msg.Hello, model.NodeReady)
			}
			for _, r := range u.msg.Reports {
				f.putStatus(tx, u.from.id, r)
			}
			for _, id := range u.msg.RemovedVolumes {
				f.deleteVolume(tx, u.from.id, id)
			}
		}
		return nil
	})
	for _, u := range batch {
		if err != nil || u.msg.Hello == nil {
			u.err <- err
			continue
		}
		select {
		case f.hello <- u: // it is answered once it has joined
		case <-ctx.Done():
			u.err <- context.Cause(ctx)
		}
	}
	return err
}

// join makes a session known under its node's id, in place of any older one, and sends it all its assignments.
func (f *Fleet) join(s *session, id model.NodeID) {
	f.mu.Lock()
	old := f.nodes[id]
	f.nodes[id] = s
	close(f.joined)
	f.joined = make(chan struct{})
	f.mu.Unlock()
	if old != nil && old != s {
		old.end(errors.New("the node has connected again"))
	}
	s.id = id
	s.reset(f.store.View())
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

// markLost writes down which nodes went away, and empties lost. Those that came back meanwhile are none of them.
func (f *Fleet) markLost(ctx context.Context, lost map[model.NodeID]bool) error {
	for id := range lost {
		if _, ok := f.Node(id); ok {
			delete(lost, id)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	err := f.store.Update(ctx, func(tx *state.Tx) error {
		for id := range lost {
			if n := tx.Node(id); n != nil {
				f.putNode(tx, *n, model.NodeUnreachable)
			}
		}
		return nil
	})
	if err == nil {
		clear(lost)
	}
	return err
}

func (f *Fleet) putNode(tx *state.Tx, n model.Node, s model.NodeState) {
	old := tx.Node(n.ID)
	n.State, n.Seen = s, f.cfg.Now()
	tx.PutNode(&n)
	if old == nil || old.State != s {
		tx.Emit(model.Event{Type: "node." + string(s), Node: n.ID, Message: fmt.Sprintf("node %s is %s", n.Name, s)})
	}
}

// putStatus writes down a report of a node, unless it is old news or about an instance that is not on that node.
func (f *Fleet) putStatus(tx *state.Tx, node model.NodeID, r wire.Report) {
	i := tx.Instance(r.ID)
	if i == nil || !r.Status.CanFollow(i.Status) {
		return
	}
	if i.Node != node {
		f.cfg.Logger.Warn("a node speaks of an instance that is not its own", "node", node, "instance", r.ID)
		return
	}
	next := i.Clone()
	next.Status = r.Status
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
	f.spreadVolumes(view, c) // first: an instance may use a volume of the same id as one that is gone
	for id := range c.Instances {
		if i := view.Instance(id); i == nil {
			if s := f.nodes[f.homes[id]]; s != nil {
				s.drop(id)
			}
			delete(f.homes, id)
		} else if s := f.nodes[i.Node]; s != nil {
			s.set(view, i)
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
