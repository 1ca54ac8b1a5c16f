// Package state holds the truth of a cluster and lets rooms read, change and follow it.
//
// A DB keeps every record in memory, in copy-on-write trees, and makes each change durable through a Backend before
// anyone can see it: state/etcd for real, state/memory for tests. Reading costs no lock: a View is an immutable
// snapshot, for as long as it is held. What a View returns must not be changed; clone it, change the clone, and put it
// back in an Update.
//
// A Watch says which records changed. Its hints merge while nobody reads them, so a slow reader delays no writer and
// loses no change, but may miss values in between: re-read before acting.
package state

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gantry-os/gantry/model"
)

// Errors that Update can end with, beside those of its callback. They come wrapped.
var (
	// ErrConflict says that another server changed a record that the transaction wrote; Update retries it a few times.
	ErrConflict = errors.New("the record was changed at the same time")
	// ErrDeposed says that the caller is no longer the leader. Nothing was written.
	ErrDeposed = errors.New("this server is no longer the leader")
	// ErrNoSpace says that the store is full: it takes only deletions until space is made. Nothing was written.
	ErrNoSpace = errors.New("the store is full")
	// ErrTooLarge says that one transaction holds more than the store takes at once. Nothing was written.
	ErrTooLarge = errors.New("the transaction is too large")
	// ErrTooNew says that servers which were not upgraded yet could not read the record. Nothing was written.
	ErrTooNew = errors.New("not all servers are upgraded")
	// ErrUnavailable says that the store did not answer. The transaction may be written later, or never; when it is, it
	// shows in View.
	ErrUnavailable = errors.New("the store does not answer")
)

// Store is what loops and handlers need of the truth. *DB and *Leader are Stores.
type Store interface {
	// View returns the newest snapshot.
	View() View
	// Update runs fn on the newest snapshot and makes its writes durable as one transaction; when it returns nil they
	// are on a quorum and in View. When fn fails, nothing is written and its error is returned. fn may run more than
	// once, and on another goroutine while the caller waits; it does no I/O, and must not call Update. The end of ctx
	// withdraws a transaction that still waits for its turn; one that is being written is seen through.
	Update(ctx context.Context, fn func(*Tx) error) error
	// Watch returns a view and a watch that reports every later change.
	Watch() (View, *Watch)
}

// Backend makes transactions durable. Only DB calls it. Its owner brings what others write into the DB by Apply, and
// calls Stop when it no longer can.
type Backend interface {
	// Commit writes all of ops or none, if every record still has the revision it was read at and term, unless zero,
	// is still the leader's. base is the revision of the view that all of them were read in. It returns the transaction's revision: greater than all before, and greater by exactly
	// one when nobody else wrote in between. With ErrConflict it returns the revision at which it found the conflict.
	// One call carries the writes of many callers, so the backend bounds its time, not a caller's context. DB makes one
	// call at a time, and ops hold no key twice.
	Commit(term Term, base uint64, ops []Op) (uint64, error)
	// Lead makes name the leader and returns its term, and a revision that is no less than all written by leaders before.
	Lead(ctx context.Context, name string) (Term, uint64, error)
}

// Term is one period of leadership. The zero Term is no leadership.
type Term int64

// Op is one record's new value.
type Op struct {
	Key  Key
	Read uint64 // revision of the record when it was read, 0 when it did not exist
	Val  any    // *model.App, ... as Key.Kind says; nil deletes
}

// Kind is the type of a record.
type Kind uint8

// Kinds of records.
const (
	KindApp Kind = iota
	KindVersion
	KindInstance
	KindDeployment
	KindNode
	KindSettings // of a node
	KindRole
	KindPool
	KindReservation
	KindVolume
	KindLosses  // there is one
	KindCluster // one record
	KindMachine
	KindToken // for joining
	KindRevocation
)

var kindNames = [...]string{
	"app", "version", "instance", "deployment", "node", "settings", "role", "pool", "reservation", "volume",
	"losses", "cluster", "machine", "token", "revocation",
}

