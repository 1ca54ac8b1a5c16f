package engine

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// world is a second, plain picture of what an Engine does: it knows nothing but nodes and placements, and checks every
// decision by looking at all of them.
type world struct {
	t     testing.TB
	e     *Engine
	nodes map[model.NodeID]Node
	ids   []model.NodeID
	on    map[model.InstanceID]placed
	res   []Reserved
	vols  map[model.VolumeID]Loan
	loans map[string]Loan
	roles []model.Role
	made  int
	evens int  // placements for which spreading evenly had to choose
	off   bool // apps of the default pool are not spread evenly
	small bool // a node has, or had, more on it than it has
}

type placed struct {
	Placement
	ask Ask
}

func newWorld(t testing.TB, small int) *world {
	w := &world{
		t: t, e: New(Config{}), nodes: map[model.NodeID]Node{}, on: map[model.InstanceID]placed{},
		vols: map[model.VolumeID]Loan{}, loans: map[string]Loan{},
	}
	if w.e.small = small; small == 0 {
		w.e.few = 0 // or so few nodes would have fields all the same
	}
	return w
}

func (w *world) setNode(n Node) {
	if _, ok := w.nodes[n.ID]; !ok {
		w.ids = append(w.ids, n.ID)
	}
	w.nodes[n.ID] = n
	w.e.SetNode(n)
}

func (w *world) place(c *Class, n int) []Placement {
	ids := make([]model.InstanceID, n)
	for i := range ids {
		w.made++
		ids[i] = model.InstanceID(fmt.Sprintf("i%d", w.made))
	}
	before := len(w.on)
	w.checkField(c)
	want := &Want{Class: c, IDs: ids}
	out := w.e.PlaceAll([]*Want{want}, nil)
	if len(out) != want.Placed {
		w.t.Fatalf("placed %d, said %d", len(out), want.Placed)
	}
	for _, p := range out {
		if why := w.refuses(c.Ask, p.Node); why != "" {
			w.t.Fatalf("%s of %s was placed on %s, which %s\nask: %+v", p.ID, c.App, p.Node, why, c.Ask)
		}
		w.checkGiven(c.Ask, p)
		w.checkEven(c.Ask, p)
		w.on[p.ID] = placed{p, c.Ask}
		if c.Volumes > 0 {
			w.vols[model.VolumeID(p.ID)] = Loan{Node: p.Node, Resources: model.Resources{Disk: c.Volumes}}
		}
	}
	if len(out) < n && w.limited(c.Ask) == "" {
		for _, id := range w.ids {
			if why := w.refuses(c.Ask, id); why == "" {
				f, why := w.e.Explain(c)
				w.t.Fatalf("one more of %s (%d placed of %d; %d before) was refused though %s takes it: %+v %v\nask: %+v\nnode: %+v", c.App, len(out), n, before, id, f, why, c.Ask, w.nodes[id])
			}
		}
	}
	return out
}

// checkEven checks that an instance of an app that says nothing itself went to a domain with fewest of its like, of those that
// its preferences leave equal.
func (w *world) checkEven(a Ask, p Placement) {
	if !w.evenly(a) {
		return
	}
	same := func(o placed) bool { return o.ask.App == a.App && o.ask.Template == a.Template }
	in := func(id model.NodeID) (n int) {
		m := w.nodes[id]
		for _, o := range w.on {
			if x := w.nodes[o.Node]; same(o) && x.Region == m.Region && x.Zone == m.Zone {
				n++
			}
		}
		return n
	}
	mine, liked := in(p.Node), w.liking(a, p.Node)
	for _, id := range w.ids {
		if w.refuses(a, id) != "" || w.liking(a, id) != liked {
			continue
		}
		if n := in(id); n < mine {
			w.t.Fatalf("%s of %s was placed on %s, where there are %d in its zone, though %s takes it and has %d\nask: %+v", p.ID, a.App, p.Node, mine, id, n, a)
		} else if n > mine {
			w.evens++
		}
	}
}

