package rpc

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fill sets everything in v to something that is not zero, and different from its neighbours.
func fill(v reflect.Value, n *int) {
	*n++
	if v.Type() == reflect.TypeFor[wire.Routes]() {
		fill(v.FieldByName("Change"), n) // the rest is made of it
		return
	}
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000+int64(*n), 123_456_789).UTC()))
		return
	case time.Duration:
		v.SetInt(int64(*n) * int64(time.Millisecond))
		return
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.AddrFrom4([4]byte{10, 0, 0, byte(*n)})))
		return
	case model.Phase:
		v.SetString(string(model.PhaseBackoff))
		return
	case model.Health:
		v.SetString(string(model.Unhealthy))
		return
	case *model.Spec:
		v.Set(reflect.ValueOf(&model.Spec{ID: "/shop/web", Containers: []model.Container{{Shell: "true", CPUs: 250}}}))
		return
	case model.Node:
		v.Set(reflect.ValueOf(model.Node{ID: "n-1", Name: "host-1", Capacity: model.Resources{CPUs: 4000, Memory: model.GiB}, Version: "0.5.0"}))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type() != reflect.TypeFor[model.Status]() || v.Type().Field(i).Name != "Away" { // which no agent says
				fill(v.Field(i), n)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 2 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(key, n)
			fill(value, n)
			v.SetMapIndex(key, value)
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("text-%d", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n % 200))
	default:
		panic("fill: " + v.Type().String())
	}
}

func full[T any]() T {
	var v T
	n := 0
	fill(reflect.ValueOf(&v).Elem(), &n)
	return v
}

// codable is a message that goes both ways.
type codable interface {
	encode() []byte
	decode([]byte) error
}

// parts returns one message of m's type for each of its fields, with everything in that field set.
func parts[M any, P interface {
	*M
	codable
}]() map[string]codable {
	out := map[string]codable{}
	var zero M
	for i := range reflect.TypeOf(zero).NumField() {
		var m M
		n := 0
		fill(reflect.ValueOf(&m).Elem().Field(i), &n)
		out[reflect.TypeOf(zero).Field(i).Name] = P(&m)
	}
	return out
}

// messages returns one of each kind, by name.
func messages() map[string]codable {
	out := map[string]codable{}
	for of, all := range map[string]map[string]codable{
		"agent": parts[fromAgent](), "server": parts[fromServer](), "caller": parts[fromCaller](), "callee": parts[fromCallee](),
	} {
		for name, m := range all {
			out[of+"-"+strings.ToLower(name)] = m
		}
	}
	return out
}

func fresh(m codable) codable {
	return reflect.New(reflect.TypeOf(m).Elem()).Interface().(codable)
}

func specsToJSON() specsOut {
	return specsOut{json: func(s *model.Spec) ([]byte, error) { return json.Marshal(s) }}
}

// Every field of every message comes out as it went in. A field that is added to a struct and not to its encoding fails here.
func TestRoundTrip(t *testing.T) {
	for name, m := range messages() {
		got := fresh(m)
		if err := got.decode(m.encode()); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(got, m) {
			t.Errorf("%s: sent %+v, got %+v", name, m, got)
		}
	}
	d := full[wire.Down]()
	out, in := specsToJSON(), specsIn{}
	b, err := out.encodeDown(&d)
	if err != nil {
		t.Fatal(err)
	}
	got, err := in.decodeDown(b)
	for _, r := range got.Routes {
		r.Encoded(encodeRoutes) // as those that were sent are
	}
	if err != nil || !reflect.DeepEqual(got, d) {
		t.Errorf("sent %+v, got %+v, %v", d, got, err)
	}
}

