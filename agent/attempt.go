package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gantry-os/gantry/agent/health"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// adopt finds out what of the instance runs already. It changes the phase only where the drivers know better than the
// record.
func (p *pump) adopt(ctx context.Context) {
	found, err := p.take(ctx)
	if err != nil {
		return // the agent ends
	}
	st := p.status()
	attempt, phase := st.Attempt, st.Phase
	for _, s := range found { // a record that was lost is behind its tasks
		attempt = max(attempt, s.Attempt)
	}
	early := phase == model.PhaseAssigned || phase == model.PhasePreparing
	if attempt > st.Attempt || early && hasAttempt(found, attempt) {
		phase = model.PhaseStarting
	}
	p.adopted = phase != model.PhaseAssigned
	for name, s := range found {
		p.touch(name)
		if s.Attempt != attempt || phase == model.PhaseBackoff {
			if !p.remove(ctx, name) {
				return
			}
			delete(found, name)
		}
	}
	if attempt != st.Attempt {
		p.update(func(r *record) { r.Status = model.Status{Attempt: attempt, Phase: phase} })
	} else if phase != st.Phase {
		p.update(func(r *record) { r.Status.Phase = phase })
	}
	p.adoptTasks(found)
}

func hasAttempt(found map[string]runtime.State, attempt uint32) bool {
	for _, s := range found {
		if s.Attempt == attempt {
			return true
		}
	}
	return false
}

// adoptTasks takes over the tasks of the attempt. Those that ran by the record, but which no driver knows any more, are
// lost.
func (p *pump) adoptTasks(found map[string]runtime.State) {
	st := p.status()
	if st.Phase == model.PhaseAssigned || st.Phase == model.PhasePreparing || st.Phase == model.PhaseBackoff {
		return
	}
	spec := p.spec()
	for i := range spec.Containers {
		c := &spec.Containers[i]
		old := slices.IndexFunc(st.Tasks, func(t model.TaskStatus) bool { return t.Name == c.Name })
		s, ok := found[c.Name]
		switch {
		case ok:
			p.noteStart(c.Name, s)
			p.watch(c)
		case st.Phase == model.PhaseRunning, st.Phase == model.PhaseStopping && old >= 0 && st.Tasks[old].Exit == nil:
			p.noteStart(c.Name, s)
			p.noteExit(taskExit{c.Name, model.Exit{Lost: "it was gone when the agent came back", At: p.a.cfg.Now()}})
		}
	}
	if st.Phase == model.PhaseRunning {
		p.settle(found)
	}
}

// settle takes the ends of tasks that happened before the agent came back, so that they are known together.
func (p *pump) settle(found map[string]runtime.State) {
	for name, s := range found {
		if s.Exit != nil {
			p.noteExit(taskExit{name, *s.Exit})
		}
	}
}

// take asks the inventories of the instance's drivers.
func (p *pump) take(ctx context.Context) (map[string]runtime.State, error) {
	found := map[string]runtime.State{}
	for _, v := range p.inventories() {
		if v.driver != nil {
			select {
			case <-v.ready:
			default:
				defer p.waitMessage(unavailable)()
			}
		}
		tasks, err := v.take(ctx, p.id)
		if err != nil {
			return nil, err
		}
		maps.Copy(found, tasks)
	}
	return found, nil
}

// waitMessage reports a message when it still holds after a moment; what it returns puts the old one back.
func (p *pump) waitMessage(message string) func() {
	old := p.status().Message
	t := time.AfterFunc(500*time.Millisecond, func() { p.say(message) })
	return func() {
		if !t.Stop() {
			p.say(old)
		}
	}
}

// inventories returns those of the drivers that the instance uses, or all when it is not known which.
func (p *pump) inventories() []*inventory {
	var out []*inventory
	spec := p.spec()
	for i := range spec.Containers {
		if v := p.a.inventory(&spec.Containers[i]); !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		out = []*inventory{p.a.oci, p.a.process}
	}
	return out
}

// prepare makes all that the programs need: directories, artifacts, images.
func (p *pump) prepare(ctx context.Context) {
	spec := p.spec()
	if taken := p.portsTaken(); taken.why != "" {
		p.yield(ctx, taken)
		return
	}
	if !p.holdVolumes(ctx) {
		return
	}
	err := p.makeDirs()
	for i := 0; err == nil && i < len(spec.Containers); i++ {
		err = p.prepareContainer(&spec.Containers[i])
	}
	p.proceed(ctx, err, model.PhaseStarting)
}

// proceed goes on to the next phase after work that ended with err: it waits when an engine does not answer, and ends the
// attempt on any other error.
func (p *pump) proceed(ctx context.Context, err error, next model.Phase) {
	if p.stopped(ctx) {
		return
	}
	switch {
	case errors.Is(err, runtime.ErrUnavailable):
		p.say(unavailable)
		sleep(p.live, retryPause)
	case err != nil:
		p.end(ctx, sentence(err))
	default:
		p.update(func(r *record) { r.Status.Phase, r.Status.Message = next, "" })
	}
}

// stopped reports whether a step is to be left because the agent ends or the instance is to stop.
func (p *pump) stopped(ctx context.Context) bool { return ctx.Err() != nil || p.halted() }

