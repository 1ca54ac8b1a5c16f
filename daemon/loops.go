package daemon

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/fleet"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/orchestrator/app"
	"github.com/gantry-os/gantry/scheduler"
	"github.com/gantry-os/gantry/state"
)

// loops is what only the leader runs. They live as long as one term.
type loops struct {
	fleet  *fleet.Fleet
	apps   *app.Loop
	places *scheduler.Loop
}

func newLoops(leader state.Store, loss fleet.Loss, keepStopped model.Duration, logger *slog.Logger) *loops {
	part := func(name string) *slog.Logger { return logger.With("part", name) }
	return &loops{
		fleet:  fleet.New(leader, fleet.Config{Now: time.Now, Logger: part("fleet"), Loss: loss}),
		apps:   app.New(leader, app.Config{Logger: part("orchestrator"), KeepStopped: keepStopped.Std()}),
		places: scheduler.New(leader, scheduler.Config{Now: time.Now, Logger: part("scheduler")}),
	}
}

// run works until ctx ends, this server leads no longer, or a loop fails.
func (l *loops) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.fleet.Run(ctx) })
	group.Go(func() error { return l.apps.Run(ctx) })
	group.Go(func() error { return l.places.Run(ctx) })
	return group.Wait()
}
