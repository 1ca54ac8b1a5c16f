package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gantry-os/gantry/test/machines"
)

// fault is something that happens. do makes it happen and says to whom, and how it is undone, nil when nothing is to be.
type fault struct {
	name     string
	weight   int
	least    time.Duration // how long it lasts
	most     time.Duration
	atLeader bool // it takes the leader away: the time until writes are taken again is measured
	do       func(context.Context, *run, *rand.Rand) (target string, undo func() error, err error)
}

// faults are all there are.
var faults = []fault{
	{"kill-leader", 4, 1 * time.Second, 6 * time.Second, true, killLeader},
	{"kill-server", 2, 1 * time.Second, 6 * time.Second, false, killServer},
	{"kill-agent", 3, 0, 4 * time.Second, false, killAgent},
	{"kill-engine", 2, 1 * time.Second, 2 * time.Second, false, killEngine},
	{"kill-several", 2, 1 * time.Second, 5 * time.Second, false, killSeveral},
	{"kill-all-servers", 1, 1 * time.Second, 3 * time.Second, false, killAllServers},
	{"pause-leader", 4, 2 * time.Second, 10 * time.Second, true, pauseLeader},
	{"pause-agent", 1, 2 * time.Second, 8 * time.Second, false, pauseAgent},
	{"isolate-leader", 4, 3 * time.Second, 12 * time.Second, true, isolateLeader},
	{"cut-agent", 2, 2 * time.Second, 25 * time.Second, false, cutAgent},
	{"one-way", 2, 3 * time.Second, 10 * time.Second, false, oneWay},
	{"halves", 2, 3 * time.Second, 12 * time.Second, false, halves},
	{"full-disk-server", 2, 3 * time.Second, 8 * time.Second, false, func(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
		return fullDisk(pick(rnd, r.servers))
	}},
	{"full-disk-agent", 1, 3 * time.Second, 8 * time.Second, false, func(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
		return fullDisk(pick(rnd, r.agents))
	}},
	{"clock-jump", 3, 2 * time.Second, 8 * time.Second, false, clockJump},
	{"power-off-agent", 2, 1 * time.Second, 10 * time.Second, false, powerOffAgent},
	{"power-off-server", 2, 1 * time.Second, 10 * time.Second, false, powerOffServer},
	{"flood", 1, 3 * time.Second, 8 * time.Second, false, flood},
	{"rolling-upgrade", 1, 0, 0, false, rollingUpgrade},
}

func faultNames() string {
	var names []string
	for _, f := range faults {
		names = append(names, f.name)
	}
	return strings.Join(names, ", ")
}

func findFault(name string) *fault {
	for i := range faults {
		if faults[i].name == name {
			return &faults[i]
		}
	}
	return nil
}

func pick[T any](rnd *rand.Rand, list []T) T { return list[rnd.IntN(len(list))] }

// choose draws a fault, the likely ones more often.
func (r *run) choose() *fault {
	if r.Only != "" {
		return findFault(r.Only)
	}
	sum := 0
	for _, f := range faults {
		sum += f.weight
	}
	n := r.rnd.IntN(sum)
	for i := range faults {
		if n -= faults[i].weight; n < 0 {
			return &faults[i]
		}
	}
	return nil
}

