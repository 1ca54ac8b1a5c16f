package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/engine"
	"github.com/gantry-os/gantry/state"
)

// ErrStopped says that no scheduler works on this server now.
var ErrStopped = errors.New("the scheduler does not work on this server now")

// question is work for the loop's goroutine.
type question = func()

// askFor runs fn in the loop's goroutine and returns its answer. It is no method because methods have no type parameters.
func askFor[T any](ctx context.Context, l *Loop, fn func(state.View) (T, error)) (T, error) {
	type answer struct {
		val T
		err error
	}
	answers := make(chan answer, 1) // has room, so that the loop never waits for who went away
	call := func() {
		if l.pic == nil {
			answers <- answer{err: ErrStopped}
			return
		}
		val, err := fn(l.store.View())
		answers <- answer{val, err}
	}
	var none T
	asking := l.asking
	for {
		select {
		case asking <- call:
			asking = nil // asked once
		case a := <-answers:
			return a.val, a.err
		case <-l.stopped:
			return none, ErrStopped
		case <-ctx.Done():
			return none, context.Cause(ctx)
		}
	}
}

// answer answers the questions that wait.
func (l *Loop) answer() {
	for {
		select {
		case call := <-l.asking:
			call()
		default:
			return
		}
	}
}

// Plan answers whether an app would fit now, and where. Nothing is changed.
func (l *Loop) Plan(ctx context.Context, s *model.Spec) (model.Plan, error) {
	return askFor(ctx, l, func(v state.View) (model.Plan, error) { return l.plan(v, s), nil })
}

// Funnel says how the nodes are narrowed down to those that take one more instance of an app.
func (l *Loop) Funnel(ctx context.Context, app model.AppID) (model.Funnel, error) {
	return askFor(ctx, l, func(v state.View) (model.Funnel, error) {
		t := v.Target(app)
		if t == nil {
			return model.Funnel{}, fmt.Errorf("app %s does not exist", app)
		}
		return l.funnel(l.pic.entry(v, classKey{app, t.Version})), nil
	})
}

func (l *Loop) funnel(e *entry) model.Funnel {
	c := e.class
	if e.volumes > 0 {
		c = l.pic.withVolumes(e)
	}
	f, _ := l.pic.engine.Explain(c)
	return f
}

// Moves returns what the defragmenter proposes for a pool; "" for all pools.
func (l *Loop) Moves(ctx context.Context, pool string) ([]model.Move, error) {
	return askFor(ctx, l, func(v state.View) ([]model.Move, error) {
		pools := map[string]bool{}
		for n := range v.Nodes() {
			pools[cmp.Or(n.Pool, model.DefaultPool)] = true
		}
		var out []model.Move
		for _, name := range slices.Sorted(maps.Keys(pools)) {
			if p := v.Pool(name); pool != "" && pool != name || p != nil && p.Defragment == model.DefragmentOff {
				continue
			}
			out = append(out, l.moves(v, name)...)
		}
		return out, nil
	})
}

// planVictims bounds the instances for which a plan looks for victims.
const planVictims = 100

// plan places an app for a moment, notes where, and takes everything back.
func (l *Loop) plan(v state.View, s *model.Spec) model.Plan {
	en := l.pic.engine
	ver := &model.AppVersion{App: s.ID, Version: 1, Spec: s}
	if t := v.Target(s.ID); t != nil {
		ver.Restarts = t.Restarts
	}
	ask := engine.AskOf(ver)
	for i := range s.Volumes {
		if p := s.Volumes[i].Persistent; p != nil {
			ask.Volumes += p.Size
		}
	}
	class := en.Class(ask)
	defer en.Drop(class)
	out := model.Plan{App: s.ID, Instances: s.Count()}
	back := l.setAside(v, s, ask.Template, &out)
	defer back()

	ids := make([]model.InstanceID, max(0, out.Instances-out.Kept))
	for i := range ids {
		ids[i] = model.InstanceID(fmt.Sprintf("plan of %s %d", s.ID, i))
	}
	out.Funnel, _ = en.Explain(class)
	placed, fresh := l.planHomes(v, ver, class, ids)
	homes := len(placed)
	placed = en.Place(class, fresh, placed) // not PlaceAll: a round of the loop may be under way
	if len(placed) < len(ids) {
		out.Funnel, _ = en.Explain(class)
	}
	waiting := fresh[len(placed)-homes:]
	placed = append(placed, l.planPreemption(v, class, waiting[:min(len(waiting), planVictims)], &out)...)
	out.Placed, out.Waiting = len(placed), len(ids)-len(placed)
	out.Nodes = l.planNodes(v, placed)
	out.Funnel.Spread = en.Spreading(class) // with those that were placed
	for _, id := range ids {
		en.Release(id)
		en.RemoveVolume(model.VolumeID(id))
	}
	for _, x := range out.Preempted {
		en.Leaving(x.Instance, false)
	}
	return out
}

