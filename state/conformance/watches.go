package conformance

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// testWatchLosesNothing protects that a reader that re-reads what a watch names, however slowly, ends with the truth, on
// the server that writes and on another.
func testWatchLosesNothing(t *testing.T, s Storage) {
	db, other := s.Open(t), s.Open(t)
	const rounds = 120
	var wg sync.WaitGroup
	for n, server := range []*state.DB{db, db, other} {
		v, w := server.Watch()
		rng := rand.New(rand.NewPCG(uint64(n), 0))
		wg.Go(func() {
			defer w.Close()
			follow(t, v, w, rng)
		})
	}
	rng := rand.New(rand.NewPCG(7, 7))
	for range rounds {
		update(t, db, func(tx *state.Tx) {
			for range 1 + rng.IntN(5) {
				i := instance(fmt.Sprintf("i%d", rng.IntN(50)), "/a", "")
				if i.Version = rng.Uint64(); i.Version%3 == 0 {
					tx.DeleteInstance(i.ID)
				} else {
					tx.PutInstance(i)
				}
			}
		})
	}
	update(t, db, func(tx *state.Tx) { tx.PutNode(&model.Node{ID: "end"}) })
	wg.Wait()
}

// follow keeps a copy of all instances by a watch until a node named end is there, then compares.
func follow(t *testing.T, v state.View, w *state.Watch, rng *rand.Rand) {
	mine := map[model.InstanceID]uint64{}
	late := time.After(patience)
	for ended := false; !ended; {
		var c state.Changes
		select {
		case <-w.Ready():
		case <-late:
			t.Error("the watch has stopped telling")
			return
		}
		time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond) // the slow reader that this is about
		v, c = w.Take()
		_, ended = c.Nodes["end"]
		for id := range c.Instances {
			delete(mine, id)
			if i := v.Instance(id); i != nil {
				mine[id] = i.Version
			}
		}
	}
	if len(mine) != v.InstanceCount() {
		t.Errorf("the reader has %d instances, the store %d", len(mine), v.InstanceCount())
	}
	for i := range v.Instances() {
		if mine[i.ID] != i.Version {
			t.Errorf("the reader missed a change of %s", i.ID)
		}
	}
}

// testWatchFull protects that hints that nobody takes stay bounded, and that the reader is told when they are dropped.
func testWatchFull(t *testing.T, s Storage) {
	db := s.Open(t)
	_, w := db.Watch()
	defer w.Close()
	const batches, size = 7, 10_000
	for b := range batches {
		update(t, db, func(tx *state.Tx) {
			for i := range size {
				tx.PutInstance(instance(fmt.Sprintf("i%d-%d", b, i), "/a", ""))
			}
			tx.Emit(model.Event{Type: fmt.Sprint(b)})
		})
	}
	<-w.Ready()
	v, c := w.Take()
	if !c.Full || len(c.Instances) != 0 || v.InstanceCount() != batches*size {
		t.Fatalf("full %t with %d hints for %d instances", c.Full, len(c.Instances), v.InstanceCount())
	}
	if len(c.Events) != batches {
		t.Fatalf("%d events, want all %d", len(c.Events), batches)
	}
	update(t, db, func(tx *state.Tx) { tx.PutInstance(instance("more", "/a", "")) })
	<-w.Ready()
	if _, c = w.Take(); c.Full || len(c.Instances) != 1 {
		t.Fatalf("after it was taken: full %t with %d hints, want one", c.Full, len(c.Instances))
	}
}

// testEventsFollowWrites protects that events come in order, once each, and never before what they tell of.
func testEventsFollowWrites(t *testing.T, s Storage) {
	db := s.Open(t)
	_, w := db.Watch()
	defer w.Close()
	const callers, each = 8, 20
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for n := range each {
				id := fmt.Sprintf("i%d-%d", c, n)
				err := db.Update(t.Context(), func(tx *state.Tx) error {
					tx.PutInstance(instance(id, "/a", ""))
					tx.Emit(model.Event{Type: "one", Instance: model.InstanceID(id)})
					tx.Emit(model.Event{Type: "two", Instance: model.InstanceID(id)})
					return nil
				})
				if err != nil {
					t.Errorf("Update: %v", err)
				}
			}
		})
	}
	defer wg.Wait()
	var got []model.Event
	for late := time.After(patience); len(got) < 2*callers*each; {
		select {
		case <-w.Ready():
		case <-late:
			t.Fatalf("%d events came", len(got))
		}
		v, c := w.Take()
		for _, e := range c.Events {
			if v.Instance(e.Instance) == nil {
				t.Fatalf("an event came before its write: %+v", e)
			}
		}
		got = append(got, c.Events...)
	}
	for i, e := range got {
		if e.Seq != uint64(i+1) || e.At.IsZero() || (e.Type == "two") != (i%2 == 1) || e.Instance != got[i/2*2].Instance {
			t.Fatalf("event %d is out of order: %+v", i, e)
		}
	}
	if kept := db.View().Events(); len(kept) != len(got) || kept[0].Seq != 1 {
		t.Fatalf("the view keeps %d events of %d", len(kept), len(got))
	}
}

// testEventsBounded protects that the ring keeps the newest events, whatever the sizes they come in, and that what a
// reader holds of it stays.
func testEventsBounded(t *testing.T, s Storage) {
	db := s.Open(t)
	_, w := db.Watch()
	defer w.Close()
	total := uint64(0)
	for _, n := range []int{5000, 1, 3000, 3000, 1, 4096, 20000, 100} {
		old := db.View().Events()
		update(t, db, func(tx *state.Tx) {
			for range n {
				tx.Emit(model.Event{Type: "x"})
			}
		})
		total += uint64(n)
		for i := range old {
			if old[i].Seq != old[0].Seq+uint64(i) {
				t.Fatalf("a reader's event %d became %d", i, old[i].Seq)
			}
		}
		events := db.View().Events()
		if len(events) < min(int(total), 4096) || len(events) > 4096 || events[len(events)-1].Seq != total {
			t.Fatalf("%d events end with %d, want 4096 and %d", len(events), events[len(events)-1].Seq, total)
		}
	}
	_, c := w.Take()
	if n := len(c.Events); n != 4096 || c.Events[n-1].Seq != total {
		t.Fatalf("a watch holds %d events, want the newest 4096", n)
	}
}
