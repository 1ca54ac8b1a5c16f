package engine

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/policy"
)

// maxFields bounds how many fields are kept.
const maxFields = 256

// field is the nodes that can take one more instance of a class, in order. It is kept between batches and catches up with
// the log of changed rows before it is used.
//
// The nodes that the class's rules cannot tell apart form a cell, which is a heap by cost. Cells are ordered by what the
// rules prefer, then by the cost of their best node; those that the rules shut are left out.
type field struct {
	class *Class
	seen  uint64 // position in the log
	epoch uint64 // of the policy
	soft  uint64 // when tallies that rows look at changed last
	moved uint64 // when tallies that cells look at changed last
	used  uint64 // when, by the engine's tick

	bound policy.Bounder // of the class's policy, nil for none
	cost  []float64      // by row
	rough []bool         // by row: the cost may be more
	pos   []int32        // by row: place in its cell's heap, or none
	cell  []int32        // by row: none when the row is not able
	cells []cell
	byKey map[string]int32
	by    [][][]int32 // by rule of the class's cells, and value: cells
	heap  []int32     // open cells that have nodes, best first
	share [][]float64 // by rule and value: instances that a spread gives it
	group groupings
}

// cell is the able nodes whose attributes have the same values for every rule of a field.
type cell struct {
	heap   []int32 // rows that fit, by cost
	values []int32 // of each rule's attribute
	domain int32   // where classes are spread over those
	fixed  float64 // preference that placing does not change
	prefer float64 // in all; more is better
	few    int32   // instances where GROUP_BY counts, over all such rules
	able   int32   // rows
	at     int32   // place in the field's heap, or none
	open   bool
}

// groupings follows the least count over the values of each GROUP_BY rule.
type groupings struct {
	rules []int // indexes into the class's cells
	least []int32
	have  [][]int32 // by rule and count: how many values have it
	lacks []bool    // there are fewer values than asked for: those to come have no instance yet
}

// fieldOf returns the field of a class, up to date. It makes one when there is none.
func (e *Engine) fieldOf(c *Class) *field {
	f := e.fields[c.sign]
	e.tick++
	if f == nil {
		e.dropFields()
		f = &field{}
		e.fields[c.sign] = f
		f.build(e, c)
	} else {
		f.class = c
		f.catchUp(e)
	}
	f.used = e.tick
	return f
}

func (e *Engine) dropFields() {
	for len(e.fields) >= maxFields {
		oldest, sign := uint64(math.MaxUint64), ""
		for s, f := range e.fields {
			if f.used < oldest {
				oldest, sign = f.used, s
			}
		}
		delete(e.fields, sign)
	}
}

func epoch(p policy.Policy) uint64 {
	if l, ok := p.(policy.Learner); ok {
		return l.Epoch()
	}
	return 0
}

// changed returns when the last of the tallies that rules look at changed.
func changed(list []rule) uint64 {
	var at uint64
	for i := range list {
		at = max(at, list[i].tally.changed)
	}
	return at
}

// build looks at every row.
func (f *field) build(e *Engine, c *Class) {
	n := len(e.info)
	f.class, f.seen, f.epoch = c, e.now(), epoch(c.policy)
	f.cost, f.rough, f.pos, f.cell = grow(f.cost, n), grow(f.rough, n), grow(f.pos, n), grow(f.cell, n)
	f.bound, _ = c.policy.(policy.Bounder)
	f.cells, f.byKey, f.heap = f.cells[:0], map[string]int32{}, f.heap[:0]
	f.by = make([][][]int32, len(c.rules.cells))
	for r := range int32(n) {
		f.pos[r], f.cell[r] = none, none
		if !e.able(c, r) {
			continue
		}
		k := f.cellOf(e, r)
		f.cell[r] = k
		f.cells[k].able++
		if e.fits(c, r) {
			f.price(e, r)
			f.pos[r] = int32(len(f.cells[k].heap))
			f.cells[k].heap = append(f.cells[k].heap, r)
		}
	}
	for k := range f.cells {
		f.heapify(&f.cells[k])
	}
	f.rejudge()
}

func grow[T any](s []T, n int) []T { return slices.Grow(s[:0], n)[:n] }

