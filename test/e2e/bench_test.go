package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/test/images"
)

// The benchmarks measure what docs/benchmarks.md lists, on the built binary. Each prints its figures as metrics and
// says what its goal is; none fails for being slow. Run them by `make bench`.

// report prints the median and the 99th percentile of what was measured.
func report(b *testing.B, what, goal string, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	ms := func(p float64) float64 {
		return float64(took[min(len(took)-1, int(p*float64(len(took))))]) / float64(time.Millisecond)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ms(0.5), "p50-ms")
	b.ReportMetric(ms(0.99), "p99-ms")
	b.Logf("%s: p50 %.0f ms, p99 %.0f ms over %d; goal %s", what, ms(0.5), ms(0.99), len(took), goal)
}

// BenchmarkStart is the time from executing gantry up to its ready line.
func BenchmarkStart(b *testing.B) {
	b.Run("first", func(b *testing.B) {
		var took []time.Duration
		for range 5 {
			begin := time.Now()
			c := start(b)
			took = append(took, time.Since(begin))
			c.down()
		}
		report(b, "first start to ready", "2500 ms", took)
	})
	b.Run("warm", func(b *testing.B) {
		c := start(b)
		var took []time.Duration
		for range 10 {
			c.down()
			begin := time.Now()
			c.up()
			took = append(took, time.Since(begin))
		}
		report(b, "warm start to ready", "1000 ms", took)
	})
}

// BenchmarkIdle is what all processes of an idle Gantry take.
func BenchmarkIdle(b *testing.B) {
	c := start(b)
	time.Sleep(10 * time.Second) // until start-up work is done
	const window = 30 * time.Second
	before := cpuTime(b, c)
	time.Sleep(window)
	used := cpuTime(b, c) - before
	rss := 0.0
	for pid := range c.processes() {
		rss += status(b, pid, "VmRSS:")
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(100*float64(used)/float64(window), "%core")
	b.ReportMetric(rss/1024, "MiB")
	b.Logf("idle: %.2f%% of a core, %.0f MiB resident in %d processes; goals 1%% and 200 MiB", 100*float64(used)/float64(window), rss/1024, len(c.processes()))
}

func cpuTime(b *testing.B, c *cluster) time.Duration {
	b.Helper()
	var ticks int
	for pid := range c.processes() {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
		for _, f := range fields[11:13] { // utime and stime
			n, err := strconv.Atoi(f)
			if err != nil {
				b.Fatal(err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// status returns a figure of /proc/PID/status in KiB.
func status(b *testing.B, pid int, field string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0 // it has ended
	}
	return sumFields(b, string(text), field)
}

func sumFields(b *testing.B, text, field string) (sum float64) {
	b.Helper()
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			n, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

// BenchmarkInstance is the time from sending a request to the instance being RUNNING in the event stream.
func BenchmarkInstance(b *testing.B) {
	needRoot(b)
	b.Run("program", func(b *testing.B) {
		c := start(b)
		took := c.timeInstances(50, func(n int) *model.Spec { return small(model.AppID(fmt.Sprintf("/s%d", n))) })
		report(b, "request to RUNNING, image-less", "p50 100 ms, p99 300 ms", took)
	})
	b.Run("image", func(b *testing.B) {
		c := start(b)
		image := pushed(b, "busybox", images.Busybox(b))
		spec := func(n int) *model.Spec {
			s := small(model.AppID(fmt.Sprintf("/i%d", n)))
			s.Containers[0].Image = image
			return s
		}
		c.deploy(spec(1000)) // pulls the image
		took := c.timeInstances(20, spec)
		report(b, "request to RUNNING, image present", "1.5 times ctr run, or the bare runtime plus 60 ms", took)
	})
}

// small is an app of one sleeping program that reserves little.
func small(id model.AppID) *model.Spec {
	return &model.Spec{ID: id, Containers: []model.Container{{
		Command: []string{"sleep", "100000"}, CPUs: 10, Memory: 8 * model.MiB,
	}}}
}

// timeInstances deploys specs one after another and returns how long each took to RUNNING.
func (c *cluster) timeInstances(n int, spec func(int) *model.Spec) []time.Duration {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	running := make(chan model.AppID, 1024)
	go func() {
		_ = c.FollowEvents(ctx, client.EventFilter{}, func(e model.Event) error {
			if e.Type == "instance.running" {
				running <- e.App
			}
			return nil
		})
	}()
	var took []time.Duration
	for i := range n + 1 {
		s := spec(i)
		begin := time.Now()
		if _, err := c.PutApp(testContext(c.t), s); err != nil {
			c.t.Fatal(err)
		}
		for id := range running {
			if id == s.ID {
				break
			}
		}
		if i > 0 { // the first opens the stream
			took = append(took, time.Since(begin))
		}
	}
	return took
}

// BenchmarkMany is the time from one request for many image-less instances to all RUNNING, while the API is asked
// all the time, and what their helpers cost.
func BenchmarkMany(b *testing.B) {
	needRoot(b)
	for _, n := range []int{200, 1000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			c := start(b, "--node-cpus", "16") // the instances reserve 0.01 cores each and use none
			spec := small("/many")
			spec.Instances = ptr(n)
			var asked atomic.Bool
			var calls []time.Duration
			polled := make(chan struct{})
			go func() {
				defer close(polled)
				for !asked.Load() {
					begin := time.Now()
					if _, err := c.Apps(context.Background()); err != nil {
						return
					}
					calls = append(calls, time.Since(begin))
					time.Sleep(10 * time.Millisecond)
				}
			}()
			begin := time.Now()
			if _, err := c.PutApp(testContext(b), spec); err != nil {
				b.Fatal(err)
			}
			for {
				app, err := c.Apps(testContext(b))
				if err != nil {
					b.Fatal(err)
				}
				if app[0].Running == n {
					break
				}
				if time.Since(begin) > 5*time.Minute {
					b.Fatalf("%d of %d run after 5 minutes: %s", app[0].Running, n, app[0].Why)
				}
				time.Sleep(50 * time.Millisecond)
			}
			took := time.Since(begin)
			asked.Store(true)
			<-polled
			slices.Sort(calls)
			p99 := calls[len(calls)*99/100]
			pss := helperPSS(b) / float64(n) / 1024
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(took.Seconds(), "s")
			b.ReportMetric(float64(p99)/1e6, "api-p99-ms")
			b.ReportMetric(pss, "MiB-PSS/instance")
			b.Logf("%d instances RUNNING after %.1f s, API p99 %v, helpers %.2f MiB PSS per instance; goals: 200 in 10 s, 1,000 in 60 s, 100 ms, 4 MiB",
				n, took.Seconds(), p99.Round(time.Millisecond), pss)
		})
	}
}

// helperPSS returns the proportional set size of all shims, in KiB.
func helperPSS(b *testing.B) (sum float64) {
	b.Helper()
	out, err := exec.Command("pgrep", "gantry-shim").Output()
	if err != nil {
		b.Fatal("no shims run")
	}
	for _, pid := range strings.Fields(string(out)) {
		text, err := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
		if err != nil {
			continue
		}
		sum += sumFields(b, string(text), "Pss:")
	}
	return sum
}
