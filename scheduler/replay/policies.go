package replay

import (
	"context"
	"fmt"
	"strings"

	"github.com/gantry-os/gantry/scheduler/policy"
)

// policies are all there are, ours first.
var policies = []struct {
	name string
	make func(c *Cluster, pods []Pod, seed uint64) policy.Policy
}{
	{"pack", func(*Cluster, []Pod, uint64) policy.Policy { return policy.NewPack() }},
	{"spread", func(*Cluster, []Pod, uint64) policy.Policy { return policy.Spread{} }},
	{"balanced", func(*Cluster, []Pod, uint64) policy.Policy { return policy.Balanced{} }},
	{"random", func(_ *Cluster, _ []Pod, seed uint64) policy.Policy { return policy.NewRandom(seed) }},
	{"bestfit", func(c *Cluster, _ []Pod, _ uint64) policy.Policy {
		return &policy.BestFit{Largest: policy.LargestOf(c.nodes)}
	}},
	{"dotproduct", func(c *Cluster, _ []Pod, _ uint64) policy.Policy {
		return &policy.DotProduct{Largest: policy.LargestOf(c.nodes)}
	}},
	{"fraggradient", func(_ *Cluster, pods []Pod, _ uint64) policy.Policy {
		asks := make([]policy.Ask, len(pods))
		for i := range pods {
			asks[i] = pods[i].Ask
		}
		return policy.NewFragGradient(policy.Popular(asks))
	}},
}

// Policies returns the names of all policies.
func Policies() []string {
	names := make([]string, len(policies))
	for i, p := range policies {
		names[i] = p.name
	}
	return names
}

// NewPolicy returns the policy of a name, new and with what it has to know in advance.
func NewPolicy(name string, c *Cluster, pods []Pod, seed uint64) (policy.Policy, error) {
	for _, p := range policies {
		if p.name == name {
			return p.make(c, pods, seed), nil
		}
	}
	return nil, fmt.Errorf("there is no policy %q: choose from %s", name, strings.Join(Policies(), ", "))
}

// Methods are how a workload is replayed.
const (
	MethodArrivals = "arrivals"
	MethodOverload = "overload"
)

// Options are how Simulate runs. The zero value overloads with seed 0.
type Options struct {
	Method   string // default MethodOverload
	Seed     uint64
	Progress func(done float64) // default none
}

// Simulate replays a workload with the policy of the given name.
func Simulate(ctx context.Context, name string, c *Cluster, pods []Pod, o Options) (*Result, error) {
	p, err := NewPolicy(name, c, pods, o.Seed)
	if err != nil {
		return nil, err
	}
	progress := o.Progress
	if progress == nil {
		progress = func(float64) {}
	}
	placer := NewEngine(c.nodes, p)
	if o.Method == MethodArrivals {
		return Arrivals(ctx, placer, c, pods, progress)
	}
	return Overload(ctx, placer, c, pods, o.Seed, progress)
}
