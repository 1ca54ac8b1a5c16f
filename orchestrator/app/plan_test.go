package app

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
)

var (
	epoch    = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	testKeep = Keep{Versions: 25, Deployments: 10, Stopped: 20, StoppedFor: time.Hour}
)

// world is one app that plans are carried out on, without store or scheduler.
type world struct {
	rnd  *rand.Rand
	now  time.Time
	snap Snapshot
	ids  int
}

func newWorld(seed uint64) *world {
	w := &world{rnd: rand.New(rand.NewPCG(seed, 1)), now: epoch}
	w.snap = Snapshot{ID: "/web", App: &model.App{ID: "/web", Created: epoch}}
	return w
}

// deploy writes a new version with a random policy: of another program, or only more or fewer instances.
func (w *world) deploy() {
	n := w.rnd.IntN(8)
	mht := model.Duration(w.rnd.IntN(3)) * model.Duration(time.Second)
	spec := &model.Spec{
		ID: "/web", Instances: &n,
		Containers: []model.Container{{Shell: fmt.Sprint("run ", w.rnd.IntN(4))}},
		Update: &model.Update{
			MinHealthy: model.Amount(fmt.Sprintf("%d%%", w.rnd.IntN(5)*25)), MaxSurge: model.Amount(fmt.Sprint(w.rnd.IntN(4))),
			MinHealthyTime: &mht, Deadline: model.Duration(time.Minute), NoRollback: w.rnd.IntN(3) == 0,
		},
	}
	if w.rnd.IntN(2) == 0 {
		spec.KillOrder = model.OldestFirst
	}
	if w.rnd.IntN(3) == 0 {
		spec.Unreachable = &model.Unreachable{ReplaceAfter: model.Duration(3 * time.Second), ExpungeAfter: model.Duration(8 * time.Second)}
	} else if w.rnd.IntN(4) == 0 {
		spec.Unreachable = &model.Unreachable{Never: true}
	}
	switch last := len(w.snap.Versions) - 1; {
	case last >= 0 && w.rnd.IntN(2) == 0:
		spec.Containers, spec.Volumes = w.snap.Versions[last].Spec.Containers, w.snap.Versions[last].Spec.Volumes
	case w.rnd.IntN(3) == 0:
		spec.Volumes = []model.Volume{{Name: "data", Persistent: &model.Persistent{Size: model.GiB}}}
	}
	if spec.Stateful() {
		spec.Unreachable = nil
		if w.rnd.IntN(4) == 0 {
			spec.Unreachable = &model.Unreachable{AbandonVolumes: true, ReplaceAfter: model.Duration(5 * time.Second)}
		}
	}
	switch {
	case spec.Validate() == nil:
	case spec.Stateful():
		spec.Update.MinHealthy = model.Amount(fmt.Sprint(n - 1))
	default:
		spec.Update.MaxSurge = "1"
	}
	a := *w.snap.App
	from := a.Version
	a.Version++
	w.snap.Versions = append(w.snap.Versions, &model.AppVersion{App: "/web", Version: a.Version, Created: w.now, Spec: spec})
	w.adopt(&a, &model.Deployment{App: "/web", Kind: model.DeployUpdate, From: from, To: a.Version, Created: w.now, State: model.DeployRunning})
}

// adopt makes d the app's newest deployment.
func (w *world) adopt(a *model.App, d *model.Deployment) {
	w.ids++
	d.ID = model.DeploymentID(fmt.Sprintf("d-%06d", w.ids))
	a.Deployment = d.ID
	w.snap.App = a
	w.snap.Deployments = append(w.snap.Deployments, d)
}

func (w *world) live() (live, exist int) {
	for _, i := range w.snap.Instances {
		if i.Live() {
			live++
		}
		if !i.Over() {
			exist++
		}
	}
	return live, exist
}

func (w *world) healthy(mht time.Duration) int {
	n := 0
	for _, i := range w.snap.Instances {
		if since, ok := i.HealthySince(); ok && (since.After(w.now) || !since.Add(mht).After(w.now)) {
			n++
		}
	}
	return n
}

