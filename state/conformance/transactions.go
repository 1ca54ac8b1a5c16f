package conformance

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// testAtomic protects that other servers see a transaction as a whole, in one revision, or not at all.
func testAtomic(t *testing.T, s Storage) {
	db, other := s.Open(t), s.Open(t)
	v, w := other.Watch()
	defer w.Close()
	const rounds = 50
	writing := make(chan error, 1)
	go func() {
		writing <- func() error {
			for n := range uint64(rounds) {
				err := db.Update(t.Context(), func(tx *state.Tx) error {
					for i := range 20 {
						tx.PutApp(app(fmt.Sprintf("/a%02d", i), n+1))
					}
					tx.PutNode(&model.Node{ID: "n", Version: fmt.Sprint(n + 1)})
					return nil
				})
				if err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	for late := time.After(patience); ; {
		wholeOrNothing(t, v)
		if a := v.App("/a00"); a != nil && a.Version == rounds {
			break
		}
		select {
		case <-w.Ready():
			v, _ = w.Take()
		case <-late:
			t.Fatal("the other server does not see all")
		}
	}
	if err := <-writing; err != nil {
		t.Fatal(err)
	}
}

func wholeOrNothing(t *testing.T, v state.View) {
	t.Helper()
	node := v.Node("n")
	for a := range v.Apps() {
		if node == nil || fmt.Sprint(a.Version) != node.Version || a.Revision != node.Revision || a.Revision > v.Revision() {
			t.Fatalf("half a transaction is visible: app %+v, node %+v", a, node)
		}
	}
	if node != nil && v.AppCount() != 20 {
		t.Fatalf("%d apps are visible, want 20", v.AppCount())
	}
}

// testCallbackError protects that a callback that fails leaves no trace, and that its own error comes back.
func testCallbackError(t *testing.T, s Storage) {
	db := s.Open(t)
	update(t, db, func(tx *state.Tx) { tx.PutApp(app("/a", 1)) })
	before, rev := dump(db.View()), db.View().Revision()
	_, w := db.Watch()
	defer w.Close()
	mine := errors.New("mine")
	err := db.Update(t.Context(), func(tx *state.Tx) error {
		tx.PutApp(app("/a", 2))
		tx.PutInstance(instance("i", "/a", ""))
		tx.DeleteApp("/a")
		tx.Emit(model.Event{Type: "never"})
		return mine
	})
	if !errors.Is(err, mine) {
		t.Fatalf("Update: %v, want the callback's own error", err)
	}
	same(t, "after a failed callback", dump(db.View()), before)
	if v := db.View(); v.Revision() != rev || len(v.Events()) != 0 {
		t.Fatalf("revision %d and %d events, want %d and none", v.Revision(), len(v.Events()), rev)
	}
	select {
	case <-w.Ready():
		t.Fatal("a watch was told")
	default:
	}
	same(t, "after reopening", dump(s.Reopen(t).View()), before)
}

// testCallbackPanic protects that a panic reaches its own caller, and nobody else, and that the store goes on.
func testCallbackPanic(t *testing.T, s Storage) {
	db := s.Open(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			defer func() {
				if got := recover(); (got == "boom") != (i%2 == 0) {
					t.Errorf("caller %d recovered %v", i, got)
				}
			}()
			err := db.Update(t.Context(), func(tx *state.Tx) error {
				tx.PutApp(app(fmt.Sprintf("/a%d", i), 1))
				if i%2 == 0 {
					panic("boom")
				}
				return nil
			})
			if err != nil {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := db.View().AppCount(); n != 10 {
		t.Fatalf("%d apps, want those of the 10 that did not panic", n)
	}
}

// testReadYourWrites protects that a transaction reads what it wrote, also through the indexes, and nobody else does.
func testReadYourWrites(t *testing.T, s Storage) {
	db := s.Open(t)
	update(t, db, func(tx *state.Tx) { tx.PutInstance(instance("old", "/a", "")) })
	update(t, db, func(tx *state.Tx) {
		moved := tx.Instance("old").Clone()
		moved.Node = "n1"
		tx.PutInstance(moved)
		tx.PutInstance(instance("new", "/a", ""))
		tx.PutInstance(instance("gone", "/a", ""))
		tx.DeleteInstance("gone")
		tx.PutVersion(&model.AppVersion{App: "/a", Version: 3, Spec: &model.Spec{ID: "/a"}})
		for what, got := range map[string][2][]string{
			"all":     {ids(tx.Instances(), instanceID), {"new", "old"}},
			"of":      {ids(tx.InstancesOf("/a"), instanceID), {"new", "old"}},
			"on":      {ids(tx.InstancesOn("n1"), instanceID), {"old"}},
			"pending": {ids(tx.Pending(), instanceID), {"new"}},
		} {
			if !reflect.DeepEqual(got[0], got[1]) {
				t.Errorf("in the transaction, %s: %v, want %v", what, got[0], got[1])
			}
		}
		if tx.Version("/a", 3) == nil || tx.Instance("gone") != nil || tx.InstanceCount() != 2 {
			t.Error("look-ups miss writes of the transaction")
		}
		if v := db.View(); v.Instance("new") != nil || v.Version("/a", 3) != nil || v.Instance("old").Node != "" {
			t.Error("others see writes before they are durable")
		}
	})
	update(t, db, func(tx *state.Tx) { tx.DeleteInstance("never was") })
}

// testLoopAndWrite protects that a loop over a transaction's sequence may write: it visits every record once, as it was
// when the loop began.
func testLoopAndWrite(t *testing.T, s Storage) {
	db := s.Open(t)
	const n = 2000
	update(t, db, func(tx *state.Tx) {
		for i := range n {
			tx.PutInstance(instance(fmt.Sprintf("i%04d", i), "/a", ""))
		}
	})
	update(t, db, func(tx *state.Tx) {
		seen := 0
		for i := range tx.InstancesOf("/a") {
			if seen++; seen%2 == 0 {
				tx.DeleteInstance(i.ID)
			} else {
				c := i.Clone()
				c.Node = "n"
				tx.PutInstance(c)
			}
			tx.PutInstance(instance("z"+string(i.ID), "/a", ""))
		}
		if seen != n {
			t.Errorf("the loop visited %d of %d", seen, n)
		}
	})
	v := db.View()
	on, pending := len(ids(v.InstancesOn("n"), instanceID)), len(ids(v.Pending(), instanceID))
	if on != n/2 || pending != n || v.InstanceCount() != n/2+n {
		t.Fatalf("%d placed, %d pending, %d in all; want %d, %d, %d", on, pending, v.InstanceCount(), n/2, n, n/2+n)
	}
}

// testConcurrentUpdates protects that transactions happen one after the other: each sees all before it, and a success is
// in view.
func testConcurrentUpdates(t *testing.T, s Storage) {
	db := s.Open(t)
	const callers, each = 32, 20
	seen := make([]map[uint64]bool, callers)
	var wg sync.WaitGroup
	for c := range callers {
		seen[c] = map[uint64]bool{}
		wg.Go(func() {
			for n := range each {
				var at uint64
				err := db.Update(t.Context(), func(tx *state.Tx) error {
					if (c+n)%7 == 0 && tx.App("/refused") == nil { // some fail, amid others
						increment(tx, "/n")
						return errors.ErrUnsupported
					}
					at = increment(tx, "/n")
					return nil
				})
				if (c+n)%7 == 0 {
					if !errors.Is(err, errors.ErrUnsupported) {
						t.Errorf("Update: %v, want the callback's error", err)
					}
					continue
				}
				if err != nil {
					t.Errorf("Update: %v", err)
				}
				if now := db.View().App("/n").Version; now < at {
					t.Errorf("wrote %d, but View has %d", at, now)
				}
				seen[c][at] = true
			}
		})
	}
	wg.Wait()
	union := map[uint64]bool{}
	total := 0
	for _, m := range seen {
		total += len(m)
		for n := range m {
			union[n] = true
		}
	}
	if last := db.View().App("/n").Version; len(union) != total || int(last) != total {
		t.Fatalf("%d successes saw %d numbers and left %d", total, len(union), last)
	}
}

// testConflictingServers protects that two servers that change one record lose no change.
func testConflictingServers(t *testing.T, s Storage) {
	a, b := s.Open(t), s.Open(t)
	const each = 40
	var wg sync.WaitGroup
	for _, db := range []*state.DB{a, b} {
		wg.Go(func() {
			for range each {
				for {
					err := db.Update(t.Context(), func(tx *state.Tx) error { increment(tx, "/n"); return nil })
					if err == nil {
						break
					}
					if !errors.Is(err, state.ErrConflict) { // which it may be after many tries
						t.Errorf("Update: %v", err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	for _, db := range []*state.DB{a, b} {
		await(t, db, "all increments on both servers", func(v state.View) bool { return v.App("/n").Version >= 2*each })
	}
	same(t, "both servers", dump(a.View()), dump(b.View()))
	if n := a.View().App("/n").Version; n != 2*each {
		t.Fatalf("%d increments are left of %d", n, 2*each)
	}
}

// testCancel protects that the end of a caller's context leaves all or nothing of its transaction, and that the caller
// is told which.
func testCancel(t *testing.T, s Storage) {
	db := s.Open(t)
	done, cancel := context.WithCancel(t.Context())
	cancel()
	err := db.Update(done, func(tx *state.Tx) error { increment(tx, "/n"); return nil })
	if !errors.Is(err, context.Canceled) || db.View().App("/n") != nil {
		t.Fatalf("a transaction ran after its context had ended: %v", err)
	}
	const callers = 64
	won := make([]bool, callers)
	var wg sync.WaitGroup
	for c := range callers {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(c)*50*time.Microsecond)
		defer cancel()
		wg.Go(func() {
			err := db.Update(ctx, func(tx *state.Tx) error {
				increment(tx, "/n")
				tx.PutInstance(instance(fmt.Sprintf("i%d", c), "/n", ""))
				return nil
			})
			won[c] = err == nil
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Update: %v", err)
			}
		})
	}
	wg.Wait()
	update(t, db, func(tx *state.Tx) { increment(tx, "/last") })
	check := func(v state.View) {
		t.Helper()
		total := 0
		for c, ok := range won {
			if ok {
				total++
			}
			if (v.Instance(model.InstanceID(fmt.Sprintf("i%d", c))) != nil) != ok {
				t.Errorf("caller %d was told %t, which the store denies", c, ok)
			}
		}
		if a := v.App("/n"); total > 0 && int(a.Version) != total {
			t.Errorf("%d increments, want %d", a.Version, total)
		}
	}
	check(db.View())
	check(s.Reopen(t).View())
}

// testReopen protects that what was acknowledged is there, with its revisions, when the servers come back.
func testReopen(t *testing.T, s Storage) {
	db := s.Open(t)
	fill(t, db, 1, 60)
	want := dump(db.View())
	again := s.Reopen(t)
	same(t, "after reopening", dump(again.View()), want)
	fill(t, again, 2, 60) // revisions that were read are good to write with
	want = dump(again.View())
	same(t, "after reopening twice", dump(s.Reopen(t).View()), want)
}

// testStop protects that updates fail, rather than hang, once the backend has ended.
func testStop(t *testing.T, s Storage) {
	db := s.Open(t)
	update(t, db, func(tx *state.Tx) { increment(tx, "/n") })
	db.Stop(state.ErrUnavailable)
	err := db.Update(t.Context(), func(tx *state.Tx) error { increment(tx, "/n"); return nil })
	if !errors.Is(err, state.ErrUnavailable) {
		t.Fatalf("Update: %v, want what Stop was given", err)
	}
	if db.View().App("/n").Version != 1 {
		t.Fatal("the view changed")
	}
}
