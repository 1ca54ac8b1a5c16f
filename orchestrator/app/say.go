package app

import (
	"fmt"
	"time"

	"github.com/gantry-os/gantry/model"
)

// count writes a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// names writes who is meant, by the first and the number of others; detail may add what is to say of the first.
func names(list []*model.Instance, detail func(*model.Instance) string) string {
	if len(list) == 0 {
		return "nothing"
	}
	out := string(list[0].ID)
	if detail != nil {
		if text := detail(list[0]); text != "" {
			out += " (" + text + ")"
		}
	}
	if len(list) > 1 {
		out += fmt.Sprintf(" and %d more", len(list)-1)
	}
	return out
}

// tally says how far the app is.
func (p *planner) tally() string {
	done := min(countHealthy(p.current), p.count)
	switch {
	case p.count == 0:
		return fmt.Sprintf("version %d asks for no instances", p.target.Version)
	case p.count == 1 && done == 1:
		return fmt.Sprintf("the instance of version %d is healthy", p.target.Version)
	case done == p.count:
		return fmt.Sprintf("all %d instances of version %d are healthy", p.count, p.target.Version)
	}
	return fmt.Sprintf("%d of %s of version %d %s healthy", done, count(p.count, "instance"), p.target.Version,
		map[bool]string{true: "is", false: "are"}[p.count == 1 || done == 1])
}

// waits says what the deployment waits for, to follow the tally.
func (p *planner) waits() string {
	var pending, crashing, failing, coming []*model.Instance
	for _, m := range p.current {
		switch {
		case m.rank == healthy:
		case m.rank == unplaced && m.Pending != "":
			pending = append(pending, m.Instance)
		case !m.Status.Away.IsZero(): // see hidden
		case m.rank == idle && m.Status.Attempt > 1:
			crashing = append(crashing, m.Instance)
		case m.rank == idle && m.Status.Phase == model.PhaseRunning && m.Status.Healthy == model.Unhealthy:
			failing = append(failing, m.Instance)
		default:
			coming = append(coming, m.Instance)
		}
	}
	away := p.hidden()
	switch {
	case len(pending) > 0:
		return p.waitsForPlace(pending)
	case len(away) > 0:
		return p.waitsForNode(away)
	case len(crashing) > 0:
		return "; waits: " + crashes(worst(crashing)) + more(len(crashing)-1)
	case len(failing) > 0:
		return "; waits: " + string(failing[0].ID) + " fails its health check" + colon(failing[0].Status.Message) + more(len(failing)-1)
	case len(coming) > 0:
		return "; waiting for " + names(coming, p.stage)
	}
	return p.waitsForOld()
}

func (p *planner) waitsForPlace(pending []*model.Instance) string {
	out := fmt.Sprintf("; waits: %s cannot be placed: %s", count(len(pending), "instance"), pending[0].Pending)
	if len(p.old) > 0 && p.floor > 0 {
		out += fmt.Sprintf("; the floor of %d healthy (update.minHealthy) keeps %s in place",
			p.floor, count(len(p.old), "old instance"))
	}
	return out
}

// waitsForNode says what becomes of those whose nodes do not answer.
func (p *planner) waitsForNode(away []*model.Instance) string {
	out := fmt.Sprintf("; waits: the node of %s does not answer", names(away, nil))
	at := p.unreachable.ReplaceAt(p.replaceFrom(away[0]))
	switch {
	case away[0].Desired == model.Halt:
		out += ", so it cannot stop"
	case at.IsZero() && p.stateful:
		out += ", and its persistent volumes are there"
	case at.IsZero():
		out += ", and it is not to be replaced (unreachable.never)"
	case p.resting > 0:
		out += "; " + p.s.Outage.Words()
	case at.After(p.now):
		out += fmt.Sprintf("; it is replaced at %s", at.UTC().Format(time.TimeOnly+" MST"))
	}
	return out
}

func (p *planner) waitsForOld() string {
	switch {
	case p.created > 0:
		return "; creates " + count(p.created, "instance")
	case p.held > 0:
		return fmt.Sprintf("; %s ended moments after creation, and will be replaced soon", count(p.held, "instance"))
	case len(p.ending) > 0:
		return "; waiting for " + names(p.ending, endingOn) + " to stop"
	case len(p.old) > 0:
		return fmt.Sprintf("; nothing can be replaced: the floor is %d healthy and only %d are",
			p.floor, countHealthy(p.current)+countHealthy(p.old))
	case p.stateful && len(p.current) > p.count:
		return fmt.Sprintf("; the slots above %d stay: the floor is %d healthy and only %d are", p.count, p.floor, countHealthy(p.current))
	}
	return ""
}

// stage says where an instance stands on its way to being healthy.
func (p *planner) stage(i *model.Instance) string {
	switch {
	case i.Status.Phase != model.PhaseRunning:
		return string(i.Status.Phase) + colon(i.Status.Message)
	case !i.Status.Ready:
		return "running, not ready" + colon(i.Status.Message)
	}
	return fmt.Sprintf("healthy for less than %v", *p.spec.Update.MinHealthyTime)
}

// endingOn says what keeps an instance from ending.
func endingOn(i *model.Instance) string {
	if i.Status.Away.IsZero() {
		return ""
	}
	return "its node does not answer"
}

func worst(list []*model.Instance) *model.Instance {
	w := list[0]
	for _, i := range list {
		if i.Status.Attempt > w.Status.Attempt {
			w = i
		}
	}
	return w
}

// crashes says how an instance keeps ending, or that it does not even start.
func crashes(i *model.Instance) string {
	end := lastEnd(i)
	if end == "" {
		return string(i.ID) + " does not start" + colon(i.Status.Message)
	}
	restarts := count(int(i.Status.Attempt)-1, "restart")
	if i.Status.Attempt > 2 {
		return fmt.Sprintf("%s %s again and again (%s)", i.ID, end, restarts)
	}
	return fmt.Sprintf("%s %s (%s)", i.ID, end, restarts)
}

// lastEnd says how a program of the instance ended, nothing when none did or how is not known.
func lastEnd(i *model.Instance) string {
	for _, t := range i.Status.Tasks {
		switch {
		case t.Exit == nil:
		case t.Exit.OOM:
			return fmt.Sprintf("is killed for using all of its %s of memory", t.Exit.Limit.Human())
		case t.Exit.Signal != 0:
			return fmt.Sprintf("is ended by signal %d", t.Exit.Signal)
		case t.Exit.Lost != "":
			return "is lost to " + t.Exit.Lost
		default:
			return fmt.Sprintf("exits with code %d", t.Exit.Code)
		}
	}
	return ""
}

func more(n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf(", and %d more", n)
}

func colon(message string) string {
	if message == "" {
		return ""
	}
	return ": " + message
}

func lostWhy(i *model.Instance) string {
	return "it ended for good though it should run" + colon(i.Status.Message)
}
