package model

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

// valid returns a spec that uses everything.
func valid() *Spec {
	n, zero, yes := 3, Duration(0), true
	return &Spec{
		ID: "/shop/web", Instances: &n,
		Containers: []Container{
			{
				Image: "registry.example:5000/web:1.2", Args: []string{"-v"}, Auth: &RegistryAuth{Username: "u", Password: "p"}, Pull: PullAlways,
				Env: map[string]string{"A": "1", "B": "2"}, User: "www:www", Dir: "/srv", CPUs: 250, Memory: 256 * MiB, Disk: GiB,
				Artifacts: []Artifact{
					{URI: "https://example.test/app.tgz", Checksum: "sha256:" + strings.Repeat("0", 64), Path: "app", Extract: &yes},
					{URI: "file:///srv/x"},
				},
				Mounts: []Mount{{Volume: "data", Path: "/data"}, {Volume: "tmp", Path: "scratch"}},
			},
			{Name: "side", Shell: "exec sleep 1"},
		},
		Endpoints: []Endpoint{{Name: "http", Port: 8080}, {Name: "dns", Port: 8080, Protocol: "udp"}, {Name: "any"}, {Name: "other"}},
		Volumes:   []Volume{{Name: "data", HostPath: "/srv/data"}, {Name: "tmp", Scratch: true}},
		Labels:    map[string]string{"team": "shop"},
		Health: []Check{
			{HTTP: &HTTPCheck{Endpoint: "http", Path: "/health", Scheme: "https"}, Interval: Duration(time.Second)},
			{Command: &CommandCheck{Container: "main", Command: []string{"true"}}},
		},
		Readiness: []Check{{TCP: &TCPCheck{Endpoint: "any"}, Failures: 1}},
		Restart:   &Restart{Backoff: Duration(time.Second), Factor: 1.5, Max: Duration(time.Minute), Reset: Duration(time.Minute)},
		Stop:      &Stop{Signal: "SIGQUIT", Grace: Duration(time.Minute)},
		Update:    &Update{MinHealthy: "50%", MaxSurge: "1", MinHealthyTime: &zero, Deadline: Duration(time.Minute)},
		KillOrder: OldestFirst,
	}
}

