// Package specfile reads apps from files: YAML or JSON, one or several documents. It is strict and says of everything
// that is wrong which field and line it is in. Addresses and paths in a file are relative to the file.
package specfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/gantry-os/gantry/model"
	"go.yaml.in/yaml/v3"
)

// MaxSize bounds a file, in bytes.
const MaxSize = 4 << 20

// Doc is one app of a file.
type Doc struct {
	Spec *model.Spec
	file string
	line map[string]int // of every field that is written, by path
}

// Error is something wrong with a file.
type Error struct {
	File    string
	Line    int    // 0 when it is not known
	Path    string // of the field, such as containers[0].image; empty for the document
	Message string
}

func (e Error) Error() string {
	at := e.File
	if e.Line > 0 {
		at += fmt.Sprintf(":%d", e.Line)
	}
	if e.Path != "" {
		at += ": " + e.Path
	}
	return at + ": " + e.Message
}

// Errors is everything wrong with a file, one per line.
type Errors []Error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// syntaxError moves the line number out of what the YAML parser says, such as "yaml: line 3: ...".
func syntaxError(name string, err error) Error {
	e := Error{File: name, Message: strings.TrimPrefix(err.Error(), "yaml: ")}
	if _, scan := fmt.Sscanf(e.Message, "line %d:", &e.Line); scan == nil {
		_, e.Message, _ = strings.Cut(e.Message, ": ")
	}
	return e
}

// Read returns the apps in r, checked. name stands for the file in errors; dir is what relative paths in it start from.
func Read(r io.Reader, name, dir string) ([]Doc, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > MaxSize {
		return nil, Errors{{File: name, Message: "is more than 4 MiB"}}
	}
	var docs []Doc
	var wrong Errors
	for dec := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var node yaml.Node
		err := dec.Decode(&node)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, append(wrong, syntaxError(name, err))
		}
		if len(node.Content) == 0 || node.Content[0].ShortTag() == "!!null" {
			continue
		}
		doc, errs := readDoc(node.Content[0], name, dir)
		docs, wrong = append(docs, doc), append(wrong, errs...)
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	if len(docs) == 0 {
		return nil, Errors{{File: name, Message: "describes no app"}}
	}
	return docs, nil
}

func readDoc(node *yaml.Node, name, dir string) (Doc, Errors) {
	d := decoder{file: name, line: map[string]int{}, left: 1 << 18}
	doc := Doc{Spec: &model.Spec{}, file: name, line: d.line}
	d.value(node, "", reflect.ValueOf(doc.Spec).Elem())
	if len(d.errs) > 0 {
		return doc, d.errs
	}
	resolve(doc.Spec, dir)
	for _, e := range doc.Spec.Validate() {
		d.errs = append(d.errs, doc.At(e.Path, e.Message))
	}
	return doc, d.errs
}

// At makes an error about a field, with the line of it or of what holds it.
func (d *Doc) At(path, message string) Error {
	e := Error{File: d.file, Path: path, Message: message}
	for {
		if line, ok := d.line[path]; ok {
			e.Line = line
			return e
		}
		i := strings.LastIndexAny(path, ".[")
		if path == "" {
			return e
		}
		path = path[:max(i, 0)]
	}
}

// resolve makes relative file: addresses and host paths absolute.
func resolve(s *model.Spec, dir string) {
	for i := range s.Volumes {
		if p := s.Volumes[i].HostPath; p != "" && !filepath.IsAbs(p) {
			s.Volumes[i].HostPath = filepath.Join(dir, p)
		}
	}
	for i := range s.Containers {
		for j := range s.Containers[i].Artifacts {
			a := &s.Containers[i].Artifacts[j]
			if u, err := url.Parse(a.URI); err == nil && u.Scheme == "file" && u.Opaque != "" {
				if p, err := url.PathUnescape(u.Opaque); err == nil {
					a.URI = (&url.URL{Scheme: "file", Path: filepath.Join(dir, p)}).String()
				}
			}
		}
	}
}
