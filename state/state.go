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

// Errors that Update can end with, beside those of its callback.
var (
	// ErrConflict says that another server changed a record that the transaction wrote; Update retries it a few times.
	ErrConflict = errors.New("the record was changed at the same time")
	// ErrDeposed says that the caller is no longer the leader. Nothing was written.
	ErrDeposed = errors.New("this server is no longer the leader")
	// ErrNoSpace says that the store is full and takes no writes until space is made.
	ErrNoSpace = errors.New("the store is full")
)

// Store is what loops and handlers need of the truth. *DB and *Leader are Stores.
type Store interface {
	// View returns the newest snapshot.
	View() View
	// Update runs fn on the newest snapshot and makes its writes durable as one transaction; when it returns nil they
	// are on a quorum and in View. When fn fails, nothing is written and its error is returned. fn may run more than
	// once, does no I/O, and must not call Update.
	Update(ctx context.Context, fn func(*Tx) error) error
	// Watch returns a view and a watch that reports every later change.
	Watch() (View, *Watch)
}

// Backend makes transactions durable. Only DB calls it, one call at a time.
type Backend interface {
	// Commit writes all of ops or none, if every record still has the revision it was read at and term, unless zero,
	// is still the leader's. It returns the transaction's revision: greater than all before, and greater by exactly
	// one when nobody else wrote in between.
	Commit(ctx context.Context, term Term, ops []Op) (uint64, error)
	// Lead makes name the leader and returns its term.
	Lead(ctx context.Context, name string) (Term, error)
}

// Term is one period of leadership. The zero Term is no leadership.
type Term int64

// Op is one record's new value.
type Op struct {
	Key  Key
	Read uint64 // revision of the record when it was read, 0 when it did not exist
	Val  any    // *model.App, ... as in Key.Kind; nil deletes
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
)

var kindNames = [...]string{"app", "version", "instance", "deployment", "node"}

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

// DB is the truth in memory, backed by a Backend.
type DB struct {
	backend Backend
	now     func() time.Time

	writing sync.Mutex // one transaction at a time, held over its commit

	mu      sync.Mutex // guards publishing and what follows
	applied *sync.Cond // signalled when cur moves on
	watches map[*Watch]struct{}
	seq     uint64 // of the last event

	cur atomic.Pointer[tables]
}

// New returns an empty DB on backend. now gives events their time.
func New(backend Backend, now func() time.Time) *DB {
	db := &DB{backend: backend, now: now, watches: map[*Watch]struct{}{}}
	db.applied = sync.NewCond(&db.mu)
	db.cur.Store(newTables())
	return db
}

// View implements Store.
func (db *DB) View() View { return View{db.cur.Load()} }

// Update implements Store.
func (db *DB) Update(ctx context.Context, fn func(*Tx) error) error { return db.update(ctx, 0, fn) }

func (db *DB) update(ctx context.Context, term Term, fn func(*Tx) error) error {
	for try := 0; ; try++ {
		err := db.tryUpdate(ctx, term, fn)
		if !errors.Is(err, ErrConflict) || try == 8 {
			return err
		}
		select {
		case <-time.After(time.Duration(try+1) * 10 * time.Millisecond): // the other's write is on its way to us
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (db *DB) tryUpdate(ctx context.Context, term Term, fn func(*Tx) error) error {
	db.writing.Lock()
	defer db.writing.Unlock()
	base := db.cur.Load()
	tx := &Tx{View: View{base.clone()}, base: base, writes: map[Key]int{}}
	if err := fn(tx); err != nil {
		return err
	}
	if len(tx.ops) == 0 {
		db.emit(tx.events)
		return nil
	}
	rev, err := db.backend.Commit(ctx, term, tx.ops)
	if err != nil {
		return fmt.Errorf("commit %d records: %w", len(tx.ops), err)
	}
	db.settle(ctx, base, tx, rev)
	return nil
}

// settle brings a committed transaction into view. When others wrote in between, theirs must come first, so it waits
// for the backend to deliver them all in order through Apply.
func (db *DB) settle(ctx context.Context, base *tables, tx *Tx, rev uint64) {
	db.mu.Lock()
	if cur := db.cur.Load(); cur == base && rev == cur.rev+1 {
		for _, op := range tx.ops {
			setRevision(op.Val, rev)
		}
		tx.t.rev = rev
		db.publishLocked(tx.t, tx.ops)
	}
	stop := context.AfterFunc(ctx, db.applied.Broadcast)
	for db.cur.Load().rev < rev && ctx.Err() == nil {
		db.applied.Wait()
	}
	stop()
	db.mu.Unlock()
	db.emit(tx.events)
}

// Apply brings in what the backend saw committed as revision rev by anyone, in order of revisions. What is known
// already is skipped.
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

// Load fills an empty DB with all records as of revision rev, before anyone uses it.
func (db *DB) Load(rev uint64, ops []Op) {
	t := newTables()
	for _, op := range ops {
		setRevision(op.Val, op.Read)
		t.set(op.Key, op.Val)
	}
	t.rev = rev
	db.cur.Store(t)
}

func (db *DB) publishLocked(t *tables, ops []Op) {
	t.events = db.cur.Load().events
	db.cur.Store(t)
	for w := range db.watches {
		w.add(ops, nil)
	}
	db.applied.Broadcast()
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
		w.add(nil, events)
	}
}

// Lead makes name the leader and returns a Store whose writes are refused with ErrDeposed once someone else leads.
func (db *DB) Lead(ctx context.Context, name string) (*Leader, error) {
	term, err := db.backend.Lead(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("become leader: %w", err)
	}
	return &Leader{db, term}, nil
}

// Leader is a Store for the loops that only the leader runs.
type Leader struct {
	*DB
	term Term
}

// Update implements Store; it is fenced by the leader's term.
func (l *Leader) Update(ctx context.Context, fn func(*Tx) error) error {
	return l.update(ctx, l.term, fn)
}