// catchUp brings the field up to the end of the log.
func (f *field) catchUp(e *Engine) {
	c := f.class
	rows, few := e.since(f.seen)
	if !few || f.epoch != epoch(c.policy) || f.soft != max(changed(c.rules.soft), changed(c.rules.row)) && f.rowsChanged() || len(f.pos) != len(e.info) {
		f.build(e, c)
		return
	}
	able := false
	e.pass++
	for _, r := range rows {
		if e.passed[r] != e.pass {
			e.passed[r] = e.pass
			able = f.update(e, r) || able
		}
	}
	f.seen = e.now()
	if able || f.moved != changed(c.rules.cells) {
		f.rejudge()
	}
}

// rowsChanged reports whether counts that rows look at may have changed elsewhere than on the rows in the log: those that
// are not by host name.
func (f *field) rowsChanged() bool {
	for _, list := range [][]rule{f.class.rules.soft, f.class.rules.row} {
		for i := range list {
			if list[i].tally.name != model.AttrHostname {
				return true
			}
		}
	}
	return false
}

// rejudge computes anew what the rules say of every cell.
func (f *field) rejudge() {
	f.soft = max(changed(f.class.rules.soft), changed(f.class.rules.row))
	f.moved = changed(f.class.rules.cells)
	f.group.count(f)
	f.divide()
	f.heap = f.heap[:0]
	for k := range f.cells {
		f.judge(int32(k))
		f.cells[k].at = none
		if f.listed(int32(k)) {
			f.cells[k].at = int32(len(f.heap))
			f.heap = append(f.heap, int32(k))
		}
	}
	for n := len(f.heap)/2 - 1; n >= 0; n-- {
		f.sinkCell(n)
	}
}

// cellOf returns the cell of an able row, which it makes when there is none.
func (f *field) cellOf(e *Engine, r int32) int32 {
	rules := &f.class.rules
	if len(rules.cells) == 0 && len(rules.soft) == 0 && f.class.even == nil {
		if len(f.cells) == 0 {
			f.addCell(nil, 0, none)
		}
		return 0
	}
	domain := f.class.domain(r)
	key := binary.LittleEndian.AppendUint32(e.key[:0], uint32(domain))
	for i := range rules.cells {
		key = binary.LittleEndian.AppendUint32(key, uint32(rules.cells[i].tally.attr.value[r]))
	}
	fixed := rules.fixed(r)
	key = binary.LittleEndian.AppendUint64(key, math.Float64bits(fixed))
	e.key = key
	if k, ok := f.byKey[string(key)]; ok {
		return k
	}
	values := make([]int32, len(rules.cells))
	for i := range values {
		values[i] = rules.cells[i].tally.attr.value[r]
	}
	k := f.addCell(values, fixed, domain)
	f.byKey[string(key)] = k
	return k
}

// inCell reports whether an able row belongs to a cell.
func (f *field) inCell(r, k int32) bool {
	rules, c := &f.class.rules, &f.cells[k]
	if f.class.domain(r) != c.domain {
		return false
	}
	for i := range rules.cells {
		if rules.cells[i].tally.attr.value[r] != c.values[i] {
			return false
		}
	}
	return len(rules.soft) == 0 || rules.fixed(r) == c.fixed
}

// fixed returns what the rules prefer of a row that placing does not change.
func (s *ruleSet) fixed(r int32) float64 {
	sum := 0.0
	for i := range s.soft {
		u := &s.soft[i]
		v := u.tally.attr.value[r]
		if v == none || u.tally.at(v) == 0 {
			continue
		}
		if u.kind == far {
			sum -= u.weight
		} else {
			sum += u.weight
		}
	}
	return sum
}

// domain returns a row's fault domain where c is spread over those, else none.
func (c *Class) domain(r int32) int32 {
	if c.even == nil {
		return none
	}
	return c.even.attr.value[r]
}

func (f *field) addCell(values []int32, fixed float64, domain int32) int32 {
	k := int32(len(f.cells))
	if int(k) < cap(f.cells) {
		f.cells = f.cells[:k+1]
		f.cells[k] = cell{heap: f.cells[k].heap[:0], values: values, domain: domain, fixed: fixed, at: none, open: true}
	} else {
		f.cells = append(f.cells, cell{values: values, domain: domain, fixed: fixed, at: none, open: true})
	}
	for i, v := range values {
		for int(v)+1 >= len(f.by[i]) { // none is 0
			f.by[i] = append(f.by[i], nil)
		}
		f.by[i][v+1] = append(f.by[i][v+1], k)
	}
	return k
}