// evenly reports whether instances of an ask are spread over domains by default: nothing in it lets them look at each other
// elsewhere than on one node.
func (w *world) evenly(a Ask) bool {
	domains := map[string]bool{}
	for _, n := range w.nodes {
		if n.Pool == a.Pool && n.Region+n.Zone != "" {
			domains[n.Region+"/"+n.Zone] = true
		}
	}
	if w.off || a.Count < 2 || len(a.Spread) > 0 || len(domains) < 2 {
		return false
	}
	for _, c := range a.Constraints {
		switch c.Operator {
		case model.OpGroupBy:
			return false
		case model.OpUnique, model.OpMaxPer:
			if c.Attribute != model.AttrHostname {
				return false
			}
		case model.OpCluster:
			if c.Value == "" {
				return false
			}
		}
	}
	for _, f := range a.Affinity {
		if selectorOf(f).matches(a.App) && !(f.Anti && f.Weight == 0 && f.Place() == model.AttrHostname) {
			return false
		}
	}
	return true
}

// liking is how much an app prefers a node for what others are near.
func (w *world) liking(a Ask, id model.NodeID) (sum int) {
	n := w.nodes[id]
	for _, f := range a.Affinity {
		sel := selectorOf(f)
		place, has := n.attribute(f.Place())
		here, _ := w.counted(func(p placed) bool { return sel.matches(p.ask.App) }, f.Place(), place)
		switch {
		case f.Weight == 0 || !has || here == 0:
		case f.Anti:
			sum -= f.Weight
		default:
			sum += f.Weight
		}
	}
	return sum
}

// checkField checks that a field which was kept and caught up is the field that would be made now.
func (w *world) checkField(c *Class) {
	w.e.judge(c)
	if w.e.fields[c.sign] == nil {
		return
	}
	kept, fresh := w.e.fieldOf(c), &field{}
	fresh.build(w.e, c)
	a, r := kept.best(w.e)
	b, o := fresh.best(w.e)
	if (a == none) != (b == none) {
		w.t.Fatalf("the kept field has cell %d, a new one %d", a, b)
	}
	if a == none {
		return
	}
	x, y := &kept.cells[a], &fresh.cells[b]
	if r != o || x.prefer != y.prefer || x.few != y.few || kept.cost[r] != fresh.cost[o] {
		w.t.Fatalf("the kept field offers row %d (%g, %d), a new one row %d (%g, %d)", r, x.prefer, x.few, o, y.prefer, y.few)
	}
	if len(kept.cells) == 1 {
		for o := range int32(len(w.e.info)) {
			if cost, _ := w.e.cost(c, o); w.e.able(c, o) && w.e.fits(c, o) && (cost < kept.cost[r] || cost == kept.cost[r] && o < r) {
				w.t.Fatalf("row %d costs %g, but row %d only %g", r, kept.cost[r], o, cost)
			}
		}
	}
}

// refuses says why a node may not take one more, by looking at everything; empty when it may.
func (w *world) refuses(a Ask, id model.NodeID) string {
	n := w.nodes[id]
	switch {
	case n.Shut != "":
		return "is shut"
	case n.Pool != a.Pool:
		return "is in another pool"
	case a.Image && !n.OCI.OK, a.VM && !n.VM.OK:
		return "has not the runtime"
	}
	if why := w.lacks(a, n); why != "" {
		return why
	}
	for _, c := range a.Constraints {
		if !w.holds(a, c, n) {
			return constraintWords(c)
		}
	}
	for _, f := range a.Affinity {
		if f.Weight != 0 {
			continue
		}
		sel := selectorOf(f)
		place, has := n.attribute(f.Place())
		here, all := w.counted(func(p placed) bool { return sel.matches(p.ask.App) }, f.Place(), place)
		if !has {
			here = 0
		}
		if f.Anti && has && here > 0 || !f.Anti && (!has || here == 0 && !(all == 0 && sel.matches(a.App))) {
			return affinityWords(f, sel)
		}
	}
	for _, p := range w.on { // those that keep others away
		for _, f := range p.ask.Affinity {
			sel := selectorOf(f)
			if !f.Anti || f.Weight != 0 || p.ask.App == a.App || !sel.matches(a.App) {
				continue
			}
			mine, has := n.attribute(f.Place())
			m := w.nodes[p.Node]
			other, _ := m.attribute(f.Place())
			if has && mine == other {
				return "anti-affinity of " + string(p.ask.App)
			}
		}
	}
	return ""
}

// counted counts instances where an attribute has a value, and all.
func (w *world) counted(match func(placed) bool, attr, value string) (here, all int) {
	for _, p := range w.on {
		if !match(p) {
			continue
		}
		all++
		n := w.nodes[p.Node]
		if v, ok := n.attribute(attr); ok && v == value {
			here++
		}
	}
	return here, all
}

