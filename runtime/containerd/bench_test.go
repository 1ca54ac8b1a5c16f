package containerd

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/runtime"
)

// BenchmarkStart measures the start of one container from a present image, side by side with `ctr run -d` and
// containerd's own shim on the same engine. The goal for the ratio of the medians is 1.5 or less.
func BenchmarkStart(b *testing.B) {
	stock := stockTools(b)
	n := newNode(b, func(c *Config) { c.Env = append(c.Env, "PATH="+stock+":"+os.Getenv("PATH")) })
	image := n.busybox(b)
	var ours, theirs []time.Duration
	for i := 0; b.Loop(); i++ {
		task := n.task(b, fmt.Sprintf("bench-%d.main", i), image, "exec sleep 1000")
		begin := time.Now()
		n.launchTask(b, task)
		ours = append(ours, time.Since(begin))
		theirs = append(theirs, n.ctrRun(b, stock, image, fmt.Sprintf("ctr-%d", i)))
		b.StopTimer()
		n.ctrRemove(b, stock, fmt.Sprintf("ctr-%d", i))
		if err := n.Remove(limited(b), task.ID); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(milliseconds(median(ours)), "ms/start")
	b.ReportMetric(milliseconds(median(theirs)), "ms/ctr-run")
	b.ReportMetric(float64(median(ours))/float64(median(theirs)), "ratio")
}

// BenchmarkHelpers measures what the helpers of one container cost at rest, where the goal is 4 MiB or less and no CPU,
// and how long containerd takes to start and adopt twenty of them.
func BenchmarkHelpers(b *testing.B) {
	const count = 20
	n := newNode(b)
	image := n.busybox(b)
	for b.Loop() {
		var tasks []runtime.Task
		for i := range count {
			tasks = append(tasks, n.task(b, fmt.Sprintf("helper-%d.main", i), image, "exec sleep 1000"))
			n.launchTask(b, tasks[i])
		}
		time.Sleep(5 * time.Second) // at rest is what is measured
		before, engine := n.ticks(b, shimName, logName), n.ticks(b, "--config")
		const idle = 10 * time.Second
		time.Sleep(idle)
		b.ReportMetric(float64(n.ticks(b, shimName, logName)-before), "ticks/helpers/10s") // of 10 ms
		b.ReportMetric(float64(n.ticks(b, "--config")-engine), "ticks/containerd/10s")
		for _, name := range []string{shimName, logName} {
			b.ReportMetric(float64(n.pss(b, name))/count, "KiB/"+name)
		}
		b.ReportMetric(float64(n.pss(b, "--config"))/1024, "MiB/containerd")
		n.stop()
		begin := time.Now()
		n.start(b)
		b.ReportMetric(milliseconds(time.Since(begin)), "ms/restart")
		for _, t := range tasks {
			if err := n.Remove(limited(b), t.ID); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
}

// stockTools builds ctr and containerd's own shim.
func stockTools(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	cmd := exec.Command("go", "build", "-o", dir+"/",
		"github.com/containerd/containerd/v2/cmd/ctr", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2")
	cmd.Dir, cmd.Env = moduleRoot(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Skipf("ctr cannot be built: %v\n%s", err, out)
	}
	return dir
}

func (n *node) ctr(b *testing.B, dir string, args ...string) {
	b.Helper()
	cmd := exec.Command(filepath.Join(dir, "ctr"), append([]string{"-a", n.engine.socket(), "-n", namespace}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

func (n *node) ctrRun(b *testing.B, dir, image, id string) time.Duration {
	b.Helper()
	name, err := normalize(image)
	if err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	n.ctr(b, dir, "run", "-d", "--null-io", "--net-host", "--cgroup", "/gantry/"+n.config.Cluster+"/"+id, "--runc-binary", n.tools.runtime, name, id, "sleep", "1000")
	return time.Since(begin)
}

func (n *node) ctrRemove(b *testing.B, dir, id string) {
	b.Helper()
	n.ctr(b, dir, "task", "rm", "--force", id)
	n.ctr(b, dir, "container", "rm", id)
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// pss returns the memory of the node's processes whose command line holds name, in KiB, shared pages divided.
func (n *node) pss(b *testing.B, name string) int {
	b.Helper()
	sum := 0
	for _, dir := range n.helperDirs(b, name) {
		text, err := os.ReadFile(dir + "/smaps_rollup")
		if err != nil {
			b.Fatal(err)
		}
		for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
			if f := strings.Fields(lines.Text()); len(f) > 1 && f[0] == "Pss:" {
				kib, err := strconv.Atoi(f[1])
				if err != nil {
					b.Fatal(err)
				}
				sum += kib
			}
		}
	}
	return sum
}

// ticks returns the CPU time that processes have used, in clock ticks, by a part of their command lines.
func (n *node) ticks(b *testing.B, names ...string) int {
	b.Helper()
	sum := 0
	for _, name := range names {
		for _, dir := range n.helperDirs(b, name) {
			text, err := os.ReadFile(dir + "/stat")
			if err != nil {
				b.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(text), ") ")
			f := strings.Fields(rest)
			user, uerr := strconv.Atoi(f[11])
			sys, serr := strconv.Atoi(f[12])
			if uerr != nil || serr != nil {
				b.Fatal(uerr, serr)
			}
			sum += user + sys
		}
	}
	return sum
}

// helperDirs returns the /proc directories of the node's processes whose command line holds name.
func (n *node) helperDirs(b *testing.B, name string) []string {
	b.Helper()
	var out []string
	for _, p := range n.processes(b) {
		if file, line, _ := strings.Cut(p, ": "); strings.Contains(line, name) {
			out = append(out, filepath.Dir(file))
		}
	}
	return out
}
