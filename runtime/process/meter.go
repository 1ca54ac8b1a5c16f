package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// Usage implements runtime.Meter. Without a cgroup it adds up what the task's processes have used that still exist, and
// counts memory that they share once for each.
func (d *Driver) Usage(_ context.Context, id runtime.TaskID) (model.Usage, error) {
	t, err := d.find(id)
	if err != nil {
		return model.Usage{}, fmt.Errorf("measure task: %w", err)
	}
	if t.ended() {
		return model.Usage{}, fmt.Errorf("measure task %s: it has ended: %w", id, runtime.ErrNotFound)
	}
	out := model.Usage{At: time.Now()}
	if g := d.group(id); g != nil {
		u, err := g.Usage()
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("it has just ended: %w", runtime.ErrNotFound)
		}
		if err != nil {
			return model.Usage{}, fmt.Errorf("measure task %s: %w", id, err)
		}
		out.CPUTime, out.Memory, out.Peak = model.Duration(u.CPUTime), u.Memory, u.Peak
		return out, nil
	}
	addTree(&out, t.pid)
	return out, nil
}

// tick is the unit of CPU time in /proc, which is the same on all Linux machines.
const tick = 10 * time.Millisecond

// addTree adds what a process and its descendants use. Those that end meanwhile count for nothing.
func addTree(u *model.Usage, pid int) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return
	}
	cpu, resident := parseStat(stat)
	u.CPUTime += model.Duration(cpu)
	u.Memory += resident
	threads, err := os.ReadDir(dir + "/task")
	if err != nil {
		return
	}
	for _, th := range threads {
		children, err := os.ReadFile(dir + "/task/" + th.Name() + "/children")
		if err != nil {
			continue
		}
		for f := range strings.FieldsSeq(string(children)) {
			if n, err := strconv.Atoi(f); err == nil {
				addTree(u, n)
			}
		}
	}
}

// parseStat reads CPU time, that of children which have ended included, and resident memory out of a stat file.
func parseStat(text []byte) (cpu time.Duration, resident model.Bytes) {
	_, rest, ok := bytes.Cut(text[max(bytes.LastIndexByte(text, ')'), 0):], []byte(" "))
	fields := strings.Fields(string(rest)) // from the third on
	if !ok || len(fields) < 22 {
		return 0, 0
	}
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime
		n, _ := strconv.ParseInt(f, 10, 64)
		cpu += time.Duration(n) * tick
	}
	pages, _ := strconv.ParseInt(fields[21], 10, 64)
	return cpu, model.Bytes(pages) * model.Bytes(os.Getpagesize())
}
