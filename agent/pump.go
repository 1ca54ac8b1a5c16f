package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

// errHalt is why the live context of a pump ends when its instance is to stop.
var errHalt = errors.New("the instance is to stop")

// unavailable is what an instance waits for while a driver does not answer.
const unavailable = "the container engine does not answer; trying again"

// retryPause is the time between tries of what failed for a reason outside the instance.
const retryPause = time.Second

// pump takes one instance through its life. Its goroutine is the only one that acts for the instance.
type pump struct {
	a    *Agent
	id   model.InstanceID
	log  *slog.Logger
	live context.Context // ends when the instance is to stop, or the agent ends
	halt context.CancelCauseFunc
	gone chan struct{} // closed when the server dropped the instance
	over chan struct{} // closed when nothing of the instance will run or write any more

	mu       sync.Mutex // guards what follows; only the goroutine changes rec, but for Desired
	rec      record
	dropped  bool
	progress time.Time // when progress was last reported

	// What follows belongs to the goroutine.
	adopted  bool               // the attempt was begun by an earlier agent
	touched  map[string]bool    // containers of which a driver may hold a task
	watched  map[string]bool    // containers whose end is waited for
	exits    chan taskExit      // their ends
	watchCtx context.Context    // of that waiting
	unwatch  context.CancelFunc // gives it up
	watches  sync.WaitGroup     // counts it
}

type taskExit struct {
	container string
	exit      model.Exit
}

func newPump(a *Agent, rec record) *pump {
	p := &pump{a: a, id: rec.Assignment.ID, rec: rec, gone: make(chan struct{}), over: make(chan struct{})}
	p.log = a.log.With("instance", p.id)
	p.live, p.halt = context.WithCancelCause(a.ctx)
	if rec.Assignment.Desired == model.Halt || rec.Assignment.Over {
		p.halt(errHalt)
	}
	return p
}

// assign takes in what the server wants now. Only that the instance should stop can be new.
func (p *pump) assign(s wire.Assignment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rec.Assignment.Over = s.Over
	if s.Desired == model.Halt || s.Over {
		p.rec.Assignment.Desired = model.Halt
		p.halt(errHalt)
	}
}

// drop makes the pump end the instance and remove all of it.
func (p *pump) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dropped {
		return
	}
	p.dropped = true
	p.rec.Assignment.Desired = model.Halt
	p.halt(errHalt)
	close(p.gone)
	p.a.reports.drop(p.id)
}

// halted reports whether the instance is to stop.
func (p *pump) halted() bool { return errors.Is(context.Cause(p.live), errHalt) }

// run ends with ctx, or once the instance was dropped and nothing of it is left.
func (p *pump) run(ctx context.Context) {
	defer p.endWatches()
	if p.phase() != model.PhaseStopped {
		p.adopt(ctx)
		for ctx.Err() == nil && p.phase() != model.PhaseStopped {
			p.step(ctx)
		}
	} else {
		p.sweep(ctx)
	}
	if ctx.Err() != nil {
		return
	}
	p.until(ctx, p.letVolumesGo, "the volumes of an instance cannot be let go")
	p.until(ctx, func() error { return p.a.store.removeFiles(p.id) }, "the sandbox of an instance cannot be removed")
	close(p.over)
	select {
	case <-ctx.Done():
		return
	case <-p.gone:
	}
	if p.until(ctx, func() error { return p.a.store.remove(p.id) }, "the files of an instance cannot be removed") {
		p.a.forget(p.id)
	}
}

// until tries until it succeeds, or ctx ends.
func (p *pump) until(ctx context.Context, try func() error, otherwise string) bool {
	for {
		err := try()
		if err == nil {
			return true
		}
		p.log.Warn(otherwise+"; trying again", "error", err)
		if !sleep(ctx, 10*time.Second) {
			return false
		}
	}
}

// step does what the phase asks for, up to the next phase.
func (p *pump) step(ctx context.Context) {
	phase := p.phase()
	if p.halted() && phase != model.PhaseStopping {
		p.stop(ctx)
		return
	}
	switch phase {
	case model.PhaseAssigned:
		p.begin("")
	case model.PhasePreparing:
		p.prepare(ctx)
	case model.PhaseStarting:
		p.start(ctx)
	case model.PhaseRunning:
		p.runOn(ctx)
	case model.PhaseStopping:
		p.end(ctx, p.reason())
	case model.PhaseBackoff:
		p.backOff()
	default:
		p.begin("")
	}
}

// begin starts the next attempt. Its record comes first: an agent that cannot write does not act.
func (p *pump) begin(message string) {
	p.adopted = false
	for p.live.Err() == nil {
		p.mu.Lock()
		next := p.rec
		next.Status = model.Status{
			Attempt: p.rec.Status.Attempt + 1, Phase: model.PhasePreparing, Since: p.a.cfg.Now(), Message: message,
		}
		next.Next, next.Reason, next.Kill = time.Time{}, "", time.Time{}
		p.mu.Unlock()
		err := p.a.store.save(&next, true)
		if err == nil {
			p.update(func(r *record) {
				desired, over := r.Assignment.Desired, r.Assignment.Over
				*r = next
				r.Assignment.Desired, r.Assignment.Over = desired, over
			})
			return
		}
		p.say(fmt.Sprintf("the node cannot write the instance's record: %v", err))
		sleep(p.live, retryPause)
	}
}