func (w *world) holds(a Ask, c model.Constraint, n Node) bool {
	v, has := n.attribute(c.Attribute)
	if !has {
		return c.Operator == model.OpUnlike
	}
	same := func(p placed) bool { return p.ask.App == a.App && p.ask.Template == a.Template }
	here, all := w.counted(same, c.Attribute, v)
	switch c.Operator {
	case model.OpLike:
		return regexp.MustCompile("^(?:" + c.Value + ")$").MatchString(v)
	case model.OpUnlike:
		return !regexp.MustCompile("^(?:" + c.Value + ")$").MatchString(v)
	case model.OpIs:
		return v == c.Value
	case model.OpCluster:
		if c.Value != "" {
			return v == c.Value
		}
		return all == 0 || here > 0
	case model.OpUnique:
		return here == 0
	case model.OpMaxPer:
		most, _ := strconv.Atoi(c.Value)
		return here < most
	}
	values := map[string]int{}
	for _, id := range w.ids { // GROUP_BY: over the values of nodes that could take an instance at all
		m := w.nodes[id]
		value, ok := m.attribute(c.Attribute)
		if !ok || m.Shut != "" || m.Pool != a.Pool || a.Image && !m.OCI.OK || a.VM && !m.VM.OK || !w.static(a, m) {
			continue
		}
		values[value], _ = w.counted(same, c.Attribute, value)
	}
	least := 1 << 30
	for _, k := range values {
		least = min(least, k)
	}
	if most, _ := strconv.Atoi(c.Value); len(values) < most {
		least = 0
	}
	return here <= least
}

func (w *world) static(a Ask, n Node) bool {
	for _, c := range a.Constraints {
		v, has := n.attribute(c.Attribute)
		switch c.Operator {
		case model.OpLike, model.OpUnlike, model.OpIs:
			if !w.holds(a, c, n) {
				return false
			}
		case model.OpCluster:
			if c.Value != "" && v != c.Value || !has {
				return false
			}
		default:
			if !has {
				return false
			}
		}
	}
	for _, f := range a.Affinity {
		if _, has := n.attribute(f.Place()); !has && !f.Anti && f.Weight == 0 {
			return false
		}
	}
	return true
}

// lacks says what a node has too little of.
func (w *world) lacks(a Ask, n Node) string {
	free := n.Capacity
	free.GPUs = 0
	type key struct {
		udp  bool
		port uint16
	}
	taken := map[key]bool{}
	gpus := map[string]int64{}
	for _, d := range n.GPUs {
		gpus[d.ID] = 1000
	}
	custom := map[string]model.Units{}
	items := map[string][]string{}
	for name, c := range n.Custom {
		custom[name], items[name] = c.Total(), slices.Clone(c.Items)
	}
	uses := map[model.RoleID]model.Resources{}
	for _, p := range w.on {
		if p.Node != n.ID {
			continue
		}
		free = free.Sub(model.Resources{CPUs: p.ask.Need.CPUs, Memory: p.ask.Need.Memory, Disk: p.ask.Need.Disk})
		u := p.ask.Need
		u.GPUs = 0
		for _, g := range p.ask.GPUs {
			u.GPUs += g.Amount
		}
		uses[p.ask.Role] = uses[p.ask.Role].Add(u)
		for i, port := range p.Ports {
			taken[key{p.ask.Ports[i].UDP, port}] = true
		}
		for _, g := range p.GPUs {
			gpus[g.ID] -= int64(g.Share)
		}
		for name, u := range p.ask.Custom {
			custom[name] -= u
			items[name] = slices.DeleteFunc(items[name], func(i string) bool { return slices.Contains(p.Items[name], i) })
		}
	}
	for _, l := range w.loans {
		if l.Node == n.ID {
			free = free.Sub(l.Resources)
			for _, g := range l.GPUs {
				gpus[g.ID] -= int64(g.Share)
			}
			for _, p := range l.Ports {
				taken[key{false, p}], taken[key{true, p}] = true, true
			}
		}
	}
	for _, v := range w.vols {
		if v.Node == n.ID {
			free.Disk -= v.Resources.Disk
		}
	}
	free = free.Sub(w.reserved(a, n, uses))
	want := model.Resources{CPUs: a.Need.CPUs, Memory: a.Need.Memory, Disk: a.Need.Disk + a.Volumes}
	if free.GPUs = 0; want.CPUs > free.CPUs || want.Memory > free.Memory || want.Disk > free.Disk {
		return fmt.Sprintf("lacks amounts: %v of %v", want, free)
	}
	var room [2]int
	for proto := range room {
		for p := int(n.Ports.First); p <= int(n.Ports.Last) && p > 0; p++ {
			if !taken[key{proto == 1, uint16(p)}] && !slices.Contains(a.Ports, PortWant{uint16(p), proto == 1}) {
				room[proto]++
			}
		}
	}
	for _, p := range a.Ports {
		if p.Port != 0 && taken[key{p.UDP, p.Port}] {
			return "has the port taken"
		}
		if p.Port == 0 {
			room[p.proto()]--
		}
	}
	if room[0] < 0 && hasAny(a, false) || room[1] < 0 && hasAny(a, true) {
		return "lacks ports"
	}
	for name, u := range a.Custom {
		if custom[name] < u || len(n.Custom[name].Items) > 0 && 1000*model.Units(len(items[name])) < u {
			return "lacks " + name
		}
	}
	if !w.devices(a.GPUs, n, gpus) {
		return "lacks devices"
	}
	return ""
}

