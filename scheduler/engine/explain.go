package engine

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gantry-os/gantry/model"
)

// Reason is why no node takes one more of a class.
type Reason struct {
	Text  string // a sentence
	Shape string // what does not change with every number in the sentence
}

// cause counts the nodes that lack one thing.
type cause struct {
	filter string
	nodes  int
	first  int    // nodes for which it was the first that failed
	text   string // of one of them
	most   int64  // of what they have free
	say    func(*cause) string
}

// asked is an explanation in the making.
type asked struct {
	e      *Engine
	c      *Class
	causes []*cause
	byName map[string]*cause
	failed bool // the node at hand failed a filter already
}

// Explain says how the nodes are narrowed down to those that take one more of c, and when none does, why.
func (e *Engine) Explain(c *Class) (model.Funnel, Reason) {
	return e.explain(c, func(int32) bool { return true })
}

// ExplainOn says why a node does not take one more of c; the reason's text is empty when it does.
func (e *Engine) ExplainOn(c *Class, node model.NodeID) Reason {
	at, ok := e.rows[node]
	if !ok || !e.known[at] {
		return Reason{"it has not joined", "none"}
	}
	f, why := e.explain(c, func(r int32) bool { return r == at })
	if f.Fit > 0 && f.Reason == "" {
		return Reason{}
	}
	return why
}

func (e *Engine) explain(c *Class, considered func(int32) bool) (model.Funnel, Reason) {
	e.judge(c)
	a := &asked{e: e, c: c, byName: map[string]*cause{}}
	var f *field
	if len(c.rules.cells) > 0 {
		f = e.fieldOf(c)
	}
	var out model.Funnel
	for r := range int32(len(e.info)) {
		if !e.known[r] || !considered(r) {
			continue
		}
		out.Nodes++
		a.failed = false
		a.static(r)
		if a.failed { // what it has free does not matter
			continue
		}
		a.rules(f, r)
		a.resources(r)
		if !a.failed {
			out.Fit++
		}
	}
	left := out.Nodes
	var parts, shapes []string
	for _, x := range a.causes {
		if x.first > 0 {
			left -= x.first
			out.Steps = append(out.Steps, model.FunnelStep{Filter: x.filter, Removed: x.first, Left: left, Why: x.say(x)})
		}
	}
	for _, x := range a.said() {
		parts, shapes = append(parts, x.say(x)), append(shapes, x.filter)
	}
	out.Spread = e.Spreading(c)
	full := c.role.full(&c.vector)
	switch {
	case full != "":
		out.Reason, shapes = full, []string{"limit"}
	case out.Nodes == 0:
		out.Reason, shapes = "no node has joined yet", []string{"none"}
	case out.Fit > 0:
		return out, Reason{"it will be placed in a moment", "soon"}
	default:
		out.Reason = strings.Join(parts, "; ")
	}
	return out, Reason{out.Reason, strings.Join(shapes, ";")}
}

// said returns the causes in the order in which people want them: what is lacked first, then what excludes, and last the
// nodes that are of no use to anyone.
func (a *asked) said() []*cause {
	list := slices.DeleteFunc(slices.Clone(a.causes), func(x *cause) bool { return x.nodes == 0 })
	slices.SortStableFunc(list, func(x, y *cause) int { return cmp.Compare(x.place(), y.place()) })
	return list
}

// place is where a cause stands in a sentence.
func (x *cause) place() int {
	switch {
	case lacking[x.filter] || strings.HasPrefix(x.filter, "port ") || strings.HasPrefix(x.filter, "custom "):
		return 0
	case strings.HasPrefix(x.filter, "state "):
		return 2
	}
	return 1
}

var lacking = map[string]bool{"memory": true, "cpus": true, "disk": true, "gpus": true, "ports": true}

