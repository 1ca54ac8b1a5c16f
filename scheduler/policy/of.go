package policy

import "github.com/gantry-os/gantry/model"

// Of returns a new policy of a name.
func Of(name model.Policy) Policy {
	switch name {
	case model.PolicySpread:
		return Spread{}
	case model.PolicyBalanced:
		return Balanced{}
	}
	return tight{}
}

type tight struct{}

func (tight) Name() string { return "pack" }

func (tight) Cost(n *Node, a *Ask) (float64, int) {
	return share(n.Free.CPU-a.CPU, n.Total.CPU) + share(n.Free.Memory-a.Memory, n.Total.Memory) + float64(len(n.GPUs)), -1
}
