package state

import (
	"github.com/gantry-os/gantry/model"
	"github.com/tidwall/btree"
)

// owner tells who may change a group: the tables that have the same one.
type owner struct{ _ byte }

// group holds the instances of one app or one node. It is immutable, but for the tables that own it.
type group struct {
	owner  *owner
	all    *btree.Map[model.InstanceID, *model.Instance]
	unwell *btree.Map[model.InstanceID, *model.Instance] // neither over nor healthy
	over   int
}

func appOf(i *model.Instance) model.AppID   { return i.App }
func nodeOf(i *model.Instance) model.NodeID { return i.Node }

// regroup takes note that an instance changed from old to now; either may be nil. An empty key is no group.
func regroup[K ~string](groups *btree.Map[K, *group], o *owner, key func(*model.Instance) K, old, now *model.Instance) {
	var was, is K
	if old != nil {
		was = key(old)
	}
	if now != nil {
		is = key(now)
	}
	if was != "" && was != is {
		g := own(groups, o, was)
		if g.remove(old); g.all.Len() == 0 {
			groups.Delete(was)
		}
		old = nil
	}
	if is != "" {
		if was != is {
			old = nil
		}
		own(groups, o, is).set(old, now)
	}
}

// own returns the group under key as one that may be changed.
func own[K ~string](groups *btree.Map[K, *group], o *owner, key K) *group {
	g, _ := groups.Get(key)
	switch {
	case g == nil:
		g = &group{
			all:    btree.NewMap[model.InstanceID, *model.Instance](degree),
			unwell: btree.NewMap[model.InstanceID, *model.Instance](degree),
		}
	case g.owner == o:
		return g
	default:
		g = &group{all: fork(g.all), unwell: fork(g.unwell), over: g.over}
	}
	g.owner = o
	groups.Set(key, g)
	return g
}

// set puts now in place of old, which is nil when it was not in the group.
func (g *group) set(old, now *model.Instance) {
	g.all.Set(now.ID, now)
	g.count(old, -1)
	g.count(now, 1)
	if unwell(now) {
		g.unwell.Set(now.ID, now)
	} else if old != nil && unwell(old) {
		g.unwell.Delete(now.ID)
	}
}

func (g *group) remove(old *model.Instance) {
	g.all.Delete(old.ID)
	g.unwell.Delete(old.ID)
	g.count(old, -1)
}

func (g *group) count(i *model.Instance, by int) {
	if i != nil && i.Over() {
		g.over += by
	}
}

func unwell(i *model.Instance) bool {
	_, healthy := i.HealthySince()
	return !healthy && !i.Over()
}

// settled returns what of a tree of g stays as it is during a loop over it.
func (g *group) settled(v View, m *btree.Map[model.InstanceID, *model.Instance]) *btree.Map[model.InstanceID, *model.Instance] {
	if v.writing && g.owner == v.t.owner {
		return m.Copy()
	}
	return m
}
