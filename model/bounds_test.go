package model

import "testing"

// TestFloorAndCeiling protects the bounds that planner and scheduler share: what is said, else the defaults, never a floor
// above the count, and no instance beside the holders of all slots.
func TestFloorAndCeiling(t *testing.T) {
	n := func(n int) *int { return &n }
	persistent := []Volume{{Name: "data", Persistent: &Persistent{Size: GiB}}}
	for name, test := range map[string]struct {
		spec           Spec
		floor, ceiling int
	}{
		"one":              {Spec{}, 1, 2},
		"none":             {Spec{Instances: n(0)}, 0, 0},
		"ten":              {Spec{Instances: n(10)}, 10, 13},
		"fixed port":       {Spec{Instances: n(3), Endpoints: []Endpoint{{Name: "a", Port: 80}}}, 2, 3},
		"stateful":         {Spec{Instances: n(3), Volumes: persistent}, 2, 3},
		"one stateful":     {Spec{Volumes: persistent}, 0, 1},
		"said":             {Spec{Instances: n(10), Update: &Update{MinHealthy: "75%", MaxSurge: "2"}}, 8, 12},
		"floor only":       {Spec{Instances: n(4), Update: &Update{MinHealthy: "1"}}, 1, 5},
		"floor too high":   {Spec{Instances: n(4), Update: &Update{MinHealthy: "9"}}, 4, 5},
		"surge of holders": {Spec{Instances: n(4), Volumes: persistent, Update: &Update{MaxSurge: "2"}}, 3, 4},
	} {
		if floor, ceiling := test.spec.Floor(), test.spec.Ceiling(); floor != test.floor || ceiling != test.ceiling {
			t.Errorf("%s: floor %d and ceiling %d, want %d and %d", name, floor, ceiling, test.floor, test.ceiling)
		}
	}
}

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
