// Package crowd puts thousands of simulated machines on a real cluster and measures it: servers are processes of their own, as
// `gantry server` composes them, each with its etcd member on a real disk. A machine is the real agent: it joins with a token
// and keeps an identity of its own, connects with mutual TLS by agent/wire/rpc and keeps its records on disk. Only what runs its
// instances is simulated, runtime/sim. All machines share one process.
//
// servers.go are the servers, Crowd the machines, adopt.go one agent as a process of its own, and rows.go the list of
// everything that is measured. Command bench prints it.
package crowd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/agent"
	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/agent/wire/rpc"
	"github.com/gantry-os/gantry/identity/pki"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime/sim"
)

// joinsAtOnce is how many machines join at the same time.
const joinsAtOnce = 16

// Crowd is the machines.
type Crowd struct {
	dir    string
	size   model.Resources // of each machine
	logger *slog.Logger

	ctx    context.Context
	cancel context.CancelCauseFunc
	group  *errgroup.Group

	nodes []*node

	mu      sync.Mutex
	served  int           // machines that are served now
	changed chan struct{} // closed, and made anew, when served changes
	ended   int           // sessions that ended after they were served
	begun   int           // sessions that were tried
}

var errEnd = errors.New("the simulation is over")

// NewCrowd returns a crowd without machines, which keep their records below dir.
func NewCrowd(dir string, size model.Resources, logger *slog.Logger) *Crowd {
	c := &Crowd{dir: dir, size: size, logger: logger, changed: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(context.Background())
	c.cancel = cancel
	c.group, c.ctx = errgroup.WithContext(ctx)
	return c
}

// Close ends all machines, and what they run.
func (c *Crowd) Close() error {
	c.cancel(errEnd)
	if err := c.group.Wait(); !errors.Is(err, errEnd) && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Grow has n more machines join and connect.
func (c *Crowd) Grow(ctx context.Context, servers *Servers, n int) error {
	text, err := servers.Token(ctx, model.AgentMachine, 0)
	if err != nil {
		return err
	}
	token, err := pki.ParseToken(text)
	if err != nil {
		return err
	}
	at := servers.running()[0].Addr // it made the token, so it knows it
	joining, ctx := errgroup.WithContext(ctx)
	joining.SetLimit(joinsAtOnce)
	for range n {
		x := newNode(c, len(c.nodes))
		c.nodes = append(c.nodes, x)
		joining.Go(func() error {
			if err := x.join(ctx, at, token); err != nil {
				return fmt.Errorf("%s: %w", x.id, err)
			}
			c.group.Go(func() error { return x.run(c.ctx) })
			return nil
		})
	}
	return joining.Wait()
}

// Served returns how many machines are served now: each is connected, has all its assignments from the server that leads, and
// what it said of them is durable.
func (c *Crowd) Served() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.served
}

// Ended returns how many sessions have ended after they were served.
func (c *Crowd) Ended() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// Begun returns how often machines have tried to open a session.
func (c *Crowd) Begun() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.begun
}

// begin counts a session that is tried.
func (c *Crowd) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun++
}

// note takes in that one machine more is served, or one less.
func (c *Crowd) note(by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.served += by
	if by < 0 {
		c.ended -= by
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// Await returns once at least n machines are served.
func (c *Crowd) Await(ctx context.Context, n int) error {
	return c.await(ctx, func() bool { return c.served >= n })
}

// AwaitAll returns once all machines are served.
func (c *Crowd) AwaitAll(ctx context.Context) error { return c.Await(ctx, len(c.nodes)) }

// AwaitEnded returns once at least n sessions have ended after they were served.
func (c *Crowd) AwaitEnded(ctx context.Context, n int) error {
	return c.await(ctx, func() bool { return c.ended >= n })
}

func (c *Crowd) await(ctx context.Context, done func() bool) error {
	for {
		c.mu.Lock()
		ok, n, changed := done(), c.served, c.changed
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		case <-ctx.Done():
			return fmt.Errorf("%d of %d machines are served: %w", n, len(c.nodes), context.Cause(ctx))
		}
	}
}

// node is one machine.
type node struct {
	crowd   *Crowd
	number  int
	id      model.NodeID
	dir     string
	driver  *sim.Driver
	machine *pki.Machine
}

func newNode(c *Crowd, n int) *node {
	id := fmt.Sprintf("node-%05d", n)
	return &node{crowd: c, number: n, id: model.NodeID(id), dir: filepath.Join(c.dir, id), driver: sim.New()}
}

// join gets an identity by a server.
func (n *node) join(ctx context.Context, addr string, token pki.Token) (err error) {
	n.machine, err = pki.Join(ctx, pki.JoinOptions{
		Addr: addr, Token: token, Role: model.AgentMachine, Name: string(n.id), Dir: filepath.Join(n.dir, "identity"),
		MachineOptions: pki.MachineOptions{Logger: n.crowd.logger},
	})
	return err
}

// run does what `gantry agent` does.
func (n *node) run(ctx context.Context) error {
	a, err := agent.New(agent.Config{
		Dir: filepath.Join(n.dir, "agent"), Node: n.what(), OCI: n.driver, Logger: n.crowd.logger,
		PortFree: func(uint16) bool { return true }, // all machines of the crowd are this one
	})
	if err != nil {
		return fmt.Errorf("%s: %w", n.id, err)
	}
	if err := a.Start(ctx); err != nil {
		return fmt.Errorf("%s: %w", n.id, err)
	}
	defer a.Wait()
	var seeds []string
	for _, addr := range n.machine.Servers() {
		at, err := agentsOf(addr)
		if err != nil {
			return fmt.Errorf("%s: %w", n.id, err)
		}
		seeds = append(seeds, at)
	}
	dialer, err := rpc.NewDialer(rpc.DialerConfig{Servers: seeds, TLS: n.machine.ClientTLS(), Gantry: "crowd", Logger: n.crowd.logger})
	if err != nil {
		return fmt.Errorf("%s: %w", n.id, err)
	}
	door := pki.NewClient(n.machine, nil)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.machine.Run(ctx, door) })
	group.Go(func() error { return dialer.Run(ctx, &watched{a, n.crowd}) })
	return group.Wait()
}