// preempted returns how many healthy ones the scheduler ends.
func (w *world) preempted(mht time.Duration) int {
	n := w.healthy(mht)
	all := w.snap.Instances
	w.snap.Instances = slices.DeleteFunc(slices.Clone(all), func(i *model.Instance) bool {
		return i.Evict != nil && i.Evict.Kind == model.EvictPreempt
	})
	n -= w.healthy(mht)
	w.snap.Instances = all
	return n
}

// sharedSlot returns a slot of two instances that are not over, 0 for none.
func (w *world) sharedSlot() uint32 {
	held := map[uint32]bool{}
	for _, i := range w.snap.Instances {
		if i.Slot == 0 || i.Over() {
			continue
		}
		if held[i.Slot] {
			return i.Slot
		}
		held[i.Slot] = true
	}
	return 0
}

func (w *world) replace(n int, change func(*model.Instance)) {
	i := w.snap.Instances[n].Clone()
	change(i)
	w.snap.Instances = slices.Clone(w.snap.Instances)
	w.snap.Instances[n] = i
}

func (w *world) index(id model.InstanceID) int {
	return slices.IndexFunc(w.snap.Instances, func(i *model.Instance) bool { return i.ID == id })
}

// apply carries out d as Loop.apply does.
func (w *world) apply(d Decisions) {
	for _, x := range d.Expunge {
		w.replace(w.index(x.ID), func(i *model.Instance) {
			i.Desired, i.Why = model.Halt, x.Why
			i.Status.Phase, i.Status.Ready, i.Status.Since = model.PhaseStopped, false, w.now
		})
	}
	for _, st := range d.Stop {
		w.replace(w.index(st.ID), func(i *model.Instance) {
			i.Desired, i.Why = model.Halt, st.Why
			if i.Node == "" && !i.Over() {
				i.Status = model.Status{Phase: model.PhaseStopped, Since: w.now}
			}
		})
	}
	for _, st := range d.Stay {
		w.replace(w.index(st.ID), func(i *model.Instance) { i.Why = st.Why })
	}
	for _, c := range d.Create {
		for n := range c.Count {
			w.ids++
			i := &model.Instance{
				ID: model.InstanceID(fmt.Sprintf("web-%06d", w.ids)), App: "/web", Version: c.Version, Created: w.now,
				Desired: model.Run, Status: model.Status{Phase: model.PhasePending, Since: w.now},
			}
			if len(c.Slots) > 0 {
				i.Slot = c.Slots[n]
			}
			if n < len(c.Replaces) {
				i.Replaces = c.Replaces[n]
			}
			w.snap.Instances = append(slices.Clone(w.snap.Instances), i)
		}
	}
	for _, id := range d.Forget {
		w.snap.Instances = slices.DeleteFunc(slices.Clone(w.snap.Instances), func(i *model.Instance) bool { return i.ID == id })
	}
	w.snap.Versions = slices.DeleteFunc(slices.Clone(w.snap.Versions), func(v *model.AppVersion) bool {
		return slices.Contains(d.ForgetVersions, v.Version)
	})
	w.snap.Deployments = slices.DeleteFunc(slices.Clone(w.snap.Deployments), func(x *model.Deployment) bool {
		return slices.Contains(d.ForgetDeployments, x.ID)
	})
	for _, n := range d.Deployments {
		at := slices.IndexFunc(w.snap.Deployments, func(x *model.Deployment) bool { return x.ID == n.ID })
		if at >= 0 {
			w.snap.Deployments[at] = n
		}
	}
	if d.App != nil {
		w.snap.App = d.App
	}
	if d.Rollback != nil {
		a, r := *w.snap.App, *d.Rollback
		w.adopt(&a, &r)
	}
}

// live through something: an agent's report, a loss, an eviction, or time.
func (w *world) happen() {
	w.now = w.now.Add(time.Duration(w.rnd.IntN(4)) * time.Second)
	w.outage()
	for n := range w.snap.Instances {
		i := w.snap.Instances[n]
		if i.Over() || w.rnd.IntN(2) == 0 {
			continue
		}
		w.replace(n, func(i *model.Instance) {
			w.evict(i)
			if w.lose(i) {
				return
			}
			w.report(i)
		})
	}
}

