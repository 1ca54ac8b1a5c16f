package api

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/state"
	"github.com/prometheus/client_golang/prometheus"
)

func TestReadInstances(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	d.create(web(2))
	d.run("web-a", shop, func(i *model.Instance) { i.Ports = []uint16{31000} })
	other := web(1)
	other.ID = "/job"
	d.create(other)
	d.run("job-a", "/job", func(i *model.Instance) {
		i.Status = model.Status{Phase: model.PhaseStopped, Attempt: 3, Tasks: []model.TaskStatus{{Name: "main", Exit: &model.Exit{Code: 2}}}}
	})
	next := web(2)
	next.Containers[0].Command = []string{"two"}
	must(d.c.PutApp(ctx, next))(t)
	d.run("web-b", shop, nil)

	ids := func(f client.InstanceFilter) string {
		var out []string
		for _, i := range must(d.c.Instances(ctx, f))(t) {
			out = append(out, string(i.ID))
		}
		return strings.Join(out, " ")
	}
	for want, f := range map[string]client.InstanceFilter{
		"web-b web-a":       {},
		"web-b job-a web-a": {All: true},
		"web-b web-a ":      {App: shop},
		"":                  {App: "/job"},
		"job-a":             {App: "/job", All: true},
		"web-b  web-a":      {Node: "n1"},
	} {
		if got := ids(f); got != strings.Join(strings.Fields(want), " ") {
			t.Errorf("%+v: %q, want %q", f, got, want)
		}
	}
	a, b := must(d.c.Instance(ctx, "web-a"))(t), must(d.c.Instance(ctx, "web-b"))(t)
	if a.Current || !b.Current || a.Addr != "10.0.0.1" || a.Endpoints["http"] != 31000 || a.State != "running" {
		t.Errorf("a %+v, b %+v", a, b)
	}
	if j := must(d.c.Instance(ctx, "job-a"))(t); j.State != "stopped" || j.Why != "main exited with code 2" || j.Restarts != 2 {
		t.Errorf("job %+v", j)
	}
	app := must(d.c.App(ctx, shop))(t)
	if len(app.List) != 2 || app.List[0].ID != "web-b" || app.Running != 2 || app.Spec.Containers[0].Command[0] != "two" || app.Revision == 0 {
		t.Errorf("app %+v", app)
	}
	list := must(d.c.Apps(ctx))(t)
	if len(list) != 2 || list[0].ID != "/job" || list[1].Instances != 2 || list[1].Resources.Memory != model.DefaultMemory {
		t.Errorf("apps %+v", list)
	}
}

