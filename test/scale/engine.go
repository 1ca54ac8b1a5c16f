package scale

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/engine"
)

// The rows of the engine alone: no store, no network. Nodes are of six sizes, in three zones and fifty racks.

// engineOf returns an engine with nodes.
func engineOf(nodes int) *engine.Engine {
	e := engine.New(engine.Config{})
	for i := range nodes {
		name := fmt.Sprintf("node-%05d", i)
		e.SetNode(engine.Node{
			ID: model.NodeID(name), Name: name, OCI: model.Ability{OK: true}, Zone: fmt.Sprintf("z%d", i%3),
			Capacity:   model.Resources{CPUs: model.CPU(64_000 << (i % 2)), Memory: 256 * model.GiB << (i % 3), Disk: model.TiB},
			Ports:      model.PortRange{First: 20_000, Last: 32_000},
			Attributes: map[string]string{"rack": fmt.Sprintf("r%02d", i%50)},
		})
	}
	return e
}

func instanceIDs(prefix string, n int) []model.InstanceID {
	out := make([]model.InstanceID, n)
	for i := range out {
		out[i] = model.InstanceID(fmt.Sprintf("%s-%07d", prefix, i))
	}
	return out
}

// oneApp is the ask of a service of the usual form.
func oneApp(count int) engine.Ask {
	return engine.Ask{App: "/shop/web", Template: "1", Count: count, Need: model.Resources{CPUs: 500, Memory: model.GiB}}
}

// want makes a class for n instances.
func want(e *engine.Engine, a engine.Ask, ids []model.InstanceID) *engine.Want {
	c := e.Class(a)
	e.Learn(c, len(ids))
	return &engine.Want{Class: c, IDs: ids}
}

// place places all wants, and returns how many instances that were each second.
func place(e *engine.Engine, begin time.Time, wants ...*engine.Want) (float64, error) {
	sum := 0
	for _, w := range wants {
		sum += len(w.IDs)
	}
	out := e.PlaceAll(wants, nil)
	took := time.Since(begin)
	if len(out) != sum {
		return 0, fmt.Errorf("%d of %d instances were placed", len(out), sum)
	}
	if err := e.Audit(); err != nil {
		return 0, err
	}
	return float64(sum) / took.Seconds(), nil
}

func (b *Bench) packOneApp(context.Context) (float64, error) {
	e, ids := engineOf(10_000/b.Shrink), instanceIDs("web", 1_000_000/b.Shrink)
	runtime.GC()
	return place(e, time.Now(), want(e, oneApp(len(ids)), ids))
}

// packThousandApps has apps of mixed sizes with one constraint each, of four kinds in turn.
func (b *Bench) packThousandApps(context.Context) (float64, error) {
	e := engineOf(10_000 / b.Shrink)
	ids := make([][]model.InstanceID, 1000)
	for i := range ids {
		ids[i] = instanceIDs(fmt.Sprintf("app%03d", i), 1000/b.Shrink)
	}
	runtime.GC()
	begin := time.Now()
	var wants []*engine.Want
	for i := range ids {
		a := engine.Ask{
			App: model.AppID(fmt.Sprintf("/a%03d", i)), Template: "1", Count: len(ids[i]),
			Need: model.Resources{CPUs: model.CPU(100 + i%7*100), Memory: model.Bytes(1+i%5) * 256 * model.MiB},
		}
		a.Constraints = []model.Constraint{[]model.Constraint{
			{Attribute: "rack", Operator: model.OpUnlike, Value: fmt.Sprintf("r%02d", i%50)},
			{Attribute: model.AttrZone, Operator: model.OpIs, Value: fmt.Sprintf("z%d", i%3)},
			{Attribute: model.AttrHostname, Operator: model.OpUnique},
			{Attribute: "rack", Operator: model.OpGroupBy},
		}[i%4]}
		wants = append(wants, want(e, a, ids[i]))
	}
	return place(e, begin, wants...)
}

// slowest returns the least of what some variants of one app reach on 5,000 nodes.
func (b *Bench) slowest(variants map[string]func(*engine.Engine, *engine.Ask)) (float64, error) {
	ids := instanceIDs("web", 100_000/b.Shrink)
	least := 0.0
	for _, name := range slices.Sorted(maps.Keys(variants)) {
		e, a := engineOf(5000/b.Shrink), oneApp(len(ids))
		variants[name](e, &a)
		runtime.GC()
		rate, err := place(e, time.Now(), want(e, a, ids))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		b.Note("%s: %.0f placements/s", name, rate)
		if least == 0 || rate < least {
			least = rate
		}
	}
	return least, nil
}

func (b *Bench) spread(context.Context) (float64, error) {
	rule := func(s model.Spread) func(*engine.Engine, *engine.Ask) {
		return func(_ *engine.Engine, a *engine.Ask) { a.Spread = []model.Spread{s} }
	}
	group := func(attribute string) func(*engine.Engine, *engine.Ask) {
		return func(_ *engine.Engine, a *engine.Ask) {
			a.Constraints = []model.Constraint{{Attribute: attribute, Operator: model.OpGroupBy}}
		}
	}
	return b.slowest(map[string]func(*engine.Engine, *engine.Ask){
		"spread over zone": rule(model.Spread{Over: model.AttrZone}), "spread over rack": rule(model.Spread{Over: "rack"}),
		"spread over hostname": rule(model.Spread{Over: model.AttrHostname}),
		"spread with targets":  rule(model.Spread{Over: model.AttrZone, Targets: map[string]int{"z0": 50, "z1": 30}}),
		"GROUP_BY zone":        group(model.AttrZone), "GROUP_BY rack": group("rack"),
	})
}