// judge computes what the rules say of a cell.
func (f *field) judge(k int32) {
	c := &f.cells[k]
	c.open, c.prefer, c.few = true, c.fixed, 0
	for i := range f.class.rules.cells {
		u, v := &f.class.rules.cells[i], c.values[i]
		n := u.tally.at(v)
		switch u.kind {
		case groupBy:
			c.few += n
		case spread:
			c.prefer -= u.weight * f.load(i, v, n)
		case cluster:
			c.open = c.open && u.allows(v)
			if u.tally.total == 0 {
				c.prefer += float64(c.able) // where there are most nodes
			}
		case near:
			if n > 0 {
				c.prefer += u.weight
			}
		case far:
			c.prefer -= u.weight * float64(n)
		default:
			c.open = c.open && u.allows(v)
		}
	}
}

// load returns how far one more instance fills a value's share of a spread; 1 is full.
func (f *field) load(i int, v, n int32) float64 {
	if share := f.share[i]; int(v)+1 < len(share) && share[v+1] > 0 {
		return float64(n+1) / share[v+1]
	}
	return 1e3 + float64(n) // it has no part in it
}

// divide computes how many instances each value is to have by each spread.
func (f *field) divide() {
	f.share = grow(f.share, len(f.by))
	for i := range f.class.rules.cells {
		u := &f.class.rules.cells[i]
		if u.kind != spread {
			continue
		}
		share, rest, others := make([]float64, len(f.by[i])), 100, 0
		for v := 1; v < len(share); v++ {
			if !f.reachable(i, v) {
				continue
			}
			if percent, named := u.spread.Targets[u.tally.attr.values[v-1]]; named {
				share[v] = float64(percent)
			} else {
				share[v] = toDivide
				others++
			}
		}
		for _, percent := range u.spread.Targets {
			rest -= percent
		}
		for v := range share {
			if share[v] == toDivide {
				share[v] = float64(max(0, rest)) / float64(others)
			}
			share[v] *= float64(max(1, f.class.Count)) / 100
		}
		f.share[i] = share
	}
}

// toDivide marks, in divide, the values that share the rest evenly.
const toDivide = -1.0

// reachable reports whether any able node has a value, which is given as its place in by.
func (f *field) reachable(i, v int) bool {
	return slices.ContainsFunc(f.by[i][v], func(k int32) bool { return f.cells[k].able > 0 })
}

// listed reports whether a cell is to be in the field's heap.
func (f *field) listed(k int32) bool { return f.cells[k].open && len(f.cells[k].heap) > 0 }

// price gives a row its cost, or for a start no more than that where the policy has something cheaper to say.
func (f *field) price(e *Engine, r int32) {
	if f.bound != nil && len(e.gpu[r].free) > 0 {
		f.cost[r], f.rough[r] = f.bound.Bound(e.view(r), &f.class.ask), true
		return
	}
	f.cost[r], _ = e.cost(f.class, r)
	f.rough[r] = false
}

// maxPriced bounds how many costs are computed for one placement where that is expensive: those of the nodes that may cost
// least. On the recorded clusters of docs/benchmarks.md, 32 allocate 0.08 percent points fewer devices than all, and 48
// fewer by 0.03 at twice the speed.
const maxPriced = 48

// best returns the cell to place the next instance in, and which of its rows to take, or none. Where costs are not all
// known exactly, those that may be the best are computed until the best is, or until they were many.
func (f *field) best(e *Engine) (cell, row int32) {
	least, from, priced := none, none, 0
	for {
		k := f.first()
		if k == none {
			return none, none
		}
		c := &f.cells[k]
		r := c.heap[0]
		switch {
		case f.bound == nil || !f.rough[r]:
			return k, r
		case priced >= maxPriced && (len(f.cells) == 1 || f.class.even != nil): // all were of cells that are liked equally
			return from, least
		}
		f.cost[r], _ = e.cost(f.class, r)
		f.rough[r] = false
		f.sink(c, 0)
		f.fixCell(k)
		if priced++; least == none || f.less(r, least) {
			least, from = r, k
		}
	}
}

// first returns the first cell that the rules let an instance in, or none.
func (f *field) first() int32 {
	if len(f.group.rules) > 1 {
		return f.bestOfMany()
	}
	if len(f.heap) == 0 {
		return none
	}
	if f.class.even != nil {
		return f.bestEven()
	}
	k := f.heap[0]
	if !f.group.allows(f, k) {
		return none // GROUP_BY orders cells by count: the others have no fewer
	}
	return k
}

// bestOfMany looks at all cells: with several GROUP_BY rules no order serves them all.
func (f *field) bestOfMany() int32 {
	best := none
	for _, k := range f.heap {
		if f.group.allows(f, k) && (best == none || f.before(k, best)) {
			best = k
		}
	}
	return best
}

