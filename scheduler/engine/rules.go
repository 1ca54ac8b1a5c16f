package engine

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gantry-os/gantry/model"
)

// groupKey names instances that count together.
type groupKey struct {
	app      model.AppID
	template string
}

// group is instances of one template of an app, and what is counted of them.
type group struct {
	key     groupKey
	classes int // that are alive
	holds   int
	tallies []*tally
}

func (e *Engine) groupOf(a *Ask) *group {
	key := groupKey{a.App, a.Template}
	g := e.groups[key]
	if g == nil {
		g = &group{key: key}
		e.groups[key] = g
	}
	return g
}

// selector names the apps that an affinity is about: one, or all below a group.
type selector struct {
	app   model.AppID
	below string
}

func selectorOf(a model.Affinity) selector {
	app, below, err := a.ParseSelector()
	if err != nil { // validation refuses it; it selects nothing
		return selector{app: "\x00"}
	}
	return selector{app, below}
}

func (s selector) matches(app model.AppID) bool {
	if s.below == "" {
		return app == s.app
	}
	return s.below == "/" || strings.HasPrefix(string(app), s.below+"/")
}

func (s selector) String() string {
	if s.below == "" {
		return string(s.app)
	}
	return strings.TrimSuffix(s.below, "/") + "/*"
}

// tally counts instances by the value that an attribute has where they are.
type tally struct {
	attr    *attribute
	name    string // of the attribute
	few     []int32
	many    map[int32]int32 // of values from fewValues on
	total   int
	nowhere int32   // where there is no value
	changed uint64  // when, by the engine's clock
	clock   *uint64 // the engine's, of changes of tallies
	key     tallyKey
	refs    int // rules that look at it, when it is a selector's
}

type tallyKey struct {
	sel  selector
	attr string
}

// fewValues is how many values are counted in a plain list.
const fewValues = 256

func (t *tally) at(v int32) int32 {
	if v >= 0 && v < int32(len(t.few)) {
		return t.few[v]
	}
	return t.many[v]
}

func (t *tally) add(r int32, n int32) {
	t.total += int(n)
	*t.clock++
	t.changed = *t.clock
	v := t.attr.value[r]
	switch {
	case v == none:
		t.nowhere += n
	case v < fewValues:
		for int(v) >= len(t.few) {
			t.few = append(t.few, 0)
		}
		t.few[v] += n
	default:
		if t.many == nil {
			t.many = map[int32]int32{}
		}
		if t.many[v] += n; t.many[v] == 0 {
			delete(t.many, v)
		}
	}
}

// feed counts n instances more of c on a row.
func (e *Engine) feed(c *Class, r int32, n int32) {
	c.group.holds += int(n)
	for _, t := range c.group.tallies {
		t.add(r, n)
	}
	for _, t := range e.feedsOf(c) {
		t.add(r, n)
	}
}

// feedsOf returns the selectors' tallies that count c.
func (e *Engine) feedsOf(c *Class) []*tally {
	if c.feedGen != e.tallyGen {
		c.feeds, c.feedGen = c.feeds[:0], e.tallyGen
		for key, t := range e.tallies {
			if key.sel.matches(c.App) {
				c.feeds = append(c.feeds, t)
			}
		}
	}
	return c.feeds
}

// newTally returns a tally that has counted nothing. It counts as changed: no field has looked at it.
func (e *Engine) newTally(attr string) *tally {
	e.counts++
	return &tally{attr: e.attribute(attr), name: attr, clock: &e.counts, changed: e.counts}
}

// groupTally returns what counts a group by an attribute.
func (e *Engine) groupTally(g *group, attr string) *tally {
	for _, t := range g.tallies {
		if t.name == attr {
			return t
		}
	}
	t := e.newTally(attr)
	if g.holds > 0 {
		e.recount(t, func(c *Class) bool { return c.group == g })
	}
	g.tallies = append(g.tallies, t)
	return t
}

// tally returns what counts a selector's instances by an attribute.
func (e *Engine) tally(s selector, attr string) *tally {
	key := tallyKey{s, attr}
	t := e.tallies[key]
	if t == nil {
		t = e.newTally(attr)
		t.key = key
		for _, g := range e.groups {
			if g.holds > 0 && s.matches(g.key.app) {
				e.recount(t, func(c *Class) bool { return s.matches(c.App) })
				break
			}
		}
		e.tallies[key] = t
		e.tallyGen++
	}
	t.refs++
	return t
}

func (e *Engine) recount(t *tally, counts func(*Class) bool) {
	for n := range e.all {
		if h := e.at(n); counts(h.class) {
			t.add(h.row, 1)
		}
	}
}

// anti is a required anti-affinity to other apps: those have to keep away from its owner, too.
type anti struct {
	owner *group
	sel   selector
	attr  string
}

func (e *Engine) addAntis(c *Class) {
	for _, a := range c.Affinity {
		sel := selectorOf(a)
		if a.Anti && a.Weight == 0 && sel != (selector{app: c.App}) {
			e.antis = append(e.antis, anti{c.group, sel, a.Place()})
			e.ruleGen++
		}
	}
}

func (e *Engine) dropAntis(c *Class) {
	for _, a := range c.Affinity {
		x := anti{c.group, selectorOf(a), a.Place()}
		if n := slices.Index(e.antis, x); a.Anti && a.Weight == 0 && n >= 0 {
			e.antis = slices.Delete(e.antis, n, n+1)
			e.ruleGen++
		}
	}
}

