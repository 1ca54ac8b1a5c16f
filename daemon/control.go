package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/api"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/fleet"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/orchestrator/app"
	"github.com/gantry-os/gantry/scheduler"
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

	apps    *app.Loop
	places  *scheduler.Loop
	handler http.Handler
}

// NewControl puts the parts together. Nothing happens before Run.
func NewControl(c ControlConfig) (*Control, error) {
	part := func(name string) *slog.Logger { return c.Logger.With("part", name) }
	fl := fleet.New(c.Store, fleet.Config{Now: time.Now, Logger: part("fleet")})
	places := scheduler.New(c.Store, scheduler.Config{Now: time.Now, Logger: part("scheduler")})
	meters := prometheus.NewRegistry()
	meters.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	handler, err := api.New(api.Config{
		Store: c.Store, Auth: c.Auth, Nodes: fl.Node, Info: c.Info, Shutdown: c.Shutdown, Logger: part("api"),
		Meters: meters, Gather: meters, Placer: places,
	})
	if err != nil {
		return nil, fmt.Errorf("make the API: %w", err)
	}
	return &Control{
		Fleet:   fl,
		apps:    app.New(c.Store, app.Config{Logger: part("orchestrator"), KeepStopped: c.KeepStopped.Std()}),
		places:  places,
		handler: handler,
	}, nil
}

// Run works, and serves the API on l, until ctx ends or a part fails.
func (c *Control) Run(ctx context.Context, l net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.Fleet.Run(ctx) })
	group.Go(func() error { return c.apps.Run(ctx) })
	group.Go(func() error { return c.places.Run(ctx) })
	group.Go(func() error { return serveHTTP(ctx, l, c.handler) })
	return group.Wait()
}
