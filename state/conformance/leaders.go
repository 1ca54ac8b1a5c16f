package conformance

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gantry-os/gantry/state"
)

// testFencing protects law 3: a deposed leader can change nothing, whether or not its server knows yet.
func testFencing(t *testing.T, s Storage) {
	a, b := s.Open(t), s.Open(t)
	first := lead(t, a, "a")
	update(t, first, func(tx *state.Tx) { increment(tx, "/n") })
	second := lead(t, b, "b")
	err := first.Update(t.Context(), func(tx *state.Tx) error { increment(tx, "/m"); return nil })
	if !errors.Is(err, state.ErrDeposed) {
		t.Fatalf("the deposed leader wrote: %v", err)
	}
	update(t, second, func(tx *state.Tx) { increment(tx, "/n") })
	update(t, a, func(tx *state.Tx) { increment(tx, "/free") }) // handlers write without a term
	if a.View().App("/m") != nil || s.Reopen(t).View().App("/m") != nil {
		t.Fatal("a write of the deposed leader is there")
	}
}

// testFencingUnderLoad protects fencing while writes with and without a term are made durable together.
func testFencingUnderLoad(t *testing.T, s Storage) {
	db := s.Open(t)
	old := lead(t, db, "old")
	now := lead(t, db, "now")
	var free, led atomic.Int64
	var wg sync.WaitGroup
	for c := range 30 {
		wg.Go(func() {
			for range 10 {
				switch c % 3 {
				case 0:
					err := old.Update(t.Context(), func(tx *state.Tx) error { increment(tx, "/old"); return nil })
					if !errors.Is(err, state.ErrDeposed) {
						t.Errorf("the deposed leader wrote: %v", err)
					}
				case 1:
					if err := now.Update(t.Context(), func(tx *state.Tx) error { increment(tx, "/led"); return nil }); err == nil {
						led.Add(1)
					} else {
						t.Errorf("the leader: %v", err)
					}
				default:
					if err := db.Update(t.Context(), func(tx *state.Tx) error { increment(tx, "/free"); return nil }); err == nil {
						free.Add(1)
					} else {
						t.Errorf("no leader: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	v := s.Reopen(t).View()
	if v.App("/old") != nil || int64(v.App("/led").Version) != led.Load() || int64(v.App("/free").Version) != free.Load() {
		t.Fatalf("old %v, led %+v of %d, free %+v of %d", v.App("/old"), v.App("/led"), led.Load(), v.App("/free"), free.Load())
	}
}

// testLeaderSeesAll protects that a new leader starts from all that the old one wrote.
func testLeaderSeesAll(t *testing.T, s Storage) {
	servers := []*state.DB{s.Open(t), s.Open(t)}
	for n := range uint64(20) {
		l := lead(t, servers[n%2], "x")
		if a := l.View().App("/n"); n > 0 && (a == nil || a.Version != n) {
			t.Fatalf("leader %d begins with %+v", n, a)
		}
		update(t, l, func(tx *state.Tx) { increment(tx, "/n") })
	}
}

func lead(t *testing.T, db *state.DB, name string) *state.Leader {
	t.Helper()
	l, err := db.Lead(t.Context(), name)
	if err != nil {
		t.Fatalf("Lead: %v", err)
	}
	return l
}
