package app

import (
	"maps"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// Snapshot is all that Plan reads: the records of one app. They must not be changed.
type Snapshot struct {
	ID          model.AppID
	App         *model.App          // nil when the app is gone and only its past is left
	Versions    []*model.AppVersion // oldest first
	Instances   []*model.Instance   // by id, those that are over included
	Deployments []*model.Deployment // by id

	Drains map[model.NodeID]Drain // of the nodes that instances have to leave by a certain time
	Outage *model.Outage          // while instances on lost nodes are not to be replaced
	Healed time.Time              // when the last outage ended by itself
}

// Drain says by when a node is to be empty.
type Drain struct {
	Deadline time.Time
	Others   bool // instances without a slot are left on it, of whatever app
}

// snapshot reads the records of one app. known are the deployments it may have beside its newest.
func snapshot(v state.View, id model.AppID, known map[model.DeploymentID]struct{}) Snapshot {
	s := Snapshot{ID: id, App: v.App(id)}
	if c := v.Losses(); c != nil {
		s.Outage, s.Healed = c.Outage, c.Healed
	}
	for ver := range v.Versions(id) {
		s.Versions = append(s.Versions, ver)
	}
	for i := range v.InstancesOf(id) {
		s.Instances = append(s.Instances, i)
		if i.Evict != nil && i.Evict.Kind == model.EvictDrain && !i.Over() {
			s.drain(v, i.Node)
		}
	}
	for dep := range known {
		if d := v.Deployment(dep); d != nil && d.App == id {
			s.Deployments = append(s.Deployments, d)
		}
	}
	if s.App != nil && s.deployment(s.App.Deployment) == nil {
		if d := v.Deployment(s.App.Deployment); d != nil {
			s.Deployments = append(s.Deployments, d)
		}
	}
	slices.SortFunc(s.Deployments, func(a, b *model.Deployment) int { return compare(a.ID, b.ID) })
	return s
}

func (s *Snapshot) drain(v state.View, node model.NodeID) {
	if _, ok := s.Drains[node]; ok {
		return
	}
	set := v.Settings(node)
	if set == nil || !set.Draining || set.Deadline.IsZero() {
		return
	}
	d := Drain{Deadline: set.Deadline}
	for i := range v.InstancesOn(node) {
		if d.Others = !i.Over() && i.Slot == 0; d.Others {
			break
		}
	}
	if s.Drains == nil {
		s.Drains = map[model.NodeID]Drain{}
	}
	s.Drains[node] = d
}

// same reports whether s and o hold the very same records. Records are never changed in place.
func (s Snapshot) same(o Snapshot) bool {
	return s.App == o.App && s.Outage == o.Outage && s.Healed.Equal(o.Healed) && maps.Equal(s.Drains, o.Drains) && slices.Equal(s.Instances, o.Instances) &&
		slices.Equal(s.Deployments, o.Deployments) && slices.Equal(s.Versions, o.Versions)
}

func (s Snapshot) deployment(id model.DeploymentID) *model.Deployment {
	for _, d := range s.Deployments {
		if d.ID == id {
			return d
		}
	}
	return nil
}

func (s Snapshot) version(n uint64) *model.AppVersion {
	for _, v := range s.Versions {
		if v.Version == n {
			return v
		}
	}
	return nil
}

// target returns the version that the app's newest deployment leads to, as state.View.Target does.
func (s Snapshot) target() *model.AppVersion {
	n := s.App.Version
	if d := s.deployment(s.App.Deployment); d != nil {
		n = d.To
	}
	return s.version(n)
}
