package engine

import (
	"regexp"

	"github.com/gantry-os/gantry/model"
)

// attribute is one attribute of all nodes, its values as numbers.
type attribute struct {
	value  []int32 // by row; none for nodes without it
	values []string
	number map[string]int32
	refs   int // filters and tallies that look at it
}

// attribute returns an attribute's column, for one more that looks at it. It makes it when nobody does.
func (e *Engine) attribute(name string) *attribute {
	if a := e.attrs[name]; a != nil {
		a.refs++
		return a
	}
	a := &attribute{value: make([]int32, len(e.info)), number: map[string]int32{}, refs: 1}
	e.attrs[name] = a
	for r := range e.info {
		a.set(int32(r), &e.info[r], name)
	}
	return a
}

// leave says that one less looks at an attribute.
func (e *Engine) leave(name string) {
	if a := e.attrs[name]; a != nil {
		if a.refs--; a.refs == 0 {
			delete(e.attrs, name)
		}
	}
}

func (a *attribute) set(r int32, n *Node, name string) {
	a.value[r] = none
	if v, ok := n.attribute(name); ok {
		a.value[r] = a.numberOf(v)
	}
}

// describe makes the attributes of a row what its node says, and counts its instances under the new values.
func (e *Engine) describe(r int32) {
	for name, a := range e.attrs {
		v := none
		if text, ok := e.info[r].attribute(name); ok {
			v = a.numberOf(text)
		}
		if a.value[r] == v {
			continue
		}
		e.retally(r, a, -1)
		a.value[r] = v
		e.retally(r, a, 1)
	}
}

func (e *Engine) retally(r int32, a *attribute, n int32) {
	for h := e.first[r]; h != none; h = e.at(h).next {
		c := e.at(h).class
		for _, list := range [][]*tally{c.group.tallies, e.feedsOf(c)} {
			for _, t := range list {
				if t.attr == a {
					t.add(r, n)
				}
			}
		}
	}
}

func (a *attribute) numberOf(v string) int32 {
	n, ok := a.number[v]
	if !ok {
		n = int32(len(a.values))
		a.number[v] = n
		a.values = append(a.values, v)
	}
	return n
}

// filter is a constraint that looks at one node alone: LIKE, UNLIKE, IS, and CLUSTER with a value. It is asked once for
// each value, not for each node.
type filter struct {
	of      model.Constraint
	attr    *attribute
	matches func(string) bool
	absent  bool   // what nodes without the attribute get
	answer  []int8 // by value: 0 not asked yet, 1 yes, 2 no
	refs    int    // classes that have it
}

// filters reports whether a constraint looks at one node alone.
func filters(c model.Constraint) bool {
	switch c.Operator {
	case model.OpLike, model.OpUnlike, model.OpIs:
		return true
	case model.OpCluster:
		return c.Value != ""
	}
	return false
}

// filter returns the filter of a constraint that filters, for one more class.
func (e *Engine) filter(c model.Constraint) *filter {
	f := e.filters[c]
	if f == nil {
		f = &filter{of: c, attr: e.attribute(c.Attribute), matches: func(v string) bool { return v == c.Value }}
		if c.Operator == model.OpLike || c.Operator == model.OpUnlike {
			f.absent = c.Operator == model.OpUnlike
			f.matches = pattern(c)
		}
		e.filters[c] = f
	}
	f.refs++
	return f
}

// pattern returns what asks LIKE or UNLIKE of a value.
func pattern(c model.Constraint) func(string) bool {
	re, err := c.Pattern()
	if err != nil { // validation refuses it; nothing matches
		re = regexp.MustCompile(`\z.`)
	}
	want := c.Operator == model.OpLike
	return func(v string) bool { return re.MatchString(v) == want }
}

// dropFilters gives back the filters of a class.
func (e *Engine) dropFilters(c *Class) {
	for _, f := range c.filters {
		if f.refs--; f.refs == 0 {
			delete(e.filters, f.of)
			e.leave(f.of.Attribute)
		}
	}
	c.filters = nil
}

// passes reports whether a row satisfies the filter.
func (f *filter) passes(r int32) bool {
	v := f.attr.value[r]
	if v == none {
		return f.absent
	}
	for int(v) >= len(f.answer) {
		f.answer = append(f.answer, 0)
	}
	if f.answer[v] == 0 {
		f.answer[v] = 2
		if f.matches(f.attr.values[v]) {
			f.answer[v] = 1
		}
	}
	return f.answer[v] == 1
}

func (n *Node) attribute(name string) (string, bool) {
	if name == domainAttr {
		return n.domain()
	}
	m := model.Node{Name: n.Name, Region: n.Region, Zone: n.Zone, Attributes: n.Attributes}
	return m.Attribute(name)
}