// before reports whether cell a comes before cell b.
func (f *field) before(a, b int32) bool {
	x, y := &f.cells[a], &f.cells[b]
	if x.few != y.few {
		return x.few < y.few
	}
	if x.prefer != y.prefer {
		return x.prefer > y.prefer
	}
	r, s := x.heap[0], y.heap[0]
	if f.cost[r] != f.cost[s] {
		return f.cost[r] < f.cost[s]
	}
	return r < s
}

// placed brings the field up to date after an instance of its class went to a row of a cell.
func (f *field) placed(e *Engine, k, r int32) {
	f.update(e, r)
	f.seen = e.now()
	rules := f.class.rules.cells
	if len(rules) == 0 {
		f.fixCell(k)
		return
	}
	all := false
	for i := range rules {
		all = all || (rules[i].kind == cluster || rules[i].kind == join) && rules[i].tally.total == 1
	}
	if all {
		f.rejudge()
		return
	}
	for i := range rules {
		v := f.cells[k].values[i]
		f.group.moved(i, v, rules[i].tally)
		for _, other := range f.by[i][v+1] {
			f.judge(other)
			f.fixCell(other)
		}
	}
	f.soft = max(changed(f.class.rules.soft), changed(f.class.rules.row))
	f.moved = changed(rules)
}

// update looks at a row again, and reports whether it came to be able or ceased to be.
func (f *field) update(e *Engine, r int32) bool {
	was := f.cell[r]
	now := none
	if e.able(f.class, r) {
		if now = was; was == none || !f.inCell(r, was) {
			now = f.cellOf(e, r)
		}
	}
	if now != was && was != none {
		f.remove(r)
		f.cells[was].able--
		f.fixCell(was)
	}
	if now != was && now != none {
		f.cells[now].able++
	}
	f.cell[r] = now
	if now == none {
		return was != now
	}
	if !e.fits(f.class, r) {
		f.remove(r)
	} else if f.price(e, r); f.pos[r] == none {
		c := &f.cells[now]
		f.pos[r] = int32(len(c.heap))
		c.heap = append(c.heap, r)
		f.up(c, f.pos[r])
	} else if c := &f.cells[now]; !f.up(c, f.pos[r]) {
		f.sink(c, f.pos[r])
	}
	f.fixCell(now)
	return was != now
}

// remove takes a row out of its cell's heap.
func (f *field) remove(r int32) {
	p := f.pos[r]
	if p == none {
		return
	}
	c := &f.cells[f.cell[r]]
	last := int32(len(c.heap) - 1)
	f.swap(c, p, last)
	c.heap = c.heap[:last]
	f.pos[r] = none
	if p < last && !f.up(c, p) {
		f.sink(c, p)
	}
}

// count learns how many instances each value of each GROUP_BY rule has.
func (g *groupings) count(f *field) {
	*g = groupings{rules: g.rules[:0]}
	for i := range f.class.rules.cells {
		u := &f.class.rules.cells[i]
		if u.kind != groupBy {
			continue
		}
		var have []int32
		values := 0
		for v := 1; v < len(f.by[i]); v++ {
			if !f.reachable(i, v) {
				continue
			}
			values++
			n := u.tally.at(int32(v - 1))
			for int(n)+1 >= len(have) {
				have = append(have, 0)
			}
			have[n]++
		}
		least := int32(0)
		for values > 0 && have[least] == 0 {
			least++
		}
		lacks := values < int(u.n)
		if lacks {
			least = 0
		}
		g.rules, g.have, g.least, g.lacks = append(g.rules, i), append(g.have, have), append(g.least, least), append(g.lacks, lacks)
	}
}

// moved follows one more instance where a rule's attribute has value v.
func (g *groupings) moved(rule int, v int32, t *tally) {
	for n, i := range g.rules {
		if i != rule {
			continue
		}
		now := t.at(v)
		for int(now) >= len(g.have[n]) {
			g.have[n] = append(g.have[n], 0)
		}
		g.have[n][now-1]--
		g.have[n][now]++
		if g.have[n][g.least[n]] == 0 && g.least[n] == now-1 && !g.lacks[n] {
			g.least[n] = now
		}
	}
}

// allows reports whether no value has fewer instances than those of a cell.
func (g *groupings) allows(f *field, k int32) bool {
	for n, i := range g.rules {
		if f.class.rules.cells[i].tally.at(f.cells[k].values[i]) > g.least[n] {
			return false
		}
	}
	return true
}
