package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is a mounted cgroup hierarchy.
type mount struct {
	root        string   // the group that is mounted, as the kernel names it
	dir         string   // where
	controllers []string // nil for version 2
	v2          bool
}

// parseMounts reads the cgroup mounts out of the text of a mountinfo file. Later mounts of a controller win.
func parseMounts(text string) []mount {
	var out []mount
	for line := range strings.Lines(text) {
		head, tail, ok := strings.Cut(strings.TrimSpace(line), " - ")
		left, right := strings.Fields(head), strings.Fields(tail)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		m := mount{root: unescape(left[3]), dir: unescape(left[4])}
		switch right[0] {
		case "cgroup2":
			m.v2 = true
		case "cgroup":
			m.controllers = slices.DeleteFunc(strings.Split(right[2], ","), isOption)
		default:
			continue
		}
		out = append(out, m)
	}
	return out
}

// isOption tells options of a version 1 mount from the controllers that stand among them.
func isOption(s string) bool {
	switch s {
	case "rw", "ro", "all", "none", "noprefix", "clone_children", "cpuset_v2_mode", "xattr", "favordynmods", "nofavordynmods":
		return true
	}
	return strings.HasPrefix(s, "release_agent=")
}

// unescape undoes the octal escapes of mountinfo, such as \040 for a space.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// parseSelf reads the text of a /proc/PID/cgroup file: the process's group by controller, and by "" for version 2.
func parseSelf(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for c := range strings.SplitSeq(parts[1], ",") {
			out[c] = parts[2]
		}
	}
	return out
}

// newTree makes sense of the mounts. usable reports whether groups can be made below a directory.
func newTree(mounts []mount, self map[string]string, usable func(dir string) bool) (*Tree, error) {
	if len(mounts) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted")
	}
	t := &Tree{version: 1, bases: map[string]base{}, prepared: map[string]bool{}}
	for _, m := range mounts {
		t.use(m, self, usable)
	}
	for _, c := range []string{cpu, cpuacct, memory} {
		if _, ok := t.bases[c]; !ok {
			t.missing = append(t.missing, c)
		}
	}
	if v2 := unifiedTree(mounts, self, usable); v2 != nil && len(v2.missing) < len(t.missing) {
		return v2, nil
	}
	return t, nil
}

// use adds a hierarchy to a version 1 tree.
func (t *Tree) use(m mount, self map[string]string, usable func(dir string) bool) {
	name := unified
	if !m.v2 {
		if len(m.controllers) == 0 {
			return
		}
		name = m.controllers[0]
	}
	b, ok := m.base(self[name], usable)
	if !ok {
		return
	}
	used := false
	for _, c := range m.controllers {
		if slices.Contains([]string{cpu, cpuacct, memory}, c) {
			t.bases[c], used = b, true
		}
	}
	if !used {
		t.others = append(t.others, b)
	}
}

// unifiedTree returns the version 2 hierarchy, or nil where there is none of use.
func unifiedTree(mounts []mount, self map[string]string, usable func(dir string) bool) *Tree {
	i := slices.IndexFunc(mounts, func(m mount) bool { return m.v2 })
	if i < 0 {
		return nil
	}
	b, ok := mounts[i].base(self[unified], usable)
	if !ok {
		return nil
	}
	t := &Tree{version: 2, bases: map[string]base{unified: b}, prepared: map[string]bool{}}
	have, err := os.ReadFile(filepath.Join(b.dir, "cgroup.controllers"))
	for _, c := range []string{cpu, memory} {
		if err != nil || !slices.Contains(strings.Fields(string(have)), c) {
			t.missing = append(t.missing, c)
		}
	}
	return t
}

// base returns where groups of the hierarchy can be made: at its root, or else where the process is itself.
func (m mount) base(self string, usable func(dir string) bool) (base, bool) {
	if usable(m.dir) {
		return base{dir: m.dir, path: m.root}, true
	}
	rel, err := filepath.Rel(m.root, self)
	if err != nil || !filepath.IsLocal(rel) {
		return base{}, false
	}
	if dir := filepath.Join(m.dir, rel); usable(dir) {
		return base{dir: dir, path: self}, true
	}
	return base{}, false
}

func writable(dir string) bool { return unix.Access(dir, unix.W_OK) == nil }
