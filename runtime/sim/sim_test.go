package sim_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/conformance"
	"github.com/gantry-os/gantry/runtime/sim"
)

func TestConformance(t *testing.T) {
	conformance.Run(t, func(*testing.T) conformance.Harness {
		d := sim.New()
		return conformance.Harness{
			Driver: d,
			Reopen: func(*testing.T) runtime.Driver { return d.Reopen() },
			Task: func(t *testing.T, p conformance.Program) runtime.Task {
				task := conformance.Shell(t, p)
				d.Script(strings.Join(task.Command, " "), sim.Behavior{
					Exits: p.Exits, Code: p.Code, IgnoreTerm: p.IgnoresTerm, HandlesTerm: p.HandlesTerm,
				})
				return task
			},
			Pretends:       true,
			DefaultSignals: true,
		}
	})
}

// A script's times are those of the clock that the test holds.
func TestScriptKeepsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := sim.New()
		d.Script("work hard", sim.Behavior{StartDelay: time.Second, Exits: true, After: time.Hour, Code: 3})
		begin := time.Now()
		s, err := d.Start(t.Context(), runtime.Task{ID: "a.main", Attempt: 1, Command: []string{"work", "hard"}})
		if err != nil || s.Started.Sub(begin) != time.Second {
			t.Fatalf("Start returned %+v, %v", s, err)
		}
		e, err := d.Wait(t.Context(), "a.main")
		if err != nil || e.Code != 3 || e.At.Sub(s.Started) != time.Hour {
			t.Fatalf("Wait returned %+v, %v", e, err)
		}
	})
}

func TestStopDelayAndDeafness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := sim.New()
		d.Script("slow", sim.Behavior{StopDelay: time.Minute, HandlesTerm: true})
		if _, err := d.Start(t.Context(), runtime.Task{ID: "a.main", Attempt: 1, Command: []string{"slow"}}); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := d.Signal(t.Context(), "a.main", 15); err != nil {
			t.Fatal(err)
		}
		e, err := d.Wait(t.Context(), "a.main")
		if err != nil || e.Code != 0 || e.At.Sub(begin) != time.Minute {
			t.Fatalf("Wait returned %+v, %v", e, err)
		}
	})
}

func TestFailures(t *testing.T) {
	d, ctx := sim.New(), context.Background()
	broken := errors.New("out of luck")
	d.Script("bad", sim.Behavior{StartErr: broken})
	task := runtime.Task{ID: "a.main", Attempt: 1, Command: []string{"bad"}}
	if _, err := d.Start(ctx, task); !errors.Is(err, broken) {
		t.Errorf("Start returned %v", err)
	}
	task.Command = []string{"good"}
	if _, err := d.Start(ctx, task); err != nil || d.Starts(task.ID) != 1 {
		t.Errorf("Start returned %v; %d starts", err, d.Starts(task.ID))
	}
	d.Down(runtime.ErrUnavailable)
	if _, err := d.List(ctx); !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("List returned %v", err)
	}
	d.Down(nil)
	d.Reboot()
	if e, err := d.Wait(ctx, task.ID); err != nil || e.Lost == "" {
		t.Errorf("after a reboot Wait returned %+v, %v", e, err)
	}
	d.End(task.ID, model.Exit{Code: 9})
	if e, _ := d.Wait(ctx, task.ID); e.Code == 9 {
		t.Error("a task ended twice")
	}
}
