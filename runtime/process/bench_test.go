package process_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// BenchmarkStart starts sleeping tasks, eight at a time, and keeps them all running. Beside the time it reports the CPU time
// of a start, that of this process, the shim and the program until it runs together, and the memory of a shim.
func BenchmarkStart(b *testing.B) {
	for _, isolate := range []bool{true, false} {
		b.Run(fmt.Sprintf("isolated=%v", isolate), func(b *testing.B) { benchStart(b, isolate) })
	}
}

func benchStart(b *testing.B, isolate bool) {
	d := open(b, b.TempDir(), isolate)
	dir := b.TempDir()
	tasks := make([]runtime.Task, b.N)
	for i := range tasks {
		tasks[i] = runtime.Task{
			ID: runtime.TaskID(fmt.Sprintf("bench-%d.main", i)), Attempt: 1, Command: []string{"/bin/sleep", "100000"},
			CPUs: 100, Memory: 64 * model.MiB, Sandbox: dir, Logs: runtime.LogFiles{Dir: dir, Size: model.MiB, Keep: 1},
		}
	}
	states := make([]runtime.State, b.N)
	before := ownCPU(b)
	b.ResetTimer()
	each(b, len(tasks), func(i int) (err error) {
		states[i], err = d.Start(b.Context(), tasks[i])
		return err
	})
	b.StopTimer()
	cpu := ownCPU(b) - before
	var pss int64
	for _, s := range states {
		shim := parent(b, s.PID)
		cpu += schedCPU(b, s.PID) + schedCPU(b, shim)
		pss += shimPSS(b, shim)
	}
	idle := idleCPU(b, states)
	b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(pss)/1024/float64(b.N), "shim-PSS-KiB")
	b.ReportMetric(float64(idle.Microseconds())/float64(b.N), "shim-idle-µs/s")
	each(b, len(tasks), func(i int) error { return d.Remove(b.Context(), tasks[i].ID) })
}

// each calls f for 0 to n-1, eight at once.
func each(b *testing.B, n int, f func(i int) error) {
	b.Helper()
	work := make(chan int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range work {
				if err := f(i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
}

// idleCPU returns the CPU time that all shims together take within a second.
func idleCPU(b *testing.B, states []runtime.State) time.Duration {
	sum := func() (t time.Duration) {
		for _, s := range states {
			t += schedCPU(b, parent(b, s.PID))
		}
		return t
	}
	before := sum()
	time.Sleep(time.Second)
	return sum() - before
}

func ownCPU(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func schedCPU(b *testing.B, pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		b.Fatal(err)
	}
	n, _ := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
	return time.Duration(n)
}

func parent(tb testing.TB, pid int) int {
	tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	n, _ := strconv.Atoi(strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))[1])
	return n
}

func shimPSS(tb testing.TB, pid int) int64 {
	tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n * 1024
		}
	}
	tb.Fatalf("no Pss in %q", text)
	return 0
}
