package agent

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

const (
	sampleEvery = 2 * time.Second        // while somebody asks
	sampleFirst = 250 * time.Millisecond // interval of the first answer after a pause
	askedFor    = time.Minute            // how long sampling goes on after the last question
	diskEvery   = 30 * time.Second       // how old an instance's disk usage may be
	diskBudget  = 200 * time.Millisecond // time per sample for measuring it
)

// sampler measures what the node and its instances use, but only while somebody asks.
type sampler struct {
	a  *Agent
	mu sync.Mutex // held while sampling

	prev, last *sample // last answers; prev is what CPUs are measured against
	answer     wire.Usage
	asked      time.Time
	running    bool
	disks      map[model.InstanceID]diskUse
}

// sample is one reading of all counters.
type sample struct {
	at        time.Time
	node      model.Usage
	instances map[model.InstanceID]model.Usage
}

type diskUse struct {
	at   time.Time
	used model.Bytes
}

func newSampler(a *Agent) *sampler { return &sampler{a: a, disks: map[model.InstanceID]diskUse{}} }

// Usage implements wire.Node.
func (a *Agent) Usage(ctx context.Context) (wire.Usage, error) {
	s := a.usage
	s.mu.Lock()
	defer s.mu.Unlock()
	now := a.cfg.Now()
	s.asked = now
	if s.last == nil || now.Sub(s.last.at) > 2*sampleEvery {
		if err := s.take(ctx); err != nil {
			return wire.Usage{}, err
		}
		if !sleep(ctx, sampleFirst) {
			return wire.Usage{}, context.Cause(ctx)
		}
		if err := s.take(ctx); err != nil {
			return wire.Usage{}, err
		}
	}
	if !s.running && a.ctx != nil && a.ctx.Err() == nil {
		s.running = true
		a.wg.Go(func() { s.run(a.ctx) })
	}
	out := s.answer
	out.Instances = maps.Clone(out.Instances)
	return out, nil
}

// run samples until nobody has asked for a while.
func (s *sampler) run(ctx context.Context) {
	for sleep(ctx, sampleEvery) {
		s.mu.Lock()
		if s.a.cfg.Now().Sub(s.asked) > askedFor {
			s.running, s.prev, s.last = false, nil, nil
			s.mu.Unlock()
			return
		}
		if err := s.take(ctx); err != nil && ctx.Err() == nil {
			s.last = nil // the next question measures anew and gets the error
		}
		s.mu.Unlock()
	}
}

// take reads all counters and works out the answer. It needs s.mu.
func (s *sampler) take(ctx context.Context) error {
	node, err := nodeUsage(s.a.cfg.Dir)
	if err != nil {
		return err
	}
	next := &sample{at: s.a.cfg.Now(), node: node, instances: map[model.InstanceID]model.Usage{}}
	next.node.At = next.at
	pumps := s.a.all()
	for _, p := range pumps {
		if p.phase() == model.PhaseRunning || p.phase() == model.PhaseStopping {
			u := p.usage(ctx)
			u.At = next.at
			next.instances[p.id] = u
		}
	}
	s.measureDisks(pumps, next)
	s.prev, s.last = s.last, next
	s.answer = rates(s.prev, next)
	return context.Cause(ctx)
}

// rates returns next with CPUs as consumed since prev.
func rates(prev, next *sample) wire.Usage {
	out := wire.Usage{Node: next.node, Instances: maps.Clone(next.instances)}
	if prev == nil || !next.at.After(prev.at) {
		return out
	}
	out.Interval = next.at.Sub(prev.at)
	out.Node.CPUs = cores(prev.node, next.node, out.Interval)
	for id, u := range out.Instances {
		if old, ok := prev.instances[id]; ok {
			u.CPUs = cores(old, u, out.Interval)
			out.Instances[id] = u
		}
	}
	return out
}

func cores(old, now model.Usage, over time.Duration) float64 {
	return max(0, float64(now.CPUTime-old.CPUTime)/float64(over)) // less after a restart
}

// usage sums up the running tasks of an instance. A task that cannot be read, as it just ended, counts as nothing.
func (p *pump) usage(ctx context.Context) model.Usage {
	var sum model.Usage
	for _, name := range running(p.status().Tasks) {
		c := p.container(name)
		if c == nil {
			continue
		}
		d, err := p.a.driver(c)
		if err != nil {
			continue
		}
		m, ok := d.(runtime.Meter)
		if !ok {
			continue
		}
		if u, err := m.Usage(ctx, runtime.ID(p.id, name)); err == nil {
			sum.CPUTime += u.CPUTime
			sum.Memory += u.Memory
			sum.Peak += u.Peak
		}
	}
	return sum
}

// measureDisks fills in the disk usage of instances, measured anew where it is old, for as long as the budget lasts. A
// tree that costs more than the budget is measured to its end once begun.
func (s *sampler) measureDisks(pumps []*pump, next *sample) {
	begin := time.Now()
	disks := map[model.InstanceID]diskUse{}
	for _, p := range pumps {
		u, ok := next.instances[p.id]
		if !ok {
			continue
		}
		d, known := s.disks[p.id]
		if (!known || next.at.Sub(d.at) > diskEvery) && time.Since(begin) < diskBudget {
			d = diskUse{next.at, treeSize(s.a.store.path(p.id))}
			known = true
		}
		if known {
			disks[p.id] = d
		}
		u.Disk = d.used
		next.instances[p.id] = u
	}
	s.disks = disks
}

// treeSize returns what the files below dir take on disk. Files that vanish meanwhile count as nothing.
func treeSize(dir string) model.Bytes {
	var sum int64
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += st.Blocks * 512
			}
		}
		return nil
	})
	return model.Bytes(sum)
}

// nodeUsage reads what the whole machine uses, and how full the file system of dir is.
func nodeUsage(dir string) (model.Usage, error) {
	var u model.Usage
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, fmt.Errorf("read cpu usage: %w", err)
	}
	u.CPUTime = parseCPUTime(stat)
	mem, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return u, fmt.Errorf("read memory usage: %w", err)
	}
	u.Memory = memInfo(mem, "MemTotal") - memInfo(mem, "MemAvailable")
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return u, fmt.Errorf("read disk usage: %w", err)
	}
	u.Disk = model.Bytes((st.Blocks - st.Bfree) * uint64(st.Bsize))
	return u, nil
}

// parseCPUTime returns the busy time of all cores from /proc/stat, which counts in hundredths of a second. Guests' time is
// part of user time already.
func parseCPUTime(stat []byte) model.Duration {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	var ticks int64
	for i, f := range strings.Fields(string(line)) {
		const idle, iowait, guest = 4, 5, 9
		if i == 0 || i == idle || i == iowait || i >= guest {
			continue
		}
		n, err := strconv.ParseInt(f, 10, 64)
		if err == nil {
			ticks += n
		}
	}
	return model.Duration(ticks) * model.Duration(10*time.Millisecond)
}

// memInfo returns one value of /proc/meminfo.
func memInfo(b []byte, key string) model.Bytes {
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest + " 0")[0], 10, 64)
			if err == nil {
				return model.Bytes(n) * model.KiB
			}
		}
	}
	return 0
}
