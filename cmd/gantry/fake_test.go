package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// fake is a server that speaks the API well enough for the commands: writes are remembered, and a deployment moves one
// step of its script each time it is looked at.
type fake struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	apps     map[model.AppID]*client.AppDetail
	scripts  map[model.DeploymentID][]model.Deployment // what is left of each
	next     []model.Deployment                        // script of the next change
	conflict int                                       // so many PUTs fail with 412
	requests []string                                  // method and path of all writes
	shutdown *client.Shutdown
	place    placeFake
	notice   string
	looks    []func(*client.Instance) // what becomes of instances, one after the other each time they are listed
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, apps: map[model.AppID]*client.AppDetail{}, scripts: map[model.DeploymentID][]model.Deployment{}}
	f.place = newPlaceFake()
	mux := http.NewServeMux()
	for pattern, h := range f.placeRoutes() {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { f.answer(w, r, h) })
	}
	for pattern, h := range map[string]func(*http.Request) (any, error){
		"GET /v1/apps": f.listApps, "POST /v1/apps": f.create, "GET /v1/apps/{app}": f.get, "PUT /v1/apps/{app}": f.put,
		"DELETE /v1/apps/{app}": f.change(model.DeployRemove), "POST /v1/apps/{app}/scale": f.change(model.DeployScale),
		"POST /v1/apps/{app}/restart":  f.change(model.DeployRestart),
		"POST /v1/apps/{app}/rollback": f.change(model.DeployRollback),
		"GET /v1/apps/{app}/versions":  f.versions, "GET /v1/instances": f.listInstances, "GET /v1/instances/{id}": f.instance,
		"GET /v1/deployments": f.listDeployments, "GET /v1/deployments/{id}": f.deployment,
		"POST /v1/deployments/{id}/pause":  f.pause,
		"POST /v1/deployments/{id}/resume": f.deployment,
		"GET /v1/nodes":                    f.nodes, "GET /v1/usage": f.usage, "GET /v1/images": f.images, "POST /v1/images": f.load,
		"GET /v1/info": f.info, "POST /v1/shutdown": f.stop,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { f.answer(w, r, h) })
	}
	mux.HandleFunc("GET /v1/events", f.events)
	mux.HandleFunc("GET /v1/instances/{id}/logs", f.logs)
	mux.HandleFunc("GET /v1/instances/{id}/exec", f.exec)
	f.Server = httptest.NewServer(mux)
	t.Cleanup(f.Close)
	return f
}

const fakeToken = "secret"

