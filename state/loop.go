package state

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Waits of a loop whose step failed: the first, and the longest.
const (
	retryLeast = 100 * time.Millisecond
	retryMost  = 5 * time.Second
)

// Loop is a loop of the leader over its Watch: one step after another, each when something has changed or its time has come.
type Loop struct {
	Name   string // for the log
	Now    func() time.Time
	Logger *slog.Logger

	// Step does what there is to do now, and returns when it wants to be called again though nothing changes, zero for never.
	Step func(context.Context) (next time.Time, err error)
	// Ready returns the channel of the watch; it is asked after each step that succeeded.
	Ready func() <-chan struct{}
	// Calls are made between steps, in the loop's goroutine. Optional.
	Calls <-chan func()
}

// Run steps until ctx ends, or this server is no longer the leader. Other failures of a step are logged, and it is tried again
// after a wait that grows.
func (l Loop) Run(ctx context.Context) error {
	wait := retryLeast
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next, err := l.Step(ctx)
		var ready <-chan struct{}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrDeposed):
			return err
		case err != nil:
			l.Logger.Warn(l.Name+": trying again", "wait", wait, "err", err)
			next, wait = l.Now().Add(wait), min(2*wait, retryMost) // and no change cuts the wait short
		default:
			ready, wait = l.Ready(), retryLeast
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(max(0, next.Sub(l.Now())))
		}
		if err := l.rest(ctx, ready, timer.C); err != nil {
			return err
		}
	}
}

// rest makes calls until there is a change, the time has come, or ctx ends.
func (l Loop) rest(ctx context.Context, ready <-chan struct{}, due <-chan time.Time) error {
	for {
		select {
		case <-ready:
			return nil
		case <-due:
			return nil
		case call := <-l.Calls:
			call()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
