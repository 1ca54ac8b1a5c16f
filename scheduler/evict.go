package scheduler

import (
	"context"
	"fmt"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/engine"
	"github.com/gantry-os/gantry/state"
)

// Bounds of one step: what is beyond waits for the next.
const (
	mostPreempted = 64 // instances that others have to end for
	perClass      = 16 // of one class
)

// keeping is what a pending instance waits for.
type keeping struct {
	node    model.NodeID // where its place is kept; empty when it has to be found yet
	victims []engine.Victim
}

// words says what an instance waits for.
func (k keeping) words(v state.View) string {
	first := "others"
	if len(k.victims) == 1 {
		first = string(k.victims[0].ID)
	} else if len(k.victims) > 1 {
		first = fmt.Sprintf("%s and %d more", k.victims[0].ID, len(k.victims)-1)
	}
	if n := v.Node(k.node); n != nil {
		return fmt.Sprintf("it takes the place of %s on %s, which has to end first", first, n.Name)
	}
	return fmt.Sprintf("it takes the place of %s, which has to end first", first)
}

// settle gives those their places for whom others have ended.
func (l *Loop) settle(batch []engine.Placement) []engine.Placement {
	for id, k := range l.kept {
		if k.node == "" {
			if !l.anyHeld(k.victims) {
				delete(l.kept, id)
			}
			continue
		}
		p, placed, kept := l.pic.engine.Settle(id)
		if placed {
			batch = append(batch, p)
			l.member[id].ids.Delete(id) // it wants no other; launch does the rest
		}
		if placed || !kept {
			delete(l.kept, id)
		}
	}
	return batch
}

func (l *Loop) anyHeld(victims []engine.Victim) bool {
	for _, x := range victims {
		if _, _, held := l.pic.engine.Held(x.ID); held {
			return true
		}
	}
	return false
}

// makeRoom ends less important work for what was tried and still waits.
func (l *Loop) makeRoom(ctx context.Context, tried []*queue) error {
	v := l.store.View()
	l.losing = map[model.AppID]int{}
	spare := l.spares(v)
	var victims []engine.Victim
	sum := 0
	for _, q := range tried {
		e := l.pic.entry(v, q.key)
		if e == nil || e.volumes > 0 || q.ids.Len() == 0 {
			continue // what has volumes waits for its own node
		}
		n := 0
		q.ids.Scan(func(id model.InstanceID) bool {
			if _, ok := l.kept[id]; ok {
				return true
			}
			p, ok := l.pic.engine.Preempt(e.class, id, spare)
			if !ok {
				return false
			}
			l.kept[id] = keeping{p.Node, p.Victims}
			for _, x := range p.Victims {
				l.losing[x.App]++
			}
			victims = append(victims, p.Victims...)
			n++
			sum++
			return n < perClass && sum < mostPreempted
		})
		if n == perClass {
			q.try = true
		}
		if sum >= mostPreempted {
			break
		}
	}
	if len(victims) == 0 {
		return nil
	}
	now := l.cfg.Now()
	return l.evict(ctx, len(victims), func(n int) (model.InstanceID, *model.Eviction) {
		return victims[n].ID, &model.Eviction{Kind: model.EvictPreempt, Why: victims[n].Why, At: now}
	})
}

// spares returns how many instances an app can lose before it falls below the floor of its update policy.
func (l *Loop) spares(v state.View) func(model.AppID) int {
	known := map[model.AppID]int{}
	return func(app model.AppID) int {
		n, ok := known[app]
		if !ok {
			if t := v.Target(app); t != nil {
				n = v.HealthyCount(app) - t.Spec.Floor()
			}
			known[app] = n
		}
		return n - l.losing[app]
	}
}

// evict writes evictions. Instances that are about to end anyway, or are marked already, stay as they are; a preemption
// takes the place of a weaker wish.
func (l *Loop) evict(ctx context.Context, n int, at func(int) (model.InstanceID, *model.Eviction)) error {
	err := l.store.Update(ctx, func(tx *state.Tx) error {
		for n := range n {
			id, ev := at(n)
			i := tx.Instance(id)
			if i == nil || i.Node == "" || !i.Live() || i.Evict != nil && (ev != nil && ev.Kind != model.EvictPreempt || ev != nil && i.Evict.Kind == model.EvictPreempt) {
				continue
			}
			i = i.Clone()
			i.Evict = ev
			tx.PutInstance(i)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("evict %d instances: %w", n, err)
	}
	return nil
}
