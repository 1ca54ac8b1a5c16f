package state

import (
	"context"
	"sync"

	"github.com/gantry-os/gantry/model"
)

// maxHints bounds how many merged hints a watch holds; past it the reader is told to read everything again.
const maxHints = 65536

// Changes says which records changed since the last call, merged, and which events were published, in order.
type Changes struct {
	Full        bool // too much changed to say: read everything again
	Apps        map[model.AppID]struct{}
	Instances   map[model.InstanceID]struct{}
	Deployments map[model.DeploymentID]struct{}
	Nodes       map[model.NodeID]struct{} // their records or their settings
	Volumes     map[model.VolumeID]struct{}
	Rules       bool          // a role, a pool or a reservation: they are few
	Losses      bool          // the record of losses of many nodes
	Trust       bool          // the cluster, a machine, a join token or a revocation
	Events      []model.Event // at most the newest few thousand
}

// Watch collects changes for one reader.
type Watch struct {
	db    *DB
	ready chan struct{} // has one element when there is something to take

	mu     sync.Mutex
	has    Changes // without events
	later  [][]Op  // writes that are not in has yet: who reads merges them, so that no writer has to
	writes int     // in later
	seq    uint64  // of the last event that was taken
}

// Watch implements Store.
func (db *DB) Watch() (View, *Watch) {
	w := &Watch{db: db, ready: make(chan struct{}, 1)}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.watches[w] = struct{}{}
	w.seq = db.seq
	return db.View(), w
}

// Ready returns a channel that receives when there are changes to take.
func (w *Watch) Ready() <-chan struct{} { return w.ready }

// Take returns what changed since the last Take and a view that has at least those changes.
func (w *Watch) Take() (View, Changes) {
	w.mu.Lock()
	has, later := w.has, w.later
	w.has, w.later, w.writes = Changes{}, nil, 0
	view := w.db.View()
	has.Events = view.eventsAfter(w.seq)
	if n := len(has.Events); n > 0 {
		w.seq = has.Events[n-1].Seq
	}
	w.mu.Unlock()
	has.merge(later)
	return view, has
}

// Next waits for changes and takes them. It fails only with the cause of ctx's end.
func (w *Watch) Next(ctx context.Context) (View, Changes, error) {
	select {
	case <-w.ready:
		v, c := w.Take()
		return v, c, nil
	case <-ctx.Done():
		return View{}, Changes{}, context.Cause(ctx)
	}
}

// Close ends the watch.
func (w *Watch) Close() {
	w.db.mu.Lock()
	defer w.db.mu.Unlock()
	delete(w.db.watches, w)
}

// add takes note of writes, or with none of them that there are new events.
func (w *Watch) add(ops []Op) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(ops) > 0 {
		w.later = append(w.later, ops)
		w.writes += len(ops)
	}
	if w.writes > maxHints {
		w.has.merge(w.later)
		w.later, w.writes = nil, 0
	}
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// startOver takes note that all may have changed.
func (w *Watch) startOver() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.has, w.later, w.writes = Changes{Full: true}, nil, 0
}

// merge takes in writes, and gives up when there are too many to tell.
func (c *Changes) merge(later [][]Op) {
	n := 0
	for _, ops := range later {
		n += len(ops)
	}
	if c.Instances == nil && n > 0 {
		c.Instances = make(map[model.InstanceID]struct{}, n) // what most writes are of
	}
	for _, ops := range later {
		for _, op := range ops {
			c.hint(op.Key)
		}
		if len(c.Instances)+len(c.Apps)+len(c.Deployments)+len(c.Nodes)+len(c.Volumes) > maxHints {
			*c = Changes{Full: true, Events: c.Events}
		}
	}
}

func (c *Changes) hint(key Key) {
	if c.Full {
		return
	}
	switch key.Kind {
	case KindApp:
		mark(&c.Apps, model.AppID(key.ID))
	case KindInstance:
		mark(&c.Instances, model.InstanceID(key.ID))
	case KindDeployment:
		mark(&c.Deployments, model.DeploymentID(key.ID))
	case KindNode:
		mark(&c.Nodes, model.NodeID(key.ID))
	case KindSettings:
		mark(&c.Nodes, model.NodeID(key.ID))
	case KindVolume:
		mark(&c.Volumes, model.VolumeID(key.ID))
	case KindRole, KindPool, KindReservation:
		c.Rules = true
	case KindLosses:
		c.Losses = true
	case KindCluster, KindMachine, KindToken, KindRevocation:
		c.Trust = true
	case KindVersion: // comes with a change of its app
	}
}

func mark[K comparable](m *map[K]struct{}, key K) {
	if *m == nil {
		*m = map[K]struct{}{}
	}
	(*m)[key] = struct{}{}
}
