package scale

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/fleet"
	"github.com/gantry-os/gantry/model"
)

// flush is the least time between the reports of a node, as it is of an agent.
const flush = 20 * time.Millisecond

// Node is a simulated agent: it says of every instance that it is given that it runs, until it is told to stop it or End
// has it end by itself.
type Node struct {
	model.Node

	wake chan struct{} // has an element when there is something to report

	mu      sync.Mutex
	runs    map[model.InstanceID]run // not over
	oldest  []model.InstanceID       // of runs, in order of start; may hold some that are over
	used    model.Resources
	reports map[model.InstanceID]model.Status
	faults  []error
}

// run is an instance that this node runs.
type run struct {
	size  model.Resources
	ports []uint16
	since time.Time
}

func newNode(n int, size model.Resources) *Node {
	return &Node{
		Node: model.Node{
			ID: model.NodeID(fmt.Sprintf("node-%05d", n)), Name: fmt.Sprintf("host-%05d", n),
			Addr: fmt.Sprintf("10.%d.%d.%d", n>>16, n>>8&255, n&255), Capacity: size,
			Ports: model.PortRange{First: 20000, Last: 29999}, OCI: model.Ability{OK: true}, Isolated: model.Ability{OK: true},
			Region: "region-1", Zone: fmt.Sprintf("zone-%d", n%3), Version: "scale",
			Attributes: map[string]string{"os": "linux", "arch": "amd64", "rack": fmt.Sprintf("rack-%d", n/40)},
		},
		wake: make(chan struct{}, 1), runs: map[model.InstanceID]run{}, reports: map[model.InstanceID]model.Status{},
	}
}

// run connects to the fleet and answers it until ctx ends.
func (n *Node) run(ctx context.Context, f *fleet.Fleet) error {
	link := f.Dial(ctx, nil)
	hello := n.Node
	if err := link.Send(ctx, wire.Up{Hello: &hello}); err != nil {
		return n.failed(ctx, "say hello", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for {
			down, err := link.Recv(ctx)
			if err != nil {
				return n.failed(ctx, "receive", err)
			}
			n.apply(down, time.Now())
		}
	})
	group.Go(func() error {
		for {
			select {
			case <-n.wake:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := link.Send(ctx, wire.Up{Reports: n.take()}); err != nil {
				return n.failed(ctx, "report", err)
			}
			select {
			case <-time.After(flush):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	})
	return group.Wait()
}

// failed tells the end that was asked for from a failure.
func (n *Node) failed(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%s: %s: %w", n.ID, what, err)
}

func (n *Node) apply(d wire.Down, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range d.Set {
		_, known := n.runs[a.ID]
		switch {
		case a.Over:
			n.forget(a.ID)
		case a.Desired == model.Halt:
			n.forget(a.ID)
			n.report(a.ID, model.Status{Attempt: 1, Phase: model.PhaseStopped, Since: now, Message: "it was stopped"})
		case !known:
			n.start(a, now)
		}
	}
	for _, id := range d.Drop {
		if _, ok := n.runs[id]; ok {
			n.faults = append(n.faults, fmt.Errorf("%s: %s was forgotten while it runs", n.ID, id))
			n.forget(id)
		}
	}
}

func (n *Node) start(a wire.Assignment, now time.Time) {
	r := run{size: a.Spec.Resources(), ports: a.Ports, since: now}
	for id, other := range n.runs {
		if len(r.ports) > 0 && len(other.ports) > 0 && r.ports[0] == other.ports[0] {
			n.faults = append(n.faults, fmt.Errorf("%s: %s and %s have port %d", n.ID, id, a.ID, r.ports[0]))
		}
	}
	n.runs[a.ID] = r
	n.oldest = append(n.oldest, a.ID)
	if n.used = n.used.Add(r.size); n.used.CPUs > n.Capacity.CPUs || n.used.Memory > n.Capacity.Memory {
		n.faults = append(n.faults, fmt.Errorf("%s: has %v and %v taken of %v and %v", n.ID, n.used.CPUs, n.used.Memory, n.Capacity.CPUs, n.Capacity.Memory))
	}
	n.report(a.ID, model.Status{
		Attempt: 1, Phase: model.PhaseRunning, Since: now, Started: now, Ready: true,
		Tasks: []model.TaskStatus{{Name: model.DefaultContainer, PID: 10_000 + len(n.runs)}},
	})
}

func (n *Node) forget(id model.InstanceID) {
	if r, ok := n.runs[id]; ok {
		n.used = n.used.Sub(r.size)
		delete(n.runs, id)
	}
}

func (n *Node) report(id model.InstanceID, s model.Status) {
	n.reports[id] = s
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// take returns what is to be reported, and forgets it.
func (n *Node) take() []wire.Report {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]wire.Report, 0, len(n.reports))
	for id, s := range n.reports {
		out = append(out, wire.Report{ID: id, Status: s})
	}
	clear(n.reports)
	return out
}

// End has the instance that runs longest end by itself for good, if it has run for age, and reports whether one did.
func (n *Node) End(age time.Duration, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(n.oldest) > 0 {
		id := n.oldest[0]
		r, ok := n.runs[id]
		if ok && now.Sub(r.since) < age {
			return false
		}
		n.oldest = n.oldest[1:]
		if !ok {
			continue
		}
		n.forget(id)
		n.report(id, model.Status{
			Attempt: 1, Phase: model.PhaseStopped, Since: now, Started: r.since, Message: "main exited with code 1",
			Tasks: []model.TaskStatus{{Name: model.DefaultContainer, Exit: &model.Exit{Code: 1, At: now}}},
		})
		return true
	}
	return false
}

// Running returns the ids of what the node runs.
func (n *Node) Running() []model.InstanceID {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]model.InstanceID, 0, len(n.runs))
	for id := range n.runs {
		out = append(out, id)
	}
	return out
}

// Faults returns what the node saw that must never happen.
func (n *Node) Faults() []error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]error(nil), n.faults...)
}