// lose lets the node of an instance be lost now and then, and come back. It reports whether nobody speaks for i.
func (w *world) lose(i *model.Instance) bool {
	switch away := !i.Status.Away.IsZero(); {
	case i.Node == "":
		return false
	case !away && w.rnd.IntN(10) == 0:
		i.Status.Away = w.now
	case away && w.rnd.IntN(5) == 0:
		i.Status.Away = time.Time{}
	}
	return !i.Status.Away.IsZero()
}

// outage begins or ends one now and then.
func (w *world) outage() {
	switch {
	case w.rnd.IntN(15) != 0:
	case w.snap.Outage == nil:
		w.snap.Outage = &model.Outage{Since: w.now, Noted: w.now, Lost: 3, Nodes: 5}
	default:
		w.snap.Outage = nil
		if w.rnd.IntN(2) == 0 {
			w.snap.Healed = w.now
		}
	}
}

// writtenOff returns how many instances that are not over count no more, since their nodes have not answered for so long.
func (w *world) writtenOff() int {
	n := 0
	for _, i := range w.snap.Instances {
		p := planner{s: w.snap, now: w.now}
		if p.policy(w.snap.target()); !i.Over() && !i.Status.Away.IsZero() && p.writeOff(i) {
			n++
		}
	}
	return n
}

// evict wishes now and then that an instance leaves its node, or that it need not after all.
func (w *world) evict(i *model.Instance) {
	switch {
	case i.Node == "" || i.Desired == model.Halt:
	case i.Evict != nil && w.rnd.IntN(5) == 0:
		i.Evict = nil
	case i.Evict == nil && w.rnd.IntN(12) == 0:
		kinds := []model.EvictKind{model.EvictPreempt, model.EvictMove, model.EvictMove, model.EvictDrain, model.EvictDrain}
		i.Evict = &model.Eviction{Kind: kinds[w.rnd.IntN(len(kinds))], Why: "said so", At: w.now}
	}
}

func (w *world) report(i *model.Instance) {
	s := model.Status{Attempt: i.Status.Attempt, Since: w.now}
	switch {
	case i.Desired == model.Halt:
		s.Phase = model.PhaseStopped
	case i.Node == "":
		i.Node = "a"
		s.Phase = model.PhaseAssigned
	default:
		switch w.rnd.IntN(6) {
		case 0:
			s.Phase, s.Attempt = model.PhaseBackoff, s.Attempt+1
		case 1:
			s.Phase, s.Healthy = model.PhaseRunning, model.Unhealthy
		case 2:
			s.Phase = model.PhaseStarting
			if w.rnd.IntN(4) == 0 {
				s.Phase = model.PhaseStopped // lost
			}
		default:
			if i.Status.Phase == model.PhaseRunning && i.Status.Ready {
				return
			}
			s.Phase, s.Ready = model.PhaseRunning, true
		}
	}
	i.Status = s
}

// TestPlanHoldsItsLimits protects, over random lives of random apps: no decision brings more instances into being than
// count + surge, or fewer healthy ones than the floor, but for those that are preempted; no slot has two instances that
// are not over; no plan changes what it read, or differs when made twice; and every version stays as it was written.
func TestPlanHoldsItsLimits(t *testing.T) {
	for seed := range uint64(140) {
		w := newWorld(seed)
		w.deploy()
		for step := range 80 {
			switch w.rnd.IntN(12) {
			case 0:
				w.deploy()
			case 1:
				w.togglePause()
			}
			w.happen()
			w.check(t, fmt.Sprintf("seed %d step %d", seed, step))
		}
	}
}

func (w *world) togglePause() {
	d := w.snap.deployment(w.snap.App.Deployment)
	if d == nil || d.State.Over() {
		return
	}
	n := *d
	n.State = map[bool]model.DeploymentState{true: model.DeployPaused, false: model.DeployRunning}[d.State == model.DeployRunning]
	w.snap.Deployments[slices.Index(w.snap.Deployments, d)] = &n
}

