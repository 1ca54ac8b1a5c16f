package app

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
)

// shortLived is how long an instance must have existed to be replaced at once when it is lost.
const shortLived = 10 * time.Second

// Keep says how much of an app's past stays.
type Keep struct {
	Versions    int           // newest versions, beside those in use
	Deployments int           // newest ended deployments
	Stopped     int           // newest instances that are over
	StoppedFor  time.Duration // and none that ended longer ago than this
}

// Decisions is what has to be written for one app. The zero Decisions change nothing.
type Decisions struct {
	Create            []Create
	Stop              []Stop
	Forget            []model.InstanceID // delete the records of these
	ForgetVersions    []uint64
	ForgetDeployments []model.DeploymentID
	App               *model.App          // changed record
	Deployments       []*model.Deployment // changed records
	Rollback          *model.Deployment   // to add, without an id, and to be App's newest
	Remove            bool                // delete the app's record
	Events            []model.Event

	Wake    time.Time // when to plan again though nothing changed; zero for never
	Settled bool      // all is as asked: a change of a live instance's status changes no plan
	Talk    bool      // of deployments nothing but one's message changes: it can wait a moment
}

// Create asks for new instances of one version.
type Create struct {
	Version uint64
	Count   int
}

// Stop asks an instance to end. For one that is over already it says that it is not wanted any more.
type Stop struct {
	ID  model.InstanceID
	Why string
}

// Empty reports whether d writes nothing.
func (d *Decisions) Empty() bool {
	return d.size() == 0 && len(d.ForgetVersions) == 0 && len(d.ForgetDeployments) == 0 &&
		d.App == nil && len(d.Deployments) == 0 && d.Rollback == nil && !d.Remove
}

// size returns how many instance records d writes.
func (d *Decisions) size() int {
	n := len(d.Stop) + len(d.Forget)
	for _, c := range d.Create {
		n += c.Count
	}
	return n
}

func (d *Decisions) wakeAt(t time.Time) {
	if d.Wake.IsZero() || t.Before(d.Wake) {
		d.Wake = t
	}
}

// Plan decides what to write for one app. It changes nothing of s.
func Plan(s Snapshot, keep Keep, now time.Time) Decisions {
	p := &planner{s: s, keep: keep, now: now}
	switch {
	case s.App == nil:
		p.sort()
		p.stopAll("its app does not exist")
	case s.App.Removing:
		p.sort()
		p.remove()
	case s.target() == nil:
		p.sort() // the version is on its way, or lost: touch nothing
	default:
		p.policy(s.target())
		p.sort()
		p.advance()
	}
	p.clean()
	return p.d
}

// rank is how much an instance does for its app; those of the lowest rank go first.
type rank uint8

const (
	unplaced rank = iota // has no node
	idle                 // not ready
	young                // ready, but not for long enough
	healthy
)

type member struct {
	*model.Instance
	rank rank
}

// kin is what the planner knows of a version that has instances.
type kin struct {
	current bool
	grace   time.Duration // that its instances have to end
}

type planner struct {
	s    Snapshot
	keep Keep
	now  time.Time
	d    Decisions

	target       *model.AppVersion
	spec         *model.Spec // of target, with defaults
	count        int         // instances asked for
	floor, surge int
	template     string // of target, once it was needed
	kin          map[uint64]kin

	current, old []member          // live
	ending       []*model.Instance // to stop, not over
	lost         []*model.Instance // over, though wanted
	past         []*model.Instance // over
	held         int               // lost, to be replaced later
	oldEnding    int               // of ending, those that are old
	stops        int               // live ones that this plan stops
	freed        int               // of stops, those over at once
	created      int
}

func (p *planner) policy(target *model.AppVersion) {
	p.target, p.spec = target, target.Spec.WithDefaults()
	p.count = p.spec.Count()
	p.surge = p.spec.Update.MaxSurge.Of(p.count, true)
	p.floor = min(p.spec.Update.MinHealthy.Of(p.count, true), p.count)
}

// sort puts every instance where it belongs.
func (p *planner) sort() {
	for _, i := range p.s.Instances {
		switch {
		case i.Over() && i.Desired == model.Run && p.target != nil:
			p.lost = append(p.lost, i)
		case i.Over():
			p.past = append(p.past, i)
		case i.Desired != model.Run:
			p.ending = append(p.ending, i)
			if !p.kinOf(i.Version).current {
				p.oldEnding++
			}
		case p.kinOf(i.Version).current:
			p.current = append(p.current, member{i, p.rank(i)})
		default:
			p.old = append(p.old, member{i, p.rank(i)})
		}
	}
}

// kinOf tells current versions from old ones. Without a target all are old.
func (p *planner) kinOf(n uint64) kin {
	if k, ok := p.kin[n]; ok {
		return k
	}
	var k kin
	v := p.s.version(n)
	if v != nil {
		k.grace = model.DefaultGrace.Std()
		if v.Spec.Stop != nil && v.Spec.Stop.Grace > 0 {
			k.grace = v.Spec.Stop.Grace.Std()
		}
	}
	if p.target != nil {
		k.current = n == p.target.Version || v != nil && v.Template() == p.targetTemplate()
	}
	if p.kin == nil {
		p.kin = map[uint64]kin{}
	}
	p.kin[n] = k
	return k
}

