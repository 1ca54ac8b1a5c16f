// Package cgroup limits and measures groups of processes through the kernel's control groups, version 1 and 2.
//
// A Tree is what the machine has: Find reads it from the mount table. A Group is one named group in it, which may or may
// not exist yet. Where version 1 mounts each controller by itself, a Group is one directory per controller; with version 2
// it is a single directory. A machine that mounts both is version 1 unless the version 2 hierarchy has the controllers.
//
// Paths of groups, such as "/gantry/home/web-k3v9q2xw.main", are relative to the tree's base: the root of each hierarchy
// where Gantry may create groups there, else the group that Gantry itself runs in. Tree.Path tells the kernel's name of it.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/gantry-os/gantry/model"
)

// Controllers that Gantry uses. Version 2 has no cpuacct: its cpu controller counts too.
const (
	cpu     = "cpu"
	cpuacct = "cpuacct"
	memory  = "memory"
	unified = "" // the single hierarchy of version 2
)

// Tree is the control groups of a machine. It may be used from many goroutines.
type Tree struct {
	version int
	bases   map[string]base // by controller; version 2 has only unified
	missing []string
	others  []base // of version 1 hierarchies that Gantry does not use but runc makes groups in; and of version 2 beside them

	mu       sync.Mutex
	prepared map[string]bool // parents whose children can be limited
}

// base is where groups of one hierarchy are made.
type base struct {
	dir  string // in the file system
	path string // the kernel's name of dir, "/" for the root of the hierarchy
}

// Find returns the control groups that /proc/self/mountinfo and /proc/self/cgroup tell of. It fails when none are mounted.
func Find() (*Tree, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	t, err := newTree(parseMounts(string(mounts)), parseSelf(string(self)), writable)
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	return t, nil
}

// Version returns 1 or 2.
func (t *Tree) Version() int { return t.version }

// Missing returns the controllers out of cpu, cpuacct and memory that the machine lacks, or that Gantry may not use.
// What they would limit or measure is silently unlimited and zero.
func (t *Tree) Missing() []string { return slices.Clone(t.missing) }

// Ability says whether CPU and memory can be limited here.
func (t *Tree) Ability() model.Ability {
	if len(t.missing) == 0 {
		return model.Ability{OK: true, Why: fmt.Sprintf("cgroup v%d", t.version)}
	}
	return model.Ability{Why: fmt.Sprintf("cgroup v%d is mounted without %s, or not writable for Gantry",
		t.version, strings.Join(t.missing, ", "))}
}

// Path returns the kernel's name of the group at path, as runc wants it in cgroupsPath.
func (t *Tree) Path(path string) string {
	for _, b := range t.bases {
		if b.path != "/" {
			return filepath.Join(b.path, path)
		}
	}
	return filepath.Join("/", path)
}

// Open returns the group at path, relative to the tree's base. It need not exist.
func (t *Tree) Open(path string) *Group {
	g := &Group{tree: t, path: filepath.Join("/", path), dirs: make(map[string]string, len(t.bases))}
	for c, b := range t.bases {
		g.dirs[c] = filepath.Join(b.dir, g.path)
	}
	return g
}

// Group is one group of processes.
type Group struct {
	tree *Tree
	path string
	dirs map[string]string // by controller
}

// Limits are the most that a group may use. Zero means no limit.
type Limits struct {
	CPUs   model.CPU   // ceiling at any time, and share of the processors under contention
	Memory model.Bytes // swap included
}

// Path returns the path that the group was opened by.
func (g *Group) Path() string { return g.path }

// Exists reports whether the group exists in any hierarchy.
func (g *Group) Exists() bool {
	for _, d := range g.directories() {
		if _, err := os.Stat(d); err == nil {
			return true
		}
	}
	return false
}

// Create makes the group unless it exists, and sets its limits. On failure it may exist in part: Remove it.
func (g *Group) Create(l Limits) error {
	err := g.make()
	if errors.Is(err, fs.ErrNotExist) { // a group above was removed since
		g.tree.forget(filepath.Dir(g.path))
		err = g.make()
	}
	if err != nil {
		return fmt.Errorf("create cgroup %s: %w", g.path, err)
	}
	if err := g.limit(l); err != nil {
		return fmt.Errorf("limit cgroup %s: %w", g.path, err)
	}
	return nil
}

