package state

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
)

// slow is a backend whose every commit the test answers by hand.
type slow struct {
	calls   chan []Op
	answers chan answer
}

type answer struct {
	rev uint64
	err error
}

func (s *slow) Commit(_ Term, _ uint64, ops []Op) (uint64, error) {
	s.calls <- ops
	a := <-s.answers
	return a.rev, a.err
}

func (s *slow) Lead(context.Context, string) (Term, uint64, error) { return 1, 0, nil }

func newSlow() (*slow, *DB) {
	s := &slow{make(chan []Op), make(chan answer)}
	return s, New(s, time.Now)
}

func putApp(ctx context.Context, db *DB, id model.AppID) chan error {
	done := make(chan error, 1)
	go func() {
		done <- db.Update(ctx, func(tx *Tx) error { tx.PutApp(&model.App{ID: id}); return nil })
	}()
	return done
}

// queued waits until n transactions wait for a turn.
func queued(t *testing.T, db *DB, n int) {
	t.Helper()
	for late := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		db.queueMu.Lock()
		now := len(db.queue)
		db.queueMu.Unlock()
		if now == n {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("%d transactions wait, want %d", now, n)
		}
	}
}

// TestWaitingGoTogether protects that transactions that wait become one commit, and that those whose callers gave up
// are not in it.
func TestWaitingGoTogether(t *testing.T) {
	s, db := newSlow()
	first := putApp(t.Context(), db, "/first")
	<-s.calls
	var rest []chan error
	for i := range 10 {
		rest = append(rest, putApp(t.Context(), db, model.AppID(fmt.Sprint("/", i))))
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone := putApp(ctx, db, "/gone")
	queued(t, db, 11)
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that gave up: %v", err)
	}
	s.answers <- answer{rev: 1}
	if ops := <-s.calls; len(ops) != 10 {
		t.Errorf("the second commit has %d writes, want 10", len(ops))
	}
	s.answers <- answer{rev: 2}
	for _, done := range append(rest, first) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if v := db.View(); v.AppCount() != 11 || v.Revision() != 2 || v.App("/gone") != nil {
		t.Errorf("%d apps at revision %d", v.AppCount(), v.Revision())
	}
}

// TestUnknownOutcome protects that a commit of which nobody knows whether it happened is not done twice, and that its
// writes show when they come after all.
func TestUnknownOutcome(t *testing.T) {
	s, db := newSlow()
	first := putApp(t.Context(), db, "/first")
	<-s.calls
	a, b := putApp(t.Context(), db, "/a"), putApp(t.Context(), db, "/b")
	queued(t, db, 2)
	s.answers <- answer{rev: 1}
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	<-s.calls
	s.answers <- answer{err: ErrUnavailable}
	for _, done := range []chan error{a, b} {
		if err := <-done; !errors.Is(err, ErrUnavailable) {
			t.Errorf("Update: %v, want ErrUnavailable", err)
		}
	}
	next := putApp(t.Context(), db, "/next")
	if ops := <-s.calls; len(ops) != 1 {
		t.Errorf("the next commit has %d writes, want its own", len(ops))
	}
	s.answers <- answer{rev: 3} // the lost commit was revision 2
	select {
	case err := <-next:
		t.Errorf("Update returned %v before what came earlier is in view", err)
	default:
	}
	db.Apply(2, []Op{{Key: Key{KindApp, "/a"}, Val: &model.App{ID: "/a"}}, {Key: Key{KindApp, "/b"}, Val: &model.App{ID: "/b"}}})
	db.Apply(3, []Op{{Key: Key{KindApp, "/next"}, Val: &model.App{ID: "/next"}}})
	if err := <-next; err != nil {
		t.Error(err)
	}
	if v := db.View(); v.AppCount() != 4 || v.App("/a").Revision != 2 {
		t.Errorf("%d apps at revision %d", v.AppCount(), v.Revision())
	}
}

// TestConflictWaits protects that a retry runs on what it conflicted with.
func TestConflictWaits(t *testing.T) {
	s, db := newSlow()
	seen := make(chan bool, 9)
	done := make(chan error, 1)
	go func() {
		done <- db.Update(t.Context(), func(tx *Tx) error {
			seen <- tx.App("/a") != nil
			tx.PutApp(&model.App{ID: "/a", Version: 2})
			return nil
		})
	}()
	<-s.calls
	db.Apply(1, []Op{{Key: Key{KindApp, "/a"}, Val: &model.App{ID: "/a", Version: 1}}})
	s.answers <- answer{1, ErrConflict}
	if ops := <-s.calls; ops[0].Read != 1 {
		t.Errorf("the retry compares with revision %d, want 1", ops[0].Read)
	}
	s.answers <- answer{rev: 2}
	if err := <-done; err != nil || <-seen || !<-seen || db.View().App("/a").Version != 2 {
		t.Errorf("%v, %+v", err, db.View().App("/a"))
	}
}

