package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/engine"
	"github.com/gantry-os/gantry/state"
)

const (
	chunk   = 4000   // instances in one transaction
	mostIDs = 50_000 // of one class in one round
)

// Config is what a Loop needs beside its store. Zero fields take their defaults.
type Config struct {
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default
	// Defrag is how often pools are searched for moves. Default a minute.
	Defrag time.Duration
}

// Loop places pending instances. It belongs to the goroutine that calls Run or Step; Plan, Funnel and Moves may be called
// from any while Run works.
type Loop struct {
	store state.Store
	cfg   Config

	watch    *state.Watch
	pic      *picture // nil when it has to be built anew
	queues   map[classKey]*queue
	member   map[model.InstanceID]*queue
	kept     map[model.InstanceID]keeping // pending instances for which others have to end
	searches uint64                       // for victims, that found none
	losing   map[model.AppID]int          // instances that this step preempts
	drains   map[model.NodeID]bool        // nodes that are to be empty, and are not known to be
	doubt    model.InstanceID             // of a transaction of which nobody knows whether it will be written; empty for none
	steps    int
	chunk    int
	defrag   time.Time  // when to look for moves again
	flying   chan flown // holds the outcome of the transaction that is being written
	asking   chan question
	stopped  chan struct{} // closed when Run has returned
}

// New returns a loop over store.
func New(store state.Store, cfg Config) *Loop {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Defrag == 0 {
		cfg.Defrag = time.Minute
	}
	return &Loop{store: store, cfg: cfg, chunk: chunk, asking: make(chan question), stopped: make(chan struct{})}
}

// Run works until ctx ends, or this server is no longer the leader. Other failures of the store are logged and tried
// again. It is called once.
func (l *Loop) Run(ctx context.Context) error {
	defer close(l.stopped)
	defer l.close()
	return state.Loop{
		Name: "scheduler", Now: l.cfg.Now, Logger: l.cfg.Logger, Step: l.Step, Ready: func() <-chan struct{} { return l.watch.Ready() },
		Calls: l.asking,
	}.Run(ctx)
}

func (l *Loop) close() {
	if l.watch != nil {
		l.watch.Close()
		l.watch, l.pic = nil, nil
	}
}

// Step places all that can be placed now, makes room for what may have it, explains the rest, and returns when there will
// be something to do though nothing changes; zero for never.
func (l *Loop) Step(ctx context.Context) (time.Time, error) {
	if err := l.step(ctx); err != nil {
		l.pic = nil // it holds places for what may not have been written
		return time.Time{}, err
	}
	return l.next(), nil
}

func (l *Loop) step(ctx context.Context) error {
	if err := l.decide(ctx); err != nil {
		return err
	}
	l.steps++
	v := l.gather()
	settled := l.settle(v)
	tries := l.tries()
	if err := l.placeAll(ctx, v, tries, settled); err != nil {
		return err
	}
	if err := l.makeRoom(ctx, tries); err != nil {
		return err
	}
	if err := l.drain(ctx); err != nil {
		return err
	}
	if err := l.defragment(ctx); err != nil {
		return err
	}
	return l.explainAll(ctx, tries)
}