func hasAny(a Ask, udp bool) bool {
	return slices.ContainsFunc(a.Ports, func(p PortWant) bool { return p.Port == 0 && p.UDP == udp })
}

// devices tries every way to serve the wants.
func (w *world) devices(wants []GPUWant, n Node, free map[string]int64) bool {
	if len(wants) == 0 {
		return true
	}
	g := wants[0]
	okModel := func(d model.GPUDevice) bool { return len(g.Models) == 0 || slices.Contains(g.Models, d.Model) }
	if g.Amount < 1000 {
		for _, d := range n.GPUs {
			if okModel(d) && free[d.ID] >= int64(g.Amount) {
				f := maps.Clone(free)
				f[d.ID] -= int64(g.Amount)
				if w.devices(wants[1:], n, f) {
					return true
				}
			}
		}
		return false
	}
	rest := slices.Clone(wants)
	for _, d := range n.GPUs {
		if okModel(d) && free[d.ID] == 1000 {
			f := maps.Clone(free)
			f[d.ID] = 0
			if rest[0].Amount = g.Amount - 1000; rest[0].Amount == 0 {
				if w.devices(rest[1:], n, f) {
					return true
				}
			} else if w.devices(rest, n, f) {
				return true
			}
		}
	}
	return false
}

// reserved returns what of a node is kept for roles that a's role is not within.
func (w *world) reserved(a Ask, n Node, uses map[model.RoleID]model.Resources) model.Resources {
	var list []Reserved
	for _, r := range w.res {
		if r.Node == n.ID {
			list = append(list, r)
		}
	}
	slices.SortStableFunc(list, func(x, y Reserved) int {
		return strings.Count(string(y.Role), "/") - strings.Count(string(x.Role), "/")
	})
	var sum model.Resources
	left := maps.Clone(uses)
	for _, r := range list {
		unused := r.Resources
		for role, u := range left {
			if !role.Within(r.Role) {
				continue
			}
			part := model.Resources{CPUs: min(unused.CPUs, u.CPUs), Memory: min(unused.Memory, u.Memory), Disk: min(unused.Disk, u.Disk)}
			unused, left[role] = unused.Sub(part), u.Sub(part)
		}
		if !a.Role.Within(r.Role) {
			sum = sum.Add(unused)
		}
	}
	sum.GPUs = 0
	return sum
}

// limited says which limit keeps one more out.
func (w *world) limited(a Ask) string {
	for _, r := range w.roles {
		if !a.Role.Within(r.ID) || r.Limit.CPUs == nil {
			continue
		}
		used := a.Need.CPUs
		for _, p := range w.on {
			if p.ask.Role.Within(r.ID) {
				used += p.ask.Need.CPUs
			}
		}
		for _, l := range w.loans {
			if l.Role.Within(r.ID) {
				used += l.Resources.CPUs
			}
		}
		if used > *r.Limit.CPUs {
			return string(r.ID)
		}
	}
	return ""
}

