package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// killPause is how long a task may take to end after SIGKILL before it is removed in whatever state it is.
const killPause = 5 * time.Second

// stop ends an instance that is to stop.
func (p *pump) stop(ctx context.Context) {
	switch p.phase() {
	case model.PhaseAssigned, model.PhaseBackoff: // nothing runs
		if p.removeAll(ctx) {
			p.finish()
		}
	default:
		p.end(ctx, p.reason())
	}
}

// end ends an attempt: what still runs is asked to end, and killed after its grace; then all tasks are removed. What
// follows is the next attempt, or the end of the instance when it is to stop.
func (p *pump) end(ctx context.Context, reason string) {
	p.update(func(r *record) {
		r.Reason = reason
		r.Status.Ready = false
		if len(running(r.Status.Tasks)) == 0 {
			return
		}
		grace := r.Assignment.Spec.WithDefaults().Stop.Grace.Std()
		if r.Kill.IsZero() {
			r.Kill = p.a.cfg.Now().Add(grace)
		}
		r.Status.Phase = model.PhaseStopping
		r.Status.Message = fmt.Sprintf("was asked to end and has %v to do so", grace)
		if reason != "" {
			r.Status.Message = reason + "; stopping"
		}
	})
	p.quench(ctx)
	if ctx.Err() != nil || !p.removeAll(ctx) {
		return
	}
	p.collect()
	if p.halted() {
		p.finish()
	} else {
		p.rest(reason)
	}
}

// finish records the end of the instance.
func (p *pump) finish() {
	_ = p.letVolumesGo() // run tries again
	p.update(func(r *record) {
		r.Status.Phase, r.Status.Ready = model.PhaseStopped, false
		r.Status.Message = "stopped before it was started"
		if r.Status.Attempt > 0 {
			r.Status.Message = "stopped"
		}
		var ends []string
		for _, t := range r.Status.Tasks {
			if t.Exit != nil {
				ends = append(ends, exitSentence(t.Name, t.Exit))
			}
		}
		if len(ends) > 0 {
			r.Status.Message = "stopped: " + strings.Join(ends, ", ")
		}
	})
}

func running(tasks []model.TaskStatus) []string {
	var names []string
	for _, t := range tasks {
		if t.Exit == nil {
			names = append(names, t.Name)
		}
	}
	return names
}

// quench ends all programs that run, first with their signal and then with SIGKILL.
func (p *pump) quench(ctx context.Context) {
	p.mu.Lock()
	kill, grace := p.rec.Kill, p.rec.Assignment.Spec.WithDefaults().Stop.Grace.Std()
	p.mu.Unlock()
	names := running(p.status().Tasks)
	if len(names) == 0 {
		return
	}
	// The clock may have been set back since an earlier agent noted the time.
	soft, cancel := context.WithTimeout(ctx, min(max(0, kill.Sub(p.a.cfg.Now())), grace))
	for _, name := range names {
		p.signal(soft, name, 0)
	}
	p.awaitExits(soft)
	cancel()
	hard, cancel := context.WithTimeout(ctx, killPause)
	defer cancel()
	for _, name := range running(p.status().Tasks) {
		p.signal(hard, name, 9)
	}
	p.awaitExits(hard)
}

// awaitExits returns when every task has ended, or ctx.
func (p *pump) awaitExits(ctx context.Context) {
	for len(running(p.status().Tasks)) > 0 {
		select {
		case e := <-p.exits:
			p.noteExit(e)
		case <-ctx.Done():
			return
		}
	}
}

// signal sends a signal, or for 0 the one the program wants to be stopped with, as long as its driver does not answer and
// ctx lasts. Other errors are left to the removal that follows.
func (p *pump) signal(ctx context.Context, name string, signal int) {
	c := p.container(name)
	if c == nil {
		return
	}
	d, err := p.a.driver(c)
	if err != nil {
		return
	}
	id := runtime.ID(p.id, name)
	for {
		err := p.hand(ctx, func() error {
			if signal == 0 {
				signal = p.stopSignal(ctx, d, id)
			}
			return d.Signal(ctx, id, signal)
		})
		if err == nil || ctx.Err() != nil || errors.Is(err, runtime.ErrNotFound) {
			return
		}
		if !errors.Is(err, runtime.ErrUnavailable) {
			p.log.Warn("a program cannot be signalled; it will be removed", "container", name, "signal", signal, "error", err)
			return
		}
		p.say(unavailable)
		sleep(ctx, retryPause)
	}
}

