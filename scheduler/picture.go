package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/engine"
	"github.com/gantry-os/gantry/state"
)

// picture keeps an engine as the records say.
type picture struct {
	engine  *engine.Engine
	classes map[classKey]*entry
	of      map[*engine.Class]*entry
	byApp   map[model.AppID][]*entry
	crowded int // classes at which to look which are of no use any more
	pools   map[string]usage
	changes map[model.NodeID]time.Time // when a maintenance window of a node begins or ends next
	next    time.Time                  // the first of changes, zero for none
	to      marks[model.AppID]         // instances that are to move to a certain node
	lost    marks[model.AppID]         // instances that were preempted and count as healthy still
	ousted  marks[model.NodeID]        // instances that were preempted and are not over
}

// usage is what of a pool's record places depend on.
type usage struct {
	placement model.Policy
	spread    model.Spreading
}

// entry is a class and the version that it was made from.
type entry struct {
	key      classKey
	class    *engine.Class
	spec     *model.Spec
	revision uint64      // of the version's record
	volumes  model.Bytes // persistent ones, in all
	fresh    *engine.Class
	partly   map[model.Bytes]*engine.Class // with the size of volumes that are missing
}

func newPicture(v state.View, now time.Time) *picture {
	p := &picture{
		engine: engine.New(engine.Config{}), classes: map[classKey]*entry{}, of: map[*engine.Class]*entry{},
		byApp: map[model.AppID][]*entry{}, pools: map[string]usage{}, changes: map[model.NodeID]time.Time{},
		to: newMarks[model.AppID](), lost: newMarks[model.AppID](), ousted: newMarks[model.NodeID](),
	}
	for pool := range v.Pools() {
		p.pools[pool.Name] = usage{pool.Placement, pool.Spread}
		p.engine.SetPool(pool.Name, pool.Placement)
		p.engine.SetSpread(pool.Name, pool.Spread != model.SpreadOff)
	}
	for n := range v.Nodes() {
		p.setNode(v, n.ID, now)
	}
	p.setRules(v)
	for vol := range v.Volumes() {
		p.setVolume(vol.ID, vol)
	}
	for i := range v.Instances() {
		p.sync(v, i.ID, i)
	}
	return p
}

// poolsChanged reports whether pools choose nodes otherwise than the picture knows.
func (p *picture) poolsChanged(v state.View) bool {
	n := 0
	for pool := range v.Pools() {
		if was, ok := p.pools[pool.Name]; !ok || was != (usage{pool.Placement, pool.Spread}) {
			return true
		}
		n++
	}
	return n != len(p.pools)
}

// setRules takes over roles and reservations.
func (p *picture) setRules(v state.View) {
	var roles []model.Role
	for r := range v.Roles() {
		roles = append(roles, *r)
	}
	p.engine.SetRoles(roles)
	var kept []engine.Reserved
	for r := range v.Reservations() {
		kept = append(kept, engine.Reserved{ID: r.ID, Role: r.Role, Node: r.Node, Resources: r.Resources})
	}
	p.engine.SetReservations(kept)
}

// setVolume takes over a volume's record, nil when it is gone, and reports whether that freed anything.
func (p *picture) setVolume(id model.VolumeID, vol *model.PersistentVolume) bool {
	if vol == nil {
		return p.engine.RemoveVolume(id)
	}
	p.engine.SetVolume(id, vol.Node, vol.Size)
	return false
}