func (p *pump) prepareContainer(c *model.Container) error {
	if vm := p.a.cfg.Node.VM; p.spec().Isolation == model.IsolationVM && !vm.OK {
		return fmt.Errorf("%s: %w: this node runs no virtual machines: %s", c.Name, runtime.ErrInvalid, cmp.Or(vm.Why, "it was started without"))
	}
	if _, err := p.a.driver(c); err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	for _, art := range c.Artifacts {
		if err := p.a.artifacts.Place(p.live, art, p.a.store.sandbox(p.id), p.sayProgress); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	if c.Image == "" {
		return nil
	}
	if err := p.a.pull(p.live, c, p.sayProgress); err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	return nil
}

// pull makes an image present. Instances that want the same one at once share the work.
func (a *Agent) pull(ctx context.Context, c *model.Container, progress func(string)) error {
	images, ok := a.cfg.OCI.(runtime.Images)
	if !ok {
		return nil // a driver that needs none
	}
	key := strings.Join([]string{c.Image, string(c.Pull)}, "\x00")
	if c.Auth != nil {
		key += "\x00" + c.Auth.Username + "\x00" + c.Auth.Password
	}
	_, err := a.pulls.Do(ctx, key, progress, func(ctx context.Context, say func(string)) (string, error) {
		if err := enter(ctx, a.fetches); err != nil {
			return "", err
		}
		defer leave(a.fetches)
		return images.Pull(ctx, c.Image, c.Pull, c.Auth, say)
	})
	return err
}

// start runs the containers in order. Drivers answer for those that run already.
func (p *pump) start(ctx context.Context) {
	if !p.holdVolumes(ctx) || enter(p.live, p.a.starts) != nil {
		return
	}
	err := p.startAll()
	leave(p.a.starts)
	p.proceed(ctx, err, model.PhaseRunning)
}

func (p *pump) startAll() error {
	spec := p.spec()
	for i := range spec.Containers {
		c := &spec.Containers[i]
		if p.live.Err() != nil {
			return context.Cause(p.live)
		}
		s, err := p.startOne(c)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		p.noteStart(c.Name, s)
		p.watch(c)
	}
	return nil
}

func (p *pump) startOne(c *model.Container) (runtime.State, error) {
	d, err := p.a.driver(c)
	if err != nil {
		return runtime.State{}, err
	}
	t, err := p.task(c)
	if err != nil {
		return runtime.State{}, err
	}
	p.touch(c.Name)
	return d.Start(p.live, t)
}

// noteStart keeps what is known of a started task until the phase is written.
func (p *pump) noteStart(name string, s runtime.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := cloneStatus(p.rec.Status)
	i := slices.IndexFunc(st.Tasks, func(t model.TaskStatus) bool { return t.Name == name })
	if i < 0 {
		i = len(st.Tasks)
		st.Tasks = append(st.Tasks, model.TaskStatus{Name: name})
	}
	st.Tasks[i].PID = cmp.Or(s.PID, st.Tasks[i].PID)
	if s.Started.After(st.Started) {
		st.Started = s.Started
	}
	p.rec.Status = st
}

// watch waits for the end of a task in the background.
func (p *pump) watch(c *model.Container) {
	d, err := p.a.driver(c)
	if err != nil || p.watched[c.Name] {
		return
	}
	if p.watched == nil {
		p.watched = map[string]bool{}
		p.watchCtx, p.unwatch = context.WithCancel(p.a.ctx)
		p.exits = make(chan taskExit, len(p.spec().Containers))
	}
	p.watched[c.Name] = true
	ctx, exits, name := p.watchCtx, p.exits, c.Name
	p.watches.Go(func() {
		if exit, ok := await(ctx, d, runtime.ID(p.id, name)); ok {
			exits <- taskExit{name, exit}
		}
	})
}

// await returns how a task ended, however long its driver does not answer. It returns false once ctx has ended.
func await(ctx context.Context, d runtime.Driver, id runtime.TaskID) (model.Exit, bool) {
	for {
		exit, err := d.Wait(ctx, id)
		switch {
		case err == nil:
			return exit, true
		case ctx.Err() != nil:
			return model.Exit{}, false
		case errors.Is(err, runtime.ErrNotFound):
			return model.Exit{Lost: "the container engine no longer knows it", At: time.Now()}, true
		}
		sleep(ctx, retryPause)
	}
}

// endWatches gives up waiting for the attempt's tasks.
func (p *pump) endWatches() {
	if p.unwatch != nil {
		p.unwatch()
	}
	p.watches.Wait()
	p.watched, p.unwatch = nil, nil
}

// runOn follows running programs until one ends, a check fails, or the instance is to stop.
func (p *pump) runOn(ctx context.Context) {
	for _, t := range p.status().Tasks { // adopted, and over already
		if t.Exit != nil {
			p.end(ctx, exitSentence(t.Name, t.Exit))
			return
		}
	}
	monitor := health.Start(p.live, p.checks(), p.status().Started, p.a.cfg.Now)
	defer monitor.Stop()
	for {
		select {
		case <-p.live.Done():
			return
		case e := <-p.exits:
			p.noteExit(e)
			monitor.Stop()
			p.end(ctx, exitSentence(e.container, &e.exit))
			return
		case r := <-monitor.Results():
			p.noteHealth(r)
			if r.Failed != "" {
				monitor.Stop()
				p.end(ctx, r.Failed)
				return
			}
		}
	}
}

func (p *pump) noteHealth(r health.Result) {
	if s := p.status(); s.Healthy == r.Healthy && s.Ready == r.Ready && s.Message == r.Waits {
		return
	}
	p.update(func(rec *record) {
		rec.Status.Healthy, rec.Status.Ready, rec.Status.Message = r.Healthy, r.Ready, r.Waits
	})
}

func (p *pump) noteExit(e taskExit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := cloneStatus(p.rec.Status)
	for i := range st.Tasks {
		if st.Tasks[i].Name == e.container {
			st.Tasks[i].Exit = &e.exit
		}
	}
	p.rec.Status = st
}
