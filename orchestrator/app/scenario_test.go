package app_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/orchestrator/app"
	"github.com/gantry-os/gantry/scheduler"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

var rewrite = flag.Bool("rewrite", false, "write what scenarios print into their files")

// TestScenarios drives the orchestrator and the scheduler over a real store, with a clock and an agent that the
// scenario controls. A file is blocks of commands, a line of dashes, and what the cluster then looks like. It protects
// what users see: the steps of deployments, their sentences, and who is stopped when. To take over what they print:
//
//	go test ./orchestrator/app -run Scenarios -rewrite
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runScenario(t, file) })
	}
}

func runScenario(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t)
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
		commands, _, _ := strings.Cut(block, "\n----")
		for line := range strings.Lines(commands) {
			c.command(strings.TrimSpace(line))
		}
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		fmt.Fprintf(&out, "%s\n----\n%s", commands, c.picture())
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, want := out.String(), string(text); got != want {
		t.Errorf("%s is not as expected (-rewrite takes it over):\n%s", file, diff(want, got))
	}
}

// diff shows the first line that differs, with what is around it.
func diff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		if i >= len(w) || i >= len(g) || w[i] != g[i] {
			at := max(0, i-3)
			return fmt.Sprintf("line %d\nwant:\n%s\ngot:\n%s", i+1,
				strings.Join(w[min(at, len(w)):min(i+8, len(w))], "\n"), strings.Join(g[min(at, len(g)):min(i+8, len(g))], "\n"))
		}
	}
	return "same"
}

// cluster is a store with the two loops around it, and an agent.
type cluster struct {
	t     *testing.T
	now   time.Time
	ids   map[string]int
	db    *state.DB
	orch  *app.Loop
	sched *scheduler.Loop
	wakes [2]time.Time

	auto   bool                      // the agent starts and stops what it should
	slow   bool                      // but does not finish stopping
	hands  map[model.InstanceID]bool // instances that only the scenario moves
	shown  map[model.DeploymentID]string
	ended  map[model.InstanceID]string
	events uint64 // last event shown
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{
		t: t, now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), ids: map[string]int{}, auto: true,
		hands: map[model.InstanceID]bool{}, shown: map[model.DeploymentID]string{}, ended: map[model.InstanceID]string{},
	}
	clock := func() time.Time { return c.now }
	c.db = memory.Open(clock)
	c.orch = app.New(c.db, app.Config{Now: clock, NewID: c.newID, KeepDeployments: 3, KeepVersions: 3, KeepStopped: 10 * time.Minute})
	c.sched = scheduler.New(c.db, scheduler.Config{Now: clock})
	return c
}

func (c *cluster) newID(prefix string) string {
	c.ids[prefix]++
	return fmt.Sprintf("%s-%d", prefix, c.ids[prefix])
}

func (c *cluster) update(fn func(*state.Tx)) {
	c.t.Helper()
	err := c.db.Update(context.Background(), func(tx *state.Tx) error { fn(tx); return nil })
	if err != nil {
		c.t.Fatal(err)
	}
}

// settle lets everyone act until nothing changes.
func (c *cluster) settle() {
	c.t.Helper()
	for round := 0; ; round++ {
		if round > 1000 {
			c.t.Fatalf("the cluster does not come to rest:\n%s", c.picture())
		}
		before := c.db.View().Revision()
		var err error
		if c.wakes[0], err = c.orch.Step(context.Background()); err != nil {
			c.t.Fatal(err)
		}
		if c.wakes[1], err = c.sched.Step(context.Background()); err != nil {
			c.t.Fatal(err)
		}
		c.agent()
		if c.db.View().Revision() == before {
			return
		}
	}
}

// tick lets time pass, with a stop wherever a loop wants to wake.
func (c *cluster) tick(d time.Duration) {
	end := c.now.Add(d)
	for {
		next := end
		for _, w := range c.wakes {
			if !w.IsZero() && w.After(c.now) && w.Before(next) {
				next = w
			}
		}
		c.now = next
		c.settle()
		if !next.Before(end) {
			return
		}
	}
}

