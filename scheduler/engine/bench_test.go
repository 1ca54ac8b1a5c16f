package engine

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
)

func fleet(n int) *Engine {
	e := New(Config{})
	for i := range n {
		e.SetNode(Node{
			ID: model.NodeID(fmt.Sprintf("n%05d", i)), Name: fmt.Sprintf("n%05d", i), OCI: model.Ability{OK: true},
			Capacity:   model.Resources{CPUs: model.CPU(64_000 << (i % 2)), Memory: 256 * model.GiB << (i % 3), Disk: model.TiB},
			Ports:      model.PortRange{First: 20000, Last: 32000},
			Attributes: map[string]string{"rack": fmt.Sprintf("r%d", i%50), "zone": fmt.Sprintf("z%d", i%3)},
		})
	}
	return e
}

func names(prefix string, n int) []model.InstanceID {
	out := make([]model.InstanceID, n)
	for i := range out {
		out[i] = model.InstanceID(fmt.Sprintf("%s-%07d", prefix, i))
	}
	return out
}

func BenchmarkPackOneApp(b *testing.B) {
	ids := names("one", 1_000_000)
	for b.Loop() {
		e := fleet(10_000)
		c := e.Class(Ask{App: "/one", Count: len(ids), Need: model.Resources{CPUs: 500, Memory: model.GiB}})
		start := time.Now()
		out := e.PlaceAll([]*Want{{Class: c, IDs: ids}}, nil)
		if len(out) != len(ids) {
			b.Fatal(len(out))
		}
		b.ReportMetric(float64(len(ids))/time.Since(start).Seconds(), "placements/s")
	}
	b.ReportAllocs()
}

func BenchmarkSpread(b *testing.B) {
	ids := names("one", 100_000)
	for _, kind := range []string{"spread-zone", "groupby-rack", "spread-hostname", "unique-hostname", "maxper-rack", "anti-soft", "affinity-other"} {
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				e := fleet(5_000)
				a := Ask{App: "/one", Count: len(ids), Need: model.Resources{CPUs: 500, Memory: model.GiB}}
				ids := ids
				switch kind {
				case "spread-zone":
					a.Spread = []model.Spread{{Over: "zone"}}
				case "groupby-rack":
					a.Constraints = []model.Constraint{{Attribute: "rack", Operator: model.OpGroupBy}}
				case "spread-hostname":
					a.Spread = []model.Spread{{Over: "hostname"}}
				case "unique-hostname":
					a.Constraints = []model.Constraint{{Attribute: "hostname", Operator: model.OpUnique}}
					ids = ids[:5000]
				case "maxper-rack":
					a.Constraints = []model.Constraint{{Attribute: "rack", Operator: model.OpMaxPer, Value: "2000"}}
				case "anti-soft":
					a.Affinity = []model.Affinity{{App: "/one", Anti: true, Weight: 50}}
				case "affinity-other":
					o := e.Class(Ask{App: "/other", Count: 100, Need: model.Resources{CPUs: 500, Memory: model.GiB}, Constraints: []model.Constraint{{Attribute: "hostname", Operator: model.OpUnique}}})
					e.Place(o, names("other", 2500), nil)
					a.Affinity = []model.Affinity{{App: "/other"}}
				}
				c := e.Class(a)
				start := time.Now()
				out := e.PlaceAll([]*Want{{Class: c, IDs: ids}}, nil)
				if len(out) != len(ids) {
					_, why := e.Explain(c)
					b.Fatal(len(out), why)
				}
				b.ReportMetric(float64(len(ids))/time.Since(start).Seconds(), "placements/s")
			}
		})
	}
}

func BenchmarkThousandApps(b *testing.B) {
	for b.Loop() {
		e := fleet(10_000)
		var wants []*Want
		for i := range 1000 {
			a := Ask{App: model.AppID(fmt.Sprintf("/a%d", i)), Count: 1000, Need: model.Resources{CPUs: model.CPU(100 + i%7*100), Memory: model.Bytes(1+i%5) * 256 * model.MiB}}
			switch i % 4 {
			case 0:
				a.Constraints = []model.Constraint{{Attribute: "rack", Operator: model.OpUnlike, Value: fmt.Sprintf("r%d", i%50)}}
			case 1:
				a.Constraints = []model.Constraint{{Attribute: "zone", Operator: model.OpIs, Value: fmt.Sprintf("z%d", i%3)}}
			case 2:
				a.Constraints = []model.Constraint{{Attribute: "hostname", Operator: model.OpUnique}}
			case 3:
				a.Constraints = []model.Constraint{{Attribute: "rack", Operator: model.OpGroupBy}}
			}
			wants = append(wants, &Want{Class: e.Class(a), IDs: names(fmt.Sprintf("a%d", i), 1000)})
		}
		start := time.Now()
		out := e.PlaceAll(wants, nil)
		if len(out) != 1_000_000 {
			b.Fatal(len(out))
		}
		b.ReportMetric(float64(len(out))/time.Since(start).Seconds(), "placements/s")
	}
}

