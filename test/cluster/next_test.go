package cluster

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// The tests of upgrades need a second version of Gantry, whose wire and store differ from this one's. It is made of this tree by
// what follows, when it is built: nodes and reports say one thing more to servers, which store it, and whoever leads stores one
// record of a new kind. Nobody in it asks before whether the other side or the store can take it: agents never do, and a room
// that forgets to has to be harmless.

// told is what is said and stored besides.
const told = "told by the next version"

// additions are files of the next version.
var additions = map[string]string{
	"model/next.go": `package model

// Next is a record that only the next version has.
type Next struct {
	By       string
	Revision uint64 ` + "`json:\"-\"`" + `
}

const Told = "` + told + `"
`,
	"state/next.go": `package state

import "github.com/gantry-os/gantry/model"

const KindNext = Kind(len(kindNames) - 1)

func (v View) Next() *model.Next     { return v.t.next }
func (tx *Tx) PutNext(n *model.Next) { tx.put(n) }
`,
	"daemon/next.go": `package daemon

import (
	"context"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// putNext stores a record of the new kind as soon as the store takes it.
func putNext(ctx context.Context, leader *state.Leader, name string) error {
	for {
		err := leader.Update(ctx, func(tx *state.Tx) error {
			if tx.Next() == nil {
				tx.PutNext(&model.Next{By: name})
			}
			return nil
		})
		if err == nil {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
`,
}

// changes are made to files of this version: what an expression finds, once, becomes something else.
var changes = []struct{ file, find, become string }{
	// Nodes say more, in the first message of their agents, and servers store it as they store all of it.
	{"model/node.go", `type Node struct \{`, "${0}\n\tNext string `json:\"next,omitempty\"`"},
	{"daemon/host.go", `\tnode := &h\.node\n`, "${0}\tnode.Next = model.Told\n"},

	// Reports say more, and servers store it with the instance.
	{"model/instance.go", `type Status struct \{`, "${0}\n\tNext string `json:\"next,omitempty\"`"},
	{"agent/wire/rpc/messages.go", `\t\te\.text\(7, shorten\(s\.Message\)\)\n`, "${0}\t\te.text(99, model.Told)\n"},
	{"agent/wire/rpc/messages.go", `\t\tcase 7:\n\t\t\ts\.Message = d\.sentence\(\)\n`, "${0}\t\tcase 99:\n\t\t\ts.Next = d.text()\n"},
	{"state/etcd/instance.go", `var errUnknownTag`, "const tagNext = 250\n\n$0"},
	{"state/etcd/instance.go", `\tw\.placement\(i\)\n`, "${0}\tw.text(tagNext, i.Status.Next)\n"},
	{"state/etcd/instance.go", `\t\tcase tagAway:\n`, "\t\tcase tagNext:\n\t\t\ts.Next = r.text()\n$0"},

	// The leader stores a record of a new kind.
	{"state/state.go", `(?s)(var kindNames = \[\.\.\.\]string\{.*?\n)\}`, "$1\t\"next\",\n}"},
	{"state/state.go", `\tcase \*model\.Cluster:\n`, "\tcase *model.Next:\n\t\treturn Key{KindNext, \"self\"}, true\n$0"},
	{"state/tables.go", `type tables struct \{\n`, "${0}\tnext *model.Next\n"},
	{"state/tables.go", `\t\trev: t\.rev,`, "$0 next: t.next,"},
	{"state/tables.go", `\tcase KindLosses:\n`, "\tcase KindNext:\n\t\tt.next, _ = val.(*model.Next)\n$0"},
	{"state/tables.go", `\tcase \*model\.Losses:\n`, "\tcase *model.Next:\n\t\tv.Revision = rev\n$0"},
	{"state/view.go", `\tcase KindLosses:\n`, "\tcase KindNext:\n\t\tif t.next != nil {\n\t\t\treturn t.next.Revision\n\t\t}\n$0"},
	{"state/etcd/codec.go", `\tcase key\.Kind == state\.KindLosses`, "\tcase key.Kind == state.KindNext && format == formatJSON:\n\t\treturn decodeJSON[model.Next](b)\n$0"},
	{"daemon/server.go", `\tgroup\.Go\(func\(\) error \{ return l\.run\(ctx\) \}\)\n`, "${0}\tgroup.Go(func() error { return putNext(ctx, leader, s.Name) })\n"},
}

// shapeBesides is what all of that adds to what is stored.
const shapeBesides = "instance.status.next\nnext\nnext.By\nnode.next\n"

// tree is where the sources lie.
const tree = "../.."

// overlay writes the files of the next version below dir, and says to the go command what they stand for.
func overlay(t *testing.T, dir string) string {
	t.Helper()
	files := map[string]string{}
	for name, text := range additions {
		files[name] = text
	}
	for _, c := range changes {
		if files[c.file] == "" {
			b, err := os.ReadFile(filepath.Join(tree, c.file))
			if err != nil {
				t.Fatal(err)
			}
			files[c.file] = string(b)
		}
		find := regexp.MustCompile(c.find)
		if n := len(find.FindAllString(files[c.file], -1)); n != 1 {
			t.Fatalf("%s has %q %d times: the next version is to be made of it in another way", c.file, c.find, n)
		}
		files[c.file] = find.ReplaceAllString(files[c.file], c.become)
	}
	shape, err := os.ReadFile(filepath.Join(tree, "state/shapes", before.String()+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	files["state/shapes/"+after.String()+".txt"] = string(shape) + shapeBesides
	replace := map[string]string{}
	for name, text := range files {
		from, err := filepath.Abs(filepath.Join(tree, name))
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		replace[from] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// buildNext builds the next version as if it were some release, and returns its binary, which has the helpers of this one beside it.
func buildNext(t *testing.T, dir, overlay string, r model.Release) string {
	t.Helper()
	dir = filepath.Join(dir, r.String())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "gantry")
	const module = "github.com/gantry-os/gantry/"
	build := exec.Command("go", "build", "-trimpath", "-overlay", overlay, "-o", bin, "-ldflags",
		"-s -w -X "+module+"model.release="+r.String()+" -X "+module+"daemon.Version=next -X main.version=next", "./cmd/gantry")
	build.Dir = tree
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the next version: %v\n%s", err, out)
	}
	for _, helper := range []string{"gantry-shim", "gantry-log", "gantry-oci-shim", "runc"} {
		to, err := filepath.Abs(filepath.Join(tree, "bin", helper))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(dir, helper)); err != nil {
			t.Fatal(err)
		}
	}
	return bin
}
