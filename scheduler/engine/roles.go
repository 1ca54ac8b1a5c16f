package engine

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/policy"
)

// vector is an amount of every resource that roles compete for, in thousandths or bytes.
type vector struct {
	cpus, memory, disk, gpus int64
	custom                   map[string]int64 // nil for none
}

func (v *vector) addCustom(name string, n int64) {
	if v.custom == nil {
		v.custom = map[string]int64{}
	}
	v.custom[name] += n
}

// count adds n times o, in place.
func (v *vector) count(o *vector, n int64) {
	v.cpus += n * o.cpus
	v.memory += n * o.memory
	v.disk += n * o.disk
	v.gpus += n * o.gpus
	for name, amount := range o.custom {
		v.addCustom(name, n*amount)
		if v.custom[name] == 0 {
			delete(v.custom, name)
		}
	}
}

func (v vector) add(o vector) vector { return v.plus(o, 1) }
func (v vector) sub(o vector) vector { return v.plus(o, -1) }

func (v vector) plus(o vector, sign int64) vector {
	v.cpus += sign * o.cpus
	v.memory += sign * o.memory
	v.disk += sign * o.disk
	v.gpus += sign * o.gpus
	if len(o.custom) > 0 {
		v.custom = maps.Clone(v.custom)
		for name, n := range o.custom {
			v.addCustom(name, sign*n)
		}
	}
	return v
}

// role is one role of the tree. What it uses includes what those below it use.
type role struct {
	id       model.RoleID
	parent   *role
	below    []*role // sorted by id
	defined  bool
	set      model.Role
	used     vector
	going    vector  // of used, what instances have that were asked to leave
	waiting  int     // roles, of it and those below, whose work waits for places in a round
	wants    []*Want // of the role itself, in a round, best first
	turn     turn    // by which it is compared with its siblings
	own      turn    // of its own work
	turnAt   uint64  // capacity, by its changes, that turn and own were computed for; 0 when they are out of date
	depth    int
	guaranty bool // has a guarantee, or one below it has
}

type roles struct {
	root *role
	all  map[model.RoleID]*role
}

func newRoles() *roles {
	root := &role{id: model.RootRole, defined: true}
	return &roles{root: root, all: map[model.RoleID]*role{model.RootRole: root}}
}

// of returns a role, which it makes when nobody defined it: it has no limit then, and weight 1.
func (t *roles) of(id model.RoleID) *role {
	if r := t.all[id]; r != nil {
		return r
	}
	up := t.of(id.Parent())
	r := &role{id: id, parent: up, depth: up.depth + 1}
	t.all[id] = r
	up.below = append(up.below, r)
	slices.SortFunc(up.below, func(a, b *role) int { return cmp.Compare(a.id, b.id) })
	return r
}

// SetRoles says which roles there are.
func (e *Engine) SetRoles(list []model.Role) {
	for _, r := range e.roles.all {
		r.set, r.defined, r.guaranty, r.turnAt = model.Role{}, r.parent == nil, false, 0
	}
	for _, set := range list {
		r := e.roles.of(set.ID)
		r.set, r.defined = set, true
		for up := r; up != nil; up = up.parent {
			up.guaranty = up.guaranty || !emptyQuota(&set.Guarantee)
		}
	}
}

func emptyQuota(q *model.Quota) bool {
	return q.CPUs == nil && q.Memory == nil && q.Disk == nil && q.GPUs == nil && len(q.Custom) == 0
}

// add counts n instances that take v each.
func (r *role) add(v *vector, n int64) {
	for ; r != nil; r = r.parent {
		r.used.count(v, n)
		r.turnAt = 0
	}
}

// leave counts n instances that take v each among those that were asked to leave.
func (r *role) leave(v *vector, n int64) {
	for ; r != nil; r = r.parent {
		r.going.count(v, n)
	}
}