// agent moves every instance a step. Programs whose command line has "bad" in it exit at once.
func (c *cluster) agent() {
	if !c.auto {
		return
	}
	c.update(func(tx *state.Tx) {
		for i := range tx.Instances() {
			n := tx.Node(i.Node)
			if i.Node == "" || i.Over() || c.hands[i.ID] || n != nil && n.State != model.NodeReady {
				continue
			}
			if !i.Status.Away.IsZero() { // the first that its agent does is to tell how it is
				s := i.Status
				s.Away = time.Time{}
				i = i.Clone()
				i.Status = s
				tx.PutInstance(i)
			}
			shell := tx.Version(i.App, i.Version).Spec.Containers[0].Shell
			switch {
			case i.Desired == model.Halt && !c.slow:
				c.report(tx, i, model.Status{Attempt: i.Status.Attempt, Phase: model.PhaseStopped})
			case i.Desired == model.Halt:
			case strings.Contains(shell, "bad") && i.Status.Phase == model.PhaseBackoff:
				if c.now.Sub(i.Status.Since) < 30*time.Second {
					continue
				}
				c.report(tx, i, failed(i.Status.Attempt+1, 1))
			case strings.Contains(shell, "bad"):
				c.report(tx, i, failed(1, 1))
			case i.Status.Phase == model.PhaseAssigned:
				c.report(tx, i, model.Status{Attempt: 1, Phase: model.PhaseRunning, Ready: true})
			}
		}
	})
}

func failed(attempt uint32, code int) model.Status {
	return model.Status{
		Attempt: attempt, Phase: model.PhaseBackoff, Message: "it will be started again",
		Tasks: []model.TaskStatus{{Name: "main", Exit: &model.Exit{Code: code}}},
	}
}

func (c *cluster) report(tx *state.Tx, i *model.Instance, s model.Status) {
	if !s.CanFollow(i.Status) {
		c.t.Fatalf("%s cannot go from %v to %v", i.ID, i.Status.Phase, s.Phase)
	}
	i = i.Clone()
	s.Since = c.now
	i.Status = s
	tx.PutInstance(i)
}

// command runs one line of a scenario.
func (c *cluster) command(line string) {
	c.t.Helper()
	if line == "" || line[0] == '#' {
		return
	}
	words := fields(line)
	pos, opts := words[1:], map[string]string{}
	for n, w := range pos {
		if key, val, ok := strings.Cut(w, "="); ok {
			opts[key] = val
			if n < len(pos) {
				pos[n] = ""
			}
		}
	}
	pos = slices.DeleteFunc(slices.Clone(pos), func(s string) bool { return s == "" })
	arg := func(n int) string {
		if n >= len(pos) {
			return ""
		}
		return pos[n]
	}
	run, ok := map[string]func(){
		"node":     func() { c.node(arg(0), opts) },
		"rmnode":   func() { c.removeNode(model.NodeID(arg(0))) },
		"lose":     func() { c.lose(model.NodeID(arg(0))) },
		"back":     func() { c.back(model.NodeID(arg(0))) },
		"outage":   func() { c.outage(arg(0) == "on") },
		"drain":    func() { c.drain(model.NodeID(arg(0)), opts) },
		"app":      func() { c.app(model.AppID(arg(0)), opts) },
		"restart":  func() { c.restart(model.AppID(arg(0))) },
		"rollback": func() { c.rollback(model.AppID(arg(0)), number(arg(1))) },
		"rm":       func() { c.remove(model.AppID(arg(0))) },
		"pause":    func() { c.setState(model.AppID(arg(0)), model.DeployPaused) },
		"resume":   func() { c.setState(model.AppID(arg(0)), model.DeployRunning) },
		"cancel":   func() { c.cancel(model.AppID(arg(0))) },
		"agent":    func() { c.auto, c.slow = arg(0) != "off", arg(0) == "slow" },
		"hands":    func() { c.hands[model.InstanceID(arg(0))] = true },
		"free":     func() { delete(c.hands, model.InstanceID(arg(0))) },
		"status":   func() { c.status(model.InstanceID(arg(0)), pos[1:], opts) },
		"evict":    func() { c.evict(model.InstanceID(arg(0)), model.EvictKind(arg(1)), opts) },
		"tick": func() {
			d, err := time.ParseDuration(arg(0))
			if err != nil {
				c.t.Fatal(err)
			}
			c.tick(d)
		},
	}[words[0]]
	if !ok {
		c.t.Fatalf("unknown command %q", line)
	}
	run()
	c.settle()
}

