package scheduler

import (
	"cmp"
	"slices"
	"time"

	"github.com/tidwall/btree"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/engine"
	"github.com/gantry-os/gantry/state"
)

// classKey names a class: instances of one version of an app are all alike.
type classKey struct {
	app     model.AppID
	version uint64
}

func (k classKey) compare(o classKey) int {
	return cmp.Or(cmp.Compare(k.app, o.app), cmp.Compare(k.version, o.version))
}

// queue holds the pending instances of one class.
type queue struct {
	key      classKey
	ids      btree.Set[model.InstanceID]
	news     int                         // instances that the policy does not know of yet
	try      bool                        // something changed for it
	searched uint64                      // when victims for it were last looked for in vain; counts searches
	said     engine.Reason               // last
	at       time.Time                   // when it was said
	again    time.Time                   // when to say it anew, zero for never
	heard    int                         // in which step it was explained last, 0 for never
	own      map[model.InstanceID]string // shapes of reasons of their own, as they were said last
}

// enqueue puts a pending instance into its queue, and takes out what is not pending. i is nil when it is gone.
func (l *Loop) enqueue(id model.InstanceID, i *model.Instance) {
	q := l.member[id]
	switch pending := i != nil && i.Live() && i.Node == ""; {
	case pending && q == nil:
		key := classKey{i.App, i.Version}
		if q = l.queues[key]; q == nil {
			q = &queue{key: key}
			l.queues[key] = q
		}
		q.ids.Insert(id)
		q.news++
		q.try = true
		l.member[id] = q
	case !pending && q != nil:
		l.leave(id)
	}
}

func (l *Loop) leave(id model.InstanceID) {
	if _, waits := l.kept[id]; waits {
		delete(l.kept, id)
		if _, held := l.pic.engine.Kept(id); held {
			l.pic.engine.Release(id)
		}
	}
	q := l.member[id]
	if q == nil {
		return
	}
	delete(l.member, id)
	delete(q.own, id)
	q.ids.Delete(id)
	if q.ids.Len() == 0 {
		delete(l.queues, q.key)
	}
}

// tries returns the queues worth trying, by key.
func (l *Loop) tries() []*queue {
	var out []*queue
	for _, q := range l.queues {
		if q.try {
			out = append(out, q)
		}
	}
	slices.SortFunc(out, func(a, b *queue) int { return a.key.compare(b.key) })
	return out
}

// wants returns what the queues ask for, but for instances that have a place of their own.
func (l *Loop) wants(v state.View, tries []*queue) []*engine.Want {
	var out []*engine.Want
	for _, q := range tries {
		q.try = q.ids.Len() > mostIDs
		e := l.pic.entry(v, q.key)
		if e == nil {
			continue
		}
		l.pic.engine.Learn(e.class, q.news)
		q.news = 0
		w := &engine.Want{Class: e.class, IDs: make([]model.InstanceID, 0, min(q.ids.Len(), mostIDs))}
		fresh := w
		if e.volumes > 0 {
			fresh = &engine.Want{Class: l.pic.withVolumes(e)}
		}
		q.ids.Scan(func(id model.InstanceID) bool {
			switch _, kept := l.kept[id]; {
			case kept:
			case e.volumes > 0:
				if len(volumesAt(v, v.Instance(id), e.spec)) == 0 {
					fresh.IDs = append(fresh.IDs, id)
				}
			case l.pic.heirTo(v, v.Instance(id)) == "":
				w.IDs = append(w.IDs, id)
			}
			return len(w.IDs)+len(fresh.IDs) < mostIDs
		})
		out = append(out, w)
		if fresh != w {
			out = append(out, fresh)
		}
	}
	return out
}

// goHome places the instances that have to go to a certain node: where their volumes are, or where they were moved to.
func (l *Loop) goHome(v state.View, tries []*queue, batch []engine.Placement) []engine.Placement {
	for _, q := range tries {
		e := l.pic.entry(v, q.key)
		if e == nil || e.volumes == 0 && l.pic.to.of[q.key.app] == 0 {
			continue
		}
		before := len(batch)
		q.ids.Scan(func(id model.InstanceID) bool {
			i := v.Instance(id)
			if _, kept := l.kept[id]; kept || i == nil {
				return true
			}
			class, home := e.class, model.NodeID("")
			if have := volumesAt(v, i, e.spec); len(have) > 0 {
				if removing(have) != nil {
					return true // it is made anew when it is gone
				}
				home = have[0].Node
				class = l.pic.missing(e, have)
			} else {
				home = l.pic.heirTo(v, i)
			}
			if home == "" {
				return true
			}
			if p, ok := l.pic.engine.PlaceOn(class, id, home); ok {
				batch = append(batch, p)
			}
			return true
		})
		for _, p := range batch[before:] {
			q.ids.Delete(p.ID) // Scan must not be disturbed; launch does the rest
		}
	}
	return batch
}

// volumesAt returns the persistent volumes that an instance has already. They are all on one node.
func volumesAt(v state.View, i *model.Instance, s *model.Spec) []*model.PersistentVolume {
	var out []*model.PersistentVolume
	if i == nil || i.Slot == 0 {
		return nil
	}
	for n := range s.Volumes {
		if s.Volumes[n].Persistent == nil {
			continue
		}
		if vol := v.Volume(model.VolumeOf(i.App, i.Slot, s.Volumes[n].Name)); vol != nil {
			out = append(out, vol)
		}
	}
	return out
}

// removing returns the first of some volumes that is being deleted, nil for none.
func removing(list []*model.PersistentVolume) *model.PersistentVolume {
	for _, vol := range list {
		if vol.Removing {
			return vol
		}
	}
	return nil
}

// atHome reports whether volumes are as a placement found them: there, or to be made.
func atHome(v state.View, list []*model.PersistentVolume) bool {
	for _, vol := range list {
		is := v.Volume(vol.ID)
		if (is == nil) != (vol.Revision == 0) || is != nil && (is.Node != vol.Node || is.Removing) {
			return false
		}
	}
	return true
}

// volumesOf returns the volumes of placements, those that are to be made without a revision, and keeps their disk.
func (l *Loop) volumesOf(v state.View, batch []engine.Placement) map[model.InstanceID][]*model.PersistentVolume {
	var out map[model.InstanceID][]*model.PersistentVolume
	for _, p := range batch {
		i := v.Instance(p.ID)
		if i == nil || i.Slot == 0 {
			continue
		}
		e := l.pic.entry(v, classKey{i.App, i.Version})
		if e == nil {
			continue
		}
		l.pic.engine.RemoveVolume(model.VolumeID(p.ID))
		for n := range e.spec.Volumes {
			per := e.spec.Volumes[n].Persistent
			if per == nil {
				continue
			}
			id := model.VolumeOf(i.App, i.Slot, e.spec.Volumes[n].Name)
			vol := v.Volume(id)
			if vol == nil {
				l.pic.engine.SetVolume(id, p.Node, per.Size)
				vol = &model.PersistentVolume{
					ID: id, App: i.App, Slot: i.Slot, Name: e.spec.Volumes[n].Name, Node: p.Node, Size: per.Size, Created: l.cfg.Now(),
				}
			}
			if out == nil {
				out = map[model.InstanceID][]*model.PersistentVolume{}
			}
			out[p.ID] = append(out[p.ID], vol)
		}
	}
	return out
}
