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
	Expunge           []Expunge
	Stop              []Stop
	Stay              []Stay
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
	Version  uint64
	Count    int
	Slots    []uint32           // one for each, when they have slots
	Replaces []model.InstanceID // whom the first ones take over from
}

// Stop asks an instance to end. For one that is over already it says that it is not wanted any more.
type Stop struct {
	ID    model.InstanceID
	Why   string
	Event string // type of the event that tells of it, when it is neither instance.stopping nor instance.lost
}

// Expunge gives up an instance whose node does not answer: it is over, whatever the node may still run.
type Expunge struct {
	ID  model.InstanceID
	Why string
}

// Stay says what an instance waits for that has to leave its node; nothing once it need not.
type Stay struct {
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
	n := len(d.Expunge) + len(d.Stop) + len(d.Stay) + len(d.Forget)
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
		if t := s.target(); t != nil {
			p.unreachable = t.Spec.WithDefaults().Unreachable
		}
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

	target         *model.AppVersion
	spec           *model.Spec // of target, with defaults
	count          int         // instances asked for
	floor, ceiling int
	stateful       bool   // instances of target have slots
	template       string // of target, once it was needed
	kin            map[uint64]kin

	current, old []member          // live
	ending       []*model.Instance // to stop, not over
	lost         []*model.Instance // over, though wanted
	past         []*model.Instance // over
	held         int               // lost, to be replaced later
	oldEnding    int               // of ending, those that are old
	counted      int               // live and healthy, less those that this plan stops
	stops        int               // live ones that this plan stops
	freed        int               // of stops, those over at once
	created      int

	unreachable *model.Unreachable        // what becomes of instances on lost nodes; nil for nothing
	off         []*model.Instance         // on lost nodes, not over, and none of the lists above: replaced
	gone        []*model.Instance         // on lost nodes, that this plan gives up
	away        int                       // on lost nodes, whatever becomes of them
	standIns    map[model.InstanceID]bool // for whom another came that is not over, once it was needed
	resting     int                       // of away, those that an outage keeps from being replaced

	evicted bool                      // some live ones have to leave their nodes
	heirs   map[model.InstanceID]heir // by the live instance that each takes over from
	pairs   int                       // heirs of leaving current ones, above the count
	slots   map[uint32]bool           // that may not be given away, once it was needed
}

func (p *planner) policy(target *model.AppVersion) {
	p.target, p.spec = target, target.Spec.WithDefaults()
	p.count, p.floor, p.ceiling = p.spec.Count(), p.spec.Floor(), p.spec.Ceiling()
	p.stateful, p.unreachable = p.spec.Stateful(), p.spec.Unreachable
}

// sort puts every instance where it belongs.
func (p *planner) sort() {
	for _, i := range p.s.Instances {
		switch {
		case i.Over() && i.Desired == model.Run && p.target != nil:
			p.lost = append(p.lost, i)
		case i.Over():
			p.past = append(p.past, i)
		case !i.Status.Away.IsZero() && p.writeOff(i):
		case i.Desired != model.Run:
			p.ending = append(p.ending, i)
			if !p.kinOf(i.Version).current {
				p.oldEnding++
			}
		default:
			p.sortLive(i)
		}
	}
}

