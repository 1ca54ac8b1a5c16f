package model

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"time"
)

// fillIn gives every field below v a value other than zero.
func fillIn(v reflect.Value) {
	if t, ok := v.Addr().Interface().(*time.Time); ok {
		*t = time.Unix(1, 0).UTC()
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fillIn(v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillIn(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 4))
		fillIn(v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		val := reflect.New(v.Type().Elem()).Elem()
		fillIn(val)
		v.SetMapIndex(reflect.ValueOf("k").Convert(v.Type().Key()), val)
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(3)
	default:
		if v.CanInt() {
			v.SetInt(7)
		} else {
			v.SetUint(7)
		}
	}
}

// eachLeaf calls fn for every value below v that can be changed in place, with its path.
func eachLeaf(v reflect.Value, path string, fn func(path string, v reflect.Value)) {
	if _, ok := v.Interface().(time.Time); ok {
		fn(path, v)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			eachLeaf(v.Field(i), path+"."+v.Type().Field(i).Name, fn)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			eachLeaf(v.Elem(), path, fn)
		}
	case reflect.Slice:
		for i := range v.Len() {
			eachLeaf(v.Index(i), fmt.Sprintf("%s[%d]", path, i), fn)
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			if e := v.MapIndex(k); e.Kind() == reflect.Slice {
				eachLeaf(e, fmt.Sprintf("%s[%v]", path, k), fn)
			}
		}
		fn(path, v)
	default:
		fn(path, v)
	}
}

// checkDeep changes every leaf of clone and checks that orig keeps its values.
func checkDeep(t *testing.T, orig, clone any) {
	t.Helper()
	if !reflect.DeepEqual(orig, clone) {
		t.Fatalf("the clone differs:\n%+v\n%+v", orig, clone)
	}
	before := leaves(orig)
	eachLeaf(reflect.ValueOf(clone).Elem(), "", func(path string, v reflect.Value) {
		switch {
		case v.Kind() != reflect.Map:
			v.SetZero()
		case !v.IsNil():
			v.SetMapIndex(reflect.ValueOf("k").Convert(v.Type().Key()), reflect.Value{})
		}
	})
	for i, now := range leaves(orig) {
		if now != before[i] {
			t.Errorf("%s became %s by a change of the clone", before[i], now)
		}
	}
}

func leaves(v any) (out []string) {
	eachLeaf(reflect.ValueOf(v).Elem(), "", func(path string, v reflect.Value) {
		out = append(out, fmt.Sprintf("%s=%v", path, v.Interface()))
	})
	return out
}

// TestSpecClone protects law 2: defaults, and whoever else works on a copy, must not reach what the user wrote.
func TestSpecClone(t *testing.T) {
	s := &Spec{}
	fillIn(reflect.ValueOf(s).Elem())
	checkDeep(t, s, s.Clone())
	checkDeep(t, &Spec{}, (&Spec{}).Clone())
}

// TestWithDefaults protects the defaults that the documentation of each field states.
func TestWithDefaults(t *testing.T) {
	s := &Spec{
		ID: "/a", Containers: []Container{{Command: []string{"x"}}, {Name: "b", Image: "i", CPUs: 5, Memory: GiB, Pull: PullNever}},
		Endpoints: []Endpoint{{Name: "http"}, {Name: "dns", Protocol: "udp"}},
		Readiness: []Check{{HTTP: &HTTPCheck{Endpoint: "http"}}, {Command: &CommandCheck{Command: []string{"ok"}}}},
	}
	before := mustJSON(t, s)
	d := s.WithDefaults()
	if after := mustJSON(t, s); after != before {
		t.Errorf("what was written became %s", after)
	}
	want := `{"id":"/a","instances":1,"containers":[` +
		`{"name":"main","pull":"missing","command":["x"],"cpus":0.1,"memory":"128MiB"},` +
		`{"name":"b","image":"i","pull":"never","cpus":0.005,"memory":"1GiB"}],` +
		`"endpoints":[{"name":"http","protocol":"tcp"},{"name":"dns","protocol":"udp"}],` +
		`"readiness":[{"http":{"endpoint":"http","path":"/","scheme":"http"},"grace":"10s","interval":"5s","timeout":"3s","failures":3},` +
		`{"command":{"container":"main","command":["ok"]},"grace":"10s","interval":"5s","timeout":"3s","failures":3}],` +
		`"restart":{"backoff":"1s","factor":2,"max":"5m0s","reset":"5m0s"},"stop":{"grace":"10s"},` +
		`"update":{"minHealthy":"100%","maxSurge":"25%","minHealthyTime":"0s","deadline":"5m0s"},"unreachable":{"replaceAfter":"1m0s","expungeAfter":"10m0s"},"killOrder":"youngest-first","pool":"default","role":"/","priority":50}`
	if got := mustJSON(t, d); got != want {
		t.Errorf("defaults:\n got %s\nwant %s", got, want)
	}
	if got := mustJSON(t, d.WithDefaults()); got != want {
		t.Errorf("defaults of defaults: %s", got)
	}
	none := (&Spec{}).WithDefaults()
	if none.Update.MinHealthyTime.Std() != time.Second {
		t.Error("without checks, an instance must be healthy for a second")
	}
}