// What people read in lists must say what is the matter.
func TestWords(t *testing.T) {
	pending := func(i *model.Instance) {
		i.Node, i.Pending, i.Status = "", "1 node lacks memory", model.Status{Phase: model.PhasePending}
	}
	backoff := func(i *model.Instance) {
		i.Status = model.Status{Phase: model.PhaseBackoff, Attempt: 4, Tasks: []model.TaskStatus{{Name: "main",
			Exit: &model.Exit{Code: 137, Signal: 9, OOM: true, Limit: 64 * model.MiB, Peak: 64 * model.MiB}}}}
	}
	unhealthy := func(i *model.Instance) {
		i.Status.Healthy, i.Status.Ready, i.Status.Message = model.Unhealthy, false, "GET / answered 500"
	}
	slow := func(i *model.Instance) { i.Status.Ready = false }
	halted := func(i *model.Instance) { i.Desired, i.Why = model.Halt, "scaled down" }
	type instance = func(*model.Instance)
	for name, c := range map[string]struct {
		state     model.DeploymentState
		message   string
		count     int
		instances []instance
		want      string
	}{
		"all well":         {model.DeploySucceeded, "done", 2, []instance{nil, nil}, "running: "},
		"deploying":        {model.DeployRunning, "waits for 1 instance to be healthy", 2, []instance{nil, slow}, "deploying: waits for 1 instance to be healthy"},
		"no place at all":  {model.DeployRunning, "", 1, []instance{pending}, "waiting: 1 pending: 1 node lacks memory"},
		"place for some":   {model.DeployRunning, "", 2, []instance{nil, pending}, "deploying: 1 pending: 1 node lacks memory"},
		"paused":           {model.DeployPaused, "paused", 2, []instance{nil, nil}, "paused: the deployment is paused with 0 of 2 done"},
		"crash loop":       {model.DeploySucceeded, "", 2, []instance{backoff, backoff}, "waiting: 2 waiting to start again: main was killed at its memory limit of 64 MiB; most it used was 64 MiB"},
		"one unhealthy":    {model.DeploySucceeded, "", 3, []instance{nil, nil, unhealthy}, "degraded: 1 unhealthy: GET / answered 500"},
		"some are missing": {model.DeploySucceeded, "", 3, []instance{nil}, "degraded: 1 of 3 instances are healthy"},
		"failed":           {model.DeployFailed, "made no progress for 5m", 1, []instance{nil}, "degraded: made no progress for 5m"},
		"rolled back":      {model.DeployRolledBack, "went back to version 1", 1, []instance{nil}, "running: went back to version 1"},
		"none wanted":      {model.DeploySucceeded, "", 0, []instance{halted}, "suspended: no instances are asked for"},
		"several troubles": {model.DeploySucceeded, "", 4, []instance{nil, slow, pending, pending}, "degraded: 2 pending: 1 node lacks memory; 1 not ready"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDoor(t)
			d.create(web(c.count))
			d.finish(shop, c.state, c.message)
			for k, change := range c.instances {
				d.run(model.InstanceID(fmt.Sprintf("web-%d", k)), shop, change)
			}
			a := must(d.c.App(t.Context(), shop))(t)
			if got := a.State + ": " + a.Why; got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
	d := newDoor(t)
	d.create(web(1))
	d.run("web-x", shop, halted)
	must(d.c.DeleteApp(t.Context(), shop))(t)
	if a := must(d.c.App(t.Context(), shop))(t); a.State != "removing" || a.Why != "1 instance has yet to end" {
		t.Errorf("removing: %s: %s", a.State, a.Why)
	}
	if i := must(d.c.Instance(t.Context(), "web-x"))(t); i.State != "stopping" || i.Why != "scaled down" {
		t.Errorf("instance: %s: %s", i.State, i.Why)
	}
}

func TestExitWords(t *testing.T) {
	for want, e := range map[string]model.Exit{
		"exited with code 0":                  {},
		"was ended by signal 15":              {Code: 143, Signal: 15},
		"was killed at its memory limit":      {OOM: true},
		"ended: the machine was started anew": {Lost: "the machine was started anew"},
	} {
		if got := exitWords(&e); got != want {
			t.Errorf("%+v: %q, want %q", e, got, want)
		}
	}
}

func TestNodesUsageImagesInfo(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	d.create(web(1))
	d.run("web-a", shop, nil)
	d.run("web-old", shop, func(i *model.Instance) { i.Status.Phase = model.PhaseStopped })
	d.node.usage = wire.Usage{Node: model.Usage{CPUs: 1.5, Memory: model.GiB},
		Instances: map[model.InstanceID]model.Usage{"web-a": {Memory: model.MiB, CPUTime: model.Duration(3 * time.Second)}, "stranger": {}}}
	nodes := must(d.c.Nodes(ctx))(t)
	if len(nodes) != 1 || nodes[0].Instances != 1 || nodes[0].Used.CPUs != model.DefaultCPUs {
		t.Errorf("nodes are %+v", nodes)
	}
	if n := must(d.c.Node(ctx, "alpha"))(t); n.ID != "n1" {
		t.Errorf("by name: %+v", n)
	}
	u := must(d.c.Usage(ctx))(t)
	if len(u.Nodes) != 1 || u.Nodes[0].Usage.CPUs != 1.5 || len(u.Instances) != 1 || u.Instances[0].Limit.Memory != model.DefaultMemory {
		t.Errorf("usage is %+v", u)
	}
	// Larger than what any part would buffer, so that it must have streamed.
	const size = 40 << 20
	got := must(d.c.ImportImages(ctx, "", io.LimitReader(zeros{}, size)))(t)
	if len(got.Images) != 1 || got.Images[0] != fmt.Sprintf("image-of-%d-bytes", size) {
		t.Errorf("imported %+v", got)
	}
	if images := must(d.c.Images(ctx, "n1"))(t); len(images) != 1 || images[0].Size != size {
		t.Errorf("images are %+v", images)
	}
	info := must(d.c.Info(ctx))(t)
	if info.Version != "test" || info.Auth != "token" || info.Apps != 1 || info.Nodes != 1 || info.Count != 2 {
		t.Errorf("info is %+v", info)
	}
	if err := d.c.Healthy(ctx); err != nil {
		t.Error(err)
	}
	if err := d.c.Shutdown(ctx, client.Shutdown{KeepInstances: true}); err != nil || !(<-d.asked).KeepInstances {
		t.Errorf("shutdown: %v", err)
	}

	d.node.err = fmt.Errorf("pull: %w", runtime.ErrUnavailable)
	for name, err := range map[string]error{
		"usage": second(d.c.Usage(ctx)), "images": second(d.c.Images(ctx, "")),
		"import": second(d.c.ImportImages(ctx, "", strings.NewReader("x"))),
	} {
		if status(err) != http.StatusServiceUnavailable {
			t.Errorf("%s without an engine: %v", name, err)
		}
	}
	d.node.err = fmt.Errorf("read archive: %w", runtime.ErrInvalid)
	if _, err := d.c.ImportImages(ctx, "", strings.NewReader("x")); status(err) != 422 {
		t.Errorf("import of nonsense: %v", err)
	}
	d.mu.Lock()
	d.online = false
	d.mu.Unlock()
	for name, err := range map[string]error{
		"images": second(d.c.Images(ctx, "")), "logs": second(d.c.Logs(ctx, "web-a", client.LogOptions{})),
		"exec": second(d.c.Exec(ctx, "web-a", client.ExecOptions{Command: []string{"x"}})),
	} {
		if status(err) != http.StatusServiceUnavailable || !strings.Contains(err.Error(), "not connected") {
			t.Errorf("%s of a node that is away: %v", name, err)
		}
	}
	if u := must(d.c.Usage(ctx))(t); len(u.Nodes) != 0 || u.Instances == nil {
		t.Errorf("usage without nodes: %+v", u)
	}
	d.put(func(tx *state.Tx) { tx.PutNode(&model.Node{ID: "n2", Name: "alpha"}) })
	if _, err := d.c.Images(ctx, ""); status(err) != http.StatusConflict {
		t.Errorf("images of any of two nodes: %v", err)
	}
	if _, err := d.c.Node(ctx, "alpha"); status(err) != http.StatusConflict {
		t.Errorf("node by a name that two have: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	d := newDoor(t)
	d.create(web(1))
	d.run("web-a", shop, nil)
	d.node.usage = wire.Usage{Instances: map[model.InstanceID]model.Usage{"web-a": {Memory: model.MiB, CPUTime: model.Duration(3 * time.Second)}}}
	must(d.c.Apps(t.Context()))(t)
	d.call("GET", "/no/such/path", "")
	d.call("BREW", "/v1/apps", "")
	text := string(must(d.c.Metrics(t.Context()))(t))
	for _, want := range []string{
		`gantry_apps 1`, `gantry_instances{phase="running"} 1`, `gantry_instances{phase="pending"} 0`, `gantry_instances_healthy 1`,
		`gantry_deployments{state="running"} 1`, `gantry_nodes{state="ready"} 1`, `gantry_node_capacity_cpus{node="n1"} 4`,
		`gantry_node_reserved_memory_bytes{node="n1"} 1.34217728e+08`,
		`gantry_instance_cpu_seconds_total{app="/shop/web",instance="web-a",node="n1"} 3`,
		`gantry_instance_memory_bytes{app="/shop/web",instance="web-a",node="n1"} 1.048576e+06`,
		`gantry_http_requests_total{method="GET",route="/v1/apps",status="200"} 1`,
		`gantry_http_requests_total{method="GET",route="unknown",status="404"} 1`,
		`gantry_http_requests_total{method="other",route="unknown",status="405"} 1`,
		`gantry_http_panics_total 0`, `go_goroutines`, `process_open_fds`,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("no line begins with %s", want)
		}
	}
}

func TestBodyLimit(t *testing.T) {
	d := newDoor(t)
	spec := toJSON(t, web(1))
	fits := spec + strings.Repeat(" ", maxBody-len(spec))
	if code, text, _ := d.call("POST", "/v1/apps", fits); code != http.StatusAccepted {
		t.Errorf("1 MiB: %d %s", code, text)
	}
	if code, _, _ := d.call("PUT", "/v1/apps/shop%2Fweb", fits+" "); code != http.StatusRequestEntityTooLarge {
		t.Errorf("more than 1 MiB: %d", code)
	}
	huge := io.MultiReader(strings.NewReader(`{"id":"`), io.LimitReader(zeros{}, 64<<20))
	req, err := http.NewRequest("POST", d.srv.URL+"/v1/apps", huge)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+string(d.token))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err == nil { // else the server hung up first, which is as good
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("64 MiB without a length: %d", resp.StatusCode)
		}
	}
	code, _, _ := d.call("GET", "/v1/apps", "", "X-Big", strings.Repeat("x", 80<<10))
	if code != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("80 KiB of headers: %d", code)
	}
}