// check plans, holds the plan to the limits, and carries it out.
func (w *world) check(t *testing.T, at string) Decisions {
	t.Helper()
	before, _ := json.Marshal(w.snap)
	target := w.snap.target()
	ceiling, floor := target.Spec.Ceiling(), target.Spec.Floor()
	mht := target.Spec.WithDefaults().Update.MinHealthyTime.Std()
	_, existed := w.live()
	healthyBefore := w.healthy(mht) - w.preempted(mht)

	d := Plan(w.snap, testKeep, w.now)
	if again := Plan(w.snap, testKeep, w.now); !reflect.DeepEqual(d, again) {
		t.Fatalf("%s: two plans differ:\n%+v\n%+v", at, d, again)
	}
	if after, _ := json.Marshal(w.snap); string(before) != string(after) {
		t.Fatalf("%s: the plan changed what it read:\n%s\n%s", at, before, after)
	}
	w.apply(d)
	_, exist := w.live()
	exist -= w.writtenOff()
	for _, st := range d.Stop {
		if i := w.snap.Instances[w.index(st.ID)]; !i.Status.Away.IsZero() && i.Version != target.Version && i.Evict == nil && !i.Over() &&
			w.snap.version(i.Version).Template() != target.Template() {
			t.Fatalf("%s: %s is stopped for a newer version while nobody knows how it is: %+v", at, i.ID, d)
		}
	}
	if exist > max(ceiling, existed) || len(d.Create) > 0 && exist > ceiling {
		t.Fatalf("%s: %d instances exist, %d before; the ceiling is %d: %+v", at, exist, existed, ceiling, d)
	}
	if healthy := w.healthy(mht); healthy < healthyBefore && healthy < floor {
		t.Fatalf("%s: %d are healthy, %d before; the floor is %d: %+v", at, healthy, healthyBefore, floor, d)
	}
	if slot := w.sharedSlot(); slot != 0 {
		t.Fatalf("%s: slot %d has two instances: %+v", at, slot, d)
	}
	for _, dep := range d.Deployments {
		if dep.Message == "" || dep.Done > dep.Want {
			t.Fatalf("%s: deployment says nothing or too much: %+v", at, dep)
		}
	}
	return d
}

// TestPlanConverges protects that every app comes to rest as asked, whatever it went through, once all that is started
// becomes healthy: count instances of the target, one in each slot if it has any, nobody who had to leave, nothing else,
// and a deployment that ended.
func TestPlanConverges(t *testing.T) {
	for seed := range uint64(240) {
		w := newWorld(seed)
		w.deploy()
		for range 30 {
			switch w.rnd.IntN(12) {
			case 0:
				w.deploy()
			case 1:
				w.togglePause()
			}
			w.happen()
			w.check(t, fmt.Sprintf("seed %d", seed))
		}
		if d := w.snap.deployment(w.snap.App.Deployment); d.State == model.DeployPaused {
			w.togglePause()
		}
		var d Decisions
		for round := 0; ; round++ {
			if round == 200 {
				t.Fatalf("seed %d: no rest: %+v", seed, w.snap.deployment(w.snap.App.Deployment))
			}
			w.allWell()
			if d = w.check(t, fmt.Sprintf("seed %d", seed)); d.Settled && d.Empty() {
				break
			}
		}
		w.atRest(t, seed)
	}
}

// allWell lets everything end, start or become healthy, and what cannot leave stay.
func (w *world) allWell() {
	w.now = w.now.Add(4 * time.Second)
	w.snap.Outage = nil
	for n := range w.snap.Instances {
		i := w.snap.Instances[n]
		if i.Over() {
			continue
		}
		w.replace(n, func(i *model.Instance) {
			if i.Slot != 0 && i.Desired == model.Run {
				i.Evict = nil
			}
			i.Status.Away = time.Time{}
			switch {
			case i.Desired == model.Halt:
				i.Status = model.Status{Phase: model.PhaseStopped, Since: w.now}
			case i.Status.Phase != model.PhaseRunning || !i.Status.Ready || i.Status.Healthy == model.Unhealthy:
				i.Node = "a"
				i.Status = model.Status{Phase: model.PhaseRunning, Ready: true, Since: w.now}
			}
		})
	}
}

