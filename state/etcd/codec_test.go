package etcd

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// typical returns a running instance with two ports and one task, as long as they get in practice.
func typical(n int) *model.Instance {
	at := time.Date(2026, 5, 9, 7, 29, 33, 123456789, time.UTC)
	return &model.Instance{
		ID: model.InstanceID(fmt.Sprintf("checkout-%08d", n)), App: "/shop/backend/checkout", Version: 12, Created: at,
		Desired: model.Run, Node: "0b9d6b4e-7c3a-4f6e-9d2b-1a2b3c4d5e6f", Ports: []uint16{31000, 31001},
		Status: model.Status{
			Attempt: 1, Phase: model.PhaseRunning, Since: at.Add(3 * time.Second), Started: at.Add(time.Second),
			Healthy: model.Healthy, Ready: true, Tasks: []model.TaskStatus{{Name: "main", PID: 1234567}},
		},
	}
}

// TestInstanceSize protects the promise of 400 bytes for an instance in etcd, its key included.
func TestInstanceSize(t *testing.T) {
	i := typical(1)
	val, err := encode(nil, i)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(i)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := state.KeyOf(i)
	size := len(encodeKey(key)) + len(val)
	t.Logf("key %d bytes, value %d bytes; as JSON %d bytes", len(encodeKey(key)), len(val), len(asJSON))
	if size >= 400 {
		t.Errorf("an instance takes %d bytes", size)
	}
}

// TestEveryField protects that no field of a record is lost, also fields that the model gains later.
func TestEveryField(t *testing.T) {
	for _, val := range []any{&model.App{}, &model.AppVersion{}, &model.Instance{}, &model.Deployment{}, &model.Node{},
		&model.NodeSettings{}, &model.Role{}, &model.Pool{}, &model.Reservation{}, &model.PersistentVolume{}, &model.Losses{},
		&model.Cluster{}, &model.Machine{}, &model.JoinToken{}, &model.Revocation{}} {
		n := 0
		fillIn(reflect.ValueOf(val).Elem(), &n)
		reflect.ValueOf(val).Elem().FieldByName("Revision").SetUint(0)
		key, _ := state.KeyOf(val)
		b, err := encode(nil, val)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode(key, b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, val) {
			t.Errorf("read back\n%+v, want\n%+v", got, val)
		}
	}
}