// each calls fn for every resource that a quota names, with its amount and those of two vectors.
func each(q *model.Quota, a, b *vector, fn func(name string, most, a, b int64) bool) bool {
	ok := true
	if q.CPUs != nil {
		ok = ok && fn(model.ResCPUs, int64(*q.CPUs), a.cpus, b.cpus)
	}
	if q.Memory != nil {
		ok = ok && fn(model.ResMemory, int64(*q.Memory), a.memory, b.memory)
	}
	if q.Disk != nil {
		ok = ok && fn(model.ResDisk, int64(*q.Disk), a.disk, b.disk)
	}
	if q.GPUs != nil {
		ok = ok && fn(model.ResGPUs, int64(*q.GPUs), a.gpus, b.gpus)
	}
	for _, name := range slices.Sorted(maps.Keys(q.Custom)) {
		ok = ok && fn(name, int64(q.Custom[name]), a.custom[name], b.custom[name])
	}
	return ok
}

// room returns how many more instances of v the limits of r and the roles above it allow, at most most.
func (r *role) room(v *vector, most int) int {
	for ; r != nil; r = r.parent {
		each(&r.set.Limit, &r.used, v, func(_ string, limit, used, one int64) bool {
			if one > 0 {
				most = int(min(int64(most), max(0, limit-used)/one))
			}
			return true
		})
	}
	return most
}

// full says which limit keeps one more instance of v out; empty when none does.
func (r *role) full(v *vector) string {
	for ; r != nil; r = r.parent {
		said := ""
		each(&r.set.Limit, &r.used, v, func(name string, limit, used, one int64) bool {
			if one > 0 && used+one > limit {
				said = fmt.Sprintf("role %s is at its limit: %s of %s %s are in use, one more takes %s",
					r.id, inWords(name, used), inWords(name, limit), words[name], inWords(name, one))
			}
			return said == ""
		})
		if said != "" {
			return said
		}
	}
	return ""
}

var words = map[string]string{model.ResCPUs: "CPUs", model.ResMemory: "memory", model.ResDisk: "disk", model.ResGPUs: "GPUs"}

// inWords writes an amount of a resource.
func inWords(name string, n int64) string {
	switch name {
	case model.ResCPUs:
		return model.CPU(n).String()
	case model.ResMemory, model.ResDisk:
		return model.Bytes(n).Human()
	case model.ResGPUs:
		return model.GPU(n).String()
	}
	return model.Units(n).String() + " " + name
}

// of returns the amount of a resource.
func (v *vector) of(name string) int64 {
	switch name {
	case model.ResCPUs:
		return v.cpus
	case model.ResMemory:
		return v.memory
	case model.ResDisk:
		return v.disk
	case model.ResGPUs:
		return v.gpus
	}
	return v.custom[name]
}

// short reports whether r, with one more instance of v, is still within its guarantee.
func (r *role) short(v *vector) bool {
	if emptyQuota(&r.set.Guarantee) {
		return false
	}
	touches := false
	inside := each(&r.set.Guarantee, &r.used, v, func(_ string, least, used, one int64) bool {
		touches = touches || one > 0
		return one == 0 || used+one <= least
	})
	return touches && inside
}

// beyond reports whether r, with an instance of v less and without those that leave already, still has its guarantee.
func (r *role) beyond(v *vector) bool {
	return each(&r.set.Guarantee, &r.used, v, func(name string, least, used, one int64) bool {
		return one == 0 || used-r.going.of(name)-one >= least
	})
}

// dominant returns r's dominant share: the largest of its parts of what the cluster has, each by its weight.
func (e *Engine) dominant(r *role) float64 {
	share := 0.0
	part := func(name string, used, all int64) {
		if used <= 0 || all <= 0 {
			return
		}
		w := r.set.Weights[name]
		if w == 0 {
			w = cmp.Or(r.set.Weight, 1)
		}
		share = max(share, float64(used)/float64(all)/w)
	}
	part(model.ResCPUs, r.used.cpus, e.sum.cpus)
	part(model.ResMemory, r.used.memory, e.sum.memory)
	part(model.ResDisk, r.used.disk, e.sum.disk)
	part(model.ResGPUs, r.used.gpus, e.sum.gpus)
	for name, used := range r.used.custom {
		part(name, used, e.sum.custom[name])
	}
	return share
}

