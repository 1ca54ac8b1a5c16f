package etcd

import (
	"testing"

	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/conformance"
)

func BenchmarkUpdate(b *testing.B) {
	conformance.Bench(b, open(b, Config{Dir: b.TempDir()}).DB)
}

// BenchmarkOpen measures a start with 100,000 instances, until all can be read.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s := open(b, Config{Dir: dir})
	const batch = 10_000
	for from := 0; from < 100_000; from += batch {
		err := s.Update(b.Context(), func(tx *state.Tx) error {
			for n := from; n < from+batch; n++ {
				tx.PutInstance(typical(n))
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	closeStore(b, s)
	for b.Loop() {
		s := open(b, Config{Dir: dir})
		if n := s.View().InstanceCount(); n != 100_000 {
			b.Fatalf("%d instances", n)
		}
		b.StopTimer()
		closeStore(b, s)
		b.StartTimer()
	}
}