func (w *world) atRest(t *testing.T, seed uint64) {
	t.Helper()
	target := w.snap.target()
	live, exist := w.live()
	if n := target.Spec.Count(); live != n || exist != n {
		t.Fatalf("seed %d: %d live and %d in all, want %d", seed, live, exist, n)
	}
	for _, i := range w.snap.Instances {
		if !i.Live() {
			continue
		}
		if v := w.snap.version(i.Version); v.Template() != target.Template() {
			t.Fatalf("seed %d: %s of version %d is left", seed, i.ID, i.Version)
		}
		if i.Evict != nil || i.Why != "" {
			t.Fatalf("seed %d: %s is left, though it has to leave: %q", seed, i.ID, i.Why)
		}
		if stateful := target.Spec.Stateful(); stateful != (i.Slot != 0) || int(i.Slot) > live {
			t.Fatalf("seed %d: %s of %d is in slot %d; with slots: %t", seed, i.ID, live, i.Slot, stateful)
		}
	}
	if w.snap.App.Stable != target.Version {
		t.Fatalf("seed %d: stable is %d, want %d", seed, w.snap.App.Stable, target.Version)
	}
	for _, d := range w.snap.Deployments {
		if !d.State.Over() || d.Ended.IsZero() {
			t.Fatalf("seed %d: a deployment never ended: %+v", seed, d)
		}
	}
}

// running returns an app of n healthy instances on version 1.
func running(n int, update *model.Update) *world {
	w := newWorld(1)
	zero := model.Duration(0)
	if update == nil {
		update = &model.Update{MinHealthyTime: &zero}
	}
	spec := &model.Spec{ID: "/web", Instances: &n, Containers: []model.Container{{Shell: "run"}}, Update: update}
	w.snap.Versions = []*model.AppVersion{{App: "/web", Version: 1, Spec: spec, Created: epoch}}
	a := *w.snap.App
	a.Version, a.Stable = 1, 1
	w.adopt(&a, &model.Deployment{App: "/web", To: 1, State: model.DeploySucceeded, Created: epoch, Ended: epoch})
	for i := range n {
		w.snap.Instances = append(w.snap.Instances, &model.Instance{
			ID: model.InstanceID(fmt.Sprintf("web-%06d", i)), App: "/web", Version: 1, Created: epoch, Desired: model.Run, Node: "a",
			Status: model.Status{Phase: model.PhaseRunning, Ready: true, Since: epoch, Attempt: 1},
		})
	}
	w.ids += n
	return w
}

// TestFlappingIsNoProgress protects that a program which becomes healthy again and again, and ends each time, does not
// keep its deployment alive past the deadline.
func TestFlappingIsNoProgress(t *testing.T) {
	w := running(4, &model.Update{MinHealthy: "100%", MaxSurge: "1", Deadline: model.Duration(time.Minute), MinHealthyTime: new(model.Duration)})
	n := 4
	spec := w.snap.Versions[0].Spec.Clone()
	spec.Containers[0].Shell, spec.Instances = "flap", &n
	w.snap.Versions = append(w.snap.Versions, &model.AppVersion{App: "/web", Version: 2, Spec: spec, Created: w.now})
	a := *w.snap.App
	a.Version = 2
	w.adopt(&a, &model.Deployment{App: "/web", Kind: model.DeployUpdate, From: 1, To: 2, State: model.DeployRunning, Created: w.now})
	update := a.Deployment
	for beat := range 200 {
		w.now = w.now.Add(5 * time.Second)
		up := beat%2 == 0 // one at a time
		for n, i := range w.snap.Instances {
			if i.Over() {
				continue
			}
			w.replace(n, func(i *model.Instance) {
				switch {
				case i.Desired == model.Halt:
					i.Status = model.Status{Phase: model.PhaseStopped, Since: w.now}
				case i.Version == 2:
					i.Node = "a"
					i.Status = model.Status{Phase: model.PhaseBackoff, Attempt: i.Status.Attempt + 1, Since: w.now}
					if up {
						up = false
						i.Status.Phase, i.Status.Ready = model.PhaseRunning, true
					}
				}
			})
		}
		w.check(t, fmt.Sprint("beat ", beat))
		if d := w.snap.deployment(update); d.State.Over() {
			if d.State != model.DeployRolledBack {
				t.Fatalf("it ended as %s: %s", d.State, d.Message)
			}
			return
		}
	}
	t.Fatalf("it never ended: %+v", w.snap.deployment(update))
}

