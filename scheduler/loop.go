package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/tidwall/btree"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

const (
	chunk       = 5000             // instances in one transaction
	repeatLeast = time.Second      // between sentences of a class that differ in numbers only,
	repeatEach  = time.Millisecond // and so much more for each instance that waits
)

// Config is what a Loop needs beside its store. Zero fields take their defaults.
type Config struct {
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default
}

// Loop places pending instances. It belongs to the goroutine that calls Run or Step.
type Loop struct {
	store state.Store
	cfg   Config

	watch  *state.Watch
	ledger *ledger // nil when it has to be built anew
	queues map[classKey]*queue
	member map[model.InstanceID]*queue
}

// queue holds the pending instances of one class.
type queue struct {
	key   classKey
	ids   btree.Set[model.InstanceID]
	try   bool      // something changed for it
	said  reason    // last
	at    time.Time // when it was said
	again time.Time // when to say it anew, zero for never
}

// New returns a loop over store.
func New(store state.Store, cfg Config) *Loop {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Loop{store: store, cfg: cfg}
}

// Run works until ctx ends, or this server is no longer the leader. Other failures of the store are logged and tried
// again.
func (l *Loop) Run(ctx context.Context) error {
	defer l.close()
	return state.Loop{
		Name: "scheduler", Now: l.cfg.Now, Logger: l.cfg.Logger, Step: l.Step, Ready: func() <-chan struct{} { return l.watch.Ready() },
	}.Run(ctx)
}

func (l *Loop) close() {
	if l.watch != nil {
		l.watch.Close()
		l.watch, l.ledger = nil, nil
	}
}

// Step places all that can be placed now, explains the rest, and returns when there will be something to say though
// nothing changes; zero for never.
func (l *Loop) Step(ctx context.Context) (time.Time, error) {
	v := l.gather()
	tries := l.tries()
	if len(tries) > 0 {
		if err := l.placeAll(ctx, v, tries); err != nil {
			l.ledger = nil // it holds places for what may not have been written
			return time.Time{}, err
		}
	}
	if err := l.explainAll(ctx, tries); err != nil {
		l.ledger = nil
		return time.Time{}, err
	}
	return l.next(), nil
}

// gather brings ledger and queues up to date.
func (l *Loop) gather() state.View {
	if l.watch == nil {
		_, l.watch = l.store.Watch()
	}
	v, c := l.watch.Take()
	if l.ledger == nil || c.Full {
		l.restart(v)
		return v
	}
	moved := false
	for id := range c.Nodes {
		moved = l.ledger.setNode(id, v.Node(id)) || moved
	}
	for id := range c.Instances {
		i := v.Instance(id)
		moved = l.ledger.sync(v, id, i) || moved
		l.enqueue(id, i)
	}
	if moved {
		for _, q := range l.queues {
			q.try = true
		}
	}
	l.ledger.forgetClasses(func(key classKey) bool { return l.queues[key] != nil })
	return v
}

func (l *Loop) restart(v state.View) {
	l.ledger = newLedger(v)
	l.queues, l.member = map[classKey]*queue{}, map[model.InstanceID]*queue{}
	for i := range v.Pending() {
		l.enqueue(i.ID, i)
	}
}

// enqueue puts a pending instance into its queue, and takes out what is not pending. i is nil when it is gone.
func (l *Loop) enqueue(id model.InstanceID, i *model.Instance) {
	q := l.member[id]
	switch pending := i != nil && i.Live() && i.Node == ""; {
	case pending && q == nil:
		key := classKey{i.App, i.Version}
		if q = l.queues[key]; q == nil {
			q = &queue{key: key}
			l.queues[key] = q
		}
		q.ids.Insert(id)
		q.try = true
		l.member[id] = q
	case !pending && q != nil:
		l.leave(id)
	}
}

func (l *Loop) leave(id model.InstanceID) {
	q := l.member[id]
	if q == nil {
		return
	}
	delete(l.member, id)
	q.ids.Delete(id)
	if q.ids.Len() == 0 {
		delete(l.queues, q.key)
	}
}

// tries returns the queues worth trying, in order: those that are hard to place first.
func (l *Loop) tries() []*queue {
	var out []*queue
	for _, q := range l.queues {
		if q.try {
			out = append(out, q)
		}
	}
	v := l.store.View()
	slices.SortFunc(out, func(a, b *queue) int {
		return cmp.Or(compareClasses(l.ledger.class(v, a.key), l.ledger.class(v, b.key)), a.key.compare(b.key))
	})
	return out
}

