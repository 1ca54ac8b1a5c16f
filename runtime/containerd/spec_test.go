package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// What runs follows from image and task as runtime.Task says.
func TestArguments(t *testing.T) {
	entry, cmd := []string{"entry"}, []string{"cmd"}
	for _, c := range []struct {
		entrypoint, cmd, command, args []string
		want                           string
	}{
		{entry, cmd, nil, nil, "entry cmd"},
		{entry, cmd, nil, []string{"a", "b"}, "entry a b"},
		{entry, cmd, []string{"mine", "x"}, nil, "mine x"},
		{nil, cmd, nil, nil, "cmd"},
		{nil, cmd, nil, []string{"a"}, "a"},
		{nil, nil, nil, nil, ""},
	} {
		img := &image{config: ocispec.ImageConfig{Entrypoint: c.entrypoint, Cmd: c.cmd}}
		if got := strings.Join(arguments(runtime.Task{Command: c.command, Args: c.args}, img), " "); got != c.want {
			t.Errorf("%+v runs %q", c, got)
		}
	}
}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		base  []string
		extra map[string]string
		want  []string
	}{
		{nil, nil, []string{defaultPath}},
		{[]string{"PATH=/x", "A=1"}, map[string]string{"A": "2", "B": ""}, []string{"PATH=/x", "A=2", "B="}},
		{[]string{"A=1"}, map[string]string{"PATH": "/y"}, []string{"A=1", "PATH=/y"}},
	} {
		if got := environment(c.base, c.extra); !slices.Equal(got, c.want) {
			t.Errorf("%q and %v make %q, want %q", c.base, c.extra, got, c.want)
		}
	}
}

// Mounts inside of others must come after them, or they would be hidden.
func TestMountOrder(t *testing.T) {
	task := runtime.Task{Sandbox: "/box", Mounts: []runtime.Mount{
		{Source: "/s/deep", Target: "/data/deep/er"}, {Source: "/s/rel", Target: "in/side", ReadOnly: true}, {Source: "/s/data", Target: "/data"},
	}}
	at := map[string]int{}
	for i, m := range taskMounts(task) {
		at[m.Destination] = i
		if readOnly := slices.Contains(m.Options, "ro"); readOnly != (m.Source == "/s/rel") {
			t.Errorf("%+v is read-only: %v", m, readOnly)
		}
	}
	if len(at) != 4 || at["/data"] > at["/data/deep/er"] || at[runtime.SandboxPath] > at[runtime.SandboxPath+"/in/side"] {
		t.Errorf("order is %v", at)
	}
}

func TestCPUShares(t *testing.T) {
	for c, want := range map[model.CPU]uint64{1: 2, 250: 256, 1000: 1024, 64000: 65536, 1e6: 262144} {
		if got := *cpuShares(c).Shares; got != want {
			t.Errorf("%v cores weigh %d, want %d", c, got, want)
		}
	}
	if cpuShares(0) != nil {
		t.Error("no cores have a weight")
	}
}

// What runc and crun say must become a sentence about the app when the app is at fault, and stay retryable when not.
func TestExplain(t *testing.T) {
	task := runtime.Task{Image: "box", Command: []string{"prog"}}
	for text, want := range map[string]string{
		`failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during container init: exec: "prog": executable file not found in $PATH`: `has no program "prog"`,
		`unable to start container process: exec: "/prog": stat /prog: no such file or directory`:                                                                                                     `has no program "prog"`,
		"executable file `prog` not found in $PATH: No such file or directory":                                                                                                                        `has no program "prog"`,
		`error during container init: exec: "/prog": permission denied`:                                                                                                                               "is not executable",
		`error during container init: exec: "/etc": is a directory`:                                                                                                                                   "is not executable",
		`exec /prog: exec format error`:                                       "not one for this machine",
		`container init was OOM-killed (memory limit too low?)`:               "memory limit is too low",
		`failed to create shim task: OCI runtime create failed: disk on fire`: "",
	} {
		err := explain(task, errors.New(text))
		if want == "" {
			if errors.Is(err, runtime.ErrInvalid) || !strings.HasSuffix(text, err.Error()) {
				t.Errorf("%s is explained as %v", text, err)
			}
			continue
		}
		if !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is explained as %v", text, err)
		}
	}
}

func TestFeatures(t *testing.T) {
	for text, want := range map[string]bool{
		`{"linux":{"seccomp":{"enabled":true}}}`: true, `{"linux":{"seccomp":{"enabled":false}}}`: false, `{}`: false, `no JSON`: false,
	} {
		if got := parseFeatures([]byte(text)); got.seccomp != want {
			t.Errorf("%s: seccomp is %v", text, got.seccomp)
		}
	}
}

// A node that cannot run containers says what is missing.
func TestAvailable(t *testing.T) {
	bin := t.TempDir()
	if a := Available(bin); a.OK || a.Why == "" {
		t.Errorf("without helpers: %+v", a)
	}
	if os.Geteuid() != 0 {
		t.Skip("the rest needs root")
	}
	if a := Available(helpers(t)); !a.OK || !strings.Contains(a.Why, "containerd") || !strings.Contains(a.Why, "run") {
		t.Errorf("with helpers: %+v", a)
	}
	for _, f := range []string{shimName, logName} {
		if err := os.WriteFile(filepath.Join(bin, f), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", "/nowhere")
	if a := Available(bin); a.OK || !strings.Contains(a.Why, "runc") {
		t.Errorf("without a runtime: %+v", a)
	}
}
