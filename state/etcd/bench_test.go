package etcd

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

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

// BenchmarkIsolated is how long writes at the two servers that are left wait when the leader hears of the others no longer, 20 times:
// until the first new one is made, and the slowest of all. The goal is 5 s.
func BenchmarkIsolated(b *testing.B) {
	c := newServers(b, 3)
	var again, slowest []time.Duration
	for range 20 {
		lead := c.leader(b)
		var mu sync.Mutex
		var made, first, worst = 0, time.Duration(0), time.Duration(0)
		var cut time.Time
		ctx, stop := context.WithCancel(b.Context())
		var wg sync.WaitGroup
		for i, s := range c.at {
			for n := 0; i != lead && n < 3; n++ {
				wg.Go(func() {
					for ctx.Err() == nil {
						begin := time.Now()
						if err := increment(context.WithoutCancel(ctx), s, "/n"); err != nil {
							b.Error(err)
							return
						}
						mu.Lock()
						if made++; !cut.IsZero() {
							worst = max(worst, time.Since(begin))
							if begin.After(cut) && first == 0 {
								first = time.Since(cut)
							}
						}
						mu.Unlock()
					}
				})
			}
		}
		count := func() int { mu.Lock(); defer mu.Unlock(); return made }
		eventually(b, "writes are under way", func() bool { return count() > 30 })
		mu.Lock()
		cut = time.Now()
		mu.Unlock()
		c.isolate(lead, true)
		eventually(b, "another leads", func() bool {
			return slices.ContainsFunc(c.at, func(s *Store) bool { return s != c.at[lead] && s.leadsMembers(s.link.Load()) })
		})
		before := count()
		eventually(b, "writes are made again", func() bool { return count() > before+30 })
		stop()
		wg.Wait()
		c.isolate(lead, false)
		eventually(b, "all follow one", func() bool { return c.at[lead].Fresh(b.Context()) == nil })
		again, slowest = append(again, first), append(slowest, worst)
	}
	b.ReportMetric(0, "ns/op")
	for unit, took := range map[string][]time.Duration{"new": again, "any": slowest} {
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Milliseconds()), unit+"-p50-ms")
		b.ReportMetric(float64(took[len(took)-1].Milliseconds()), unit+"-p99-ms") // of 20 the slowest
	}
}
