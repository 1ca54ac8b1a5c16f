package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// Resolve implements huma.Resolver.
func (b *body) Resolve(ctx huma.Context) []error {
	b.ctx = ctx
	return nil
}

// read decodes the body into v, a pointer. An empty body leaves v as it is when optional is set.
func (b *body) read(v any, optional bool) error {
	// Recorders in tests have no deadlines.
	_ = b.ctx.SetReadDeadline(time.Now().Add(bodyTimeout))
	data, err := io.ReadAll(io.LimitReader(b.ctx.BodyReader(), maxBody+1))
	_ = b.ctx.SetReadDeadline(time.Time{}) // else it would end the request later
	var nerr net.Error
	switch {
	case errors.As(err, &nerr) && nerr.Timeout():
		return problem(http.StatusRequestTimeout, "the request's body took longer than %v", bodyTimeout)
	case err != nil:
		return badRequest("cannot read the request's body: %v", err)
	case len(data) > maxBody:
		return problem(http.StatusRequestEntityTooLarge, "the request's body has more than 1 MiB")
	case len(data) == 0 && optional:
		return nil
	case len(data) == 0:
		return badRequest("the request has no body; send JSON")
	}
	if err := jsonType(b.ctx.Header("Content-Type")); err != nil {
		return err
	}
	return decode(data, v)
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
	w := walker{data: data, dec: json.NewDecoder(bytes.NewReader(data))}
	w.dec.UseNumber()
	err := w.value("", reflect.TypeOf(v).Elem())
	if err == nil {
		if _, err = w.dec.Token(); errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			err = errors.New("there is more after the end of the value")
		}
	}
	if err != nil {
		return badRequest("the body is not valid JSON: %s%v", w.position(err), err)
	}
	if len(w.errs) > 0 {
		return invalid(w.errs)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return badRequest("the body cannot be decoded: %v", err)
	}
	return nil
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

// value reads the next value and checks it against t. It fails only on bad syntax.
func (w *walker) value(path string, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(unmarshaler) {
		return w.custom(path, t)
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return w.object(path, t)
	case reflect.Slice:
		return w.array(path, t)
	}
	return w.custom(path, t)
}

// custom checks a value that t reads by itself, and those that hold no others.
func (w *walker) custom(path string, t reflect.Type) error {
	var raw json.RawMessage
	if err := w.dec.Decode(&raw); err != nil {
		return err
	}
	v := reflect.New(t).Interface()
	if string(raw) == "null" {
		w.add(path, "is null; leave it out, or write %s", want(t))
		return nil
	}
	if u, ok := v.(json.Unmarshaler); ok {
		if err := u.UnmarshalJSON(raw); err != nil {
			w.add(path, "%v", err)
		}
		return nil
	}
	if json.Unmarshal(raw, v) != nil {
		w.add(path, "is %s, not %s", brief(raw), want(t))
	}
	return nil
}

func (w *walker) array(path string, t reflect.Type) error {
	open, err := w.open(path, '[', t)
	if err != nil || !open {
		return err
	}
	for i := 0; w.dec.More(); i++ {
		if err := w.value(fmt.Sprintf("%s[%d]", path, i), t.Elem()); err != nil {
			return err
		}
	}
	_, err = w.dec.Token()
	return err
}

func (w *walker) object(path string, t reflect.Type) error {
	open, err := w.open(path, '{', t)
	if err != nil || !open {
		return err
	}
	fields := fieldsOf(t)
	seen := map[string]bool{}
	for w.dec.More() {
		tok, err := w.dec.Token()
		if err != nil {
			return err
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
		if err := w.member(at, key, t, fields); err != nil {
			return err
		}
	}
	_, err = w.dec.Token()
	return err
}

func (w *walker) member(at, key string, t reflect.Type, fields map[string]reflect.Type) error {
	if t.Kind() == reflect.Map {
		return w.value(at, t.Elem())
	}
	if ft, ok := fields[key]; ok {
		return w.value(at, ft)
	}
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	w.add(at, "there is no such field%s", didYouMean(key, names))
	var skip json.RawMessage
	return w.dec.Decode(&skip)
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
		w.add(path, "is %s, not %s", brief(raw), want(t))
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

// brief shows a value in an error.
func brief(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	}
	if len(raw) > 60 {
		return string(raw[:60]) + "..."
	}
	return string(raw)
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