func TestResources(t *testing.T) {
	s := &Spec{Containers: []Container{{}, {CPUs: 500, Memory: GiB, Disk: 3 * GiB}}}
	got, want := s.Resources(), Resources{CPUs: 600, Memory: GiB + 128*MiB, Disk: 3 * GiB}
	if got != want || got != s.WithDefaults().Resources() {
		t.Errorf("%+v, want %+v", got, want)
	}
	if sum := want.Add(want).Sub(want); sum != want || !want.Fits(want) {
		t.Error("sums are wrong")
	}
	for _, more := range []Resources{{CPUs: 601}, {Memory: 2 * GiB}, {Disk: 4 * GiB}} {
		if want.Fits(more) {
			t.Errorf("%+v fits", more)
		}
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestTemplate protects what restarts an app and what does not: each field of the spec belongs to one of the two.
func TestTemplate(t *testing.T) {
	full := func() *AppVersion {
		v := &AppVersion{}
		fillIn(reflect.ValueOf(v).Elem())
		return v
	}
	base := full().Template()
	kept := map[string]bool{
		"Instances": true, "Labels": true, "Update": true, "Unreachable": true, "KillOrder": true,
		"Role": true, "Priority": true, "Placement": true, "Spread": true,
	}
	for i := range reflect.TypeFor[Spec]().NumField() {
		name := reflect.TypeFor[Spec]().Field(i).Name
		v := full()
		eachLeaf(reflect.ValueOf(v.Spec).Elem().Field(i), name, func(_ string, f reflect.Value) { change(f) })
		if same := v.Template() == base; same != kept[name] {
			t.Errorf("a change of %s keeps the template: %t, want %t", name, same, kept[name])
		}
	}
	eachLeaf(reflect.ValueOf(full().Spec.Containers).Index(0), "", func(path string, _ reflect.Value) {
		v := full()
		eachLeaf(reflect.ValueOf(v.Spec.Containers).Index(0), "", func(p string, f reflect.Value) {
			if p == path {
				change(f)
			}
		})
		if v.Template() == base {
			t.Errorf("a change of containers[0]%s keeps the template", path)
		}
	})
	v := full()
	if v.Version, v.Note, v.Created = 99, "other", time.Unix(9, 9); v.Template() != base {
		t.Error("a new version alone changes the template")
	}
	if v.Restarts++; v.Template() == base {
		t.Error("a restart keeps the template")
	}
	written, implied := full(), full()
	implied.Spec.Containers[0].Memory, written.Spec.Containers[0].Memory = 0, DefaultMemory
	if written.Template() != implied.Template() {
		t.Error("writing a default down changes the template")
	}
}

// change gives a leaf another value than fillIn did.
func change(v reflect.Value) {
	switch {
	case v.Kind() == reflect.Map:
		v.SetMapIndex(reflect.ValueOf("more").Convert(v.Type().Key()), reflect.Zero(v.Type().Elem()))
	case v.Kind() == reflect.String:
		v.SetString("other")
	case v.Kind() == reflect.Bool:
		v.SetBool(false)
	case v.Kind() == reflect.Float64:
		v.SetFloat(9)
	case v.CanInt():
		v.SetInt(9)
	default:
		v.SetUint(9)
	}
}

// FuzzSpec protects that no document makes decoding and validation panic, and what Validate promises of a valid spec.
func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"id":"/a","containers":[{"command":["x"]}]}`))
	for _, c := range invalid {
		s := valid()
		c.damage(s)
		b, err := json.Marshal(s)
		if err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.DisallowUnknownFields()
		var s Spec
		if dec.Decode(&s) != nil {
			return
		}
		before := mustJSON(t, &s)
		errs := s.Validate()
		if again := s.Validate(); !reflect.DeepEqual(errs, again) {
			t.Fatalf("%v, then %v", errs, again)
		}
		if errs != nil {
			return
		}
		d := s.WithDefaults()
		text := mustJSON(t, d)
		if again := mustJSON(t, d.WithDefaults()); again != text {
			t.Errorf("defaults are not stable:\n%s\n%s", text, again)
		}
		if errs := d.Validate(); errs != nil {
			t.Errorf("valid, but not with defaults: %v", errs)
		}
		if r := s.Resources(); r.CPUs < 0 || r.Memory < 0 || r.Disk < 0 {
			t.Errorf("resources overflow: %+v", r)
		}
		_ = (&AppVersion{Spec: &s}).Template()
		if after := mustJSON(t, &s); after != before {
			t.Errorf("the spec was changed from %s to %s", before, after)
		}
		checkDeep(t, &s, s.Clone())
	})
}
