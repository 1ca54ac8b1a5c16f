package replay

import "github.com/gantry-os/gantry/scheduler/policy"

// Result is what came of a run.
type Result struct {
	Points  []Point `json:"points"`
	Asked   int     `json:"asked"`   // pods that were submitted
	Placed  int     `json:"placed"`  // of them that found a node
	Waited  int     `json:"waited"`  // of them that had to wait; with Overload none does
	Waiting int     `json:"waiting"` // of them that still waited at the end
}

// Last returns the state at the end.
func (r *Result) Last() Point { return r.Points[len(r.Points)-1] }

// Point is the state of the cluster at one moment of a run. All but At are percent of what the cluster has.
type Point struct {
	At         float64 `json:"at"`         // Overload: demand in percent of capacity; Arrivals: s since the first
	GPU        float64 `json:"gpu"`        // allocated
	CPU        float64 `json:"cpu"`        // allocated
	Memory     float64 `json:"memory"`     // allocated
	Fragmented float64 `json:"fragmented"` // free, but of no use to the average pod: of devices, else of CPU
}

// gauge places the pods of a run and keeps what its points say.
type gauge struct {
	placer    Placer
	cluster   *Cluster
	shapes    []policy.Shape
	byGPU     *policy.FragGradient
	allocated sums
	stale     []bool    // nodes whose fragmentation is to be computed anew
	frag      []float64 // by node
	sum       float64   // of frag
	result    Result
}

func newGauge(p Placer, c *Cluster, pods []Pod) *gauge {
	var asks []policy.Ask
	for i := range pods {
		if a := pods[i].Ask; !c.byGPU || a.GPU > 0 {
			asks = append(asks, a)
		}
	}
	g := &gauge{placer: p, cluster: c, shapes: policy.Popular(asks)}
	g.byGPU = policy.NewFragGradient(g.shapes)
	g.stale, g.frag = make([]bool, len(c.nodes)), make([]float64, len(c.nodes))
	for i := range g.stale {
		g.stale[i] = true
	}
	return g
}

func (g *gauge) place(a *policy.Ask, id int) (node int, ok bool) {
	if node, ok = g.placer.Place(*a, id); !ok {
		return 0, false
	}
	g.result.Placed++
	g.allocated.add(a, 1)
	g.stale[node] = true
	return node, true
}

func (g *gauge) remove(a *policy.Ask, id, node int) {
	g.placer.End(id)
	g.allocated.add(a, -1)
	g.stale[node] = true
}

// mark adds a point.
func (g *gauge) mark(at float64) {
	t, s := &g.cluster.total, &g.allocated
	for i, stale := range g.stale {
		if stale {
			f := g.fragmented(g.placer.Node(i))
			g.sum += f - g.frag[i]
			g.frag[i], g.stale[i] = f, false
		}
	}
	all := t.cpu
	if g.cluster.byGPU {
		all = t.gpu
	}
	p := Point{At: at, GPU: 100 * part(s.gpu, t.gpu), CPU: 100 * part(s.cpu, t.cpu), Memory: 100 * part(s.memory, t.memory)}
	if all > 0 {
		p.Fragmented = max(0, 100*g.sum/float64(all))
	}
	g.result.Points = append(g.result.Points, p)
}

// fragmented returns how much of what is free on n the average pod has no use for.
func (g *gauge) fragmented(n *policy.Node) float64 {
	if g.cluster.byGPU {
		return g.byGPU.Fragmentation(n)
	}
	var sum float64
	for i := range g.shapes {
		if s := &g.shapes[i]; !s.Fits(n) {
			sum += s.Weight * float64(n.Free.CPU)
		}
	}
	return sum
}

func (g *gauge) end() *Result { return &g.result }

// Mean returns the mean of all points, at the time of the last.
func (r *Result) Mean() Point {
	var m Point
	n := float64(len(r.Points))
	for _, p := range r.Points {
		m.GPU, m.CPU, m.Memory, m.Fragmented = m.GPU+p.GPU/n, m.CPU+p.CPU/n, m.Memory+p.Memory/n, m.Fragmented+p.Fragmented/n
	}
	m.At = r.Last().At
	return m
}
