package health

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/gantry-os/gantry/model"
)

// Check is one check and the way to probe it.
type Check struct {
	model.Check             // with defaults filled in
	Readiness   bool        // it decides over readiness only
	Probe       Probe       // returns nil when the check passes
	Passed      bool        // it is known to have passed before, as after a restart of the agent
	Gate        chan Permit // bounds how many probes run at once, when not nil; waiting for it takes nothing off the timeout
}

// Permit is a place in a gate.
type Permit = struct{}

// Probe looks once at an instance. It returns when ctx ends, which is at the check's timeout.
type Probe func(ctx context.Context) error

// Monitor probes one instance until it is stopped.
type Monitor struct {
	checks  []Check
	started time.Time
	now     func() time.Time
	results chan Result // holds the newest
	ctx     context.Context
	cancel  context.CancelFunc

	mu     sync.Mutex // guards what follows
	tracks []track
	timers []*time.Timer
	last   Result
	ended  bool
	busy   sync.WaitGroup
}

// Start begins to probe an instance whose programs started at the given time. Results holds a first result at once.
func Start(ctx context.Context, checks []Check, started time.Time, now func() time.Time) *Monitor {
	m := &Monitor{checks: checks, started: started, now: now, results: make(chan Result, 1)}
	m.ctx, m.cancel = context.WithCancel(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range checks {
		m.tracks = append(m.tracks, newTrack(&checks[i].Check, checks[i].Passed))
		first := quickInterval / 2
		if checks[i].Passed { // adopted: spread over the interval, as many are at once
			first = checks[i].Interval.Std()
		}
		m.timers = append(m.timers, time.AfterFunc(time.Duration(rand.Float64()*float64(first)), func() { m.fire(i) }))
	}
	m.last = sum(m.checks, m.tracks)
	m.results <- m.last
	return m
}

// Results returns a channel that holds the newest result whenever it has changed.
func (m *Monitor) Results() <-chan Result { return m.results }

// Stop ends all probes and waits for them.
func (m *Monitor) Stop() {
	m.mu.Lock()
	m.ended = true
	for _, t := range m.timers {
		t.Stop()
	}
	m.mu.Unlock()
	m.cancel()
	m.busy.Wait()
}

func (m *Monitor) fire(i int) {
	m.mu.Lock()
	if m.ended {
		m.mu.Unlock()
		return
	}
	m.busy.Add(1)
	m.mu.Unlock()
	defer m.busy.Done()
	c := &m.checks[i]
	if c.Gate != nil {
		select {
		case c.Gate <- Permit{}:
			defer func() { <-c.Gate }()
		case <-m.ctx.Done():
			return
		}
	}
	age := m.now().Sub(m.started)
	ctx, cancel := context.WithTimeout(m.ctx, c.Timeout.Std())
	defer cancel()
	m.note(i, c.Probe(ctx), age)
}

func (m *Monitor) note(i int, err error, age time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return
	}
	t := &m.tracks[i]
	t.note(err, age)
	if r := sum(m.checks, m.tracks); r != m.last {
		m.last = r
		select { // the newest result replaces one that nobody took
		case <-m.results:
		default:
		}
		m.results <- r
	}
	m.timers[i].Reset(jitter(t.delay(m.now().Sub(m.started))))
}

// jitter shortens or lengthens d by at most a twentieth, so that checks of instances started together drift apart.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)/10*float64(d))
}
