package specfile

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decoder fills Go values from YAML nodes by their json tags. It goes on after an error, to find them all.
type decoder struct {
	file string
	line map[string]int
	errs Errors
	left int // nodes that may still be read: aliases can make a short file long
}

func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	d.errs = append(d.errs, Error{d.file, n.Line, path, fmt.Sprintf(format, args...)})
}

func (d *decoder) value(n *yaml.Node, path string, v reflect.Value) {
	if d.left--; d.left < 0 {
		if d.left == -1 {
			d.fail(n, path, "the document has too many values")
		}
		return
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	d.line[path] = n.Line
	v.SetZero() // of what was merged in before
	if n.ShortTag() == "!!null" {
		return
	}
	if u, ok := v.Addr().Interface().(json.Unmarshaler); ok {
		d.custom(n, path, u)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, path, v.Elem())
	case reflect.Struct:
		d.object(n, path, v)
	case reflect.Slice:
		d.list(n, path, v)
	case reflect.Map:
		d.words(n, path, v)
	case reflect.String:
		if d.scalar(n, path, "a text") {
			v.SetString(n.Value)
		}
	case reflect.Bool:
		d.simple(n, path, v, "true or false")
	case reflect.Int:
		d.whole(n, path, v)
	default:
		d.simple(n, path, v, "a number")
	}
}

// custom leaves amounts to their own parsers, as the text that was written.
func (d *decoder) custom(n *yaml.Node, path string, u json.Unmarshaler) {
	if !d.scalar(n, path, "a number or a text") {
		return
	}
	text, err := json.Marshal(n.Value)
	if err == nil {
		err = u.UnmarshalJSON(text)
	}
	if err != nil {
		d.fail(n, path, "%v", err)
	}
}

func (d *decoder) scalar(n *yaml.Node, path, want string) bool {
	if n.Kind != yaml.ScalarNode {
		d.fail(n, path, "is %s; write %s", kind(n), want)
	}
	return n.Kind == yaml.ScalarNode
}

func (d *decoder) simple(n *yaml.Node, path string, v reflect.Value, want string) {
	if d.scalar(n, path, want) && n.Decode(v.Addr().Interface()) != nil {
		d.fail(n, path, "%q is not %s", n.Value, want)
	}
}

// whole reads an integer; the YAML package would cut a fraction off.
func (d *decoder) whole(n *yaml.Node, path string, v reflect.Value) {
	if !d.scalar(n, path, "a whole number") {
		return
	}
	i, err := strconv.Atoi(n.Value)
	if err != nil {
		d.fail(n, path, "%q is not a whole number", n.Value)
	}
	v.SetInt(int64(i))
}

func (d *decoder) object(n *yaml.Node, path string, v reflect.Value) {
	fields := map[string]reflect.Value{}
	var names []string
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		fields[name] = v.Field(i)
		names = append(names, name)
	}
	d.pairs(n, path, func(key, val *yaml.Node) {
		at := join(path, key.Value)
		if f, ok := fields[key.Value]; ok {
			d.value(val, at, f)
			return
		}
		hint := "known here: " + strings.Join(names, ", ")
		if i := slices.IndexFunc(names, func(s string) bool { return strings.EqualFold(s, key.Value) }); i >= 0 {
			hint = "write " + names[i]
		}
		d.fail(key, at, "no such field; %s", hint)
	})
}

func (d *decoder) list(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, path, "is %s; write a list", kind(n))
		return
	}
	for i, item := range n.Content {
		elem := reflect.New(v.Type().Elem()).Elem()
		at := fmt.Sprintf("%s[%d]", path, i)
		if item.ShortTag() == "!!null" {
			d.fail(item, at, "is empty")
			continue
		}
		d.value(item, at, elem)
		v.Set(reflect.Append(v, elem))
	}
}

// words fills a map of texts. Numbers and truth values are taken as they are written.
func (d *decoder) words(n *yaml.Node, path string, v reflect.Value) {
	m := reflect.MakeMap(v.Type())
	d.pairs(n, path, func(key, val *yaml.Node) {
		elem := reflect.New(v.Type().Elem()).Elem()
		d.value(val, join(path, key.Value), elem)
		m.SetMapIndex(reflect.ValueOf(key.Value), elem)
	})
	v.Set(m)
}

// pairs calls fn with every key and value of a mapping, those that it merges in with << first, so that its own win.
func (d *decoder) pairs(n *yaml.Node, path string, fn func(key, val *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "is %s; write fields with values", kind(n))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if key := n.Content[i]; key.ShortTag() == "!!merge" {
			d.merge(n.Content[i+1], path, fn)
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		switch {
		case key.ShortTag() == "!!merge":
		case key.Kind != yaml.ScalarNode:
			d.fail(key, path, "a key is %s; write a name", kind(key))
		case seen[key.Value]:
			d.fail(key, join(path, key.Value), "is written twice")
		default:
			seen[key.Value] = true
			fn(key, val)
		}
	}
}

func (d *decoder) merge(n *yaml.Node, path string, fn func(key, val *yaml.Node)) {
	if d.left -= 1 + len(n.Content); d.left < 0 {
		d.fail(n, path, "the document has too many values")
		return
	}
	switch n.Kind {
	case yaml.AliasNode:
		d.merge(n.Alias, path, fn)
	case yaml.SequenceNode:
		for _, item := range slices.Backward(n.Content) {
			d.merge(item, path, fn)
		}
	default:
		d.pairs(n, path, fn)
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a set of fields"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	return fmt.Sprintf("%q", n.Value)
}
