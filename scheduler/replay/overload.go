package replay

import (
	"context"
	"math/rand/v2"

	"github.com/gantry-os/gantry/scheduler/policy"
)

// Point is the state of the cluster at one moment of a run. All are percent of what the cluster has.
type Point struct {
	At         float64 // by the method: demand in percent of capacity, or time in s
	GPU        float64 // allocated
	CPU        float64 // allocated
	Memory     float64 // allocated
	Fragmented float64 // free, and of no use for what is asked for; see Fragmentation
}

// overshoot is how far Overload goes: what is asked for, as part of what there is.
const overshoot = 1.3

// Overload submits pods in the order of a shuffle, and drawn at random once all were, until they ask for 30% more devices
// than there are; in a cluster or workload without devices, for 30% more of CPU or memory. Nothing ends. It returns a point
// for each percent of demand.
func Overload(ctx context.Context, p Placer, c *Cluster, pods []Pod, seed uint64, progress func(done float64)) ([]Point, error) {
	rng := rand.New(rand.NewPCG(seed, 1))
	order := rng.Perm(len(pods))
	g := newGauge(p, c, pods)
	points := []Point{g.point(0)}
	var demand sums
	for i := 0; ; i++ {
		next := rng.IntN(len(pods))
		if i < len(order) {
			next = order[i]
		}
		a := pods[next].Ask
		demand.add(&a, 1)
		if node, ok := p.Place(a, i); ok {
			g.placed(&a, node)
		}
		share := c.share(&demand)
		if share*100 >= float64(len(points)) {
			points = append(points, g.point(share*100))
			progress(share / overshoot)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
		if share >= overshoot {
			return points, nil
		}
	}
}

// sums are amounts of many.
type sums struct {
	cpu, memory, gpu int64
	count            int
}

func (s *sums) add(a *policy.Ask, sign int64) {
	s.cpu += sign * a.CPU
	s.memory += sign * a.Memory
	s.gpu += sign * int64(a.GPU)
	s.count += int(sign)
}

// Cluster is what a run places on.
type Cluster struct {
	Nodes []policy.Node
	total sums
	byGPU bool // devices are what is short
}

// NewCluster returns a cluster for a workload: devices count when both have to do with them.
func NewCluster(nodes []policy.Node, pods []Pod) *Cluster {
	c := &Cluster{Nodes: nodes}
	for i := range nodes {
		n := &nodes[i]
		c.total.cpu += n.Total.CPU
		c.total.memory += n.Total.Memory
		c.total.gpu += int64(len(n.GPUs)) * policy.Whole
	}
	var asked sums
	for i := range pods {
		asked.add(&pods[i].Ask, 1)
	}
	c.byGPU = c.total.gpu > 0 && asked.gpu > 0
	return c
}

// GPUs returns how many devices there are.
func (c *Cluster) GPUs() int { return int(c.total.gpu / policy.Whole) }

// ByGPU reports whether demand is counted in devices.
func (c *Cluster) ByGPU() bool { return c.byGPU }

// share returns what s is of the cluster.
func (c *Cluster) share(s *sums) float64 {
	if c.byGPU {
		return part(s.gpu, c.total.gpu)
	}
	return max(part(s.cpu, c.total.cpu), part(s.memory, c.total.memory))
}

func part(some, all int64) float64 {
	if all == 0 {
		return 0
	}
	return float64(some) / float64(all)
}

// gauge keeps what the points of a run say.
type gauge struct {
	placer    Placer
	cluster   *Cluster
	measure   *policy.FragGradient
	allocated sums
	stale     []bool    // nodes whose fragmentation changed
	frag      []float64 // by node, in thousandths of a device
	sum       float64
}

func newGauge(p Placer, c *Cluster, pods []Pod) *gauge {
	var asks []policy.Ask
	for i := range pods {
		if a := pods[i].Ask; !c.byGPU || a.GPU > 0 {
			asks = append(asks, a)
		}
	}
	g := &gauge{placer: p, cluster: c, measure: policy.NewFragGradient(policy.Popular(asks))}
	g.stale, g.frag = make([]bool, len(c.Nodes)), make([]float64, len(c.Nodes))
	for i := range g.stale {
		g.stale[i] = true
	}
	return g
}

func (g *gauge) placed(a *policy.Ask, node int) {
	g.allocated.add(a, 1)
	g.stale[node] = true
}

func (g *gauge) point(at float64) Point {
	t := &g.cluster.total
	p := Point{At: at, CPU: 100 * part(g.allocated.cpu, t.cpu), Memory: 100 * part(g.allocated.memory, t.memory), GPU: 100 * part(g.allocated.gpu, t.gpu)}
	for i, stale := range g.stale {
		if stale {
			f := g.measure.Fragmentation(g.placer.Node(i))
			g.sum += f - g.frag[i]
			g.frag[i], g.stale[i] = f, false
		}
	}
	if t.gpu > 0 {
		p.Fragmented = 100 * g.sum / float64(t.gpu)
	}
	return p
}
