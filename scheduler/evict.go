package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/engine"
	"github.com/gantry-os/gantry/state"
)

// Bounds of one step: what is beyond waits for the next.
const (
	mostPreempted = 64 // instances that others have to end for
	perClass      = 16 // of one class
	mostVain      = 32 // searches that find nobody: each looks at all nodes
)

// keeping is what a pending instance waits for.
type keeping struct {
	node    model.NodeID // where its place is kept; empty when it has to be found yet
	victims []engine.Victim
}

// words says what an instance waits for.
func (k keeping) words(v state.View) string {
	first := "what is about to end"
	if len(k.victims) == 1 {
		first = fmt.Sprintf("%s, which has to end first", k.victims[0].ID)
	} else if len(k.victims) > 1 {
		first = fmt.Sprintf("%s and %d more, which have to end first", k.victims[0].ID, len(k.victims)-1)
	}
	if k.node == "" {
		return "it takes the place of " + first
	}
	if len(k.victims) > 0 {
		return fmt.Sprintf("it takes the place, on %s, of %s", nameOf(v, k.node), first)
	}
	return fmt.Sprintf("it takes the place of %s on %s", first, nameOf(v, k.node))
}

// nameOf returns a node's name, or its id when there is no such node.
func nameOf(v state.View, id model.NodeID) string {
	if n := v.Node(id); n != nil {
		return n.Name
	}
	return string(id)
}

