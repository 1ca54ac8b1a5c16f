package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

const (
	// chunk bounds the instance records in one transaction.
	chunk = 2000
	// resync is how often an app is planned at least, in case a change was missed. It is spread over as much again.
	resync = 10 * time.Minute
	// talkEvery is how often a deployment's message is written when nothing else changes.
	talkEvery = 500 * time.Millisecond
	// perInstance is the pause after planning, for each instance looked at beyond the first few thousand: an app of
	// 100,000 instances that changes all the time is planned ten times a second.
	perInstance = time.Microsecond
)

// Config is what a Loop needs beside its store. Zero fields take their defaults.
type Config struct {
	Now    func() time.Time           // default time.Now
	NewID  func(prefix string) string // returns prefix, '-' and something new; default RandomID
	Logger *slog.Logger               // default slog.Default

	KeepVersions    int           // of each app; default 25, beside those in use
	KeepDeployments int           // ended ones of each app; default 10
	KeepStopped     time.Duration // of the records and logs of instances that are over; default 1h
	KeepStoppedMax  int           // of each app; default the newest 20
}

func (c Config) withDefaults() Config {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.NewID == nil {
		c.NewID = RandomID
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.KeepVersions = cmp.Or(c.KeepVersions, 25)
	c.KeepDeployments = cmp.Or(c.KeepDeployments, 10)
	c.KeepStopped = cmp.Or(c.KeepStopped, time.Hour)
	c.KeepStoppedMax = cmp.Or(c.KeepStoppedMax, 20)
	return c
}

// Loop keeps all apps as their deployments want them. It belongs to the goroutine that calls Run or Step.
type Loop struct {
	store state.Store
	cfg   Config
	keep  Keep

	watch       *state.Watch
	dirty       map[model.AppID]struct{}
	settled     map[model.AppID]struct{} // where a live instance's status changes nothing
	deployments map[model.AppID]map[model.DeploymentID]struct{}
	spoke       map[model.AppID]spoken
	alarms      alarms
	looked      int // instances looked at in this step
}

// spoken is when a deployment's message was written last.
type spoken struct {
	by model.DeploymentID
	at time.Time
}

// New returns a loop over store.
func New(store state.Store, cfg Config) *Loop {
	cfg = cfg.withDefaults()
	return &Loop{store: store, cfg: cfg, keep: Keep{
		Versions: cfg.KeepVersions, Deployments: cfg.KeepDeployments, Stopped: cfg.KeepStoppedMax, StoppedFor: cfg.KeepStopped,
	}}
}

// Run works until ctx ends, or this server is no longer the leader. Other failures of the store are logged and tried
// again.
func (l *Loop) Run(ctx context.Context) error {
	defer l.close()
	step := func(ctx context.Context) (time.Time, error) {
		next, err := l.Step(ctx)
		if err == nil {
			err = l.rest(ctx)
		}
		return next, err
	}
	return state.Loop{Name: "apps", Now: l.cfg.Now, Logger: l.cfg.Logger, Step: step, Ready: func() <-chan struct{} { return l.watch.Ready() }}.Run(ctx)
}

// rest pauses after much work, so that the changes of the meantime are planned together.
func (l *Loop) rest(ctx context.Context) error {
	if l.looked < 5000 {
		return nil
	}
	return sleep(ctx, time.Duration(min(l.looked, 100_000))*perInstance)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *Loop) close() {
	if l.watch != nil {
		l.watch.Close()
		l.watch = nil
	}
}

// Step does all there is to do now, and returns when there will be something to do though nothing changes; zero for
// never. What it writes itself may ask for one more Step.
func (l *Loop) Step(ctx context.Context) (time.Time, error) {
	l.gather()
	l.looked = 0
	for len(l.dirty) > 0 {
		if err := l.pass(ctx); err != nil {
			return time.Time{}, err
		}
	}
	return l.alarms.next(), nil
}

// gather marks the apps that changed or whose time has come.
func (l *Loop) gather() {
	if l.watch == nil {
		view, watch := l.store.Watch()
		l.watch = watch
		l.restart(view)
	} else if view, c := l.watch.Take(); c.Full {
		l.restart(view)
	} else {
		l.mark(view, c)
	}
	for _, id := range l.alarms.due(l.cfg.Now()) {
		l.dirty[id] = struct{}{}
	}
}

// restart forgets what was known and marks every app, and those of which only a past is left.
func (l *Loop) restart(v state.View) {
	l.dirty, l.settled = map[model.AppID]struct{}{}, map[model.AppID]struct{}{}
	l.deployments, l.spoke = map[model.AppID]map[model.DeploymentID]struct{}{}, map[model.AppID]spoken{}
	l.alarms = alarms{}
	for a := range v.Apps() {
		l.dirty[a.ID] = struct{}{}
	}
	for d := range v.Deployments() {
		l.know(d)
	}
	for i := range v.Instances() {
		l.dirty[i.App] = struct{}{}
	}
}

func (l *Loop) mark(v state.View, c state.Changes) {
	for id := range c.Apps {
		l.dirty[id] = struct{}{}
	}
	for id := range c.Deployments {
		if d := v.Deployment(id); d != nil {
			l.know(d)
		}
	}
	for id := range c.Nodes {
		if set := v.Settings(id); set != nil && !set.Deadline.IsZero() {
			l.markOn(v, id)
		}
	}
	if c.Losses {
		for n := range v.Nodes() {
			if n.State != model.NodeReady {
				l.markOn(v, n.ID)
			}
		}
	}
	for id := range c.Instances {
		i := v.Instance(id)
		if i == nil {
			continue // only this loop deletes them
		}
		if _, ok := l.settled[i.App]; !ok || !i.Live() || i.Evict != nil || !i.Status.Away.IsZero() {
			l.dirty[i.App] = struct{}{}
		}
	}
}

// markOn marks the apps that have instances on a node.
func (l *Loop) markOn(v state.View, node model.NodeID) {
	for i := range v.InstancesOn(node) {
		if !i.Over() {
			l.dirty[i.App] = struct{}{}
		}
	}
}

func (l *Loop) know(d *model.Deployment) {
	l.dirty[d.App] = struct{}{}
	if l.deployments[d.App] == nil {
		l.deployments[d.App] = map[model.DeploymentID]struct{}{}
	}
	l.deployments[d.App][d.ID] = struct{}{}
}

// job is one app's plan, and what it was made from.
type job struct {
	snap Snapshot
	plan Decisions
	more bool // the plan was cut short
}

// pass plans dirty apps, by id, until what they write fills a transaction, and writes it.
func (l *Loop) pass(ctx context.Context) error {
	now := l.cfg.Now()
	v := l.store.View()
	var jobs []job
	for _, id := range slices.Sorted(maps.Keys(l.dirty)) {
		j := l.plan(v, id, now)
		if j.plan.Empty() {
			l.finish(j, now)
			continue
		}
		jobs = append(jobs, j)
		if size(jobs) >= chunk {
			break
		}
	}
	if len(jobs) == 0 {
		return nil
	}
	err := l.write(ctx, jobs, now)
	if errors.Is(err, state.ErrNoSpace) {
		err = errors.Join(err, l.forget(ctx, jobs))
	}
	if err != nil {
		return fmt.Errorf("write plans of %d apps: %w", len(jobs), err)
	}
	for _, j := range jobs {
		l.finish(j, now)
	}
	return nil
}

func (l *Loop) plan(v state.View, id model.AppID, now time.Time) job {
	s := snapshot(v, id, l.deployments[id])
	l.looked += len(s.Instances)
	j := job{snap: s, plan: Plan(s, l.keep, now)}
	if last := l.spoke[id]; j.plan.Talk && last.by == j.plan.Deployments[0].ID {
		if again := last.at.Add(talkEvery); again.After(now) {
			j.plan.Deployments = nil
			j.plan.wakeAt(again)
		}
	}
	return j
}

func size(jobs []job) int {
	n := 0
	for i := range jobs {
		n += jobs[i].plan.size() + 1
	}
	return n
}

// write makes the plans durable. Plans whose records changed since are made anew on what the transaction sees.
func (l *Loop) write(ctx context.Context, jobs []job, now time.Time) error {
	return l.store.Update(ctx, func(tx *state.Tx) error {
		left := chunk
		for n := range jobs {
			j := &jobs[n]
			s := snapshot(tx.View, j.snap.ID, l.deployments[j.snap.ID])
			if !s.same(j.snap) {
				*j = job{snap: s, plan: Plan(s, l.keep, now)}
			}
			cut := j.plan
			j.more = cut.trim(left)
			left = max(0, left-cut.size())
			l.apply(tx, s, &cut, now)
		}
		return nil
	})
}

// forget does of the plans only what makes space.
func (l *Loop) forget(ctx context.Context, jobs []job) error {
	err := l.store.Update(ctx, func(tx *state.Tx) error {
		for n := range jobs {
			for _, id := range jobs[n].plan.Forget {
				if i := tx.Instance(id); i != nil && i.Over() {
					tx.DeleteInstance(id)
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make space: %w", err)
	}
	return nil
}

// finish remembers what a plan that is written says of the future.
func (l *Loop) finish(j job, now time.Time) {
	id := j.snap.ID
	if !j.more {
		delete(l.dirty, id)
	}
	if n := len(j.plan.Deployments); n > 0 {
		l.spoke[id] = spoken{j.plan.Deployments[n-1].ID, now}
	}
	for _, d := range j.plan.ForgetDeployments {
		delete(l.deployments[id], d)
	}
	delete(l.settled, id)
	if j.plan.Settled && j.plan.Empty() {
		l.settled[id] = struct{}{}
		delete(l.spoke, id)
	}
	if j.snap.App == nil && len(j.snap.Instances) == 0 && len(j.snap.Deployments) == 0 {
		delete(l.deployments, id)
		delete(l.spoke, id)
		l.alarms.set(id, time.Time{})
		return
	}
	wake := now.Add(resync + spread(id))
	if w := j.plan.Wake; !w.IsZero() && w.Before(wake) {
		wake = w
	}
	l.alarms.set(id, wake)
}

// spread returns something up to resync that differs from app to app.
func spread(id model.AppID) time.Duration {
	h := fnv.New32a()
	h.Write([]byte(id))
	return time.Duration(h.Sum32()%1024) * resync / 1024
}