// cause counts the node at hand for a cause, and returns it.
func (a *asked) cause(filter string, say func(*cause) string) *cause {
	x := a.byName[filter]
	if x == nil {
		x = &cause{filter: filter, say: say}
		a.byName[filter] = x
		a.causes = append(a.causes, x)
	}
	if x.nodes++; !a.failed {
		x.first++
	}
	a.failed = true
	return x
}

// static asks what has nothing to do with what is free.
func (a *asked) static(r int32) {
	n, c := &a.e.info[r], a.c
	switch {
	case n.Shut != "":
		kind, _, _ := strings.Cut(n.Shut, ":")
		x := a.cause("state "+kind, func(x *cause) string { return fmt.Sprintf("%s %s", x.are(), x.text) })
		x.keep(n.Shut)
	case n.Pool != c.Pool:
		a.cause("pool", func(x *cause) string { return fmt.Sprintf("%s in pool %s", x.areNot(), c.Pool) })
	case c.Image && !n.OCI.OK:
		a.cause("runtime", func(x *cause) string { return fmt.Sprintf("%s cannot run images%s", x.count(), colon(x.text)) }).keep(n.OCI.Why)
	case c.VM && !n.VM.OK:
		a.cause("virtual machines", func(x *cause) string {
			return fmt.Sprintf("%s cannot run virtual machines%s", x.count(), colon(x.text))
		}).keep(n.VM.Why)
	}
	if a.failed {
		return
	}
	for _, f := range c.filters {
		if !f.passes(r) {
			a.excluded(constraintWords(f.of))
			return
		}
	}
}

// excluded counts a node that a rule excludes.
func (a *asked) excluded(words string) {
	a.cause(words, func(x *cause) string { return fmt.Sprintf("%s excluded by %s", x.are(), words) })
}

// rules asks the rules that count instances.
func (a *asked) rules(f *field, r int32) {
	list := a.c.rules.all
	for i := range list {
		u := &list[i]
		if !u.kind.hard() {
			continue
		}
		v := u.tally.attr.value[r]
		ok := u.allows(v)
		if u.kind == groupBy && v != none && f != nil {
			ok = f.group.fair(f, u.tally, v)
		}
		switch {
		case ok:
		case u.kind == join && u.tally.total == 0:
			a.excluded(u.words + ": nothing of it has a place")
		default:
			a.excluded(u.words)
		}
	}
}

// fair reports whether a GROUP_BY rule lets one more instance in where its attribute has value v.
func (g *groupings) fair(f *field, t *tally, v int32) bool {
	for n, i := range g.rules {
		if f.class.rules.cells[i].tally == t && t.at(v) > g.least[n] {
			return false
		}
	}
	return true
}

// resources asks what a node has free. A node that lacks several things counts for each.
func (a *asked) resources(r int32) {
	e, c := a.e, a.c
	free := e.freeFor(c.role, r)
	a.amount(r, "memory", c.want.Memory, free.Memory, func(n int64) string { return model.Bytes(n).Human() })
	a.amount(r, "cpus", c.want.CPU, free.CPU, func(n int64) string { return model.CPU(n).String() })
	a.amount(r, "disk", c.want.Disk, free.Disk, func(n int64) string { return model.Bytes(n).Human() })
	if len(c.gpus) > 0 && !e.devicesFit(c, r) {
		sum := e.usable(c, r)
		x := a.cause("gpus", func(x *cause) string {
			return fmt.Sprintf("%s GPUs: wants %s, most free is %s on %s", x.lack(), c.gpuWords(), model.GPU(x.most), x.text)
		})
		x.best(sum, e.info[r].Name)
	}
	for _, w := range c.custom {
		have := model.Units(0)
		s := e.custom[r][w.name]
		if s.has(&w) {
			continue
		}
		if s != nil {
			have = max(0, s.free)
			if len(s.items) > 0 {
				have = min(have, model.Units(s.left)*1000)
			}
		}
		a.custom(r, w, have)
	}
	a.ports(r)
}

