package specfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-os/gantry/model"
)

func read(t *testing.T, text string) []Doc {
	t.Helper()
	docs, err := Read(strings.NewReader(text), "app.yaml", "/srv/apps")
	if err != nil {
		t.Fatalf("read: %v\n%s", err, text)
	}
	return docs
}

const full = `# two apps
id: /shop/web
instances: 3
containers:
- image: nginx:1.27
  cpus: 0.5
  memory: 64MiB
  command: [nginx, -p, 8080]
  env: {PORT: 8080, DEBUG: true, EMPTY: , RATE: 1.50}
  artifacts:
  - {uri: "file:../bin/my%20tool", executable: true}
  - {uri: file:///etc/hosts}
  mounts: [{volume: data, path: /data}]
endpoints: [{name: http}]
volumes: [{name: data, hostPath: data/web}]
health:
- http: {endpoint: http}
  interval: 2s
  grace: 5
update: {minHealthy: 2, maxSurge: 50%, minHealthyTime: 1s}
---
---
{"id": "/two", "containers": [{"shell": "sleep 1", "memory": 67108864}]}
`

// A file in YAML and JSON means what it would mean to the API, and its relative paths start at the file.
func TestRead(t *testing.T) {
	docs := read(t, full)
	if len(docs) != 2 {
		t.Fatalf("%d apps, want 2", len(docs))
	}
	want := `{"id":"/shop/web","instances":3,"containers":[{"image":"nginx:1.27","command":["nginx","-p","8080"],` +
		`"env":{"DEBUG":"true","EMPTY":"","PORT":"8080","RATE":"1.50"},"cpus":0.5,"memory":"64MiB",` +
		`"artifacts":[{"uri":"file:///srv/bin/my%20tool","executable":true},{"uri":"file:///etc/hosts"}],` +
		`"mounts":[{"volume":"data","path":"/data"}]}],"endpoints":[{"name":"http"}],` +
		`"volumes":[{"name":"data","hostPath":"/srv/apps/data/web"}],` +
		`"health":[{"http":{"endpoint":"http"},"grace":"5s","interval":"2s"}],` +
		`"update":{"minHealthy":"2","maxSurge":"50%","minHealthyTime":"1s"}}`
	for i, want := range []string{want, `{"id":"/two","containers":[{"shell":"sleep 1","memory":"64MiB"}]}`} {
		got, err := json.Marshal(docs[i].Spec)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("app %d:\n got %s\nwant %s", i, got, want)
		}
	}
	if e := docs[0].At("containers[0].image", "no such image"); e.Error() != "app.yaml:5: containers[0].image: no such image" {
		t.Errorf("got %q", e.Error())
	}
	if e := docs[0].At("containers[0].pull", "x"); e.Line != 5 {
		t.Errorf("a field that is not written is at line %d, want that of its container, 5", e.Line)
	}
}

// What says where an app runs is read as the API reads it.
func TestPlacement(t *testing.T) {
	docs := read(t, `
id: /shop/db
role: /shop
pool: ssd
priority: 80
placement: balanced
containers:
- image: db:1
  gpus: 0.25
  gpuModels: [T4]
  custom: {licence: 1, disks: "2"}
  mounts: [{volume: data, path: /data}]
volumes:
- {name: data, persistent: {size: 10GiB}}
constraints:
- {attribute: hostname, operator: UNIQUE}
- {attribute: rack, operator: MAX_PER, value: 2}
affinity:
- {app: /shop/web, over: zone, weight: 20}
- {app: /batch/*, anti: true}
spread:
- {over: zone, targets: {a: 60, b: 40}}
`)
	got, err := json.Marshal(docs[0].Spec)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"id":"/shop/db","containers":[{"image":"db:1","gpus":0.25,"gpuModels":["T4"],"custom":{"disks":2,"licence":1},` +
		`"mounts":[{"volume":"data","path":"/data"}]}],"volumes":[{"name":"data","persistent":{"size":"10GiB"}}],"pool":"ssd",` +
		`"role":"/shop","priority":80,"placement":"balanced","constraints":[{"attribute":"hostname","operator":"UNIQUE"},` +
		`{"attribute":"rack","operator":"MAX_PER","value":"2"}],"affinity":[{"app":"/shop/web","over":"zone","weight":20},` +
		`{"app":"/batch/*","anti":true}],"spread":[{"over":"zone","targets":{"a":60,"b":40}}]}`
	if string(got) != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

// Anchors and merges work, and what is written wins over what is merged, lists included.
func TestMerge(t *testing.T) {
	docs := read(t, `
id: /m
containers:
- &base {name: one, command: [sleep, 1], env: {A: 1, B: 2}, cpus: 1}
- <<: *base
  name: two
  command: [true]
  env: {C: 3}