// shut says why a node takes no new work; empty when it does.
func shut(n *model.Node, s *model.NodeSettings, now time.Time) string {
	switch {
	case n == nil:
		return "unknown"
	case n.State != model.NodeReady:
		return string(n.State)
	case s != nil && s.Draining:
		return "draining" + because(s.Why)
	case s != nil && s.Cordoned:
		return "cordoned" + because(s.Why)
	case n.Unstable.After(now):
		return "unstable: " + n.Unsteady()
	case s == nil:
		return ""
	}
	for _, w := range s.Windows {
		if inside, end := w.At(now); inside {
			return fmt.Sprintf("in maintenance until %s%s", end.UTC().Format("2006-01-02 15:04 MST"), because(w.Why))
		}
	}
	return ""
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

// draining reports whether the instances of a node are to leave it, and why.
func draining(s *model.NodeSettings, now time.Time) (string, bool) {
	if s == nil {
		return "", false
	}
	if s.Draining {
		return s.Why, true
	}
	for _, w := range s.Windows {
		if inside, _ := w.At(now); inside && w.Drain {
			return cmp.Or(w.Why, "maintenance"), true
		}
	}
	return "", false
}

// setNode takes over a node's record and settings, and reports whether anything about placement changed.
func (p *picture) setNode(v state.View, id model.NodeID, now time.Time) bool {
	n, s := v.Node(id), v.Settings(id)
	delete(p.changes, id)
	if n == nil {
		return p.engine.RemoveNode(id)
	}
	if n.Unstable.After(now) {
		p.changes[id] = n.Unstable
	}
	if s != nil {
		for _, w := range s.Windows {
			if _, next := w.At(now); !next.IsZero() {
				p.changes[id] = sooner(p.changes[id], next)
			}
		}
	}
	p.next = sooner(p.next, p.changes[id])
	return p.engine.SetNode(engine.Node{
		ID: id, Name: n.Name, Pool: n.Pool, Shut: shut(n, s, now), Attributes: n.Attributes, Region: n.Region, Zone: n.Zone,
		Capacity: n.Capacity, GPUs: n.GPUs, Custom: n.Custom, Ports: n.Ports, OCI: n.OCI, VM: n.VM,
	})
}

// due takes over the maintenance windows that have begun or ended, and reports whether there were any.
func (p *picture) due(v state.View, now time.Time) bool {
	if p.next.IsZero() || p.next.After(now) {
		return false
	}
	p.next = time.Time{}
	moved := false
	for id, at := range p.changes {
		if !at.After(now) {
			moved = p.setNode(v, id, now) || moved
		} else {
			p.next = sooner(p.next, at)
		}
	}
	return moved
}

// entry returns the class of a version, nil when the version does not exist.
func (p *picture) entry(v state.View, key classKey) *entry {
	e := p.classes[key]
	ver := v.Version(key.app, key.version)
	if ver == nil || e != nil && e.revision == ver.Revision {
		return e
	}
	if e != nil { // the app was removed and made again
		p.remove(e)
	}
	e = &entry{key: key, spec: ver.Spec, revision: ver.Revision}
	ask := engine.AskOf(ver)
	ask.Role, ask.Priority = standing(v, key.app, ver.Spec)
	e.class = p.engine.Class(ask)
	for i := range ver.Spec.Volumes {
		if per := ver.Spec.Volumes[i].Persistent; per != nil {
			e.volumes += per.Size
		}
	}
	p.keep(e)
	return e
}

func (p *picture) keep(e *entry) {
	p.classes[e.key] = e
	p.of[e.class] = e
	p.byApp[e.key.app] = append(p.byApp[e.key.app], e)
}

// standing returns the role and the priority of an app: those of its newest version, whatever an instance was made for.
func standing(v state.View, app model.AppID, own *model.Spec) (model.RoleID, int) {
	s := own
	if t := v.Target(app); t != nil {
		s = t.Spec
	}
	priority := model.DefaultPriority
	if s.Priority != nil {
		priority = *s.Priority
	}
	return cmp.Or(s.Role, model.RootRole), priority
}

// reclass moves the instances of an app to classes of its new role and priority, and reports whether it has any.
func (p *picture) reclass(v state.View, app model.AppID) (changed bool) {
	for _, old := range p.byApp[app] {
		role, priority := standing(v, app, old.spec)
		if old.class.Role == role && old.class.Priority == priority {
			continue
		}
		changed = true
		ask := old.class.Ask
		ask.Role, ask.Priority = role, priority
		class := p.engine.Class(ask)
		p.dropClasses(old)
		old.class = class
		p.of[class] = old
		for i := range v.InstancesOf(app) {
			if i.Version != old.key.version || i.Node == "" {
				continue
			}
			if _, _, held := p.engine.Held(i.ID); held {
				p.hold(i, old)
				p.engine.Leaving(i.ID, leaving(i))
			}
		}
	}
	return changed
}

func (p *picture) dropClasses(e *entry) {
	drop := func(c *engine.Class) {
		delete(p.of, c)
		p.engine.Drop(c)
	}
	drop(e.class)
	if e.fresh != nil {
		drop(e.fresh)
	}
	for _, c := range e.partly {
		drop(c)
	}
	e.fresh, e.partly = nil, nil
}

// withVolumes returns the class of instances whose volumes are all to be made.
func (p *picture) withVolumes(e *entry) *engine.Class {
	if e.fresh == nil {
		e.fresh = p.withDisk(e, e.volumes)
	}
	return e.fresh
}

// lacks returns the size of the volumes that an instance with some of them needs besides.
func (e *entry) lacks(have []*model.PersistentVolume) model.Bytes {
	size := e.volumes
	for _, vol := range have {
		for i := range e.spec.Volumes {
			if per := e.spec.Volumes[i].Persistent; per != nil && e.spec.Volumes[i].Name == vol.Name {
				size -= per.Size
			}
		}
	}
	return max(0, size)
}

// missing returns the class of instances that have some of their volumes.
func (p *picture) missing(e *entry, have []*model.PersistentVolume) *engine.Class {
	size := e.lacks(have)
	if size <= 0 {
		return e.class
	}
	if e.partly == nil {
		e.partly = map[model.Bytes]*engine.Class{}
	}
	if e.partly[size] == nil {
		e.partly[size] = p.withDisk(e, size)
	}
	return e.partly[size]
}

func (p *picture) withDisk(e *entry, size model.Bytes) *engine.Class {
	ask := e.class.Ask
	ask.Volumes = size
	c := p.engine.Class(ask)
	p.of[c] = e
	return c
}

// hold takes over the place that an instance's record says.
func (p *picture) hold(i *model.Instance, e *entry) {
	p.engine.Hold(engine.Placement{ID: i.ID, Node: i.Node, Ports: i.Ports, GPUs: i.GPUs, Items: i.Items}, e.class)
}

// sync makes the hold of an instance what its record says, nil for none, and reports whether it freed anything.
func (p *picture) sync(v state.View, id model.InstanceID, i *model.Instance) (freed bool) {
	_, _, held := p.engine.Held(id)
	wants := i != nil && i.Node != "" && !i.Over()
	p.aim(id, i, wants)
	switch {
	case held && !wants:
		p.engine.Release(id)
		freed = true
	case !held && wants:
		e := p.entry(v, classKey{i.App, i.Version})
		if e == nil { // its version is gone: only its ports are known
			e = &entry{key: classKey{i.App, i.Version}, spec: &model.Spec{}, class: p.engine.Class(engine.Ask{App: i.App, Template: "lost"})}
			p.keep(e)
		}
		p.hold(i, e)
	}
	if wants {
		p.engine.Leaving(id, leaving(i))
	}
	return freed
}

// leaving reports whether an instance is about to end, so that its place will be free.
func leaving(i *model.Instance) bool {
	return i.Desired == model.Halt || i.Evict != nil && i.Evict.Kind == model.EvictPreempt
}

// aim follows the instances that have to leave: whom others look at.
func (p *picture) aim(id model.InstanceID, i *model.Instance, here bool) {
	if !here || i.Evict == nil {
		p.to.set(id, "", false)
		p.lost.set(id, "", false)
		p.ousted.set(id, "", false)
		return
	}
	_, healthy := i.HealthySince()
	preempted := i.Evict.Kind == model.EvictPreempt
	p.to.set(id, i.App, i.Live() && i.Evict.To != "")
	p.lost.set(id, i.App, preempted && healthy)
	p.ousted.set(id, i.Node, preempted)
}

// heirTo returns the node that an instance has to go to since it takes over from one that is to move there; empty for any.
func (p *picture) heirTo(v state.View, i *model.Instance) model.NodeID {
	if i == nil || i.Replaces == "" || p.to.of[i.App] == 0 {
		return ""
	}
	if old := v.Instance(i.Replaces); old != nil && old.Live() && old.Evict != nil {
		return old.Evict.To
	}
	return ""
}

// marks is a set of instances, counted by something.
type marks[K comparable] struct {
	all map[model.InstanceID]K
	of  map[K]int
}

func newMarks[K comparable]() marks[K] {
	return marks[K]{map[model.InstanceID]K{}, map[K]int{}}
}

// set puts an instance in, or takes it out, whatever key it was under.
func (m *marks[K]) set(id model.InstanceID, key K, in bool) {
	old, was := m.all[id]
	switch {
	case in && !was:
		m.all[id] = key
		m.of[key]++
	case was && !in:
		delete(m.all, id)
		if m.of[old]--; m.of[old] == 0 {
			delete(m.of, old)
		}
	}
}

// forget drops classes that nothing uses, from time to time.
func (p *picture) forget(queues map[classKey]*queue) {
	if len(p.classes) < max(1024, p.crowded) {
		return
	}
	used := map[classKey]bool{}
	p.engine.EachClass(func(c *engine.Class) {
		if e := p.of[c]; e != nil {
			used[e.key] = true
		}
	})
	for key, e := range p.classes {
		if used[key] || queues[key] != nil {
			continue
		}
		p.remove(e)
	}
	p.crowded = 2 * len(p.classes)
}

func (p *picture) remove(e *entry) {
	p.dropClasses(e)
	delete(p.classes, e.key)
	app := e.key.app
	p.byApp[app] = slices.DeleteFunc(p.byApp[app], func(o *entry) bool { return o == e })
	if len(p.byApp[app]) == 0 {
		delete(p.byApp, app)
	}
}