// usable returns what a row has free of devices for c: of the models that it asks for only, whole devices when it asks for
// those, and for a share the most that one device has.
func (e *Engine) usable(c *Class, r int32) int64 {
	sum, most := int64(0), int64(0)
	for d, free := range e.gpu[r].free {
		wanted := false
		for n := range c.gpus {
			w := &c.gpus[n]
			wanted = wanted || e.accepts(w, r, d) && (w.whole == 0 || free == wholeDevice)
		}
		if wanted {
			sum, most = sum+int64(free), max(most, int64(free))
		}
	}
	if len(c.gpus) == 1 && c.gpus[0].whole == 0 {
		return most
	}
	return sum
}

func (a *asked) custom(r int32, w customWant, have model.Units) {
	x := a.cause("custom "+w.name, func(x *cause) string {
		return fmt.Sprintf("%s %s: wants %s, most free is %s on %s", x.lack(), w.name, w.amount, model.Units(x.most), x.text)
	})
	x.best(int64(have), a.e.info[r].Name)
}

var amountNames = map[string]string{"cpus": "CPUs"}

func (a *asked) amount(r int32, name string, want, free int64, text func(int64) string) {
	if want <= free {
		return
	}
	x := a.cause(name, func(x *cause) string {
		title := name
		if t := amountNames[name]; t != "" {
			title = t
		}
		return fmt.Sprintf("%s %s: wants %s, most free is %s on %s", x.lack(), title, text(want), text(max(0, x.most)), x.text)
	})
	x.best(free, a.e.info[r].Name)
}

func (a *asked) ports(r int32) {
	e, c := a.e, a.c
	p := e.ports[r]
	taken := false
	for i, w := range c.Ports {
		if w.Port == 0 || !p.taken[w.proto()].has(w.Port) {
			continue
		}
		taken = true
		proto := [...]string{"tcp", "udp"}[w.proto()]
		x := a.cause(fmt.Sprintf("port %d/%s", w.Port, proto), func(x *cause) string {
			return fmt.Sprintf("port %d/%s is taken on %s%s", w.Port, proto, x.count(), by(x.text))
		})
		x.keep(string(e.portOwner(r, c.Ports[i])))
		break
	}
	if !taken && len(c.Ports) > 0 && !p.fits(c) {
		a.cause("ports", func(x *cause) string {
			return fmt.Sprintf("%s free ports to assign: wants %d", x.lack(), len(c.Ports)-c.fixed)
		})
	}
}

// portOwner returns the instance that has a port of a row, empty when it is not known.
func (e *Engine) portOwner(r int32, w PortWant) model.InstanceID {
	for h := e.first[r]; h != none; h = e.at(h).next {
		x := e.at(h)
		if x.extra == nil {
			continue
		}
		for n, p := range x.extra.ports {
			if p == w.Port && (n >= len(x.class.Ports) || x.class.Ports[n].UDP == w.UDP) {
				return x.id
			}
		}
	}
	return ""
}

// gpuWords says what devices a class asks for.
func (c *Class) gpuWords() string {
	var parts []string
	for _, w := range c.gpus {
		s := model.GPU(w.total()).String()
		if len(w.names) > 0 {
			s += " " + strings.Join(w.names, " or ")
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, " and ")
}

func (x *cause) keep(text string) {
	if x.text == "" {
		x.text = text
	}
}

// best keeps the node that has most.
func (x *cause) best(free int64, name string) {
	if x.nodes == 1 || free > x.most {
		x.most, x.text = free, name
	}
}

func (x *cause) count() string {
	if x.nodes == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", x.nodes)
}

func (x *cause) are() string {
	if x.nodes == 1 {
		return "1 node is"
	}
	return fmt.Sprintf("%d nodes are", x.nodes)
}

func (x *cause) areNot() string { return x.are() + " not" }

func (x *cause) lack() string {
	if x.nodes == 1 {
		return "1 node lacks"
	}
	return fmt.Sprintf("%d nodes lack", x.nodes)
}

func by(owner string) string {
	if owner == "" {
		return ""
	}
	return " (by " + owner + ")"
}

func colon(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}
