package daemon

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Up to roomy, garbage may grow as Tune has set it. What a server takes beyond that is of use but for a part: with 10,000 agents,
// whose connections take 70 KiB each, three times what is in use was 2 GiB. Collecting more often costs next to nothing then, since
// what so many agents take changes little.
const (
	roomy       = 1 << 30 // bytes
	garbagePart = 2       // garbage is to stay below one part of so many of what is in use
	memoryEvery = time.Second
)

// boundMemory keeps the process small, unless the environment says how large it may be, until ctx ends.
func boundMemory(ctx context.Context) error {
	if os.Getenv("GOMEMLIMIT") != "" {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	set := int64(0)
	for {
		if limit := memoryLimit(readMemory()); limit != set {
			debug.SetMemoryLimit(limit)
			set = limit
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// memoryLimit returns how much memory Go may take, for what is in use on the heap after a collection and what lies elsewhere. It is
// a limit of the runtime's: near it, it collects more often, and it must not be so near that it does nothing else.
func memoryLimit(live, elsewhere uint64) int64 {
	limit := elsewhere + live + live/garbagePart
	const step = 64 << 20
	return int64(max(roomy, (limit+step-1)/step*step))
}

// readMemory returns what was in use on the heap after the last collection, and what Go has of the system for anything else:
// stacks, what it needs itself, and room on the heap that nothing fits into.
func readMemory() (live, elsewhere uint64) {
	samples := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(samples)
	elsewhere = samples[1].Value.Uint64()
	for _, heap := range samples[2:] {
		elsewhere -= min(elsewhere, heap.Value.Uint64())
	}
	return samples[0].Value.Uint64(), elsewhere
}
