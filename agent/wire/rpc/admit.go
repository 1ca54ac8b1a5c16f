package rpc

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// admission lets sessions in at an even rate. Those that come when too many wait already are told to come again later, so
// that the reconnecting of thousands costs the store and the fleet no more at a time than they can do.
type admission struct {
	every time.Duration // between two sessions
	wait  time.Duration // the longest that one is kept waiting

	mu   sync.Mutex
	free time.Time // when the next one may pass
}

// enter waits for its turn. It returns how much later to try again when that would take too long.
func (a *admission) enter(ctx context.Context) (again time.Duration, err error) {
	a.mu.Lock()
	now := time.Now()
	if a.free.Before(now) {
		a.free = now
	}
	wait := a.free.Sub(now)
	if wait > a.wait {
		a.mu.Unlock()
		return a.wait + rand.N(2*a.wait), nil
	}
	a.free = a.free.Add(a.every)
	a.mu.Unlock()
	if wait == 0 {
		return 0, nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return 0, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}
