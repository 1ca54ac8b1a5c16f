package api

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

const shop = model.AppID("/shop/web")

// status returns the HTTP status of a client's error, 0 for none.
func status(err error) int {
	var e *client.Error
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

func TestCreate(t *testing.T) {
	d := newDoor(t)
	c := d.create(web(2))
	if want := (client.Change{App: shop, Version: 1, Deployment: c.Deployment}); c != want {
		t.Errorf("change is %+v", c)
	}
	v := d.db.View()
	a, dep := v.App(shop), v.Deployment(c.Deployment)
	if a.Version != 1 || a.Deployment != c.Deployment || a.Stable != 0 {
		t.Errorf("app is %+v", a)
	}
	if dep.State != model.DeployRunning || dep.Kind != model.DeployCreate || dep.From != 0 || dep.To != 1 || dep.Want != 2 {
		t.Errorf("deployment is %+v", dep)
	}
	if s := v.Version(shop, 1).Spec; s.Count() != 2 || s.Restart != nil {
		t.Errorf("the spec is not stored as written: %+v", s)
	}
	wantEvents(t, v, "app.created", "deployment.created")
	if _, err := d.c.CreateApp(t.Context(), web(2)); status(err) != http.StatusConflict {
		t.Errorf("second create: %v", err)
	}
}

func wantEvents(t *testing.T, v state.View, want ...string) {
	t.Helper()
	var got []string
	for _, e := range v.Events() {
		got = append(got, e.Type)
		if e.Message == "" || e.App != shop || e.Deployment == "" {
			t.Errorf("event says too little: %+v", e)
		}
	}
	if tail := got[max(0, len(got)-len(want)):]; !slices.Equal(tail, want) {
		t.Errorf("events are %v, want %v at the end", got, want)
	}
}

func TestPut(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	first := must(d.c.PutApp(ctx, web(2)))(t)
	if first.Version != 1 || first.Unchanged {
		t.Fatalf("put of a new app: %+v", first)
	}
	same := web(2)
	same.Endpoints[0].Protocol = "tcp" // the default, written out
	again := must(d.c.PutApp(ctx, same))(t)
	if !again.Unchanged || again.Version != 1 || again.Deployment != first.Deployment {
		t.Errorf("put of the same: %+v", again)
	}
	if code, _, _ := d.call("PUT", "/v1/apps/shop%2Fweb", toJSON(t, same)); code != http.StatusOK {
		t.Errorf("put of the same has status %d, want 200", code)
	}
	next := web(2)
	next.Containers[0].Env = map[string]string{"A": "1"}
	second := must(d.c.PutApp(ctx, next))(t)
	if second.Version != 2 || second.Unchanged {
		t.Errorf("put of another: %+v", second)
	}
	v := d.db.View()
	if old := v.Deployment(first.Deployment); old.State != model.DeploySuperseded || !strings.Contains(old.Message, string(second.Deployment)) || old.Ended.IsZero() {
		t.Errorf("older deployment is %+v", old)
	}
	if dep := v.Deployment(second.Deployment); dep.Kind != model.DeployUpdate || dep.From != 1 || dep.To != 2 {
		t.Errorf("deployment is %+v", dep)
	}
	wantEvents(t, v, "app.updated", "deployment.created")
}

// After a roll back the newest version is not the deployed one; asking for it again is a new try.
func TestPutAfterRollBackOrFailure(t *testing.T) {
	d := newDoor(t)
	d.create(web(1))
	d.finish(shop, model.DeploySucceeded, "")
	bad := web(1)
	bad.Containers[0].Command = []string{"broken"}
	c := must(d.c.PutApp(t.Context(), bad))(t)
	must(d.c.CancelDeployment(t.Context(), c.Deployment))(t)
	if got := d.db.View().Target(shop).Version; got != 1 {
		t.Fatalf("target is %d after cancel", got)
	}
	if c := must(d.c.PutApp(t.Context(), web(1)))(t); !c.Unchanged || c.Version != 1 {
		t.Errorf("put of what is deployed: %+v", c)
	}
	if c := must(d.c.PutApp(t.Context(), bad))(t); c.Unchanged || c.Version != 3 {
		t.Errorf("put of what was rolled back: %+v", c)
	}
	d.finish(shop, model.DeployFailed, "no")
	if c := must(d.c.PutApp(t.Context(), bad))(t); c.Unchanged || c.Version != 4 {
		t.Errorf("put of what failed: %+v", c)
	}
}

func TestScale(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	spec := web(2)
	spec.Update = &model.Update{MinHealthy: "1", MaxSurge: "0"}
	d.create(spec)
	if c := must(d.c.ScaleApp(ctx, shop, 2))(t); !c.Unchanged {
		t.Errorf("scale to the same: %+v", c)
	}
	c := must(d.c.ScaleApp(ctx, shop, 5))(t)
	v := d.db.View()
	if c.Version != 2 || v.Target(shop).Spec.Count() != 5 || v.Version(shop, 1).Spec.Count() != 2 {
		t.Errorf("scale: %+v", c)
	}
	if v.Target(shop).Template() != v.Version(shop, 1).Template() {
		t.Error("a scale replaces instances")
	}
	if dep := v.Deployment(c.Deployment); dep.Kind != model.DeployScale || dep.Want != 5 {
		t.Errorf("deployment is %+v", dep)
	}
	wantEvents(t, v, "app.scaled", "deployment.created")
	must(d.c.ScaleApp(ctx, shop, 0))(t)
	for body, want := range map[string]int{
		`{"instances":-1}`: 422, `{"instances":1000001}`: 422, `{}`: 422, `{"instances":1.5}`: 422, `{"instances":null}`: 422,
		`{"instances":"3"}`: 422, `{"instances":1}`: 422, `[]`: 422, ``: 400, `{`: 400, `{"instances":3} x`: 400, `{"n":3}`: 422,
	} {
		if code, text, _ := d.call("POST", "/v1/apps/shop%2Fweb/scale", body); code != want {
			t.Errorf("scale with %s: %d %s, want %d", body, code, text, want)
		}
	}
}

func TestRestart(t *testing.T) {
	d := newDoor(t)
	d.create(web(2))
	c := must(d.c.RestartApp(t.Context(), shop))(t)
	v := d.db.View()
	if c.Version != 2 || v.Target(shop).Restarts != 1 || v.Target(shop).Template() == v.Version(shop, 1).Template() {
		t.Errorf("restart: %+v, %+v", c, v.Target(shop))
	}
	must(d.c.ScaleApp(t.Context(), shop, 3))(t)
	if got := d.db.View().Target(shop).Restarts; got != 1 {
		t.Errorf("a scale lost the restart: %d", got)
	}
	must(d.c.RestartApp(t.Context(), shop))(t)
	if got := d.db.View().Target(shop).Restarts; got != 2 {
		t.Errorf("restarts are %d, want 2", got)
	}
	wantEvents(t, d.db.View(), "app.restarted", "deployment.created")
}

func TestRollback(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	d.create(web(1))
	if _, err := d.c.RollbackApp(ctx, shop, 0); status(err) != http.StatusConflict {
		t.Errorf("nothing to go back to: %v", err)
	}
	second := web(1)
	second.Containers[0].Command = []string{"serve", "2"}
	must(d.c.PutApp(ctx, second))(t)
	must(d.c.RestartApp(ctx, shop))(t)  // 3: runs the same program
	must(d.c.ScaleApp(ctx, shop, 2))(t) // 4: so does this
	c := must(d.c.RollbackApp(ctx, shop, 0))(t)
	v := d.db.View()
	if got := v.Target(shop); c.Version != 5 || got.Spec.Containers[0].Command[0] != "serve" || len(got.Spec.Containers[0].Command) != 1 ||
		got.Note != "roll back to version 1" || got.Restarts != 1 {
		t.Errorf("rolled back to %+v", got)
	}
	if dep := v.Deployment(c.Deployment); dep.Kind != model.DeployRollback || dep.From != 4 || dep.To != 5 {
		t.Errorf("deployment is %+v", dep)
	}
	wantEvents(t, v, "app.rolledback", "deployment.created")
	if c := must(d.c.RollbackApp(ctx, shop, 2))(t); c.Version != 6 || d.db.View().Target(shop).Note != "roll back to version 2" {
		t.Errorf("by name: %+v", c)
	}
	if c := must(d.c.RollbackApp(ctx, shop, 6))(t); !c.Unchanged {
		t.Errorf("to the deployed one: %+v", c)
	}
	if _, err := d.c.RollbackApp(ctx, shop, 99); status(err) != http.StatusNotFound {
		t.Errorf("to a version that is not kept: %v", err)
	}
	versions := must(d.c.Versions(ctx, shop))(t)
	if len(versions) != 6 || versions[0].Version != 6 || !versions[0].Deployed || versions[5].Deployed {
		t.Errorf("versions are %+v", versions)
	}
}

func TestDelete(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	created := d.create(web(2))
	c := must(d.c.DeleteApp(ctx, shop))(t)
	v := d.db.View()
	if a := v.App(shop); !a.Removing || a.Deployment != c.Deployment {
		t.Errorf("app is %+v", a)
	}
	if dep := v.Deployment(c.Deployment); dep.Kind != model.DeployRemove || dep.State != model.DeployRunning {
		t.Errorf("deployment is %+v", dep)
	}
	if v.Deployment(created.Deployment).State != model.DeploySuperseded {
		t.Error("the older deployment goes on")
	}
	wantEvents(t, v, "app.removing", "deployment.created")
	if again := must(d.c.DeleteApp(ctx, shop))(t); again != c {
		t.Errorf("second delete: %+v, want %+v", again, c)
	}
	for name, err := range map[string]error{
		"put":      second(d.c.PutApp(ctx, web(1))),
		"create":   second(d.c.CreateApp(ctx, web(1))),
		"scale":    second(d.c.ScaleApp(ctx, shop, 1)),
		"restart":  second(d.c.RestartApp(ctx, shop)),
		"rollback": second(d.c.RollbackApp(ctx, shop, 1)),
		"pause":    second(d.c.PauseDeployment(ctx, c.Deployment)),
		"cancel":   second(d.c.CancelDeployment(ctx, c.Deployment)),
	} {
		if status(err) != http.StatusConflict || !strings.Contains(err.Error(), "remov") {
			t.Errorf("%s of an app that is being removed: %v", name, err)
		}
	}
	// What an app leaves behind must not be taken for a version of the next.
	d.put(func(tx *state.Tx) { tx.DeleteApp(shop) })
	if c := d.create(web(1)); c.Version != 2 {
		t.Errorf("a new app of the same name begins at version %d", c.Version)
	}
}

func second[T any](_ T, err error) error { return err }

func TestUnknownApp(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	d.create(web(1))
	for name, err := range map[string]error{
		"get":      second(d.c.App(ctx, "/shop/wep")),
		"delete":   second(d.c.DeleteApp(ctx, "/shop/wep")),
		"scale":    second(d.c.ScaleApp(ctx, "/shop/wep", 1)),
		"restart":  second(d.c.RestartApp(ctx, "/shop/wep")),
		"rollback": second(d.c.RollbackApp(ctx, "/shop/wep", 0)),
		"versions": second(d.c.Versions(ctx, "/shop/wep")),
	} {
		if status(err) != http.StatusNotFound || err.Error() != "no app /shop/wep; did you mean /shop/web?" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := d.c.App(ctx, "/other"); status(err) != http.StatusNotFound || strings.Contains(err.Error(), "mean") {
		t.Errorf("nothing is near: %v", err)
	}
}

func TestPauseResumeCancel(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	first := d.create(web(1))
	if _, err := d.c.CancelDeployment(ctx, first.Deployment); status(err) != http.StatusConflict {
		t.Errorf("cancel with nothing to go back to: %v", err)
	}
	paused := must(d.c.PauseDeployment(ctx, first.Deployment))(t)
	if paused.State != model.DeployPaused || must(d.c.PauseDeployment(ctx, first.Deployment))(t) != paused {
		t.Errorf("pause: %+v", paused)
	}
	if s := must(d.c.App(ctx, shop))(t); s.State != "paused" || !strings.Contains(s.Why, "paused") {
		t.Errorf("app is %s: %s", s.State, s.Why)
	}
	wantEvents(t, d.db.View(), "deployment.paused")
	if resumed := must(d.c.ResumeDeployment(ctx, first.Deployment))(t); resumed.State != model.DeployRunning || !resumed.Moved.After(paused.Moved) {
		t.Errorf("resume: %+v", resumed)
	}
	wantEvents(t, d.db.View(), "deployment.resumed")
	d.finish(shop, model.DeploySucceeded, "")
	for name, err := range map[string]error{
		"pause":  second(d.c.PauseDeployment(ctx, first.Deployment)),
		"resume": second(d.c.ResumeDeployment(ctx, first.Deployment)),
		"cancel": second(d.c.CancelDeployment(ctx, first.Deployment)),
	} {
		if status(err) != http.StatusConflict || !strings.Contains(err.Error(), "succeeded") {
			t.Errorf("%s of one that is over: %v", name, err)
		}
	}
	next := web(1)
	next.Containers[0].Command = []string{"other"}
	c := must(d.c.PutApp(ctx, next))(t)
	gone := must(d.c.CancelDeployment(ctx, c.Deployment))(t)
	v := d.db.View()
	back := v.Deployment(v.App(shop).Deployment)
	if gone.State != model.DeployCancelled || back.Kind != model.DeployRollback || back.From != 2 || back.To != 1 || back.State != model.DeployRunning {
		t.Errorf("cancelled %+v, back %+v", gone, back)
	}
	wantEvents(t, v, "deployment.cancelled", "app.rolledback", "deployment.created")
	for name, err := range map[string]error{
		"get": second(d.c.Deployment(ctx, "none")), "pause": second(d.c.PauseDeployment(ctx, "none")),
		"resume": second(d.c.ResumeDeployment(ctx, "none")), "cancel": second(d.c.CancelDeployment(ctx, "none")),
	} {
		if status(err) != http.StatusNotFound {
			t.Errorf("%s of none: %v", name, err)
		}
	}
	all := must(d.c.Deployments(ctx, client.DeploymentFilter{App: shop}))(t)
	if len(all) != 3 || all[0].ID != back.ID || all[2].ID != first.Deployment {
		t.Errorf("deployments are %+v", all)
	}
	if active := must(d.c.Deployments(ctx, client.DeploymentFilter{Active: true}))(t); len(active) != 1 || active[0].ID != back.ID {
		t.Errorf("active are %+v", active)
	}
	if other := must(d.c.Deployments(ctx, client.DeploymentFilter{App: "/other"}))(t); len(other) != 0 {
		t.Errorf("deployments of another app: %+v", other)
	}
}

// A write that is sent again, because its answer was lost, must happen once.
func TestIdempotencyKey(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	key := client.IdempotencyKey("k1")
	first := must(d.c.CreateApp(ctx, web(1), key))(t)
	if again := must(d.c.CreateApp(ctx, web(1), key))(t); again != first {
		t.Errorf("create again: %+v, want %+v", again, first)
	}
	another := web(1)
	another.ID = "/another"
	if c := must(d.c.CreateApp(ctx, another, key))(t); c.App != "/another" {
		t.Errorf("the same key for another app: %+v", c)
	}
	r := must(d.c.RestartApp(ctx, shop, key))(t)
	if r.Deployment == first.Deployment {
		t.Error("the same key on another path is another write")
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			again, err := d.c.RestartApp(ctx, shop, key)
			if err != nil || again != r {
				t.Errorf("restart again: %+v %v, want %+v", again, err, r)
			}
		})
	}
	wg.Wait()
	del := must(d.c.DeleteApp(ctx, shop, key))(t)
	d.put(func(tx *state.Tx) { tx.DeleteApp(shop) })
	if again := must(d.c.DeleteApp(ctx, shop, key))(t); again.Deployment != del.Deployment {
		t.Errorf("delete again, after the end: %+v", again)
	}
	if got := d.db.View().Version(shop, 3); got != nil {
		t.Errorf("a repeat made version %+v", got)
	}
	if code, _, _ := d.call("POST", "/v1/apps", toJSON(t, web(1)), "Idempotency-Key", strings.Repeat("k", 256)); code != 422 {
		t.Errorf("a key that is too long: %d", code)
	}
}