// invalid breaks a valid spec in one way each, and says what Validate must answer.
var invalid = []struct {
	damage  func(*Spec)
	path    string
	message string // part of it
}{
	{func(s *Spec) { s.ID = "" }, "id", "is empty"},
	{func(s *Spec) { s.ID = "shop/web" }, "id", `write it as "/shop/web"`},
	{func(s *Spec) { s.ID = "/Shop" }, "id", "lower-case"},
	{func(s *Spec) { *s.Instances = -1 }, "instances", "outside 0 to"},
	{func(s *Spec) { *s.Instances = MaxInstances + 1 }, "instances", "outside 0 to"},
	{func(s *Spec) { s.Labels["x"] = "\x00" }, `labels["x"]`, "NUL"},
	{func(s *Spec) { s.Labels["x"] = strings.Repeat("x", MaxText+1) }, `labels["x"]`, "bytes, at most"},
	{func(s *Spec) { s.Labels = many() }, "labels", "entries, at most"},

	{func(s *Spec) { s.Containers = nil; s.Health = nil }, "containers", "has 0 entries"},
	{func(s *Spec) { s.Containers = append(s.Containers, named(MaxContainers-1)...) }, "containers", "has 17 entries"},
	{func(s *Spec) { s.Containers[1].Name = "" }, "containers[1].name", "is empty"},
	{func(s *Spec) { s.Containers[1].Name = "a.b" }, "containers[1].name", "lower-case"},
	{func(s *Spec) { s.Containers[1].Name = "main" }, "containers[1].name", "used twice"},
	{func(s *Spec) { s.Containers[1].Command = []string{"x"} }, "containers[1].shell", "either shell or command"},
	{func(s *Spec) { s.Containers[1].Shell = "" }, "containers[1]", "give an image, a command or a shell line"},
	{func(s *Spec) { s.Containers[1].Args = []string{"x"} }, "containers[1].args", "only an image"},
	{func(s *Spec) { s.Containers[0].Shell = "x" }, "containers[0].args", "takes no args"},
	{func(s *Spec) { s.Containers[0].Command = []string{""} }, "containers[0].command[0]", "program is empty"},
	{func(s *Spec) { s.Containers[0].Command = []string{"x", "\x00"} }, "containers[0].command[1]", "NUL"},
	{func(s *Spec) { s.Containers[0].Args = make([]string, MaxList+1) }, "containers[0].args", "entries, at most"},
	{func(s *Spec) { s.Containers[0].Image = "a b" }, "containers[0].image", "white space"},
	{func(s *Spec) { s.Containers[0].Image = "a\x00b" }, "containers[0].image", "NUL"},
	{func(s *Spec) { s.Containers[0].Image = strings.Repeat("x", MaxText+1) }, "containers[0].image", "bytes, at most"},
	{func(s *Spec) { s.Containers[0].Pull = "often" }, "containers[0].pull", "is not one of"},
	{func(s *Spec) { s.Containers[0].Auth.Username = "" }, "containers[0].auth.username", "is empty"},
	{func(s *Spec) { s.Containers[1].Auth = s.Containers[0].Auth }, "containers[1].auth", "only an image"},
	{func(s *Spec) { s.Isolation = "box" }, "isolation", "is not one of [vm]"},
	{func(s *Spec) { s.Isolation = IsolationVM }, "containers[1].image", "a virtual machine runs images"},
	{func(s *Spec) { s.Containers[0].CPUs = 9 }, "containers[0].cpus", "0.009 is less than 0.01"},
	{func(s *Spec) { s.Containers[0].CPUs = -1 }, "containers[0].cpus", "less than"},
	{func(s *Spec) { s.Containers[0].CPUs = MaxCPUs + 1 }, "containers[0].cpus", "more than"},
	{func(s *Spec) { s.Containers[0].Memory = MiB }, "containers[0].memory", "1MiB is less than 4MiB"},
	{func(s *Spec) { s.Containers[0].Memory = math.MaxInt64 }, "containers[0].memory", "more than 1024TiB"},
	{func(s *Spec) { s.Containers[0].Disk = -1 }, "containers[0].disk", "outside 0 to"},
	{func(s *Spec) { s.Containers[0].Disk = math.MaxInt64 }, "containers[0].disk", "outside 0 to"},
	{func(s *Spec) { s.Containers[1].Shell = "\x00" }, "containers[1].shell", "NUL"},
	{func(s *Spec) { s.Containers[0].User = "\x00" }, "containers[0].user", "NUL"},
	{func(s *Spec) { s.Containers[0].Dir = "\x00" }, "containers[0].dir", "NUL"},
	{func(s *Spec) { s.Containers[0].Env["A=B"] = "" }, "containers[0].env", `"A=B" is not a variable name`},
	{func(s *Spec) { s.Containers[0].Env[""] = "" }, "containers[0].env", `"" is not a variable name`},
	{func(s *Spec) { s.Containers[0].Env = many() }, "containers[0].env", "entries, at most"},

	{func(s *Spec) { artifact(s).URI = "%zz" }, "containers[0].artifacts[0].uri", "invalid URL"},
	{func(s *Spec) { artifact(s).URI = "ftp://x/y" }, "containers[0].artifacts[0].uri", "addresses are known"},
	{func(s *Spec) { artifact(s).URI = "file:x" }, "containers[0].artifacts[0].uri", "absolute path"},
	{func(s *Spec) { artifact(s).URI = "file://etc/passwd" }, "containers[0].artifacts[0].uri", "absolute path"},
	{func(s *Spec) { artifact(s).URI = "http:///x" }, "containers[0].artifacts[0].uri", "names no host"},
	{func(s *Spec) { artifact(s).Path, artifact(s).URI = "", "http://x/" }, "containers[0].artifacts[0].path", "without a file name"},
	{func(s *Spec) { artifact(s).Path = "../x" }, "containers[0].artifacts[0].path", "no place in the sandbox"},
	{func(s *Spec) { artifact(s).Path = "/x" }, "containers[0].artifacts[0].path", "no place in the sandbox"},
	{func(s *Spec) { artifact(s).Path = "./" }, "containers[0].artifacts[0].path", "no place in the sandbox"},
	{func(s *Spec) { artifact(s).Checksum = "sha256:00" }, "containers[0].artifacts[0].checksum", "64"},
	{func(s *Spec) { artifact(s).Checksum = "md5:" + strings.Repeat("0", 32) }, "containers[0].artifacts[0].checksum", "sha512"},
	{func(s *Spec) { s.Containers[0].Artifacts = repeat(*artifact(s)) }, "containers[0].artifacts", "entries, at most"},

	{func(s *Spec) { s.Containers[0].Mounts[0].Volume = "x" }, "containers[0].mounts[0].volume", `no volume is named "x"`},
	{func(s *Spec) { s.Containers[0].Mounts[0].Path = "" }, "containers[0].mounts[0].path", "not a directory"},
	{func(s *Spec) { s.Containers[0].Mounts[0].Path = "/a/.." }, "containers[0].mounts[0].path", "not a directory"},
	{func(s *Spec) { s.Containers[0].Mounts[0].Path = "../a" }, "containers[0].mounts[0].path", "leaves the sandbox"},
	{func(s *Spec) { s.Containers[0].Mounts[0].Path = "/a\x00" }, "containers[0].mounts[0].path", "NUL"},
	{func(s *Spec) { s.Containers[0].Mounts = repeat(s.Containers[0].Mounts[0]) }, "containers[0].mounts", "entries, at most"},

	{func(s *Spec) { s.Endpoints[2].Name = "" }, "endpoints[2].name", "is empty"},
	{func(s *Spec) { s.Endpoints[3].Name = "http" }, "endpoints[3].name", "used twice"},
	{func(s *Spec) { s.Endpoints[2].Port = -1 }, "endpoints[2].port", "outside 0 to 65535"},
	{func(s *Spec) { s.Endpoints[2].Port = 65536 }, "endpoints[2].port", "outside 0 to 65535"},
	{func(s *Spec) { s.Endpoints[2].Port = 8080 }, "endpoints[2].port", "used twice"},
	{func(s *Spec) { s.Endpoints[2].Protocol = "sctp" }, "endpoints[2].protocol", "is not one of"},
	{func(s *Spec) { s.Endpoints = endpoints(MaxEndpoints + 1) }, "endpoints", "entries, at most"},

	{func(s *Spec) { s.Volumes[1].Name = "T" }, "volumes[1].name", "lower-case"},
	{func(s *Spec) { s.Volumes = append(s.Volumes, s.Volumes[0]) }, "volumes[2].name", "used twice"},
	{func(s *Spec) { s.Volumes[0].Scratch = true }, "volumes[0]", "give exactly one of"},
	{func(s *Spec) { s.Volumes[1].Scratch = false }, "volumes[1]", "give exactly one of"},
	{func(s *Spec) { s.Volumes[0].HostPath = "srv" }, "volumes[0].hostPath", "not an absolute path"},
	{func(s *Spec) { s.Volumes[0].HostPath = "/x/.." }, "volumes[0].hostPath", "below /"},
	{func(s *Spec) { s.Volumes = append(s.Volumes, repeat(s.Volumes[0])...) }, "volumes", "entries, at most"},

	{func(s *Spec) { s.Health[0].HTTP.Endpoint = "x" }, "health[0].http.endpoint", `no endpoint is named "x"`},
	{func(s *Spec) { s.Health[0].HTTP.Endpoint = "dns" }, "health[0].http.endpoint", "is udp"},
	{func(s *Spec) { s.Health[0].HTTP.Path = "x" }, "health[0].http.path", "does not begin with /"},
	{func(s *Spec) { s.Health[0].HTTP.Path = "/\x00" }, "health[0].http.path", "NUL"},
	{func(s *Spec) { s.Health[0].HTTP.Scheme = "gopher" }, "health[0].http.scheme", "is not one of"},
	{func(s *Spec) { s.Readiness[0].TCP.Endpoint = "" }, "readiness[0].tcp.endpoint", "no endpoint"},
	{func(s *Spec) { s.Readiness[0].TCP = nil }, "readiness[0]", "exactly one of"},
	{func(s *Spec) { s.Readiness[0].HTTP = s.Health[0].HTTP }, "readiness[0]", "exactly one of"},
	{func(s *Spec) { s.Health[1].Command.Command = nil }, "health[1].command.command", "program is empty"},
	{func(s *Spec) { s.Health[1].Command.Command = []string{"a", "\x00"} }, "health[1].command.command[1]", "NUL"},
	{func(s *Spec) { s.Health[1].Command.Container = "x" }, "health[1].command.container", `no container is named "x"`},
	{func(s *Spec) { s.Containers[0].Name = "first" }, "health[1].command.container", `no container is named "main"`},
	{func(s *Spec) { s.Health[0].Interval = 1 }, "health[0].interval", "less than 100ms"},
	{func(s *Spec) { s.Health[0].Timeout = 1 }, "health[0].timeout", "less than 10ms"},
	{func(s *Spec) { s.Health[0].Grace = -1 }, "health[0].grace", "less than 0s"},
	{func(s *Spec) { s.Health[0].Failures = -1 }, "health[0].failures", "outside 1 to 1000"},
	{func(s *Spec) { s.Health[0].Failures = 1001 }, "health[0].failures", "outside 1 to 1000"},
	{func(s *Spec) { s.Health = repeat(s.Health[0]) }, "health", "entries, at most"},

	{func(s *Spec) { s.Restart.Backoff = 1 }, "restart.backoff", "less than 10ms"},
	{func(s *Spec) { s.Restart.Max = 1 }, "restart.max", "less than 10ms"},
	{func(s *Spec) { s.Restart.Reset = 1 }, "restart.reset", "less than 10ms"},
	{func(s *Spec) { s.Restart.Factor = 0.5 }, "restart.factor", "outside 1 to 100"},
	{func(s *Spec) { s.Restart.Factor = math.NaN() }, "restart.factor", "outside 1 to 100"},
	{func(s *Spec) { s.Restart.Factor = math.Inf(1) }, "restart.factor", "outside 1 to 100"},
	{func(s *Spec) { s.Stop.Signal = "SIGNAP" }, "stop.signal", "is not a signal"},
	{func(s *Spec) { s.Stop.Grace = -1 }, "stop.grace", "less than 0s"},
	{func(s *Spec) { s.Stop.Grace = Duration(25 * time.Hour) }, "stop.grace", "more than 24h"},
	{func(s *Spec) { s.Update.MinHealthy = "most" }, "update.minHealthy", "not an amount"},
	{func(s *Spec) { s.Update.MinHealthy = "101%" }, "update.minHealthy", "more than 100%"},
	{func(s *Spec) { s.Update.MaxSurge = "-1" }, "update.maxSurge", "not an amount"},
	{func(s *Spec) { *s.Update.MinHealthyTime = -1 }, "update.minHealthyTime", "less than 0s"},
	{func(s *Spec) { s.Update.Deadline = 1 }, "update.deadline", "less than 1s"},
	{func(s *Spec) { s.Update.MinHealthy, s.Update.MaxSurge = "100%", "0" }, "update", "no instance could ever be replaced"},
	{func(s *Spec) {
		s.Volumes = append(s.Volumes, Volume{Name: "kept", Persistent: &Persistent{Size: GiB}})
		s.Update.MinHealthy = "100%"
	}, "update.minHealthy", "write at most 2"},
	{func(s *Spec) { s.Update.MinHealthy, s.Update.MaxSurge = "3", "0%" }, "update", "no instance could ever be replaced"},
	{func(s *Spec) { s.KillOrder = "random" }, "killOrder", "is not one of"},
}

