package model

import "testing"

// With a fixed port or shared data, a default update must end one instance before it starts the next; otherwise it could
// never finish on one node, or two programs would write to the same files.
func TestDefaultUpdateOfExclusiveApps(t *testing.T) {
	n := 3
	volume := []Volume{{Name: "data", HostPath: "/data"}}
	for name, test := range map[string]struct {
		spec         Spec
		floor, surge Amount
	}{
		"plain":        {Spec{}, "100%", "25%"},
		"fixed port":   {Spec{Endpoints: []Endpoint{{Name: "a", Port: 80}}}, "0", "0"},
		"three":        {Spec{Instances: &n, Endpoints: []Endpoint{{Name: "a", Port: 80}}}, "2", "0"},
		"writes":       {Spec{Volumes: volume, Containers: []Container{{Mounts: []Mount{{Volume: "data", Path: "/d"}}}}}, "0", "0"},
		"reads":        {Spec{Volumes: volume, Containers: []Container{{Mounts: []Mount{{Volume: "data", Path: "/d", ReadOnly: true}}}}}, "100%", "25%"},
		"what is said": {Spec{Endpoints: []Endpoint{{Name: "a", Port: 80}}, Update: &Update{MinHealthy: "50%", MaxSurge: "1"}}, "50%", "1"},
	} {
		if got := test.spec.WithDefaults().Update; got.MinHealthy != test.floor || got.MaxSurge != test.surge {
			t.Errorf("%s: floor %q and surge %q, want %q and %q", name, got.MinHealthy, got.MaxSurge, test.floor, test.surge)
		}
	}
}
