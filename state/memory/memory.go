// Package memory is a state backend without durability, for tests and simulations.
package memory

import (
	"context"
	"sync"
	"time"

	"github.com/gantry-os/gantry/state"
)

// Open returns an empty DB. now gives events their time.
func Open(now func() time.Time) *state.DB { return state.New(&backend{}, now) }

type backend struct {
	mu   sync.Mutex
	rev  uint64
	term state.Term
}

// Commit implements state.Backend. Nobody else writes, so no record can be in conflict.
func (b *backend) Commit(ctx context.Context, term state.Term, _ []state.Op) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if term != 0 && term != b.term {
		return 0, state.ErrDeposed
	}
	b.rev++
	return b.rev, nil
}

// Lead implements state.Backend.
func (b *backend) Lead(context.Context, string) (state.Term, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.term++
	return b.term, nil
}
