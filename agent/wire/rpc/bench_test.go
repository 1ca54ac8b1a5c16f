package rpc

import (
	"fmt"
	"net/netip"
	goruntime "runtime"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	endpoints "github.com/gantry-os/gantry/route"
	"github.com/gantry-os/gantry/state"
)

// crowd is many simulated agents on one server, with ten instances each.
type crowd struct {
	*cluster
	server *testServer
	agents []*fakeAgent
}

const crowdSize, crowdEach = 2000, 10

func newCrowd(b *testing.B) *crowd {
	c := &crowd{cluster: newCluster(b, 2, func(cfg *Config) { cfg.Timeout = 10 * time.Second })}
	c.server = c.lead(0)
	c.app("/web")
	c.update(func(tx *state.Tx) {
		for n := range crowdSize * crowdEach {
			tx.PutInstance(&model.Instance{
				ID: model.InstanceID(fmt.Sprintf("web-%05d", n)), App: "/web", Version: 1, Desired: model.Run,
				Node: model.NodeID(fmt.Sprint("n", n%crowdSize)), Status: model.Status{Phase: model.PhaseAssigned},
			})
		}
	})
	for n := range crowdSize {
		a := newFakeAgent(model.NodeID(fmt.Sprint("n", n)))
		c.agents = append(c.agents, a)
		c.dial(a, a.id, func(d *DialerConfig) { d.Timeout, d.Spread = 10*time.Second, 2*time.Second })
	}
	return c
}

// served reports whether every agent has its instances and is connected.
func (c *crowd) served(s *testServer) bool {
	if s.Sessions() < crowdSize {
		return false
	}
	for _, a := range c.agents {
		if len(a.has()) != crowdEach {
			return false
		}
	}
	return true
}

func (c *crowd) await(b *testing.B, s *testServer) time.Duration {
	began := time.Now()
	for !c.served(s) {
		if time.Sleep(10 * time.Millisecond); time.Since(began) > 2*time.Minute {
			b.Fatalf("%d of %d agents are connected after 2 minutes", s.Sessions(), crowdSize)
		}
	}
	return time.Since(began)
}

// used returns the processor time of this process.
func used() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCrowd measures 2,000 agents that connect at once, that idle, and that go over to another server when theirs dies.
// Agents and servers share this process: the figures are of both sides together.
func BenchmarkCrowd(b *testing.B) {
	for range b.N {
		var before, after goruntime.MemStats
		goruntime.GC()
		goruntime.ReadMemStats(&before)
		cpu := used()
		c := newCrowd(b)
		b.ReportMetric(c.await(b, c.server).Seconds(), "s/connect")
		b.ReportMetric((used() - cpu).Seconds(), "cpu-s/connect")

		time.Sleep(2 * time.Second) // for the last reports
		goruntime.GC()
		goruntime.ReadMemStats(&after)
		held := after.HeapAlloc - before.HeapAlloc + after.StackInuse - before.StackInuse
		b.ReportMetric(float64(held)/1024/crowdSize, "KiB/agent")
		b.ReportMetric(float64(goruntime.NumGoroutine())/crowdSize, "goroutines/agent")
		cpu = used()
		time.Sleep(10 * time.Second)
		b.ReportMetric((used()-cpu).Seconds()/10, "cores/idle")

		c.tell(c.servers[1].addr)
		c.server.stop()
		for _, a := range c.agents {
			a.mu.Lock()
			clear(a.runs)
			a.mu.Unlock()
		}
		next := c.lead(1)
		b.ReportMetric(c.await(b, next).Seconds(), "s/failover")
	}
}

// BenchmarkRoutes measures what the endpoint table costs: encoding 10,000 entries of 1,000 apps once for all nodes, what a node does to take
// them in, and what it does for one change.
func BenchmarkRoutes(b *testing.B) {
	all := endpoints.Change{Full: true}
	for n := range 10_000 {
		all.Put = append(all.Put, &endpoints.Entry{
			ID: model.InstanceID(fmt.Sprintf("web%d-k3v9%04d", n%1000, n)), App: model.AppID(fmt.Sprintf("/shop/web%d", n%1000)), Node: "node-k3v9q2xw",
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})},
			Ports: []endpoints.Port{{Name: "http", Port: uint16(20000 + n), Proto: "tcp"}}, Serving: true,
		})
	}
	table := (&endpoints.Table{}).With(all)
	take := func(c endpoints.Change) func() error {
		d := wire.Down{Routes: []*wire.Routes{{Change: c}}}
		out, in := specsToJSON(), specsIn{}
		coded, err := out.encodeDown(&d)
		if err != nil {
			b.Fatal(err)
		}
		return func() error {
			d, err := in.decodeDown(coded)
			if err == nil {
				table.With(d.Routes[0].Change)
			}
			return err
		}
	}
	b.Run("encode all", func(b *testing.B) {
		for b.Loop() {
			b.SetBytes(int64(len(encodeRoutes(&all))))
		}
		b.ReportMetric(float64(len(encodeRoutes(&all)))/10_000, "bytes/each")
	})
	for name, run := range map[string]func() error{"take all": take(all), "take one": take(endpoints.Change{Put: all.Put[:1]})} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