func (f *fake) answer(w http.ResponseWriter, r *http.Request, h func(*http.Request) (any, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Method != http.MethodGet {
		f.requests = append(f.requests, r.Method+" "+r.URL.Path)
	}
	v, err := any(nil), error(nil)
	if r.Header.Get("Authorization") != "Bearer "+fakeToken {
		err = refuse(http.StatusUnauthorized, "the token is missing or wrong")
	} else {
		v, err = h(r)
	}
	w.Header().Set("Content-Type", "application/json")
	if p, ok := err.(problem); ok {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(p.Status)
		v = p.Problem
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		f.t.Error(err)
	}
}

type problem struct{ client.Problem }

func (p problem) Error() string { return p.Detail }

func refuse(status int, detail string, fields ...client.ProblemField) error {
	return problem{client.Problem{Status: status, Title: http.StatusText(status), Detail: detail, Errors: fields}}
}

func pathApp(r *http.Request) model.AppID { return model.AppID("/" + r.PathValue("app")) }

// addApp makes an app with one running instance that has printed something.
func (f *fake) addApp(id model.AppID) *client.AppDetail {
	a := &client.AppDetail{Revision: 7, Spec: &model.Spec{ID: id, Containers: []model.Container{{Image: "nginx:1", Env: map[string]string{"A": "1"}}}}}
	a.ID, a.Version, a.Target, a.Instances, a.Running, a.Healthy, a.State = id, 1, 1, 1, 1, 1, "running"
	a.Deployment = &model.Deployment{ID: "d-first", App: id, Kind: model.DeployCreate, To: 1, State: model.DeploySucceeded, Done: 1, Want: 1}
	f.scripts["d-first"] = []model.Deployment{*a.Deployment}
	a.List = []client.Instance{{
		Instance: model.Instance{ID: model.InstanceID(id.Name() + "-aaaa"), App: id, Version: 1, Node: "n-1",
			Status: model.Status{Phase: model.PhaseRunning, Tasks: []model.TaskStatus{{Name: "main"}}}},
		Addr: "127.0.0.1", State: "running", Endpoints: map[string]int{"http": 31000},
	}}
	f.apps[id] = a
	return a
}

func (f *fake) listApps(*http.Request) (any, error) {
	list := []client.AppSummary{}
	for _, a := range f.apps {
		list = append(list, a.AppSummary)
	}
	slices.SortFunc(list, func(a, b client.AppSummary) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return list, nil
}

func (f *fake) get(r *http.Request) (any, error) {
	if a := f.apps[pathApp(r)]; a != nil {
		return a, nil
	}
	return nil, refuse(http.StatusNotFound, "there is no app "+string(pathApp(r)))
}

func (f *fake) create(r *http.Request) (any, error) {
	var s model.Spec
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		return nil, err
	}
	if f.apps[s.ID] != nil {
		return nil, refuse(http.StatusConflict, "the app exists")
	}
	f.addApp(s.ID).Spec = &s
	return f.begin(s.ID, model.DeployCreate), nil
}

func (f *fake) put(r *http.Request) (any, error) {
	var s model.Spec
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		return nil, err
	}
	if s.Labels["refuse"] != "" {
		return nil, refuse(http.StatusUnprocessableEntity, "the app is not valid",
			client.ProblemField{Location: "body.containers[0].image", Message: "is not liked"})
	}
	if f.conflict > 0 {
		f.conflict--
		return nil, refuse(http.StatusPreconditionFailed, "the app was changed")
	}
	if old := f.apps[s.ID]; old != nil {
		if want := r.Header.Get("If-Match"); want != "" && want != fmt.Sprintf(`"%d"`, old.Revision) {
			return nil, refuse(http.StatusPreconditionFailed, "the app was changed")
		}
		old.Spec = &s
		old.Version++
		return f.begin(s.ID, model.DeployUpdate), nil
	}
	f.addApp(s.ID).Spec = &s
	return f.begin(s.ID, model.DeployCreate), nil
}

func (f *fake) change(kind model.DeployKind) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		if f.apps[pathApp(r)] == nil {
			return nil, refuse(http.StatusNotFound, "there is no app "+string(pathApp(r)))
		}
		return f.begin(pathApp(r), kind), nil
	}
}

// begin starts the next script as a deployment.
func (f *fake) begin(app model.AppID, kind model.DeployKind) client.Change {
	id := model.DeploymentID(fmt.Sprintf("d-%d", len(f.scripts)))
	script := f.next
	if script == nil {
		script = []model.Deployment{{State: model.DeploySucceeded, Done: 1, Want: 1, Message: "done"}}
	}
	f.next = nil
	for i := range script {
		script[i].ID, script[i].App, script[i].Kind, script[i].To = id, app, kind, f.apps[app].Version
	}
	f.scripts[id] = script
	return client.Change{App: app, Version: f.apps[app].Version, Deployment: id}
}

func (f *fake) deployment(r *http.Request) (any, error) {
	id := model.DeploymentID(r.PathValue("id"))
	script := f.scripts[id]
	if len(script) == 0 {
		return nil, refuse(http.StatusNotFound, "there is no deployment "+string(id))
	}
	if len(script) > 1 {
		f.scripts[id] = script[1:]
	}
	return script[0], nil
}

func (f *fake) pause(r *http.Request) (any, error) {
	v, err := f.deployment(r)
	if d, ok := v.(model.Deployment); ok && d.State.Over() {
		return nil, refuse(http.StatusConflict, "deployment "+string(d.ID)+" has ended")
	}
	return v, err
}

func (f *fake) listDeployments(*http.Request) (any, error) {
	list := []model.Deployment{}
	for _, s := range f.scripts {
		list = append(list, s[0])
	}
	return list, nil
}

func (f *fake) versions(r *http.Request) (any, error) {
	if a := f.apps[pathApp(r)]; a != nil {
		return []client.Version{{Version: 1, Deployed: true, Spec: a.Spec}}, nil
	}
	return nil, refuse(http.StatusNotFound, "there is no app "+string(pathApp(r)))
}

func (f *fake) listInstances(r *http.Request) (any, error) {
	list := []client.Instance{}
	for _, a := range f.apps {
		for n := range a.List {
			if len(f.looks) > 0 {
				f.looks[0](&a.List[n])
			}
		}
		if app := r.URL.Query().Get("app"); app == "" || app == string(a.ID) {
			list = append(list, a.List...)
		}
	}
	if len(f.looks) > 0 {
		f.looks = f.looks[1:]
	}
	return list, nil
}

