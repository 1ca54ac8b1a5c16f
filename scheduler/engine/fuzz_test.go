package engine

import (
	"encoding/json"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// try places, explains and gives back one class, and checks that nothing is left of it.
func try(t *testing.T, a Ask) {
	for _, small := range []int{smallCluster, 0} {
		e := New(Config{})
		e.small = small
		for _, id := range []model.NodeID{"a", "b", "c"} {
			e.SetNode(Node{
				ID: id, Zone: "z" + string(id), OCI: model.Ability{OK: true}, VM: model.Ability{OK: true}, Attributes: map[string]string{"rack": "r1", "": "empty", "\xff": "\xfe"},
				Capacity: model.Resources{CPUs: 64_000, Memory: model.TiB, Disk: model.TiB}, GPUs: []model.GPUDevice{{ID: "0", Model: "T4"}, {ID: "1", Model: "A10"}},
				Custom: map[string]model.Custom{"seat": {Amount: 5000}, "slot": {Items: []string{"x", "y"}}}, Ports: model.PortRange{First: 30000, Last: 30010},
			})
		}
		c := e.Class(a)
		out := e.PlaceAll([]*Want{{Class: c, IDs: names("i", 3)}}, nil)
		f, why := e.Explain(c)
		if f.Fit < 0 || f.Fit > 3 || why.Text == "" {
			t.Errorf("%d of 3 nodes fit, because %q", f.Fit, why.Text)
		}
		if _, ok := e.Preempt(c, "new", func(model.AppID) int { return 0 }); ok {
			t.Error("something was ended for what is as important")
		}
		e.Defrag("default", func(model.InstanceID) bool { return true })
		if err := e.Audit(); err != nil {
			t.Error(err)
		}
		for _, p := range out {
			e.Release(p.ID)
			e.RemoveVolume(model.VolumeID(p.ID))
		}
		e.Drop(c)
		if left := leftovers(e); left != "" {
			t.Errorf("it is gone, but there are %s", left)
		}
	}
}

// FuzzRules protects that no constraint, affinity or spread makes the engine panic, loop or keep anything, whatever bytes
// it is made of: also those that validation refuses, for stored ones may be older than a rule of validation.
func FuzzRules(f *testing.F) {
	for _, op := range []string{"UNIQUE", "CLUSTER", "GROUP_BY", "MAX_PER", "LIKE", "UNLIKE", "IS", ""} {
		f.Add("rack", op, "r1|r2", "/a", "zone", 0, false)
		f.Add("hostname", op, "2", "/g/*", "", 50, true)
		f.Add("", op, "(", "/*", "\xff", -1, true)
	}
	f.Fuzz(func(t *testing.T, attribute, op, value, app, over string, weight int, anti bool) {
		try(t, Ask{
			App: "/a", Count: 3, Need: model.Resources{CPUs: 100},
			Constraints: []model.Constraint{{Attribute: attribute, Operator: model.Operator(op), Value: value}},
			Affinity:    []model.Affinity{{App: app, Over: over, Weight: weight, Anti: anti}},
			Spread:      []model.Spread{{Over: over, Weight: weight, Targets: map[string]int{value: weight}}},
		})
	})
}

// FuzzAskOf protects that whatever passes validation can be placed or refused, and explained.
func FuzzAskOf(f *testing.F) {
	f.Add([]byte(`{"containers":[{"image":"x","cpus":0.5,"memory":"1GiB","gpus":0.5,"gpuModels":["T4"],"custom":{"slot":1,"seat":0.5}},{"name":"b","gpus":2}]}`))
	f.Add([]byte(`{"instances":3,"containers":[{"command":["x"]}],"endpoints":[{"name":"a","port":80},{"name":"b","protocol":"udp"}],"constraints":[{"attribute":"rack","operator":"GROUP_BY","value":"2"}]}`))
	f.Add([]byte(`{"containers":[{"image":"x","memory":"8EiB","disk":"7EiB"},{"name":"b","image":"x","memory":"7EiB","custom":{"seat":1e12}}],"role":"/a/b","priority":0,"placement":"spread","spread":[{"over":"zone","targets":{"za":70}}]}`))
	f.Add([]byte(`{"containers":[{"image":"x"}],"affinity":[{"app":"/a","anti":true},{"app":"/*","over":"zone","weight":20}],"isolation":"vm"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var s model.Spec
		if json.Unmarshal(text, &s) != nil || len(s.Validate()) > 0 {
			return
		}
		a := AskOf(&model.AppVersion{App: "/a", Spec: &s})
		if a.Need.CPUs < 0 || a.Need.Memory < 0 || a.Need.Disk < 0 || a.Need.GPUs < 0 {
			t.Fatalf("it asks for %+v", a.Need)
		}
		try(t, a)
	})
}