func (g *Group) make() error {
	if err := g.tree.prepare(filepath.Dir(g.path)); err != nil {
		return err
	}
	for _, d := range g.directories() {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// Entry says how a process gets into a group.
type Entry struct {
	// Tasks are files to which a process of a single thread writes "0" to move itself. Version 1 only: the kernel then
	// takes none of the locks that make moves by cgroup.procs slow.
	Tasks []string
	// Dir is a directory for CLONE_INTO_CGROUP, or whose cgroup.procs to write to. Version 2 only.
	Dir string
}

// Entry returns how to join the group.
func (g *Group) Entry() Entry {
	if g.tree.version == 2 {
		return Entry{Dir: g.dirs[unified]}
	}
	var e Entry
	for _, d := range g.directories() {
		e.Tasks = append(e.Tasks, filepath.Join(d, "tasks"))
	}
	return e
}

// directories returns the group's directories, each once: controllers may be mounted together.
func (g *Group) directories() []string {
	return slices.Compact(slices.Sorted(maps.Values(g.dirs)))
}

// everywhere returns the group's directories in all hierarchies, those included that Gantry does not use.
func (g *Group) everywhere() []string {
	dirs := g.directories()
	for _, b := range g.tree.others {
		dirs = append(dirs, filepath.Join(b.dir, g.path))
	}
	return dirs
}

// prepare makes the group at path exist and its children limitable.
func (t *Tree) prepare(path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.prepareFrom(path)
}

// forget makes the next prepare look again at the group at path and those above it.
func (t *Tree) forget(path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ; path != "/"; path = filepath.Dir(path) {
		delete(t.prepared, path)
	}
}

func (t *Tree) prepareFrom(path string) error {
	if t.prepared[path] {
		return nil
	}
	if path != "/" {
		if err := t.prepareFrom(filepath.Dir(path)); err != nil {
			return err
		}
		if err := t.makeParent(path); err != nil {
			return err
		}
	}
	if err := t.delegate(path); err != nil {
		return err
	}
	t.prepared[path] = true
	return nil
}

func (t *Tree) makeParent(path string) error {
	g := t.Open(path)
	for _, d := range g.directories() {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// All of Gantry's tasks together weigh as much as the machine has processors, not as a single process.
	return g.weigh(model.CPU(1000 * runtime.NumCPU()))
}

// delegate lets children of a version 2 group be limited.
func (t *Tree) delegate(path string) error {
	if t.version != 2 {
		return nil
	}
	dir := filepath.Join(t.bases[unified].dir, path)
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	on := strings.Fields(string(have))
	for _, c := range []string{cpu, memory} {
		if slices.Contains(t.missing, c) || slices.Contains(on, c) {
			continue
		}
		if err := write(dir, "cgroup.subtree_control", "+"+c); err != nil {
			return fmt.Errorf("enable the %s controller (a group with processes of its own cannot have limited children): %w", c, err)
		}
	}
	return nil
}

func (g *Group) limit(l Limits) error {
	if l.CPUs > 0 {
		if err := g.weigh(l.CPUs); err != nil {
			return err
		}
		if err := g.ceiling(l.CPUs); err != nil {
			return err
		}
	}
	if l.Memory > 0 {
		return g.limitMemory(l.Memory)
	}
	return nil
}

// period is the time over which a CPU ceiling is kept, in microseconds.
const period = 100_000

func (g *Group) ceiling(c model.CPU) error {
	quota := max(int64(c)*period/1000, 1000) // the kernel takes no less than a millisecond
	if g.tree.version == 2 {
		return g.write(unified, cpu, "cpu.max", fmt.Sprintf("%d %d", quota, period))
	}
	return g.write(cpu, cpu, "cpu.cfs_quota_us", strconv.FormatInt(quota, 10)) // the period is 100 ms by default
}

func (g *Group) weigh(c model.CPU) error {
	shares := min(max(int64(c)*1024/1000, 2), 262144)
	if g.tree.version == 2 {
		// 1024 shares of version 1 are about the default weight of a group that runc makes.
		return g.write(unified, cpu, "cpu.weight", strconv.FormatInt(1+(shares-2)*9999/262142, 10))
	}
	return g.write(cpu, cpu, "cpu.shares", strconv.FormatInt(shares, 10))
}

func (g *Group) limitMemory(m model.Bytes) error {
	limit := strconv.FormatInt(int64(m), 10)
	if g.tree.version == 2 {
		if err := g.write(unified, memory, "memory.max", limit); err != nil {
			return err
		}
		return ignoreMissing(g.write(unified, memory, "memory.swap.max", "0"))
	}
	const ram, both = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	first := g.write(memory, memory, ram, limit)
	err := ignoreMissing(g.write(memory, memory, both, limit)) // not there when the kernel does not count swap
	if first != nil && err == nil {
		return g.write(memory, memory, ram, limit) // it had to be raised the other way round
	}
	return errors.Join(first, err)
}

// write sets a file of the hierarchy that holds controller; a missing controller limits nothing.
func (g *Group) write(hierarchy, controller, file, value string) error {
	dir, ok := g.dirs[hierarchy]
	if !ok || slices.Contains(g.tree.missing, controller) {
		return nil
	}
	return write(dir, file, value)
}

func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
