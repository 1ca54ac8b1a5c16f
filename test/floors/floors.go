// Package floors holds the rooms of Gantry and which other rooms each may import. Its test reads every Go file of the
// tree and fails where one imports what its room may not.
package floors

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Module is the path that all rooms' import paths begin with.
const Module = "github.com/gantry-os/gantry"

// Room is a package and all below it that have no entry of their own. They may import each other.
type Room struct {
	Path  string
	Floor int
	May   []string            // what its files may import: a package, or with /... also all below it
	Tests []string            // what its tests may import besides
	Files map[string][]string // what single files may import besides
	Pure  bool                // imports no other module
}

// Rooms are all there are; a package outside of them is an error.
var Rooms = []Room{
	{Path: "model", Floor: 0, Pure: true},

	{Path: "state", Floor: 1, May: []string{"model"}},
	{Path: "runtime", Floor: 1, May: []string{"model"}, Tests: []string{"test/images"}},
	{Path: "route", Floor: 1, May: []string{"model"}},

	{Path: "scheduler", Floor: 2, May: []string{"model", "state"}, Tests: []string{"state/memory"}},
	{Path: "orchestrator/app", Floor: 2, May: []string{"model", "state"}, Tests: []string{"state/memory", "scheduler"}},
	{Path: "identity", Floor: 2, May: []string{"model", "state"}, Tests: []string{"state/memory"}},
	{Path: "agent", Floor: 2, May: []string{"model", "runtime", "route"}, Tests: []string{"runtime/sim", "runtime/process"}},

	{Path: "fleet", Floor: 3, May: []string{"model", "state", "identity/...", "agent/wire", "route"}, Tests: []string{"state/memory"}},
	{Path: "agent/wire/rpc", Floor: 3, May: []string{"model", "runtime", "route", "agent/wire"}, Tests: []string{"agent", "fleet", "state", "state/memory", "runtime/sim"}},
	{Path: "api", Floor: 3, May: []string{"model", "state", "identity/...", "agent/wire", "runtime"}, Tests: []string{"state/memory", "runtime/sim"}},

	{Path: "daemon", Floor: 4, May: []string{
		"model", "state/...", "runtime/...", "route/...", "scheduler", "orchestrator/...", "identity/...", "agent/...", "fleet", "api/...",
	}},

	{Path: "cmd/gantry", Floor: 5, May: []string{"api/client", "model"}, Files: map[string][]string{
		"up.go":         {"daemon"},
		"server.go":     {"daemon"},
		"containerd.go": {"runtime/containerd/engine"},
		"simulate.go":   {"scheduler/replay"},
	}},
	{Path: "cmd/gantry-oci-shim", Floor: 5, May: []string{"runtime/containerd/shim"}},
	{Path: "examples", Floor: 5},
	{Path: "test", Floor: 5, May: []string{"api/client", "model", "runtime/...", "route/...", "daemon", "state/...", "scheduler/...", "orchestrator/...", "fleet", "api/...", "agent/...", "identity/..."}},
}

// Foreign modules that only their adapters import. Tests may, to look behind one.
var Foreign = map[string][]string{
	"go.etcd.io/etcd":                  {"state/etcd"},
	"go.etcd.io/raft":                  {"state/etcd"},
	"github.com/containerd/containerd": {"runtime/containerd"},
	"github.com/danielgtaylor/huma":    {"api"},
	"github.com/spf13/cobra":           {"cmd/gantry"},
	"github.com/miekg/dns":             {"route/dns", "test/bench-dns"},
	"google.golang.org/grpc":           {"agent/wire/rpc", "runtime/containerd", "state/etcd"},
	"google.golang.org/protobuf":       {"agent/wire/rpc"},
}

// File is what matters of one Go file.
type File struct {
	Path    string   // below the root
	Imports []string // as written
}

// Read returns all Go files below root.
func Read(root string) ([]File, error) {
	var files []File
	err := filepath.WalkDir(root, func(at string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && at != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(at, ".go"):
			return nil
		}
		rel, err := filepath.Rel(root, at)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), at, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		f := File{Path: filepath.ToSlash(rel)}
		for _, i := range parsed.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			f.Imports = append(f.Imports, name)
		}
		files = append(files, f)
		return nil
	})
	return files, err
}

// Check returns a sentence for everything in files that rooms and foreign do not allow.
func Check(rooms []Room, foreign map[string][]string, files []File) []string {
	var wrong []string
	for _, f := range files {
		pkg := path.Dir(f.Path)
		room, ok := roomOf(rooms, pkg)
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%s is in no room: give it one, and a floor, in test/floors", f.Path))
			continue
		}
		for _, name := range f.Imports {
			if why := room.refuses(rooms, foreign, f, name); why != "" {
				wrong = append(wrong, fmt.Sprintf("%s may not import %s: %s", f.Path, name, why))
			}
		}
	}
	return wrong
}

// refuses returns why f, which is in r, may not import name, or nothing.
func (r Room) refuses(rooms []Room, foreign map[string][]string, f File, name string) string {
	test := strings.HasSuffix(f.Path, "_test.go")
	pkg, own := strings.CutPrefix(name, Module+"/")
	if !own {
		return r.refusesForeign(foreign, f, name, test)
	}
	if to, ok := roomOf(rooms, pkg); ok && to.Path == r.Path {
		return ""
	}
	may := slices.Concat(r.May, r.Files[path.Base(f.Path)])
	if test {
		may = append(may, r.Tests...)
	}
	if slices.ContainsFunc(may, func(pattern string) bool { return covers(pattern, pkg) }) {
		return ""
	}
	return fmt.Sprintf("room %s may import %v", r.Path, may)
}

func (r Room) refusesForeign(foreign map[string][]string, f File, name string, test bool) string {
	first, _, _ := strings.Cut(name, "/")
	if !strings.Contains(first, ".") {
		return "" // the standard library
	}
	if r.Pure {
		return fmt.Sprintf("room %s imports only the standard library", r.Path)
	}
	for module, adapters := range foreign {
		within := func(a string) bool { return covers(a+"/...", path.Dir(f.Path)) }
		if !test && (name == module || strings.HasPrefix(name, module+"/")) && !slices.ContainsFunc(adapters, within) {
			return fmt.Sprintf("only %v does", adapters)
		}
	}
	return ""
}

// roomOf returns the room that a package is in: the one with the longest path.
func roomOf(rooms []Room, pkg string) (Room, bool) {
	var best Room
	for _, r := range rooms {
		if covers(r.Path+"/...", pkg) && len(r.Path) > len(best.Path) {
			best = r
		}
	}
	return best, best.Path != ""
}

// covers reports whether a pattern such as state or state/... names pkg.
func covers(pattern, pkg string) bool {
	root, below := strings.CutSuffix(pattern, "/...")
	return pkg == root || below && strings.HasPrefix(pkg, root+"/")
}