// fields splits at spaces; quotes keep words together.
func fields(line string) []string {
	var out []string
	quoted := false
	cur := ""
	for _, r := range line + " " {
		switch {
		case r == '"':
			quoted = !quoted
		case r == ' ' && !quoted:
			if cur != "" {
				out = append(out, cur)
			}
			cur = ""
		default:
			cur += string(r)
		}
	}
	return out
}

func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

func (c *cluster) node(name string, opts map[string]string) {
	n := &model.Node{
		ID: model.NodeID(name), Name: name, State: model.NodeReady,
		Capacity: model.Resources{CPUs: 4000, Memory: 8 * model.GiB, Disk: 100 * model.GiB},
		Ports:    model.PortRange{First: 31000, Last: 31009}, OCI: model.Ability{OK: true}, Isolated: model.Ability{OK: true},
	}
	if v, ok := opts["memory"]; ok {
		n.Capacity.Memory = must(model.ParseBytes(v))
	}
	if v, ok := opts["cpus"]; ok {
		n.Capacity.CPUs = must(model.ParseCPU(v))
	}
	if v, ok := opts["noimages"]; ok {
		n.OCI = model.Ability{Why: v}
	}
	if v, ok := opts["state"]; ok {
		n.State = model.NodeState(v)
	}
	c.update(func(tx *state.Tx) { tx.PutNode(n) })
}

// removeNode deletes a node for good: what was on it is over.
func (c *cluster) removeNode(id model.NodeID) {
	c.update(func(tx *state.Tx) {
		tx.DeleteNode(id)
		for i := range tx.InstancesOn(id) {
			if !i.Over() {
				c.report(tx, i, model.Status{Attempt: i.Status.Attempt, Phase: model.PhaseStopped, Message: "node " + string(id) + " was removed"})
			}
		}
	})
}

// lose makes a node unreachable, as fleet does.
func (c *cluster) lose(id model.NodeID) {
	c.update(func(tx *state.Tx) {
		n := *tx.Node(id)
		n.State, n.Lost = model.NodeUnreachable, c.now
		tx.PutNode(&n)
		for i := range tx.InstancesOn(id) {
			if !i.Over() {
				i = i.Clone()
				i.Status.Away = c.now
				tx.PutInstance(i)
			}
		}
	})
}

// back lets a node answer again; its agent tells how its instances are unless it is off.
func (c *cluster) back(id model.NodeID) {
	c.update(func(tx *state.Tx) {
		n := *tx.Node(id)
		n.State = model.NodeReady
		tx.PutNode(&n)
	})
}

func (c *cluster) outage(on bool) {
	c.update(func(tx *state.Tx) {
		next := model.Losses{Healed: c.now}
		if on {
			next.Outage = &model.Outage{Since: c.now, Noted: c.now, Lost: 4, Nodes: 10}
		}
		tx.PutLosses(&next)
	})
}

