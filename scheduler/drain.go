package scheduler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// markDrain notes a node whose instances may have to be told to leave, or that they may stay.
func (l *Loop) markDrain(v state.View, id model.NodeID, now time.Time) {
	if _, yes := draining(v.Settings(id), now); yes || l.drains[id] {
		l.drains[id] = true
	}
}

// drain tells the instances of nodes that are to be empty to leave, and those of nodes that are not any more to stay.
func (l *Loop) drain(ctx context.Context) error {
	now := l.cfg.Now()
	v := l.store.View()
	for id := range l.pic.changes { // windows that have begun
		l.markDrain(v, id, now)
	}
	for _, id := range slices.Sorted(maps.Keys(l.drains)) {
		why, yes := draining(v.Settings(id), now)
		w := wish{withdraw: model.EvictDrain}
		if yes {
			w = wish{ev: &model.Eviction{Kind: model.EvictDrain, Why: fmt.Sprintf("node %s is to be empty%s", nameOf(v, id), because(why)), At: now}}
		}
		var list []wish
		for i := range v.InstancesOn(id) {
			if w.id = i.ID; i.Live() && w.news(i.Evict) {
				list = append(list, w)
			}
		}
		if err := l.evict(ctx, list); err != nil {
			return err
		}
		if !yes {
			delete(l.drains, id)
		}
	}
	return nil
}

// patience is how many searches for moves a move may take before it is given up.
const patience = 10

// defragment moves instances in pools that want it, off one node after the other.
func (l *Loop) defragment(ctx context.Context) error {
	v := l.store.View()
	perform := len(l.pic.to.all) > 0
	for pool := range v.Pools() {
		perform = perform || pool.Defragment == model.DefragmentPerform
	}
	now := l.cfg.Now()
	switch {
	case !perform:
		l.defrag = time.Time{}
		return nil
	case l.defrag.IsZero():
		l.defrag = now.Add(l.cfg.Defrag)
	}
	if l.defrag.After(now) {
		return nil
	}
	l.defrag = now.Add(l.cfg.Defrag)
	if len(l.pic.to.all) > 0 {
		return l.giveUp(ctx, v, now)
	}
	for pool := range v.Pools() {
		if pool.Defragment != model.DefragmentPerform {
			continue
		}
		var list []wish
		for _, m := range l.moves(v, pool.Name) {
			if len(list) > 0 && v.Instance(list[0].id).Node != m.From {
				break
			}
			list = append(list, wish{id: m.Instance, ev: &model.Eviction{Kind: model.EvictMove, Why: m.Gain, To: m.To, At: now}})
		}
		if len(list) > 0 {
			return l.evict(ctx, list)
		}
	}
	return nil
}

// giveUp withdraws moves that could not be done for long. What kept them from it may last, so the next search has as much
// time.
func (l *Loop) giveUp(ctx context.Context, v state.View, now time.Time) error {
	var list []wish
	for _, id := range slices.Sorted(maps.Keys(l.pic.to.all)) {
		if i := v.Instance(id); i != nil && i.Evict != nil && !i.Evict.At.Add(patience*l.cfg.Defrag).After(now) {
			list = append(list, wish{id: id, withdraw: model.EvictMove})
		}
	}
	if len(list) > 0 {
		l.defrag = now.Add(patience * l.cfg.Defrag)
	}
	return l.evict(ctx, list)
}

// moves returns what the defragmenter proposes for a pool. Instances that are not well, or whose app is in the midst of a
// deployment, or that have a slot, stay where they are; so do those of apps that may not have one more for a while, since
// to move them is to stop them.
func (l *Loop) moves(v state.View, pool string) []model.Move {
	return l.pic.engine.Defrag(pool, func(id model.InstanceID) bool {
		i := v.Instance(id)
		if i == nil || i.Slot != 0 || i.Evict != nil {
			return false
		}
		a := v.App(i.App)
		if a == nil {
			return false
		}
		t, d := v.Target(a.ID), v.Deployment(a.Deployment)
		_, healthy := i.HealthySince()
		return healthy && (d == nil || d.State.Over()) && t != nil && t.Spec.Ceiling() > t.Spec.Count()
	})
}
