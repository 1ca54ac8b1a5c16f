package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gantry-os/gantry/model"
)

// body is embedded in the input of operations that take JSON. Handlers decode it themselves, since their errors name
// each bad field, with what would be right.
type body struct{ ctx huma.Context }

var _ huma.Resolver = (*body)(nil)

// Resolve implements huma.Resolver.
func (b *body) Resolve(ctx huma.Context) []error {
	b.ctx = ctx
	return nil
}

// read decodes the body into v, a pointer. An empty body leaves v as it is when optional is set.
func (b *body) read(v any, optional bool) error {
	data, err := b.bytes()
	if err != nil || len(data) == 0 && optional {
		return err
	}
	return decode(data, v)
}

// record decodes the body into v, a pointer, and then checks it: all that is wrong is answered at once. validate may fill
// in what the body may leave out.
func (b *body) record(v any, validate func() model.FieldErrors) error {
	data, err := b.bytes()
	if err != nil {
		return err
	}
	errs, err := decodeFields(data, v)
	if err != nil {
		return err
	}
	return invalid(joined(errs, validate()))
}

// joined adds what is wrong with values to what could not be decoded, in order of the fields.
func joined(bad, wrong model.FieldErrors) model.FieldErrors {
	all := slices.Clone(bad)
	for _, e := range wrong {
		// What could not be decoded is missing now; that is no second mistake.
		if !slices.ContainsFunc(bad, func(b model.FieldError) bool { return within(b.Path, e.Path) || within(e.Path, b.Path) }) {
			all = append(all, e)
		}
	}
	slices.SortStableFunc(all, func(a, b model.FieldError) int { return cmp.Compare(a.Path, b.Path) })
	return all
}

// named adds that a record's own name is not the one in the path, unless it is wrong anyway.
func named(errs model.FieldErrors, field, name, path string) model.FieldErrors {
	if name == path || slices.ContainsFunc(errs, func(e model.FieldError) bool { return e.Path == field }) {
		return errs
	}
	return append(errs, model.FieldError{Path: field, Message: "is " + name + ", but the path names " + path})
}

// bytes reads the body, as far as it may go, and checks that it claims to be JSON.
func (b *body) bytes() ([]byte, error) {
	// Recorders in tests have no deadlines.
	_ = b.ctx.SetReadDeadline(time.Now().Add(bodyTimeout))
	data, err := io.ReadAll(io.LimitReader(b.ctx.BodyReader(), maxBody+1))
	_ = b.ctx.SetReadDeadline(time.Time{}) // else it would end the request later
	var nerr net.Error
	switch {
	case errors.As(err, &nerr) && nerr.Timeout():
		return nil, problem(http.StatusRequestTimeout, "the request's body took longer than %v", bodyTimeout)
	case err != nil:
		return nil, badRequest("cannot read the request's body: %v", err)
	case len(data) > maxBody:
		return nil, problem(http.StatusRequestEntityTooLarge, "the request's body has more than 1 MiB")
	case len(data) == 0:
		return nil, nil
	}
	return data, jsonType(b.ctx.Header("Content-Type"))
}

// jsonType insists on the type, so that no form of a web page passes for a request.
func jsonType(header string) error {
	t, _, err := mime.ParseMediaType(header)
	if err != nil || t != "application/json" && !strings.HasSuffix(t, "+json") {
		return problem(http.StatusUnsupportedMediaType, "the body's Content-Type is %q; send application/json", header)
	}
	return nil
}

// decode reads JSON strictly into v: syntax errors are answered with 400; fields that are not known, come twice or have
// the wrong type with 422, all at once.
func decode(data []byte, v any) error {
	errs, err := decodeFields(data, v)
	if err != nil {
		return err
	}
	return invalid(errs)
}

// decodeFields returns the bad fields apart, and fills v with all others. It fails on bad syntax.
func decodeFields(data []byte, v any) (model.FieldErrors, error) {
	if len(data) == 0 {
		return nil, badRequest("the request has no body; send JSON")
	}
	w := walker{data: data, dec: json.NewDecoder(bytes.NewReader(data))}
	tree, err := w.value("", reflect.TypeOf(v).Elem())
	if err == nil {
		if _, err = w.dec.Token(); errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			err = errors.New("there is more after the end of the value")
		}
	}
	if err != nil {
		return nil, badRequest("the body is not valid JSON: %s%v", w.position(err), err)
	}
	good, err := json.Marshal(tree)
	if err == nil {
		err = json.Unmarshal(good, v)
	}
	if err != nil && len(w.errs) == 0 {
		return nil, badRequest("the body cannot be decoded: %v", err)
	}
	return w.errs, nil
}

// walker reads JSON beside the Go type that it is for.
type walker struct {
	data []byte
	dec  *json.Decoder
	errs model.FieldErrors
}

// maxFieldErrors bounds what one request can make the server say.
const maxFieldErrors = 100

func (w *walker) add(path, format string, args ...any) {
	if len(w.errs) < maxFieldErrors {
		w.errs = append(w.errs, model.FieldError{Path: path, Message: fmt.Sprintf(format, args...)})
	}
}