// drain wants a node to be empty, after=... from now whatever it takes.
func (c *cluster) drain(id model.NodeID, opts map[string]string) {
	c.update(func(tx *state.Tx) {
		s := &model.NodeSettings{ID: id, Draining: true, Why: opts["why"]}
		if v, ok := opts["after"]; ok {
			s.Deadline = c.now.Add(must(time.ParseDuration(v)))
		}
		tx.PutSettings(s)
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// app writes a new version that has the last one's spec, changed by opts, as the API does.
func (c *cluster) app(id model.AppID, opts map[string]string) {
	c.update(func(tx *state.Tx) {
		spec := &model.Spec{ID: id, Containers: []model.Container{{Shell: "run"}}}
		var restarts uint64
		if old := tx.Target(id); old != nil {
			spec, restarts = old.Spec.Clone(), old.Restarts
		}
		kind := model.DeployUpdate
		for _, k := range slices.Sorted(maps.Keys(opts)) {
			setOption(spec, k, opts[k])
		}
		if tx.App(id) == nil {
			kind = model.DeployCreate
		} else if _, ok := opts["n"]; ok && len(opts) == 1 {
			kind = model.DeployScale
		}
		if errs := spec.Validate(); errs != nil {
			c.t.Fatal(errs)
		}
		c.deploy(tx, id, kind, spec, restarts)
	})
}

func setOption(s *model.Spec, key, val string) {
	if s.Update == nil {
		s.Update = &model.Update{}
	}
	unreachable := func() *model.Unreachable {
		if s.Unreachable == nil {
			s.Unreachable = &model.Unreachable{}
		}
		return s.Unreachable
	}
	duration := func() model.Duration { return must(model.ParseDuration(val)) }
	switch key {
	case "n":
		n := int(number(val))
		s.Instances = &n
	case "run":
		s.Containers[0].Shell = val
	case "image":
		s.Containers[0].Image = val
	case "cpus":
		s.Containers[0].CPUs = must(model.ParseCPU(val))
	case "memory":
		s.Containers[0].Memory = must(model.ParseBytes(val))
	case "port":
		s.Endpoints = []model.Endpoint{{Name: "main", Port: int(number(val))}}
	case "volume":
		s.Volumes = []model.Volume{{Name: val, Persistent: &model.Persistent{Size: model.GiB}}}
	case "grace":
		s.Stop = &model.Stop{Grace: duration()}
	case "kill":
		s.KillOrder = model.KillOrder(val)
	case "min":
		s.Update.MinHealthy = model.Amount(val)
	case "surge":
		s.Update.MaxSurge = model.Amount(val)
	case "time":
		d := duration()
		s.Update.MinHealthyTime = &d
	case "deadline":
		s.Update.Deadline = duration()
	case "replace":
		unreachable().ReplaceAfter = duration()
	case "expunge":
		unreachable().ExpungeAfter = duration()
	case "never":
		unreachable().Never = val == "true"
	case "abandon":
		unreachable().AbandonVolumes = val == "true"
	case "norollback":
		s.Update.NoRollback = val == "true"
	default:
		panic("unknown option " + key)
	}
}

func (c *cluster) deploy(tx *state.Tx, id model.AppID, kind model.DeployKind, spec *model.Spec, restarts uint64) {
	a := &model.App{ID: id, Created: c.now}
	d := &model.Deployment{ID: model.DeploymentID(c.newID("d")), App: id, Kind: kind, Created: c.now, State: model.DeployRunning,
		Moved: c.now, Want: spec.Count(), Message: "begins"}
	if old := tx.App(id); old != nil {
		*a = *old
		d.From = tx.Target(id).Version
	}
	a.Version++
	a.Deployment, d.To = d.ID, a.Version
	tx.PutVersion(&model.AppVersion{App: id, Version: a.Version, Created: c.now, Restarts: restarts, Spec: spec})
	tx.PutApp(a)
	tx.PutDeployment(d)
}

func (c *cluster) restart(id model.AppID) {
	c.update(func(tx *state.Tx) {
		t := tx.Target(id)
		c.deploy(tx, id, model.DeployRestart, t.Spec, t.Restarts+1)
	})
}

func (c *cluster) rollback(id model.AppID, to uint64) {
	c.update(func(tx *state.Tx) {
		v := tx.Version(id, to)
		c.deploy(tx, id, model.DeployRollback, v.Spec, v.Restarts)
	})
}

func (c *cluster) remove(id model.AppID) {
	c.update(func(tx *state.Tx) {
		a := *tx.App(id)
		t := tx.Target(id)
		d := &model.Deployment{
			ID: model.DeploymentID(c.newID("d")), App: id, Kind: model.DeployRemove, From: t.Version, To: t.Version,
			Created: c.now, Moved: c.now, State: model.DeployRunning,
		}
		a.Removing, a.Deployment = true, d.ID
		tx.PutApp(&a)
		tx.PutDeployment(d)
	})
}

func (c *cluster) setState(id model.AppID, s model.DeploymentState) {
	c.update(func(tx *state.Tx) {
		d := *tx.Deployment(tx.App(id).Deployment)
		d.State = s
		if s == model.DeployRunning {
			d.Moved = c.now
		}
		tx.PutDeployment(&d)
	})
}

// cancel ends the app's deployment and goes back to where it came from.
func (c *cluster) cancel(id model.AppID) {
	c.update(func(tx *state.Tx) {
		a := *tx.App(id)
		d := *tx.Deployment(a.Deployment)
		d.State, d.Ended, d.Message = model.DeployCancelled, c.now, "cancelled"
		tx.PutDeployment(&d)
		back := &model.Deployment{
			ID: model.DeploymentID(c.newID("d")), App: id, Kind: model.DeployRollback, From: d.To, To: d.From,
			Created: c.now, Moved: c.now, State: model.DeployRunning,
		}
		a.Deployment = back.ID
		tx.PutApp(&a)
		tx.PutDeployment(back)
	})
}

// status reports a phase, with healthy, unhealthy or ready, attempt=N, exit=N and message=...
func (c *cluster) status(id model.InstanceID, words []string, opts map[string]string) {
	c.update(func(tx *state.Tx) {
		i := tx.Instance(id)
		if i == nil {
			c.t.Fatalf("no instance %q", id)
		}
		s := model.Status{Attempt: max(1, i.Status.Attempt), Phase: model.Phase(words[0]), Message: opts["message"]}
		if v, ok := opts["attempt"]; ok {
			s.Attempt = uint32(number(v))
		}
		if v, ok := opts["exit"]; ok {
			s.Tasks = []model.TaskStatus{{Name: "main", Exit: &model.Exit{Code: int(number(v))}}}
		}
		for _, w := range words[1:] {
			switch w {
			case "healthy":
				s.Ready, s.Healthy = true, model.Healthy
			case "unhealthy":
				s.Healthy = model.Unhealthy
			case "ready":
				s.Ready = true
			}
		}
		c.report(tx, i, s)
	})
}

// evict wishes that an instance leaves its node, with why=..., as the scheduler does; with no kind, that it need not.
func (c *cluster) evict(id model.InstanceID, kind model.EvictKind, opts map[string]string) {
	c.update(func(tx *state.Tx) {
		i := tx.Instance(id).Clone()
		i.Evict = nil
		if kind != "" {
			i.Evict = &model.Eviction{Kind: kind, Why: opts["why"], At: c.now}
		}
		tx.PutInstance(i)
	})
}

// picture shows events and deployments that are new, and all instances.
func (c *cluster) picture() string {
	var b strings.Builder
	v := c.db.View()
	for _, e := range v.Events() {
		if e.Seq > c.events {
			fmt.Fprintf(&b, "! %s: %s\n", e.Type, e.Message)
			c.events = e.Seq
		}
	}
	for a := range v.Apps() {
		fmt.Fprintf(&b, "%s version %d, stable %d, kept %s\n", a.ID, a.Version, a.Stable, kept(v, a.ID))
	}
	for d := range v.Deployments() {
		line := fmt.Sprintf("%s %s %d>%d %s %d/%d old %d: %s", d.ID, d.Kind, d.From, d.To, d.State, d.Done, d.Want, d.Old, d.Message)
		if c.shown[d.ID] != line {
			fmt.Fprintln(&b, line)
			c.shown[d.ID] = line
		}
	}
	over := 0
	for i := range v.Instances() {
		line := c.line(i)
		if i.Over() {
			over++
		}
		if !i.Over() || c.ended[i.ID] != line {
			b.WriteString(line)
		}
		c.ended[i.ID] = line
	}
	if over > 0 {
		fmt.Fprintf(&b, "  %d over\n", over)
	}
	return b.String()
}

func kept(v state.View, id model.AppID) string {
	var out []string
	for ver := range v.Versions(id) {
		out = append(out, strconv.FormatUint(ver.Version, 10))
	}
	return strings.Join(out, ",")
}

func (c *cluster) line(i *model.Instance) string {
	out := fmt.Sprintf("  %s v%d %s", i.ID, i.Version, i.Status.Phase)
	if i.Slot != 0 {
		out += fmt.Sprintf(" slot %d", i.Slot)
	}
	if i.Replaces != "" {
		out += " for " + string(i.Replaces)
	}
	switch {
	case i.Desired == model.Halt:
		out += " (to stop: " + i.Why + ")"
	case i.Why != "":
		out += " (" + i.Why + ")"
	}
	if !i.Status.Away.IsZero() && !i.Over() {
		out += " away"
	}
	if i.Status.Ready {
		out += " ready"
	}
	if i.Status.Healthy == model.Unhealthy {
		out += " unhealthy"
	}
	if i.Node != "" {
		out += " on " + string(i.Node)
	}
	for _, p := range i.Ports {
		out += fmt.Sprintf(" :%d", p)
	}
	if i.Pending != "" {
		out += ", " + i.Pending
	}
	return out + "\n"
}
