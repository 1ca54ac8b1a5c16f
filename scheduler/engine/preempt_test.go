package engine

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// siege is a world whose instances leave for more important ones.
type siege struct {
	*world
	rnd     *rand.Rand
	classes []*Class
	leaving map[model.InstanceID]bool
	kept    map[model.InstanceID]model.NodeID
	spares  map[model.AppID]int
	quotas  map[model.RoleID]model.CPU // guarantees
}

func newSiege(t testing.TB, seed uint64) *siege {
	s := &siege{
		world: newWorld(t, smallCluster), rnd: rand.New(rand.NewPCG(seed, 5)), leaving: map[model.InstanceID]bool{},
		kept: map[model.InstanceID]model.NodeID{}, spares: map[model.AppID]int{}, quotas: map[model.RoleID]model.CPU{},
	}
	rnd := s.rnd
	for i := range 1 + rnd.IntN(3) {
		n := Node{
			ID: model.NodeID(fmt.Sprint("n", i)), Pool: "default", OCI: model.Ability{OK: true},
			Capacity: model.Resources{CPUs: model.CPU(2+rnd.IntN(5)) * 1000, Memory: model.Bytes(2+rnd.IntN(6)) * model.GiB, Disk: 10 * model.GiB},
			Ports:    model.PortRange{First: 1000, Last: uint16(1000 + rnd.IntN(4))},
			Custom:   map[string]model.Custom{"seat": {Amount: model.Units(rnd.IntN(4000))}, "slot": {Items: []string{"x", "y", "z"}[:rnd.IntN(4)]}},
		}
		for d := range rnd.IntN(3) {
			n.GPUs = append(n.GPUs, model.GPUDevice{ID: fmt.Sprint(d), Model: "T4"})
		}
		s.setNode(n)
	}
	for _, id := range []model.RoleID{"/a", "/a/b", "/c"} {
		r := model.Role{ID: id}
		if rnd.IntN(2) == 0 {
			s.quotas[id] = model.CPU(rnd.IntN(6)) * 1000
			g := s.quotas[id]
			r.Guarantee.CPUs = &g
		}
		s.roles = append(s.roles, r)
	}
	s.e.SetRoles(s.roles)
	for i := range 10 {
		a := Ask{
			App: model.AppID(fmt.Sprint("/x", i/2)), Template: fmt.Sprint(i), Role: model.RoleID([]string{"/", "/a", "/a/b", "/c"}[rnd.IntN(4)]), Pool: "default",
			Priority: rnd.IntN(4), Need: model.Resources{CPUs: model.CPU(rnd.IntN(6)) * 500, Memory: model.Bytes(rnd.IntN(5)) * model.GiB / 2},
		}
		switch rnd.IntN(6) {
		case 0:
			a.GPUs = []GPUWant{{Amount: model.GPU(1+rnd.IntN(2)) * 1000}}
		case 1:
			a.GPUs = []GPUWant{{Amount: 400}, {Amount: 700}}
		case 2:
			a.Ports = []PortWant{{Port: 1001}, {Port: 0}}
		case 3:
			a.Ports = []PortWant{{Port: 80}}
		case 4:
			a.Custom = map[string]model.Units{"seat": model.Units(rnd.IntN(2000)), "slot": 500}
		}
		if i == 9 {
			a.Volumes = 4 * model.GiB
		}
		s.classes = append(s.classes, s.e.Class(a))
		s.spares[a.App] = rnd.IntN(3)
	}
	if rnd.IntN(3) == 0 {
		id := s.ids[rnd.IntN(len(s.ids))]
		s.res = []Reserved{{ID: "r", Role: "/a", Node: id, Resources: model.Resources{CPUs: 1000, Memory: model.GiB}}}
		s.e.SetReservations(s.res)
	}
	return s
}

// uses returns the cores that a role has, without those in gone.
func (s *siege) uses(role model.RoleID, gone map[model.InstanceID]bool) model.CPU {
	var sum model.CPU
	for id, p := range s.on {
		if !gone[id] && p.ask.Role.Within(role) {
			sum += p.ask.Need.CPUs
		}
	}
	return sum
}

