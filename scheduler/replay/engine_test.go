package replay

import (
	"math/rand/v2"
	"testing"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/policy"
)

// The engine chooses what a look at every node chooses: the same nodes for the same asks, with instances that end in
// between, for every policy that depends on nothing else.
func TestEngineIsExact(t *testing.T) {
	for _, p := range []model.Policy{model.PolicyPack, model.PolicySpread, model.PolicyBalanced} {
		rng := rand.New(rand.NewPCG(3, 4))
		var nodes []policy.Node
		for range 48 { // no more than the engine computes costs of
			n := policy.Node{Total: policy.Amounts{CPU: int64(8+rng.IntN(3)*8) * 1000, Memory: int64(32+rng.IntN(2)*32) << 30}}
			n.Free = n.Total
			for range []int{0, 1, 2, 8}[rng.IntN(4)] {
				n.GPUs, n.Models = append(n.GPUs, policy.Whole), append(n.Models, uint8(rng.IntN(3)))
			}
			nodes = append(nodes, n)
		}
		scan, real := NewScan(nodes, policy.Of(p)), NewEngine(nodes, policy.Of(p))
		var alive []int
		for id := range 3000 {
			a := policy.Ask{Amounts: policy.Amounts{CPU: int64(1+rng.IntN(8)) * 500, Memory: int64(1+rng.IntN(6)) << 30}}
			if a.GPU = []int32{0, 0, 200, 500, 1000, 2000}[rng.IntN(6)]; a.GPU > 0 && rng.IntN(3) == 0 {
				a.Models = uint64(1 + rng.IntN(7))
			}
			n, ok := scan.Place(a, id)
			m, found := real.Place(a, id)
			if n != m || ok != found {
				t.Fatalf("%s: instance %d (%+v) goes to node %d (%v) by a scan, %d (%v) by the engine", p, id, a, n, ok, m, found)
			}
			if ok {
				alive = append(alive, id)
			}
			if len(alive) > 0 && rng.IntN(3) == 0 {
				k := rng.IntN(len(alive))
				scan.End(alive[k])
				real.End(alive[k])
				alive[k] = alive[len(alive)-1]
				alive = alive[:len(alive)-1]
			}
		}
	}
}
