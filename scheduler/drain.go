package scheduler

import (
	"context"
	"fmt"
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
	for id := range l.drains {
		why, yes := draining(v.Settings(id), now)
		var list []model.InstanceID
		for i := range v.InstancesOn(id) {
			if i.Live() && (i.Evict == nil) == yes && (yes || i.Evict.Kind == model.EvictDrain) {
				list = append(list, i.ID)
			}
		}
		var ev *model.Eviction
		if yes {
			ev = &model.Eviction{Kind: model.EvictDrain, Why: l.drainWords(v, id, why), At: now}
		}
		for len(list) > 0 {
			n := min(len(list), chunk)
			if err := l.evict(ctx, n, func(n int) (model.InstanceID, *model.Eviction) { return list[n], ev }); err != nil {
				return err
			}
			list = list[n:]
		}
		if !yes {
			delete(l.drains, id)
		}
	}
	return nil
}

func (l *Loop) drainWords(v state.View, id model.NodeID, why string) string {
	name := string(id)
	if n := v.Node(id); n != nil {
		name = n.Name
	}
	return fmt.Sprintf("node %s is to be empty%s", name, because(why))
}

// defragment moves instances in pools that want it, one search at a time.
func (l *Loop) defragment(ctx context.Context) error {
	now := l.cfg.Now()
	v := l.store.View()
	perform := false
	for pool := range v.Pools() {
		perform = perform || pool.Defragment == model.DefragmentPerform
	}
	if !perform {
		l.defrag = time.Time{}
		return nil
	}
	if l.defrag.IsZero() {
		l.defrag = now.Add(l.cfg.Defrag)
	}
	if l.defrag.After(now) {
		return nil
	}
	l.defrag = now.Add(l.cfg.Defrag)
	if len(l.queues) > 0 || len(l.pic.to) > 0 {
		return nil // what waits, or moves, comes first
	}
	for pool := range v.Pools() {
		if pool.Defragment != model.DefragmentPerform {
			continue
		}
		moves := l.moves(v, pool.Name)
		err := l.evict(ctx, len(moves), func(n int) (model.InstanceID, *model.Eviction) {
			return moves[n].Instance, &model.Eviction{Kind: model.EvictMove, Why: moves[n].Gain, To: moves[n].To, At: now}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// moves returns what the defragmenter proposes for a pool. Instances that are not well, or whose app is in the midst of a
// deployment, or that have a slot, stay where they are.
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
		d := v.Deployment(a.Deployment)
		_, healthy := i.HealthySince()
		return healthy && (d == nil || d.State.Over())
	})
}