// backOff waits for the time of the next attempt, but never longer than a wait can be: the node's clock may have been set back
// since an earlier agent noted the time.
func (p *pump) backOff() {
	p.mu.Lock()
	next, policy := p.rec.Next, p.rec.Assignment.Spec.WithDefaults().Restart
	p.mu.Unlock()
	if sleep(p.live, min(next.Sub(p.a.cfg.Now()), policy.Max.Std())) {
		p.begin("")
	}
}

// rest ends an attempt whose tasks are gone: the next one follows at once after a loss that was not the instance's doing, and
// else after a wait.
func (p *pump) rest(reason string) {
	p.mu.Lock()
	rec := p.rec
	p.mu.Unlock()
	now := p.a.cfg.Now()
	policy := rec.Assignment.Spec.WithDefaults().Restart
	ran := time.Duration(0)
	if !rec.Status.Started.IsZero() {
		ran = now.Sub(rec.Status.Started)
	}
	if lost := lostReason(rec.Status.Tasks); lost != "" && (p.adopted || ran >= policy.Backoff.Std()) {
		p.begin("starts again, since it was lost: " + lost)
		return
	}
	if ran >= policy.Reset.Std() {
		rec.Failures = 0
	}
	wait := backoff(policy, rec.Failures)
	p.update(func(r *record) {
		r.Failures = rec.Failures + 1
		r.Next = now.Add(wait)
		r.Reason = reason
		r.Status.Phase, r.Status.Ready = model.PhaseBackoff, false
		r.Status.Message = fmt.Sprintf("%s; next start in %v (attempt %d)", reason, wait, r.Status.Attempt+1)
	})
}

// backoff returns the wait after one more end, when there were failures before it in a row.
func backoff(r *model.Restart, failures int) time.Duration {
	wait := float64(r.Backoff) * math.Pow(r.Factor, float64(failures))
	if wait > float64(r.Max) {
		wait = float64(r.Max)
	}
	return time.Duration(wait).Round(time.Millisecond)
}

// lostReason says why a task was lost, or is empty when none was.
func lostReason(tasks []model.TaskStatus) string {
	for _, t := range tasks {
		if t.Exit != nil && t.Exit.Lost != "" {
			return t.Exit.Lost
		}
	}
	return ""
}

func (p *pump) phase() model.Phase { return p.status().Phase }

// status returns a copy of the newest status.
func (p *pump) status() model.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return cloneStatus(p.rec.Status)
}

func (p *pump) reason() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec.Reason
}

// assignment returns what the instance is. Its spec is never changed.
func (p *pump) assignment() wire.Assignment {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec.Assignment
}

func (p *pump) spec() *model.Spec { return p.assignment().Spec }

func cloneStatus(s model.Status) model.Status {
	s.Tasks = slices.Clone(s.Tasks)
	return s
}

// update changes the record, writes it and reports the status. When writing fails the change stands nevertheless: what is
// written next carries it, and an agent that starts before finds the truth at the drivers.
func (p *pump) update(change func(*record)) {
	p.mu.Lock()
	old := p.rec.Status
	p.rec.Status = cloneStatus(old)
	change(&p.rec)
	s := &p.rec.Status
	if s.Attempt != old.Attempt || s.Phase != old.Phase || s.Healthy != old.Healthy || s.Ready != old.Ready {
		s.Since = p.a.cfg.Now()
	}
	rec := p.rec
	p.mu.Unlock()
	if err := p.a.store.save(&rec, rec.Assignment.Desired == model.Halt); err != nil {
		p.log.Warn("the record of an instance cannot be written", "error", err)
	}
	p.report()
}

// say reports what the instance waits for. It is not recorded.
func (p *pump) say(message string) {
	p.mu.Lock()
	same := p.rec.Status.Message == message
	p.rec.Status.Message = message
	p.mu.Unlock()
	if !same {
		p.report()
	}
}

// sayProgress is say, at most twice a second.
func (p *pump) sayProgress(message string) {
	now := p.a.cfg.Now()
	p.mu.Lock()
	soon := now.Sub(p.progress) < 500*time.Millisecond
	if !soon {
		p.progress = now
	}
	p.mu.Unlock()
	if !soon && p.live.Err() == nil {
		p.say(message)
	}
}

// report tells the server of the status, unless it knows that the instance has ended.
func (p *pump) report() {
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := p.rec.Status.Phase == model.PhaseAssigned && p.rec.Status.Message == "" // the server knows that
	if !p.dropped && !fresh && !p.rec.Assignment.Over {
		p.a.reports.add(p.id, cloneStatus(p.rec.Status))
	}
}
