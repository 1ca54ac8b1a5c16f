package policy

import "math/rand/v2"

// gpuFree returns what is free of all devices of n, in thousandths.
func (n *Node) gpuFree() int64 {
	var sum int64
	for _, free := range n.GPUs {
		sum += int64(free)
	}
	return sum
}

// share returns part of whole, 0 when there is no whole.
func share(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// used returns the share of each resource of n that is used once a runs there.
func used(n *Node, a *Ask) (cpu, memory, disk, gpu float64) {
	cpu = share(n.Total.CPU-n.Free.CPU+a.CPU, n.Total.CPU)
	memory = share(n.Total.Memory-n.Free.Memory+a.Memory, n.Total.Memory)
	disk = share(n.Total.Disk-n.Free.Disk+a.Disk, n.Total.Disk)
	if whole := int64(len(n.GPUs)) * Whole; whole > 0 {
		gpu = share(whole-n.gpuFree()+int64(a.GPU), whole)
	}
	return cpu, memory, disk, gpu
}

// Spread takes the emptiest node: the one whose most used resource is used least.
type Spread struct{}

// Name returns "spread".
func (Spread) Name() string { return "spread" }

// Cost returns the share used of the resource that would be used most.
func (Spread) Cost(n *Node, a *Ask) (float64, int) {
	cpu, memory, disk, gpu := used(n, a)
	return max(cpu, memory, disk, gpu), -1
}

// Balanced keeps the resources of each node used to the same degree.
type Balanced struct{}

// Name returns "balanced".
func (Balanced) Name() string { return "balanced" }

// Cost returns how far the shares used would lie apart.
func (Balanced) Cost(n *Node, a *Ask) (float64, int) {
	cpu, memory, disk, gpu := used(n, a)
	sum, squares, count := cpu+memory, cpu*cpu+memory*memory, 2.0
	if n.Total.Disk > 0 {
		sum, squares, count = sum+disk, squares+disk*disk, count+1
	}
	if len(n.GPUs) > 0 {
		sum, squares, count = sum+gpu, squares+gpu*gpu, count+1
	}
	mean := sum / count
	return max(0, squares/count-mean*mean), -1
}

// Random takes any node. It draws anew for all nodes whenever something is asked for.
type Random struct {
	rng   *rand.Rand
	epoch uint64
}

// NewRandom returns a Random that draws the same for the same seed and calls.
func NewRandom(seed uint64) *Random { return &Random{rng: rand.New(rand.NewPCG(seed, 0))} }

// Name returns "random".
func (*Random) Name() string { return "random" }

// Cost draws.
func (r *Random) Cost(*Node, *Ask) (float64, int) { return r.rng.Float64(), -1 }

// Learn ends what was drawn before.
func (r *Random) Learn(*Ask, int) { r.epoch++ }

// Epoch counts what was asked for.
func (r *Random) Epoch() uint64 { return r.epoch }

// Largest is how much the node that has most of it has of each resource: the scale on which the published methods weigh
// one resource against another.
type Largest struct {
	Amounts
	GPU int64 // thousandths
}

// LargestOf returns the scale of nodes.
func LargestOf(nodes []Node) Largest {
	var l Largest
	for i := range nodes {
		n := &nodes[i]
		l.CPU, l.Memory, l.Disk = max(l.CPU, n.Total.CPU), max(l.Memory, n.Total.Memory), max(l.Disk, n.Total.Disk)
		l.GPU = max(l.GPU, int64(len(n.GPUs))*Whole)
	}
	return l
}

// BestFit takes the node that would have least left, summed over its resources.
type BestFit struct{ Largest Largest }

// Name returns "bestfit".
func (*BestFit) Name() string { return "bestfit" }

// Cost returns the sum of what would be left of each resource.
func (b *BestFit) Cost(n *Node, a *Ask) (float64, int) {
	l := &b.Largest
	return share(n.Free.CPU-a.CPU, l.CPU) + share(n.Free.Memory-a.Memory, l.Memory) +
		share(n.Free.Disk-a.Disk, l.Disk) + share(n.gpuFree()-int64(a.GPU), l.GPU), -1
}

// DotProduct takes the node where the product of what is asked for and what is free is least.
type DotProduct struct{ Largest Largest }

// Name returns "dotproduct".
func (*DotProduct) Name() string { return "dotproduct" }

// Cost returns the product of what is asked for and what is free.
func (d *DotProduct) Cost(n *Node, a *Ask) (float64, int) {
	l := &d.Largest
	return share(n.Free.CPU, l.CPU)*share(a.CPU, l.CPU) + share(n.Free.Memory, l.Memory)*share(a.Memory, l.Memory) +
		share(n.Free.Disk, l.Disk)*share(a.Disk, l.Disk) + share(n.gpuFree(), l.GPU)*share(int64(a.GPU), l.GPU), -1
}
