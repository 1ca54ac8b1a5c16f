package cgroup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/model"
)

// Usage is what a group has used and uses.
type Usage struct {
	CPUTime time.Duration // since the group was created
	Memory  model.Bytes   // working set: all that counts against the limit, less file cache not used lately
	Peak    model.Bytes   // most memory, cache included, 0 where the kernel does not tell
}

// Usage reads what the group uses. It returns an error that is fs.ErrNotExist when the group does not exist.
func (g *Group) Usage() (Usage, error) {
	var u Usage
	cpuTime, err := g.cpuTime()
	if err != nil {
		return u, fmt.Errorf("read cgroup: %w", err)
	}
	u.CPUTime = cpuTime
	hierarchy, current, inactive := memory, "memory.usage_in_bytes", "total_inactive_file"
	if g.tree.version == 2 {
		hierarchy, current, inactive = unified, "memory.current", "inactive_file"
	}
	used, err := g.number(hierarchy, memory, current)
	if err != nil {
		return u, fmt.Errorf("read cgroup: %w", err)
	}
	idle, err := g.field(hierarchy, memory, "memory.stat", inactive)
	if err != nil {
		return u, fmt.Errorf("read cgroup: %w", err)
	}
	u.Memory = model.Bytes(max(used-idle, 0))
	u.Peak, err = g.Peak()
	return u, err
}

func (g *Group) cpuTime() (time.Duration, error) {
	if g.tree.version == 2 {
		us, err := g.field(unified, unified, "cpu.stat", "usage_usec")
		return time.Duration(us) * time.Microsecond, err
	}
	ns, err := g.number(cpuacct, cpuacct, "cpuacct.usage")
	return time.Duration(ns), err
}

// Peak returns the most memory that the group has used, 0 where the kernel does not tell.
func (g *Group) Peak() (model.Bytes, error) {
	hierarchy, file := g.peakFile()
	n, err := g.number(hierarchy, memory, file)
	if err = ignoreMissing(err); err != nil {
		return 0, fmt.Errorf("read cgroup: %w", err)
	}
	return model.Bytes(n), nil
}

// OOMKills returns how many of the group's processes the kernel ended because the group was at its memory limit.
// It returns 0 for a group that does not exist.
func (g *Group) OOMKills() (uint64, error) {
	hierarchy, file := g.oomFile()
	n, err := g.field(hierarchy, memory, file, "oom_kill")
	if err = ignoreMissing(err); err != nil {
		return 0, fmt.Errorf("read cgroup: %w", err)
	}
	return uint64(n), nil
}

func (g *Group) peakFile() (hierarchy, file string) {
	if g.tree.version == 2 {
		return unified, "memory.peak"
	}
	return memory, "memory.max_usage_in_bytes"
}

func (g *Group) oomFile() (hierarchy, file string) {
	if g.tree.version == 2 {
		return unified, "memory.events"
	}
	return memory, "memory.oom_control"
}

// MemoryFiles returns the paths of the file that has a line "oom_kill N" and of the one that holds the peak in bytes, for
// readers outside this process. They are empty without a memory controller.
func (g *Group) MemoryFiles() (oom, peak string) {
	if slices.Contains(g.tree.missing, memory) {
		return "", ""
	}
	h, o := g.oomFile()
	_, p := g.peakFile()
	return filepath.Join(g.dirs[h], o), filepath.Join(g.dirs[h], p)
}

