package cluster

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// BenchmarkLeaderLost is how long writes at the servers that are left wait when the leader is killed or paused: those that were
// under way, and new ones. GANTRY_KILLS=n has it lost n times, by default 20.
func BenchmarkLeaderLost(b *testing.B) {
	b.Run("killed", func(b *testing.B) { leaderLost(b, "3 s", syscall.SIGKILL) })
	b.Run("paused", func(b *testing.B) { leaderLost(b, "5 s", syscall.SIGSTOP) })
}

func leaderLost(b *testing.B, goal string, by syscall.Signal) {
	rounds := 20
	if n, err := strconv.Atoi(os.Getenv("GANTRY_KILLS")); err == nil {
		rounds = n
	}
	r := newRig(b)
	names := []string{"s1", "s2", "s3"}
	r.server("s1")
	token := r.token("s1", model.ServerMachine, 2)
	for _, name := range names[1:] {
		r.server(name, "--join", r.addr("s1"), "--token", token)
	}
	var again, slowest []time.Duration
	failed := 0
	for range rounds {
		var lead string
		r.eventually("all servers follow one", func() bool {
			c, err := r.client("s1").Cluster(b.Context())
			if err != nil || c.Why != "" {
				return false
			}
			lead = c.Leader
			return true
		})
		h := &history{}
		ctx, stop := context.WithCancel(b.Context())
		var wg sync.WaitGroup
		for _, name := range names {
			if name != lead {
				c := r.client(name)
				for n := range 3 {
					wg.Go(func() { h.write(ctx, c, model.RoleID(fmt.Sprintf("/%s-%d", name, n))) })
				}
			}
		}
		r.eventually("writes are under way", func() bool { return h.since(time.Time{}) >= 30 })
		lost := time.Now()
		if by == syscall.SIGKILL {
			r.stop(lead, by)
		} else if err := r.procs[lead].Process.Signal(by); err != nil {
			b.Fatal(err)
		}
		r.eventually("writes are taken again", func() bool { return h.since(lost) >= 30 })
		stop()
		wg.Wait()
		first, worst, errs := h.after(lost)
		again, slowest, failed = append(again, first), append(slowest, worst), failed+errs
		if by == syscall.SIGKILL {
			r.server(lead)
		} else if err := r.procs[lead].Process.Signal(syscall.SIGCONT); err != nil {
			b.Fatal(err)
		}
	}
	report(b, "new writes", goal, again)
	report(b, "slowest", goal, slowest)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(failed), "failed")
	if failed > 0 {
		b.Errorf("%d writes at servers that live were not acknowledged", failed)
	}
}

func report(b *testing.B, what, goal string, took []time.Duration) {
	slices.Sort(took)
	p99 := took[min(len(took)-1, len(took)*99/100)]
	b.ReportMetric(p99.Seconds()*1000, map[string]string{"new writes": "new-p99-ms", "slowest": "any-p99-ms"}[what])
	b.Logf("%s: median %v, p99 %v over %d; goal %s", what, took[len(took)/2].Round(time.Millisecond), p99.Round(time.Millisecond), len(took), goal)
}

// history is what writers saw.
type history struct {
	mu    sync.Mutex
	calls []call
}

type call struct {
	begin, end time.Time
	err        error
}

// write writes a role until ctx ends, each time with another weight.
func (h *history) write(ctx context.Context, c *client.Client, id model.RoleID) {
	for weight := 1.0; ctx.Err() == nil; weight++ {
		begin := time.Now()
		got, err := c.PutRole(context.WithoutCancel(ctx), &model.Role{ID: id, Weight: weight})
		if err == nil && got.Weight != weight {
			err = fmt.Errorf("%s has weight %v and not %v", id, got.Weight, weight)
		}
		h.mu.Lock()
		h.calls = append(h.calls, call{begin, time.Now(), err})
		h.mu.Unlock()
	}
}

// since returns how many writes were acknowledged that began after a moment.
func (h *history) since(t time.Time) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.calls {
		if c.err == nil && c.begin.After(t) {
			n++
		}
	}
	return n
}

// after returns how long after lost the first write was acknowledged that began then, how long the slowest of all took that
// ended then, and how many of them failed.
func (h *history) after(lost time.Time) (first, slowest time.Duration, failed int) {
	for _, c := range h.calls {
		if c.end.Before(lost) {
			continue
		}
		slowest = max(slowest, c.end.Sub(c.begin))
		if c.err != nil {
			failed++
		} else if d := c.end.Sub(lost); c.begin.After(lost) && (first == 0 || d < first) {
			first = d
		}
	}
	return first, slowest, failed
}