// TestStuckStopIsNotRolledBack protects that a new version which is healthy as a whole is not undone because an old
// instance does not end, and that the grace of what is ending extends the deadline.
func TestStuckStopIsNotRolledBack(t *testing.T) {
	w := running(1, nil)
	w.snap.Versions[0].Spec.Stop = &model.Stop{Grace: model.Duration(20 * time.Minute)}
	spec := w.snap.Versions[0].Spec.Clone()
	spec.Containers[0].Shell = "two"
	w.snap.Versions = append(w.snap.Versions, &model.AppVersion{App: "/web", Version: 2, Spec: spec, Created: w.now})
	a := *w.snap.App
	a.Version = 2
	w.adopt(&a, &model.Deployment{App: "/web", Kind: model.DeployUpdate, From: 1, To: 2, State: model.DeployRunning, Created: w.now})
	for range 5 {
		for n, i := range w.snap.Instances {
			if i.Version == 2 && i.Node == "" {
				w.replace(n, func(i *model.Instance) {
					i.Node, i.Status = "a", model.Status{Phase: model.PhaseRunning, Ready: true, Since: w.now}
				})
			}
		}
		w.check(t, "start")
	}
	w.now = w.now.Add(24 * time.Minute)
	w.check(t, "within")
	if d := w.snap.deployment(a.Deployment); d.State != model.DeployRunning || !strings.Contains(d.Message, "waiting for web-000000 to stop") {
		t.Fatalf("within deadline and grace: %s: %s", d.State, d.Message)
	}
	w.now = w.now.Add(2 * time.Minute)
	w.check(t, "past")
	d := w.snap.deployment(w.snap.App.Deployment)
	if d.State != model.DeployFailed || d.Kind != model.DeployUpdate {
		t.Fatalf("past deadline and grace: %s %s: %s", d.Kind, d.State, d.Message)
	}
	w.check(t, "after")
	if w.snap.App.Stable != 2 {
		t.Fatalf("stable is %d, want 2", w.snap.App.Stable)
	}
}

// TestShortLivedIsReplacedLater protects the store from a cause that ends every new instance at once.
func TestShortLivedIsReplacedLater(t *testing.T) {
	w := running(1, nil)
	lose := func(after time.Duration) {
		w.now = w.now.Add(after)
		w.replace(len(w.snap.Instances)-1, func(i *model.Instance) {
			i.Status = model.Status{Phase: model.PhaseStopped, Since: w.now}
		})
	}
	lose(time.Hour)
	if d := w.check(t, "old"); len(d.Create) != 1 {
		t.Fatalf("an old instance that is lost is not replaced at once: %+v", d)
	}
	lose(time.Second)
	d := w.check(t, "young")
	if want := w.now.Add(shortLived - time.Second); len(d.Create) != 0 || !d.Wake.Equal(want) {
		t.Fatalf("an instance lost after a second is replaced at once, or never: %+v", d)
	}
	w.now = w.now.Add(shortLived)
	if d := w.check(t, "later"); len(d.Create) != 1 {
		t.Fatalf("an instance lost after a second is not replaced later: %+v", d)
	}
}

