package conformance

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// Bench measures transactions on an empty db: one caller, many callers at once, and one caller with large ones.
func Bench(b *testing.B, db *state.DB) {
	put := func(b *testing.B, from, to int) {
		err := db.Update(b.Context(), func(tx *state.Tx) error {
			for n := from; n < to; n++ {
				tx.PutInstance(instance(fmt.Sprintf("i%08d", n), "/a", ""))
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.Run("one", func(b *testing.B) {
		n := 0
		for b.Loop() {
			put(b, n, n+1)
			n++
		}
	})
	b.Run("many", func(b *testing.B) {
		var next atomic.Int64
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				n := int(next.Add(1))
				err := db.Update(b.Context(), func(tx *state.Tx) error {
					tx.PutInstance(instance(fmt.Sprintf("i%08d", n), "/a", ""))
					return nil
				})
				if err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("large", func(b *testing.B) {
		const size = 1000
		n := 0
		for b.Loop() {
			put(b, n, n+size)
			n += size
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/size, "ns/record")
	})
	b.Run("view", func(b *testing.B) {
		for b.Loop() {
			var i *model.Instance
			if i = db.View().Instance("i00000000"); i == nil {
				b.Fatal("it is gone")
			}
		}
	})
}
