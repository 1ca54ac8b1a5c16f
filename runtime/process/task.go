package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// task is one task that was started, by this process or an earlier one.
type task struct {
	id      runtime.TaskID
	attempt uint32
	limit   model.Bytes
	boot    string // id of the boot in which it was started
	pid     int
	started time.Time

	shim *handle       // nil when it ended before this process knew it
	done chan struct{} // closed when it has ended
	exit model.Exit    // set before done is closed
}

func (t *task) ended() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

func (t *task) state() runtime.State {
	s := runtime.State{ID: t.id, Attempt: t.attempt, PID: t.pid, Started: t.started}
	if t.ended() {
		e := t.exit
		s.PID, s.Exit = 0, &e
	}
	return s
}

// forward asks the shim to send a signal to its program.
func (t *task) forward(signal int) error {
	if t.shim == nil || t.ended() {
		return nil
	}
	return t.shim.queue(forwardSignal, signal)
}

func (t *task) letGo() {
	if t.shim != nil {
		t.shim.close()
	}
}

// watch waits until the task's shim has ended and notes how the task did.
func (d *Driver) watch(t *task) {
	if err := t.shim.wait(); err != nil {
		return // the driver was closed
	}
	t.exit = d.readExit(t)
	close(t.done)
	t.shim.close()
}

// errLeftover says that a directory holds a task that never was started.
var errLeftover = errors.New("the task was never started")

// adopt makes sense of a task's directory.
func (d *Driver) adopt(id runtime.TaskID) (*task, error) {
	dir := d.dir(id)
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("read task: %w", err)
	}
	c, err := readConfig(filepath.Join(dir, "config"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamaged) {
		return nil, errLeftover // damaged by a crash of the node, so nothing of it can run
	}
	if err != nil {
		return nil, fmt.Errorf("read task %s: %w", id, err)
	}
	t := &task{id: id, attempt: c.attempt, limit: c.limit, boot: c.boot, done: make(chan struct{})}
	if t.shim, err = holder(filepath.Join(dir, "lock")); err != nil {
		return nil, fmt.Errorf("adopt task %s: %w", id, err)
	}
	if err := t.awaitStarted(dir); err != nil {
		t.letGo()
		return nil, err
	}
	if t.shim == nil {
		t.exit = d.readExit(t)
		close(t.done)
	}
	return t, nil
}

// awaitStarted reads when the program was started. A shim that is only about to start it, because the agent was killed at
// that very moment, gets a little time.
func (t *task) awaitStarted(dir string) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		v, err := readValues(filepath.Join(dir, "started"))
		if err == nil {
			t.pid, t.started = int(v["pid"]), time.Unix(0, v["time"])
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) {
			return fmt.Errorf("read task %s: %w", t.id, err)
		}
		if t.shim == nil {
			return errLeftover
		}
		if t.shim.over() || time.Now().After(end) {
			_ = t.shim.kill() // it may have just ended
			if err := t.shim.wait(); err != nil {
				return fmt.Errorf("read task %s: %w", t.id, err)
			}
			return errLeftover
		}
	}
}

// readExit returns how a task ended whose shim is gone.
func (d *Driver) readExit(t *task) model.Exit {
	v, err := readValues(filepath.Join(d.dir(t.id), "exit"))
	if err == nil {
		if v["dropped"] > 0 {
			d.log.Warn("output of a task could not be written to disk", "task", t.id, "bytes", v["dropped"])
		}
		e := model.Exit{Code: int(v["code"]), Signal: int(v["signal"]), At: time.Unix(0, v["time"])}
		if v["oom"] > 0 && e.Code != 0 {
			e.OOM, e.Peak, e.Limit = true, model.Bytes(v["peak"]), t.limit
		}
		return e
	}
	killed := model.Exit{Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL), At: time.Now()}
	if t.boot != d.boot {
		killed = model.Exit{Lost: "the node was restarted", At: time.Now()}
	} else {
		killed.Lost = "its helper process was killed"
	}
	return killed
}
