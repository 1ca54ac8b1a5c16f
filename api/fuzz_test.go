package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

// fuzzed returns a handler that lets everyone in, and its store.
func fuzzed(f *testing.F) (http.Handler, *state.DB) {
	f.Helper()
	d := &door{now: epoch}
	db := memory.Open(d.clock)
	h, err := New(Config{Store: db, Auth: identity.WithoutToken(), Now: d.clock, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	return h, db
}

func serve(h http.Handler, method, path string, body []byte) *httptest.ResponseRecorder {
	r := &http.Request{Method: method, Host: "localhost", Header: http.Header{"Content-Type": {"application/json"}}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	u, err := url.ParseRequestURI(path)
	if err != nil {
		return nil
	}
	r.URL, r.RequestURI = u, path
	r.Body = http.NoBody
	if len(body) > 0 {
		r = httptest.NewRequest(method, "/", bytes.NewReader(body))
		r.Host, r.URL, r.RequestURI = "localhost", u, path
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// Whatever is sent as a spec is refused with a 4xx that says where it is wrong, or stored so that it reads back the same.
func FuzzSpec(f *testing.F) {
	for _, s := range []string{
		`{}`, `null`, `[]`, `{"id":"/a","containers":[{"command":["x"]}]}`, `{"id":"/a/b","instances":3,"containers":[{"image":"i","cpus":"250m","memory":"1.5GiB","auth":{"username":"u","password":"********"}}]}`,
		`{"id":"/a","containers":[{"shell":"x","env":{"A":"b"}}],"endpoints":[{"name":"h","port":80}],"health":[{"http":{"endpoint":"h"},"interval":"5s","grace":1.5}],"update":{"minHealthy":"50%","maxSurge":1,"minHealthyTime":"1s"}}`,
		`{"id":"/a","id":"/b"}`, `{"id":"\ud800","containers":[null]}`, `{"containers":[{"cpus":1e400,"memory":-0,"disk":"9EiB"}]}`, `{"labels":{"":"\u0000"}}`, "\xff", `{"id":"/a","containers":[{"command":["x"],"cpus":null}]} `,
	} {
		f.Add([]byte(s))
	}
	h, db := fuzzed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		w := serve(h, http.MethodPut, "/v1/apps/a", data)
		switch {
		case w.Code >= 500 || w.Code < 200 || w.Code >= 300 && w.Code < 400:
			t.Fatalf("status %d: %s", w.Code, w.Body)
		case w.Code >= 400:
			var p huma.ErrorModel
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Detail == "" {
				t.Fatalf("no problem document: %s", w.Body)
			}
			for _, e := range p.Errors {
				if !strings.HasPrefix(e.Location, "body") || e.Message == "" {
					t.Fatalf("an error does not say where or what: %+v", e)
				}
			}
		default:
			stored := db.View().Target("/a").Spec
			again, err := readSpec([]byte(toJSON(t, stored)), "/a")
			if err != nil || !sameSpec(stored, again) {
				t.Fatalf("reads back as %+v, %v; stored %+v", again, err, stored)
			}
		}
	})
}

// Ids in paths lead to an app, a 4xx or a redirect to the clean form, whatever they hold.
func FuzzAppPath(f *testing.F) {
	for _, s := range []string{"a", "shop%2Fweb", "%2Fshop%2Fweb%2F", "..", "%2e%2e", "%2E%2E%2Fx", "%00", "%ff", "a/b", "a%252Fb", "", "%", "a?x=1", strings.Repeat("a%2F", 200), "A", "-"} {
		f.Add(s)
	}
	h, db := fuzzed(f)
	err := db.Update(f.Context(), func(tx *state.Tx) error {
		n := 1
		_, err := (&change{tx: tx, now: epoch, id: "d"}).create(&model.Spec{ID: "/shop/web", Instances: &n, Containers: []model.Container{{Command: []string{"x"}}}})
		return err
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, id string) {
		for _, method := range []string{http.MethodGet, http.MethodDelete} {
			w := serve(h, method, "/v1/apps/"+id, nil)
			if w == nil {
				return // no request can have this path
			}
			if w.Code >= 500 {
				t.Fatalf("%s %q: %d %s", method, id, w.Code, w.Body)
			}
			var got struct{ ID, App model.AppID }
			if w.Code == http.StatusOK && method == http.MethodGet && json.Unmarshal(w.Body.Bytes(), &got) == nil && got.ID != "/shop/web" {
				t.Fatalf("%q leads to %q", id, got.ID)
			}
		}
	})
}

// Frames of an exec client are taken or refused; none makes the session fail or block.
func FuzzExecMessage(f *testing.F) {
	for _, s := range []string{"", "\x00", "\x00data", "\x04{\"columns\":80,\"rows\":24}", "\x04{\"columns\":-1}", "\x04{\"columns\":70000}", "\x04", "\x03{}", "\xff"} {
		f.Add(true, []byte(s))
		f.Add(false, []byte(s))
	}
	f.Fuzz(func(t *testing.T, binary bool, msg []byte) {
		kind := websocket.MessageText
		if binary {
			kind = websocket.MessageBinary
		}
		s := &session{sizes: make(chan runtime.Size, 1)}
		for range 3 { // sizes that nobody takes must not block
			err := s.message(kind, msg)
			valid := binary && len(msg) > 0 && (msg[0] == 0 || msg[0] == 4)
			if err == nil && !valid {
				t.Fatalf("%q was taken", msg)
			}
			if err != nil && len(err.Error()) > 120 {
				t.Fatal(errors.New("a close frame has no room for the reason"))
			}
		}
	})
}

// Names that differ by little are found, whatever they hold.
func FuzzDidYouMean(f *testing.F) {
	f.Add("/shop/wep", "/shop/web")
	f.Add("", "")
	f.Add("ab", "ba")
	f.Fuzz(func(t *testing.T, a, b string) {
		if len(a) > 64 || len(b) > 64 {
			return
		}
		x, y := distance(a, b), distance(b, a)
		if x != y || (x == 0) != (a == b) || x > max(len(a), len(b)) {
			t.Fatalf("distance of %q and %q is %d and %d", a, b, x, y)
		}
		_ = didYouMean(a, []string{b})
	})
}

// Whatever is sent as a record of an operator is refused with a 4xx that says where it is wrong, or stored so that it is
// valid, and sending again what is answered changes nothing.
func FuzzRecords(f *testing.F) {
	paths := []string{"/v1/roles/a", "/v1/pools/a", "/v1/reservations/a", "/v1/nodes/n1/settings", "/v1/nodes/n1/drain"}
	for i := range paths {
		for _, s := range []string{
			``, `{}`, `null`, `[]`, `{"id":"/a","weight":1e308,"weights":{"cpus":0.5},"guarantee":{"cpus":"250m","custom":{"x":1}},"limit":{"cpus":null,"memory":"1GiB"}}`,
			`{"name":"a","placement":"pack","defragment":"perform"}`, `{"role":"/","node":"alpha","resources":{"cpus":1,"memory":"1GiB","disk":0,"gpus":0.5}}`,
			`{"cordoned":true,"why":"\u0000","windows":[{"start":"2026-01-31T22:00:00Z","duration":"2h","every":"168h","drain":true}]}`,
			`{"windows":[{"start":"0000-00-00","duration":-1},null,{}]}`, `{"guarantee":{"cpus":1e400}}`, `{"why":1}`,
		} {
			f.Add(uint8(i), []byte(s))
		}
	}
	h, db := fuzzed(f)
	err := db.Update(f.Context(), func(tx *state.Tx) error {
		tx.PutNode(&model.Node{ID: "n1", Name: "alpha", State: model.NodeReady, Capacity: model.Resources{CPUs: 4000, Memory: 8 * model.GiB}})
		return nil
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		path := paths[int(which)%len(paths)]
		method := http.MethodPut
		if strings.HasSuffix(path, "drain") {
			method = http.MethodPost
		}
		w := serve(h, method, path, data)
		switch {
		case w.Code == http.StatusOK:
		case w.Code >= 400 && w.Code < 500:
			var p huma.ErrorModel
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Detail == "" {
				t.Fatalf("no problem document: %s", w.Body)
			}
			return
		default:
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		v := db.View()
		for r := range v.Roles() {
			if errs := r.Validate(); len(errs) > 0 {
				t.Fatalf("role %+v is stored: %v", r, errs)
			}
		}
		for s := range v.AllSettings() {
			if errs := s.Validate(); len(errs) > 0 {
				t.Fatalf("settings %+v are stored: %v", s, errs)
			}
		}
		if w := serve(h, method, path, data); w.Code != http.StatusOK || db.View().Revision() != v.Revision() {
			t.Fatalf("the same again has status %d and changes something: %s", w.Code, w.Body)
		}
	})
}
