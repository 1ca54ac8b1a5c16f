package app

import (
	"fmt"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
)

// change notes a deployment's new record, if it differs from the old one.
func (p *planner) change(old *model.Deployment, now model.Deployment) {
	if now == *old {
		return
	}
	quiet := now
	quiet.Message = old.Message
	p.d.Talk = quiet == *old && len(p.d.Deployments) == 0
	p.d.Deployments = append(p.d.Deployments, &now)
}

func (p *planner) emit(kind string, d *model.Deployment, message string) {
	p.d.Events = append(p.d.Events, model.Event{
		Type: "deployment." + kind, App: p.s.ID, Deployment: d.ID, Message: message,
	})
}

// end notes how a deployment ended.
func (p *planner) end(old *model.Deployment, now model.Deployment, state model.DeploymentState, message string) {
	now.State, now.Message, now.Ended = state, message, p.now
	p.change(old, now)
	p.emit(string(state), old, message)
}

// supersede ends every active deployment but the newest.
func (p *planner) supersede() {
	newest := p.s.App.Deployment
	for _, d := range p.s.Deployments {
		if d.ID != newest && !d.State.Over() {
			p.end(d, *d, model.DeploySuperseded, fmt.Sprintf("deployment %s took over", newest))
		}
	}
}

// pause notes that nothing moves. Without Moved, the deadline begins anew once it resumes.
func (p *planner) pause(dep *model.Deployment) {
	n := *dep
	p.counts(&n)
	n.Moved = time.Time{}
	n.Message = "paused: " + p.tally()
	p.change(dep, n)
}

// counts fills in the counts that people see.
func (p *planner) counts(n *model.Deployment) {
	n.Want = p.count
	n.Done = min(countHealthy(p.current), p.count)
	n.Old = len(p.old) + p.oldEnding
}

// remove stops everything, and then deletes the app.
func (p *planner) remove() {
	p.supersede()
	p.stopAll("the app was removed")
	left := p.exists() + p.freed
	dep := p.s.deployment(p.s.App.Deployment)
	if left > 0 {
		p.followRemoval(dep, left)
		return
	}
	p.d.Remove = true
	if dep != nil && !dep.State.Over() {
		n := *dep
		n.Want, n.Done, n.Old = 0, 0, 0
		p.end(dep, n, model.DeploySucceeded, "the app and its instances are gone")
	}
	p.d.Events = append(p.d.Events, model.Event{
		Type: "app.removed", App: p.s.ID, Message: fmt.Sprintf("app %s and its instances are gone", p.s.ID),
	})
}

func (p *planner) followRemoval(dep *model.Deployment, left int) {
	if dep == nil || dep.State.Over() {
		return
	}
	n := *dep
	n.Want, n.Done, n.Old = 0, 0, left
	if n.Moved.IsZero() {
		p.emit("started", dep, fmt.Sprintf("removes app %s and its %s", p.s.ID, count(left, "instance")))
	}
	if n.Moved.IsZero() || n.Old < dep.Old {
		n.Moved = p.now
	}
	gone := append(instances(p.current), instances(p.old)...)
	n.Message = "waiting for " + names(append(gone, p.ending...), endingOn) + " to stop"
	p.change(dep, n)
}

// follow writes down in the newest deployment what the plan comes to.
func (p *planner) follow(dep *model.Deployment) {
	whole := len(p.current)-p.pairs == p.count && countHealthy(p.current) >= p.count && len(p.old) == 0
	clean := whole && !slices.ContainsFunc(p.ending, func(i *model.Instance) bool { return i.Status.Away.IsZero() || i.Slot != 0 })
	if dep == nil || dep.State.Over() {
		if whole {
			p.stable()
		}
		p.d.Settled = len(p.current) == p.count && len(p.old)+len(p.ending)+len(p.lost)+p.away == 0 && !p.evicted &&
			p.s.App.Stable == p.target.Version // so that nothing depends on who is healthy
		return
	}
	n := *dep
	p.counts(&n)
	first := n.Moved.IsZero()
	if first || n.Done > n.Best || n.Old < dep.Old {
		n.Moved = p.now
	}
	n.Best = max(n.Best, n.Done)
	allowed := p.allowance()
	blameless := p.blameless()
	if half := n.Moved.Add(allowed / 2); blameless && !half.After(p.now) {
		n.Moved = p.now
	}
	due := n.Moved.Add(allowed)
	if first {
		p.begin(dep)
	}
	switch {
	case clean:
		p.stable()
		p.end(dep, n, model.DeploySucceeded, p.tally())
	case !due.After(p.now):
		p.fail(dep, n, whole)
	default:
		n.Message = p.tally() + p.waits()
		p.d.wakeAt(due)
		if blameless {
			p.d.wakeAt(n.Moved.Add(allowed / 2))
		}
		p.change(dep, n)
		if n.Done != dep.Done && !first {
			p.emit("progress", dep, n.Message)
		}
	}
}

// begin tells of a deployment that nobody has told of: who asks for one, says so.
func (p *planner) begin(dep *model.Deployment) {
	p.emit("started", dep, fmt.Sprintf("%s of %s to version %d begins: %s", dep.Kind, p.s.ID, dep.To, p.tally()))
}

// stable notes that the target was healthy as a whole.
func (p *planner) stable() {
	if p.s.App.Stable == p.target.Version {
		return
	}
	a := *p.s.App
	a.Stable = p.target.Version
	p.d.App = &a
}

// allowance is how long the deployment may go without progress. What is ending has its grace besides.
func (p *planner) allowance() time.Duration {
	var grace time.Duration
	for _, i := range p.ending {
		grace = max(grace, p.kinOf(i.Version).grace)
	}
	return p.spec.Update.Deadline.Std() + grace
}

// fail ends a deployment that made no progress, and goes back to the last version that worked if there is one.
func (p *planner) fail(dep *model.Deployment, n model.Deployment, whole bool) {
	cause := p.tally() + p.waits()
	limit := p.allowance()
	back := p.s.version(p.s.App.Stable)
	if whole || dep.Kind == model.DeployRollback || p.spec.Update.NoRollback || back == nil ||
		back.Template() == p.targetTemplate() {
		p.end(dep, n, model.DeployFailed, fmt.Sprintf("no progress for %v: %s", limit, cause))
		return
	}
	p.d.Create, p.d.Stop = nil, nil // the next plan is one for the way back
	p.end(dep, n, model.DeployRolledBack,
		fmt.Sprintf("no progress for %v, so version %d is deployed again: %s", limit, back.Version, cause))
	p.d.Rollback = &model.Deployment{
		App: p.s.ID, Kind: model.DeployRollback, From: dep.To, To: back.Version, Created: p.now, State: model.DeployRunning,
		Message: fmt.Sprintf("goes back to version %d, since version %d did not become healthy", back.Version, dep.To),
	}
	a := *p.s.App
	p.d.App = &a
}
