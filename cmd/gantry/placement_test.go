package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// placeFake is what a fake knows of sharing and placement: one node that takes three instances, and records.
type placeFake struct {
	node         client.NodeDetail
	roles        map[model.RoleID]model.Role
	pools        map[string]model.Pool
	reservations map[string]model.Reservation
	volumes      map[model.VolumeID]client.VolumeDetail
	moves        []model.Move
}

const room = 3 // instances on the fake's node

func newPlaceFake() placeFake {
	return placeFake{
		node:         client.NodeDetail{Node: model.Node{ID: "n-1", Name: "here", State: model.NodeReady}, Availability: client.NodeReady},
		roles:        map[model.RoleID]model.Role{"/": {ID: "/"}, "/batch": {ID: "/batch", Weight: 2}},
		pools:        map[string]model.Pool{"default": {Name: "default"}},
		reservations: map[string]model.Reservation{"db-a": {ID: "db-a", Role: "/batch", Node: "n-1", Resources: model.Resources{CPUs: 1000}}},
		volumes: map[model.VolumeID]client.VolumeDetail{
			"/db:1:data": {PersistentVolume: model.PersistentVolume{ID: "/db:1:data", App: "/db", Slot: 1, Name: "data", Node: "n-1", Size: model.GiB}, NodeName: "here"},
		},
	}
}

func (f *fake) placeRoutes() map[string]func(*http.Request) (any, error) {
	p := &f.place
	return map[string]func(*http.Request) (any, error){
		"POST /v1/plan": f.plan,
		"GET /v1/moves": func(*http.Request) (any, error) { return append([]model.Move{}, p.moves...), nil },
		"GET /v1/roles": func(*http.Request) (any, error) {
			return sorted(p.roles, func(r model.Role) client.RoleDetail { return client.RoleDetail{Role: r} }), nil
		},
		"GET /v1/roles/{role}": func(r *http.Request) (any, error) {
			if role, ok := p.roles[pathRole(r)]; ok {
				return client.RoleDetail{Role: role}, nil
			}
			return nil, refuse(http.StatusNotFound, fmt.Sprintf("no role %s", pathRole(r)))
		},
		"PUT /v1/roles/{role}": func(r *http.Request) (any, error) {
			role, err := record[model.Role](r)
			p.roles[pathRole(r)] = role
			return client.RoleDetail{Role: role}, err
		},
		"DELETE /v1/roles/{role}": func(r *http.Request) (any, error) {
			if pathRole(r) == "/batch" {
				return nil, refuse(http.StatusConflict, "role /batch is in use: /etl names it")
			}
			return drop(p.roles, pathRole(r), "role")
		},
		"GET /v1/pools": func(*http.Request) (any, error) {
			return sorted(p.pools, func(r model.Pool) client.PoolDetail { return client.PoolDetail{Pool: r, Nodes: 1} }), nil
		},
		"PUT /v1/pools/{id}": func(r *http.Request) (any, error) {
			pool, err := record[model.Pool](r)
			p.pools[pool.Name] = pool
			return client.PoolDetail{Pool: pool}, err
		},
		"DELETE /v1/pools/{id}": func(r *http.Request) (any, error) { return drop(p.pools, r.PathValue("id"), "pool") },
		"GET /v1/reservations": func(*http.Request) (any, error) {
			return sorted(p.reservations, func(r model.Reservation) client.ReservationDetail {
				return client.ReservationDetail{Reservation: r, NodeName: "here"}
			}), nil
		},
		"PUT /v1/reservations/{id}": func(r *http.Request) (any, error) {
			kept, err := record[model.Reservation](r)
			p.reservations[kept.ID] = kept
			return client.ReservationDetail{Reservation: kept}, err
		},
		"DELETE /v1/reservations/{id}": func(r *http.Request) (any, error) { return drop(p.reservations, r.PathValue("id"), "reservation") },
		"GET /v1/volumes": func(r *http.Request) (any, error) {
			all := sorted(p.volumes, func(v client.VolumeDetail) client.VolumeDetail { return v })
			app := r.URL.Query().Get("app")
			return slices.DeleteFunc(all, func(v client.VolumeDetail) bool { return app != "" && app != string(v.App) }), nil
		},
		"DELETE /v1/volumes/{id}": func(r *http.Request) (any, error) {
			id := model.VolumeID("/" + r.PathValue("id"))
			v := p.volumes[id]
			v.Removing = true
			_, err := drop(p.volumes, id, "volume")
			return v, err
		},
		"GET /v1/nodes/{id}": f.onNode(func(*model.NodeSettings, *http.Request) error { return nil }),
		"PUT /v1/nodes/{id}/settings": f.onNode(func(s *model.NodeSettings, r *http.Request) error {
			*s = model.NodeSettings{}
			return json.NewDecoder(r.Body).Decode(s)
		}),
		"POST /v1/nodes/{id}/cordon": f.onNode(func(s *model.NodeSettings, r *http.Request) error {
			s.Cordoned = true
			return json.NewDecoder(r.Body).Decode(s)
		}),
		"POST /v1/nodes/{id}/drain": f.onNode(func(s *model.NodeSettings, r *http.Request) error {
			var ask client.Drain
			if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
				return err
			}
			s.Draining, s.Why = true, ask.Why
			if ask.Deadline > 0 {
				s.Deadline = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).Add(ask.Deadline.Std())
			}
			return nil
		}),
		"DELETE /v1/nodes/{id}": func(r *http.Request) (any, error) {
			if r.URL.Query().Get("force") == "" {
				return nil, refuse(http.StatusConflict, "1 instance has not ended on node here; drain it first")
			}
			return client.RemovedNode{ID: "n-1", Name: "here", Instances: []model.InstanceID{"db-1"}, Volumes: []model.VolumeID{"/db:1:data"}}, nil
		},
		"POST /v1/cluster/resume-replacement": func(*http.Request) (any, error) {
			if f.notice == "" {
				return nil, refuse(http.StatusConflict, "there is no outage")
			}
			f.notice = ""
			return client.Info{}, nil
		},
		"POST /v1/nodes/{id}/uncordon": f.onNode(func(s *model.NodeSettings, _ *http.Request) error {
			*s = model.NodeSettings{Windows: s.Windows}
			return nil
		}),
	}
}