func (p *planner) sortLive(i *model.Instance) {
	m := member{i, p.rank(i)}
	if m.rank == healthy {
		p.counted++
	}
	p.evicted = p.evicted || i.Evict != nil
	if p.kinOf(i.Version).current {
		p.current = append(p.current, m)
	} else {
		p.old = append(p.old, m)
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
	if since.After(p.now) { // by another clock: that it did not end since is not known, and cannot be waited for
		return healthy
	}
	if counts := since.Add(p.spec.Update.MinHealthyTime.Std()); counts.After(p.now) {
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
	p.d.Stop = append(p.d.Stop, Stop{ID: m.ID, Why: why})
	p.stops++
	if m.Node == "" {
		p.freed++ // nobody has begun it: it is over at once
	}
}

// halt stops a member of an app that goes on. It is up to the caller to take it out of its list.
func (p *planner) halt(m member, why, event string) {
	p.stop(m, why)
	p.d.Stop[len(p.d.Stop)-1].Event = event
	p.ending = append(p.ending, m.Instance)
	if !p.kinOf(m.Version).current {
		p.oldEnding++
	}
	if m.rank == healthy {
		p.counted--
	}
}

// spare reports whether the floor lets m go. While it is not reached, what has only just become ready stays too: it is
// on its way to count. Of whom nobody knows how it is, nobody can say that it is of no use: a network that heals must not
// stop what it hid.
func (p *planner) spare(m member) bool {
	if !m.Status.Away.IsZero() {
		return false
	}
	switch m.rank {
	case healthy:
		return p.counted > p.floor
	case young:
		return p.counted >= p.floor
	}
	return true
}

// exists returns how many instances are not over once the plan so far is written.
func (p *planner) exists() int {
	return len(p.current) + len(p.old) + len(p.ending) - p.freed + p.created
}

// room returns how many more the ceiling allows.
func (p *planner) room() int { return p.ceiling - p.exists() }

func (p *planner) create(c Create) {
	if c.Count <= 0 {
		return
	}
	p.d.Create = append(p.d.Create, c)
	p.created += c.Count
}

// advance takes the next step toward the target.
func (p *planner) advance() {
	dep := p.s.deployment(p.s.App.Deployment)
	paused := dep != nil && dep.State == model.DeployPaused
	p.supersede()
	p.preempt()
	p.retireOverdue()
	p.findHeirs(paused)
	p.replaceLost(paused)
	if paused {
		p.moveWhilePaused(dep)
		p.explainStays()
		p.pause(dep)
		return
	}
	p.retireSurplus()
	p.retireMoved(&p.current)
	p.retireOld()
	p.fill()
	p.explainStays()
	p.follow(dep)
}

// replaceLost marks lost instances as dealt with: by what the rest of the plan creates, or while the app's deployment is
// paused by new ones of the version that they had, as far as the ceiling allows.
func (p *planner) replaceLost(paused bool) {
	for _, i := range p.lost {
		if again := i.Created.Add(shortLived); again.After(p.now) && !i.Created.After(p.now) && i.Status.Since.Sub(i.Created) < shortLived {
			p.held++
			p.hold(i.Slot)
			p.d.wakeAt(again)
			continue
		}
		if paused && !p.recreate(i, i.Replaces) {
			continue
		}
		p.d.Stop = append(p.d.Stop, Stop{ID: i.ID, Why: lostWhy(i)})
	}
}

// recreate asks for one instance like i, in its slot, if there is room for it. It takes over from replaces, if that is
// set.
func (p *planner) recreate(i *model.Instance, replaces model.InstanceID) bool {
	if p.room() <= 0 || i.Slot != 0 && !p.hold(i.Slot) {
		return false
	}
	c := Create{Version: i.Version, Count: 1}
	if i.Slot != 0 {
		c.Slots = []uint32{i.Slot}
	}
	if replaces != "" {
		c.Replaces = []model.InstanceID{replaces}
	}
	p.create(c)
	return true
}

// retire stops those of list for which why has a reason, in the order of list. It may also name another type of event.
func (p *planner) retire(list *[]member, why func(member) (reason, event string)) {
	kept := (*list)[:0]
	for _, m := range *list {
		if reason, event := why(m); reason != "" {
			p.halt(m, reason, event)
		} else {
			kept = append(kept, m)
		}
	}
	*list = kept
}

// retireSurplus stops current instances above the count. Healthy ones are only reached when all that stay are healthy;
// but with slots it is the highest that go, so there the floor holds.
func (p *planner) retireSurplus() {
	extra := len(p.current) - p.count - p.pairs
	if extra <= 0 && !p.stateful {
		return
	}
	reason := fmt.Sprintf("the app needs only %s", count(p.count, "instance"))
	if p.count == 0 {
		reason = "the app needs no instances"
	}
	above := func(m member) bool { return int(m.Slot) > p.count }
	if p.stateful && !slices.ContainsFunc(p.current, above) {
		return
	}
	p.order(p.current)
	p.retire(&p.current, func(m member) (string, string) {
		switch {
		case p.stateful && (!above(m) || !p.spare(m)), !p.stateful && extra <= 0:
			return "", ""
		}
		extra += p.part(m) - 1
		if p.needless(m) {
			return needlessWhy(m), ""
		}
		return reason, ""
	})
}

// retireOld stops old instances: those that do not serve at once, the others as far as the floor allows.
func (p *planner) retireOld() {
	if !slices.ContainsFunc(p.old, p.spare) {
		return
	}
	p.order(p.old)
	p.retire(&p.old, func(m member) (string, string) {
		if !p.spare(m) {
			return "", ""
		}
		return fmt.Sprintf("version %d replaces version %d", p.target.Version, m.Version), ""
	})
}

// order sorts by who goes first: who does least; then who has to leave its node anyway, and who came for one that need
// not; then the highest slots; then as the app says.
func (p *planner) order(list []member) {
	youngest := p.spec.KillOrder != model.OldestFirst
	slices.SortFunc(list, func(a, b member) int {
		age := a.Created.Compare(b.Created)
		if youngest {
			age = -age
		}
		return cmp.Or(cmp.Compare(a.rank, b.rank), p.firstToGo(a, b), cmp.Compare(b.Slot, a.Slot), age, cmp.Compare(a.ID, b.ID))
	})
}

func (p *planner) firstToGo(a, b member) int {
	if !p.evicted && p.heirs == nil {
		return 0
	}
	grade := func(m member) int {
		switch {
		case m.Evict != nil:
			return 0
		case p.needless(m):
			return 1
		}
		return 2
	}
	return grade(a) - grade(b)
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