// TestOrphansEnd protects that what has no app any more is stopped, and forgotten in time.
func TestOrphansEnd(t *testing.T) {
	w := running(2, nil)
	w.snap.App = nil
	d := Plan(w.snap, testKeep, w.now)
	if len(d.Stop) != 2 {
		t.Fatalf("orphans go on: %+v", d)
	}
	w.apply(d)
	for n := range w.snap.Instances {
		w.replace(n, func(i *model.Instance) { i.Status = model.Status{Phase: model.PhaseStopped, Since: w.now} })
	}
	if d = Plan(w.snap, testKeep, w.now.Add(time.Minute)); len(d.Forget) != 0 {
		t.Fatalf("orphans are forgotten before their time: %+v", d)
	}
	w.apply(Plan(w.snap, testKeep, w.now.Add(time.Hour)))
	w.apply(Plan(w.snap, testKeep, w.now.Add(time.Hour)))
	if len(w.snap.Instances)+len(w.snap.Deployments)+len(w.snap.Versions) != 0 {
		t.Fatalf("something is left: %+v", w.snap)
	}
}

func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		w := running(n, nil)
		b.Run(fmt.Sprintf("idle/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Plan(w.snap, testKeep, epoch.Add(time.Hour))
			}
		})
		w.now = epoch.Add(time.Hour)
		spec := w.snap.Versions[0].Spec.Clone()
		spec.Containers[0].Shell = "two"
		w.snap.Versions = append(w.snap.Versions, &model.AppVersion{App: "/web", Version: 2, Spec: spec, Created: w.now})
		a := *w.snap.App
		a.Version = 2
		w.adopt(&a, &model.Deployment{App: "/web", Kind: model.DeployUpdate, From: 1, To: 2, State: model.DeployRunning, Created: w.now})
		w.apply(Plan(w.snap, testKeep, w.now))
		b.Run(fmt.Sprintf("updating/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Plan(w.snap, testKeep, w.now.Add(time.Second))
			}
		})
	}
}

// TestSupersedingIsNotTalk protects the end of an older deployment from being put off with the newer one's message.
func TestSupersedingIsNotTalk(t *testing.T) {
	w := running(1, nil)
	w.deploy()
	w.check(t, "first")
	older := w.snap.App.Deployment
	w.deploy()
	newer := w.snap.deployment(w.snap.App.Deployment)
	newer.Moved, newer.Want, newer.Old = w.now, w.snap.target().Spec.Count(), 1
	if d := Plan(w.snap, testKeep, w.now); d.Talk || d.Deployments[0].ID != older || d.Deployments[0].State != model.DeploySuperseded {
		t.Fatalf("deployments: %+v, talk %v", d.Deployments, d.Talk)
	}
}

// TestClockAhead protects that what a clock wrote down that was days ahead is not waited for.
func TestClockAhead(t *testing.T) {
	w := running(1, nil)
	spec := w.snap.Versions[0].Spec.Clone()
	spec.Containers[0].Shell = "two"
	w.snap.Versions = append(w.snap.Versions, &model.AppVersion{App: "/web", Version: 2, Spec: spec, Created: w.now})
	a := *w.snap.App
	a.Version = 2
	w.adopt(&a, &model.Deployment{App: "/web", Kind: model.DeployUpdate, From: 1, To: 2, State: model.DeployRunning, Created: w.now})
	w.check(t, "begin")
	w.replace(1, func(i *model.Instance) {
		i.Node, i.Status = "a", model.Status{Phase: model.PhaseRunning, Ready: true, Since: w.now.Add(72 * time.Hour)}
	})
	if d := w.check(t, "ready"); len(d.Stop) != 1 {
		t.Errorf("a node whose clock is ahead keeps the old version running: %+v", d)
	}

	w = running(1, nil)
	w.replace(0, func(i *model.Instance) {
		i.Created = w.now.Add(72 * time.Hour)
		i.Status = model.Status{Phase: model.PhaseStopped, Since: i.Created.Add(time.Second)}
	})
	if d := w.check(t, "lost"); len(d.Create) != 1 {
		t.Errorf("what a leader made whose clock was ahead is not replaced: %+v", d)
	}
}