// settle gives those their places for whom others have ended, before anyone else may ask for them.
func (l *Loop) settle(v state.View) []engine.Placement {
	var batch []engine.Placement
	for _, id := range slices.Sorted(maps.Keys(l.kept)) {
		k, q, had := l.kept[id], l.member[id], len(batch)
		if k.node == "" {
			if l.anyHeld(k.victims) {
				continue
			}
			if e := l.pic.entry(v, q.key); e != nil {
				batch = l.pic.engine.Place(e.class, []model.InstanceID{id}, batch)
			}
		} else {
			p, placed, kept := l.pic.engine.Settle(id)
			if kept && !placed {
				continue
			}
			if placed {
				batch = append(batch, p)
			}
		}
		delete(l.kept, id)
		if len(batch) > had {
			q.ids.Delete(id) // it wants no other; launch does the rest
		} else {
			q.try = true // like any other
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

// makeRoom ends less important work for what was tried and still waits, the most important first.
func (l *Loop) makeRoom(ctx context.Context, tried []*queue) error {
	v := l.store.View()
	l.losing = map[model.AppID]int{}
	spare := l.spares(v)
	var wishes []wish
	now := l.cfg.Now()
	sum := 0
	list, had := l.claims(v, tried)
	vain := 0
	for _, q := range list {
		e := l.pic.entry(v, q.key)
		if vain >= mostVain {
			q.try = true // in a later step: whoever was searched for now comes after those who were not
			continue
		}
		n := 0
		class := e.class
		if e.volumes > 0 {
			class = l.pic.withVolumes(e)
		}
		q.ids.Scan(func(id model.InstanceID) bool {
			if _, ok := l.kept[id]; ok || l.pic.heirTo(v, v.Instance(id)) != "" {
				return true
			}
			if e.volumes > 0 && len(volumesAt(v, v.Instance(id), e.spec)) > 0 {
				return true // it waits for the node that they are on
			}
			if l.keep(class, id, had[id]) {
				return true
			}
			p, ok := l.preempt(class, id, spare)
			if !ok {
				vain++
				l.searches++
				q.searched = l.searches
				return false
			}
			l.kept[id] = keeping{p.Node, p.Victims}
			for _, x := range p.Victims {
				l.losing[x.App]++
				wishes = append(wishes, wish{x.ID, &model.Eviction{Kind: model.EvictPreempt, Why: x.Why, At: now}, ""})
			}
			n++
			sum++
			return n < perClass && sum < mostPreempted
		})
		if n == perClass || sum >= mostPreempted {
			q.try = true
		}
		if sum >= mostPreempted {
			break
		}
	}
	return l.evict(ctx, wishes)
}

// keep keeps a place for an instance where others were ended for more important work: that was this instance's before this
// server led, or before something more important came. What ends by itself is anyone's.
func (l *Loop) keep(c *engine.Class, id model.InstanceID, had keeping) bool {
	if len(l.pic.ousted.all) == 0 {
		return false
	}
	node, ok := l.pic.engine.Keep(c, id)
	if !ok {
		return false
	}
	if l.pic.ousted.of[node] == 0 {
		l.pic.engine.Release(id)
		return false
	}
	k := keeping{node: node}
	if had.node == node {
		k.victims = had.victims
	}
	l.kept[id] = k
	return true
}

// preempt finds whom to end for an instance. It takes back what would help its role's limit, but not the instance.
func (l *Loop) preempt(c *engine.Class, id model.InstanceID, spare func(model.AppID) int) (engine.Preemption, bool) {
	p, ok := l.pic.engine.Preempt(c, id, spare)
	if !ok || p.Node != "" || l.pic.engine.FitsWithout(c, p.Victims) {
		return p, ok
	}
	for _, x := range p.Victims {
		l.pic.engine.Leaving(x.ID, false)
	}
	return engine.Preemption{}, false
}

// reclaim keeps the places again for which others were told to end before this server led, and which nobody has yet.
func (l *Loop) reclaim(v state.View) {
	if len(l.pic.ousted.all) == 0 {
		return
	}
	list, _ := l.claims(v, slices.Collect(maps.Values(l.queues)))
	for _, q := range list {
		e := l.pic.entry(v, q.key)
		q.ids.Scan(func(id model.InstanceID) bool { return l.keep(e.class, id, keeping{}) })
	}
}

// claims returns the queues for which others may have to end, the most important first. Places that are kept for the less
// important of a role are to have again, for whoever comes first; it also returns what those waited for.
func (l *Loop) claims(v state.View, tried []*queue) ([]*queue, map[model.InstanceID]keeping) {
	var list []*queue
	least := l.pic.leastPriority(v)
	for _, q := range tried {
		e := l.pic.entry(v, q.key)
		if e != nil && q.ids.Len() > 0 && e.class.Priority > least {
			list = append(list, q)
		}
	}
	had := map[model.InstanceID]keeping{}
	kept := map[*queue]int{}
	for id := range l.kept {
		kept[l.member[id]]++
	}
	for id, k := range l.kept {
		own := l.pic.entry(v, l.member[id].key)
		if k.node == "" || own == nil || !slices.ContainsFunc(list, func(q *queue) bool {
			c := l.pic.classes[q.key].class
			return own.class.Role.Within(c.Role) && own.class.Priority < c.Priority && q.ids.Len() > kept[q]
		}) {
			continue
		}
		had[id] = k
	}
	for id := range had {
		l.pic.engine.Release(id)
		delete(l.kept, id)
		if q := l.member[id]; !slices.Contains(list, q) {
			list = append(list, q)
		}
	}
	slices.SortFunc(list, func(a, b *queue) int {
		x, y := l.pic.classes[a.key].class, l.pic.classes[b.key].class
		return cmp.Or(cmp.Compare(y.Priority, x.Priority), cmp.Compare(a.searched, b.searched), a.key.compare(b.key))
	})
	return list, had
}

// leastPriority returns a priority up to which nothing can have others ended: that of the least important work, or less
// than any when a role has a guarantee. To search all nodes for victims is not cheap.
func (p *picture) leastPriority(v state.View) int {
	for r := range v.Roles() {
		if g := r.Guarantee; g.CPUs != nil || g.Memory != nil || g.Disk != nil || g.GPUs != nil || len(g.Custom) > 0 {
			return -1
		}
	}
	least := model.MaxPriority
	for _, e := range p.classes {
		least = min(least, e.class.Priority)
	}
	return least
}

// spares returns how many instances an app can lose before it falls below the floor of its update policy. Those that were
// preempted count as lost, though they may still be healthy.
func (l *Loop) spares(v state.View) func(model.AppID) int {
	known := map[model.AppID]int{}
	return func(app model.AppID) int {
		n, ok := known[app]
		if !ok {
			if t := v.Target(app); t != nil {
				n = v.HealthyCount(app) - l.pic.lost.of[app] - t.Spec.Floor()
			}
			known[app] = n
		}
		return n - l.losing[app]
	}
}

// wish is an eviction to write, or the kind of one to withdraw.
type wish struct {
	id       model.InstanceID
	ev       *model.Eviction
	withdraw model.EvictKind
}

// news reports whether the wish changes anything where old is the eviction so far, nil for none: a preemption takes the
// place of a weaker wish, others change none.
func (w *wish) news(old *model.Eviction) bool {
	if w.ev == nil {
		return old != nil && old.Kind == w.withdraw
	}
	return old == nil || w.ev.Kind == model.EvictPreempt && old.Kind != model.EvictPreempt
}

// evict writes evictions. Instances that are about to end anyway stay as they are.
func (l *Loop) evict(ctx context.Context, wishes []wish) error {
	for part := range slices.Chunk(wishes, chunk) {
		var first model.InstanceID
		err := l.store.Update(ctx, func(tx *state.Tx) error {
			first = ""
			for _, w := range part {
				i := tx.Instance(w.id)
				if i == nil || i.Node == "" || !i.Live() || !w.news(i.Evict) {
					continue
				}
				i = i.Clone()
				i.Evict = w.ev
				tx.PutInstance(i)
				first = cmp.Or(first, w.id)
			}
			return nil
		})
		if err != nil {
			l.doubted(first, err)
			return fmt.Errorf("evict %d instances: %w", len(part), err)
		}
	}
	return nil
}