func BenchmarkAllDifferent(b *testing.B) {
	for b.Loop() {
		e := fleet(10_000)
		start := time.Now()
		var wants []*Want
		for i := range 100_000 {
			a := Ask{App: model.AppID(fmt.Sprintf("/a%d", i)), Count: 1, Need: model.Resources{CPUs: model.CPU(100 + i%997), Memory: model.Bytes(100+i/997) * model.MiB}, Ports: []PortWant{{}}}
			wants = append(wants, &Want{Class: e.Class(a), IDs: []model.InstanceID{model.InstanceID(fmt.Sprintf("a%d", i))}})
		}
		made := time.Now()
		out := e.PlaceAll(wants, nil)
		if len(out) != 100_000 {
			b.Fatal(len(out))
		}
		b.ReportMetric(float64(len(out))/time.Since(start).Seconds(), "placements/s")
		b.ReportMetric(float64(len(out))/time.Since(made).Seconds(), "placed-only/s")
	}
}

func BenchmarkOneMore(b *testing.B) {
	e := fleet(10_000)
	c := e.Class(Ask{App: "/one", Count: 1_000_000, Need: model.Resources{CPUs: 500, Memory: model.GiB}})
	e.PlaceAll([]*Want{{Class: c, IDs: names("one", 1_000_000)}}, nil)
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	b.Logf("heap %d MiB", m.HeapAlloc>>20)
	var times []time.Duration
	n := 0
	for b.Loop() {
		n++
		start := time.Now()
		c := e.Class(Ask{App: model.AppID(fmt.Sprintf("/x%d", n)), Count: 1, Need: model.Resources{CPUs: model.CPU(100 + n%500), Memory: model.GiB}})
		e.PlaceAll([]*Want{{Class: c, IDs: []model.InstanceID{model.InstanceID(fmt.Sprintf("x%d", n))}}}, nil)
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkFill measures what spreading over zones costs packing: how much of the CPUs is allocated when the first instance finds no
// place, and when hardly any does.
func BenchmarkFill(b *testing.B) {
	for name, zone := range map[string]func(i int) string{
		"equal zones":   func(i int) string { return fmt.Sprint("z", i%3) },
		"unequal zones": func(i int) string { return []string{"z0", "z0", "z0", "z0", "z0", "z1", "z1", "z1", "z2", "z2"}[i%10] },
	} {
		for _, spread := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s, spread %v", name, spread), func(b *testing.B) {
				first, all, runs := 0.0, 0.0, 0.0
				for b.Loop() {
					for seed := range uint64(8) {
						f, a := fill(zone, spread, seed)
						first, all, runs = first+f, all+a, runs+1
					}
				}
				b.ReportMetric(100*first/runs, "%-at-first-refusal")
				b.ReportMetric(100*all/runs, "%-when-full")
			})
		}
	}
}

// fill places apps of random sizes and counts on 300 nodes, until 200 in a row were refused an instance. It returns which part of
// the CPUs was allocated when the first was, and at the end.
func fill(zone func(int) string, spread bool, seed uint64) (first, all float64) {
	const nodes, cpus = 300, 64_000
	rnd := rand.New(rand.NewPCG(seed, 11))
	e := New(Config{})
	for i := range nodes {
		e.SetNode(Node{ID: model.NodeID(fmt.Sprint("n", i)), Zone: zone(i), Capacity: model.Resources{CPUs: cpus, Memory: 256 * model.GiB}})
	}
	e.SetSpread(model.DefaultPool, spread)
	used := 0.0
	for app, refused := 0, 0; refused < 200; app++ {
		need := model.Resources{CPUs: model.CPU(250 << rnd.IntN(7)), Memory: model.GiB << rnd.IntN(6)}
		ids := names(fmt.Sprint("a", app), 1+rnd.IntN(20))
		c := e.Class(Ask{App: model.AppID(fmt.Sprint("/a", app)), Count: len(ids), Need: need})
		e.Learn(c, len(ids))
		got := len(e.PlaceAll([]*Want{{Class: c, IDs: ids}}, nil))
		used += float64(got) * float64(need.CPUs) / (nodes * cpus)
		if got == len(ids) {
			refused = 0
			continue
		}
		if refused++; first == 0 {
			first = used
		}
	}
	return first, used
}
