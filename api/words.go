package api

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// words describes instances within one view. It remembers what many instances of an app share.
type words struct {
	v         state.View
	targets   map[model.AppID]*model.AppVersion
	versions  map[versionKey]*model.AppVersion
	templates map[versionKey]string
}

type versionKey struct {
	app model.AppID
	n   uint64
}

func newWords(v state.View) *words {
	return &words{v, map[model.AppID]*model.AppVersion{}, map[versionKey]*model.AppVersion{}, map[versionKey]string{}}
}

func (w *words) target(app model.AppID) *model.AppVersion {
	t, ok := w.targets[app]
	if !ok {
		t = w.v.Target(app)
		w.targets[app] = t
	}
	return t
}

func (w *words) version(key versionKey) *model.AppVersion {
	v, ok := w.versions[key]
	if !ok {
		v = w.v.Version(key.app, key.n)
		w.versions[key] = v
	}
	return v
}

// describe adds to an instance what only the server can work out.
func (w *words) describe(i *model.Instance) client.Instance {
	out := client.Instance{
		Instance: *i, Current: w.current(i), State: stateWord(i), Why: whyInstance(w.v, i), Restarts: max(i.Status.Attempt, 1) - 1,
	}
	if n := w.v.Node(i.Node); n != nil {
		out.Addr = n.Addr
	}
	if ver := w.version(versionKey{i.App, i.Version}); ver != nil && len(i.Ports) > 0 {
		out.Endpoints = make(map[string]int, len(i.Ports))
		for k, e := range ver.Spec.Endpoints {
			if k < len(i.Ports) {
				out.Endpoints[e.Name] = int(i.Ports[k])
			}
		}
	}
	return out
}

// current reports whether an instance runs what the deployed version says.
func (w *words) current(i *model.Instance) bool {
	t := w.target(i.App)
	if t == nil || i.Desired != model.Run {
		return false
	}
	return i.Version == t.Version || w.template(i.App, i.Version) == w.template(i.App, t.Version)
}

func (w *words) template(app model.AppID, n uint64) string {
	key := versionKey{app, n}
	t, ok := w.templates[key]
	if v := w.version(key); !ok && v != nil {
		t = v.Template()
	}
	w.templates[key] = t
	return t
}

// describeApp returns the instances of an app, newest first.
func describeApp(v state.View, id model.AppID) []client.Instance {
	return newWords(v).list(slices.Collect(v.InstancesOf(id)))
}

