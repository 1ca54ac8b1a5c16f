package scale

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// Row is one figure.
type Row struct {
	Name string
	Unit string
	Goal float64
	Run  func(*Bench, context.Context) (float64, error)
}

// Rows is everything that is measured, in this order: the engine alone, then the whole control plane.
var Rows = []Row{
	{"pack_one_app", "placements/s", 1_000_000, (*Bench).packOneApp},
	{"pack_1000_apps", "placements/s", 300_000, (*Bench).packThousandApps},
	{"spread", "placements/s", 300_000, (*Bench).spread},
	{"affinity", "placements/s", 200_000, (*Bench).affinity},
	{"all_different", "placements/s", 50_000, (*Bench).allDifferent},
	{"one_more_p99", "µs", 200, (*Bench).oneMore},
	{"engine_memory", "MiB", 600, (*Bench).memory},
	{"allocated", "bytes", 500, (*Bench).allocated},
	{"e2e_10k", "s", 3, (*Bench).tenThousand},
	{"e2e_100k", "s", 20, (*Bench).hundredThousand},
	{"etcd_bytes", "bytes", 400, (*Bench).bytes},
	{"churn", "replaced/s", 5000, (*Bench).churn},
	{"churn_api_p99", "ms", 50, (*Bench).p99},
}

// Bench measures rows. Those after e2e_100k use its cluster.
type Bench struct {
	Dir    string  // for the stores; must be on a real disk
	Shrink int     // divides all sizes; 1 for the real ones
	Rate   float64 // instances that end each second during churn
	Churn  time.Duration
	Logger *slog.Logger
	Note   func(format string, args ...any) // says more about a figure

	large  *Cluster
	census *Census
	filled time.Duration // how long the large cluster took to fill
	api    *probe
}

// Close ends what rows left running.
func (b *Bench) Close() error {
	if b.large == nil {
		return nil
	}
	b.census.Close()
	return b.large.Close()
}

// nodeSize holds 32 instances of AppSpec.
var nodeSize = model.Resources{CPUs: 16_000, Memory: 64 * model.GiB, Disk: model.TiB}

// AppSpec is a service of the usual form.
func AppSpec(id model.AppID, instances int) *model.Spec {
	return &model.Spec{
		ID: id, Instances: &instances,
		Containers: []model.Container{{
			Image: "registry.example/shop/web:1.4.2", CPUs: 500, Memory: 2 * model.GiB,
			Env: map[string]string{"LOG_LEVEL": "info", "REGION": "eu"},
		}},
		Endpoints: []model.Endpoint{{Name: "http"}},
		Labels:    map[string]string{"team": "shop"},
	}
}

func (b *Bench) start(ctx context.Context, nodes int) (*Cluster, error) {
	dir, err := os.MkdirTemp(b.Dir, "scale-")
	if err != nil {
		return nil, err
	}
	return Start(ctx, Config{Dir: dir, Nodes: nodes, Size: nodeSize, Logger: b.Logger})
}

// tenThousand scales one app to 10,000 instances on 1,000 nodes: seconds from the request until all run.
func (b *Bench) tenThousand(ctx context.Context) (_ float64, err error) {
	c, err := b.start(ctx, 1000/b.Shrink)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close(), errors.Join(c.Faults()...)) }()
	census := NewCensus(c.Store.DB)
	defer census.Close()
	if _, err := c.Client.CreateApp(ctx, AppSpec("/web", 0)); err != nil {
		return 0, err
	}
	begin := time.Now()
	if _, err := c.Client.ScaleApp(ctx, "/web", 10_000/b.Shrink); err != nil {
		return 0, err
	}
	if err := census.Await(ctx, 10_000/b.Shrink); err != nil {
		return 0, err
	}
	return time.Since(begin).Seconds(), nil
}

