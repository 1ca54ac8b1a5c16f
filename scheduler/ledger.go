package scheduler

import (
	"cmp"
	"slices"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// Protocols of ports, as indexes.
const (
	tcp = iota
	udp
)

// classKey names a class: instances of one version of an app are all alike.
type classKey struct {
	app     model.AppID
	version uint64
}

func (k classKey) compare(o classKey) int {
	return cmp.Or(cmp.Compare(k.app, o.app), cmp.Compare(k.version, o.version))
}

// class is what each of a number of equal instances needs.
type class struct {
	from  *model.AppVersion // which it was read from
	need  model.Resources
	image bool // has a container from an image
	ports []portWant
	fixed int // how many of ports are fixed
}

type portWant struct {
	port  uint16 // 0 for any
	proto uint8
}

func newClass(v *model.AppVersion) *class {
	c := &class{from: v, need: v.Spec.Resources()}
	for i := range v.Spec.Containers {
		c.image = c.image || v.Spec.Containers[i].Image != ""
	}
	for _, e := range v.Spec.Endpoints {
		w := portWant{port: uint16(e.Port)}
		if e.Protocol == "udp" {
			w.proto = udp
		}
		if w.port != 0 {
			c.fixed++
		}
		c.ports = append(c.ports, w)
	}
	return c
}

// ledger is the picture of every node's free resources, in columns: row n of each slice is of one node. Rows stay; a
// node that is gone leaves its row marked so.
type ledger struct {
	rows map[model.NodeID]int

	id     []model.NodeID
	name   []string
	known  []bool // has a record
	ready  []bool
	oci    []model.Ability
	total  []model.Resources
	cpus   []model.CPU   // free, negative when a node shrank
	memory []model.Bytes // free
	disk   []model.Bytes // free
	ports  []*nodePorts

	holds   map[model.InstanceID]hold
	classes map[classKey]*class // of what is held or was asked for lately
}

// hold is what an instance takes of its node until it is over.
type hold struct {
	row   int
	class *class
	ports []uint16
}

func newLedger(v state.View) *ledger {
	l := &ledger{rows: map[model.NodeID]int{}, holds: map[model.InstanceID]hold{}, classes: map[classKey]*class{}}
	for n := range v.Nodes() {
		l.setNode(n.ID, n)
	}
	for i := range v.Instances() {
		l.sync(v, i.ID, i)
	}
	return l
}

// row returns a node's row, which it makes when there is none.
func (l *ledger) row(id model.NodeID) int {
	if r, ok := l.rows[id]; ok {
		return r
	}
	r := len(l.id)
	l.rows[id] = r
	l.id, l.name = append(l.id, id), append(l.name, string(id))
	l.known, l.ready = append(l.known, false), append(l.ready, false)
	l.oci = append(l.oci, model.Ability{})
	l.total = append(l.total, model.Resources{})
	l.cpus, l.memory, l.disk = append(l.cpus, 0), append(l.memory, 0), append(l.disk, 0)
	l.ports = append(l.ports, &nodePorts{})
	return r
}

// setNode takes over a node's record, nil when it is gone, and reports whether anything about placement changed.
func (l *ledger) setNode(id model.NodeID, n *model.Node) bool {
	r := l.row(id)
	if n == nil {
		n = &model.Node{ID: id, Name: l.name[r]}
	}
	ready, known, name := n.State == model.NodeReady, n.State != "", cmp.Or(n.Name, string(id))
	changed := l.known[r] != known || l.ready[r] != ready || l.oci[r] != n.OCI || l.total[r] != n.Capacity ||
		l.ports[r].span != n.Ports || l.name[r] != name
	l.known[r], l.ready[r], l.oci[r], l.name[r] = known, ready, n.OCI, name
	l.add(r, n.Capacity.Sub(l.total[r]))
	l.total[r] = n.Capacity
	l.ports[r].span = n.Ports
	return changed
}

func (l *ledger) add(r int, res model.Resources) {
	l.cpus[r] += res.CPUs
	l.memory[r] += res.Memory
	l.disk[r] += res.Disk
}

// class returns the class of a version, nil when the version does not exist.
func (l *ledger) class(v state.View, key classKey) *class {
	ver := v.Version(key.app, key.version)
	c := l.classes[key]
	if ver == nil || c != nil && c.from.Revision == ver.Revision {
		return c
	}
	c = newClass(ver)
	l.classes[key] = c
	return c
}

// forgetClasses drops classes that nothing has used for long. Holds keep their own.
func (l *ledger) forgetClasses(keep func(classKey) bool) {
	if len(l.classes) < 1024 || len(l.classes) < 2*len(l.holds) {
		return
	}
	for key := range l.classes {
		if !keep(key) {
			delete(l.classes, key)
		}
	}
}

// sync makes the hold of an instance what its record says, nil for none, and reports whether it freed anything.
func (l *ledger) sync(v state.View, id model.InstanceID, i *model.Instance) (freed bool) {
	_, held := l.holds[id]
	wants := i != nil && i.Node != "" && !i.Over()
	switch {
	case held && !wants:
		l.release(id)
		return true
	case !held && wants:
		c := l.class(v, classKey{i.App, i.Version})
		if c == nil {
			c = &class{} // its version is gone: only its ports are known
		}
		h := hold{row: l.row(i.Node), class: c, ports: i.Ports}
		l.ports[h.row].take(c.ports, h.ports)
		l.add(h.row, model.Resources{}.Sub(c.need))
		l.holds[id] = h
	}
	return false
}

// release frees what an instance holds.
func (l *ledger) release(id model.InstanceID) {
	h, ok := l.holds[id]
	if !ok {
		return
	}
	delete(l.holds, id)
	l.ports[h.row].give(h.class.ports, h.ports)
	l.add(h.row, h.class.need)
}

// able reports whether a node takes instances of c at all.
func (l *ledger) able(c *class, r int) bool {
	return l.known[r] && l.ready[r] && (!c.image || l.oci[r].OK)
}

// fits reports whether a node has the resources and the fixed ports for one more of c.
func (l *ledger) fits(c *class, r int) bool {
	if c.need.CPUs > l.cpus[r] || c.need.Memory > l.memory[r] || c.need.Disk > l.disk[r] {
		return false
	}
	return c.fixed == 0 || l.portTaken(c, r) < 0
}

// portTaken returns the first of c's fixed ports that is taken on a node, as an index into c.ports, or -1.
func (l *ledger) portTaken(c *class, r int) int {
	for n, w := range c.ports {
		if w.port != 0 && l.ports[r].taken[w.proto].has(w.port) {
			return n
		}
	}
	return -1
}

// place holds a place on a node for an instance, and returns its ports.
func (l *ledger) place(id model.InstanceID, c *class, r int) ([]uint16, bool) {
	if !l.fits(c, r) {
		return nil, false
	}
	ports, ok := l.ports[r].assign(c.ports)
	if !ok {
		return nil, false
	}
	l.add(r, model.Resources{}.Sub(c.need))
	l.holds[id] = hold{row: r, class: c, ports: ports}
	return ports, true
}

// candidates returns the nodes that fit one of c, the one that it would fill most first: what stays free should stay
// in one piece.
func (l *ledger) candidates(c *class) []int {
	type scored struct {
		row   int
		score float64
	}
	var list []scored
	for r := range l.id {
		if l.able(c, r) && l.fits(c, r) {
			list = append(list, scored{r, l.left(c, r)})
		}
	}
	slices.SortFunc(list, func(a, b scored) int {
		return cmp.Or(cmp.Compare(a.score, b.score), cmp.Compare(l.id[a.row], l.id[b.row]))
	})
	out := make([]int, len(list))
	for i, s := range list {
		out[i] = s.row
	}
	return out
}

// left returns the share of a node that is free after placing one of c, from 0 to 2.
func (l *ledger) left(c *class, r int) float64 {
	return share(l.cpus[r]-c.need.CPUs, l.total[r].CPUs) + share(l.memory[r]-c.need.Memory, l.total[r].Memory)
}

func share[T ~int64](part, whole T) float64 {
	if whole <= 0 {
		return 0
	}
	return float64(part) / float64(whole)
}
