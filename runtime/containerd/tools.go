package containerd

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/version"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime/cgroup"
)

// Names of the helpers in Config.Bin.
const (
	shimName = "gantry-oci-shim"
	logName  = "gantry-log"
)

// tools are the programs that the engine runs.
type tools struct {
	runtime string // crun or runc
	shim    string
	log     string

	features func() features
}

// features are what the OCI runtime was built with.
type features struct {
	seccomp bool
}

// Available says whether OCI containers can run on this node with the helpers in bin, and with what, or why not.
func Available(bin string) model.Ability {
	if uid := os.Geteuid(); uid != 0 {
		return model.Ability{Why: fmt.Sprintf("containers from images need root, and Gantry runs as user %d", uid)}
	}
	t, err := findTools(bin)
	if err != nil {
		return model.Ability{Why: err.Error()}
	}
	groups, err := cgroup.Find()
	if err != nil {
		return model.Ability{Why: "containers need control groups: " + err.Error()}
	}
	if a := groups.Ability(); !a.OK {
		return a
	}
	return model.Ability{OK: true, Why: fmt.Sprintf("containerd %s with %s", strings.TrimSuffix(version.Version, "+unknown"), t.runtimeVersion())}
}

func findTools(bin string) (tools, error) {
	t := tools{shim: filepath.Join(bin, shimName), log: filepath.Join(bin, logName)}
	for _, p := range []string{t.shim, t.log} {
		if !executable(p) {
			return t, fmt.Errorf("containers need the helper %s, which is not there", p)
		}
	}
	var err error
	t.runtime, err = findRuntime(bin)
	t.features = sync.OnceValue(func() features { return probe(t.runtime) })
	return t, err
}

// findRuntime prefers crun, which is quicker and smaller, then the runc that was built with Gantry, then any runc.
func findRuntime(bin string) (string, error) {
	if p, err := exec.LookPath("crun"); err == nil {
		return filepath.Abs(p)
	}
	if p := filepath.Join(bin, "runc"); executable(p) {
		return p, nil
	}
	if p, err := exec.LookPath("runc"); err == nil {
		return filepath.Abs(p)
	}
	return "", fmt.Errorf("containers need crun or runc: neither is on PATH, and there is no %s", filepath.Join(bin, "runc"))
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// probe asks the runtime whether it can filter system calls. One that cannot tell is taken not to.
func probe(runtime string) features {
	if out, err := exec.Command(runtime, "features").Output(); err == nil {
		return parseFeatures(out)
	}
	out, err := exec.Command(runtime, "--version").Output()
	return features{seccomp: err == nil && strings.Contains(string(out), "+SECCOMP")}
}

func parseFeatures(text []byte) features {
	var f struct {
		Linux struct {
			Seccomp struct {
				Enabled bool `json:"enabled"`
			} `json:"seccomp"`
		} `json:"linux"`
	}
	err := json.Unmarshal(text, &f)
	return features{seccomp: err == nil && f.Linux.Seccomp.Enabled}
}

// runtimeVersion returns the runtime's name and version, such as "runc 1.5.2".
func (t tools) runtimeVersion() string {
	out, err := exec.Command(t.runtime, "--version").Output()
	name := filepath.Base(t.runtime)
	if err != nil {
		return name
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return name + " " + strings.TrimPrefix(strings.TrimPrefix(first, name), " version ")
}
