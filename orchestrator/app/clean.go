package app

import (
	"slices"

	"github.com/gantry-os/gantry/model"
)

// clean lets go of what is past.
func (p *planner) clean() {
	p.cleanInstances()
	if p.d.Remove {
		p.forgetAll()
		return
	}
	p.cleanDeployments()
	p.cleanVersions()
}

// cleanInstances forgets those that are over, but for the newest few of the last while: people read their logs.
func (p *planner) cleanInstances() {
	over := p.past
	if len(over) == 0 {
		return
	}
	slices.SortFunc(over, func(a, b *model.Instance) int {
		if c := b.Status.Since.Compare(a.Status.Since); c != 0 {
			return c
		}
		return compare(a.ID, b.ID)
	})
	for n, i := range over {
		ends := i.Status.Since.Add(p.keep.StoppedFor)
		if n >= p.keep.Stopped || !ends.After(p.now) {
			p.d.Forget = append(p.d.Forget, i.ID)
		} else {
			p.d.wakeAt(ends)
		}
	}
}

// forgetAll forgets everything of a removed app but its last deployment, so that whoever waits for it sees its end, and
// the instances that still are within their retention.
func (p *planner) forgetAll() {
	for _, d := range p.s.Deployments {
		if d.ID != p.s.App.Deployment {
			p.d.ForgetDeployments = append(p.d.ForgetDeployments, d.ID)
		}
	}
	p.d.Deployments = slices.DeleteFunc(p.d.Deployments, func(d *model.Deployment) bool { return d.ID != p.s.App.Deployment })
	for _, v := range p.s.Versions {
		p.d.ForgetVersions = append(p.d.ForgetVersions, v.Version)
	}
}

func (p *planner) cleanDeployments() {
	var ended []*model.Deployment
	for _, d := range p.s.Deployments {
		switch {
		case p.s.App == nil:
			p.cleanOrphan(d)
		case d.State.Over() && d.ID != p.s.App.Deployment:
			ended = append(ended, d)
		}
	}
	if len(ended) <= p.keep.Deployments {
		return
	}
	slices.SortFunc(ended, func(a, b *model.Deployment) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return compare(a.ID, b.ID)
	})
	for _, d := range ended[p.keep.Deployments:] {
		p.d.ForgetDeployments = append(p.d.ForgetDeployments, d.ID)
	}
}

// cleanOrphan keeps the removal of an app for a while, as instances are kept.
func (p *planner) cleanOrphan(d *model.Deployment) {
	if ends := d.Ended.Add(p.keep.StoppedFor); d.State.Over() && ends.After(p.now) {
		p.d.wakeAt(ends)
		return
	}
	p.d.ForgetDeployments = append(p.d.ForgetDeployments, d.ID)
}

// cleanVersions forgets old versions that nothing refers to.
func (p *planner) cleanVersions() {
	extra := len(p.s.Versions) - p.keep.Versions
	if p.s.App == nil {
		extra = len(p.s.Versions)
	}
	if extra <= 0 {
		return
	}
	used := p.usedVersions()
	for _, v := range p.s.Versions[:extra] {
		if !used[v.Version] {
			p.d.ForgetVersions = append(p.d.ForgetVersions, v.Version)
		}
	}
}

func (p *planner) usedVersions() map[uint64]bool {
	used := map[uint64]bool{}
	for _, i := range p.s.Instances {
		used[i.Version] = true
	}
	if a := p.s.App; a != nil {
		used[a.Version], used[a.Stable] = true, true
		for _, d := range p.s.Deployments {
			if d.ID == a.Deployment || !d.State.Over() {
				used[d.From], used[d.To] = true, true
			}
		}
	}
	return used
}
