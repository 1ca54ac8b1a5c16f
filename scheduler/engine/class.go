package engine

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/policy"
)

// Ask is what each of a number of equal instances needs.
type Ask struct {
	App      model.AppID
	Template string // instances of the app with the same one count together in constraints
	Count    int    // how many the app asks for in all
	Role     model.RoleID
	Priority int
	Pool     string
	Policy   model.Policy // empty for the pool's
	Need     model.Resources
	// Volumes is disk for volumes that are to be made. It is kept as a volume with the instance's id, which outlives the
	// instance: whoever makes the real ones puts them in its place with SetVolume.
	Volumes model.Bytes
	GPUs    []GPUWant
	Custom  map[string]model.Units
	Items   map[string]int // of Custom, where a node has items that are told apart; absent: as many as amount to it
	Ports   []PortWant
	Image   bool // runs containers from images
	VM      bool // runs in virtual machines

	Constraints []model.Constraint
	Affinity    []model.Affinity
	Spread      []model.Spread
}

// GPUWant is what one container asks for.
type GPUWant struct {
	Amount model.GPU // a number of whole devices, or a share of one
	Models []string  // that will do; empty for any
}

// PortWant is one endpoint.
type PortWant struct {
	Port uint16 // 0 for any
	UDP  bool
}

func (w PortWant) proto() int {
	if w.UDP {
		return udp
	}
	return tcp
}

// AskOf returns what instances of a version ask for.
func AskOf(v *model.AppVersion) Ask {
	s := v.Spec
	a := Ask{
		App: v.App, Template: v.Template(), Count: s.Count(), Role: cmp.Or(s.Role, model.RootRole), Priority: model.DefaultPriority,
		Pool: cmp.Or(s.Pool, model.DefaultPool), Policy: s.Placement, Need: s.Resources(), Custom: s.Custom(),
		Constraints: s.Constraints, Affinity: s.Affinity, Spread: s.Spread, VM: s.Isolation == model.IsolationVM,
	}
	if s.Priority != nil {
		a.Priority = *s.Priority
	}
	for i := range s.Containers {
		c := &s.Containers[i]
		a.Image = a.Image || c.Image != ""
		if c.GPUs > 0 {
			a.GPUs = append(a.GPUs, GPUWant{c.GPUs, c.GPUModels})
		}
		for name, amount := range c.Custom { // no item is divided between containers
			if a.Items == nil {
				a.Items = map[string]int{}
			}
			a.Items[name] += itemsOf(amount)
		}
	}
	for _, p := range s.Endpoints {
		a.Ports = append(a.Ports, PortWant{uint16(p.Port), p.Protocol == "udp"})
	}
	return a
}

// Class is a number of instances that ask for the same. It belongs to its Engine.
type Class struct {
	Ask
	need    policy.Amounts // what an instance holds
	want    policy.Amounts // what has to be free: need, and volumes that are to be made
	vector  vector         // what counts against its role
	ask     policy.Ask
	policy  policy.Policy
	gpus    []gpuWant // largest first
	custom  []customWant
	fixed   int    // how many of Ports are fixed
	any     [2]int // how many are not, by protocol
	role    *role
	scatter bool // nodes are not filled one after the other

	filters []*filter
	group   *group
	rules   ruleSet
	even    *tally // by fault domain, over which its instances are spread; nil when they are not
	gen     uint64 // of the engine's rules, when these were made

	feeds   []*tally // of selectors, which change with an instance of the class
	feedGen uint64

	sign  string // of its field
	asked int    // instances that it asked places for
	live  int    // holds, and one until it is dropped
}

type customWant struct {
	name   string
	amount model.Units
	items  int
}

// itemsOf returns how many items amount to so much.
func itemsOf(amount model.Units) int { return int((amount + 999) / 1000) }

// Class makes a class. Equal asks may be made twice; they share what can be shared.
func (e *Engine) Class(a Ask) *Class {
	role := e.roles.of(a.Role)
	a.Role, a.Pool = role.id, cmp.Or(a.Pool, model.DefaultPool)
	c := &Class{Ask: a, need: amounts(a.Need), role: role}
	name := cmp.Or(a.Policy, e.pools[a.Pool], model.PolicyPack)
	c.policy, c.scatter = e.policyOf(a.Pool, name), name != model.PolicyPack
	c.want = c.need
	c.want.Disk += int64(a.Volumes)
	c.wantGPUs(e)
	for _, name := range slices.Sorted(maps.Keys(a.Custom)) {
		c.custom = append(c.custom, customWant{name, a.Custom[name], max(a.Items[name], itemsOf(a.Custom[name]))})
	}
	for _, w := range a.Ports {
		if w.Port != 0 {
			c.fixed++
		} else {
			c.any[w.proto()]++
		}
	}
	c.vector = vector{cpus: c.need.CPU, memory: c.need.Memory, disk: c.need.Disk}
	for _, w := range c.gpus {
		c.vector.gpus += w.total()
	}
	for _, w := range c.custom {
		c.vector.addCustom(w.name, int64(w.amount))
	}
	c.ask = policy.Ask{Amounts: c.want, GPU: int32(c.vector.gpus)}
	for i, w := range c.gpus {
		if i == 0 {
			c.ask.Models = w.models
		}
	}
	for _, con := range a.Constraints {
		if filters(con) {
			c.filters = append(c.filters, e.filter(con))
		}
	}
	c.group = e.groupOf(&a)
	c.group.classes++
	c.live = 1
	e.addAntis(c)
	e.judge(c)
	return c
}