// Of writers that read the same revision, one wins and the others are told.
func TestIfMatchRace(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	d.create(web(1))
	rev := must(d.c.App(ctx, shop))(t).Revision
	var mu sync.Mutex
	won := 0
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			s := web(1)
			s.Labels = map[string]string{"writer": fmt.Sprint(i)}
			_, err := d.c.PutApp(ctx, s, client.IfRevision(rev))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if status(err) != http.StatusPreconditionFailed {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d writers won", won)
	}
	_, _, h := d.call("GET", "/v1/apps/shop%2Fweb", "")
	for match, want := range map[string]int{h.Get("ETag"): 200, `"1", ` + h.Get("ETag"): 200, "*": 200, `"1"`: 412, "x": 412, `W/` + h.Get("ETag"): 412} {
		body := toJSON(t, d.db.View().Target(shop).Spec)
		if code, text, _ := d.call("PUT", "/v1/apps/shop%2Fweb", body, "If-Match", match); code != want {
			t.Errorf("If-Match %s: %d %s, want %d", match, code, text, want)
		}
	}
	other := web(1)
	other.ID = "/new"
	if code, _, _ := d.call("PUT", "/v1/apps/new", toJSON(t, other), "If-Match", "*"); code != 412 {
		t.Errorf("If-Match on an app that does not exist: %d", code)
	}
}