// checkGiven checks what a placement was given: the right ports, devices and items, none of which another has.
func (w *world) checkGiven(a Ask, p Placement) {
	n := w.nodes[p.Node]
	if len(p.Ports) != len(a.Ports) {
		w.t.Fatalf("%s has ports %v, wants %v", p.ID, p.Ports, a.Ports)
	}
	for i, port := range p.Ports {
		if a.Ports[i].Port != 0 && port != a.Ports[i].Port || a.Ports[i].Port == 0 && (port < n.Ports.First || port > n.Ports.Last) {
			w.t.Fatalf("%s has port %d, wants %+v of %+v", p.ID, port, a.Ports[i], n.Ports)
		}
		for _, o := range w.on {
			for j, other := range o.Ports {
				if o.Node == p.Node && other == port && o.ask.Ports[j].UDP == a.Ports[i].UDP {
					w.t.Fatalf("%s and %s both have port %d", p.ID, o.ID, port)
				}
			}
		}
	}
	var want, got model.GPU
	for _, g := range a.GPUs {
		want += g.Amount
	}
	for _, g := range p.GPUs {
		got += g.Share
		used := g.Share
		for _, o := range w.on {
			for _, x := range o.GPUs {
				if o.Node == p.Node && x.ID == g.ID {
					used += x.Share
				}
			}
		}
		if used > 1000 {
			w.t.Fatalf("device %s of %s is given %s times", g.ID, p.Node, used)
		}
	}
	if want != got {
		w.t.Fatalf("%s has devices %v, wants %v", p.ID, p.GPUs, a.GPUs)
	}
	for name, u := range a.Custom {
		items := n.Custom[name].Items
		if len(items) == 0 {
			continue
		}
		if model.Units(len(p.Items[name]))*1000 < u {
			w.t.Fatalf("%s has items %v of %s, wants %s", p.ID, p.Items[name], name, u)
		}
		for _, item := range p.Items[name] {
			if !slices.Contains(items, item) {
				w.t.Fatalf("%s has item %s of %s, which has none such", p.ID, item, p.Node)
			}
			for _, o := range w.on {
				if o.Node == p.Node && slices.Contains(o.Items[name], item) {
					w.t.Fatalf("%s and %s both have item %s", p.ID, o.ID, item)
				}
			}
		}
	}
}

func (w *world) release(id model.InstanceID) {
	w.e.Release(id)
	delete(w.on, id)
}

func (w *world) audit() {
	w.t.Helper()
	if err := w.e.audit(w.small); err != nil {
		w.t.Fatal(err)
	}
}

