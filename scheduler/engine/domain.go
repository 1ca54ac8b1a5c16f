package engine

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Fault domains: instances of an app that says nothing itself of how they lie to each other are spread evenly over them. It is the
// weakest of preferences: it decides between places that all others leave equal, and within a domain the policy chooses.
//
// A class's counts by domain do not order its field, which others may share: cells are told apart by domain, and of the few
// that there are the best is sought for each placement.

// domainAttr is the attribute of nodes that names their fault domain: the zone and its region, or the region where there is no
// zone. Nobody else can name it so.
const domainAttr = "\x00domain"

// maxDomains bounds over how many fault domains instances are spread: what has more values than that is none.
const maxDomains = 256

// domain returns a node's fault domain. Those without any are one together, and have no value.
func (n *Node) domain() (string, bool) {
	return n.Region + "\x00" + n.Zone, n.Region != "" || n.Zone != ""
}

// countDomain takes note that n nodes more of what a row is are there.
func (e *Engine) countDomain(r int32, n int) {
	name, ok := e.info[r].domain()
	if !ok {
		return
	}
	pool := e.info[r].Pool
	if e.domains[pool] == nil {
		e.domains[pool] = map[string]int{}
	}
	before := e.spreads(pool)
	if e.domains[pool][name] += n; e.domains[pool][name] == 0 {
		delete(e.domains[pool], name)
	}
	if e.spreads(pool) != before {
		e.ruleGen++
	}
}

// spreads reports whether instances in a pool are spread over fault domains.
func (e *Engine) spreads(pool string) bool {
	n := len(e.domains[pool])
	return n > 1 && n <= maxDomains && !e.gathers[pool]
}

// SetSpread says whether apps of a pool that say nothing themselves are spread over fault domains, which they are by default.
func (e *Engine) SetSpread(pool string, on bool) {
	if e.gathers[pool] == on {
		e.gathers[pool] = !on
		e.ruleGen++
	}
}

// evenOut has c spread over fault domains, where that is so and none of its own rules makes its instances look at each other. What
// counts them is there in any case: to count all later would cost a look at every instance.
func (e *Engine) evenOut(c *Class) {
	c.even = nil
	if c.Count < 2 || len(c.Spread) > 0 || len(c.rules.cells) > 0 {
		return
	}
	if t := e.groupTally(c.group, domainAttr); e.spreads(c.Pool) {
		c.even = t
	}
}

// in returns how many instances are where the attribute has value v, or where it has none.
func (t *tally) in(v int32) int32 {
	if v == none {
		return t.nowhere
	}
	return t.at(v)
}

// bestEven returns the cell for the next instance of a class that is spread over domains, or none.
func (f *field) bestEven() int32 {
	best, t := none, f.class.even
	for _, k := range f.heap {
		if best == none {
			best = k
			continue
		}
		x, y := &f.cells[k], &f.cells[best]
		d := cmp.Or(cmp.Compare(y.prefer, x.prefer), cmp.Compare(t.in(x.domain), t.in(y.domain)))
		if d < 0 || d == 0 && f.before(k, best) {
			best = k
		}
	}
	return best
}

// searchEven is tree.search for a class that is spread over domains: the domain with fewest instances comes first.
func (t *tree) searchEven(e *Engine, c *Class, from int) int32 {
	order := make([]int32, 0, len(c.even.attr.values)+1)
	for v := none; v < int32(len(c.even.attr.values)); v++ {
		order = append(order, v)
	}
	slices.SortStableFunc(order, func(a, b int32) int { return cmp.Compare(c.even.in(a), c.even.in(b)) })
	for len(order) > 0 {
		n := 1 // of those with equally few, the best node decides
		for n < len(order) && c.even.in(order[n]) == c.even.in(order[0]) {
			n++
		}
		if r := t.search(e, c, from, order[:n]); r != none {
			return r
		}
		order = order[n:]
	}
	return none
}

// Spreading says how the instances of c are spread over domains; empty where they are not.
func (e *Engine) Spreading(c *Class) string {
	e.judge(c)
	if c.even == nil {
		return ""
	}
	seen := make([]bool, len(c.even.attr.values)+1) // none is 0
	var parts []string
	for r := range int32(len(e.info)) {
		if v := c.even.attr.value[r]; !seen[v+1] && e.able(c, r) {
			seen[v+1] = true
			parts = append(parts, fmt.Sprintf("%s has %d", e.domainName(r), c.even.in(v)))
		}
	}
	slices.Sort(parts)
	const most = 8
	if more := len(parts) - most; more > 0 {
		parts = append(parts[:most], fmt.Sprintf("and %d more", more))
	}
	return "evenly over zones, as the app says nothing itself: " + strings.Join(parts, ", ")
}

// domainName names a row's domain for people: a zone without its region where that says enough.
func (e *Engine) domainName(r int32) string {
	n := &e.info[r]
	switch {
	case n.Region == "" && n.Zone == "":
		return "no zone"
	case n.Zone == "":
		return n.Region
	case n.Region == "":
		return n.Zone
	}
	for name := range e.domains[n.Pool] {
		if region, zone, _ := strings.Cut(name, "\x00"); zone == n.Zone && region != n.Region {
			return n.Region + "/" + n.Zone
		}
	}
	return n.Zone
}