// decide makes sure that a transaction of which nobody knew whether it would be written is either in view, or never will
// be: it would be refused once one of the records that it writes is another. Without this it could be written in the
// middle of what is decided next, which may give the same room to others.
func (l *Loop) decide(ctx context.Context) error {
	if l.doubt == "" {
		return nil
	}
	err := l.store.Update(ctx, func(tx *state.Tx) error {
		if i := tx.Instance(l.doubt); i != nil {
			tx.PutInstance(i.Clone())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("find out whether an earlier transaction was written: %w", err)
	}
	l.doubt = ""
	return nil
}

// gather brings picture and queues up to date.
func (l *Loop) gather() state.View {
	if l.watch == nil {
		_, l.watch = l.store.Watch()
	}
	v, c := l.watch.Take()
	now := l.cfg.Now()
	if l.pic == nil || c.Full || c.Rules && l.pic.poolsChanged(v) {
		l.restart(v, now)
		return v
	}
	moved := l.pic.due(v, now)
	for _, id := range slices.Sorted(maps.Keys(c.Nodes)) { // new ones are numbered in this order
		moved = l.pic.setNode(v, id, now) || moved
		l.markDrain(v, id, now)
	}
	if c.Rules {
		l.pic.setRules(v)
		moved = true
	}
	retry := map[model.AppID]bool{}
	for id := range c.Volumes {
		vol := v.Volume(id)
		moved = l.pic.setVolume(id, vol) || moved
		if vol != nil {
			retry[vol.App] = true
		}
	}
	for id := range c.Apps {
		moved = l.pic.reclass(v, id) || moved
		retry[id] = true
	}
	for id := range c.Instances {
		i := v.Instance(id)
		moved = l.pic.sync(v, id, i) || moved
		l.enqueue(id, i)
	}
	for key, q := range l.queues {
		q.try = q.try || moved || retry[key.app]
	}
	l.pic.forget(l.queues)
	return v
}

func (l *Loop) restart(v state.View, now time.Time) {
	l.pic = newPicture(v, now)
	l.queues, l.member = map[classKey]*queue{}, map[model.InstanceID]*queue{}
	l.kept, l.drains = map[model.InstanceID]keeping{}, map[model.NodeID]bool{}
	for n := range v.Nodes() {
		l.markDrain(v, n.ID, now)
	}
	for i := range v.Instances() { // of nodes that were to be empty before, and may not be any more
		if i.Evict != nil && i.Evict.Kind == model.EvictDrain {
			l.drains[i.Node] = true
		}
	}
	for i := range v.Pending() {
		l.enqueue(i.ID, i)
	}
	l.reclaim(v)
}

// placeAll gives places to as many as fit, and writes them down, with those in batch.
func (l *Loop) placeAll(ctx context.Context, v state.View, tries []*queue, batch []engine.Placement) error {
	batch = l.goHome(v, tries, batch)
	round := l.pic.engine.Begin(l.wants(v, tries))
	defer round.End()
	var err error
	for {
		batch = round.Place(l.chunk-len(batch), batch)
		if len(batch) == 0 {
			break
		}
		l.answer()
		n := l.together(v, batch)
		if err = l.launch(ctx, v, batch[:n:n]); err != nil {
			break
		}
		batch = batch[n:]
	}
	if landed := l.land(); err == nil {
		err = landed
	}
	return err
}

// together returns how many of the first placements of a batch go into one transaction: those that come with volumes write
// more records than one.
func (l *Loop) together(v state.View, batch []engine.Placement) int {
	records := 0
	for n, p := range batch {
		records++
		if i := v.Instance(p.ID); i != nil && i.Slot != 0 {
			if e := l.pic.entry(v, classKey{i.App, i.Version}); e != nil {
				records += len(e.spec.Volumes)
			}
		}
		if n > 0 && records > l.chunk {
			return n
		}
	}
	return len(batch)
}

// flown is the outcome of a transaction.
type flown struct {
	batch   []engine.Placement
	volumes map[model.InstanceID][]*model.PersistentVolume // as they have to be
	late    map[model.InstanceID]bool
	err     error
}

// launch writes placements, once those before are written, while the caller goes on.
func (l *Loop) launch(ctx context.Context, v state.View, batch []engine.Placement) error {
	if err := l.land(); err != nil {
		return err
	}
	for _, p := range batch {
		l.leave(p.ID)
	}
	volumes := l.volumesOf(v, batch)
	flying := make(chan flown, 1)
	l.flying = flying
	now := l.cfg.Now()
	go func() {
		late, err := l.commit(ctx, batch, volumes, now)
		flying <- flown{batch, volumes, late, err}
	}()
	return nil
}

// land waits until what was launched is written. What came too late gives its place back.
func (l *Loop) land() error {
	if l.flying == nil {
		return nil
	}
	f := <-l.flying
	l.flying = nil
	if f.err != nil {
		for _, p := range f.batch {
			if !f.late[p.ID] {
				l.doubted(p.ID, f.err)
				break
			}
		}
		return fmt.Errorf("place %d instances: %w", len(f.batch), f.err)
	}
	if len(f.late) == 0 {
		return nil
	}
	v := l.store.View()
	for id := range f.late {
		l.pic.engine.Release(id)
		for _, vol := range f.volumes[id] {
			l.pic.setVolume(vol.ID, v.Volume(vol.ID))
		}
		l.pic.sync(v, id, v.Instance(id)) // the change that made it late is on its way
		l.enqueue(id, v.Instance(id))
		if q := l.member[id]; q != nil {
			q.try = true
		}
	}
	return nil
}

// doubted takes note that nobody knows whether a transaction with a record of id will be written, if err says so.
func (l *Loop) doubted(id model.InstanceID, err error) {
	if !errors.Is(err, state.ErrDeposed) { // and what else is certain costs one write in vain
		l.doubt = id
	}
}

// commit writes placements and the volumes that come with them, and returns those that came too late.
func (l *Loop) commit(ctx context.Context, batch []engine.Placement, volumes map[model.InstanceID][]*model.PersistentVolume, now time.Time) (map[model.InstanceID]bool, error) {
	var late map[model.InstanceID]bool
	err := l.store.Update(ctx, func(tx *state.Tx) error {
		late = map[model.InstanceID]bool{}
		open := map[model.NodeID]bool{}
		for _, p := range batch {
			ok, known := open[p.Node]
			if !known {
				ok = shut(tx.Node(p.Node), tx.Settings(p.Node), now) == ""
				open[p.Node] = ok
			}
			i := tx.Instance(p.ID)
			if !ok || i == nil || !i.Live() || i.Node != "" || !atHome(tx.View, volumes[p.ID]) {
				late[p.ID] = true
				continue
			}
			i = i.Clone()
			i.Node, i.Ports, i.GPUs, i.Items, i.Pending = p.Node, p.Ports, p.GPUs, p.Items, ""
			i.Status = model.Status{Phase: model.PhaseAssigned, Since: now}
			tx.PutInstance(i)
			for _, vol := range volumes[p.ID] {
				if tx.Volume(vol.ID) == nil {
					own := *vol
					tx.PutVolume(&own)
				}
			}
		}
		return nil
	})
	return late, err
}

func (l *Loop) next() time.Time {
	next := l.pic.next
	for _, q := range l.queues {
		next = sooner(next, q.again)
	}
	return sooner(next, l.defrag)
}

// sooner returns the earlier of two times, of which zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