// people makes a small cluster, and classes for it, at random. node makes another node.
func people(t testing.TB, rnd *rand.Rand, small int) (w *world, classes []*Class, node func(i int) Node) {
	w = newWorld(t, small)
	pick := picker(rnd)
	node = func(i int) Node {
		n := Node{
			ID: model.NodeID(fmt.Sprintf("n%d", i)), Name: fmt.Sprintf("h%d", i), Pool: "default", OCI: model.Ability{OK: rnd.IntN(5) > 0},
			Capacity:   model.Resources{CPUs: model.CPU(rnd.IntN(8)) * 1000, Memory: model.Bytes(rnd.IntN(16)) * model.GiB, Disk: 100 * model.GiB},
			Ports:      model.PortRange{First: 1000, Last: uint16(1000 + rnd.IntN(8))},
			Attributes: map[string]string{}, Region: pick("", "eu"), Zone: pick("a", "b", "c"),
		}
		if rnd.IntN(4) > 0 {
			n.Attributes["rack"] = pick("r1", "r2", "r3", "s1")
		}
		if rnd.IntN(8) == 0 {
			n.Shut = "unreachable"
		}
		if rnd.IntN(8) == 0 {
			n.Pool = "other"
		}
		for d := range rnd.IntN(4) {
			n.GPUs = append(n.GPUs, model.GPUDevice{ID: fmt.Sprint(d), Model: pick("T4", "A10")})
		}
		if rnd.IntN(2) == 0 {
			n.Custom = map[string]model.Custom{"licence": {Amount: 3000}, "slot": {Items: []string{"x", "y", "z"}[:rnd.IntN(4)]}}
		}
		return n
	}
	for i := range 4 + rnd.IntN(8) {
		w.setNode(node(i))
	}
	cpus := model.CPU(6000)
	w.roles = []model.Role{{ID: "/a", Limit: model.Quota{CPUs: &cpus}}, {ID: "/a/b"}, {ID: "/c"}}
	w.e.SetRoles(w.roles)
	for i := range 8 {
		a := Ask{
			App: model.AppID(pick("/g/x", "/g/y", "/z", "/g/w")), Template: fmt.Sprintf("t%d", i), Count: 1 + rnd.IntN(20), Role: model.RoleID(pick("/", "/a", "/a/b", "/c")),
			Pool: "default", Policy: model.Policy(pick("pack", "spread", "balanced")), Priority: rnd.IntN(100), Image: rnd.IntN(3) == 0,
			Need: model.Resources{CPUs: model.CPU(100 + rnd.IntN(1500)), Memory: model.Bytes(rnd.IntN(3000)) * model.MiB},
		}
		switch rnd.IntN(6) {
		case 0:
			a.GPUs = []GPUWant{{Amount: model.GPU(100 + rnd.IntN(900))}}
		case 1:
			a.GPUs = []GPUWant{{Amount: model.GPU(1+rnd.IntN(2)) * 1000, Models: []string{"T4"}}}
		case 2:
			a.GPUs = []GPUWant{{Amount: 600}, {Amount: 500}, {Amount: 400}}
		}
		for range rnd.IntN(3) {
			a.Ports = append(a.Ports, PortWant{Port: []uint16{0, 0, 1001, 80}[rnd.IntN(4)], UDP: rnd.IntN(3) == 0})
		}
		if len(a.Ports) == 2 && a.Ports[0] == a.Ports[1] && a.Ports[0].Port != 0 {
			a.Ports = a.Ports[:1]
		}
		if rnd.IntN(4) == 0 {
			a.Custom = map[string]model.Units{"licence": 500, "slot": []model.Units{500, 1000, 1500}[rnd.IntN(3)]}
		}
		for range rnd.IntN(3) {
			c := model.Constraint{Attribute: pick("hostname", "rack", "zone", "region"), Operator: model.Operator(pick("UNIQUE", "CLUSTER", "GROUP_BY", "LIKE", "UNLIKE", "MAX_PER", "IS"))}
			switch c.Operator {
			case model.OpLike, model.OpUnlike:
				c.Value = pick("r.", "a|b", "h1.*")
			case model.OpIs:
				c.Value = pick("r1", "a", "eu")
			case model.OpMaxPer:
				c.Value = pick("1", "2", "3")
			case model.OpGroupBy:
				c.Value = pick("", "", "3")
			case model.OpCluster:
				c.Value = pick("", "", "a")
			}
			a.Constraints = append(a.Constraints, c)
		}
		for range max(0, rnd.IntN(4)-2) {
			a.Affinity = append(a.Affinity, model.Affinity{App: pick("/g/x", "/g/*", "/z", string(a.App)), Over: pick("", "zone", "rack"), Anti: rnd.IntN(2) == 0, Weight: []int{0, 50}[rnd.IntN(2)]})
		}
		if rnd.IntN(4) == 0 {
			a.Spread = []model.Spread{{Over: pick("zone", "hostname"), Weight: 50, Targets: map[string]int{"a": 60}}}
		}
		if i%4 == 3 {
			a.Volumes = model.Bytes(rnd.IntN(40)) * model.GiB
		}
		classes = append(classes, w.e.Class(a))
		if rnd.IntN(4) == 0 {
			a.Role, a.Priority = "/c", 99
			classes = append(classes, w.e.Class(a))
		}
	}
	return w, classes, node
}

func picker(rnd *rand.Rand) func(...string) string {
	return func(list ...string) string { return list[rnd.IntN(len(list))] }
}

