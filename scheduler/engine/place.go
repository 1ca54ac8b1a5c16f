package engine

import (
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/policy"
)

// smallCluster is up to how many nodes every class has a field.
const smallCluster = 2048

// fewInstances is how many nodes there are for each instance of a class that is not worth a field.
const fewInstances = 32

// Place gives places to as many of a class's instances as fit, in order, and appends them to out.
func (e *Engine) Place(c *Class, ids []model.InstanceID, out []Placement) []Placement {
	c.asked = max(c.asked, len(ids))
	return e.place(c, ids, out)
}

// place is Place without noting that places were asked for. However many are asked for at a time, they are the same.
func (e *Engine) place(c *Class, ids []model.InstanceID, out []Placement) []Placement {
	e.judge(c)
	ids = ids[:c.role.room(&c.vector, len(ids))]
	if len(ids) == 0 {
		return out
	}
	if e.once(c) {
		return e.placeFew(c, ids, out)
	}
	f := e.fieldOf(c)
	for _, id := range ids {
		k, r := f.best(e)
		if k == none {
			break
		}
		out = append(out, e.take(id, c, r))
		f.placed(e, k, r)
	}
	return out
}

// Learn takes note that places for n more instances of c will be asked for, so that the policy can keep room for what is
// like them.
func (e *Engine) Learn(c *Class, n int) {
	c.asked += n
	if l, ok := c.policy.(policy.Learner); ok {
		l.Learn(&c.ask, n)
	}
}

// once reports whether a class is not worth a field: it has few instances, and has not come before.
func (e *Engine) once(c *Class) bool {
	return len(e.info) > e.small && len(c.rules.cells)+len(c.rules.soft) == 0 && e.fields[c.sign] == nil && e.few*c.asked < len(e.info)
}

// placeFew places without a field.
func (e *Engine) placeFew(c *Class, ids []model.InstanceID, out []Placement) []Placement {
	for _, id := range ids {
		t := e.catchUpTree()
		from := 0
		if c.scatter {
			from = e.wander()
		}
		var r int32
		if c.even != nil {
			r = t.searchEven(e, c, from)
		} else {
			r = t.search(e, c, from, nil)
		}
		if r == none {
			break
		}
		out = append(out, e.take(id, c, r))
	}
	return out
}

// wander returns a leaf to begin a search at, so that searches that look at a few nodes look at all by and by.
func (e *Engine) wander() int {
	e.walks++
	x := e.walks * 0x9e3779b97f4a7c15
	x ^= x >> 29
	return int(x % uint64(max(1, len(e.info))))
}

// PlaceOn gives an instance a place on one node, if it fits there.
func (e *Engine) PlaceOn(c *Class, id model.InstanceID, node model.NodeID) (Placement, bool) {
	r, ok := e.rows[node]
	e.judge(c)
	if !ok || c.role.room(&c.vector, 1) == 0 || !e.able(c, r) || !e.fits(c, r) || !e.rulesAllow(c, r) {
		return Placement{}, false
	}
	return e.take(id, c, r), true
}

// rulesAllow reports whether the required rules of c let one more instance in on a row that is able.
func (e *Engine) rulesAllow(c *Class, r int32) bool {
	if len(c.rules.cells) == 0 {
		return true
	}
	f := e.fieldOf(c)
	k := f.cell[r]
	return k != none && f.cells[k].open && f.group.allows(f, k)
}