// Golden files hold what is on the wire: earlier versions wrote it so and will read it so.
func TestGolden(t *testing.T) {
	encoded := map[string][]byte{}
	for name, m := range messages() {
		encoded[name] = m.encode()
	}
	d, out := full[wire.Down](), specsToJSON()
	b, err := out.encodeDown(&d)
	if err != nil {
		t.Fatal(err)
	}
	encoded["down"] = b
	for name, b := range encoded {
		file := filepath.Join("testdata", name+".hex")
		text := hex.Dump(b)
		if *update {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(file); err != nil || string(want) != text {
			t.Errorf("%s: is on the wire\n%snot as in its golden file: %v", name, text, err)
		}
	}
}

// What a later version adds is skipped: fields in every message, and messages of other kinds.
func TestUnknownIsSkipped(t *testing.T) {
	var e encoder
	e.uint(900, 7)
	e.text(901, "later")
	e.time(902, time.Unix(1, 0))
	e.message(903, func(e *encoder) { e.text(1, "x") })
	e.b = protowire.AppendFixed32(protowire.AppendTag(e.b, 904, protowire.Fixed32Type), 1)
	for name, m := range messages() {
		got := fresh(m)
		if err := got.decode(slices.Concat(e.b, m.encode(), e.b)); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
		none := fresh(m)
		if err := none.decode(e.b); err != nil || !reflect.DeepEqual(none, fresh(m)) {
			t.Errorf("%s: an unknown kind is read as %+v, %v", name, none, err)
		}
	}
}

// A spec goes over the wire once in a session, and again after a full message.
func TestSpecsOnce(t *testing.T) {
	web, db := &model.Spec{ID: "/web"}, &model.Spec{ID: "/db"}
	set := func(full bool, specs ...*model.Spec) wire.Down {
		d := wire.Down{Full: full}
		for i, s := range specs {
			d.Set = append(d.Set, wire.Assignment{ID: model.InstanceID(fmt.Sprint("i-", i)), Spec: s})
		}
		return d
	}
	coded := 0
	out := specsOut{json: func(s *model.Spec) ([]byte, error) { coded++; return json.Marshal(s) }}
	in := specsIn{}
	for i, step := range []struct {
		d    wire.Down
		want int
	}{
		{set(true, web, web, db), 2}, {set(false, web), 2}, {set(false, db, nil, web), 2}, {set(true, db), 3}, {set(false, web), 4},
	} {
		b, err := out.encodeDown(&step.d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := in.decodeDown(b)
		if err != nil || !reflect.DeepEqual(got, step.d) {
			t.Errorf("step %d: got %+v, %v", i, got, err)
		}
		if coded != step.want {
			t.Errorf("step %d: %d specs were sent, want %d", i, coded, step.want)
		}
	}
	if len(in) != 2 {
		t.Errorf("the agent keeps %d specs, want those since the full message", len(in))
	}
}

// A long session forgets its specs in time, on both sides.
func TestSpecsAreForgotten(t *testing.T) {
	out, in := specsToJSON(), specsIn{}
	for i := range 3 * maxSpecs {
		d := wire.Down{Set: []wire.Assignment{{ID: "a", Spec: &model.Spec{ID: model.AppID(fmt.Sprint("/a", i))}}}}
		b, err := out.encodeDown(&d)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := in.decodeDown(b); err != nil || got.Set[0].Spec.ID != d.Set[0].Spec.ID {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
	if len(in) > maxSpecs+1 || len(out.sent) > maxSpecs+1 {
		t.Errorf("agent and server keep %d and %d specs", len(in), len(out.sent))
	}
}

// A short message cannot stand for much memory, and long sentences are cut.
func TestDecodeBounds(t *testing.T) {
	var e encoder
	e.message(2, func(e *encoder) {
		for range maxReports + 1 {
			e.message(2, func(*encoder) {})
		}
	})
	if err := new(fromAgent).decode(e.b); err == nil {
		t.Error("a message with too many reports is accepted")
	}
	m := fromAgent{Up: &up{Reports: []wire.Report{{ID: "a", Status: model.Status{Message: strings.Repeat("é", maxSentence)}}}}}
	var got fromAgent
	if err := got.decode(m.encode()); err != nil {
		t.Fatal(err)
	}
	if s := got.Up.Reports[0].Status.Message; len(s) > maxSentence || !strings.HasSuffix(s, "é...") {
		t.Errorf("a long sentence came as %d bytes that end in %q", len(s), s[len(s)-8:])
	}
	m.Up.Reports[0].ID = model.InstanceID(strings.Repeat("a", maxName+1))
	if err := new(fromAgent).decode(m.encode()); err == nil {
		t.Error("an id of more than a kilobyte is accepted")
	}
}

// What is sent is divided so that servers take each part, in order, and nothing is lost.
func TestSplit(t *testing.T) {
	var u wire.Up
	for i := range 12_000 {
		u.Reports = append(u.Reports, wire.Report{ID: model.InstanceID(fmt.Sprint("i-", i)), Status: model.Status{Message: strings.Repeat("x", i%2000)}})
		u.RemovedVolumes = append(u.RemovedVolumes, model.VolumeID(fmt.Sprint("v-", i)))
	}
	var got wire.Up
	for part := range split(u) {
		m := fromAgent{Up: part}
		b := m.encode()
		if len(b) > maxMessage/2 {
			t.Fatalf("a part has %d bytes", len(b))
		}
		var read fromAgent
		if err := read.decode(b); err != nil {
			t.Fatal(err)
		}
		got.Reports = append(got.Reports, read.Up.Reports...)
		got.RemovedVolumes = append(got.RemovedVolumes, read.Up.Removed...)
	}
	if !reflect.DeepEqual(got, u) {
		t.Errorf("%d reports and %d volumes came of %d", len(got.Reports), len(got.RemovedVolumes), len(u.Reports))
	}
}

// fuzz decodes anything, and holds that what was read is written and read again the same.
func fuzz[M any, P interface {
	*M
	codable
}](f *testing.F) {
	for _, m := range parts[M, P]() {
		f.Add(m.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		first, second := P(new(M)), P(new(M))
		if first.decode(b) != nil {
			return
		}
		text := first.encode()
		if err := second.decode(text); err != nil {
			t.Fatalf("%+v does not decode again: %v", first, err)
		}
		if again := second.encode(); string(again) != string(text) {
			t.Fatalf("%+v became %+v", first, second)
		}
	})
}

func FuzzFromAgent(f *testing.F)  { fuzz[fromAgent](f) }
func FuzzFromServer(f *testing.F) { fuzz[fromServer](f) }
func FuzzFromCaller(f *testing.F) { fuzz[fromCaller](f) }
func FuzzFromCallee(f *testing.F) { fuzz[fromCallee](f) }

func FuzzDown(f *testing.F) {
	d, out := full[wire.Down](), specsToJSON()
	b, err := out.encodeDown(&d)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var in, again specsIn
		d, err := in.decodeDown(b)
		if err != nil {
			return
		}
		out := specsToJSON()
		text, err := out.encodeDown(&d)
		if err != nil {
			t.Skip() // a spec that JSON reads and does not write, such as one with a number that is too large
		}
		if _, err := again.decodeDown(text); err != nil {
			t.Fatalf("%+v does not decode again: %v", d, err)
		}
	})
}

// thousands returns 10,000 assignments of 100 apps, and a report of each.
func thousands() (wire.Down, up) {
	d, u := wire.Down{Full: true}, up{Seq: 1}
	now := time.Unix(1_700_000_000, 123_456_789).UTC()
	specs := make([]*model.Spec, 100)
	for i := range specs {
		specs[i] = (&model.Spec{
			ID:         model.AppID(fmt.Sprintf("/shop/app-%d", i)),
			Containers: []model.Container{{Image: "registry.example/shop/web:1.4.2", Env: map[string]string{"LOG_LEVEL": "info", "REGION": "eu"}}},
			Endpoints:  []model.Endpoint{{Name: "http"}},
		}).WithDefaults()
	}
	for i := range 10_000 {
		s := specs[i%100]
		id := model.InstanceID(fmt.Sprintf("%s-k3v9%04d", s.ID.Name(), i))
		d.Set = append(d.Set, wire.Assignment{ID: id, App: s.ID, Version: 3, Desired: model.Run, Attempt: 1, Ports: []uint16{uint16(20000 + i)}, Spec: s})
		u.Reports = append(u.Reports, wire.Report{ID: id, Status: model.Status{
			Attempt: 1, Phase: model.PhaseRunning, Since: now, Started: now, Ready: true, Tasks: []model.TaskStatus{{Name: "main", PID: 30000 + i}},
		}})
	}
	return d, u
}

// BenchmarkEncoding measures 10,000 assignments and reports, in this encoding and, to compare, in JSON.
func BenchmarkEncoding(b *testing.B) {
	d, u := thousands()
	half := fromAgent{Up: &up{Reports: u.Reports[:maxReports]}} // twice is 10,000
	size := func(b *testing.B, n int) { b.ReportMetric(float64(n)/10_000, "bytes/each") }
	out := specsToJSON()
	coded, err := out.encodeDown(&d)
	if err != nil {
		b.Fatal(err)
	}
	reports := half.encode()
	jsonDown, _ := json.Marshal(d)
	jsonUp, _ := json.Marshal(u.Reports)
	for _, c := range []struct {
		name string
		size int
		run  func() error
	}{
		{"assignments/encode", len(coded), func() error { o := specsToJSON(); _, err := o.encodeDown(&d); return err }},
		{"assignments/decode", len(coded), func() error { var in specsIn; _, err := in.decodeDown(coded); return err }},
		{"reports/encode", 2 * len(reports), func() error { half.encode(); half.encode(); return nil }},
		{"reports/decode", 2 * len(reports), func() error {
			var m, n fromAgent
			return errors.Join(m.decode(reports), n.decode(reports))
		}},
		{"json/assignments/encode", len(jsonDown), func() error { _, err := json.Marshal(d); return err }},
		{"json/assignments/decode", len(jsonDown), func() error { var out wire.Down; return json.Unmarshal(jsonDown, &out) }},
		{"json/reports/encode", len(jsonUp), func() error { _, err := json.Marshal(u.Reports); return err }},
		{"json/reports/decode", len(jsonUp), func() error { var out []wire.Report; return json.Unmarshal(jsonUp, &out) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.run(); err != nil {
					b.Fatal(err)
				}
			}
			size(b, c.size)
		})
	}
}
