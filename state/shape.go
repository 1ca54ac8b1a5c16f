package state

import (
	"embed"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/gantry-os/gantry/model"
)

// While a cluster is upgraded, servers of two releases read what either writes, and the older ones know nothing of what records
// have gained since. So until all servers are of the newer release, nothing is written that the older one does not have: what users
// ask for is refused with a sentence, and what Gantry notes down for itself is left out, as if the older release had written
// it. The shape of a release, a file in shapes, says what its records have. The newest is held to the model by a test.

//go:embed shapes/*.txt
var shapes embed.FS

// shape is what records of one release have: kinds, and kind.field.field for the fields of each and of what they hold.
type shape map[string]bool

// shapeOf returns the shape of a release. This program has those of its own release and of the ones before.
func shapeOf(r model.Release) (shape, error) {
	b, err := shapes.ReadFile("shapes/" + r.String() + ".txt")
	if err != nil {
		return nil, fmt.Errorf("the records of Gantry %v are not known to Gantry %v", r, model.ThisRelease)
	}
	s := shape{}
	for line := range strings.Lines(string(b)) {
		s[strings.TrimSpace(line)] = true
	}
	return s, nil
}

// asked reports whether records of a kind hold what a user asked for: nothing may be left out of those.
func asked(k Kind) bool {
	switch k {
	case KindVersion, KindSettings, KindRole, KindPool, KindReservation:
		return true
	}
	return false
}

// fit returns what may be written of a record in place of it. val stays as it is.
func (s shape) fit(stored model.Release, k Kind, val any) (any, error) {
	out, missing := reflect.ValueOf(val), k.String()
	if s[missing] {
		if out, missing = s.cut(missing, out); missing == "" || !asked(k) {
			return out.Interface(), nil
		}
	}
	return nil, fmt.Errorf("%w: %s is not known to Gantry %v, which some servers still run: upgrade all servers first", ErrTooNew, missing, stored)
}

// cut returns v, or a copy without what s does not have, and the first such thing that it held; none for v itself.
func (s shape) cut(path string, v reflect.Value) (reflect.Value, string) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return v, ""
		}
		in, missing := s.cut(path, v.Elem())
		if missing == "" {
			return v, ""
		}
		out := reflect.New(v.Type().Elem())
		out.Elem().Set(in)
		return out, missing
	case reflect.Struct:
		return s.cutStruct(path, v)
	case reflect.Slice:
		return s.cutSlice(path, v)
	case reflect.Map:
		return s.cutMap(path, v)
	}
	return v, ""
}

func (s shape) cutSlice(path string, v reflect.Value) (reflect.Value, string) {
	out, first := v, ""
	for i := range v.Len() {
		in, missing := s.cut(path, v.Index(i))
		if missing == "" {
			continue
		}
		if first == "" {
			out, first = reflect.MakeSlice(v.Type(), v.Len(), v.Len()), missing
			reflect.Copy(out, v)
		}
		out.Index(i).Set(in)
	}
	return out, first
}

func (s shape) cutMap(path string, v reflect.Value) (reflect.Value, string) {
	out, first := v, ""
	for key, elem := range v.Seq2() {
		in, missing := s.cut(path, elem)
		if missing == "" {
			continue
		}
		if first == "" {
			out, first = reflect.MakeMapWithSize(v.Type(), v.Len()), missing
			for k, e := range v.Seq2() {
				out.SetMapIndex(k, e)
			}
		}
		out.SetMapIndex(key, in)
	}
	return out, first
}

func (s shape) cutStruct(path string, v reflect.Value) (reflect.Value, string) {
	out, first := v, ""
	for i, f := range fieldsOf(v.Type()) {
		if f == "" || v.Field(i).IsZero() {
			continue
		}
		at := path + "." + f
		in, missing := reflect.Zero(v.Field(i).Type()), at
		if s[at] {
			if in, missing = s.cut(at, v.Field(i)); missing == "" {
				continue
			}
		}
		if first == "" {
			out, first = reflect.New(v.Type()).Elem(), missing
			out.Set(v)
		}
		out.Field(i).Set(in)
	}
	return out, first
}

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
)

// fieldsOf returns the name of each field of a struct as it is stored, "" for one that is not; nothing for a type that is
// stored as a whole, such as a time.
func fieldsOf(t reflect.Type) []string {
	if t.Implements(jsonMarshaler) || t.Implements(textMarshaler) {
		return nil
	}
	names := make([]string, t.NumField())
	for i := range names {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case !f.IsExported() || tag == "-":
		case tag != "":
			names[i] = tag
		default:
			names[i] = f.Name
		}
	}
	return names
}