// plan puts what fits onto the one node; an app with priority 100 ends another for it.
func (f *fake) plan(r *http.Request) (any, error) {
	s, err := record[model.Spec](r)
	if err != nil {
		return nil, err
	}
	if s.Labels["refuse"] != "" {
		return nil, refuse(http.StatusUnprocessableEntity, "the app is not valid", client.ProblemField{Location: "body.role", Message: "there is no role /x"})
	}
	out := model.Plan{App: s.ID, Instances: s.Count(), Placed: min(s.Count(), room)}
	out.Waiting = out.Instances - out.Placed
	out.Nodes = []model.PlanNode{{Node: "n-1", Name: "here", Instances: out.Placed, Free: model.Resources{CPUs: 500, Memory: model.GiB}}}
	out.Funnel = model.Funnel{Nodes: 2, Fit: 1, Steps: []model.FunnelStep{{Filter: "state", Removed: 1, Left: 1, Why: "1 is cordoned"}, {Filter: "memory", Left: 1}}}
	if out.Waiting > 0 {
		out.Funnel.Steps[1] = model.FunnelStep{Filter: "memory", Removed: 1}
		out.Funnel.Fit, out.Funnel.Reason = 0, "1 node is cordoned; 1 node lacks memory"
	}
	if s.Priority != nil && *s.Priority == model.MaxPriority {
		out.Preempted = []model.PlanVictim{{Instance: "low-aaaa", App: "/low", Node: "n-1", Priority: 10, Why: "lowest priority on here"}}
	}
	return out, nil
}