// life does random things to a small cluster.
func life(t *testing.T, seed uint64, small, steps int, shrink bool) (evens int) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	w, classes, node := people(t, rnd, small)
	pick := picker(rnd)
	for step := range steps {
		switch k := rnd.IntN(15); {
		case k < 7:
			w.place(classes[rnd.IntN(len(classes))], 1+rnd.IntN(4))
		case k < 10 && len(w.on) > 0:
			list := slices.Sorted(maps.Keys(w.on))
			w.release(list[rnd.IntN(len(list))])
		case k == 10:
			i := rnd.IntN(len(w.ids))
			n := node(i)
			old := w.nodes[n.ID]
			if w.small = w.small || shrink && rnd.IntN(2) == 0; !w.small {
				n.Capacity, n.GPUs, n.Custom, n.Ports = old.Capacity, old.GPUs, old.Custom, old.Ports // else it might be overcommitted by its own fault
			}
			w.setNode(n)
		case k == 11:
			w.res = nil
			for range rnd.IntN(3) {
				id := w.ids[rnd.IntN(len(w.ids))]
				r := Reserved{ID: fmt.Sprint(rnd.Int()), Role: model.RoleID(pick("/a", "/a/b", "/c")), Node: id}
				if why := w.lacks(Ask{Role: "/none", Need: model.Resources{CPUs: 500, Memory: model.GiB}}, w.nodes[id]); why == "" {
					r.Resources = model.Resources{CPUs: 500, Memory: model.GiB}
					w.res = append(w.res, r)
					break
				}
			}
			w.e.SetReservations(w.res)
		case k == 12 && rnd.IntN(2) == 0:
			for _, id := range slices.Sorted(maps.Keys(w.vols)) {
				w.e.RemoveVolume(id)
				delete(w.vols, id)
				break
			}
		case k == 12:
			l := Loan{ID: fmt.Sprint(step), Node: w.ids[rnd.IntN(len(w.ids))], Role: model.RoleID(pick("/", "/a")), Resources: model.Resources{CPUs: 300, Memory: model.GiB}, Ports: []uint16{uint16(1000 + rnd.IntN(8))}}
			for range rnd.IntN(3) {
				l.GPUs = append(l.GPUs, model.GPUShare{ID: pick("0", "1", "2"), Share: model.GPU(100 + rnd.IntN(900))})
			}
			w.lend(l)
		case k == 13:
			for _, id := range slices.Sorted(maps.Keys(w.loans)) {
				w.e.TakeBack(id)
				delete(w.loans, id)
				break
			}
		case k == 14 && rnd.IntN(4) == 0:
			w.off = !w.off
			w.e.SetSpread("default", !w.off)
		default: // its instances stay, and count with those of the new one
			i := rnd.IntN(len(classes))
			w.e.Drop(classes[i])
			classes[i] = w.e.Class(classes[i].Ask)
		}
		w.audit()
		if step%4 == 0 {
			w.explained(classes[rnd.IntN(len(classes))])
		}
	}
	w.end(rnd, classes)
	return w.evens
}

// lend lends what is free, and only that.
func (w *world) lend(l Loan) {
	n := w.nodes[l.Node]
	a := Ask{Role: "/none", Need: l.Resources}
	why := w.lacks(a, n)
	for _, p := range l.Ports {
		a.Ports = []PortWant{{Port: p}}
		tcp := w.lacks(a, n)
		a.Ports[0].UDP = true
		why = cmp.Or(why, tcp, w.lacks(a, n))
	}
	a = Ask{Role: l.Role, Need: l.Resources}
	why = cmp.Or(why, n.Shut, w.limited(a))
	free := map[string]model.GPU{}
	for _, d := range n.GPUs {
		free[d.ID] = 1000
	}
	take := func(shares []model.GPUShare) {
		for _, g := range shares {
			free[g.ID] -= g.Share
		}
	}
	for _, p := range w.on {
		if p.Node == l.Node {
			take(p.GPUs)
		}
	}
	for _, o := range w.loans {
		if o.Node == l.Node {
			take(o.GPUs)
		}
	}
	take(l.GPUs)
	for _, g := range l.GPUs {
		if free[g.ID] < 0 {
			why = cmp.Or(why, "lacks a device")
		}
	}
	before := digest(w.e)
	switch err := w.e.Lend(l); {
	case (err == nil) != (why == ""):
		w.t.Fatalf("lend %+v: %v; want %q", l, err, why)
	case err == nil:
		w.loans[l.ID] = l
	default:
		same(w.t, "a loan that was refused", before, digest(w.e))
	}
}