// A client that sends nothing must not hold a connection, and one that never ends its header must not either.
func TestSlowClient(t *testing.T) {
	d := newDoor(t)
	d.serve(d.handler(), func(s *http.Server) { s.ReadHeaderTimeout = 50 * time.Millisecond })
	conn, err := net.Dial("tcp", d.srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET /v1/apps HTTP/1.1\r\nHost: x\r\nX-Slow: ")); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("the server did not hang up: %v", err)
	}
}

// A handler's mistake is answered, counted and logged, and the server goes on.
func TestPanicIsAnswered(t *testing.T) {
	d := newDoor(t)
	var log bytes.Buffer
	h, err := New(Config{Store: panicStore{d.db}, Auth: identity.WithToken(d.token), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	d.serve(h, nil)
	code, body, _ := d.call("GET", "/v1/apps", "")
	if code != http.StatusInternalServerError || strings.Contains(body, "secret") {
		t.Errorf("%d %s", code, body)
	}
	if code, _, _ := d.call("GET", "/healthz", ""); code != http.StatusOK {
		t.Errorf("after it: %d", code)
	}
	if !strings.Contains(log.String(), "a secret of the server") || !strings.Contains(log.String(), "listApps") {
		t.Errorf("the log does not say where: %s", log.String())
	}
}

func TestConfigIsChecked(t *testing.T) {
	d := newDoor(t)
	for name, c := range map[string]Config{
		"no store":        {Auth: identity.WithoutToken()},
		"no auth":         {Store: d.db},
		"half a registry": {Store: d.db, Auth: identity.WithoutToken(), Meters: prometheus.NewRegistry()},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s passed", name)
		}
	}
}
