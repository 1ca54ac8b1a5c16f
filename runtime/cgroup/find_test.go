package cgroup

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const separate = `27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime shared:3 - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`

const together = `32 31 0:29 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 31 0:29 / /a\040b rw - cgroup cgroup rw,memory
`

func all(string) bool { return true }

func TestFindInMounts(t *testing.T) {
	nested := "32 31 0:29 /docker/x /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n33 31 0:29 /docker/x /cg/memory rw - cgroup cgroup rw,memory\n"
	for _, c := range []struct {
		name, mounts, self string
		usable             func(string) bool
		version            int
		missing            []string
		dirs               []string // of the group /gantry/c/t
		path               string   // the kernel's name of it
	}{
		{"each controller by itself", separate, "4:memory:/deep\n1:cpu:/\n", all, 1, nil,
			[]string{"/sys/fs/cgroup/cpu/gantry/c/t", "/sys/fs/cgroup/cpuacct/gantry/c/t", "/sys/fs/cgroup/memory/gantry/c/t"}, "/gantry/c/t"},
		{"mounted together, with a space", together, "", all, 1, nil,
			[]string{"/a b/gantry/c/t", "/cg/cpu,cpuacct/gantry/c/t"}, "/gantry/c/t"},
		{"no memory", strings.ReplaceAll(separate, "rw,memory", "rw,pids"), "", all, 1, []string{"memory"},
			[]string{"/sys/fs/cgroup/cpu/gantry/c/t", "/sys/fs/cgroup/cpuacct/gantry/c/t"}, "/gantry/c/t"},
		{"root not writable, own group is", separate, "1:cpu:/me\n2:cpuacct:/me\n3:memory:/me\n",
			func(d string) bool { return filepath.Base(d) == "me" }, 1, nil,
			[]string{"/sys/fs/cgroup/cpu/me/gantry/c/t", "/sys/fs/cgroup/cpuacct/me/gantry/c/t", "/sys/fs/cgroup/memory/me/gantry/c/t"}, "/me/gantry/c/t"},
		{"a part of the hierarchy is mounted", nested, "1:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n", all, 1, nil,
			[]string{"/cg/cpu/gantry/c/t", "/cg/memory/gantry/c/t"}, "/docker/x/gantry/c/t"},
		{"nothing writable", separate, "1:cpu:/\n", func(string) bool { return false }, 1, []string{"cpu", "cpuacct", "memory"}, nil, "/gantry/c/t"},
	} {
		tree, err := newTree(parseMounts(c.mounts), parseSelf(c.self), c.usable)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		g := tree.Open("gantry/c/t/")
		if tree.Version() != c.version || !slices.Equal(tree.Missing(), c.missing) || !slices.Equal(g.directories(), c.dirs) || tree.Path(g.Path()) != c.path {
			t.Errorf("%s: version %d without %v, %v, %s", c.name, tree.Version(), tree.Missing(), g.directories(), tree.Path(g.Path()))
		}
		if tree.Ability().OK != (len(c.missing) == 0) || tree.Ability().Why == "" {
			t.Errorf("%s: %+v", c.name, tree.Ability())
		}
	}
}

func TestFindVersion2(t *testing.T) {
	dir := t.TempDir()
	line := "30 23 0:26 / " + dir + " rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	for _, c := range []struct {
		mounts, controllers string
		version             int
		missing             []string
	}{
		{line, "cpuset cpu io memory pids", 2, nil},
		{line, "cpu pids", 2, []string{"memory"}},
		{separate + line, "cpu memory", 1, nil}, // version 1 has all, so version 2 cannot
		{"32 31 0:29 / /cg/pids rw - cgroup cgroup rw,pids\n" + line, "cpu memory", 2, nil},
	} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte(c.controllers+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		tree, err := newTree(parseMounts(c.mounts), parseSelf("0::/init.scope\n"), all)
		if err != nil || tree.Version() != c.version || !slices.Equal(tree.Missing(), c.missing) {
			t.Errorf("%q: %+v, %v", c.controllers, tree, err)
		}
	}
	if _, err := newTree(nil, nil, all); err == nil {
		t.Error("no mounts at all make a tree")
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add(separate)
	f.Add(together)
	f.Fuzz(func(t *testing.T, text string) {
		if tree, err := newTree(parseMounts(text), parseSelf(text), func(d string) bool { return false }); err == nil && len(tree.bases) > 0 {
			t.Errorf("%q gives directories, of which none is usable: %v", text, tree.bases)
		}
	})
}

func TestParseSelf(t *testing.T) {
	got := parseSelf("9:name=systemd:/\n4:cpu,cpuacct:/a:b\n0::/x\nrubbish\n")
	want := map[string]string{"name=systemd": "/", "cpu": "/a:b", "cpuacct": "/a:b", "": "/x"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("parseSelf returned %v", got)
	}
}
