package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// digest writes down everything that decides what an engine does next, and nothing of what it keeps only to be fast.
func digest(e *Engine) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for r := range int32(len(e.info)) {
		p("node %+v known %v free %+v total %+v kept %+v", e.info[r], e.known[r], e.free[r], e.total[r], e.kept[r])
		p("devices %v owed %v", e.gpu[r].free, e.gpu[r].owed)
		for _, name := range slices.Sorted(maps.Keys(e.custom[r])) {
			p("custom %s %+v", name, *e.custom[r][name])
		}
		n := e.ports[r]
		p("ports room %v span %v next %d", n.room, n.span, n.next)
		for proto := range n.taken {
			for i, page := range n.taken[proto].pages {
				if page != nil && *page != [16]uint64{} {
					p("ports of page %d: %x", i, *page)
				}
			}
		}
		if e.booked[r] != nil {
			for _, x := range e.booked[r].list {
				p("reserved %s %+v %d of it %+v %d", x.role.id, x.amount, x.gpus, x.unused, x.left)
			}
		}
		var holds []string
		for h := e.first[r]; h != none; h = e.at(h).next {
			x := e.at(h)
			s := fmt.Sprintf("hold %s class %p waits %v leaving %v lifted %v", x.id, x.class, x.waits, x.leaving, x.lifted)
			if x.extra != nil {
				s += fmt.Sprintf(" has %+v", *x.extra)
			}
			holds = append(holds, s)
		}
		slices.Sort(holds)
		p("%s", strings.Join(holds, "\n"))
	}
	for _, id := range slices.Sorted(maps.Keys(e.roles.all)) {
		r := e.roles.all[id]
		p("role %s uses %+v of it leave %+v", id, r.used, r.going)
	}
	var counts []string
	for key, g := range e.groups {
		for _, t := range g.tallies {
			counts = append(counts, fmt.Sprintf("group %v by %s: %d %v %v", key, t.name, t.total, trim(t.few), t.many))
		}
	}
	for key, t := range e.tallies {
		counts = append(counts, fmt.Sprintf("tally %v: %d %v %v", key, t.total, trim(t.few), t.many))
	}
	slices.Sort(counts)
	p("%s", strings.Join(counts, "\n"))
	p("volumes %v loans %v claims %v index %d", e.volumes, e.loans, e.claims, len(e.index))
	return b.String()
}

// trim returns counts without the zeros at their end.
func trim(list []int32) []int32 {
	for len(list) > 0 && list[len(list)-1] == 0 {
		list = list[:len(list)-1]
	}
	return list
}

// same reports a difference between two digests.
func same(t testing.TB, what, before, after string) {
	t.Helper()
	if before == after {
		return
	}
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Fatalf("%s changed\n  %s\ninto\n  %s", what, a[i], b[i])
		}
	}
	t.Fatalf("%s changed %d lines into %d", what, len(a), len(b))
}