// planHomes places instances of the slots that have volumes already where those are. It returns their places, and the ids
// of the instances that may go anywhere.
func (l *Loop) planHomes(v state.View, ver *model.AppVersion, c *engine.Class, ids []model.InstanceID) (homes []engine.Placement, fresh []model.InstanceID) {
	if c.Volumes == 0 {
		return nil, ids
	}
	e := &entry{spec: ver.Spec, class: c, volumes: c.Volumes}
	held := map[uint32]bool{}
	for i := range v.InstancesOf(ver.App) {
		if _, class, ok := l.pic.engine.Held(i.ID); ok && i.Live() && class.Template == c.Template {
			held[i.Slot] = true
		}
	}
	for slot := uint32(1); len(ids) > 0 && int(slot) <= ver.Spec.Count(); slot++ {
		if held[slot] {
			continue
		}
		id := ids[0]
		ids = ids[1:]
		have := volumesAt(v, &model.Instance{App: ver.App, Slot: slot}, ver.Spec)
		if len(have) == 0 {
			fresh = append(fresh, id)
			continue
		}
		ask := c.Ask
		ask.Volumes = e.lacks(have)
		class := l.pic.engine.Class(ask)
		if removing(have) == nil {
			if p, ok := l.pic.engine.PlaceOn(class, id, have[0].Node); ok {
				homes = append(homes, p)
			}
		}
		l.pic.engine.Drop(class)
	}
	return homes, fresh
}

// setAside takes the app's instances that its new version would replace out of the picture, and counts those that would
// stay. The function that it returns puts them back.
func (l *Loop) setAside(v state.View, s *model.Spec, template string, out *model.Plan) func() {
	var aside []*model.Instance
	for i := range v.InstancesOf(s.ID) {
		if !i.Live() || i.Node == "" {
			continue
		}
		_, class, held := l.pic.engine.Held(i.ID)
		if !held {
			continue
		}
		if class.Template == template {
			out.Kept = min(out.Kept+1, out.Instances)
			continue
		}
		l.pic.engine.Release(i.ID)
		aside = append(aside, i)
	}
	return func() {
		for _, i := range aside {
			l.pic.sync(v, i.ID, i)
		}
	}
}

// planNodes sums placements up by node.
func (l *Loop) planNodes(v state.View, placed []engine.Placement) []model.PlanNode {
	at := map[model.NodeID]int{}
	var out []model.PlanNode
	for _, p := range placed {
		n, ok := at[p.Node]
		if !ok {
			n = len(out)
			at[p.Node] = n
			name := string(p.Node)
			if rec := v.Node(p.Node); rec != nil {
				name = rec.Name
			}
			out = append(out, model.PlanNode{Node: p.Node, Name: name, Free: l.pic.engine.FreeLater(p.Node)})
		}
		out[n].Instances++
	}
	return out
}

// planPreemption looks for others to end so that instances get places, and returns those places that are known.
func (l *Loop) planPreemption(v state.View, class *engine.Class, ids []model.InstanceID, out *model.Plan) []engine.Placement {
	l.losing = map[model.AppID]int{}
	spare := l.spares(v)
	var placed []engine.Placement
	for _, id := range ids {
		p, ok := l.preempt(class, id, spare)
		if !ok {
			break
		}
		for _, x := range p.Victims {
			l.losing[x.App]++
			out.Preempted = append(out.Preempted, model.PlanVictim{Instance: x.ID, App: x.App, Node: x.Node, Priority: x.Priority, Why: x.Why})
		}
		node := p.Node
		if node == "" { // the limit of its role was in the way: where it goes is found then
			node = p.Victims[0].Node
		}
		placed = append(placed, engine.Placement{ID: id, Node: node})
	}
	return placed
}
