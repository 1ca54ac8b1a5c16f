package floors

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// TestTree protects the floors: it reads every file of Gantry.
func TestTree(t *testing.T) {
	files, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 100 {
		t.Fatalf("only %d files were found", len(files))
	}
	for _, wrong := range Check(Rooms, Foreign, files) {
		t.Error(wrong)
	}
}

// TestTable protects the table itself: rooms are granted lower floors only.
func TestTable(t *testing.T) {
	for _, r := range Rooms {
		grants := slices.Clone(r.May)
		for _, more := range r.Files {
			grants = append(grants, more...)
		}
		for _, g := range grants {
			to, ok := roomOf(Rooms, strings.TrimSuffix(g, "/..."))
			if !ok { // such as orchestrator/..., which names several
				continue
			}
			if to.Floor >= r.Floor {
				t.Errorf("%s on floor %d is granted %s on floor %d", r.Path, r.Floor, g, to.Floor)
			}
		}
	}
}

// TestDocumented protects docs/architecture.md: it names the same rooms on the same floors.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile(root + "/docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, r := range Rooms {
		if r.Floor < 5 {
			want = append(want, fmt.Sprintf("%d %s", r.Floor, r.Path))
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| (\\d) \\| `([^`]+)`").FindAllStringSubmatch(string(text), -1) {
		got = append(got, m[1]+" "+m[2])
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the page says %v, the table %v", got, want)
	}
}

// TestCheck protects that Check can fail, on files that are not there.
func TestCheck(t *testing.T) {
	for _, c := range []struct {
		file, imports string
		want          string // part of the sentence; nothing when it is allowed
	}{
		{"model/a.go", "strings", ""},
		{"model/a.go", Module + "/state", "room model may import []"},
		{"model/a.go", "golang.org/x/sync/errgroup", "only the standard library"},
		{"model/a_test.go", "github.com/google/go-cmp/cmp", "only the standard library"},
		{"state/a.go", Module + "/model", ""},
		{"state/etcd/a.go", Module + "/state", ""},
		{"state/etcd/a.go", "go.etcd.io/etcd/client/v3", ""},
		{"state/memory/a.go", "go.etcd.io/etcd/client/v3", "only [state/etcd] does"},
		{"state/memory/a_test.go", "go.etcd.io/etcd/client/v3", ""},
		{"state/a.go", Module + "/scheduler", "room state may import [model]"},
		{"scheduler/a.go", Module + "/state", ""},
		{"scheduler/a.go", Module + "/state/etcd", "room scheduler may import"},
		{"scheduler/a.go", Module + "/state/memory", "room scheduler may import"},
		{"scheduler/a_test.go", Module + "/state/memory", ""},
		{"scheduler/a.go", Module + "/orchestrator/app", "room scheduler may import"},
		{"orchestrator/app/plan/a.go", Module + "/orchestrator/app", ""},
		{"orchestrator/app/a.go", Module + "/scheduler", "room orchestrator/app may import"},
		{"fleet/a.go", Module + "/agent/wire", ""},
		{"fleet/a.go", Module + "/agent", "room fleet may import"},
		{"api/a.go", Module + "/fleet", "room api may import"},
		{"api/a.go", Module + "/api/client", ""},
		{"daemon/a.go", Module + "/state/etcd", ""},
		{"daemon/a.go", Module + "/cmd/gantry/show", "room daemon may import"},
		{"cmd/gantry/ps.go", Module + "/daemon", "room cmd/gantry may import"},
		{"cmd/gantry/up.go", Module + "/daemon", ""},
		{"cmd/gantry/containerd.go", Module + "/runtime/containerd/engine", ""},
		{"cmd/gantry/containerd.go", Module + "/daemon", "room cmd/gantry may import"},
		{"cmd/gantry/ps.go", Module + "/state", "room cmd/gantry may import"},
		{"cmd/gantry-oci-shim/main.go", Module + "/model", "room cmd/gantry-oci-shim may import"},
		{"util/a.go", "strings", "util/a.go is in no room"},
		{"orchestrator/a.go", "strings", "in no room"},
		{"main.go", "strings", "in no room"},
		{"model/a.go", Module, "only the standard library"},
	} {
		got := strings.Join(Check(Rooms, Foreign, []File{{c.file, []string{c.imports}}}), "; ")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s importing %s: %q, want %q", c.file, c.imports, got, c.want)
		}
	}
}
