package agent

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// inventory is what a driver held when the agent started. A driver may not answer for a while then, such as when its engine is
// still starting too; its instances wait, others do not.
type inventory struct {
	driver runtime.Driver // nil when the node has none
	ready  chan struct{}  // closed once the driver has answered

	mu    sync.Mutex
	tasks map[model.InstanceID]map[string]runtime.State // by container; those that no pump has taken yet
}

func newInventory(d runtime.Driver) *inventory {
	return &inventory{driver: d, ready: make(chan struct{}), tasks: map[model.InstanceID]map[string]runtime.State{}}
}

// run asks the driver until it answers, and then removes the tasks of instances that are not spared.
func (v *inventory) run(ctx context.Context, spares func(model.InstanceID) bool, log *slog.Logger) {
	if v.driver == nil {
		close(v.ready)
		return
	}
	states, ok := v.list(ctx, log)
	if !ok {
		return
	}
	var orphans []runtime.TaskID
	v.mu.Lock()
	for _, s := range states {
		id, name, _ := strings.Cut(string(s.ID), ".")
		if !spares(model.InstanceID(id)) {
			orphans = append(orphans, s.ID)
			continue
		}
		byName := v.tasks[model.InstanceID(id)]
		if byName == nil {
			byName = map[string]runtime.State{}
			v.tasks[model.InstanceID(id)] = byName
		}
		byName[name] = s
	}
	v.mu.Unlock()
	close(v.ready)
	for _, id := range orphans {
		log.Info("remove a task that no record knows", "task", id)
		v.remove(ctx, id, log)
	}
}

// remove removes an orphan, however long that takes.
func (v *inventory) remove(ctx context.Context, id runtime.TaskID, log *slog.Logger) {
	for {
		err := v.driver.Remove(ctx, id)
		if err == nil || ctx.Err() != nil {
			return
		}
		log.Warn("a task that no record knows cannot be removed; trying again", "task", id, "error", err)
		if !sleep(ctx, 5*time.Second) {
			return
		}
	}
}

func (v *inventory) list(ctx context.Context, log *slog.Logger) ([]runtime.State, bool) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		states, err := v.driver.List(ctx)
		if err == nil {
			return states, true
		}
		if ctx.Err() == nil {
			log.Debug("the driver does not tell its tasks yet", "error", err)
		}
		if !sleep(ctx, wait) {
			return nil, false
		}
	}
}

// take waits for the driver and returns what it held of an instance, to the first who asks.
func (v *inventory) take(ctx context.Context, id model.InstanceID) (map[string]runtime.State, error) {
	select {
	case <-v.ready:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	tasks := v.tasks[id]
	delete(v.tasks, id)
	return tasks, nil
}
