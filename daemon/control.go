package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/api"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/fleet"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// ControlConfig is what a Control needs. All of it is required but KeepStopped and Shutdown.
type ControlConfig struct {
	Store       state.Store // the leader's
	Auth        *identity.Authenticator
	Info        client.Info
	KeepStopped model.Duration // of records and logs of instances that are over
	Shutdown    func(client.Shutdown)
	Logger      *slog.Logger
}

// Control is what a server does beside keeping the truth and running instances: the leader's loops, the sessions of nodes,
// and the API.
type Control struct {
	Fleet *fleet.Fleet // takes the sessions of agents

	loops   *loops
	handler http.Handler
}

// NewControl puts the parts together. Nothing happens before Run.
func NewControl(c ControlConfig) (*Control, error) {
	l := newLoops(c.Store, fleet.Loss{}, c.KeepStopped, c.Logger)
	handler, err := newHandler(api.Config{
		Store: c.Store, Auth: c.Auth, Nodes: l.fleet.Node, Info: c.Info, Shutdown: c.Shutdown, Logger: c.Logger.With("part", "api"), Placer: l.places,
	})
	return &Control{Fleet: l.fleet, loops: l, handler: handler}, err
}

// newHandler makes the API with metrics of this process.
func newHandler(c api.Config) (http.Handler, error) {
	meters := prometheus.NewRegistry()
	meters.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	c.Meters, c.Gather = meters, meters
	handler, err := api.New(c)
	if err != nil {
		return nil, fmt.Errorf("make the API: %w", err)
	}
	return handler, nil
}

// Run works, and serves the API on l, until ctx ends or a part fails.
func (c *Control) Run(ctx context.Context, l net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.loops.run(ctx) })
	group.Go(func() error { return serveHTTP(ctx, l, c.handler) })
	return group.Wait()
}
