package route

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// plain is the same table, made without sharing anything.
type plain map[model.InstanceID]*Entry

func (p plain) change(c Change) {
	if c.Full {
		clear(p)
	}
	for _, id := range c.Drop {
		delete(p, id)
	}
	for _, e := range c.Put {
		p[e.ID] = e
	}
}

// sorted returns what of p has f, by id.
func (p plain) sorted(f func(*Entry) bool) []*Entry {
	var out []*Entry
	for _, e := range p {
		if f(e) {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *Entry) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

var (
	testApps  = []model.AppID{"/web", "/shop/web", "/shop/web/cache", "/shop/db", "/a/b/c/d"}
	testNames = []string{"web", "web.shop", "cache.web.shop", "db.shop", "d.c.b.a", "shop", "a", "b.a", "c.b.a", "c.a", "cache", "nothing"}
)

// compare holds t against p in everything that can be asked.
func compare(t *testing.T, got *Table, p plain) {
	t.Helper()
	if all := p.sorted(func(*Entry) bool { return true }); !slices.Equal(slices.Collect(got.All()), all) || got.Len() != len(all) {
		t.Fatalf("the table has %d entries, want %d", got.Len(), len(all))
	}
	for _, name := range testNames {
		all := p.sorted(func(e *Entry) bool { return Name(e.App) == name })
		below := len(p.sorted(func(e *Entry) bool { return strings.HasSuffix(Name(e.App), "."+name) })) > 0
		a := got.App(name)
		if (a != nil) != (len(all) > 0) || got.Group(name) != below {
			t.Fatalf("%s: app %v, group %v, want %d instances, group %v", name, a, got.Group(name), len(all), below)
		}
		if a == nil {
			continue
		}
		serving := p.sorted(func(e *Entry) bool { return Name(e.App) == name && e.Serving })
		if !slices.Equal(a.All, all) || !slices.Equal(a.Serving, serving) {
			t.Fatalf("%s has %v, serving %v; want %v, %v", name, a.All, a.Serving, all, serving)
		}
		for _, e := range all {
			if a.Instance(string(e.ID)) != e {
				t.Fatalf("%s has no instance %s", name, e.ID)
			}
			if s := a.Slot(e.Slot); (s == nil) != (e.Slot == 0) || s != nil && s.Slot != e.Slot || e.Slot != 0 && e.Serving && !s.Serving {
				t.Fatalf("slot %d of %s is %v", e.Slot, name, s)
			}
		}
		if a.Instance("nobody") != nil || a.Slot(99) != nil {
			t.Fatalf("%s has instances that nobody put", name)
		}
	}
	for n := range 6 {
		addr := testAddr(n)
		have := p.sorted(func(e *Entry) bool { return slices.Contains(e.Addrs, addr) })
		var want *Entry
		if len(have) == 1 {
			want = have[0]
		}
		if got.At(addr) != want {
			t.Fatalf("%v is of %v, want %v", addr, got.At(addr), want)
		}
	}
}

func testAddr(n int) netip.Addr {
	if n%2 == 0 {
		return netip.MustParseAddr(fmt.Sprintf("fd00::%d", n))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", n))
}

func randomChange(r *rand.Rand) Change {
	c := Change{Full: r.IntN(50) == 0}
	for range r.IntN(4) {
		c.Drop = append(c.Drop, model.InstanceID(fmt.Sprintf("i-%d", r.IntN(30))))
	}
	for range r.IntN(4) {
		e := &Entry{
			ID: model.InstanceID(fmt.Sprintf("i-%d", r.IntN(30))), App: testApps[r.IntN(len(testApps))],
			Slot: uint32(r.IntN(3)), Node: "n", Serving: r.IntN(2) == 0,
		}
		for n := range 6 {
			if r.IntN(8) == 0 {
				e.Addrs = append(e.Addrs, testAddr(n))
			}
		}
		c.Put = append(c.Put, e)
	}
	return c
}

// A table made by changes is the one that a plain build makes, and none of those before it changes with it.
func TestTableAgainstPlain(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		table, p := &Table{}, plain{}
		var olds []*Table
		var plains []plain
		for range 200 {
			c := randomChange(r)
			p.change(c)
			table = table.With(c)
			compare(t, table, p)
			if r.IntN(10) == 0 {
				kept := plain{}
				for id, e := range p {
					kept[id] = e
				}
				olds, plains = append(olds, table), append(plains, kept)
			}
		}
		for n := range olds {
			compare(t, olds[n], plains[n])
		}
	}
}

// What no name can be made of is left out, and the rest of the change is not.
func TestBadEntries(t *testing.T) {
	bad := []*Entry{{}, {ID: "a", Node: "n"}, {ID: "a", App: "web", Node: "n"}, {ID: "a", App: "/web", Node: ""},
		{ID: "a", App: "/", Node: "n"}, {ID: "a", App: "/a//b", Node: "n"}, {ID: "\xff", App: "/web", Node: "n"}}
	got := (&Table{}).With(Change{Put: append(bad, &Entry{ID: "good", App: "/web", Node: "n"})})
	if got.Len() != 1 || got.Entry("good") == nil {
		t.Errorf("the table has %d entries, want the good one", got.Len())
	}
}

func large(apps, each int) *Table {
	var c Change
	for a := range apps {
		for i := range each {
			c.Put = append(c.Put, &Entry{
				ID: model.InstanceID(fmt.Sprintf("web%d-%08d", a, i)), App: model.AppID(fmt.Sprintf("/shop%d/web%d", a%50, a)), Node: "n", Serving: true,
				Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i), byte(a >> 8), byte(a)})},
				Ports: []Port{{Name: "http", Port: uint16(31000 + i), Proto: "tcp"}},
			})
		}
	}
	return (&Table{}).With(c)
}

// One instance of a table of 10,000 in 1,000 apps changes.
func BenchmarkChange(b *testing.B) {
	t := large(1000, 10)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		e := *t.Entry(model.InstanceID(fmt.Sprintf("web%d-%08d", n%1000, n%10)))
		e.Serving = !e.Serving
		t = t.With(Change{Put: []*Entry{&e}})
		n++
	}
}

// All of it is built, as when a node connects.
func BenchmarkBuild(b *testing.B) {
	for b.Loop() {
		large(1000, 10)
	}
}