func (f *fake) onNode(change func(*model.NodeSettings, *http.Request) error) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		n := &f.place.node
		if id := r.PathValue("id"); id != string(n.ID) && id != n.Name {
			return nil, refuse(http.StatusNotFound, "no node "+id)
		}
		var s model.NodeSettings
		if n.Settings != nil {
			s = *n.Settings
		}
		if err := change(&s, r); err != nil {
			return nil, err
		}
		n.Settings, n.Why, n.Availability = &s, s.Why, client.NodeReady
		switch {
		case s.Draining:
			n.Availability = client.NodeDraining
		case s.Cordoned:
			n.Availability = client.NodeCordoned
		}
		return n, nil
	}
}

func pathRole(r *http.Request) model.RoleID {
	if r.PathValue("role") == "-" {
		return model.RootRole
	}
	return model.RoleID("/" + r.PathValue("role"))
}

func record[T any](r *http.Request) (T, error) {
	var v T
	return v, json.NewDecoder(r.Body).Decode(&v)
}

func sorted[K cmp.Ordered, V, D any](m map[K]V, describe func(V) D) []D {
	out := []D{}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, describe(m[k]))
	}
	return out
}

func drop[K comparable, V any](m map[K]V, key K, what string) (any, error) {
	if _, ok := m[key]; !ok {
		return nil, refuse(http.StatusNotFound, fmt.Sprintf("no %s %v", what, key))
	}
	delete(m, key)
	return struct{}{}, nil
}

// What a plan comes to is in the exit code, so that scripts can ask before they act.
func TestPlan(t *testing.T) {
	f := newFake(t)
	r := gantry(t, f, "", "plan", "--name", "web", "-i", "2", "nginx")
	for _, want := range []string{"/web  fits: of 2 instances, 2 would be placed", "n-1   here", "1 GiB", "1 of 2 nodes can take one more instance", "state            1     1  1 is cordoned"} {
		if r.code != 0 || !strings.Contains(r.out, want) {
			t.Errorf("code %d, lacks %q:\n%s%s", r.code, want, r.out, r.err)
		}
	}
	if strings.ContainsAny(r.out, "█") {
		t.Error("a pipe gets bars")
	}
	r = gantry(t, f, "", "plan", "--name", "web", "-i", "5", "--priority", "100", "nginx")
	for _, want := range []string{"/web  does not fit: of 5 instances, 3 would be placed, 1 other would be ended for that and 2 would wait\n",
		"low-aaaa", "lowest priority on here", "0 of 2 nodes can take one more instance: 1 node is cordoned; 1 node lacks memory"} {
		if r.code != exitDoesNotFit || !strings.Contains(r.out, want) || r.err != "" {
			t.Errorf("code %d, lacks %q:\n%s%s", r.code, want, r.out, r.err)
		}
	}
	file := write(t, "two.yaml", "id: /a\ncontainers: [{image: a}]\n---\nid: /b\ninstances: 9\nrole: /batch\ncontainers: [{image: b}]\n")
	r = gantry(t, f, "", "plan", file, "--json")
	var plans []model.Plan
	if err := json.Unmarshal([]byte(r.out), &plans); err != nil || len(plans) != 2 || plans[1].Waiting != 6 || r.code != exitDoesNotFit {
		t.Errorf("code %d, %v: %s", r.code, err, r.out)
	}
	refused := write(t, "refused.yaml", "id: /x\nlabels: {refuse: yes}\nrole: /x\ncontainers: [{image: b}]\n")
	gantry(t, f, "", "plan", refused).want(t, exitRefused, "", refused+":3: role: there is no role /x")
	if len(f.apps) != 0 {
		t.Error("a plan made an app")
	}
	gantry(t, f, "", "plan", "--role", "/batch", file).want(t, exitUsage, "", "--role is for images")
	gantry(t, f, "", "plan", "--constraint", "nonsense", "nginx").want(t, exitUsage, "", "hostname UNIQUE")
}

