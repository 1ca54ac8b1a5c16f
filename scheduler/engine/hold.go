package engine

import (
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/policy"
)

// hold is what an instance takes of its node until it is over.
type hold struct {
	id         model.InstanceID
	class      *Class
	extra      *extra // nil for none
	row        int32
	prev, next int32 // on the same row
	waits      bool  // for victims to end: what it holds is kept for it, though others have it yet
	leaving    bool  // it was asked to leave: what it takes will be free by itself
	lifted     bool  // it does not count, in a trial
}

// holdPage is how many holds lie together. Pages are never moved, so that a million holds cost no copying.
const holdPage = 1024

// at returns a hold by its number.
func (e *Engine) at(h int32) *hold { return &e.pages[h/holdPage][h%holdPage] }

// all yields the numbers of all holds.
func (e *Engine) all(yield func(int32) bool) {
	for h := range e.made {
		if e.at(h).class != nil && !yield(h) {
			return
		}
	}
}

// extra is what few instances hold.
type extra struct {
	ports []uint16
	gpus  []model.GPUShare
	items map[string][]string
}

type volume struct {
	row  int32
	size int64
}

type loan struct {
	row   int32
	role  *role
	take  policy.Amounts
	gpus  []model.GPUShare
	ports []uint16
	vec   vector
}

// Hold takes over an instance that has a place already. A hold that it has is replaced.
func (e *Engine) Hold(p Placement, c *Class) {
	e.Release(p.ID)
	var x *extra
	if len(p.Ports) > 0 || len(p.GPUs) > 0 || len(p.Items) > 0 {
		x = &extra{p.Ports, p.GPUs, p.Items}
	}
	r := e.row(p.Node)
	h := e.seize(p.ID, c, r, x)
	e.ports[r].take(c.Ports, p.Ports)
	e.takeExtras(r, e.at(h), 1)
	if e.booked[r] != nil {
		e.refresh(r)
	}
}

// seize makes a hold and takes its amounts, but not its ports and devices.
func (e *Engine) seize(id model.InstanceID, c *Class, r int32, x *extra) int32 {
	h := e.spare
	if h == none {
		h = e.made
		if e.made++; h%holdPage == 0 {
			e.pages = append(e.pages, new([holdPage]hold))
		}
	} else {
		e.spare = e.at(h).next
	}
	next := e.first[r]
	*e.at(h) = hold{id: id, class: c, extra: x, row: r, prev: none, next: next}
	if next != none {
		e.at(next).prev = h
	}
	e.first[r] = h
	e.index[id] = h
	e.free[r] = minus(e.free[r], c.need)
	c.role.add(&c.vector, 1)
	c.live++
	e.feed(c, r, 1)
	e.touch(r)
	return h
}

// Release frees what an instance holds, and reports whether it held anything.
func (e *Engine) Release(id model.InstanceID) bool {
	h, ok := e.index[id]
	if !ok {
		return false
	}
	was := e.at(h)
	r, c := was.row, was.class
	delete(e.index, id)
	if was.prev != none {
		e.at(was.prev).next = was.next
	} else {
		e.first[r] = was.next
	}
	if was.next != none {
		e.at(was.next).prev = was.prev
	}
	if was.extra != nil {
		e.ports[r].give(c.Ports, was.extra.ports)
		e.reclaim(r)
	}
	e.takeExtras(r, was, -1)
	if was.leaving {
		c.role.leave(&c.vector, -1)
	}
	if was.waits {
		e.unclaim(was)
	}
	*e.at(h) = hold{next: e.spare, prev: none, row: none}
	e.spare = h
	e.free[r] = plus(e.free[r], c.need)
	c.role.add(&c.vector, -1)
	e.feed(c, r, -1)
	e.touch(r)
	if e.booked[r] != nil {
		e.refresh(r)
	}
	e.unref(c)
	return true
}

// Held returns the node of an instance and its class, and whether it holds anything.
func (e *Engine) Held(id model.InstanceID) (model.NodeID, *Class, bool) {
	h, ok := e.index[id]
	if !ok || e.at(h).waits {
		return "", nil, false
	}
	return e.info[e.at(h).row].ID, e.at(h).class, true
}

// Instances returns how many instances hold a place.
func (e *Engine) Instances() int { return len(e.index) }

// Leaving notes that an instance was asked to leave, or no longer: it is no victim any more.
func (e *Engine) Leaving(id model.InstanceID, leaving bool) {
	h, ok := e.index[id]
	if !ok || e.at(h).leaving == leaving {
		return
	}
	e.at(h).leaving = leaving
	e.depart(h, leaving)
}

// take gives an instance its place on a row where it fits, on the device that the policy named, if any.
func (e *Engine) take(id model.InstanceID, c *Class, r int32) Placement {
	p := Placement{ID: id, Node: e.info[r].ID}
	if len(c.Ports) > 0 {
		p.Ports = e.ports[r].assign(c.Ports)
	}
	if len(c.gpus) > 0 {
		_, named := e.cost(c, r)
		p.GPUs = e.deal(r, e.choose(c, r, named))
	}
	if len(c.custom) > 0 {
		p.Items = e.pickItems(c, r)
	}
	var x *extra
	if p.Ports != nil || p.GPUs != nil || p.Items != nil {
		x = &extra{p.Ports, p.GPUs, p.Items}
	}
	h := e.seize(id, c, r, x)
	if x != nil || len(c.custom) > 0 {
		e.takeExtras(r, e.at(h), 1)
	}
	if c.Volumes > 0 {
		e.SetVolume(model.VolumeID(id), e.info[r].ID, c.Volumes)
	}
	if e.booked[r] != nil {
		e.refresh(r)
	}
	return p
}

// cost asks the policy of c about a row.
func (e *Engine) cost(c *Class, r int32) (float64, int) {
	n := &e.scratch
	n.Free, n.Total = e.free[r], e.total[r]
	n.GPUs, n.Models = e.gpu[r].free, e.gpu[r].model
	return c.policy.Cost(n, &c.ask)
}

// SetVolume keeps disk on a node for a persistent volume.
func (e *Engine) SetVolume(id model.VolumeID, node model.NodeID, size model.Bytes) {
	e.RemoveVolume(id)
	r := e.row(node)
	e.volumes[id] = volume{r, int64(size)}
	e.kept[r].Disk += int64(size)
	e.free[r].Disk -= int64(size)
	e.touch(r)
}

// RemoveVolume frees what was kept for a volume, and reports whether there was something.
func (e *Engine) RemoveVolume(id model.VolumeID) bool {
	v, ok := e.volumes[id]
	if !ok {
		return false
	}
	delete(e.volumes, id)
	e.kept[v.row].Disk -= v.size
	e.free[v.row].Disk += v.size
	e.touch(v.row)
	return true
}

// EachClass calls fn for the class of every hold, some more than once.
func (e *Engine) EachClass(fn func(*Class)) {
	var last *Class
	for h := range e.all {
		if c := e.at(h).class; c != last {
			fn(c)
			last = c
		}
	}
}
