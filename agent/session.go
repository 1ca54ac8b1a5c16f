package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

// Session serves one connection to a server and returns when it has ended. Start was called before. One session runs at a
// time; instances go on without any.
func (a *Agent) Session(ctx context.Context, link wire.Link) error {
	hello := a.cfg.Node
	if err := link.Send(ctx, wire.Up{Hello: &hello, WantRoutes: a.cfg.Routes}); err != nil {
		return fmt.Errorf("send hello: %w", err)
	}
	first, err := link.Recv(ctx)
	if err != nil {
		return fmt.Errorf("receive assignments: %w", err)
	}
	a.apply(first)
	for _, p := range a.all() {
		p.report()
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for {
			d, err := link.Recv(ctx)
			if err != nil {
				return fmt.Errorf("receive assignments: %w", err)
			}
			a.apply(d)
		}
	})
	g.Go(func() error { return a.reports.run(ctx, link, a.cfg.Flush) })
	return g.Wait()
}

// reports holds the statuses that a server has not got yet, the newest of each instance, in the order in which the
// instances first changed.
type reports struct {
	wake chan struct{}

	mu      sync.Mutex
	newest  map[model.InstanceID]model.Status
	order   []model.InstanceID
	removed []model.VolumeID
}

func newReports() *reports {
	return &reports{wake: make(chan struct{}, 1), newest: map[model.InstanceID]model.Status{}}
}

// add takes in the newest status of an instance.
func (r *reports) add(id model.InstanceID, s model.Status) {
	r.mu.Lock()
	if _, ok := r.newest[id]; !ok {
		r.order = append(r.order, id)
	}
	r.newest[id] = s
	r.mu.Unlock()
	r.awake()
}

func (r *reports) awake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// addRemoved takes in that a volume was deleted.
func (r *reports) addRemoved(id model.VolumeID) {
	r.mu.Lock()
	r.removed = append(r.removed, id)
	r.mu.Unlock()
	r.awake()
}

// forgetRemoved takes back what was to be told of volumes.
func (r *reports) forgetRemoved() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed = nil
}

// takeRemoved returns the volumes that were deleted, and forgets them.
func (r *reports) takeRemoved() []model.VolumeID {
	r.mu.Lock()
	defer r.mu.Unlock()
	removed := r.removed
	r.removed = nil
	return removed
}

// drop takes back what was to be told of an instance.
func (r *reports) drop(id model.InstanceID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.newest, id) // take skips it in order
}

// take returns up to 1,000 reports and forgets them.
func (r *reports) take() []wire.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(r.order), 1000)
	out := make([]wire.Report, 0, n)
	for _, id := range r.order[:n] {
		if s, ok := r.newest[id]; ok {
			out = append(out, wire.Report{ID: id, Status: s})
			delete(r.newest, id)
		}
	}
	r.order = append([]model.InstanceID(nil), r.order[n:]...)
	if len(r.order) > 0 {
		r.awake()
	}
	return out
}

// putBack returns reports that could not be sent, unless there is newer.
func (r *reports) putBack(batch []wire.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range batch {
		if _, ok := r.newest[b.ID]; !ok {
			r.newest[b.ID] = b.Status
			r.order = append(r.order, b.ID)
		}
	}
}

// run sends what there is: at once after a pause, and every flush while there is much, so that one transaction of the server
// takes in many.
func (r *reports) run(ctx context.Context, link wire.Link, flush time.Duration) error {
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		batch, removed := r.take(), r.takeRemoved()
		if len(batch)+len(removed) == 0 {
			continue
		}
		if err := link.Send(ctx, wire.Up{Reports: batch, RemovedVolumes: removed}); err != nil {
			r.putBack(batch) // the server asks again for volumes
			return fmt.Errorf("send reports: %w", err)
		}
		if !sleep(ctx, flush) {
			return context.Cause(ctx)
		}
	}
}
