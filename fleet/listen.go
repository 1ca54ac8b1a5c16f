package fleet

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/state"
)

// maxBatch bounds how many reports, and messages without any, go into one transaction.
const maxBatch = 2000

// up is one message of an agent, and where its sender waits.
type up struct {
	from *session
	msg  wire.Up
	err  chan error // has room for the answer
}

func (u *up) size() int { return max(1, len(u.msg.Reports)) }

// inbox gathers what agents say until listen takes it. It has no lock: thousands who say something at once would stand in
// line for it, each woken only to wake the next.
type inbox struct {
	ready  chan struct{} // has one element when messages wait
	newest atomic.Pointer[letter]

	waiting []up // oldest first; only listen's goroutine uses it
}

// letter is one message, and the one before it.
type letter struct {
	up
	older *letter
}

func (b *inbox) put(u up) {
	l := &letter{up: u}
	for {
		l.older = b.newest.Load()
		if b.newest.CompareAndSwap(l.older, l) {
			break
		}
	}
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
	from := len(b.waiting)
	for l := b.newest.Swap(nil); l != nil; l = l.older {
		b.waiting = append(b.waiting, l.up)
	}
	slices.Reverse(b.waiting[from:])
	n := 0
	for size := 0; n < len(b.waiting) && size < maxBatch; n++ {
		size += b.waiting[n].size()
	}
	batch := b.waiting[:n:n]
	if b.waiting = b.waiting[n:]; len(b.waiting) > 0 {
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
	for _, u := range batch {
		if u.msg.Hello != nil {
			f.greet(u.msg.Hello.ID, 1)
		}
	}
	err := f.store.Update(ctx, func(tx *state.Tx) error {
		for _, u := range batch {
			if u.msg.Hello != nil {
				f.welcome(tx, *u.msg.Hello)
			}
			for _, r := range u.msg.Reports {
				f.putStatus(tx, u.from.id, r)
			}
			for _, id := range u.msg.RemovedVolumes {
				f.deleteVolume(tx, u.from.id, id)
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
		if u.msg.Hello != nil {
			f.greet(u.msg.Hello.ID, -1)
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
