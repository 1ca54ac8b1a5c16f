package state_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-os/gantry/state"
)

// A loop steps at once, on a change, and when its time has come; it waits longer after each failure, in which no change
// hurries it, and it ends when another server leads.
func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		changes := make(chan struct{}, 1)
		var at []time.Duration
		step := func(context.Context) (time.Time, error) {
			at = append(at, time.Since(start))
			switch len(at) {
			case 1: // wants to be called again
				return time.Now().Add(time.Minute), nil
			case 2: // wants nothing; a change comes
				time.AfterFunc(time.Hour, func() { changes <- struct{}{} })
				return time.Time{}, nil
			case 3, 4: // fails, though there is a change
				select {
				case changes <- struct{}{}:
				default:
				}
				return time.Time{}, errors.New("no luck")
			case 5:
				return time.Time{}, nil
			}
			return time.Time{}, state.ErrDeposed
		}
		l := state.Loop{
			Name: "test", Now: time.Now, Logger: slog.New(slog.DiscardHandler), Step: step,
			Ready: func() <-chan struct{} { return changes },
		}
		if err := l.Run(t.Context()); !errors.Is(err, state.ErrDeposed) {
			t.Fatalf("ended with %v, want deposed", err)
		}
		hour := time.Minute + time.Hour
		want := []time.Duration{0, time.Minute, hour, hour + 100*time.Millisecond, hour + 300*time.Millisecond, hour + 300*time.Millisecond}
		for i := range want {
			if i >= len(at) || at[i] != want[i] {
				t.Fatalf("stepped at %v, want %v", at, want)
			}
		}
	})
}

// A loop ends with its context, for its cause.
func TestLoopEndsWithContext(t *testing.T) {
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	l := state.Loop{
		Name: "test", Now: time.Now, Logger: slog.New(slog.DiscardHandler), Ready: func() <-chan struct{} { return nil },
		Step: func(context.Context) (time.Time, error) { cancel(cause); return time.Time{}, nil },
	}
	if err := l.Run(ctx); !errors.Is(err, cause) {
		t.Errorf("ended with %v, want %v", err, cause)
	}
}