func (p *planner) targetTemplate() string {
	if p.template == "" {
		p.template = p.target.Template()
	}
	return p.template
}

func (p *planner) rank(i *model.Instance) rank {
	since, ready := i.HealthySince()
	switch {
	case i.Node == "":
		return unplaced
	case !ready:
		return idle
	case p.spec == nil:
		return healthy
	}
	least := p.spec.Update.MinHealthyTime.Std()
	if counts := since.Add(least); least > 0 && counts.After(p.now) { // a node's clock may be ahead
		p.d.wakeAt(counts)
		return young
	}
	return healthy
}

func countHealthy(list []member) int {
	n := 0
	for _, m := range list {
		if m.rank == healthy {
			n++
		}
	}
	return n
}

func (p *planner) stopAll(why string) {
	for _, m := range p.current {
		p.stop(m, why)
	}
	for _, m := range p.old {
		p.stop(m, why)
	}
}

func (p *planner) stop(m member, why string) {
	p.d.Stop = append(p.d.Stop, Stop{m.ID, why})
	p.stops++
	if m.Node == "" {
		p.freed++ // nobody has begun it: it is over at once
	}
}

// exists returns how many instances are not over once the plan so far is written.
func (p *planner) exists() int {
	return len(p.current) + len(p.old) + len(p.ending) - p.freed + p.created
}

func (p *planner) create(version uint64, n int) {
	if n <= 0 {
		return
	}
	p.d.Create = append(p.d.Create, Create{version, n})
	p.created += n
}

// advance takes the next step toward the target.
func (p *planner) advance() {
	dep := p.s.deployment(p.s.App.Deployment)
	p.supersede()
	if dep != nil && dep.State == model.DeployPaused {
		p.replaceLost(func(i *model.Instance) uint64 { return i.Version })
		p.pause(dep)
		return
	}
	p.replaceLost(nil)
	p.retireSurplus()
	p.retireOld(countHealthy(p.current) + countHealthy(p.old))
	room := p.count + p.surge - p.exists()
	p.create(p.target.Version, min(p.count-len(p.current)-p.held, room))
	p.follow(dep)
}

// replaceLost marks lost instances as dealt with: by new ones of the version that pick names, as far as the ceiling
// allows, or with a nil pick by whatever the rest of the plan creates.
func (p *planner) replaceLost(pick func(*model.Instance) uint64) {
	for _, i := range p.lost {
		if again := i.Created.Add(shortLived); again.After(p.now) && i.Status.Since.Sub(i.Created) < shortLived {
			p.held++
			p.d.wakeAt(again)
			continue
		}
		if pick != nil {
			if p.exists() >= p.count+p.surge {
				continue
			}
			p.create(pick(i), 1)
		}
		p.d.Stop = append(p.d.Stop, Stop{i.ID, lostWhy(i)})
	}
}

// retireSurplus stops current instances above the count. Healthy ones are only reached when all that stay are healthy.
func (p *planner) retireSurplus() {
	extra := len(p.current) - p.count
	if extra <= 0 {
		return
	}
	why := fmt.Sprintf("the app needs only %s", count(p.count, "instance"))
	if p.count == 0 {
		why = "the app needs no instances"
	}
	p.order(p.current)
	for _, m := range p.current[:extra] {
		p.stop(m, why)
	}
	p.ending = append(p.ending, instances(p.current[:extra])...)
	p.current = p.current[extra:]
}

// retireOld stops old instances: those that do not serve at once, the others as far as the floor allows. While it is
// not reached, what has only just become ready stays too: it is on its way to count.
func (p *planner) retireOld(counted int) {
	var ranks [healthy + 1]int
	for _, m := range p.old {
		ranks[m.rank]++
	}
	n := ranks[unplaced] + ranks[idle]
	if counted >= p.floor {
		n += ranks[young] + min(ranks[healthy], counted-p.floor)
	}
	if n == 0 {
		return
	}
	p.order(p.old)
	for _, m := range p.old[:n] {
		p.stop(m, fmt.Sprintf("version %d replaces version %d", p.target.Version, m.Version))
	}
	p.ending = append(p.ending, instances(p.old[:n])...)
	p.oldEnding += n
	p.old = p.old[n:]
}

// order sorts by who goes first.
func (p *planner) order(list []member) {
	youngest := p.spec.KillOrder != model.OldestFirst
	slices.SortFunc(list, func(a, b member) int {
		age := a.Created.Compare(b.Created)
		if youngest {
			age = -age
		}
		return cmp.Or(cmp.Compare(a.rank, b.rank), age, cmp.Compare(a.ID, b.ID))
	})
}

func instances(list []member) []*model.Instance {
	out := make([]*model.Instance, len(list))
	for i, m := range list {
		out[i] = m.Instance
	}
	return out
}

// compare orders ids.
func compare[T cmp.Ordered](a, b T) int { return cmp.Compare(a, b) }
