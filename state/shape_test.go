package state

import (
	"context"
	"errors"
	"flag"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
)

var rewrite = flag.Bool("rewrite", false, "write the shape of this release anew")

// instant is a backend that takes everything.
type instant struct{}

func (instant) Commit(_ Term, base uint64, _ []Op) (uint64, error) { return base + 1, nil }

func (instant) Lead(context.Context, string) (Term, uint64, error) { return 1, 0, nil }

// records is one of each kind.
func records() []any {
	return []any{
		&model.App{ID: "/a"}, &model.AppVersion{App: "/a", Spec: &model.Spec{}}, &model.Instance{ID: "a-1"}, &model.Deployment{ID: "d"},
		&model.Node{ID: "n"}, &model.NodeSettings{ID: "n"}, &model.Role{ID: "/"}, &model.Pool{Name: "p"}, &model.Reservation{ID: "r"},
		&model.PersistentVolume{ID: "v"}, &model.Losses{}, &model.Cluster{ID: "c"}, &model.Machine{ID: "agent/n"}, &model.JoinToken{ID: "t"},
		&model.Revocation{ID: "agent/n"},
	}
}

// describe adds what a type stores to paths.
func describe(paths map[string]reflect.StructField, path string, t reflect.Type) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		describe(paths, path, t.Elem())
	case reflect.Struct:
		for i, name := range fieldsOf(t) {
			if name != "" {
				paths[path+"."+name] = t.Field(i)
				describe(paths, path+"."+name, t.Field(i).Type)
			}
		}
	}
}