func (b *Bench) affinity(context.Context) (float64, error) {
	to := func(list ...model.Affinity) func(*engine.Engine, *engine.Ask) {
		return func(e *engine.Engine, a *engine.Ask) {
			other := engine.Ask{
				App: "/shop/db", Template: "1", Count: 2500 / b.Shrink, Need: a.Need,
				Constraints: []model.Constraint{{Attribute: model.AttrHostname, Operator: model.OpUnique}},
			}
			e.PlaceAll([]*engine.Want{{Class: e.Class(other), IDs: instanceIDs("db", other.Count)}}, nil)
			a.Affinity = list
		}
	}
	return b.slowest(map[string]func(*engine.Engine, *engine.Ask){
		"near another app, required":       to(model.Affinity{App: "/shop/db"}),
		"near another app, preferred":      to(model.Affinity{App: "/shop/db", Weight: 50}),
		"away from another app, required":  to(model.Affinity{App: "/shop/db", Anti: true}),
		"away from its own, preferred":     to(model.Affinity{App: "/shop/web", Anti: true, Weight: 50}),
		"near one by zone, away from own":  to(model.Affinity{App: "/shop/db", Over: model.AttrZone, Weight: 20}, model.Affinity{App: "/shop/web", Anti: true, Weight: 50}),
		"near its own by zone, preferred":  to(model.Affinity{App: "/shop/web", Over: model.AttrZone, Weight: 50}),
		"away from a whole group, by rack": to(model.Affinity{App: "/other/*", Over: "rack", Anti: true}),
	})
}

// allDifferent has every app ask for something else. Making the classes is part of it.
func (b *Bench) allDifferent(context.Context) (float64, error) {
	e, ids := engineOf(10_000/b.Shrink), instanceIDs("x", 100_000/b.Shrink)
	runtime.GC()
	begin := time.Now()
	wants := make([]*engine.Want, len(ids))
	for i := range ids {
		wants[i] = want(e, differing(i), ids[i:i+1])
	}
	return place(e, begin, wants...)
}

// differing returns the i'th of a hundred thousand asks, no two of which are equal.
func differing(i int) engine.Ask {
	return engine.Ask{
		App: model.AppID(fmt.Sprintf("/x%d", i)), Template: "1", Count: 1, Ports: []engine.PortWant{{}},
		Need: model.Resources{CPUs: model.CPU(100 + i%997), Memory: model.Bytes(100+i/997) * model.MiB},
	}
}

// full is an engine with a million instances, and what it takes in memory.
func (b *Bench) full() (*engine.Engine, *engine.Want, error) {
	e, ids := engineOf(10_000/b.Shrink), instanceIDs("web", 1_000_000/b.Shrink)
	w := want(e, oneApp(len(ids)), ids)
	_, err := place(e, time.Now(), w)
	return e, w, err
}

// oneMore places an instance at a time, of a new app and of the large one in turn: the 99th percentile in microseconds.
func (b *Bench) oneMore(context.Context) (float64, error) {
	e, w, err := b.full()
	if err != nil {
		return 0, err
	}
	runtime.GC()
	var took []time.Duration
	for i := range 10_000 {
		id := []model.InstanceID{model.InstanceID(fmt.Sprintf("more-%d", i))}
		begin := time.Now()
		one := w
		if i%2 == 0 {
			one = want(e, differing(i), id)
		}
		out := e.PlaceAll([]*engine.Want{{Class: one.Class, IDs: id}}, nil)
		took = append(took, time.Since(begin))
		if len(out) != 1 {
			return 0, fmt.Errorf("instance %d was not placed", i)
		}
	}
	slices.Sort(took)
	b.Note("one more: median %v, most %v", took[len(took)/2], took[len(took)-1])
	return float64(took[len(took)*99/100].Nanoseconds()) / 1e3, nil
}

// memory is the heap that the picture takes, the ids of nodes and instances included, in MiB.
func (b *Bench) memory(context.Context) (float64, error) {
	before := heap()
	e, w, err := b.full()
	if err != nil {
		return 0, err
	}
	size := heap() - before
	runtime.KeepAlive(e)
	runtime.KeepAlive(w)
	return float64(size) / (1 << 20), nil
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// allocated is how many bytes are allocated for a placement of one app, the answer included.
func (b *Bench) allocated(context.Context) (float64, error) {
	e, ids := engineOf(10_000/b.Shrink), instanceIDs("web", 1_000_000/b.Shrink)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	out := e.PlaceAll([]*engine.Want{want(e, oneApp(len(ids)), ids)}, nil)
	runtime.ReadMemStats(&after)
	return float64(after.TotalAlloc-before.TotalAlloc) / float64(max(1, len(out))), nil
}
