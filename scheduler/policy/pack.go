package policy

import (
	"math"
	"math/bits"
)

// Pack packs tightly while keeping room for what is asked for. It imagines futures of a node: asks come, drawn from those
// of late, and take what they find until several found no room. What is left of the node in the mean over its futures is
// its waste, together with, a tenth as much, what is free now and of no use to the first that come. An instance goes
// where the waste grows least. So the processors beside idle devices are kept for those who ask for devices, whole devices
// for those who ask for whole ones, scarce models for those who insist on them, and rests that something fits into
// exactly are preferred to those that nothing does.
//
// All futures are drawn once per epoch and are the same for all nodes, so that costs differ by the nodes and not by luck.
// The waste of a state that was met before is remembered. A Pack is not for several goroutines at once.
type Pack struct {
	recent  recent
	futures futures
	memo    []memo
	epoch   uint64
}

// memo is the waste of one state of a node.
type memo struct {
	key   uint64
	waste float64
}

// memos is how many states are remembered, a power of two. One that collides replaces the one before.
const memos = 1 << 17

// What is free of a node weighs little: the fuller of nodes wins whose waste grows about alike.
const (
	tieGPU    = 0.01 / Whole     // for a thousandth of a device
	tieCPU    = 1e-11            // for a thousandth of a core
	tieMemory = 1e-6 / (1 << 40) // for a byte
)

// NewPack returns a Pack that has seen no asks yet.
func NewPack() *Pack { return &Pack{} }

// Name returns "pack".
func (*Pack) Name() string { return "pack" }

// Learn takes note of asks, and draws new futures when those are out of date.
func (p *Pack) Learn(a *Ask, count int) {
	if !p.recent.add(a, count) {
		return
	}
	p.futures.draw(p.recent.shapes())
	clear(p.memo)
	p.epoch++
}

// Epoch counts how often the futures were drawn.
func (p *Pack) Epoch() uint64 { return p.epoch }

// Cost returns by how much the waste of n grows.
func (p *Pack) Cost(n *Node, a *Ask) (float64, int) {
	s := stateOf(n)
	before := p.waste(&s)
	s.free.CPU -= a.CPU
	s.free.Memory -= a.Memory
	s.free.Disk -= a.Disk
	left := p.left(n, a)
	if a.GPU == 0 {
		return p.waste(&s) - before + left, -1
	}
	if !a.Shares() {
		s.devices, s.take = a.Devices(n, -1), Whole
		return p.waste(&s) - before + left, -1
	}
	best, device := math.Inf(1), -1
	s.take = a.GPU
	for i, free := range n.GPUs {
		if free < a.GPU || !a.Accepts(n.Models[i]) || n.twin(i) {
			continue
		}
		s.devices = 1 << i
		if cost := p.waste(&s) - before; cost < best {
			best, device = cost, i
		}
	}
	return best + left, device
}

// Bound returns the cost of a state without waste: what there was is all that can be gained. It asks about the node as it
// is, which all asks have in common.
func (p *Pack) Bound(n *Node, a *Ask) float64 {
	s := stateOf(n)
	return p.left(n, a) - p.waste(&s)
}

// left is the price of what is free of n once a runs there.
func (p *Pack) left(n *Node, a *Ask) float64 {
	return tieGPU*float64(n.gpuFree()) + tieCPU*float64(n.Free.CPU-a.CPU) + tieMemory*float64(n.Free.Memory-a.Memory)
}

// waste returns what the futures leave of a state.
func (p *Pack) waste(s *state) float64 {
	if p.memo == nil { // a pool that nothing is placed in needs none
		p.memo = make([]memo, memos)
	}
	key := s.key()
	m := &p.memo[key%memos]
	if m.key != key {
		*m = memo{key, p.futures.waste(s)}
	}
	return m.waste
}

// state is a node as it would be.
type state struct {
	free    Amounts
	node    *Node
	devices uint64 // those of node that have less by take
	take    int32
	grain   grain
	base    uint64 // of keys, which all states of like nodes share
}

// grain is by how many bits amounts are shortened, so that fewer states have to be imagined.
type grain struct{ cpu, memory, disk uint8 }

// stateOf returns n as it is. States are told apart by a few thousandths of CPU, and less
// finely by the rest.
func stateOf(n *Node) state {
	return state{
		free: n.Free, node: n,
		grain: grain{shorten(n.Total.CPU, 9), shorten(n.Total.Memory, 7), shorten(n.Total.Disk, 5)},
		base:  mix(uint64(n.Total.CPU)<<32 ^ uint64(n.Total.Memory) ^ bits.RotateLeft64(uint64(n.Total.Disk), 17)),
	}
}

// shorten returns by how many bits total is to be shortened to have at most keep.
func shorten(total int64, keep int) uint8 { return uint8(max(0, bits.Len64(uint64(total))-keep)) }

// roundUp returns v in grains. It rounds up, so that what fits exactly still fits.
func roundUp(v int64, by uint8) int64 { return (v + 1<<(by&63) - 1) >> (by & 63) }

// gpu returns what is free of device i.
func (s *state) gpu(i int) int32 {
	if s.devices&(1<<i) != 0 {
		return s.node.GPUs[i] - s.take
	}
	return s.node.GPUs[i]
}

// key returns a number that states with equal waste share: it depends on devices, and not on their order.
func (s *state) key() uint64 {
	g := s.grain
	h := mix(s.base ^ uint64(roundUp(s.free.CPU, g.cpu))<<40 ^ uint64(roundUp(s.free.Memory, g.memory))<<20 ^ uint64(roundUp(s.free.Disk, g.disk)))
	for i := range s.node.GPUs {
		h += mix(uint64(s.gpu(i))<<8 ^ uint64(s.node.Models[i]) ^ 1<<40)
	}
	return h | 1 // never that of an empty memo
}

// mix scatters the bits of v.
func mix(v uint64) uint64 {
	hi, lo := bits.Mul64(v^0x9e3779b97f4a7c15, 0xd1342543de82ef95)
	return hi ^ lo
}