// On a terminal the funnel is drawn.
func TestStatusShowsWhatWaits(t *testing.T) {
	f := newFake(t)
	a := f.addApp("/web")
	a.Funnel = &model.Funnel{Nodes: 10, Steps: []model.FunnelStep{{Filter: "memory", Removed: 9, Left: 1}, {Filter: "ports", Removed: 1}}, Reason: "nothing is left"}
	a.Volumes = []client.VolumeDetail{f.place.volumes["/db:1:data"]}
	a.List[0].Slot, a.List[0].GPUs = 3, []model.GPUShare{{ID: "g7", Share: 500}}
	r := gantry(t, f, "", "status", "web")
	for _, want := range []string{"Nodes for the instances that wait", "0 of 10 nodes can take one more instance: nothing is left", "/db:1:data", "g7×0.5", "SLOT"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("lacks %q:\n%s", want, r.out)
		}
	}
	t.Setenv("TERM", "xterm")
	if _, out := onTerminal(t, f, "status", "web"); !strings.Contains(out, "██░░") {
		t.Errorf("no bars: %q", out)
	}
}

// A role, a pool and a reservation keep what was not named.
func TestSetKeepsTheRest(t *testing.T) {
	f := newFake(t)
	run := func(line, want string) {
		t.Helper()
		if r := gantry(t, f, "", strings.Fields(line)...); r.code != 0 || !strings.Contains(r.out, want) || r.err != "" {
			t.Errorf("gantry %s: code %d, want %q in:\n%s%s", line, r.code, want, r.out, r.err)
		}
	}
	run("role set analytics --guarantee cpus=20,memory=64GiB --limit cpus=80,licence=2 --weight 2", "made role /analytics")
	run("role set /analytics --weight gpus=3", "cpus=20,memory=64GiB")
	run("role set /analytics --guarantee none", "cpus=80,licence=2")
	if r := f.place.roles["/analytics"]; r.Weight != 2 || r.Weights["gpus"] != 3 || r.Guarantee.CPUs != nil || *r.Limit.CPUs != 80_000 || r.Limit.Custom["licence"] != 2000 {
		t.Errorf("role is %+v", r)
	}
	run("role set / --limit gpus=4", "gpus=4")
	run("role ls", "/batch")
	run("role rm /analytics", "role /analytics is gone")
	run("pool set edge --placement spread", "spread")
	run("pool set edge --defragment perform", "perform")
	run("pool set edge --spread off", "off")
	if p := f.place.pools["edge"]; p.Placement != model.PolicySpread || p.Defragment != model.DefragmentPerform {
		t.Errorf("pool is %+v", p)
	}
	run("pool ls", "edge")
	run("pool rm edge", "edge is gone")
	run("reservation set db-a --memory 4GiB", "4 GiB memory")
	run("reservation set db-b --role /batch --node here --cpus 2 --gpus 0.5", "0.5 gpus")
	if r := f.place.reservations["db-a"].Resources; r.CPUs != 1000 || r.Memory != 4*model.GiB {
		t.Errorf("reservation keeps %+v", r)
	}
	run("reservation ls", "db-b")
	run("reservation rm db-a db-b", "reservation db-b is gone")
	run("reservation ls", "no reservations")
	run("volume ls", "/db:1:data")
	run("volume ls other", "no persistent volumes")
	run("volume rm db:1:data", "/db:1:data is being deleted")
	for line, want := range map[string]struct {
		code int
		text string
	}{
		"role set /x --guarantee cpus":                               {exitUsage, "cpus=20,memory=64GiB"},
		"role set /x --limit cpus=1,cpus=2":                          {exitUsage, "given twice"},
		"role set /x --limit memory=lots":                            {exitUsage, "not an amount of bytes"},
		"role set /x --guarantee cpus=2 --limit cpus=1":              {exitUsage, "guarantee.cpus"},
		"role set /x --weight heavy":                                 {exitUsage, "gpus=3"},
		"role set X":                                                 {exitUsage, "lower-case"},
		"role rm /batch":                                             {exitRefused, "/etl names it"},
		"role rm /nothere":                                           {exitNotFound, "gantry role ls lists them"},
		"pool set edge":                                              {exitUsage, "--placement, --spread or --defragment"},
		"pool set edge --spread racks":                               {exitUsage, "zones"},
		"pool set edge --placement tight":                            {exitUsage, "pack"},
		"pool rm nothere":                                            {exitNotFound, "gantry pool ls"},
		"reservation set new --cpus 1":                               {exitUsage, "--role and --node"},
		"reservation set new --role /batch --node here":              {exitUsage, "say what to keep"},
		"reservation rm nothere":                                     {exitNotFound, "gantry reservation ls"},
		"volume rm /nothere:1:data":                                  {exitNotFound, "gantry volume ls"},
		"node drain nothere":                                         {exitNotFound, "gantry nodes"},
		"node maintenance here --start soon --duration 1h":           {exitUsage, "2026-01-31"},
		"node maintenance here --start now":                          {exitUsage, "--start and --duration"},
		"node maintenance here --start now --duration 2h --every 1h": {exitUsage, "shorter than the window"},
		"node maintenance here --start now --clear":                  {exitUsage, "clear"},
	} {
		if r := gantry(t, f, "", strings.Fields(line)...); r.code != want.code || !strings.Contains(r.err, want.text) {
			t.Errorf("gantry %s: code %d, want %d and %q in:\n%s", line, r.code, want.code, want.text, r.err)
		}
	}
}