// TestConflictForever protects that Update gives up.
func TestConflictForever(t *testing.T) {
	s, db := newSlow()
	done := putApp(t.Context(), db, "/a")
	for range maxTries {
		<-s.calls
		s.answers <- answer{0, ErrConflict}
	}
	if err := <-done; !errors.Is(err, ErrConflict) {
		t.Errorf("Update: %v", err)
	}
}

// TestStopWhileSettling protects that an Update does not hang when what it has to wait for can no longer come.
func TestStopWhileSettling(t *testing.T) {
	s, db := newSlow()
	done := putApp(t.Context(), db, "/a")
	<-s.calls
	s.answers <- answer{rev: 5}
	db.Stop(ErrUnavailable)
	if err := <-done; !errors.Is(err, ErrUnavailable) {
		t.Errorf("Update: %v", err)
	}
}

// TestCallbackEndsGoroutine protects others from a callback that ends its goroutine, as t.Fatal does.
func TestCallbackEndsGoroutine(t *testing.T) {
	s, db := newSlow()
	first := putApp(t.Context(), db, "/first")
	<-s.calls
	var wg sync.WaitGroup
	wg.Go(func() {
		err := db.Update(t.Context(), func(*Tx) error { runtime.Goexit(); return nil })
		if err == nil {
			t.Error("a callback that never returned succeeded")
		}
	})
	queued(t, db, 1)
	other := putApp(t.Context(), db, "/other")
	queued(t, db, 2)
	s.answers <- answer{rev: 1}
	if err := <-first; err != nil && !errors.Is(err, errAborted) {
		t.Error(err)
	}
	if err := <-other; !errors.Is(err, errAborted) {
		t.Errorf("the other: %v, want errAborted", err)
	}
	wg.Wait()
	last := putApp(t.Context(), db, "/last")
	<-s.calls
	s.answers <- answer{rev: 2}
	if err := <-last; err != nil {
		t.Errorf("the store does not go on: %v", err)
	}
}

// Whoever sees a revision that the DB is just writing learns that the DB knows it, and of others' that it does not.
func TestKnows(t *testing.T) {
	back, db := newSlow()
	done := putApp(t.Context(), db, "/a")
	<-back.calls
	known := make(chan bool)
	go func() { known <- db.Knows(1) }()
	select {
	case <-known:
		t.Fatal("it answers while its own transaction may be the one")
	case <-time.After(10 * time.Millisecond):
	}
	back.answers <- answer{rev: 1}
	if !<-known || db.Knows(2) {
		t.Error("it knows revision 1, which it wrote, and not 2")
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	done = putApp(t.Context(), db, "/b")
	<-back.calls
	go func() { known <- db.Knows(2) }()
	back.answers <- answer{rev: 3} // someone else wrote 2
	if <-known {
		t.Error("it claims to know what another wrote")
	}
	db.Apply(2, nil)
	db.Apply(3, nil)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestEnoughTogether protects that what waits behind a large transaction is written after it and not with it.
func TestEnoughTogether(t *testing.T) {
	s, db := newSlow()
	first := putApp(t.Context(), db, "/first")
	<-s.calls
	large := make(chan error, 1)
	go func() {
		large <- db.Update(t.Context(), func(tx *Tx) error {
			for n := range enough {
				tx.PutInstance(&model.Instance{ID: model.InstanceID(fmt.Sprint("i", n)), App: "/a"})
			}
			return nil
		})
	}()
	queued(t, db, 1)
	small := putApp(t.Context(), db, "/small")
	queued(t, db, 2)
	s.answers <- answer{rev: 1}
	for call, want := range []int{enough, 1} {
		if ops := <-s.calls; len(ops) != want {
			t.Errorf("call %d has %d writes, want %d", call, len(ops), want)
		}
		s.answers <- answer{rev: uint64(2 + call)}
	}
	for _, done := range []chan error{first, large, small} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if v := db.View(); v.InstanceCount() != enough || v.AppCount() != 2 {
		t.Errorf("%d instances and %d apps", v.InstanceCount(), v.AppCount())
	}
}

// Replace protects views and watches when a backend has missed changes: all is as it is now, and watches read everything again.
func TestReplace(t *testing.T) {
	db := New(nil, time.Now)
	put := func(id model.AppID, rev uint64) []Op {
		return []Op{{Key: Key{KindApp, string(id)}, Read: rev, Val: &model.App{ID: id}}}
	}
	db.Load(5, put("/old", 3))
	_, w := db.Watch()
	db.Replace(4, put("/older", 2))
	if v := db.View(); v.Revision() != 5 || v.App("/old") == nil {
		t.Fatalf("an older revision replaced a newer one: %d", v.Revision())
	}
	db.Replace(9, put("/new", 7))
	v, c := w.Take()
	if v.Revision() != 9 || v.App("/old") != nil || v.App("/new") == nil || v.App("/new").Revision != 7 || !c.Full {
		t.Fatalf("after Replace: revision %d, old %v, new %v, full %v", v.Revision(), v.App("/old"), v.App("/new"), c.Full)
	}
	db.Apply(10, put("/more", 0))
	if _, c := w.Take(); c.Full || len(c.Apps) != 1 {
		t.Fatalf("the change after it: %+v", c)
	}
}