func (k Kind) String() string { return kindNames[k] }

// ParseKind is the inverse of Kind.String.
func ParseKind(s string) (Kind, bool) {
	for i, name := range kindNames {
		if s == name {
			return Kind(i), true
		}
	}
	return 0, false
}

// Key names a record.
type Key struct {
	Kind Kind
	ID   string
}

// clusterKey names the only record of its kind.
var clusterKey = Key{KindCluster, "self"}

// KeyOf returns the key of a record, and whether val is one.
func KeyOf(val any) (Key, bool) {
	switch v := val.(type) {
	case *model.App:
		return Key{KindApp, string(v.ID)}, true
	case *model.AppVersion:
		return Key{KindVersion, versionKey(v.App, v.Version)}, true
	case *model.Instance:
		return Key{KindInstance, string(v.ID)}, true
	case *model.Deployment:
		return Key{KindDeployment, string(v.ID)}, true
	case *model.Node:
		return Key{KindNode, string(v.ID)}, true
	case *model.NodeSettings:
		return Key{KindSettings, string(v.ID)}, true
	case *model.Role:
		return Key{KindRole, string(v.ID)}, true
	case *model.Pool:
		return Key{KindPool, v.Name}, true
	case *model.Reservation:
		return Key{KindReservation, v.ID}, true
	case *model.PersistentVolume:
		return Key{KindVolume, string(v.ID)}, true
	case *model.Losses:
		return Key{KindLosses, model.LossesID}, true
	case *model.Cluster:
		return clusterKey, true
	case *model.Machine:
		return Key{KindMachine, string(v.ID)}, true
	case *model.JoinToken:
		return Key{KindToken, v.ID}, true
	case *model.Revocation:
		return Key{KindRevocation, model.RevocationKey(v.ID, v.Epoch)}, true
	}
	return Key{}, false
}

// DB is the truth in memory, backed by a Backend.
type DB struct {
	backend Backend
	now     func() time.Time

	turn    chan struct{} // holds an element while a batch of transactions runs
	queueMu sync.Mutex
	queue   []*request // transactions that wait for a turn, oldest first

	stopOnce sync.Once
	stopped  chan struct{} // closed when the backend can bring no more changes
	stopErr  error         // why; set before stopped is closed

	mu      sync.Mutex    // guards publishing, cloning what is published, and what follows
	moved   chan struct{} // when someone waits for it: closed when cur moves on
	flight  chan struct{} // while the backend commits: closed when what came of it is in view
	watches map[*Watch]struct{}
	seq     uint64 // of the last event

	cur atomic.Pointer[tables]
}

// New returns an empty DB on backend. now gives events their time.
func New(backend Backend, now func() time.Time) *DB {
	db := &DB{
		backend: backend, now: now,
		turn: make(chan struct{}, 1), stopped: make(chan struct{}), watches: map[*Watch]struct{}{},
	}
	db.cur.Store(newTables())
	return db
}

// View implements Store.
func (db *DB) View() View { return View{t: db.cur.Load()} }

// Load fills an empty DB with all records as of revision rev, before anyone uses it. Op.Read is each record's revision.
// It is quickest when they come sorted.
func (db *DB) Load(rev uint64, pages ...[]Op) {
	t := loaded(rev, pages)
	t.follow(db.cur.Load())
	db.cur.Store(t)
}