// Taking a node out of use and back is one word each, and says how it is undone.
func TestNodeCommands(t *testing.T) {
	f := newFake(t)
	gantry(t, f, "", "node", "cordon", "here", "--why", "new disks").want(t, 0, "here takes no new work; gantry node uncordon here ends that\n")
	if r := gantry(t, f, "", "nodes"); !strings.Contains(r.out, "cordoned") || !strings.Contains(r.out, "new disks") {
		t.Errorf("nodes: %s", r.out)
	}
	gantry(t, f, "", "node", "drain", "n-1", "--no-wait").want(t, 0,
		"here is being drained; gantry nodes here shows what is left on it, gantry node uncordon here ends that\n")
	gantry(t, f, "", "node", "uncordon", "here").want(t, 0, "here is ready\n")
	for range 2 { // the same window again is the same window
		r := gantry(t, f, "", "node", "maintenance", "here", "--start", "2026-03-01T13:00:00Z", "--duration", "2h", "--every", "168h", "--drain", "--why", "firmware")
		if r.code != 0 || !strings.Contains(r.out, "2h        168h   no") || !strings.Contains(r.out, "move away  firmware") {
			t.Errorf("code %d: %s%s", r.code, r.out, r.err)
		}
	}
	gantry(t, f, "", "node", "maintenance", "here", "--start", "+1h", "--duration", "30m", "--json")
	if w := f.place.node.Settings.Windows; len(w) != 2 || !w[1].Start.Equal(time.Date(2026, 3, 1, 13, 0, 0, 0, time.UTC)) || w[0].Drain != true {
		t.Errorf("windows are %+v", w)
	}
	if r := gantry(t, f, "", "nodes", "here"); !strings.Contains(r.out, "Maintenance") || !strings.Contains(r.out, "firmware") {
		t.Errorf("node: %s", r.out)
	}
	gantry(t, f, "", "node", "maintenance", "here", "--clear").want(t, 0, "no maintenance of here is planned\n")
}

