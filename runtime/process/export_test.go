package process

import (
	"context"
	"os"
	"path/filepath"

	"github.com/gantry-os/gantry/runtime"
)

// StartIn starts a task as on a machine with cgroup version 2, in the group at dir.
func (d *Driver) StartIn(ctx context.Context, spec runtime.Task, dir string) (runtime.State, error) {
	c, err := d.configure(spec)
	if err != nil {
		return runtime.State{}, err
	}
	c.tasks, c.cgroup, c.oom, c.peak = nil, dir, "", ""
	if err := os.Mkdir(d.dir(spec.ID), 0o700); err != nil {
		return runtime.State{}, err
	}
	if err := os.WriteFile(filepath.Join(d.dir(spec.ID), "config"), c.encode(), 0o600); err != nil {
		return runtime.State{}, err
	}
	t := &task{id: spec.ID, attempt: spec.Attempt, boot: d.boot, done: make(chan struct{})}
	if err := d.launch(ctx, t, c); err != nil {
		return runtime.State{}, err
	}
	d.hold(t)
	return t.state(), nil
}