// What the model stores is what the shape of this release says: nobody adds a field unaware that servers of the release before
// cannot read it. Once a release is out its shape stays as it is, so a field is new in the next.
func TestShapeIsTheModels(t *testing.T) {
	paths := map[string]reflect.StructField{}
	for _, r := range records() {
		key, _ := KeyOf(r)
		paths[key.Kind.String()] = reflect.StructField{}
		describe(paths, key.Kind.String(), reflect.TypeOf(r))
	}
	for _, name := range kindNames {
		if _, ok := paths[name]; !ok {
			t.Errorf("no record of kind %s is in this test", name)
		}
	}
	file, want := "shapes/"+model.ThisRelease.String()+".txt", strings.Join(slices.Sorted(maps.Keys(paths)), "\n")+"\n"
	if *rewrite {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != want {
		have, gone := shape{}, []string{}
		for line := range strings.Lines(string(got)) {
			have[strings.TrimSpace(line)] = true
		}
		for path := range have {
			if _, ok := paths[path]; !ok {
				gone = append(gone, path)
			}
			delete(paths, path)
		}
		t.Errorf("%s lacks %v and has %v too much (%v). Where Gantry %v is not out yet, run go test ./state -run Shape -rewrite; else begin the "+
			"next release in model/release.go first", file, slices.Sorted(maps.Keys(paths)), gone, err, model.ThisRelease)
	}
	checkNew(t, paths)
}

// checkNew holds that fields which the release before lacks are not stored while they are zero, which is how they are left out.
func checkNew(t *testing.T, paths map[string]reflect.StructField) {
	before := model.Release{Major: model.ThisRelease.Major, Minor: model.ThisRelease.Minor - 1}
	old, err := shapeOf(before)
	if err != nil {
		return // this is the first
	}
	for path, f := range paths {
		binary := strings.HasPrefix(path, KindInstance.String()+".")
		if !old[path] && strings.Contains(path, ".") && !binary && !leftOut(f) {
			t.Errorf("%s is new since %v, and stored even while it is zero: give it omitzero", path, before)
		}
	}
}

func leftOut(f reflect.StructField) bool {
	_, options, _ := strings.Cut(f.Tag.Get("json"), ",")
	zero, empty := strings.Contains(options, "omitzero"), strings.Contains(options, "omitempty")
	return zero || empty && f.Type.Kind() != reflect.Struct
}

func TestLeftOut(t *testing.T) {
	type all struct {
		A string   `json:"a"`
		B string   `json:"b,omitempty"`
		C struct{} `json:"c,omitempty"`
		D struct{} `json:"d,omitzero"`
	}
	for i, want := range []bool{false, true, false, true} {
		if f := reflect.TypeFor[all]().Field(i); leftOut(f) != want {
			t.Errorf("%s: %v", f.Name, !want)
		}
	}
}

// older is a DB of a cluster in which some servers are of a release that lacks a few fields and a kind.
func older(t *testing.T, lacks ...string) *DB {
	t.Helper()
	db := New(instant{}, time.Now)
	s, err := shapeOf(model.ThisRelease)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lacks {
		if !s[path] {
			t.Fatalf("%s is no part of a record", path)
		}
		delete(s, path)
	}
	t0 := *db.cur.Load()
	t0.shape, t0.stored = s, model.Release{Minor: 0}
	db.cur.Store(&t0)
	return db
}

// What a user asks for is refused while some servers do not know it, with a sentence that says what; once they do it is taken.
func TestTooNewIsRefused(t *testing.T) {
	db := older(t, "version.spec.containers.shell", "pool")
	put := func(tx *Tx) error {
		tx.PutApp(&model.App{ID: "/a"})
		tx.PutVersion(&model.AppVersion{App: "/a", Version: 1, Spec: &model.Spec{Containers: []model.Container{{Name: "x"}, {Shell: "true"}}}})
		return nil
	}
	err := db.Update(t.Context(), put)
	if !errors.Is(err, ErrTooNew) || !strings.Contains(err.Error(), "version.spec.containers.shell is not known to Gantry 0.0") {
		t.Errorf("a new field: %v", err)
	}
	if db.View().App("/a") != nil {
		t.Error("half of a refused transaction was written")
	}
	err = db.Update(t.Context(), func(tx *Tx) error { tx.PutPool(&model.Pool{Name: "p"}); return nil })
	if !errors.Is(err, ErrTooNew) || !strings.Contains(err.Error(), "pool is not known") {
		t.Errorf("a new kind of record: %v", err)
	}
	if err := db.Update(t.Context(), func(tx *Tx) error {
		tx.PutVersion(&model.AppVersion{App: "/a", Version: 1, Spec: &model.Spec{Containers: []model.Container{{Name: "x"}}}})
		return nil
	}); err != nil {
		t.Errorf("a record that all know: %v", err)
	}
	if err := db.SetStored(model.ThisRelease); err != nil {
		t.Fatal(err)
	}
	if err := db.Update(t.Context(), put); err != nil || db.View().Stored() != model.ThisRelease {
		t.Errorf("after all servers were upgraded: %v", err)
	}
}

// What Gantry notes down for itself is left out while some servers do not know it, on every level, and what callers hold stays whole.
func TestTooNewIsLeftOut(t *testing.T) {
	db := older(t, "instance.status.tasks.pid", "instance.evict.why", "node.attributes", "node.custom.items", "node.release")
	i := &model.Instance{ID: "i", Evict: &model.Eviction{Kind: model.EvictMove, Why: "w"}, Status: model.Status{Tasks: []model.TaskStatus{{Name: "a"}, {Name: "b", PID: 7}}}}
	n := &model.Node{
		ID: "n", Name: "n", Attributes: map[string]string{"a": "b"}, Release: model.ThisRelease,
		Custom: map[string]model.Custom{"disk": {Items: []string{"x"}}, "fpga": {Amount: 1000}},
	}
	if err := db.Update(t.Context(), func(tx *Tx) error { tx.PutInstance(i); tx.PutNode(n); return nil }); err != nil {
		t.Fatal(err)
	}
	gotI, gotN := *db.View().Instance("i"), *db.View().Node("n")
	gotI.Revision, gotN.Revision = 0, 0
	wantI := model.Instance{ID: "i", Evict: &model.Eviction{Kind: model.EvictMove}, Status: model.Status{Tasks: []model.TaskStatus{{Name: "a"}, {Name: "b"}}}}
	wantN := model.Node{ID: "n", Name: "n", Custom: map[string]model.Custom{"disk": {}, "fpga": {Amount: 1000}}}
	if !reflect.DeepEqual(gotI, wantI) || !reflect.DeepEqual(gotN, wantN) {
		t.Errorf("stored are\n%+v\n%+v", gotI, gotN)
	}
	if i.Evict.Why != "w" || i.Status.Tasks[1].PID != 7 || len(n.Attributes) != 1 || len(n.Custom["disk"].Items) != 1 {
		t.Errorf("what was to be stored has changed: %+v, %+v", i, n)
	}
	same := &model.Instance{ID: "j"}
	if err := db.Update(t.Context(), func(tx *Tx) error { tx.PutInstance(same); return nil }); err != nil || db.View().Instance("j") != same {
		t.Errorf("a record with nothing new was copied: %v", err)
	}
}

// One transaction that is too new does not spoil those that are made durable with it.
func TestTooNewAmongOthers(t *testing.T) {
	db := older(t, "pool")
	db.turn <- struct{}{} // so that both wait
	errs := make(chan error, 2)
	go func() {
		errs <- db.Update(t.Context(), func(tx *Tx) error { tx.PutPool(&model.Pool{Name: "p"}); return nil })
	}()
	go func() {
		errs <- db.Update(t.Context(), func(tx *Tx) error { tx.PutApp(&model.App{ID: "/a"}); return nil })
	}()
	queued(t, db, 2)
	<-db.turn
	refused := 0
	for range 2 {
		if errors.Is(<-errs, ErrTooNew) {
			refused++
		}
	}
	if refused != 1 || db.View().App("/a") == nil {
		t.Errorf("%d were refused, and the app is %v", refused, db.View().App("/a"))
	}
}

// A release whose records this program does not know is refused: nobody could say what it has.
func TestSetStoredUnknown(t *testing.T) {
	db := New(instant{}, time.Now)
	if err := db.SetStored(model.Release{Major: 0, Minor: 0}); err == nil || !strings.Contains(err.Error(), "0.0") {
		t.Errorf("records of 0.0: %v", err)
	}
}

// What may be stored outlives that all records are read again.
func TestStoredStays(t *testing.T) {
	db := older(t, "pool")
	before := db.View().Stored()
	db.Replace(db.View().Revision() + 1)
	if err := db.Update(t.Context(), func(tx *Tx) error { tx.PutPool(&model.Pool{Name: "p"}); return nil }); !errors.Is(err, ErrTooNew) || db.View().Stored() != before {
		t.Errorf("a new kind of record: %v", err)
	}
}

// BenchmarkFit is what each record costs besides while an upgrade is under way.
func BenchmarkFit(b *testing.B) {
	s, err := shapeOf(model.ThisRelease)
	if err != nil {
		b.Fatal(err)
	}
	i := &model.Instance{
		ID: "checkout-1", App: "/shop/checkout", Version: 12, Desired: model.Run, Node: "n", Ports: []uint16{31000, 31001}, Created: time.Now(),
		Status: model.Status{Attempt: 1, Phase: model.PhaseRunning, Healthy: model.Healthy, Ready: true, Tasks: []model.TaskStatus{{Name: "main", PID: 1234567}}},
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.fit(model.ThisRelease, KindInstance, i); err != nil {
			b.Fatal(err)
		}
	}
}