// Share returns a role's dominant share.
func (e *Engine) Share(id model.RoleID) float64 {
	r := e.roles.all[id]
	if r == nil {
		return 0
	}
	return e.dominant(r)
}

// Reserved is what a node keeps for a role and those below it.
type Reserved struct {
	ID        string
	Role      model.RoleID
	Node      model.NodeID
	Resources model.Resources
}

// booking is the reservations on one row.
type booking struct {
	list []booked // of the deepest roles first
}

type booked struct {
	role   *role
	amount policy.Amounts
	gpus   int64
	unused policy.Amounts // of amount
	left   int64          // of gpus
}

// SetReservations says what nodes keep for roles.
func (e *Engine) SetReservations(list []Reserved) {
	old := e.booked
	e.booked = make([]*booking, len(e.info))
	for _, res := range list {
		r := e.row(res.Node) // may make a row
		if e.booked[r] == nil {
			e.booked[r] = &booking{}
		}
		e.booked[r].list = append(e.booked[r].list, booked{role: e.roles.of(res.Role), amount: amounts(res.Resources), gpus: int64(res.Resources.GPUs)})
	}
	for r, b := range e.booked {
		if b != nil {
			slices.SortStableFunc(b.list, func(x, y booked) int {
				return cmp.Or(cmp.Compare(y.role.depth, x.role.depth), cmp.Compare(x.role.id, y.role.id))
			})
		}
		if b != nil || r < len(old) && old[r] != nil {
			e.refresh(int32(r))
		}
	}
}

// spoken returns what is reserved on a row and not used by those it is for, and notes it for each reservation. What a role
// uses counts for the reservation of the deepest role that it is within, then for the next.
func (e *Engine) spoken(r int32, b *booking) policy.Amounts {
	for n := range b.list {
		b.list[n].unused, b.list[n].left = b.list[n].amount, b.list[n].gpus
	}
	for h := e.first[r]; h != none; h = e.at(h).next {
		if e.at(h).lifted {
			continue
		}
		c := e.at(h).class
		need, gpus := c.need, c.vector.gpus
		for n := range b.list {
			x := &b.list[n]
			if !c.role.id.Within(x.role.id) {
				continue
			}
			use := policy.Amounts{CPU: min(need.CPU, x.unused.CPU), Memory: min(need.Memory, x.unused.Memory), Disk: min(need.Disk, x.unused.Disk)}
			x.unused, need = minus(x.unused, use), minus(need, use)
			dev := min(gpus, x.left)
			x.left, gpus = x.left-dev, gpus-dev
		}
	}
	var sum policy.Amounts
	for n := range b.list {
		sum = plus(sum, b.list[n].unused)
	}
	return sum
}

// freeFor returns what a row has free for a role: what is free for all, and what is reserved for it.
func (e *Engine) freeFor(role *role, r int32) policy.Amounts {
	f := e.free[r]
	if b := e.booked[r]; b != nil {
		for n := range b.list {
			if x := &b.list[n]; role.id.Within(x.role.id) {
				f = plus(f, x.unused)
			}
		}
	}
	return f
}

// devicesSpare reports whether one more instance of c leaves the devices that are reserved for others: so many wholly
// free ones, and for a share one device that has it.
func (e *Engine) devicesSpare(c *Class, r int32, b *booking) bool {
	var others int64
	for n := range b.list {
		if x := &b.list[n]; !c.role.id.Within(x.role.id) {
			others += x.left
		}
	}
	if others == 0 {
		return true
	}
	_, named := e.cost(c, r)
	return e.leaves(r, others, e.choose(c, r, named))
}

// leaves reports whether, without what is taken, a row still has the devices that are reserved.
func (e *Engine) leaves(r int32, reserved int64, takes []deviceTake) bool {
	whole, most := int64(0), int64(0)
	for d, free := range e.gpu[r].free {
		for _, t := range takes {
			if int(t.device) == d {
				free -= t.amount
			}
		}
		if free == wholeDevice {
			whole++
		} else {
			most = max(most, int64(free))
		}
	}
	rest := reserved - whole*wholeDevice
	return rest <= 0 || rest < wholeDevice && rest <= most
}