// fillIn gives every field below v a value of its own.
func fillIn(v reflect.Value, n *int) {
	*n++
	if t, ok := v.Addr().Interface().(*time.Time); ok {
		*t = time.Unix(int64(*n), int64(*n)).UTC()
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fillIn(v.Field(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillIn(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fillIn(v.Index(0), n)
		fillIn(v.Index(1), n)
	case reflect.Map:
		key, val := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fillIn(key, n)
		fillIn(val, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, val)
	case reflect.String:
		v.SetString(fmt.Sprint("text<&>", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(float64(*n))
	default:
		if v.CanInt() {
			v.SetInt(int64(*n))
		} else {
			v.SetUint(uint64(*n))
		}
	}
}

// TestDecodeRefuses protects that damage is refused, with an error that names the key and says what is wrong.
func TestDecodeRefuses(t *testing.T) {
	app := state.Key{Kind: state.KindApp, ID: "/a"}
	inst := state.Key{Kind: state.KindInstance, ID: "i"}
	version := state.Key{Kind: state.KindVersion, ID: "/a\x0000000000000000000001"}
	for _, c := range []struct {
		key  state.Key
		val  string
		want string
	}{
		{app, "", "it is empty"},
		{app, "{}", "format 123 is not known"},
		{app, "\x02", "format 2 is not known"},
		{app, "\x01", "EOF"},
		{app, "\x01null", "it is null"},
		{app, "\x01{\"id\":\"/b\"}", `it holds app "/b"`},
		{app, "\x01{\"id\":\"/a\"} {}", "something follows"},
		{app, "\x01{\"id\":\"/a\",\"new\":1}", `unknown field "new"`},
		{version, "\x01{\"app\":\"/a\",\"version\":1}", "it has no spec"},
		{version, "\x01{\"app\":\"/a\",\"version\":2,\"spec\":{}}", "it holds version"},
		{inst, "\x01{}", "format 1 is not known"},
		{inst, "\x02\xff", "a field is not known"},
		{inst, "\x02\x02\x01\x01\x01a", "tag 1 follows tag 2"},
		{inst, "\x02\x01\x05ab", "tag 1 has no number"},
		{inst, "\x02\x10\x01\x02\x04\x00", "how it ended"},
	} {
		_, err := decode(c.key, []byte(c.val))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), fmt.Sprintf("%q", encodeKey(c.key))) {
			t.Errorf("decode %q: %v, want %q", c.val, err, c.want)
		}
	}
}

func TestKeys(t *testing.T) {
	for _, key := range []state.Key{{Kind: state.KindApp, ID: "/shop/web"}, {Kind: state.KindVersion, ID: "/a\x0001"}, {Kind: state.KindNode, ID: "n"}} {
		got, err := decodeKey(encodeKey(key))
		if err != nil || got != key {
			t.Errorf("%+v became %+v, %v", key, got, err)
		}
	}
	for _, bad := range []string{"", "x", leaderKey, root, root + "app", root + "app/", root + "bad/x", "/gantry/v2/app/x"} {
		if key, err := decodeKey(bad); err == nil {
			t.Errorf("%q was taken as %+v", bad, key)
		}
	}
}

// FuzzDecode protects that no bytes make decode panic, and that what it takes is a record that is read back the same.
func FuzzDecode(f *testing.F) {
	i := typical(1)
	i.Status.Tasks[0].Exit = &model.Exit{Code: 137, Signal: 9, OOM: true, Peak: 1, Limit: 2, Lost: "reboot", At: i.Created}
	for kind, val := range []any{&model.App{ID: "/a"}, &model.AppVersion{App: "/a", Spec: &model.Spec{}}, i, &model.Deployment{}, &model.Node{},
		&model.NodeSettings{}, &model.Role{}, &model.Pool{}, &model.Reservation{}, &model.PersistentVolume{}, &model.Losses{},
		&model.Cluster{}, &model.Machine{}, &model.JoinToken{}, &model.Revocation{}} {
		b, err := encode(nil, val)
		if err != nil {
			f.Fatal(err)
		}
		key, _ := state.KeyOf(val)
		f.Add(byte(kind), key.ID, b)
	}
	f.Fuzz(func(t *testing.T, kind byte, id string, b []byte) {
		key := state.Key{Kind: state.Kind(kind % byte(state.KindRevocation+1)), ID: id}
		val, err := decode(key, b)
		if err != nil {
			return
		}
		again, err := encode(nil, val)
		if err != nil {
			t.Skip() // a time that JSON reads but does not write
		}
		got, err := decode(key, again)
		if err != nil {
			t.Fatalf("%q is taken, but not %q: %v", b, again, err)
		}
		final, err := encode(nil, got)
		if err != nil || string(final) != string(again) {
			t.Fatalf("%q becomes %q", again, final)
		}
	})
}

// BenchmarkInstance compares the stored form of an instance with JSON.
func BenchmarkInstance(b *testing.B) {
	i := typical(1)
	key, _ := state.KeyOf(i)
	compact, err := encode(nil, i)
	if err != nil {
		b.Fatal(err)
	}
	text, err := json.Marshal(i)
	if err != nil {
		b.Fatal(err)
	}
	run := func(name string, size int, fn func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := fn(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(size), "bytes/record")
		})
	}
	run("encode/compact", len(compact), func() error { _, err := encode(nil, i); return err })
	run("decode/compact", len(compact), func() error { _, err := decode(key, compact); return err })
	run("encode/json", len(text), func() error { _, err := json.Marshal(i); return err })
	run("decode/json", len(text), func() error { _, err := decodeJSON[model.Instance](text); return err })
}
