package replay

import (
	"context"
	"math/rand/v2"
)

// overshoot is how far Overload goes: what is asked for, as part of what there is.
const overshoot = 1.3

// Overload submits pods in the order of a shuffle, and drawn at random once all were, until they ask for 30% more devices
// than there are; in a cluster or workload without devices, for 30% more of CPU or memory. Nothing ends. The result has a
// point for each percent of demand. progress is told how much of the way is done.
func Overload(ctx context.Context, p Placer, c *Cluster, pods []Pod, seed uint64, progress func(done float64)) (*Result, error) {
	if err := c.check(pods); err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	order := rng.Perm(len(pods))
	g := newGauge(p, c, pods)
	g.mark(0)
	var demand sums
	for i := 0; ; i++ {
		next := rng.IntN(len(pods))
		if i < len(order) {
			next = order[i]
		}
		a := &pods[next].Ask
		demand.add(a, 1)
		g.result.Asked++
		g.place(a, i)
		share := c.share(&demand)
		if share*100 >= float64(len(g.result.Points)) {
			g.mark(share * 100)
			progress(share / overshoot)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
		if share >= overshoot {
			return g.end(), nil
		}
	}
}
