package policy

import (
	"math/rand/v2"
	"testing"
)

// mixed asks for CPU, shares and whole devices.
func mixed(n int, seed uint64) []Ask {
	rng := rand.New(rand.NewPCG(seed, 7))
	asks := make([]Ask, n)
	for i := range asks {
		a := &asks[i]
		a.CPU, a.Memory = int64(1+rng.IntN(32))*500, int64(1+rng.IntN(32))<<30
		switch rng.IntN(4) {
		case 0:
			a.GPU = int32(1+rng.IntN(19)) * 50
		case 1:
			a.GPU = Whole << rng.IntN(4)
		}
	}
	return asks
}

// machine returns an empty node with the given number of devices.
func machine(cores int64, gpus int) Node {
	n := Node{Total: Amounts{CPU: cores * 1000, Memory: cores << 32}, GPUs: make([]int32, gpus), Models: make([]uint8, gpus)}
	n.Free = n.Total
	for i := range n.GPUs {
		n.GPUs[i] = Whole
	}
	return n
}

// What an engine pays that fills nodes one after another.
func BenchmarkCost(b *testing.B) {
	asks := mixed(4096, 1)
	plain := make([]Ask, len(asks))
	for i, a := range asks {
		plain[i] = Ask{Amounts: a.Amounts}
	}
	pack := NewPack()
	for i := range asks {
		pack.Learn(&asks[i], 1)
	}
	many := make([]Ask, len(asks))
	for i := range many {
		many[i] = Ask{Amounts: Amounts{CPU: int64(100 + i%997), Memory: int64(64+i%1009) << 20}}
	}
	for _, c := range []struct {
		name string
		p    Policy
		asks []Ask
		node Node
	}{
		{"pack/cpu", pack, plain, machine(64, 0)}, {"pack/different", pack, many, machine(64, 0)}, {"pack/gpu", pack, asks, machine(96, 8)}, {"pack/cpu-beside-gpu", pack, plain, machine(96, 8)},
		{"spread", Spread{}, plain, machine(64, 0)}, {"balanced", Balanced{}, plain, machine(64, 0)},
		{"fraggradient/gpu", NewFragGradient(Popular(asks[:128])), asks, machine(96, 8)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			n := c.node
			gpus := append([]int32(nil), n.GPUs...)
			for i := range b.N {
				a := &c.asks[i%len(c.asks)]
				if !a.Fits(&n) {
					n.Free = n.Total
					copy(n.GPUs, gpus)
				}
				_, device := c.p.Cost(&n, a)
				n.Take(a, a.Devices(&n, device))
			}
			copy(n.GPUs, gpus)
		})
	}
}
