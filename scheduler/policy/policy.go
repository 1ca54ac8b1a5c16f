// Package policy says which of the nodes that fit is the best for one more instance. It is arithmetic on one node at a
// time: who fits at all, and which nodes are asked about, is decided elsewhere. Pack is the default; Spread and Balanced
// are for apps and pools that want them; the others are published methods to compare with.
package policy

import "math/bits"

// Whole is one device in the unit that shares of it are counted in.
const Whole = 1000

// Amounts are what is free on, or asked of, a node.
type Amounts struct {
	CPU    int64 // thousandths of a core
	Memory int64 // bytes
	Disk   int64 // bytes
}

// Within reports whether o has at least as much of everything.
func (m Amounts) Within(o Amounts) bool {
	return m.CPU <= o.CPU && m.Memory <= o.Memory && m.Disk <= o.Disk
}

// Node is one node as it is before an instance is placed. Policies must not keep or change it.
type Node struct {
	Free, Total Amounts
	GPUs        []int32 // what is free of each device, in thousandths
	Models      []uint8 // model of each device, as a number below 64
}

// Ask is what one instance needs.
type Ask struct {
	Amounts
	GPU    int32  // thousandths: below 1000 a share of one device, else whole devices
	Models uint64 // bit set of the models that will do, 0 for any
}

// Accepts reports whether a device of model m will do.
func (a *Ask) Accepts(m uint8) bool { return a.Models == 0 || a.Models&(1<<m) != 0 }

// Shares reports whether a is content with a part of one device.
func (a *Ask) Shares() bool { return a.GPU > 0 && a.GPU < Whole }

// Fits reports whether n has room for one more of a: a share within one device, whole devices that nothing uses.
func (a *Ask) Fits(n *Node) bool {
	return a.Within(n.Free) && (a.GPU == 0 || a.fitsDevices(n))
}

func (a *Ask) fitsDevices(n *Node) bool {
	want, each := a.devices()
	for i, free := range n.GPUs {
		if free >= each && a.Accepts(n.Models[i]) {
			if want--; want == 0 {
				return true
			}
		}
	}
	return false
}

// devices returns how many devices a needs, and how much of each.
func (a *Ask) devices() (count int, each int32) {
	if a.Shares() {
		return 1, a.GPU
	}
	return int((a.GPU + Whole - 1) / Whole), Whole
}

// Policy chooses among nodes.
type Policy interface {
	// Name is the policy's name in commands and figures.
	Name() string
	// Cost returns how bad it is to place a on n, which fits; the node with the least cost is taken, and of equal ones the
	// first. For a share of a device it also returns which device, as an index into n.GPUs; -1 leaves the choice to the
	// caller. It is called for very many nodes and allocates nothing.
	Cost(n *Node, a *Ask) (cost float64, device int)
}

// Learner is a policy that depends on what is asked for.
type Learner interface {
	// Learn takes note that count instances of a were asked for.
	Learn(a *Ask, count int)
	// Epoch changes when costs from before do not compare with costs from now on.
	Epoch() uint64
}

// MaxDevices is how many devices a node may have.
const MaxDevices = 64

// Devices returns, as a bit set, which devices of n a gets, which fits: for a share the preferred one, or with -1 the
// one with least room; else the first that nothing uses.
func (a *Ask) Devices(n *Node, preferred int) uint64 {
	if a.GPU == 0 {
		return 0
	}
	if a.Shares() {
		return 1 << max(0, a.tightest(n, preferred))
	}
	var set uint64
	want, each := a.devices()
	for i := 0; i < len(n.GPUs) && want > 0; i++ {
		if n.GPUs[i] >= each && a.Accepts(n.Models[i]) {
			set |= 1 << i
			want--
		}
	}
	return set
}

func (a *Ask) tightest(n *Node, preferred int) int {
	if preferred >= 0 {
		return preferred
	}
	best := -1
	for i, free := range n.GPUs {
		if free >= a.GPU && a.Accepts(n.Models[i]) && (best < 0 || free < n.GPUs[best]) {
			best = i
		}
	}
	return best
}

// Take makes n have less by one a, on the given devices.
func (n *Node) Take(a *Ask, devices uint64) { n.change(a, devices, 1) }

// Give undoes Take.
func (n *Node) Give(a *Ask, devices uint64) { n.change(a, devices, -1) }

func (n *Node) change(a *Ask, devices uint64, sign int64) {
	n.Free.CPU -= sign * a.CPU
	n.Free.Memory -= sign * a.Memory
	n.Free.Disk -= sign * a.Disk
	_, each := a.devices()
	for ; devices != 0; devices &= devices - 1 {
		n.GPUs[bits.TrailingZeros64(devices)] -= int32(sign) * each
	}
}

// twin reports whether a device before device i is of its model and has as much free.
func (n *Node) twin(i int) bool {
	for j := range i {
		if n.GPUs[j] == n.GPUs[i] && n.Models[j] == n.Models[i] {
			return true
		}
	}
	return false
}

// Bounder is a policy that can say cheaply how little placing may cost at best.
type Bounder interface {
	// Bound returns no more than what Cost would return.
	Bound(n *Node, a *Ask) float64
}
