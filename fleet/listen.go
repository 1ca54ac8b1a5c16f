package fleet

import (
	"context"
	"errors"
	"runtime"
	"sync"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// maxBatch bounds how many reports, and messages without any, go into one transaction.
const maxBatch = 5000

// up is one message of an agent, and where its sender waits.
type up struct {
	from *session
	msg  wire.Up
	err  chan error // has room for the answer
}

func (u *up) size() int { return max(1, len(u.msg.Reports)) }

// inbox gathers what agents say until listen takes it.
type inbox struct {
	ready chan struct{} // has one element when messages wait

	mu      sync.Mutex
	waiting []up
}

func (b *inbox) put(u up) {
	b.mu.Lock()
	b.waiting = append(b.waiting, u)
	b.mu.Unlock()
	b.wake()
}

func (b *inbox) wake() {
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// take returns the oldest messages, as many as go into one transaction.
func (b *inbox) take() []up {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for size := 0; n < len(b.waiting) && size < maxBatch; n++ {
		size += b.waiting[n].size()
	}
	batch := b.waiting[:n:n]
	if b.waiting = b.waiting[n:]; len(b.waiting) == 0 {
		b.waiting = nil
	} else {
		b.wake()
	}
	return batch
}

// listen writes down what agents say. While one transaction is written, what they say next gathers for another.
func (f *Fleet) listen(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.inbox.ready:
			if err := f.take(ctx, f.inbox.take()); errors.Is(err, state.ErrDeposed) {
				return err
			}
		}
	}
}

// take writes down what agents said, in one transaction, and answers them. The agents try again what failed.
func (f *Fleet) take(ctx context.Context, batch []up) error {
	err := f.store.Update(ctx, func(tx *state.Tx) error {
		for _, u := range batch {
			if u.msg.Hello != nil {
				f.putNode(tx, *u.msg.Hello, model.NodeReady)
			}
			for _, r := range u.msg.Reports {
				f.putStatus(tx, r)
			}
		}
		return nil
	})
	var woken pace
	for _, u := range batch {
		if err == nil && u.msg.Hello != nil {
			select {
			case f.hello <- u: // it is answered once it has joined
			case <-ctx.Done():
				u.err <- context.Cause(ctx)
			}
			continue
		}
		u.err <- err
		woken.one()
	}
	return err
}

// pace counts goroutines that were woken, and lets them run before there are many: of thousands that are ready at once, each
// request of the API would wait for its turn.
type pace int

func (p *pace) one() {
	if *p++; *p%64 == 0 {
		runtime.Gosched()
	}
}