func compareClasses(a, b *class) int {
	if a == nil || b == nil {
		switch {
		case a != nil:
			return -1
		case b != nil:
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(b.fixed, a.fixed),
		cmp.Compare(b.need.Memory, a.need.Memory),
		cmp.Compare(b.need.CPUs, a.need.CPUs),
	)
}

// placement is where one instance is to go.
type placement struct {
	id    model.InstanceID
	node  model.NodeID
	ports []uint16
}

func (l *Loop) placeAll(ctx context.Context, v state.View, tries []*queue) error {
	var batch []placement
	for _, q := range tries {
		q.try = false
		batch = l.fill(batch, v, q)
	}
	for part := range slices.Chunk(batch, chunk) {
		if err := l.commit(ctx, part); err != nil {
			return fmt.Errorf("place %d instances: %w", len(part), err)
		}
	}
	return nil
}

// fill holds places for as many of a queue as fit.
func (l *Loop) fill(batch []placement, v state.View, q *queue) []placement {
	c := l.ledger.class(v, q.key)
	if c == nil {
		return batch
	}
	rows := l.ledger.candidates(c)
	q.ids.Scan(func(id model.InstanceID) bool {
		for len(rows) > 0 {
			if ports, ok := l.ledger.place(id, c, rows[0]); ok {
				batch = append(batch, placement{id, l.ledger.id[rows[0]], ports})
				return true
			}
			rows = rows[1:]
		}
		return false
	})
	return batch
}

// commit writes placements. Those that came too late give their place back.
func (l *Loop) commit(ctx context.Context, batch []placement) error {
	now := l.cfg.Now()
	var late map[model.InstanceID]bool
	err := l.store.Update(ctx, func(tx *state.Tx) error {
		late = map[model.InstanceID]bool{}
		for _, p := range batch {
			i, n := tx.Instance(p.id), tx.Node(p.node)
			if i == nil || !i.Live() || i.Node != "" || n == nil || n.State != model.NodeReady {
				late[p.id] = true
				continue
			}
			i = i.Clone()
			i.Node, i.Ports, i.Pending = p.node, p.ports, ""
			i.Status = model.Status{Phase: model.PhaseAssigned, Since: now}
			tx.PutInstance(i)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, p := range batch {
		if late[p.id] {
			l.ledger.release(p.id)
			l.ledger.sync(l.store.View(), p.id, l.store.View().Instance(p.id))
			continue // the change that made it late is on its way
		}
		l.leave(p.id)
	}
	return nil
}

// explainAll writes the sentences of what was tried, or is to be said anew, and still waits.
func (l *Loop) explainAll(ctx context.Context, tried []*queue) error {
	now := l.cfg.Now()
	list := slices.Clone(tried)
	for _, q := range l.queues {
		if !q.again.IsZero() && !q.again.After(now) && !slices.Contains(tried, q) {
			list = append(list, q)
		}
	}
	slices.SortFunc(list, func(a, b *queue) int { return a.key.compare(b.key) })
	v := l.store.View()
	var words []word
	var events []model.Event
	for _, q := range list {
		if q.ids.Len() == 0 {
			continue
		}
		var e *model.Event
		if words, e = l.say(words, v, q, now); e != nil {
			events = append(events, *e)
		}
	}
	for part := range slices.Chunk(words, chunk) {
		if err := l.write(ctx, part, events); err != nil {
			return fmt.Errorf("explain %d instances: %w", len(part), err)
		}
		events = nil
	}
	return nil
}

type word struct {
	id   model.InstanceID
	text string
}

// say adds what has to be written so that each instance of q has its sentence, and an event when the reason is another.
// When only numbers changed, those that have a sentence already wait a while for the new one.
func (l *Loop) say(words []word, v state.View, q *queue, now time.Time) ([]word, *model.Event) {
	r := l.reason(v, q)
	due := q.at.Add(repeatLeast + time.Duration(q.ids.Len())*repeatEach)
	news := r.shape != q.said.shape
	all := news || !due.After(now)
	q.again = time.Time{}
	wrote := false
	q.ids.Scan(func(id model.InstanceID) bool {
		i := v.Instance(id)
		switch {
		case i == nil || i.Pending == r.text:
		case !all && i.Pending != "":
			q.again = due
		default:
			words = append(words, word{id, r.text})
			wrote = true
		}
		return true
	})
	q.said.shape = r.shape
	if all && wrote {
		q.said, q.at = r, now
	}
	if !news || !wrote {
		return words, nil
	}
	who := "1 instance"
	if n := q.ids.Len(); n > 1 {
		who = fmt.Sprintf("%d instances", n)
	}
	return words, &model.Event{
		Type: "instance.pending", App: q.key.app,
		Message: fmt.Sprintf("%s of version %d of %s cannot be placed: %s", who, q.key.version, q.key.app, r.text),
	}
}

func (l *Loop) reason(v state.View, q *queue) reason {
	c := l.ledger.class(v, q.key)
	if c == nil {
		return reason{fmt.Sprintf("version %d of %s does not exist", q.key.version, q.key.app), "version"}
	}
	return l.ledger.explain(v, c)
}

func (l *Loop) write(ctx context.Context, words []word, events []model.Event) error {
	return l.store.Update(ctx, func(tx *state.Tx) error {
		for _, w := range words {
			i := tx.Instance(w.id)
			if i == nil || !i.Live() || i.Node != "" || i.Pending == w.text {
				continue
			}
			i = i.Clone()
			i.Pending = w.text
			tx.PutInstance(i)
		}
		for _, e := range events {
			tx.Emit(e)
		}
		return nil
	})
}

func (l *Loop) next() time.Time {
	var next time.Time
	for _, q := range l.queues {
		if !q.again.IsZero() && (next.IsZero() || q.again.Before(next)) {
			next = q.again
		}
	}
	return next
}