// mayEnd reports whether instances may be ended for one more of a.
func (s *siege) mayEnd(a Ask, list []model.InstanceID) bool {
	gone := maps.Clone(s.leaving)
	for _, id := range list {
		gone[id] = true
	}
	for _, id := range list {
		v := s.on[id].ask
		if v.Role.Within(a.Role) && v.Priority < a.Priority {
			continue
		}
		granted := false
		for up := a.Role; up != ""; up = up.Parent() {
			least, has := s.quotas[up]
			if !has || a.Need.CPUs == 0 || s.uses(up, nil)+a.Need.CPUs > least || v.Role.Within(up) {
				continue
			}
			fair := true
			for r := v.Role; r != "" && !up.Within(r); r = r.Parent() {
				own, has := s.quotas[r]
				fair = fair && (!has || v.Need.CPUs == 0 || s.uses(r, gone) >= own)
			}
			granted = granted || fair
		}
		if !granted {
			return false
		}
	}
	return true
}

// without runs fn while instances are not there.
func (s *siege) without(gone map[model.InstanceID]bool, fn func()) {
	all := s.on
	s.on = maps.Clone(all)
	for id := range gone {
		delete(s.on, id)
	}
	fn()
	s.on = all
}

// price is what ending some instances costs.
type price struct{ breaks, top, count int }

func (s *siege) price(list []model.InstanceID) price {
	p := price{count: len(list)}
	lost := map[model.AppID]int{}
	for _, id := range list {
		a := s.on[id].ask
		p.top = max(p.top, a.Priority+1)
		if lost[a.App]++; lost[a.App] > s.spares[a.App] {
			p.breaks++
		}
	}
	return p
}

func (p price) compare(o price) int {
	return cmp.Or(cmp.Compare(p.breaks, o.breaks), cmp.Compare(p.top, o.top), cmp.Compare(p.count, o.count))
}

// cheapest tries all sets of instances on all nodes, and returns the price of the best that makes room.
func (s *siege) cheapest(a Ask) (best price, ok bool) {
	for _, node := range s.ids {
		var list []model.InstanceID
		for _, id := range slices.Sorted(maps.Keys(s.on)) {
			if _, kept := s.kept[id]; s.on[id].Node == node && !s.leaving[id] && !kept {
				list = append(list, id)
			}
		}
		for set := range 1 << len(list) {
			var ended []model.InstanceID
			gone := maps.Clone(s.leaving)
			for i, id := range list {
				if set&(1<<i) != 0 {
					ended = append(ended, id)
					gone[id] = true
				}
			}
			p := s.price(ended)
			if ok && p.compare(best) >= 0 || !s.mayEnd(a, ended) {
				continue
			}
			s.without(gone, func() {
				if s.lacks(a, s.nodes[node]) == "" {
					best, ok = p, true
				}
			})
		}
	}
	return best, ok
}

// preempt asks for a place, and checks the answer against all that could have been.
func (s *siege) preempt(c *Class) {
	s.made++
	id := model.InstanceID(fmt.Sprint("i", s.made))
	want, can := s.cheapest(c.Ask)
	before := digest(s.e)
	for r := range int32(len(s.e.info)) {
		s.e.try(c, r, func(a model.AppID) int { return s.spares[a] }, nil)
	}
	same(s.t, "a trial", before, digest(s.e))
	p, ok := s.e.Preempt(c, id, func(a model.AppID) int { return s.spares[a] })
	if !ok {
		same(s.t, "a search in vain", before, digest(s.e))
		if can && want.count > 0 {
			s.t.Fatalf("nobody is ended for %+v, though %+v would do", c.Ask, want)
		}
		return
	}
	if !can || want.count == 0 {
		s.t.Fatalf("%v are ended for %+v, which is of no use", p.Victims, c.Ask)
	}
	var ended []model.InstanceID
	for _, v := range p.Victims {
		if s.on[v.ID].Node != p.Node || s.leaving[v.ID] || v.Priority != s.on[v.ID].ask.Priority {
			s.t.Fatalf("victim %+v for a place on %s", v, p.Node)
		}
		ended = append(ended, v.ID)
	}
	if !s.mayEnd(c.Ask, ended) {
		s.t.Fatalf("%+v may not be ended for %+v", p.Victims, c.Ask)
	}
	if got := s.price(ended); got != want {
		s.t.Fatalf("%+v are ended for %+v, which costs %+v; %+v would do", p.Victims, c.Ask, got, want)
	}
	breaks := 0
	for _, v := range p.Victims {
		s.leaving[v.ID] = true
		s.spares[v.App]--
		if v.Breaks {
			breaks++
		}
	}
	if breaks != want.breaks {
		s.t.Fatalf("%d victims are said to break a floor, it is %d", breaks, want.breaks)
	}
	s.without(s.leaving, func() {
		if why := s.lacks(c.Ask, s.nodes[p.Node]); why != "" {
			s.t.Fatalf("without %v %s still %s", p.Victims, p.Node, why)
		}
	})
	s.kept[id] = p.Node
	s.on[id] = placed{s.e.placementOf(s.e.at(s.e.index[id])), c.Ask}
	if c.Volumes > 0 {
		s.vols[model.VolumeID(id)] = Loan{Node: p.Node, Resources: model.Resources{Disk: c.Volumes}}
	}
}