func artifact(s *Spec) *Artifact { return &s.Containers[0].Artifacts[0] }

func many() map[string]string {
	m := map[string]string{}
	for i := range MaxList + 1 {
		m[fmt.Sprint("k", i)] = ""
	}
	return m
}

func repeat[T any](v T) []T {
	out := make([]T, MaxList+1)
	for i := range out {
		out[i] = v
	}
	return out
}

func named(n int) []Container {
	out := make([]Container, n)
	for i := range out {
		out[i] = Container{Name: fmt.Sprint("c", i), Shell: "true"}
	}
	return out
}

func endpoints(n int) []Endpoint {
	out := []Endpoint{{Name: "http"}, {Name: "any"}}
	for i := range n - 2 {
		out = append(out, Endpoint{Name: fmt.Sprint("e", i)})
	}
	return out
}

func TestValidate(t *testing.T) {
	if errs := valid().Validate(); errs != nil {
		t.Fatalf("the valid spec: %v", errs)
	}
	if errs := valid().WithDefaults().Validate(); errs != nil {
		t.Fatalf("the valid spec with defaults: %v", errs)
	}
	for _, ok := range []func(*Spec){
		func(s *Spec) { s.Instances = nil },
		func(s *Spec) { *s.Instances = 0; s.Update.MinHealthy, s.Update.MaxSurge = "100%", "0" },
		func(s *Spec) { s.Restart, s.Stop, s.Update, s.Health, s.Readiness = nil, nil, nil, nil, nil },
		func(s *Spec) { s.Stop.Signal = "term" },
		func(s *Spec) { artifact(s).URI, artifact(s).Path = "http://x/", "y" },
		func(s *Spec) { artifact(s).URI = "file://localhost/srv/x" },
	} {
		s := valid()
		ok(s)
		if errs := s.Validate(); errs != nil {
			t.Errorf("%v", errs)
		}
	}
	for i, c := range invalid {
		s := valid()
		c.damage(s)
		errs := s.Validate()
		found := false
		for _, e := range errs {
			found = found || e.Path == c.path && strings.Contains(e.Message, c.message)
		}
		if !found {
			t.Errorf("case %d: %v, want %s: %s", i, errs, c.path, c.message)
		}
	}
}