// SetStored says which release's records all servers can read; at first that is ThisRelease. Nothing newer is written.
func (db *DB) SetStored(r model.Release) (err error) {
	var s shape
	if r.Compare(model.ThisRelease) < 0 {
		if s, err = shapeOf(r); err != nil {
			return err
		}
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	t := *db.cur.Load()
	t.stored, t.shape = r, s
	db.cur.Store(&t)
	return nil
}

func loaded(rev uint64, pages [][]Op) *tables {
	t := newTables()
	for _, ops := range pages {
		for _, op := range ops {
			setRevision(op.Val, op.Read)
			t.set(op.Key, op.Val)
		}
	}
	t.rev = rev
	return t
}

// Apply brings in what the backend saw committed as revision rev by anyone, in order of revisions. What is known
// already is skipped. The DB owns the values from then on.
func (db *DB) Apply(rev uint64, ops []Op) {
	db.mu.Lock()
	defer db.mu.Unlock()
	cur := db.cur.Load()
	if rev <= cur.rev {
		return
	}
	next := cur.clone()
	for _, op := range ops {
		setRevision(op.Val, rev)
		next.set(op.Key, op.Val)
	}
	next.rev = rev
	db.publishLocked(next, ops)
}

// Knows reports whether the DB has revision rev, once a transaction of its own that is under way has come into view. Who sees
// a revision written asks it before the work for Apply: most often the DB wrote it itself.
func (db *DB) Knows(rev uint64) bool {
	db.mu.Lock()
	flight := db.flight
	known := db.cur.Load().rev >= rev
	db.mu.Unlock()
	if known || flight == nil {
		return known
	}
	<-flight
	return db.View().Revision() >= rev
}

// Stop makes every later Update fail with err, since changes no longer come in. Views and watches stay.
func (db *DB) Stop(err error) {
	db.stopOnce.Do(func() {
		db.stopErr = err
		close(db.stopped)
	})
}

// Replace puts all records as of revision rev in place of those the DB has, for a backend that has missed changes. Watches are
// told to read everything again. An older revision changes nothing.
func (db *DB) Replace(rev uint64, pages ...[]Op) {
	fresh := loaded(rev, pages)
	db.mu.Lock()
	defer db.mu.Unlock()
	if rev <= db.cur.Load().rev {
		return
	}
	db.publishLocked(fresh, nil)
	for w := range db.watches {
		w.startOver()
	}
}

func (db *DB) publishLocked(t *tables, ops []Op) {
	t.follow(db.cur.Load())
	db.cur.Store(t)
	for w := range db.watches {
		w.add(ops)
	}
	if db.moved != nil {
		close(db.moved)
		db.moved = nil
	}
}

// Await waits until View has revision rev.
func (db *DB) Await(ctx context.Context, rev uint64) error {
	for {
		db.mu.Lock()
		if db.cur.Load().rev >= rev {
			db.mu.Unlock()
			return nil
		}
		if db.moved == nil {
			db.moved = make(chan struct{})
		}
		moved := db.moved
		db.mu.Unlock()
		select {
		case <-moved:
		case <-db.stopped:
			return db.stopErr
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// emit adds events to the ring and tells the watches.
func (db *DB) emit(events []model.Event) {
	if len(events) == 0 {
		return
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	for i := range events {
		db.seq++
		events[i].Seq, events[i].At = db.seq, db.now()
	}
	t := *db.cur.Load()
	t.events = appendRing(t.events, events)
	db.cur.Store(&t)
	for w := range db.watches {
		w.add(nil)
	}
}

// Lead makes name the leader and returns a Store whose writes are refused with ErrDeposed once someone else leads. It
// returns once View has all that former leaders wrote.
func (db *DB) Lead(ctx context.Context, name string) (*Leader, error) {
	term, rev, err := db.backend.Lead(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("become leader: %w", err)
	}
	return db.Assume(ctx, term, rev)
}

// Assume returns the Store of a leader whose term began otherwise than by Lead, once View has revision rev.
func (db *DB) Assume(ctx context.Context, term Term, rev uint64) (*Leader, error) {
	if err := db.Await(ctx, rev); err != nil {
		return nil, fmt.Errorf("read what former leaders wrote: %w", err)
	}
	return &Leader{db, term}, nil
}

// Leader is a Store for the loops that only the leader runs.
type Leader struct {
	*DB
	term Term
}

// Term returns the leader's term. It is greater than that of every leader before.
func (l *Leader) Term() Term { return l.term }

// Update implements Store; it is fenced by the leader's term.
func (l *Leader) Update(ctx context.Context, fn func(*Tx) error) error {
	return l.update(ctx, l.term, fn)
}
