package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/runtime"
)

// Remove implements runtime.Driver.
func (d *Driver) Remove(ctx context.Context, id runtime.TaskID) error {
	if checkID(id) != nil {
		return nil
	}
	t, err := d.find(id)
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return fmt.Errorf("remove task %s: %w", id, err)
	}
	if t != nil {
		if err := t.end(ctx); err != nil {
			return fmt.Errorf("remove task %s: %w", id, err)
		}
	}
	d.mu.Lock()
	if d.busy[id] {
		d.mu.Unlock()
		return fmt.Errorf("remove task %s: it is being started or removed", id)
	}
	d.busy[id] = true
	d.mu.Unlock()
	defer d.finish(id)
	if err := d.clear(ctx, id); err != nil {
		return fmt.Errorf("remove task %s: %w", id, err)
	}
	d.mu.Lock()
	delete(d.tasks, id)
	d.mu.Unlock()
	return nil
}

// patience is how long a shim may take to write down the end of a task that is removed, before it is killed too.
const patience = 3 * time.Second

// end makes the task end. First only its program is killed, so that its shim can still write out what it said.
func (t *task) end(ctx context.Context) error {
	if t.ended() {
		return nil
	}
	if err := t.forward(int(unix.SIGKILL)); err != nil {
		return err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
	case <-timer.C:
	}
	if err := t.shim.kill(); err != nil {
		return err
	}
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// clear frees all that a task holds which does not run, or has only begun to. Logs and sandbox stay.
func (d *Driver) clear(ctx context.Context, id runtime.TaskID) error {
	dir := d.dir(id)
	aside := filepath.Join(d.cfg.StateDir, fmt.Sprintf("%s%s", gone, id))
	if err := os.RemoveAll(aside); err != nil {
		return fmt.Errorf("clear away: %w", err)
	}
	err := os.Rename(dir, aside)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear away: %w", err)
	}
	if err == nil {
		// A shim that an earlier agent had forked may have locked the directory at the last moment. One that comes later
		// sees that it is gone.
		if shim, err := holder(filepath.Join(aside, "lock")); err != nil {
			return err
		} else if shim != nil {
			if err := discard(shim); err != nil {
				return err
			}
		}
	}
	if g := d.group(id); g != nil {
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(aside); err != nil {
		return fmt.Errorf("clear away: %w", err)
	}
	return nil
}
