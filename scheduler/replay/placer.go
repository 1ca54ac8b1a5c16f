package replay

import (
	"slices"

	"github.com/gantry-os/gantry/scheduler/policy"
)

// Placer places instances on the nodes it was made with, and takes them away again.
type Placer interface {
	// Place finds a node for an instance, or reports that none has room. id is not in use.
	Place(a policy.Ask, id int) (node int, ok bool)
	// End takes an instance away that was placed.
	End(id int)
	// Node returns what a node has free at the moment. It is read, not kept.
	Node(i int) *policy.Node
}

// Scan is the Placer that needs no belief: it looks at every node for every instance. Costs are kept for each kind of ask,
// and computed anew for the nodes that changed since.
type Scan struct {
	nodes   []policy.Node
	changed []uint32 // times that a node changed
	policy  policy.Policy
	learner policy.Learner // policy, when it learns
	kinds   map[policy.Ask]*kind
	placed  map[int]placed
}

// kind is what is known about the nodes for equal asks.
type kind struct {
	epoch uint64
	costs []cost
}

type cost struct {
	value  float64
	at     uint32 // changed of the node, plus one
	device int8
	fits   bool
}

// placed is where an instance is.
type placed struct {
	ask     policy.Ask
	node    int
	devices uint64 // bit set
}

// NewScan returns a placer onto nodes, which it copies.
func NewScan(nodes []policy.Node, p policy.Policy) *Scan {
	s := &Scan{nodes: slices.Clone(nodes), changed: make([]uint32, len(nodes)), policy: p, kinds: map[policy.Ask]*kind{}, placed: map[int]placed{}}
	for i := range s.nodes {
		s.nodes[i].GPUs = slices.Clone(s.nodes[i].GPUs)
	}
	s.learner, _ = p.(policy.Learner)
	return s
}

// Node returns node i as it is now.
func (s *Scan) Node(i int) *policy.Node { return &s.nodes[i] }

// Place puts an instance on the node of least cost.
func (s *Scan) Place(a policy.Ask, id int) (int, bool) {
	if s.learner != nil {
		s.learner.Learn(&a, 1)
	}
	k := s.kind(&a)
	best := -1
	for i := range k.costs {
		c := &k.costs[i]
		if c.at != s.changed[i]+1 {
			s.assess(c, i, &a)
		}
		if c.fits && (best < 0 || c.value < k.costs[best].value) {
			best = i
		}
	}
	if best < 0 {
		return 0, false
	}
	s.put(&a, id, best, int(k.costs[best].device))
	return best, true
}

// kind returns what is known for a, without what no longer compares.
func (s *Scan) kind(a *policy.Ask) *kind {
	k := s.kinds[*a]
	if k == nil {
		k = &kind{costs: make([]cost, len(s.nodes))}
		s.kinds[*a] = k
	}
	if s.learner != nil && k.epoch != s.learner.Epoch() {
		clear(k.costs)
		k.epoch = s.learner.Epoch()
	}
	return k
}

func (s *Scan) assess(c *cost, i int, a *policy.Ask) {
	n := &s.nodes[i]
	*c = cost{at: s.changed[i] + 1, fits: a.Fits(n)}
	if c.fits {
		value, device := s.policy.Cost(n, a)
		c.value, c.device = value, int8(device)
	}
}

// put takes from node i what a asks for; device is where a share goes, or -1.
func (s *Scan) put(a *policy.Ask, id, i, device int) {
	n := &s.nodes[i]
	devices := a.Devices(n, device)
	s.placed[id] = placed{*a, i, devices}
	n.Take(a, devices)
	s.changed[i]++
}

// End takes an instance away.
func (s *Scan) End(id int) {
	p := s.placed[id]
	delete(s.placed, id)
	s.nodes[p.node].Give(&p.ask, p.devices)
	s.changed[p.node]++
}
