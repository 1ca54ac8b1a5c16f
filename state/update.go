package state

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	maxTries = 32   // of a transaction that meets conflicts; of servers that all write one record, one gets on in each round
	maxBatch = 128  // transactions that are made durable as one
	enough   = 2000 // records of a batch after which the others wait for the next: more take longer, and cost as much each
)

// request is one caller's transaction. Whoever has the turn runs all that wait, one after the other, and makes their
// writes durable together: a disk that can sync a hundred times a second then takes thousands of transactions.
type request struct {
	term Term
	fn   func(*Tx) error

	done   chan struct{} // closed once the outcome, below, is known
	err    error
	rev    uint64 // with ErrConflict: where it was met
	thrown any    // what fn panicked with, for its own caller
}

// Update implements Store.
func (db *DB) Update(ctx context.Context, fn func(*Tx) error) error { return db.update(ctx, 0, fn) }

func (db *DB) update(ctx context.Context, term Term, fn func(*Tx) error) error {
	for try := 1; ; try++ {
		r := &request{term: term, fn: fn, done: make(chan struct{})}
		if err := db.submit(ctx, r); err != nil {
			return err
		}
		if r.thrown != nil {
			panic(r.thrown)
		}
		if !errors.Is(r.err, ErrConflict) || try == maxTries {
			return r.err
		}
		if err := db.meet(ctx, r.rev, try); err != nil {
			return err
		}
	}
}

// meet waits for the other's write, which is on its way, but not for long: the store may count writes that never come.
func (db *DB) meet(ctx context.Context, rev uint64, try int) error {
	short, cancel := context.WithTimeout(ctx, time.Duration(min(try, 8))*20*time.Millisecond)
	defer cancel()
	if err := db.Await(short, rev); err != nil && short.Err() == nil {
		return err
	}
	return context.Cause(ctx)
}

// submit queues r and waits until it is done. It fails when ctx or the DB ends before its turn.
func (db *DB) submit(ctx context.Context, r *request) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	db.queueMu.Lock()
	db.queue = append(db.queue, r)
	db.queueMu.Unlock()
	cancelled, stopped := ctx.Done(), db.stopped
	for {
		select {
		case <-r.done:
			return nil
		case db.turn <- struct{}{}:
			db.serve()
		case <-stopped:
			if db.withdraw(r) {
				return db.stopErr
			}
			stopped = nil // it has its turn: see it through
		case <-cancelled:
			if db.withdraw(r) {
				return context.Cause(ctx)
			}
			cancelled = nil
		}
	}
}

// withdraw takes r out of the queue, unless its turn has come.
func (db *DB) withdraw(r *request) bool {
	db.queueMu.Lock()
	defer db.queueMu.Unlock()
	for i, q := range db.queue {
		if q == r {
			db.queue = append(db.queue[:i], db.queue[i+1:]...)
			return true
		}
	}
	return false
}

// take returns the requests whose turn it is.
func (db *DB) take() []*request {
	db.queueMu.Lock()
	defer db.queueMu.Unlock()
	n := min(len(db.queue), maxBatch)
	batch := db.queue[:n:n]
	if db.queue = db.queue[n:]; len(db.queue) == 0 {
		db.queue = nil
	}
	return batch
}

// errAborted is the outcome for all when one callback ends its goroutine, as t.Fatal does.
var errAborted = errors.New("a callback ended its goroutine")

// serve uses the turn, which the caller has, for the oldest requests in the queue.
func (db *DB) serve() {
	batch := db.take()
	for _, r := range batch {
		r.err = errAborted
	}
	defer func() {
		<-db.turn
		for _, r := range batch {
			close(r.done)
		}
	}()
	n, rev, err := db.commit(batch)
	db.giveBack(batch[n:])
	batch = batch[:n]
	switch {
	case err == nil:
	case len(batch) == 1 || !refused(err):
		for _, r := range batch {
			r.err, r.rev = err, rev
		}
	default: // one of them spoils it for the others
		for _, r := range batch {
			r.err = errAborted
			if _, rev, err := db.commit([]*request{r}); err != nil {
				r.err, r.rev = err, rev
			}
		}
	}
}

// giveBack puts requests that were taken first in the queue again.
func (db *DB) giveBack(rest []*request) {
	if len(rest) == 0 {
		return
	}
	db.queueMu.Lock()
	defer db.queueMu.Unlock()
	db.queue = append(rest, db.queue...)
}

// refused reports whether err says for certain that nothing was written, so that parts may be tried again.
func refused(err error) bool {
	return errors.Is(err, ErrConflict) || errors.Is(err, ErrDeposed) || errors.Is(err, ErrNoSpace) || errors.Is(err, ErrTooLarge)
}

// commit runs a batch on the newest snapshot, each request on top of those before it, and makes what they wrote durable
// and visible. It fails for all or none; a request whose own callback fails adds no write. It returns how many of the batch
// that were: those after enough is written are left.
func (db *DB) commit(batch []*request) (done int, rev uint64, err error) {
	select {
	case <-db.stopped:
		return len(batch), 0, db.stopErr
	default:
	}
	db.mu.Lock()
	base := db.cur.Load()
	sum := newTx(base.clone())
	db.mu.Unlock()
	var term Term
	for ; done < len(batch) && len(sum.ops) < enough; done++ {
		r, tx := batch[done], sum
		if len(batch) > 1 {
			tx = newTx(sum.t.clone())
		}
		if !r.run(tx) {
			if len(batch) == 1 {
				return 1, 0, nil
			}
			continue
		}
		sum.take(tx)
		if r.term != 0 && (term == 0 || r.term < term) {
			term = r.term // of two terms one is over, and must spoil the batch
		}
	}
	ops := sum.durable()
	if len(ops) == 0 {
		db.emit(sum.events)
		return done, 0, nil
	}
	db.takeOff()
	rev, err = db.backend.Commit(term, base.rev, ops)
	if err != nil {
		db.land()
		return done, rev, fmt.Errorf("commit %d records: %w", len(ops), err)
	}
	err = db.settle(base, sum.t, rev, ops)
	db.emit(sum.events)
	return done, rev, err
}

// takeOff and land are the begin and end of a commit.
func (db *DB) takeOff() {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.flight = make(chan struct{})
}

func (db *DB) land() {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.landLocked()
}

func (db *DB) landLocked() {
	close(db.flight)
	db.flight = nil
}

// run calls the request's callback, and reports whether its writes count.
func (r *request) run(tx *Tx) bool {
	defer func() {
		if v := recover(); v != nil {
			r.thrown = v
		}
	}()
	r.thrown, r.err = nil, errAborted
	if r.err = r.fn(tx); r.err == nil {
		r.err = tx.err
	}
	return r.err == nil
}

// settle brings a committed transaction into view. When others wrote in between, theirs must come first, so it waits
// for the backend to deliver them all in order through Apply.
func (db *DB) settle(base, t *tables, rev uint64, ops []Op) error {
	db.mu.Lock()
	if db.cur.Load() == base && rev == base.rev+1 {
		for _, op := range ops {
			setRevision(op.Val, rev)
		}
		t.rev = rev
		db.publishLocked(t, ops)
		db.landLocked()
		db.mu.Unlock()
		return nil
	}
	db.landLocked() // it comes by Apply
	db.mu.Unlock()
	if err := db.Await(context.Background(), rev); err != nil {
		return fmt.Errorf("written as revision %d, but it cannot be read: %w", rev, err)
	}
	return nil
}
