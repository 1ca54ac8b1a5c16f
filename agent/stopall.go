package agent

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// stopsAtOnce bounds how many instances StopAll ends at the same time; each mostly waits for its programs.
const stopsAtOnce = 256

// StopAll ends every program of every instance, with the instance's signal and grace. It is called after Wait has returned.
// Records stay as they are: the next agent on the same directory finds the programs gone and starts the instances again.
func (a *Agent) StopAll(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(stopsAtOnce)
	for _, p := range a.all() {
		if p.phase() != model.PhaseStopped {
			g.Go(func() error { return p.stopNow(ctx) })
		}
	}
	return g.Wait()
}

// stopNow ends the tasks of an instance whose pump has ended.
func (p *pump) stopNow(ctx context.Context) error {
	spec := p.spec().WithDefaults()
	soft, cancel := context.WithTimeout(ctx, spec.Stop.Grace.Std())
	defer cancel()
	var g errgroup.Group
	for i := range spec.Containers {
		g.Go(func() error { return p.stopTask(ctx, soft, &spec.Containers[i]) })
	}
	return g.Wait()
}

// stopTask signals a task, waits for its end until soft ends, and removes it.
func (p *pump) stopTask(ctx, soft context.Context, c *model.Container) error {
	d, err := p.a.driver(c)
	if err != nil {
		return nil // what no driver runs has nothing to end
	}
	id := runtime.ID(p.id, c.Name)
	if err := d.Signal(soft, id, p.stopSignal(soft, d, id)); err == nil {
		_, _ = d.Wait(soft, id) // it is removed however this ends
	}
	for {
		err := d.Remove(ctx, id)
		if err == nil || errors.Is(err, runtime.ErrNotFound) || !sleep(ctx, time.Second) {
			return err
		}
	}
}