`)
	c := docs[0].Spec.Containers[1]
	if c.Name != "two" || len(c.Command) != 1 || len(c.Env) != 1 || c.Env["C"] != "3" || c.CPUs != 1000 {
		t.Errorf("merged: %+v", c)
	}
}

// Everything wrong is said at once, each with its line and field and what would be right.
func TestWrong(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "describes no app",
		"# nothing\n---\n":                "describes no app",
		"a: [":                            "app.yaml:1: ",
		"- id: /a":                        "app.yaml:1: is a list; write fields with values",
		"id: /a\nid: /b":                  "app.yaml:2: id: is written twice",
		"id: /a\ncontainer: []":           "app.yaml:2: container: no such field; known here: id, instances, containers",
		"id: /a\nInstances: 1":            "app.yaml:2: Instances: no such field; write instances",
		"id: /a\ninstances: many":         `app.yaml:2: instances: "many" is not a whole number`,
		"id: /a\ninstances: 1.5":          `app.yaml:2: instances: "1.5" is not a whole number`,
		"id: /a":                          "app.yaml:1: containers: has 0 entries",
		"id: a\ncontainers: [{shell: x}]": `app.yaml:1: id: write it as "/a"`,
		"id: /a\ncontainers:\n- command: sleep 5":                                             `app.yaml:3: containers[0].command: is "sleep 5"; write a list`,
		"id: /a\ncontainers:\n- shell: x\n  memory: lots":                                     `app.yaml:4: containers[0].memory: "lots" is not an amount of bytes`,
		"id: /a\ncontainers:\n- shell: x\n  cpus: [1]":                                        "app.yaml:4: containers[0].cpus: is a list; write a number or a text",
		"id: /a\ncontainers: [{shell: [x]}]":                                                  "containers[0].shell: is a list; write a text",
		"id: /a\ncontainers: [~]":                                                             "containers[0]: is empty",
		"id: /a\ncontainers: [{shell: x}]\nendpoints:\n- name: http\n  port: 99999":           "app.yaml:5: endpoints[0].port: 99999 is outside",
		"id: /a\ncontainers: [{shell: x}]\nupdate: {noRollback: perhaps}":                     `update.noRollback: "perhaps" is not true or false`,
		"id: /a\ncontainers: [{shell: x}]\nconstraints:\n- {attribute: rack, operator: ONCE}": `app.yaml:4: constraints[0].operator: "ONCE" is not one of`,
		"id: /a\ncontainers: [{shell: x}]\nconstraints:\n- {attribute: rack, op: UNIQUE}":     "app.yaml:4: constraints[0].op: no such field; known here: attribute, operator, value",
		"id: /a\ncontainers: [{shell: x, gpus: 1.5}]":                                         "containers[0].gpus: 1.5 is neither",
		"id: /a\ncontainers: [{shell: x, custom: {licence: many}}]":                           "containers[0].custom.licence: \"many\" is not a number of units",
		"id: /a\ncontainers: [{shell: x}]\nspread: [{over: zone, targets: {a: 60, b: 50}}]":   "spread[0].targets: sum up to 110%",
		"id: /a\ncontainers: [{shell: x}]\nvolumes: [{name: d, persistent: {}}]":              "volumes[0].persistent.size",
		"id: /a\ncontainers: [{shell: x}]\npriority: high":                                    `priority: "high" is not a whole number`,
		"id: /a\ncontainers: [{shell: x, env: {[a]: b}}]":                                     "containers[0].env: a key is a list",
		"id: /a\ncontainers: [{shell: x}]\n---\nid: /b\ncontainers:\n- {imagee: x}\n":         "app.yaml:6: containers[0].imagee: no such field",
	} {
		_, err := Read(strings.NewReader(text), "app.yaml", "/")
		var errs Errors
		if !errors.As(err, &errs) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	_, err := Read(strings.NewReader("id: /a\nx: 1\ncontainers:\n- y: 2\n---\nz: 3"), "f", "/")
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 3 {
		t.Errorf("want all three errors, got %v", err)
	}
}

// A short file that aliases blow up is refused, and soon.
func TestBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("x0: &x0 [a,a,a,a,a,a,a,a,a,a]\n")
	for _, c := range "123456789" {
		prev := string(c - 1)
		b.WriteString("x" + string(c) + ": &x" + string(c) + " [" + strings.Repeat("*x"+prev+",", 9) + "*x" + prev + "]\n")
	}
	b.WriteString("id: /a\ncontainers: [{command: *x9}]\n")
	if _, err := Read(strings.NewReader(b.String()), "f", "/"); err == nil {
		t.Error("accepted")
	}
	self := "id: /a\ncontainers: &c\n- <<: *c\n"
	if _, err := Read(strings.NewReader(self), "f", "/"); err == nil {
		t.Error("a merge of itself is accepted")
	}
	if _, err := Read(bytes.NewReader(make([]byte, MaxSize+1)), "f", "/"); err == nil || !strings.Contains(err.Error(), "4 MiB") {
		t.Errorf("a huge file: %v", err)
	}
}

// The examples are right.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../../examples/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("found %v, %v", files, err)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		docs, err := Read(f, name, "/srv/examples")
		if err != nil {
			t.Error(err)
			continue
		}
		if id := "/" + strings.TrimSuffix(filepath.Base(name), ".yaml"); len(docs) != 1 || string(docs[0].Spec.ID) != id {
			t.Errorf("%s does not describe %s alone", name, id)
		}
	}
}

// No file makes the reader panic, and what it accepts is valid.
func FuzzRead(f *testing.F) {
	f.Add(full)
	f.Add("id: /a\ncontainers: &c\n- <<: [*c, {shell: x}]\n")
	f.Add(`{"id": "/a", "containers": [{"image": "x"}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		docs, err := Read(strings.NewReader(text), "f", "/")
		if err != nil {
			return
		}
		for _, d := range docs {
			if errs := d.Spec.Validate(); len(errs) > 0 {
				t.Errorf("accepted, but %v", errs)
			}
			if _, err := model.ParseAppID(string(d.Spec.ID)); err != nil {
				t.Error(err)
			}
		}
	})
}
