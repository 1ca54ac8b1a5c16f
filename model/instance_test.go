package model

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

var phases = []Phase{
	PhasePending, PhaseAssigned, PhasePreparing, PhaseStarting, PhaseRunning, PhaseStopping, PhaseBackoff, PhaseStopped,
}

// TestCanFollow is the lifecycle over all pairs of phases: a row for the phase before, a column for the phase after.
func TestCanFollow(t *testing.T) {
	within := map[Phase]string{ // in the same attempt
		PhasePending:   "yyyyyyyy",
		PhaseAssigned:  "-yyyyyyy",
		PhasePreparing: "--yyyyyy",
		PhaseStarting:  "---yyyyy",
		PhaseRunning:   "----yyyy",
		PhaseStopping:  "-----yyy",
		PhaseBackoff:   "------yy",
		PhaseStopped:   "--------",
	}
	for _, old := range phases {
		for i, next := range phases {
			for _, c := range []struct {
				attempt uint32
				want    bool
			}{
				{2, within[old][i] == 'y'},
				{3, old != PhaseStopped},                         // a later attempt is news, whatever it says
				{1, old != PhaseStopped && next == PhaseStopped}, // an earlier one is not, but the end is the end
			} {
				got := Status{Attempt: c.attempt, Phase: next}.CanFollow(Status{Attempt: 2, Phase: old})
				if got != c.want {
					t.Errorf("attempt 2 %s -> attempt %d %s: %t, want %t", old, c.attempt, next, got, c.want)
				}
			}
		}
	}
	if len(phases) != len(phaseOrder) {
		t.Errorf("the table has %d phases of %d", len(phases), len(phaseOrder))
	}
	if (Status{Phase: "napping"}).CanFollow(Status{Phase: PhaseRunning}) || Phase("").Valid() {
		t.Error("an unknown phase is taken")
	}
}

func TestInstanceStanding(t *testing.T) {
	since := time.Unix(1, 0)
	for _, c := range []struct {
		i                   Instance
		live, over, healthy bool
	}{
		{Instance{Desired: Run, Status: Status{Phase: PhasePending}}, true, false, false},
		{Instance{Desired: Run, Status: Status{Phase: PhaseRunning}}, true, false, false},
		{Instance{Desired: Run, Status: Status{Phase: PhaseRunning, Ready: true, Since: since}}, true, false, true},
		{Instance{Desired: Run, Status: Status{Phase: PhaseRunning, Ready: true, Healthy: Unhealthy}}, true, false, false},
		{Instance{Desired: Halt, Status: Status{Phase: PhaseRunning, Ready: true}}, false, false, false},
		{Instance{Desired: Run, Status: Status{Phase: PhaseStopped, Ready: true}}, false, true, false},
	} {
		at, healthy := c.i.HealthySince()
		if c.i.Live() != c.live || c.i.Over() != c.over || healthy != c.healthy || healthy && !at.Equal(since) {
			t.Errorf("%+v: live %t, over %t, healthy %t at %v", c.i, c.i.Live(), c.i.Over(), healthy, at)
		}
	}
}

// TestInstanceClone protects views: changing a clone must not reach the original.
func TestInstanceClone(t *testing.T) {
	i := &Instance{}
	fillIn(reflect.ValueOf(i).Elem())
	checkDeep(t, i, i.Clone())
}

// BenchmarkInstanceJSON measures what the API pays for an instance; the store has a form of its own.
func BenchmarkInstanceJSON(b *testing.B) {
	at := time.Date(2026, 5, 9, 7, 29, 33, 123456789, time.UTC)
	i := &Instance{
		ID: "checkout-k3v9q2xw", App: "/shop/backend/checkout", Version: 12, Created: at, Desired: Run,
		Node: "0b9d6b4e-7c3a-4f6e-9d2b-1a2b3c4d5e6f", Ports: []uint16{31000, 31001},
		Status: Status{
			Attempt: 1, Phase: PhaseRunning, Since: at, Started: at, Healthy: Healthy, Ready: true,
			Tasks: []TaskStatus{{Name: "main", PID: 1234567}},
		},
	}
	text, err := json.Marshal(i)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := json.Marshal(i); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(text)), "bytes/record")
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var v Instance
			if err := json.Unmarshal(text, &v); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Statuses that differ in anything are not equal. A field that is added and not compared fails here.
func TestStatusEqual(t *testing.T) {
	at := time.Unix(1_700_000_000, 5)
	full := func() Status {
		return Status{
			Attempt: 1, Phase: PhaseRunning, Since: at, Started: at, Healthy: Healthy, Ready: true, Message: "m", Away: at,
			Tasks: []TaskStatus{{Name: "main", PID: 7, Exit: &Exit{Code: 1, Signal: 2, OOM: true, Peak: 3, Limit: 4, Lost: "l", At: at}}},
		}
	}
	same := full()
	same.Since, same.Tasks[0].Exit.At = at.UTC(), at.UTC()
	if !full().Equal(same) {
		t.Error("the same in another time zone is another")
	}
	zeroEach := func(what string, of func(*Status) any) {
		typ := reflect.TypeOf(of(&Status{Tasks: []TaskStatus{{Exit: &Exit{}}}})).Elem()
		for i := range typ.NumField() {
			s := full()
			f := reflect.ValueOf(of(&s)).Elem().Field(i)
			if f.IsZero() {
				t.Fatalf("%s %s is not set in this test", what, typ.Field(i).Name)
			}
			f.SetZero()
			if s.Equal(full()) || full().Equal(s) {
				t.Errorf("without %s %s it is equal", what, typ.Field(i).Name)
			}
		}
	}
	zeroEach("status", func(s *Status) any { return s })
	zeroEach("task", func(s *Status) any { return &s.Tasks[0] })
	zeroEach("exit", func(s *Status) any { return s.Tasks[0].Exit })
}