// settle asks for the places that are kept: who has to wait for nobody any more gets just that place.
func (s *siege) settle() {
	for _, id := range slices.Sorted(maps.Keys(s.kept)) {
		node, a := s.kept[id], s.on[id].ask
		p, ok, kept := s.e.Settle(id)
		waits := false
		for other := range s.leaving {
			waits = waits || s.on[other].Node == node
		}
		if !waits && !ok || !ok && !kept {
			s.t.Fatalf("the place of %s on %s is lost: %v", id, node, s.e.ExplainOn(s.e.Class(a), node))
		}
		if !ok {
			continue
		}
		if p.Node != node {
			s.t.Fatalf("%s waited for %s and got %s", id, node, p.Node)
		}
		delete(s.on, id)
		delete(s.vols, model.VolumeID(id))
		if why := s.lacks(a, s.nodes[node]); why != "" {
			s.t.Fatalf("%s got %s, which %s", id, node, why)
		}
		s.checkGiven(a, p)
		s.on[id] = placed{p, a}
		if a.Volumes > 0 {
			s.vols[model.VolumeID(id)] = Loan{Node: node, Resources: model.Resources{Disk: a.Volumes}}
		}
		delete(s.kept, id)
	}
}

// Ending others finds room whenever it may, in the least harmful way there is, and nobody else gets what is kept
// meanwhile: not an amount, device, port, item or disk of it.
func TestPreemptAgainstAllSets(t *testing.T) {
	found := 0
	for seed := range uint64(600) {
		s := newSiege(t, seed)
		for range 40 {
			c := s.classes[s.rnd.IntN(len(s.classes))]
			switch k := s.rnd.IntN(10); {
			case k < 4 && len(s.on) < 3*len(s.ids)+3:
				s.place(c, 1+s.rnd.IntN(2))
			case k < 7 && len(s.on) < 16:
				s.preempt(c)
			case k < 9 && len(s.leaving) > 0:
				id := slices.Sorted(maps.Keys(s.leaving))[s.rnd.IntN(len(s.leaving))]
				delete(s.leaving, id)
				s.release(id)
			default:
				s.settle()
			}
			s.audit()
		}
		found += len(s.kept)
		for id := range s.leaving {
			s.release(id)
			delete(s.leaving, id)
		}
		s.settle()
		if len(s.kept) > 0 {
			t.Fatalf("seed %d: %v are kept though nobody leaves any more", seed, s.kept)
		}
		s.end(s.rnd, s.classes)
	}
	if found < 100 {
		t.Errorf("only %d preemptions were open at the end: the test tests little", found)
	}
}