// explained checks that the funnel of a class adds up, and that it and the word on each node are what is the case.
func (w *world) explained(c *Class) {
	w.e.judge(c) // which may make tallies
	before := digest(w.e)
	f, why := w.e.Explain(c)
	left := f.Nodes
	for _, s := range f.Steps {
		if left -= s.Removed; s.Removed <= 0 || s.Left != left || s.Why == "" {
			w.t.Fatalf("step %+v of %+v leaves %d", s, f, left)
		}
	}
	if f.Nodes != len(w.ids) || left != f.Fit {
		w.t.Fatalf("%d nodes fit, %d are left of %d: %+v", f.Fit, left, f.Nodes, f)
	}
	limited := w.limited(c.Ask) != ""
	if why.Text == "" || (f.Reason == "") != (f.Fit > 0 && !limited) {
		w.t.Fatalf("%d nodes fit, and the reason is %q, %q", f.Fit, f.Reason, why.Text)
	}
	fit := 0
	for _, id := range w.ids {
		takes := w.refuses(c.Ask, id) == ""
		if takes {
			fit++
		}
		if on := w.e.ExplainOn(c, id); (on.Text == "") != (takes && !limited) {
			w.t.Fatalf("%s: %q, but %q\nask: %+v", id, on.Text, w.refuses(c.Ask, id), c.Ask)
		}
	}
	if fit != f.Fit {
		w.t.Fatalf("%d nodes fit, not %d: %+v\nask: %+v", fit, f.Fit, f, c.Ask)
	}
	same(w.t, "explaining", before, digest(w.e))
}

// end gives everything back, in any order, and checks that nothing is left.
func (w *world) end(rnd *rand.Rand, classes []*Class) {
	var last []func()
	for _, c := range classes {
		last = append(last, func() { w.e.Drop(c) })
	}
	for _, id := range slices.Sorted(maps.Keys(w.on)) {
		last = append(last, func() { w.release(id) })
	}
	rnd.Shuffle(len(last), func(i, j int) { last[i], last[j] = last[j], last[i] })
	for _, fn := range last {
		fn()
		w.audit()
	}
	for id := range w.loans {
		w.e.TakeBack(id)
	}
	for id := range w.vols {
		w.e.RemoveVolume(id)
	}
	w.e.SetReservations(nil)
	w.audit()
	if left := leftovers(w.e); left != "" {
		w.t.Fatalf("everything was given back, but there are %s", left)
	}
}

// leftovers names what an engine keeps of classes and instances though there are none.
func leftovers(e *Engine) string {
	var left []string
	for name, n := range map[string]int{
		"fields": len(e.fields), "filters": len(e.filters), "tallies": len(e.tallies), "groups": len(e.groups), "antis": len(e.antis),
		"attributes": len(e.attrs), "holds": len(e.index), "claims": len(e.claims), "volumes": len(e.volumes), "loans": len(e.loans),
	} {
		if n > 0 {
			left = append(left, fmt.Sprintf("%d %s", n, name))
		}
	}
	for r := range int32(len(e.info)) {
		if e.free[r] != e.total[r] {
			left = append(left, fmt.Sprintf("%+v taken of %s", minus(e.total[r], e.free[r]), e.info[r].ID))
		}
		for d, free := range e.gpu[r].free {
			if free != wholeDevice || e.gpu[r].owed[d] != 0 {
				left = append(left, fmt.Sprintf("%d of device %d", free, d))
			}
		}
		for name, s := range e.custom[r] {
			if n := e.info[r].Custom[name]; s.free != n.Total() || s.left != len(s.items) {
				left = append(left, name)
			}
		}
		for proto := range e.ports[r].taken {
			if n := e.ports[r].taken[proto].count(model.PortRange{First: 1, Last: 65535}); n > 0 {
				left = append(left, fmt.Sprintf("%d ports", n))
			}
		}
	}
	for id, r := range e.roles.all {
		if !equal(r.used, vector{}) || !equal(r.going, vector{}) {
			left = append(left, "use of "+string(id))
		}
	}
	return strings.Join(left, ", ")
}

// Whatever happens, no node is overcommitted, nothing is given twice, every rule holds at the moment of placing, and an
// instance is refused only when truly no node takes it; what says nothing itself is spread evenly; with fields, and with the tree alone; also while nodes change and
// shrink below what is on them. When all is given back, nothing is left.
func TestAgainstWorld(t *testing.T) {
	seeds := 400
	if s, err := strconv.Atoi(os.Getenv("GANTRY_SEEDS")); err == nil {
		seeds = s
	}
	evens := 0
	for seed := range uint64(seeds) {
		small := []int{smallCluster, 0}[seed%2]
		evens += life(t, seed, small, 60, seed%4 > 1)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if evens < 2*seeds {
		t.Errorf("spreading chose for %d placements only: the test tests little of it", evens)
	}
}