// Proposals come with the way to let them be made.
func TestDefrag(t *testing.T) {
	f := newFake(t)
	gantry(t, f, "", "defrag").want(t, 0, "no moves are proposed: none would leave free room in larger pieces\n")
	f.place.pools["gpu"] = model.Pool{Name: "gpu", Defragment: model.DefragmentPerform}
	f.place.pools["old"] = model.Pool{Name: "old", Defragment: model.DefragmentOff}
	f.place.moves = []model.Move{{Instance: "web-aaaa", App: "/web", From: "n-1", To: "n-2", Gain: "4 GiB more in one piece on n-1"}}
	r := gantry(t, f, "", "defrag")
	for _, want := range []string{"web-aaaa", "4 GiB more in one piece", "only proposed in default; gantry pool set POOL --defragment perform", "made by Gantry itself in gpu", "not looked for in old"} {
		if r.code != 0 || !strings.Contains(r.out, want) {
			t.Errorf("lacks %q:\n%s%s", want, r.out, r.err)
		}
	}
	if r := gantry(t, f, "", "defrag", "--pool", "gpu", "--json"); r.code != 0 || !strings.HasPrefix(r.out, "[\n") {
		t.Errorf("json: %+v", r)
	}
}

// Both ways of writing a constraint mean the same, and what is neither is told.
func TestParseConstraint(t *testing.T) {
	for text, want := range map[string]model.Constraint{
		"hostname UNIQUE":         {Attribute: "hostname", Operator: model.OpUnique},
		"hostname:UNIQUE":         {Attribute: "hostname", Operator: model.OpUnique},
		" rack  like   r[1-3] x ": {Attribute: "rack", Operator: model.OpLike, Value: "r[1-3] x"},
		"rack:LIKE:r[12]:b":       {Attribute: "rack", Operator: model.OpLike, Value: "r[12]:b"},
		"rack UNLIKE a:b":         {Attribute: "rack", Operator: model.OpUnlike, Value: "a:b"},
		"zone:group_by:3":         {Attribute: "zone", Operator: model.OpGroupBy, Value: "3"},
		"os IS Debian GNU/Linux":  {Attribute: "os", Operator: model.OpIs, Value: "Debian GNU/Linux"},
		"rack MAX_PER 2":          {Attribute: "rack", Operator: model.OpMaxPer, Value: "2"},
		"rack:CLUSTER:":           {Attribute: "rack", Operator: model.OpCluster},
	} {
		if got, err := parseConstraint(text); err != nil || got != want {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "hostname", "hostname ONCE", "UNIQUE hostname", "a:b:c", ":", "hostname UNIQUELY"} {
		if got, err := parseConstraint(text); err == nil || !strings.Contains(err.Error(), "hostname UNIQUE") {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
}

// Whatever is written as a constraint is refused, or means the same when it is written out again.
func FuzzParseConstraint(f *testing.F) {
	for _, s := range []string{"hostname UNIQUE", "a:LIKE:x", "a LIKE  b c", "::", "a\tIS\u00a0b", "UNIQUE:UNIQUE:UNIQUE"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		k, err := parseConstraint(text)
		if err != nil {
			return
		}
		if errs := (&model.Spec{ID: "/a", Containers: []model.Container{{Shell: "x"}}, Constraints: []model.Constraint{k}}).Validate(); len(errs) > 0 {
			return
		}
		again, err := parseConstraint(fmt.Sprintf("%s:%s:%s", k.Attribute, k.Operator, k.Value))
		if strings.Contains(k.Attribute, ":") {
			return // only the form with spaces can hold it
		}
		if err != nil || again != k {
			t.Errorf("%q is %+v, and that is %+v, %v", text, k, again, err)
		}
	})
}

// Amounts are refused, or are within what the model allows.
func FuzzParseQuota(f *testing.F) {
	for _, s := range []string{"none", "cpus=20,memory=64GiB", "gpus=0.5,x=1", "=,=", "cpus=-1", "memory=1e30"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		q, err := parseQuota(text)
		if err != nil {
			return
		}
		for _, n := range []bool{q.CPUs != nil && *q.CPUs < 0, q.Memory != nil && *q.Memory < 0, q.Disk != nil && *q.Disk < 0, q.GPUs != nil && *q.GPUs < 0} {
			if n {
				t.Errorf("%q is negative: %+v", text, q)
			}
		}
	})
}