// Who is ended for a role that is at its limit is the least harmful of all sets that bring it, and the roles above it, below.
func TestPreemptQuotaAgainstAllSets(t *testing.T) {
	found := 0
	for seed := range uint64(400) {
		s := newSiege(t, seed)
		s.setNode(Node{ID: "large", Pool: "default", Capacity: model.Resources{CPUs: 100_000, Memory: 500 * model.GiB}})
		for range 12 {
			c := s.classes[s.rnd.IntN(len(s.classes))]
			s.made++
			id := model.InstanceID(fmt.Sprint("i", s.made))
			if p, ok := s.e.PlaceOn(c, id, "large"); ok {
				s.on[id] = placed{p, c.Ask}
			}
		}
		limits := map[model.RoleID]model.CPU{}
		for i := range s.roles {
			limit := s.uses(s.roles[i].ID, nil) - model.CPU(s.rnd.IntN(4))*500 // below use, even
			s.roles[i].Limit.CPUs, limits[s.roles[i].ID] = &limit, limit
		}
		s.e.SetRoles(s.roles)
		for range 20 {
			c := s.classes[s.rnd.IntN(len(s.classes))]
			a := c.Ask
			if s.e.roles.of(a.Role).room(&c.vector, 1) > 0 {
				continue
			}
			room := func(gone map[model.InstanceID]bool) bool {
				for r := a.Role; r != ""; r = r.Parent() {
					if limit, has := limits[r]; has && s.uses(r, gone)+a.Need.CPUs > limit && a.Need.CPUs > 0 {
						return false
					}
				}
				return true
			}
			var list []model.InstanceID
			for id, p := range s.on {
				if p.ask.Role.Within(a.Role) && p.ask.Priority < a.Priority && !s.leaving[id] {
					list = append(list, id)
				}
			}
			var want price
			can := false
			for set := range 1 << len(list) {
				var ended []model.InstanceID
				gone := maps.Clone(s.leaving)
				for i, id := range list {
					if set&(1<<i) != 0 {
						ended, gone[id] = append(ended, id), true
					}
				}
				if p := s.price(ended); room(gone) && (!can || p.compare(want) < 0) {
					want, can = p, true
				}
			}
			p, ok := s.e.Preempt(c, "new", func(a model.AppID) int { return s.spares[a] })
			var ended []model.InstanceID
			for _, v := range p.Victims {
				ended = append(ended, v.ID)
			}
			if got := s.price(ended); ok != (can && want.count > 0) || ok && got != want {
				t.Fatalf("seed %d: %v are ended (%v), which costs %+v; want %+v (%v)", seed, p.Victims, ok, got, want, can)
			}
			for _, v := range p.Victims {
				found++
				s.leaving[v.ID] = true
				s.spares[v.App]--
			}
			s.audit()
		}
	}
	if found < 100 {
		t.Errorf("only %d victims were found: the test tests little", found)
	}
}

// On a cluster larger than what one search compares, searches take turns on all nodes: that the first ones have dear
// victims is not the end of it.
func TestSearchForVictimsGoesRound(t *testing.T) {
	e := New(Config{})
	e.SetRoles([]model.Role{{ID: "/a"}})
	need := model.Resources{CPUs: 1000, Memory: model.GiB}
	spare := func(model.AppID) int { return 1 << 20 }
	var classes []*Class
	for p := range 3 {
		classes = append(classes, e.Class(Ask{App: model.AppID(fmt.Sprint("/p", p)), Priority: p, Need: need}))
	}
	const nodes = 3 * maxLooked
	for i := range nodes {
		id := model.NodeID(fmt.Sprintf("n%04d", i))
		e.SetNode(Node{ID: id, Capacity: need})
		c := classes[1]
		if i >= 2*maxLooked {
			c = classes[0]
		}
		e.PlaceOn(c, model.InstanceID(fmt.Sprint("i", i)), id)
	}
	cheap := 0
	for i := range 9 {
		p, ok := e.Preempt(classes[2], model.InstanceID(fmt.Sprint("new", i)), spare)
		if !ok || len(p.Victims) != 1 {
			t.Fatalf("search %d found %+v", i, p)
		}
		if p.Victims[0].Priority == 0 {
			cheap++
		}
	}
	if cheap < 3 {
		t.Errorf("%d of 9 searches found the cheap victims, which are on a third of the nodes", cheap)
	}
}

// BenchmarkPreempt ends something on a full cluster with a hundred instances on each node.
func BenchmarkPreempt(b *testing.B) {
	e := New(Config{})
	var wants []*Want
	for i := range 2000 {
		e.SetNode(Node{ID: model.NodeID(fmt.Sprint("n", i)), Capacity: model.Resources{CPUs: 100_000, Memory: 400 * model.GiB}})
	}
	for i := range 50 {
		c := e.Class(Ask{App: model.AppID(fmt.Sprint("/a", i)), Priority: i, Need: model.Resources{CPUs: model.CPU(500 + i*20), Memory: model.Bytes(1+i%4) * model.GiB}})
		wants = append(wants, &Want{Class: c, IDs: names(fmt.Sprint("a", i), 4000)})
	}
	e.PlaceAll(wants, nil)
	c := e.Class(Ask{App: "/new", Priority: 90, Need: model.Resources{CPUs: 4000, Memory: 8 * model.GiB}})
	n := 0
	for b.Loop() {
		n++
		if _, ok := e.Preempt(c, model.InstanceID(fmt.Sprint("n", n)), func(model.AppID) int { return 100 }); !ok {
			b.Fatal("nobody was found")
		}
	}
}