// position says where a syntax error is.
func (w *walker) position(err error) string {
	off := w.dec.InputOffset()
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		off = max(off, syntax.Offset)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "it ends too early: "
	}
	before := w.data[:min(int(off), len(w.data))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := len(before) - (bytes.LastIndexByte(before, '\n') + 1)
	return fmt.Sprintf("line %d, column %d: ", line, max(column, 1))
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// value reads the next value and checks it against t. It returns what is good of it, nil for nothing, and fails only on
// bad syntax.
func (w *walker) value(path string, t reflect.Type) (any, error) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if !reflect.PointerTo(t).Implements(unmarshaler) {
		switch t.Kind() {
		case reflect.Struct, reflect.Map:
			return w.object(path, t)
		case reflect.Slice:
			return w.array(path, t)
		}
	}
	return w.scalar(path, t)
}

// scalar checks a value that t reads by itself, and those that hold no others.
func (w *walker) scalar(path string, t reflect.Type) (any, error) {
	var raw json.RawMessage
	if err := w.dec.Decode(&raw); err != nil {
		return nil, err
	}
	if string(raw) == "null" {
		w.add(path, "is null; leave it out, or write %s", want(t))
		return nil, nil
	}
	v := reflect.New(t).Interface()
	u, custom := v.(json.Unmarshaler)
	switch {
	case custom:
		if err := u.UnmarshalJSON(raw); err != nil && t == reflect.TypeFor[time.Time]() {
			w.add(path, "is no time: write one such as 2026-01-31T22:00:00Z")
			return nil, nil
		} else if err != nil {
			w.add(path, "%v", err)
			return nil, nil
		}
	case json.Unmarshal(raw, v) != nil:
		w.add(path, "is %s, not %s", brief(raw, t), want(t))
		return nil, nil
	}
	return raw, nil
}

func (w *walker) array(path string, t reflect.Type) (any, error) {
	open, err := w.open(path, '[', t)
	if err != nil || !open {
		return nil, err
	}
	list := []any{}
	for i := 0; w.dec.More(); i++ {
		v, err := w.value(fmt.Sprintf("%s[%d]", path, i), t.Elem())
		if err != nil {
			return nil, err
		}
		list = append(list, v) // null where it is bad, so that those after it keep their numbers
	}
	_, err = w.dec.Token()
	return list, err
}

func (w *walker) object(path string, t reflect.Type) (any, error) {
	open, err := w.open(path, '{', t)
	if err != nil || !open {
		return nil, err
	}
	fields, good, seen := fieldsOf(t), map[string]any{}, map[string]bool{}
	for w.dec.More() {
		tok, err := w.dec.Token()
		if err != nil {
			return nil, err
		}
		key, _ := tok.(string)
		at := join(path, key)
		if t.Kind() == reflect.Map {
			at = fmt.Sprintf("%s[%q]", path, key)
		}
		if seen[key] {
			w.add(at, "is given twice")
		}
		seen[key] = true
		v, err := w.member(at, key, t, fields)
		if err != nil {
			return nil, err
		}
		if v != nil {
			good[key] = v
		}
	}
	_, err = w.dec.Token()
	return good, err
}

func (w *walker) member(at, key string, t reflect.Type, fields map[string]reflect.Type) (any, error) {
	if t.Kind() == reflect.Map {
		return w.value(at, t.Elem())
	}
	if ft, ok := fields[key]; ok {
		return w.value(at, ft)
	}
	names := slices.Sorted(maps.Keys(fields))
	w.add(at, "there is no such field%s", didYouMean(key, names))
	var skip json.RawMessage
	return nil, w.dec.Decode(&skip)
}

// open reads the beginning of an array or object. Null stands for an empty one; any other value is skipped and noted.
func (w *walker) open(path string, delim json.Delim, t reflect.Type) (bool, error) {
	rest := bytes.TrimLeft(w.data[w.dec.InputOffset():], " \t\r\n,:")
	if len(rest) > 0 && rest[0] == byte(delim) {
		_, err := w.dec.Token()
		return true, err
	}
	var raw json.RawMessage
	if err := w.dec.Decode(&raw); err != nil {
		return false, err
	}
	if string(raw) != "null" || path == "" {
		w.add(path, "is %s, not %s", brief(raw, t), want(t))
	}
	return false, nil
}

// fieldsOf returns the fields of a struct by their JSON names, nil for other types.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	if t.Kind() != reflect.Struct {
		return nil
	}
	fields := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.IsExported() && name != "" && name != "-" {
			fields[name] = f.Type
		}
	}
	return fields
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// brief shows a value in an error about a field of type t. Only where a number belongs is it shown as it stands: other
// fields, and what stands in place of a list or an object, may be secrets.
func brief(raw []byte, t reflect.Type) string {
	shown := numeric(t)
	switch {
	case raw[0] == '{':
		return "an object"
	case raw[0] == '[':
		return "a list"
	case raw[0] == '"' && !shown:
		return "a string"
	case (raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9') && !shown:
		return "a number"
	case len(raw) > 60:
		return string(raw[:60]) + "..."
	}
	return string(raw)
}

func numeric(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Int, reflect.Int64, reflect.Uint64, reflect.Float64:
		return true
	}
	return false
}

// want says in words what a type takes.
func want(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64, reflect.Uint64:
		if reflect.PointerTo(t).Implements(unmarshaler) {
			return "a number or a string"
		}
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "an object"
	}
	return "a " + t.Kind().String()
}