// hundredThousand creates 100 apps of 1,000 on 5,000 nodes: seconds from the first request until all run.
func (b *Bench) hundredThousand(ctx context.Context) (float64, error) {
	if b.large != nil {
		return b.filled.Seconds(), nil
	}
	c, err := b.start(ctx, 5000/b.Shrink)
	if err != nil {
		return 0, err
	}
	b.large, b.census = c, NewCensus(c.Store.DB)
	begin := time.Now()
	for n := range largeApps {
		if _, err := c.Client.CreateApp(ctx, AppSpec(largeApp(n), 1000/b.Shrink)); err != nil {
			return 0, err
		}
	}
	if err := b.census.Await(ctx, largeApps*1000/b.Shrink); err != nil {
		return 0, err
	}
	b.filled = time.Since(begin)
	return b.filled.Seconds(), errors.Join(c.Faults()...)
}

const largeApps = 100

func largeApp(n int) model.AppID { return model.AppID(fmt.Sprintf("/shop/service-%02d", n%largeApps)) }

// bytes is what one instance record takes in etcd, key and value.
func (b *Bench) bytes(ctx context.Context) (float64, error) {
	if _, err := b.hundredThousand(ctx); err != nil {
		return 0, err
	}
	n, size, err := b.large.Store.Stored(ctx, state.KindInstance)
	if err != nil {
		return 0, err
	}
	file := b.large.Store.FileSize()
	b.Note("%d instance records; the database file, with history and free pages, has %d bytes for each", n, file/int64(max(n, 1)))
	return float64(size) / float64(max(n, 1)), nil
}

// churn has instances end by themselves at Rate: how many were replaced each second, once that has gone on for a while.
// Beside it a probe asks the API.
func (b *Bench) churn(ctx context.Context) (float64, error) {
	if _, err := b.hundredThousand(ctx); err != nil {
		return 0, err
	}
	want := len(b.census.Running)
	rate := cmp.Or(b.Rate, 5250) / float64(b.Shrink)
	ctx, cancel := context.WithCancel(ctx)
	reaped := make(chan int, 1)
	go func() { reaped <- b.reap(ctx, rate) }()
	b.api = newProbe(b.large)
	defer func() { cancel(); b.Note("%d instances ended", <-reaped); b.api.wait() }()

	if err := b.follow(ctx, oldEnough+b.Churn/3); err != nil { // until there is an even flow
		return 0, err
	}
	go b.api.run(ctx)
	begin, before := time.Now(), b.census.Started
	if err := b.follow(ctx, b.Churn); err != nil {
		return 0, err
	}
	took, replaced := time.Since(begin), b.census.Started-before
	b.Note("%.1f%% of the instances ran at the end; offered %.0f ends/s, %d replaced since the fill", 100*float64(len(b.census.Running))/float64(want), rate, b.census.Started-want)
	return float64(replaced) * float64(b.Shrink) / took.Seconds(), errors.Join(b.large.Faults()...)
}

// follow takes in changes for a while.
func (b *Bench) follow(ctx context.Context, d time.Duration) error {
	until, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for {
		if err := b.census.Next(until); err != nil {
			return ctx.Err()
		}
	}
}

// oldEnough is how long an instance has to run before it ends. One that is lost sooner is replaced with a delay.
const oldEnough = 11 * time.Second

// reap ends instances, one node after another, until ctx ends, and returns how many.
func (b *Bench) reap(ctx context.Context, rate float64) int {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	owed, ended, at, last := 0.0, 0, 0, time.Now()
	for {
		select {
		case <-ctx.Done():
			return ended
		case now := <-tick.C:
			owed += now.Sub(last).Seconds() * rate
			last = now
			for tries := 0; owed >= 1; at++ {
				if b.large.Nodes[at%len(b.large.Nodes)].End(oldEnough, now) {
					ended, owed, tries = ended+1, owed-1, 0
				} else if tries++; tries == len(b.large.Nodes) {
					owed = 0 // none is old enough: what is missed is not caught up with
				}
			}
		}
	}
}

// p99 is what the probe of churn found.
func (b *Bench) p99(ctx context.Context) (float64, error) {
	if b.api == nil {
		return 0, errors.New("measure churn, too")
	}
	return b.api.report(b.Note)
}