// PIDs returns the group's processes.
func (g *Group) PIDs() ([]int, error) {
	var all []int
	for _, d := range g.directories() {
		pids, err := pidsIn(d)
		if err != nil {
			return nil, fmt.Errorf("read cgroup: %w", err)
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func pidsIn(dir string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err = ignoreMissing(err); err != nil && !errors.Is(err, unix.ENODEV) {
		return nil, err
	}
	var pids []int
	for f := range strings.FieldsSeq(string(text)) {
		if n, err := strconv.Atoi(f); err == nil && n > 0 { // 0 stands for a process of a pid namespace above
			pids = append(pids, n)
		}
	}
	return pids, nil
}

// Kill ends every process in the group and the groups below it by SIGKILL, and returns once they are gone or ctx ends.
func (g *Group) Kill(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		left, err := g.killOnce()
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", g.path, err)
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill cgroup %s: %d processes are left: %w", g.path, left, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// killOnce sends SIGKILL to all processes that it finds and returns their number.
func (g *Group) killOnce() (int, error) {
	found := 0
	for _, top := range g.directories() {
		dirs, err := subtree(top)
		if err != nil {
			return 0, err
		}
		if g.tree.version == 2 {
			err = ignoreMissing(write(top, "cgroup.kill", "1")) // since Linux 5.14
		}
		for _, d := range dirs {
			n, kerr := killIn(d)
			found += n
			err = errors.Join(err, kerr)
		}
		if err != nil {
			return 0, err
		}
	}
	return found, nil
}

// killIn kills the processes of one directory. It holds on to each by a pidfd and looks again whether it belongs to the
// group before it kills it, so that a process that got the number of one that just ended is safe.
func killIn(dir string) (int, error) {
	pids, err := pidsIn(dir)
	if err != nil || len(pids) == 0 {
		return 0, err
	}
	fds := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds[pid] = fd
		}
	}
	still, err := pidsIn(dir)
	if err != nil {
		return 0, err
	}
	for _, pid := range still {
		if fd, ok := fds[pid]; ok {
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return 0, fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
	}
	return len(still), nil
}

// Remove deletes the group and those below it, in every hierarchy. Processes must have ended; it waits a while for the kernel to let go of
// them. Removing what does not exist is no error.
func (g *Group) Remove(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := g.removeOnce()
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(wait):
		}
	}
}

func (g *Group) removeOnce() error {
	for _, top := range g.everywhere() {
		dirs, err := subtree(top)
		if err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
		for _, d := range slices.Backward(dirs) {
			if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove cgroup %s: %w", d, err)
			}
		}
	}
	return nil
}

// subtree returns dir and the directories below it, parents first; none when dir does not exist.
func subtree(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir():
			out = append(out, path)
		}
		return nil
	})
	return out, err
}

// Groups returns the names of the groups directly below this one in any hierarchy.
func (g *Group) Groups() ([]string, error) {
	var names []string
	for _, d := range g.everywhere() {
		entries, err := os.ReadDir(d)
		if err = ignoreMissing(err); err != nil {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// number reads a file that holds one number; without the controller it is 0.
func (g *Group) number(hierarchy, controller, file string) (int64, error) {
	text, err := g.read(hierarchy, controller, file)
	if err != nil || text == nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return int64(n), nil
}

// field reads the value of one line "name value" of a file; without the line or the controller it is 0.
func (g *Group) field(hierarchy, controller, file, name string) (int64, error) {
	text, err := g.read(hierarchy, controller, file)
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 63)
			if err != nil {
				return 0, fmt.Errorf("%s: %s: %w", file, name, err)
			}
			return int64(n), nil
		}
	}
	return 0, lines.Err()
}

func (g *Group) read(hierarchy, controller, file string) ([]byte, error) {
	dir, ok := g.dirs[hierarchy]
	if !ok || slices.Contains(g.tree.missing, controller) {
		return nil, nil
	}
	text, err := os.ReadFile(filepath.Join(dir, file))
	if errors.Is(err, unix.ENODEV) { // the group went away while the file was open
		err = fs.ErrNotExist
	}
	return text, err
}

// Prune deletes the group, and those above it, as far as they are empty, in every hierarchy.
func (g *Group) Prune() {
	for path := g.path; path != "/"; path = filepath.Dir(path) {
		up := g.tree.Open(path)
		for _, d := range up.everywhere() {
			_ = unix.Rmdir(d) // fails where it is in use, which is what is asked for
		}
		g.tree.forget(path)
	}
}
