package scale

import (
	"context"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// Census follows the records and knows which instances run. It belongs to one goroutine.
type Census struct {
	Running map[model.InstanceID]struct{} // wanted, running and ready
	Started int                           // how many ever were added to Running

	watch *state.Watch
}

// NewCensus begins to follow db.
func NewCensus(db *state.DB) *Census {
	view, watch := db.Watch()
	c := &Census{Running: map[model.InstanceID]struct{}{}, watch: watch}
	c.recount(view)
	return c
}

// Close ends the following.
func (c *Census) Close() { c.watch.Close() }

// Next waits for a change and takes it in.
func (c *Census) Next(ctx context.Context) error {
	view, changes, err := c.watch.Next(ctx)
	if err != nil {
		return err
	}
	if changes.Full {
		c.recount(view)
		return nil
	}
	for id := range changes.Instances {
		c.set(id, view.Instance(id))
	}
	return nil
}

// Await returns once n instances run.
func (c *Census) Await(ctx context.Context, n int) error {
	for len(c.Running) != n {
		if err := c.Next(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (c *Census) recount(v state.View) {
	for id := range c.Running {
		if v.Instance(id) == nil {
			delete(c.Running, id)
		}
	}
	for i := range v.Instances() {
		c.set(i.ID, i)
	}
}

func (c *Census) set(id model.InstanceID, i *model.Instance) {
	_, was := c.Running[id]
	is := false
	if i != nil {
		_, is = i.HealthySince()
	}
	switch {
	case is && !was:
		c.Running[id] = struct{}{}
		c.Started++
	case !is && was:
		delete(c.Running, id)
	}
}