// agentsOf returns where a server takes agents: on the port after that of its API.
func agentsOf(api string) (string, error) {
	a, err := netip.ParseAddrPort(api)
	return netip.AddrPortFrom(a.Addr(), a.Port()+1).String(), err
}

// what the machine has.
func (n *node) what() model.Node {
	number := n.number
	return model.Node{
		ID: n.id, Name: "host-" + string(n.id), Addr: fmt.Sprintf("10.%d.%d.%d", number>>16, number>>8&255, number&255), Capacity: n.crowd.size,
		Ports: model.PortRange{First: 20000, Last: 29999}, OCI: model.Ability{OK: true}, Isolated: model.Ability{OK: true},
		Region: "region-1", Zone: fmt.Sprintf("zone-%d", number%3), Version: "crowd",
		Attributes: map[string]string{"os": "linux", "arch": "amd64", "rack": fmt.Sprintf("rack-%d", number/40)},
	}
}

// watched is an agent whose sessions the crowd counts.
type watched struct {
	*agent.Agent
	crowd *Crowd
}

// Session implements rpc.Agent.
func (w *watched) Session(ctx context.Context, link wire.Link) error {
	w.crowd.begin()
	l := &watchedLink{Link: link, served: func() { w.crowd.note(1) }}
	err := w.Agent.Session(ctx, l)
	if l.done {
		w.crowd.note(-1)
	}
	return err
}

// watchedLink notices when a session has come so far that its machine is served.
type watchedLink struct {
	wire.Link
	served func()

	mu    sync.Mutex
	full  bool // the server has sent all assignments
	waits int  // how many there are to speak of
	told  int  // reports that the server has
	done  bool // served was called
}

// Recv implements wire.Link.
func (l *watchedLink) Recv(ctx context.Context) (wire.Down, error) {
	d, err := l.Link.Recv(ctx)
	if err == nil && d.Full {
		l.note(func() {
			if l.full {
				return // it is told all anew, and has spoken of that
			}
			l.full = true
			for _, a := range d.Set {
				if !a.Over {
					l.waits++
				}
			}
		})
	}
	return d, err
}

// Send implements wire.Link.
func (l *watchedLink) Send(ctx context.Context, u wire.Up) error {
	err := l.Link.Send(ctx, u)
	if err == nil {
		l.note(func() { l.told += len(u.Reports) })
	}
	return err
}

func (l *watchedLink) note(what func()) {
	l.mu.Lock()
	what()
	now := l.full && l.told >= l.waits && !l.done
	l.done = l.done || now
	l.mu.Unlock()
	if now {
		l.served()
	}
}

// settled returns how many instances the machines run, and what is wrong with them: each is to have been started once.
func (c *Crowd) settled(ctx context.Context) (runs int, err error) {
	var errs []error
	for _, n := range c.nodes {
		states, err := n.driver.List(ctx)
		if err != nil {
			return 0, err
		}
		for _, s := range states {
			if s.Exit == nil {
				runs++
			}
			if times := n.driver.Starts(s.ID); times != 1 || s.Exit != nil {
				errs = append(errs, fmt.Errorf("%s on %s was started %d times, and ended: %v", s.ID, n.id, times, s.Exit))
			}
		}
	}
	return runs, errors.Join(errs...)
}
