// Package flight merges calls that would do the same work at the same time: the first caller of a key starts it, later
// ones join, and all get its result. The work is given up only when every caller has left.
package flight

import (
	"context"
	"sync"
)

// Group merges calls by key. The zero Group is ready for use.
type Group[V any] struct {
	mu    sync.Mutex
	calls map[string]*call[V]
}

type call[V any] struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiting int
	told    map[int]func(string)
	next    int
	last    string
	val     V
	err     error
}

// Do runs fn, or joins the call of the same key that runs already. fn may report progress with the function that it is
// given; every caller's progress function, which may be nil, is then called. Do returns early when ctx ends.
func (g *Group[V]) Do(ctx context.Context, key string, progress func(string),
	fn func(ctx context.Context, say func(string)) (V, error)) (V, error) {
	c, n := g.join(ctx, key, progress, fn)
	defer g.leave(key, c, n)
	select {
	case <-c.done:
		return c.val, c.err
	case <-ctx.Done():
		var zero V
		return zero, context.Cause(ctx)
	}
}

func (g *Group[V]) join(ctx context.Context, key string, progress func(string),
	fn func(context.Context, func(string)) (V, error)) (*call[V], int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.calls[key]
	if c == nil {
		work, cancel := context.WithCancel(context.WithoutCancel(ctx))
		c = &call[V]{done: make(chan struct{}), cancel: cancel, told: map[int]func(string){}}
		if g.calls == nil {
			g.calls = map[string]*call[V]{}
		}
		g.calls[key] = c
		go g.run(work, key, c, fn)
	}
	c.waiting++
	c.next++
	if progress != nil {
		c.told[c.next] = progress
		if c.last != "" {
			progress(c.last)
		}
	}
	return c, c.next
}

func (g *Group[V]) run(ctx context.Context, key string, c *call[V], fn func(context.Context, func(string)) (V, error)) {
	c.val, c.err = fn(ctx, func(s string) { g.say(c, s) })
	g.mu.Lock()
	if g.calls[key] == c {
		delete(g.calls, key)
	}
	g.mu.Unlock()
	c.cancel()
	close(c.done)
}

func (g *Group[V]) say(c *call[V], s string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.last = s
	for _, f := range c.told {
		f(s)
	}
}

// leave gives the work up when its last caller goes; who comes after that starts anew.
func (g *Group[V]) leave(key string, c *call[V], n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(c.told, n)
	if c.waiting--; c.waiting > 0 {
		return
	}
	c.cancel()
	if g.calls[key] == c {
		delete(g.calls, key)
	}
}
