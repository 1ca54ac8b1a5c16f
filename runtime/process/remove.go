package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
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
	if t != nil && !d.cfg.Isolate && t.exit.Lost != "" {
		if err := sweep(mark(id, t.attempt)); err != nil {
			return fmt.Errorf("remove task %s: %w", id, err)
		}
	}
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
	if _, err := os.Lstat(d.aside(id)); err == nil {
		if err := d.bury(ctx, id); err != nil {
			return err
		}
	}
	if err := os.Rename(d.dir(id), d.aside(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear away: %w", err)
	}
	return d.bury(ctx, id)
}

// aside returns where the directory of a task is put that is cleared away: what is there was not finished with.
func (d *Driver) aside(id runtime.TaskID) string {
	return filepath.Join(d.cfg.StateDir, gone+string(id))
}

// bury frees what a task holds whose directory has been put aside, by this process or one that was killed then.
func (d *Driver) bury(ctx context.Context, id runtime.TaskID) error {
	// A shim that an earlier agent had forked may have locked the directory at the last moment. One that comes later sees
	// that it is gone.
	shim, err := holder(filepath.Join(d.aside(id), "lock"))
	if err != nil {
		return err
	}
	if shim != nil {
		if err := discard(shim); err != nil {
			return err
		}
	}
	if g := d.group(id); g != nil {
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(d.aside(id)); err != nil {
		return fmt.Errorf("clear away: %w", err)
	}
	return nil
}

// mark returns an environment variable by which programs without isolation are known should their shim be killed: what
// they started is then nobody's child.
func mark(id runtime.TaskID, attempt uint32) string {
	return fmt.Sprintf("GANTRY_TASK=%s/%d", id, attempt)
}

// sweep kills all processes that were started with a mark.
func sweep(mark string) error {
	bearing := func(pid string) bool {
		env, err := os.ReadFile("/proc/" + pid + "/environ")
		return err == nil && bytes.Contains(append([]byte{0}, env...), []byte("\x00"+mark+"\x00"))
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("look for processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !bearing(e.Name()) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has just ended
		}
		if bearing(e.Name()) { // so the pidfd is of this process
			err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		_ = unix.Close(fd)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}
