package api

import (
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-os/gantry/identity"
)

var rewrite = flag.Bool("rewrite", false, "write the files in testdata anew")

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	have, wanted := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range have {
		if i >= len(wanted) || have[i] != wanted[i] {
			t.Fatalf("%s differs at line %d:\n got %s\nwant %s\nIf that is meant, run go test ./api -rewrite.", path, i+1, have[i], append(wanted, "the end")[min(i, len(wanted))])
		}
	}
	t.Fatalf("%s has more lines than were made", path)
}

// The document is what other people's programs are made from: a change to it must be seen, and meant.
func TestOpenAPIDocument(t *testing.T) {
	d := newDoor(t)
	req, err := http.Get(d.srv.URL + "/v1/openapi.json") // without a token
	if err != nil {
		t.Fatal(err)
	}
	defer req.Body.Close()
	got := must(d.c.OpenAPI(t.Context()))(t)
	golden(t, "openapi.json", string(got))
}

type object = map[string]any

// Whoever reads the document must find a sentence at everything.
func TestOpenAPISaysWhatEverythingMeans(t *testing.T) {
	d := newDoor(t)
	var doc object
	if err := json.Unmarshal(must(d.c.OpenAPI(t.Context()))(t), &doc); err != nil {
		t.Fatal(err)
	}
	if v := doc["openapi"]; v != "3.1.0" {
		t.Errorf("openapi is %v", v)
	}
	for name, schema := range doc["components"].(object)["schemas"].(object) {
		s := schema.(object)
		props, _ := s["properties"].(object)
		for prop, v := range props {
			if v.(object)["description"] == nil {
				t.Errorf("schema %s: field %s has no description", name, prop)
			}
		}
		if props != nil && s["additionalProperties"] != false {
			t.Errorf("schema %s admits unknown fields", name)
		}
	}
	n := 0
	for path, item := range doc["paths"].(object) {
		for method, v := range item.(object) {
			n++
			op := v.(object)
			checkOperation(t, method+" "+path, op)
		}
	}
	if want := len(routes()); n != want {
		t.Errorf("the document has %d operations, the table %d", n, want)
	}
}

func checkOperation(t *testing.T, name string, op object) {
	t.Helper()
	if op["summary"] == nil || op["operationId"] == nil || len(op["tags"].([]any)) != 1 {
		t.Errorf("%s lacks a summary, an id or a tag", name)
	}
	params, _ := op["parameters"].([]any)
	for _, p := range params {
		if p.(object)["description"] == nil {
			t.Errorf("%s: parameter %v has no description", name, p.(object)["name"])
		}
	}
	responses := op["responses"].(object)
	public := op["x-gantry-access"] == identity.Public.String()
	if responses["401"] == nil && !public {
		t.Errorf("%s does not declare 401", name)
	}
	for status, r := range responses {
		content, _ := r.(object)["content"].(object)
		if status >= "400" && content["application/problem+json"] == nil {
			t.Errorf("%s: status %s is no problem document", name, status)
		}
		if status < "400" && status != "101" && len(content) == 0 {
			t.Errorf("%s: status %s has no content", name, status)
		}
	}
}

// Nothing is open but what the table says, and the table says only this.
func TestEveryRouteWantsAToken(t *testing.T) {
	d := newDoor(t)
	open := map[string]bool{"/healthz": true, "/v1/openapi.json": true}
	for _, r := range routes() {
		if open[r.path] != (r.access == identity.Public) {
			t.Errorf("%s %s has access %v", r.method, r.path, r.access)
		}
		path := strings.NewReplacer("{app}", "a", "{id}", "x", "{role}", "r", "{pool}", "p").Replace(r.path)
		for _, header := range []string{"", "Bearer wrong", "Basic " + string(d.token)} {
			status, body, h := d.call(r.method, path, "", "Authorization", header)
			switch {
			case open[r.path] && status != http.StatusOK:
				t.Errorf("%s %s: %d, want 200", r.method, path, status)
			case !open[r.path] && (status != http.StatusUnauthorized || h.Get("WWW-Authenticate") == "" ||
				h.Get("Content-Type") != "application/problem+json"):
				t.Errorf("%s %s with %q: %d %s", r.method, path, header, status, body)
			}
		}
	}
	if d.db.View().AppCount() != 0 {
		t.Error("a write passed")
	}
	select {
	case <-d.asked:
		t.Error("a shutdown passed")
	default:
	}
}

// Without authentication a web page must not be able to reach the server through the browser of a local user.
func TestWithoutTokenOnlyLocalNamesAndOrigins(t *testing.T) {
	d := newDoor(t)
	h, err := New(Config{Store: d.db, Auth: identity.WithoutToken()})
	if err != nil {
		t.Fatal(err)
	}
	d.serve(h, nil)
	if status, body, _ := d.call("GET", "/v1/apps", "", "Authorization", ""); status != http.StatusOK {
		t.Errorf("local: %d %s", status, body)
	}
	req, err := http.NewRequest("GET", d.srv.URL+"/v1/apps", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "evil.example"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("foreign name: %d", resp.StatusCode)
	}
	if status, _, _ := d.call("POST", "/v1/shutdown", "", "Origin", "http://evil.example"); status != http.StatusForbidden {
		t.Errorf("foreign origin: %d", status)
	}
	if status, _, _ := d.call("POST", "/v1/apps", toJSON(t, web(1)), "Content-Type", "text/plain"); status != http.StatusUnsupportedMediaType {
		t.Errorf("form: %d", status)
	}
}
