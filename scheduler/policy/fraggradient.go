package policy

import (
	"cmp"
	"slices"
)

// Shape is an ask and how often it comes.
type Shape struct {
	Ask
	Weight float64 // part of all instances that ask for this
}

// Popular counts equal asks and returns them with their parts of the whole, the most frequent first.
func Popular(asks []Ask) []Shape {
	at := map[Ask]int{}
	var shapes []Shape
	for _, a := range asks {
		i, ok := at[a]
		if !ok {
			i = len(shapes)
			at[a] = i
			shapes = append(shapes, Shape{Ask: a})
		}
		shapes[i].Weight++
	}
	for i := range shapes {
		shapes[i].Weight /= float64(len(asks))
	}
	slices.SortStableFunc(shapes, func(a, b Shape) int { return cmp.Compare(b.Weight, a.Weight) })
	return shapes
}

// FragGradient is fragmentation gradient descent (Weng et al., "Beware of Fragmentation", USENIX ATC 2023). Of a node, what
// is free of devices that an instance cannot use is fragmented for it; the expectation of that over the instances that
// are asked for is the node's fragmentation. It takes the node, and the device, whose fragmentation grows least.
type FragGradient struct{ shapes []Shape }

// NewFragGradient returns a policy for the given workload, which it is told in advance, as in the paper.
func NewFragGradient(shapes []Shape) *FragGradient { return &FragGradient{shapes} }

// Name returns "fraggradient".
func (*FragGradient) Name() string { return "fraggradient" }

// Cost returns by how much the fragmentation of n grows, in thousandths of a device.
func (f *FragGradient) Cost(n *Node, a *Ask) (float64, int) {
	before := f.Fragmentation(n)
	var room [MaxDevices]int32
	after := Node{Free: n.Free, Total: n.Total, GPUs: room[:copy(room[:], n.GPUs)], Models: n.Models}
	if !a.Shares() {
		after.Take(a, a.Devices(n, -1))
		return f.Fragmentation(&after) - before, -1
	}
	best, device := 0.0, -1
	for i, free := range after.GPUs {
		if free < a.GPU || !a.Accepts(n.Models[i]) || n.twin(i) {
			continue
		}
		after.Take(a, 1<<i)
		if cost := f.Fragmentation(&after) - before; device < 0 || cost < best {
			best, device = cost, i
		}
		after.Give(a, 1<<i)
	}
	return best, device
}

// Fragmentation returns what is free of the devices of n and fragmented, in thousandths: all of it for an instance that
// does not fit or asks for no device; else that of the devices with less free than it needs of each.
func (f *FragGradient) Fragmentation(n *Node) float64 {
	free := n.gpuFree()
	if free == 0 {
		return 0
	}
	var sum float64
	for i := range f.shapes {
		s := &f.shapes[i]
		if s.GPU == 0 || !s.Fits(n) {
			sum += s.Weight * float64(free)
			continue
		}
		_, each := s.devices()
		for d, g := range n.GPUs {
			if g < each || !s.Accepts(n.Models[d]) {
				sum += s.Weight * float64(g)
			}
		}
	}
	return sum
}