// list describes instances, newest first.
func (w *words) list(all []*model.Instance) []client.Instance {
	slices.SortFunc(all, func(a, b *model.Instance) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	out := make([]client.Instance, len(all))
	for n, i := range all {
		out[n] = w.describe(i)
	}
	return out
}

// stateWord says in one word how an instance is.
func stateWord(i *model.Instance) string {
	switch {
	case i.Over():
		return string(model.PhaseStopped)
	case i.Desired == model.Halt:
		return string(model.PhaseStopping)
	case !i.Status.Away.IsZero():
		return unreachable
	case i.Status.Phase != model.PhaseRunning:
		return string(cmp.Or(i.Status.Phase, model.PhasePending))
	case i.Status.Healthy == model.Unhealthy:
		return "unhealthy"
	case !i.Status.Ready:
		return "not-ready"
	}
	return string(model.PhaseRunning)
}

// whyInstance says in one sentence what an instance waits for, or how it ended.
func whyInstance(v state.View, i *model.Instance) string {
	switch {
	case !i.Status.Away.IsZero() && !i.Over():
		return whyAway(v, i)
	case i.Desired == model.Halt && !i.Over():
		return cmp.Or(i.Why, i.Status.Message)
	case i.Over() && i.Desired == model.Halt && exits(i) == "":
		return cmp.Or(i.Why, i.Status.Message)
	case i.Node == "" && i.Pending != "":
		return i.Pending
	case i.Evict != nil && !i.Over():
		return sentence(cmp.Or(i.Why, evictWords(i.Evict)), i.Status.Message)
	}
	return cmp.Or(i.Status.Message, exits(i))
}

// evictWords says why an instance has to leave its node, and where it goes.
func evictWords(e *model.Eviction) string {
	verb := map[model.EvictKind]string{
		model.EvictPreempt: "it has to make room", model.EvictMove: "it is to move", model.EvictDrain: "it has to leave its node",
	}[e.Kind]
	if e.To != "" {
		verb += " to " + string(e.To)
	}
	return verb + colon(e.Why)
}

// exits says how the programs of an instance ended by themselves.
func exits(i *model.Instance) string {
	var parts []string
	for _, t := range i.Status.Tasks {
		if t.Exit != nil {
			parts = append(parts, t.Name+" "+exitWords(t.Exit))
		}
	}
	return strings.Join(parts, "; ")
}

func exitWords(e *model.Exit) string {
	switch {
	case e.Lost != "":
		return "ended: " + e.Lost
	case e.OOM && e.Limit > 0:
		return fmt.Sprintf("was killed at its memory limit of %s; most it used was %s", e.Limit.Human(), e.Peak.Human())
	case e.OOM:
		return "was killed at its memory limit"
	case e.Signal != 0:
		return fmt.Sprintf("was ended by signal %d", e.Signal)
	}
	return fmt.Sprintf("exited with code %d", e.Code)
}

// census counts the instances of an app.
type census struct {
	wanted, running, healthy, ending int
	waiting                          int // wanted, and not running for want of something
	troubles                         []trouble
}

// trouble is a state that instances share, with the sentence of one of them.
type trouble struct {
	state, why string
	n          int
}

func count(v state.View, id model.AppID) census {
	n := v.HealthyCount(id)
	c := census{wanted: n, running: n, healthy: n}
	for i := range v.UnwellOf(id) {
		if i.Live() {
			c.add(v, i)
		} else {
			c.ending++
		}
	}
	slices.SortStableFunc(c.troubles, func(a, b trouble) int { return b.n - a.n })
	return c
}

// add counts a wanted instance that is not healthy.
func (c *census) add(v state.View, i *model.Instance) {
	c.wanted++
	if i.Status.Phase == model.PhaseRunning && i.Status.Away.IsZero() {
		c.running++
	}
	state := stateWord(i)
	if state == string(model.PhasePending) || state == string(model.PhaseBackoff) {
		c.waiting++
	}
	for k := range c.troubles {
		if t := &c.troubles[k]; t.state == state {
			t.n++
			if t.why == "" {
				t.why = whyInstance(v, i)
			}
			return
		}
	}
	c.troubles = append(c.troubles, trouble{state, whyInstance(v, i), 1})
}

// worst returns a sentence on the troubles, the most frequent first, or nothing.
func (c *census) worst() string {
	var parts []string
	for _, t := range c.troubles {
		text := fmt.Sprintf("%d %s", t.n, stateWords[t.state])
		if t.why != "" {
			text += ": " + t.why
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

var stateWords = map[string]string{
	"pending": "pending", "assigned": "waiting for its node", "preparing": "preparing", "starting": "starting",
	"stopping": "stopping", "backoff": "waiting to start again", "unhealthy": "unhealthy", "not-ready": "not ready", unreachable: "on a node that does not answer",
}

// States of an app, in the order in which they are looked for.
const (
	appRemoving  = "removing"
	appPaused    = "paused"
	appDeploying = "deploying"
	appWaiting   = "waiting" // not one instance runs, and what is missing does not come by itself
	appSuspended = "suspended"
	appDegraded  = "degraded"
	appRunning   = "running"
)

func summarize(v state.View, a *model.App) client.AppSummary {
	c := count(v, a.ID)
	out := client.AppSummary{
		ID: a.ID, Version: a.Version, Target: a.Version, Running: c.running, Healthy: c.healthy,
		Removing: a.Removing, Deployment: v.Deployment(a.Deployment), Created: a.Created,
	}
	if t := v.Target(a.ID); t != nil {
		out.Target, out.Instances = t.Version, t.Spec.Count()
		out.Resources, out.Labels = t.Spec.Resources(), t.Spec.Labels
	}
	out.State, out.Why = appWords(&out, &c)
	return out
}

// appWords says how an app is, in a word and a sentence.
func appWords(a *client.AppSummary, c *census) (state, why string) {
	d := a.Deployment
	active := d != nil && !d.State.Over()
	switch {
	case a.Removing:
		return appRemoving, fmt.Sprintf("%s yet to end", instances(c.wanted+c.ending))
	case active && d.State == model.DeployPaused:
		return appPaused, sentence(pausedAt(d), c.worst())
	case active && c.running == 0 && c.waiting > 0:
		return appWaiting, c.after(d.Message)
	case active:
		return appDeploying, c.after(d.Message)
	}
	if d != nil && (d.State == model.DeployFailed || d.State == model.DeployRolledBack) {
		why = d.Message
	}
	if why != "" && d.State == model.DeployFailed && c.worst() != "" {
		why = "the deployment failed" // for what still holds
	}
	switch {
	case a.Instances == 0 && c.wanted == 0:
		return appSuspended, sentence(why, "no instances are asked for")
	case c.running == 0 && c.waiting > 0:
		return appWaiting, sentence(c.worst(), why)
	case c.healthy < a.Instances || d != nil && d.State == model.DeployFailed:
		return appDegraded, sentence(c.short(a.Instances), why)
	}
	if a.Version != a.Target && why == "" {
		why = fmt.Sprintf("version %d was given up and version %d is deployed; gantry deployments %s says why", a.Version, a.Target, a.ID)
	}
	return appRunning, sentence(why, c.worst())
}

// pausedAt says how far a paused deployment got.
func pausedAt(d *model.Deployment) string {
	text := fmt.Sprintf("the deployment is paused with %d of %d done", d.Done, d.Want)
	if d.Old > 0 {
		text += fmt.Sprintf(" and %d old to stop", d.Old)
	}
	return text
}

// after returns what a deployment says, and the troubles unless it names them already.
func (c *census) after(message string) string {
	for _, t := range c.troubles {
		if t.why != "" && !strings.Contains(message, t.why) {
			return sentence(message, c.worst())
		}
	}
	return message
}

// short says how many instances are missing.
func (c *census) short(want int) string {
	if text := c.worst(); text != "" || c.healthy >= want {
		return text
	}
	return fmt.Sprintf("%d of %d instances are healthy", c.healthy, want)
}

func instances(n int) string {
	if n == 1 {
		return "1 instance has"
	}
	return fmt.Sprintf("%d instances have", n)
}

// sentence joins what is not empty and not said already.
func sentence(a, b string) string {
	switch {
	case a == "" || strings.Contains(b, a):
		return b
	case b == "" || strings.Contains(a, b):
		return a
	}
	return a + "; " + b
}
