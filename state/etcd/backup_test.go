package etcd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// filled returns a store with a few thousand records, and history.
func filled(t *testing.T, cfg Config) *Store {
	t.Helper()
	s := open(t, cfg)
	for round := range 3 {
		err := s.Update(t.Context(), func(tx *state.Tx) error {
			for n := range 2000 {
				i := typical(n)
				i.Version = uint64(round + 1)
				tx.PutInstance(i)
			}
			tx.PutApp(&model.App{ID: "/web", Version: uint64(round)})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// TestBackup protects that a backup taken while the store is written to restores into a new cluster of one, which grows, with every
// record of its moment, and with terms and revisions that no one had before.
func TestBackup(t *testing.T) {
	s := filled(t, Config{Dir: t.TempDir(), Ephemeral: true})
	leader, err := s.Lead(t.Context(), "old")
	if err != nil {
		t.Fatal(err)
	}
	before := s.View()
	var file bytes.Buffer
	info, err := s.Backup(t.Context(), &file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Revision != int64(before.Revision()) || info.Size == 0 || info.Keys < 2001 {
		t.Errorf("backup %+v of revision %d", info, before.Revision())
	}
	write(t, s, "/later")
	after := s.View().Revision()
	if left := must(filepath.Glob(filepath.Join(s.cfg.Dir, "backup-*"))); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	closeStore(t, s)

	c := &servers{ca: newAuthority(t), at: make([]*Store, 2)}
	c.cfg = []Config{c.config(t, "a"), c.config(t, "b")}
	got, err := Restore(c.cfg[0].Dir, bytes.NewReader(file.Bytes()), NewCluster{Name: "a", Peer: c.cfg[0].Peer})
	if err != nil || got != info {
		t.Fatalf("restored %+v, want %+v: %v", got, info, err)
	}
	c.open(t, 0)
	if t.Failed() {
		t.FailNow()
	}
	same := func(s *Store) {
		t.Helper()
		v := s.View()
		if v.App("/later") != nil || v.App("/web") == nil || v.App("/web").Version != 2 || v.InstanceCount() != before.InstanceCount() {
			t.Fatalf("restored %+v and %d instances", v.App("/web"), v.InstanceCount())
		}
		for i := range before.Instances() {
			if r := v.Instance(i.ID); r == nil || r.Revision != i.Revision || string(must(encode(nil, r))) != string(must(encode(nil, i))) {
				t.Fatalf("instance %s: %+v, want %+v", i.ID, r, i)
			}
		}
	}
	same(c.at[0])
	if _, _, ok := c.at[0].Leader(); ok {
		t.Log("the old leader is still named; the next one replaces it")
	}
	heir, lost, err := c.at[0].Campaign(t.Context(), "new", "new:1")
	if err != nil {
		t.Fatal(err)
	}
	if heir.Term() <= leader.Term() || uint64(heir.Term()) <= after {
		t.Errorf("the new leader has term %d; the lost cluster was at %d", heir.Term(), after)
	}
	if err := increment(t.Context(), heir, "/web"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-lost:
		t.Error("the new leader lost")
	default:
	}
	if c.cfg[1].Join, err = c.at[0].AddMember(t.Context(), "b", c.cfg[1].Peer.Listen); err != nil {
		t.Fatal(err)
	}
	c.open(t, 1)
	if t.Failed() {
		t.FailNow()
	}
	if v := c.at[1].View(); count(v, "/web") != 3 || v.InstanceCount() != before.InstanceCount() {
		t.Errorf("the second member has %d and %d instances", count(v, "/web"), v.InstanceCount())
	}
	c.killAll()
}

// TestBackupDamaged protects from restoring what is no whole backup: nothing is left of it.
func TestBackupDamaged(t *testing.T) {
	s := filled(t, Config{Ephemeral: true})
	var file bytes.Buffer
	if _, err := s.Backup(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	whole := file.Bytes()
	line, rest, _ := bytes.Cut(whole, []byte("\n"))
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for what, b := range map[string][]byte{
		"empty":          nil,
		"no backup":      []byte("hello\n"),
		"cut off":        whole[:len(whole)-1],
		"half":           whole[:len(whole)/2],
		"only a line":    append(bytes.Clone(line), '\n'),
		"more":           append(bytes.Clone(whole), 'x'),
		"flipped":        flipped,
		"another format": append(append(bytes.Replace(bytes.Clone(line), []byte(`"format":1`), []byte(`"format":2`), 1), '\n'), rest...),
		"other keys":     append(append(bytes.Replace(bytes.Clone(line), []byte(`"keys":`), []byte(`"keys":1`), 1), '\n'), rest...),
		"too new":        append(append(bytes.Replace(bytes.Clone(line), []byte(`"stored":"0.`), []byte(`"stored":"0.9`), 1), '\n'), rest...),
		"negative":       append(append(bytes.Replace(bytes.Clone(line), []byte(`"size":`), []byte(`"size":-`), 1), '\n'), rest...),
	} {
		dir := filepath.Join(t.TempDir(), "new")
		_, err := Restore(dir, bytes.NewReader(b), NewCluster{})
		if !errors.Is(err, ErrBackup) {
			t.Errorf("%s: restored with %v", what, err)
		}
		if what == "too new" && !strings.Contains(err.Error(), fmt.Sprintf("this is Gantry %v: restore it with Gantry 0.9", model.ThisRelease)) {
			t.Errorf("%s: %v", what, err)
		}
		if left := must(os.ReadDir(dir)); len(left) > 0 {
			t.Errorf("%s: left %v", what, left)
		}
	}
	dir := t.TempDir()
	if _, err := Restore(dir, bytes.NewReader(whole), NewCluster{}); err != nil {
		t.Fatal(err)
	}
	if n := open(t, Config{Dir: dir, Ephemeral: true}).View().InstanceCount(); n != 2000 {
		t.Errorf("%d instances restored", n)
	}
	if _, err := Restore(dir, bytes.NewReader(whole), NewCluster{}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("restored over a store: %v", err)
	}
}