// Concurrent changes of one app each get a version of their own, and only the last deployment is active.
func TestConcurrentWrites(t *testing.T) {
	d := newDoor(t)
	d.create(web(1))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := d.c.ScaleApp(t.Context(), shop, 100+i); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	v := d.db.View()
	n := 0
	for dep := range v.ActiveDeployments() {
		n++
		if dep.ID != v.App(shop).Deployment {
			t.Errorf("deployment %s is active, the app's is %s", dep.ID, v.App(shop).Deployment)
		}
	}
	if n != 1 || v.App(shop).Version != 21 {
		t.Errorf("%d active deployments, version %d", n, v.App(shop).Version)
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	s := web(1)
	s.Containers[0].Image, s.Containers[0].Command = "registry/web", nil
	s.Containers[0].Auth = &model.RegistryAuth{Username: "u", Password: "hunter2"}
	d.create(s)
	d.run("web-1", shop, nil)
	for _, r := range routes() {
		if r.method != http.MethodGet || r.id == "exec" || r.id == "read-logs" {
			continue
		}
		path := strings.NewReplacer("{app}", "shop%2Fweb").Replace(r.path)
		if r.tag == "instances" {
			path = strings.Replace(path, "{id}", "web-1", 1)
		}
		if _, body, _ := d.call("GET", path, ""); strings.Contains(body, "hunter2") {
			t.Errorf("%s shows the password", path)
		}
	}
	// Sent back as it was shown, the password stays, and nothing has changed.
	shown := must(d.c.App(ctx, shop))(t).Spec
	if got := shown.Containers[0].Auth.Password; got != "********" {
		t.Errorf("the password is shown as %q", got)
	}
	if c := must(d.c.PutApp(ctx, shown))(t); !c.Unchanged {
		t.Errorf("put of what was shown: %+v", c)
	}
	shown.Containers[0].Name = "main" // the default name, written out: the same container
	shown.Labels = map[string]string{"a": "b"}
	must(d.c.PutApp(ctx, shown))(t)
	if got := d.db.View().Target(shop).Spec.Containers[0].Auth.Password; got != "hunter2" {
		t.Errorf("the stored password is %q", got)
	}
	shown.Containers[0].Auth.Username = "another"
	_, err := d.c.PutApp(ctx, shown)
	var e *client.Error
	if !errors.As(err, &e) || e.Status != 422 || e.Fields[0].Location != "body.containers[0].auth.password" {
		t.Errorf("mask for another user: %v", err)
	}
	s.ID = "/other"
	s.Containers[0].Auth.Password = "********"
	if _, err := d.c.CreateApp(ctx, s); status(err) != 422 {
		t.Errorf("mask for a new app: %v", err)
	}
}

// The store's troubles have statuses by which a client knows whether to try again.
func TestStoreErrors(t *testing.T) {
	for err, want := range map[error]int{
		state.ErrDeposed: 503, state.ErrTooNew: 409, state.ErrNoSpace: 503, state.ErrConflict: 503, errStoreSlow: 503, errors.New("disk on fire"): 503,
		conflict("x"): 409, fmt.Errorf("wrapped: %w", conflict("x")): 409,
	} {
		var got interface{ GetStatus() int }
		if !errors.As(storeError(err), &got) || got.GetStatus() != want {
			t.Errorf("%v has status %v, want %d", err, got, want)
		}
	}
}

// What is wrong with a request is answered in words that stay.
func TestProblems(t *testing.T) {
	d := newDoor(t)
	d.create(web(1))
	d.run("web-wait", shop, func(i *model.Instance) {
		i.Node, i.Pending, i.Status = "", "1 node lacks memory: wants 4 GiB, most free is 2 GiB", model.Status{Phase: model.PhasePending}
	})
	d.run("web-k3v9", shop, nil)
	cases := []struct{ method, path, body, contentType string }{
		{"POST", "/v1/apps", ``, ""},
		{"POST", "/v1/apps", `{"id": "/a"`, ""},
		{"POST", "/v1/apps", "{\n  \"id\": \"/a\",\n  \"containers\": [}\n}", ""},
		{"POST", "/v1/apps", `{"id":"/a","containers":[{"command":["x"]}]} {}`, ""},
		{"POST", "/v1/apps", `"text"`, ""},
		{"POST", "/v1/apps", `null`, ""},
		{"POST", "/v1/apps", `{}`, ""},
		{"POST", "/v1/apps", `{"id":"a/B","instances":-1,"containers":[{"image":"a b","cpus":-1}]}`, ""},
		{"POST", "/v1/apps", `{"id":"/a","containers":[{"command":["x"],"comand":["y"]}]}`, ""},
		{"POST", "/v1/apps", `{"id":"/a","id":"/b","containers":[{"command":["x"]}]}`, ""},
		{"POST", "/v1/apps", `{"id":"/a","labels":{"x":"1","x":"2","y":3},"containers":[{"command":["x"]}]}`, ""},
		{"POST", "/v1/apps", `{"ID":"/a","containers":[{"command":["x"]}]}`, ""},
		{"POST", "/v1/apps", `{"id":"/a","containers":{"command":["x"]}}`, ""},
		{"POST", "/v1/apps", `{"id":"/a","containers":["x"]}`, ""},
		{"POST", "/v1/apps", `{"id":"/a","instances":"two","containers":[{"command":"x","cpus":"lots","memory":"1 furlong","shell":1}]}`, ""},
		{"POST", "/v1/apps", `{"id":"/a","containers":[{"command":["x"]}],"health":[{"tcp":{"endpoint":"no"},"interval":"soon"}],"update":{"minHealthy":[]}}`, ""},
		{"POST", "/v1/apps", `{"id":"/a","containers":[{"command":["x"]}],"health":[{"tcp":{"endpoint":"no"}}],"update":{"minHealthy":"many"}}`, ""},
		{"POST", "/v1/apps", `{"id":"/a","containers":[{"command":["x"]}]}`, "text/plain"},
		{"POST", "/v1/apps", `{"id":"/shop/web","containers":[{"command":["x"]}]}`, ""},
		{"PUT", "/v1/apps/b", `{"id":"/a","containers":[{"command":["x"]}]}`, ""},
		{"PUT", "/v1/apps/B", `{"containers":[{"command":["x"]}]}`, ""},
		{"GET", "/v1/apps/shop%2Fwbe", ``, ""},
		{"GET", "/v1/apps/shop/web", ``, ""},
		{"GET", "/v1/apps?limit=3", ``, ""},
		{"DELETE", "/v1/apps", ``, ""},
		{"GET", "/v2", ``, ""},
		{"GET", "/v1/instances/web-k3v8", ``, ""},
		{"GET", "/v1/instances?app=shop/wep", ``, ""},
		{"GET", "/v1/instances?node=alhpa", ``, ""},
		{"GET", "/v1/instances?all=maybe", ``, ""},
		{"GET", "/v1/instances/web-wait/logs", ``, ""},
		{"GET", "/v1/instances/web-k3v9/logs", ``, ""},
		{"GET", "/v1/instances/web-k3v9/logs?stream=stdin&tail=x", ``, ""},
		{"GET", "/v1/instances/web-k3v9/logs?container=side", ``, ""},
		{"GET", "/v1/instances/web-k3v9/exec", ``, ""},
		{"GET", "/v1/instances/web-k3v9/exec?command=sh", ``, ""},
		{"GET", "/v1/instances/web-wait/exec?command=sh", ``, ""},
		{"GET", "/v1/nodes/alpah", ``, ""},
		{"GET", "/v1/deployments/nope", ``, ""},
		{"GET", "/v1/events?since=-1", ``, ""},
		{"POST", "/v1/images", `x`, ""},
		{"POST", "/v1/images?node=beta", `x`, "application/x-tar"},
		{"POST", "/v1/shutdown", `{"now":true}`, ""},
		// Passwords in the wrong place or of the wrong kind are not repeated.
		{"POST", "/v1/apps", `{"id":"/a","containers":[{"image":"x","auth":"hunter2"},{"image":"x","auth":{"username":1,"password":123456}},{"command":"hunter2"}]}`, ""},
	}
	var out strings.Builder
	for _, c := range cases {
		code, body, h := d.call(c.method, c.path, c.body, "Content-Type", cmp.Or(c.contentType, "application/json"))
		if h.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: %s", c.method, c.path, h.Get("Content-Type"))
		}
		fmt.Fprintf(&out, "%s %s %s\n%d %s\n", c.method, c.path, c.body, code, body)
	}
	golden(t, "problems.txt", out.String())
}