// TestValidateOrder protects that the same spec gets the same answer, and all of it, each time.
func TestValidateOrder(t *testing.T) {
	s := valid()
	s.Update.MinHealthy, s.Update.MaxSurge = "x", "y"
	for i := range 20 {
		s.Labels[fmt.Sprint("l", i)] = "\x00"
		s.Containers[0].Env[fmt.Sprint("e=", i)] = ""
	}
	first := s.Validate()
	if len(first) != 42 {
		t.Errorf("%d errors, want 42: %v", len(first), first)
	}
	for range 20 {
		if again := s.Validate(); !reflect.DeepEqual(first, again) {
			t.Fatalf("%v\nthen %v", first, again)
		}
	}
	var errs FieldErrors
	if err := error(first); !errors.As(err, &errs) || !strings.HasPrefix(err.Error(), first[0].Path+": "+first[0].Message+"; ") {
		t.Errorf("as an error: %v", err)
	}
}

func TestSignalNumber(t *testing.T) {
	for name, want := range map[string]int{"SIGTERM": 15, "term": 15, "sigkill": 9, "WINCH": 28} {
		if got, ok := SignalNumber(name); !ok || got != want {
			t.Errorf("%s: %d, %t", name, got, ok)
		}
	}
	if _, ok := SignalNumber("SIG"); ok {
		t.Error("SIG is taken")
	}
}
