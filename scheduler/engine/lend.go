package engine

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/policy"
)

// Loan is resources of one node that are lent to an outside scheduler. While it is out, nothing else is placed on them,
// and they count against its role.
type Loan struct {
	ID        string
	Node      model.NodeID
	Role      model.RoleID
	Resources model.Resources // GPUs apart
	GPUs      []model.GPUShare
	Ports     []uint16 // tcp and udp
}

// Lend lends resources that are free for the role. It fails, with the reason, when they are not, and lends nothing then.
func (e *Engine) Lend(l Loan) error {
	r, ok := e.rows[l.Node]
	if !ok || !e.known[r] {
		return fmt.Errorf("node %s is not known", l.Node)
	}
	if why := e.info[r].Shut; why != "" {
		return fmt.Errorf("node %s takes no new work: %s", e.info[r].Name, why)
	}
	if _, out := e.loans[l.ID]; out {
		return fmt.Errorf("loan %s is out already", l.ID)
	}
	if z := l.Resources; z.CPUs < 0 || z.Memory < 0 || z.Disk < 0 {
		return fmt.Errorf("loan %s asks for a negative amount", l.ID)
	}
	n := loan{row: r, role: e.roles.of(l.Role), take: amounts(l.Resources), gpus: sumShares(l.GPUs), ports: slices.Clone(l.Ports)}
	if !within(n.take, e.free[r]) { // what is reserved for a role is not lent: its own work may come for it
		return fmt.Errorf("node %s has less free", e.info[r].Name)
	}
	n.vec = vector{cpus: n.take.CPU, memory: n.take.Memory, disk: n.take.Disk}
	for _, g := range n.gpus {
		if g.Share <= 0 || !e.deviceHas(r, g) {
			return fmt.Errorf("device %s of node %s has no %s free", g.ID, e.info[r].Name, g.Share)
		}
		n.vec.gpus += int64(g.Share)
	}
	if !e.lendable(r, n.gpus) {
		return fmt.Errorf("devices of node %s are reserved", e.info[r].Name)
	}
	for i, p := range l.Ports {
		if p == 0 || slices.Contains(l.Ports[:i], p) || e.ports[r].taken[tcp].has(p) || e.ports[r].taken[udp].has(p) {
			return fmt.Errorf("port %d of node %s is not free", p, e.info[r].Name)
		}
	}
	if why := n.role.full(&n.vec); why != "" {
		return errors.New(why)
	}
	e.loans[l.ID] = n
	e.settleLoan(n, 1)
	return nil
}

// sumShares returns one share for each device.
func sumShares(list []model.GPUShare) []model.GPUShare {
	var out []model.GPUShare
	for _, g := range list {
		if n := slices.IndexFunc(out, func(o model.GPUShare) bool { return o.ID == g.ID }); n >= 0 {
			out[n].Share += g.Share
		} else {
			out = append(out, g)
		}
	}
	return out
}

// lendable reports whether devices can be lent and those that are reserved are still there.
func (e *Engine) lendable(r int32, shares []model.GPUShare) bool {
	b := e.booked[r]
	if b == nil || len(shares) == 0 {
		return true
	}
	reserved := int64(0)
	for n := range b.list {
		reserved += b.list[n].left
	}
	var takes []deviceTake
	for _, g := range shares {
		d := slices.IndexFunc(e.info[r].GPUs, func(o model.GPUDevice) bool { return o.ID == g.ID })
		takes = append(takes, deviceTake{device: int32(d), amount: int32(g.Share)})
	}
	return e.leaves(r, reserved, takes)
}

func (e *Engine) deviceHas(r int32, g model.GPUShare) bool {
	for d := range e.info[r].GPUs {
		if e.info[r].GPUs[d].ID == g.ID {
			return e.gpu[r].free[d] >= int32(g.Share)
		}
	}
	return false
}

// TakeBack ends a loan, and reports whether it was out.
func (e *Engine) TakeBack(id string) bool {
	n, ok := e.loans[id]
	if ok {
		delete(e.loans, id)
		e.settleLoan(n, -1)
	}
	return ok
}

func (e *Engine) settleLoan(n loan, sign int64) {
	part := policy.Amounts{CPU: sign * n.take.CPU, Memory: sign * n.take.Memory, Disk: sign * n.take.Disk}
	e.kept[n.row] = plus(e.kept[n.row], part)
	e.free[n.row] = minus(e.free[n.row], part)
	e.takeShares(n.row, n.gpus, int32(sign))
	if sign > 0 {
		e.ports[n.row].take(nil, n.ports)
	} else {
		e.ports[n.row].give(nil, n.ports)
	}
	n.role.add(&n.vec, sign)
	e.touch(n.row)
}