// Drop says that no more places will be asked for c. What it holds stays.
func (e *Engine) Drop(c *Class) { e.unref(c) }

// unref takes one from what keeps c alive, and forgets it when that was the last.
func (e *Engine) unref(c *Class) {
	if c.live--; c.live > 0 {
		return
	}
	e.dropField(c)
	e.dropRules(c)
	e.dropFilters(c)
	e.dropAntis(c)
	if c.group.classes--; c.group.classes == 0 {
		delete(e.groups, c.group.key)
		for _, t := range c.group.tallies {
			e.leave(t.name)
		}
	}
}

// dropField forgets the field that c was the last to use.
func (e *Engine) dropField(c *Class) {
	if f := e.fields[c.sign]; f != nil && f.class == c {
		delete(e.fields, c.sign)
	}
}

// judge makes the rules of a class anew where what they depend on has changed.
func (e *Engine) judge(c *Class) {
	if c.gen == e.ruleGen && c.sign != "" {
		return
	}
	old := c.rules
	e.makeRules(c)
	e.dropList(old.all)
	c.gen = e.ruleGen
	sign := c.signature(e)
	if sign != c.sign {
		e.dropField(c)
	}
	c.sign = sign
}

// signature names what classes must have in common to share a field.
func (c *Class) signature(e *Engine) string {
	b := e.key[:0]
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	number := func(n int64) { b = binary.AppendVarint(b, n) }
	text(c.policy.Name())
	text(c.Pool)
	text(string(c.Role))
	number(c.want.CPU)
	number(c.want.Memory)
	number(c.want.Disk)
	flags := int64(0)
	if c.Image {
		flags |= 1
	}
	if c.VM {
		flags |= 2
	}
	if c.even != nil {
		flags |= 4
	}
	number(flags)
	number(int64(len(c.gpus)))
	for _, w := range c.gpus {
		number(int64(w.share))
		number(int64(w.whole))
		number(int64(w.models))
	}
	number(int64(len(c.custom)))
	for _, w := range c.custom {
		text(w.name)
		number(int64(w.amount))
		number(int64(w.items))
	}
	number(int64(c.any[tcp]))
	number(int64(c.any[udp]))
	for _, w := range c.Ports {
		if w.Port != 0 {
			number(int64(w.Port)<<1 | int64(w.proto()))
		}
	}
	number(-1)
	for _, f := range c.filters {
		con := &f.of
		text(con.Attribute)
		text(string(con.Operator))
		text(con.Value)
	}
	if c.rules.any() {
		text(string(c.App))
		text(c.Template)
		number(int64(c.Count))
		number(int64(c.gen))
		for _, s := range c.Spread {
			text(s.Over)
			number(int64(s.Weight))
			for _, k := range slices.Sorted(maps.Keys(s.Targets)) {
				text(k)
				number(int64(s.Targets[k]))
			}
		}
	}
	e.key = b
	return string(b)
}

// able reports whether a row may take instances of c at all, whatever it has free.
func (e *Engine) able(c *Class, r int32) bool {
	n := &e.info[r]
	if !e.known[r] || n.Shut != "" || n.Pool != c.Pool || c.Image && !n.OCI.OK || c.VM && !n.VM.OK {
		return false
	}
	for _, f := range c.filters {
		if !f.passes(r) {
			return false
		}
	}
	return c.rules.apply(r)
}

// fits reports whether a row, which is able, has what one more instance of c takes.
func (e *Engine) fits(c *Class, r int32) bool {
	if len(c.rules.row) > 0 && !c.rules.allow(r) {
		return false
	}
	f := &e.free[r]
	if c.want.CPU > f.CPU || c.want.Memory > f.Memory || c.want.Disk > f.Disk {
		if e.booked[r] == nil || !within(c.want, e.freeFor(c.role, r)) {
			return false
		}
	}
	if len(c.gpus) > 0 && !e.devicesFit(c, r) {
		return false
	}
	if len(c.custom) > 0 && !e.customFits(c, r) {
		return false
	}
	return len(c.Ports) == 0 || e.ports[r].fits(c)
}