// stopSignal returns the spec's signal, else the image's, else SIGTERM.
func (p *pump) stopSignal(ctx context.Context, d runtime.Driver, id runtime.TaskID) int {
	if st := p.spec().Stop; st != nil {
		if n, ok := model.SignalNumber(st.Signal); ok {
			return n
		}
	}
	if s, ok := d.(runtime.StopSignaler); ok {
		if n, err := s.StopSignal(ctx, id); err == nil && n > 0 {
			return n
		}
	}
	return 15
}

// hand runs a call of a driver when its turn comes.
func (p *pump) hand(ctx context.Context, call func() error) error {
	if err := enter(ctx, p.a.hands); err != nil {
		return err
	}
	defer leave(p.a.hands)
	return call()
}

func (p *pump) container(name string) *model.Container {
	spec := p.spec()
	i := slices.IndexFunc(spec.Containers, func(c model.Container) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &spec.Containers[i]
}

// touch notes that a driver may hold a task of a container from now on.
func (p *pump) touch(name string) {
	if p.touched == nil {
		p.touched = map[string]bool{}
	}
	p.touched[name] = true
}

// removeAll removes every task of the instance that a driver may hold. It returns false when the agent ends before.
func (p *pump) removeAll(ctx context.Context) bool {
	for _, name := range slices.Sorted(maps.Keys(p.touched)) {
		if !p.remove(ctx, name) {
			return false
		}
	}
	return true
}

// remove removes one task, however long that takes.
func (p *pump) remove(ctx context.Context, name string) bool {
	for {
		err := p.hand(ctx, func() error { return p.removeOnce(ctx, name) })
		switch {
		case err == nil, errors.Is(err, runtime.ErrNotFound):
			delete(p.touched, name)
			return true
		case ctx.Err() != nil:
			return false
		case errors.Is(err, runtime.ErrUnavailable):
			p.say(unavailable)
		default:
			p.say(fmt.Sprintf("%s cannot be removed: %v; trying again", name, err))
		}
		if !sleep(ctx, retryPause) {
			return false
		}
	}
}

// removeOnce asks the container's driver, or both when the record of the container was lost.
func (p *pump) removeOnce(ctx context.Context, name string) error {
	id := runtime.ID(p.id, name)
	if c := p.container(name); c != nil {
		d, err := p.a.driver(c)
		if err != nil {
			return nil // what no driver runs needs no removal
		}
		return d.Remove(ctx, id)
	}
	var errs []error
	for _, v := range []*inventory{p.a.oci, p.a.process} {
		if v.driver != nil {
			errs = append(errs, v.driver.Remove(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// collect waits shortly for ends that came with the removal, and calls the rest lost.
func (p *pump) collect() {
	if len(running(p.status().Tasks)) > 0 {
		ctx, cancel := context.WithTimeout(p.a.ctx, time.Second)
		p.awaitExits(ctx)
		cancel()
	}
	p.endWatches()
	for _, name := range running(p.status().Tasks) {
		p.noteExit(taskExit{name, model.Exit{Lost: "it was removed before its end was known", At: p.a.cfg.Now()}})
	}
}

// sweep removes tasks of an instance that is over, which an earlier agent had no time to.
func (p *pump) sweep(ctx context.Context) {
	found, err := p.take(ctx)
	if err != nil {
		return
	}
	for name := range found {
		p.touch(name)
	}
	p.removeAll(ctx)
}

// exitSentence says how a program ended.
func exitSentence(name string, e *model.Exit) string {
	switch {
	case e.Lost != "":
		return fmt.Sprintf("%s was lost: %s", name, e.Lost)
	case e.OOM:
		s := name + " was killed at its memory limit"
		if e.Limit > 0 {
			s += fmt.Sprintf(": limit %s, peak %s", limitText(e.Limit), limitText(e.Peak))
		}
		return s
	case e.Signal != 0:
		return fmt.Sprintf("%s was ended by signal %d%s", name, e.Signal, signalName(e.Signal))
	}
	return fmt.Sprintf("%s exited with code %d", name, e.Code)
}

// limitText writes whole units exactly, as users write limits, and rounds the rest.
func limitText(b model.Bytes) string {
	if b%model.MiB == 0 {
		return b.String()
	}
	return strings.ReplaceAll(b.Human(), " ", "")
}

func signalName(n int) string {
	names := map[int]string{1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM"}
	if s := names[n]; s != "" {
		return " (" + s + ")"
	}
	return ""
}

// sentence puts an error into the words of a status.
func sentence(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