// inject lets faults happen, one or two at a time, for as long as the run is to take, and looks from time to time whether
// all becomes well without them. A fault that is the only one comes alone, and leaves time to get well: its effect is measured.
func (r *run) inject(ctx context.Context) error {
	end, look, looked := time.Now().Add(r.Duration), time.Now().Add(roundTime), false
	for time.Now().Before(end) {
		rest := time.Duration(r.rnd.IntN(2000)) * time.Millisecond
		if r.Only != "" {
			rest += 3 * time.Second
		}
		if err := r.happen(ctx, r.Only == "" && r.rnd.IntN(3) == 0, false); err != nil {
			return err
		}
		if !pause(ctx, rest) {
			return ctx.Err()
		}
		if looked = time.Now().After(look); looked {
			if err := r.calmDown(ctx); err != nil {
				return err
			}
			look = time.Now().Add(roundTime)
		}
	}
	if looked {
		return nil
	}
	return r.calmDown(ctx)
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// happen lets one fault happen, with another in the midst of it or not, or in the midst of another itself, and undoes both.
func (r *run) happen(ctx context.Context, another, within bool) error {
	f := r.choose()
	lasts := f.least + time.Duration(r.rnd.Int64N(int64(f.most-f.least+time.Millisecond)))
	if f.atLeader && r.leader(ctx) == nil {
		return nil // there is none to take away
	}
	target, undo, err := f.do(ctx, r, r.rnd)
	if err != nil || target == "" {
		return err
	}
	r.say("%s %s for %v", f.name, target, lasts.Round(100*time.Millisecond))
	r.mu.Lock()
	r.faults[f.name]++
	if f.atLeader && !another && !within { // else a majority may be out of reach
		r.hits = append(r.hits, hit{f.name, r.now(), []string{target}})
	}
	r.mu.Unlock()
	pause(ctx, lasts/2)
	if another {
		err = r.happen(ctx, false, true)
	}
	pause(ctx, lasts/2)
	if undo != nil {
		err = errors.Join(err, undo())
	}
	return err
}

// killed ends members at once; undone they start again.
func killed(ms ...*member) (string, func() error, error) {
	var errs []error
	var names []string
	for _, m := range ms {
		errs, names = append(errs, m.end(syscall.SIGKILL)), append(names, m.Name)
	}
	return strings.Join(names, "+"), func() error {
		for _, m := range ms {
			m.up()
		}
		return nil
	}, errors.Join(errs...)
}

func killLeader(ctx context.Context, r *run, _ *rand.Rand) (string, func() error, error) {
	if l := r.leader(ctx); l != nil {
		return killed(l)
	}
	return "", nil, nil
}

func killServer(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
	return killed(pick(rnd, r.servers))
}

func killAgent(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
	return killed(pick(rnd, r.agents))
}

func killSeveral(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
	return killed(append(some(rnd, r.servers, 2), some(rnd, r.agents, 1+rnd.IntN(3))...)...)
}

func killAllServers(_ context.Context, r *run, _ *rand.Rand) (string, func() error, error) {
	return killed(r.servers...)
}

// some returns n of a list.
func some(rnd *rand.Rand, list []*member, n int) []*member {
	list = slices.Clone(list)
	rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list[:n]
}

func killEngine(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
	m := pick(rnd, r.agents)
	pid := m.engine()
	if pid == 0 {
		return "", nil, nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return "", nil, err
	}
	return m.Name, nil, nil
}

func pauseLeader(ctx context.Context, r *run, _ *rand.Rand) (string, func() error, error) {
	l := r.leader(ctx)
	if l == nil {
		return "", nil, nil
	}
	return l.Name, func() error { return l.pause(false) }, l.pause(true)
}

func pauseAgent(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
	m := pick(rnd, r.agents)
	return m.Name, func() error { return m.pause(false) }, m.pause(true)
}

// split cuts two groups off from each other. Clients still reach both.
func (r *run) split(a, b []*member) (func() error, error) {
	ma, mb := machinesOf(a), machinesOf(b)
	return func() error { return r.lab.Split(ma, mb, false) }, r.lab.Split(ma, mb, true)
}

func machinesOf(list []*member) []*machines.Machine {
	var out []*machines.Machine
	for _, m := range list {
		out = append(out, m.Machine)
	}
	return out
}

func (r *run) everyone() []*member { return slices.Concat(r.servers, r.agents) }

func without(list []*member, m *member) []*member {
	return slices.DeleteFunc(slices.Clone(list), func(o *member) bool { return o == m })
}

func isolateLeader(ctx context.Context, r *run, _ *rand.Rand) (string, func() error, error) {
	l := r.leader(ctx)
	if l == nil {
		return "", nil, nil
	}
	undo, err := r.split([]*member{l}, without(r.everyone(), l))
	return l.Name, undo, err
}

func cutAgent(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
	m := pick(rnd, r.agents)
	undo, err := r.split([]*member{m}, without(r.everyone(), m))
	return m.Name, undo, err
}

// oneWay lets what one machine sends not arrive at some others, who are heard by it.
func oneWay(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
	from := pick(rnd, r.everyone())
	var errs []error
	var to []*member
	for _, m := range without(r.servers, from) {
		if len(to) == 0 || rnd.IntN(2) == 0 {
			to = append(to, m)
			errs = append(errs, r.lab.Cut(from.Machine, m.Machine, true))
		}
	}
	name := from.Name + " to"
	for _, m := range to {
		name += " " + m.Name
	}
	return name, func() error {
		var errs []error
		for _, m := range to {
			errs = append(errs, r.lab.Cut(from.Machine, m.Machine, false))
		}
		return errors.Join(errs...)
	}, errors.Join(errs...)
}

// halves puts one server and some agents on one side, and the majority with the others on the other.
func halves(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
	a := append(some(rnd, r.servers, 1), some(rnd, r.agents, agentCount/2)...)
	var name []string
	b := r.everyone()
	for _, m := range a {
		b, name = without(b, m), append(name, m.Name)
	}
	undo, err := r.split(a, b)
	return strings.Join(name, "+") + " from the others", undo, err
}

func fullDisk(m *member) (string, func() error, error) {
	m.setSick(true)
	return m.Name, func() error {
		err := m.ClearDisk()
		m.setSick(false)
		m.poke()
		return err
	}, m.FillDisk()
}

func clockJump(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
	m := pick(rnd, r.everyone())
	by := pick(rnd, []time.Duration{-72 * time.Hour, -time.Hour, -30 * time.Second, 30 * time.Second, time.Hour, 72 * time.Hour})
	return m.Name + " by " + by.String(), func() error { return m.SetClock(0) }, m.SetClock(by)
}

func powerOff(r *run, m *member) (string, func() error, error) {
	r.mu.Lock()
	r.powerOff[m.Name] = r.now()
	r.mu.Unlock()
	if err := m.Off(); err != nil {
		return "", nil, err
	}
	return m.Name, func() error {
		if err := m.Boot(); err != nil {
			return err
		}
		m.poke()
		return nil
	}, nil
}

func powerOffAgent(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
	return powerOff(r, pick(rnd, r.agents))
}

func powerOffServer(_ context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
	return powerOff(r, pick(rnd, r.servers))
}

// rollingUpgrade starts every process again, with the other build, one at a time, the leader last of the servers.
func rollingUpgrade(ctx context.Context, r *run, _ *rand.Rand) (string, func() error, error) {
	lead := r.leader(ctx)
	if lead == nil {
		return "", nil, nil
	}
	order := append(without(r.servers, lead), lead)
	for _, m := range append(order, r.agents...) {
		if err := m.end(syscall.SIGTERM); err != nil {
			r.violate("%v", err)
		}
		m.mu.Lock()
		if m.bin == r.Bin {
			m.bin = r.Next
		} else {
			m.bin = r.Bin
		}
		m.mu.Unlock()
		m.up()
		if err := r.eventually(ctx, startTimeout, m.Name+" takes part again", func() error { return r.allReady(ctx) }); err != nil {
			return "", nil, err
		}
	}
	return "of all machines", nil, nil
}
