// Package scale runs the whole control plane of a server in one process, with thousands of simulated nodes, and measures
// it: the API behind a real HTTP server with token authentication, etcd on a real disk with every sync, and the fleet, the
// orchestrator and the scheduler as a server composes them. Nodes speak agent/wire through the fleet as agents do; what
// they run is only said to run.
//
// Cluster is one such server and its nodes, node.go one node, census.go how the records are followed, and rows.go the list
// of everything that is measured. Command bench prints it.
package scale

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/daemon"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state/etcd"
)

// Config says what to simulate.
type Config struct {
	Dir    string // data directory of the store, empty and on a real disk
	Nodes  int
	Size   model.Resources // of each node
	Logger *slog.Logger
}

// Cluster is a running control plane with its nodes.
type Cluster struct {
	Client *client.Client
	Token  identity.Token
	Store  *etcd.Store
	Nodes  []*Node

	cancel context.CancelFunc
	group  *errgroup.Group
}

var errEnd = errors.New("the simulation is over")

// Start opens a store, runs a control plane on it, and returns once all nodes are connected.
func Start(ctx context.Context, c Config) (_ *Cluster, err error) {
	token, err := identity.NewToken(rand.Reader)
	if err != nil {
		return nil, err
	}
	store, err := etcd.Open(ctx, etcd.Config{Dir: c.Dir, Logger: c.Logger.With("part", "etcd")})
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	running, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	group, running := errgroup.WithContext(running)
	cl := &Cluster{Token: token, Store: store, cancel: func() { cancel(errEnd) }, group: group}
	defer func() {
		if err != nil {
			err = errors.Join(err, cl.Close())
		}
	}()
	leader, err := store.Lead(ctx, "scale")
	if err != nil {
		return nil, err
	}
	control, err := daemon.NewControl(daemon.ControlConfig{
		Store: leader, Auth: identity.WithToken(token), KeepStopped: daemon.DefaultOptions().KeepStopped, Logger: c.Logger,
		Info: client.Info{Version: daemon.Version, Go: runtime.Version(), Started: time.Now()},
	})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	group.Go(func() error { return store.Run(running) })
	group.Go(func() error { return control.Run(running, listener) })
	cl.Client = client.New(listener.Addr().String(), string(token))
	for n := range c.Nodes {
		node := newNode(n, c.Size)
		cl.Nodes = append(cl.Nodes, node)
		group.Go(func() error { return node.run(running, control.Fleet) })
	}
	for _, n := range cl.Nodes {
		if err := control.Fleet.WaitNode(ctx, n.ID); err != nil {
			return nil, fmt.Errorf("wait for %s: %w", n.ID, err)
		}
	}
	return cl, nil
}

// Close ends everything.
func (c *Cluster) Close() error {
	c.cancel()
	err := c.group.Wait()
	if errors.Is(err, errEnd) {
		err = nil
	}
	return errors.Join(err, c.Store.Close())
}

// Faults returns what nodes saw that must never happen.
func (c *Cluster) Faults() []error {
	var faults []error
	for _, n := range c.Nodes {
		faults = append(faults, n.Faults()...)
	}
	return faults
}
