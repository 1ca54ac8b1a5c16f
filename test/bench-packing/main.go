// Command bench-packing measures how well each policy packs recorded clusters: it overloads the cluster with each
// workload, once per seed, and prints a line for each workload and policy; then the same as if there were no devices.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gantry-os/gantry/scheduler/replay"
)

func main() {
	nodes := flag.String("nodes", "", "`file` with the nodes")
	pods := flag.String("pods", "", "`files` with the workloads, parted by spaces or commas")
	seeds := flag.Int("seeds", 10, "how often each is run, with seeds from 0 on")
	policies := flag.String("policies", strings.Join(replay.Policies(), ","), "which to run, parted by commas")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	b := bench{out: os.Stdout, seeds: *seeds, policies: words(*policies)}
	if err := b.run(ctx, *nodes, words(*pods)); err != nil {
		fmt.Fprintln(os.Stderr, "bench-packing:", err)
		os.Exit(1)
	}
}

// words parts a list at spaces and commas.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' })
}

// bench is what to measure.
type bench struct {
	out      io.Writer
	seeds    int
	policies []string
}

func (b *bench) run(ctx context.Context, nodes string, pods []string) error {
	if nodes == "" || len(pods) == 0 || b.seeds < 1 {
		return errors.New("say which cluster and which workloads: NODES=nodes.csv PODS='pods.csv ...' [SEEDS=10]")
	}
	for _, file := range pods {
		cluster, list, err := replay.Load(nodes, file)
		if err != nil {
			return err
		}
		name, _, _ := strings.Cut(filepath.Base(file), ".")
		if cluster.ByGPU() {
			if err := b.list(ctx, "packing/"+name, cluster, list); err != nil {
				return err
			}
			cluster, list = cluster.WithoutGPUs(list)
		}
		if err := b.list(ctx, "packing-cpu-memory/"+name, cluster, list); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) list(ctx context.Context, name string, c *replay.Cluster, pods []replay.Pod) error {
	for _, p := range b.policies {
		m, err := b.measure(ctx, p, c, pods)
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s/%s", name, p)
		if c.ByGPU() {
			line += fmt.Sprintf(" %.2f %% %.1f gpus unallocated", m.gpu, float64(c.GPUs())*(1-m.gpu/100))
		}
		fmt.Fprintf(b.out, "%s %.2f %% cpu %.2f %% memory %.0f placements/s\n", line, m.cpu, m.memory, m.rate)
	}
	return nil
}

// means are over the seeds.
type means struct {
	gpu, cpu, memory float64 // percent allocated at the end
	rate             float64 // pods placed or refused in a second of processor time
}

func (b *bench) measure(ctx context.Context, name string, c *replay.Cluster, pods []replay.Pod) (means, error) {
	var mu sync.Mutex
	var sum means
	var asked int
	var failed error
	start := processorTime()
	one := func(seed uint64) {
		r, err := replay.Simulate(ctx, name, c, pods, replay.Options{Seed: seed})
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = err
			return
		}
		last := r.Last()
		sum.gpu, sum.cpu, sum.memory = sum.gpu+last.GPU, sum.cpu+last.CPU, sum.memory+last.Memory
		asked += r.Asked
	}
	var all sync.WaitGroup
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for seed := range b.seeds {
		slots <- struct{}{}
		all.Go(func() {
			one(uint64(seed))
			<-slots
		})
	}
	all.Wait()
	n := float64(b.seeds)
	took := max(processorTime()-start, time.Millisecond)
	return means{sum.gpu / n, sum.cpu / n, sum.memory / n, float64(asked) / took.Seconds()}, failed
}

// processorTime returns what this process has used: unlike time on the clock it does not count what others use.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