// ruleKind is what a rule asks of a place: the nodes with one value of an attribute.
type ruleKind uint8

const (
	maxPer  ruleKind = iota // fewer than n instances are there
	cluster                 // all are there, or there are none yet
	groupBy                 // nowhere are fewer
	join                    // one is there; the first of its own kind may go anywhere
	away                    // none is there
	spread                  // preferred: as many as its share
	near                    // preferred: one is there
	far                     // preferred: few are there
)

func (k ruleKind) hard() bool { return k < spread }

// rule looks at a tally.
type rule struct {
	kind   ruleKind
	tally  *tally
	n      int32
	weight float64
	self   bool // instances of the class itself change the tally
	spread *model.Spread
	words  string // for people
}

// ruleSet is the rules of a class, by how they are looked at.
type ruleSet struct {
	all   []rule
	row   []rule // required, and each row answers for itself
	soft  []rule // preferred, and instances of the class itself do not change them
	cells []rule // the others: they divide a field into cells
}

func (s *ruleSet) any() bool { return len(s.all) > 0 }

// allow reports whether the rules that a row answers for itself let an instance in.
func (s *ruleSet) allow(r int32) bool {
	for i := range s.row {
		if !s.row[i].allows(s.row[i].tally.attr.value[r]) {
			return false
		}
	}
	return true
}

// apply reports whether a row has the attributes that the rules ask for.
func (s *ruleSet) apply(r int32) bool {
	for i := range s.all {
		if u := &s.all[i]; u.needsValue() && u.tally.attr.value[r] == none {
			return false
		}
	}
	return true
}

// needsValue reports whether nodes without the attribute are out.
func (u *rule) needsValue() bool { return u.kind.hard() && u.kind != away }

// allows reports whether a required rule lets one more instance in where its attribute has value v. GROUP_BY has to know
// all values and is decided by the field.
func (u *rule) allows(v int32) bool {
	if v == none {
		return !u.needsValue()
	}
	switch u.kind {
	case maxPer:
		return u.tally.at(v) < u.n
	case cluster:
		return u.tally.total == 0 || u.tally.at(v) > 0
	case join:
		return u.tally.at(v) > 0 || u.self && u.tally.total == 0
	case away:
		return u.tally.at(v) == 0
	}
	return true
}

// makeRules makes the rules of a class.
func (e *Engine) makeRules(c *Class) {
	var list []rule
	for _, con := range c.Constraints {
		u := rule{self: true, words: constraintWords(con)}
		n, _ := con.Number()
		switch u.n = int32(n); {
		case con.Operator == model.OpUnique:
			u.kind, u.n = maxPer, 1
		case con.Operator == model.OpMaxPer:
			u.kind = maxPer
		case con.Operator == model.OpGroupBy:
			u.kind = groupBy
		case con.Operator == model.OpCluster && con.Value == "":
			u.kind = cluster
		default:
			continue
		}
		u.tally = e.groupTally(c.group, con.Attribute)
		list = append(list, u)
	}
	for i := range c.Spread {
		s := &c.Spread[i]
		list = append(list, rule{
			kind: spread, self: true, weight: float64(cmp.Or(s.Weight, model.DefaultSpread)), spread: s,
			tally: e.groupTally(c.group, s.Over), words: "spread over " + s.Over,
		})
	}
	for _, a := range c.Affinity {
		sel := selectorOf(a)
		u := rule{kind: join, tally: e.tally(sel, a.Place()), self: sel.matches(c.App), weight: float64(a.Weight), words: affinityWords(a, sel)}
		switch {
		case a.Anti && a.Weight > 0:
			u.kind = far
		case a.Anti:
			u.kind = away
		case a.Weight > 0:
			u.kind = near
		}
		list = append(list, u)
	}
	for _, x := range e.antis {
		if owner := x.owner.key.app; owner != c.App && x.sel.matches(c.App) {
			list = append(list, rule{kind: away, tally: e.groupTally(x.owner, x.attr), words: fmt.Sprintf("the anti-affinity of %s", owner)})
		}
	}
	c.rules = ruleSet{all: list}
	for _, u := range list {
		own := u.tally.name == model.AttrHostname && (u.kind == maxPer || u.kind == away)
		switch {
		case u.kind.hard() && (!u.self || own):
			c.rules.row = append(c.rules.row, u)
		case !u.self:
			c.rules.soft = append(c.rules.soft, u)
		default:
			c.rules.cells = append(c.rules.cells, u)
		}
	}
	e.evenOut(c)
}

// dropRules gives back the tallies that the rules of a class look at.
func (e *Engine) dropRules(c *Class) {
	e.dropList(c.rules.all)
	c.rules = ruleSet{}
}

func (e *Engine) dropList(list []rule) {
	for i := range list {
		t := list[i].tally
		if t.refs == 0 { // a group's, which lives as long as the group
			continue
		}
		if t.refs--; t.refs == 0 {
			delete(e.tallies, t.key)
			e.leave(t.name)
			e.tallyGen++
		}
	}
}

func constraintWords(c model.Constraint) string {
	return strings.TrimSuffix(fmt.Sprintf("constraint %s %s %s", c.Attribute, c.Operator, c.Value), " ")
}

func affinityWords(a model.Affinity, sel selector) string {
	kind := "affinity"
	if a.Anti {
		kind = "anti-affinity"
	}
	return fmt.Sprintf("%s to %s by %s", kind, sel, a.Place())
}