func (f *fake) instance(r *http.Request) (any, error) {
	for _, a := range f.apps {
		for _, i := range a.List {
			if string(i.ID) == r.PathValue("id") {
				return i, nil
			}
		}
	}
	return nil, refuse(http.StatusNotFound, "there is no instance "+r.PathValue("id"))
}

func (f *fake) nodes(*http.Request) (any, error) {
	return []client.NodeDetail{f.place.node}, nil
}

func (f *fake) usage(*http.Request) (any, error) {
	return client.Usage{Nodes: []client.NodeUsage{{Node: "n-1", Name: "here"}}}, nil
}

func (f *fake) images(*http.Request) (any, error) { return []client.Image{{Name: "nginx:1"}}, nil }

func (f *fake) load(r *http.Request) (any, error) {
	var b bytes.Buffer
	if _, err := b.ReadFrom(r.Body); err != nil || b.String() != "archive" {
		return nil, refuse(http.StatusBadRequest, "this is no archive")
	}
	return client.Imported{Images: []string{"web:1"}}, nil
}

func (f *fake) info(*http.Request) (any, error) {
	return client.Info{Version: "9.9", PID: 1 << 30, DataDir: "/data", Notice: f.notice}, nil
}

func (f *fake) stop(r *http.Request) (any, error) {
	f.shutdown = &client.Shutdown{}
	go f.Close() // the server ends after it has answered
	return struct{}{}, json.NewDecoder(r.Body).Decode(f.shutdown)
}

func (f *fake) events(w http.ResponseWriter, r *http.Request) {
	list := []model.Event{{Seq: 1, Type: "app.created", App: "/web", Message: "version 1"}, {Seq: 2, Type: "node.ready", Message: "connected"}}
	if r.URL.Query().Get("follow") == "" {
		if err := json.NewEncoder(w).Encode(list); err != nil {
			f.t.Error(err)
		}
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

// logs answers each stream with a line that names it, and never ends one that is followed.
func (f *fake) logs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	fmt.Fprintf(w, "%s of %s in %s, tail %s\n", q.Get("stream"), r.PathValue("id"), q.Get("container"), q.Get("tail"))
	w.(http.Flusher).Flush()
	if q.Get("follow") != "" {
		<-r.Context().Done()
	}
}

// exec echoes its input and ends with code 42; the program "broken" cannot be run.
func (f *fake) exec(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		f.t.Error(err)
		return
	}
	defer conn.CloseNow()
	ctx, q := r.Context(), r.URL.Query()
	send := func(channel byte, text string) {
		if err := conn.Write(ctx, websocket.MessageBinary, append([]byte{channel}, text...)); err != nil {
			f.t.Error(err)
		}
	}
	send(client.ChannelStdout, strings.Join(q["command"], " ")+"\n")
	send(client.ChannelStderr, "tty "+q.Get("tty")+"\n")
	if q.Get("columns") != "" {
		send(client.ChannelStdout, q.Get("columns")+"x"+q.Get("rows")+"\n")
	}
	for q.Get("stdin") == "true" {
		_, msg, err := conn.Read(ctx)
		if err != nil || len(msg) == 1 {
			break
		}
		send(client.ChannelStdout, string(msg[1:]))
	}
	if q["command"][0] == "broken" {
		send(client.ChannelEnd, `{"error": "no such program"}`)
	} else {
		send(client.ChannelEnd, `{"code": 42}`)
	}
	_, _, _ = conn.Read(ctx) // until the client hangs up
}

// result is what a command line did.
type result struct {
	code     int
	out, err string
}

// gantry runs a command line against f, or against what args say when f is nil.
func gantry(t *testing.T, f *fake, stdin string, args ...string) result {
	t.Helper()
	return gantryCtx(t, t.Context(), f, stdin, args...)
}

func gantryCtx(t *testing.T, ctx context.Context, f *fake, stdin string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	c := newCLI(strings.NewReader(stdin), &out, &errs)
	c.now = func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }
	c.getenv = func(name string) string {
		if f == nil {
			return ""
		}
		return map[string]string{"GANTRY_ADDR": f.URL, "GANTRY_TOKEN": fakeToken}[name]
	}
	c.options = []client.Option{client.WithPoll(10 * time.Millisecond)}
	code := c.run(ctx, args)
	return result{code, out.String(), errs.String()}
}
