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
	Events      []model.Event // at most the newest few thousand
}

// Watch collects changes for one reader.
type Watch struct {
	db    *DB
	ready chan struct{} // has one element when there is something to take

	mu  sync.Mutex
	has Changes
}

// Watch implements Store.
func (db *DB) Watch() (View, *Watch) {
	w := &Watch{db: db, ready: make(chan struct{}, 1)}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.watches[w] = struct{}{}
	return db.View(), w
}

// Ready returns a channel that receives when there are changes to take.
func (w *Watch) Ready() <-chan struct{} { return w.ready }

// Take returns what changed since the last Take and a view that has at least those changes.
func (w *Watch) Take() (View, Changes) {
	w.mu.Lock()
	has := w.has
	w.has = Changes{}
	w.mu.Unlock()
	return w.db.View(), has
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

func (w *Watch) add(ops []Op, events []model.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &w.has
	for _, op := range ops {
		c.hint(op.Key)
	}
	if len(c.Instances)+len(c.Apps)+len(c.Deployments)+len(c.Nodes)+len(c.Volumes) > maxHints {
		*c = Changes{Full: true, Events: c.Events}
	}
	c.Events = append(c.Events, events...)
	if n := len(c.Events) - keptEvents; n > 0 {
		c.Events = c.Events[n:]
	}
	select {
	case w.ready <- struct{}{}:
	default:
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
	case KindVersion: // comes with a change of its app
	}
}

func mark[K comparable](m *map[K]struct{}, key K) {
	if *m == nil {
		*m = map[K]struct{}{}
	}
	(*m)[key] = struct{}{}
}
