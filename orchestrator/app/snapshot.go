package app

import (
	"slices"

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
}

// snapshot reads the records of one app. known are the deployments it may have beside its newest.
func snapshot(v state.View, id model.AppID, known map[model.DeploymentID]struct{}) Snapshot {
	s := Snapshot{ID: id, App: v.App(id)}
	for ver := range v.Versions(id) {
		s.Versions = append(s.Versions, ver)
	}
	for i := range v.InstancesOf(id) {
		s.Instances = append(s.Instances, i)
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

// same reports whether s and o hold the very same records. Records are never changed in place.
func (s Snapshot) same(o Snapshot) bool {
	return s.App == o.App && slices.Equal(s.Instances, o.Instances) &&
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
