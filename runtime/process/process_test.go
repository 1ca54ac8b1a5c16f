package process_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/conformance"
	"github.com/gantry-os/gantry/runtime/process"
)

// helpers is the directory of gantry-shim and gantry-log, built from source for these tests.
var helpers string

// helpersEnv names that directory when another process of the test has built it.
const helpersEnv = "GANTRY_TEST_HELPERS"

func TestMain(m *testing.M) {
	if order := os.Getenv(agentEnv); order != "" {
		fmt.Fprintln(os.Stderr, "agent:", actAsAgent(order))
		os.Exit(1)
	}
	os.Exit(func() int {
		if helpers = os.Getenv(helpersEnv); helpers != "" {
			return m.Run()
		}
		dir, err := build()
		if err != nil {
			fmt.Fprintln(os.Stderr, "build gantry-shim:", err)
			return 1
		}
		defer os.RemoveAll(dir)
		helpers = dir
		return m.Run()
	}())
}

func build() (string, error) {
	dir, err := os.MkdirTemp("", "gantry-shim-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // other users run them too
		return "", err
	}
	c := exec.Command("make", "-s", "-C", "../../shim", "BIN="+dir)
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	return dir, c.Run()
}

// open returns a driver whose tasks and cgroups are gone at the end of the test.
func open(t testing.TB, state string, isolate bool) *process.Driver {
	t.Helper()
	if can := process.CanIsolate(); isolate && !can.OK {
		t.Skip(can.Why)
	}
	d, err := process.New(process.Config{
		Shim:     filepath.Join(helpers, "gantry-shim"),
		StateDir: state,
		Cluster:  fmt.Sprintf("test-%d", os.Getpid()),
		Isolate:  isolate,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func harness(isolate bool) func(*testing.T) conformance.Harness {
	return func(t *testing.T) conformance.Harness {
		state := t.TempDir()
		return conformance.Harness{
			Driver:         open(t, state, isolate),
			Reopen:         func(t *testing.T) runtime.Driver { return open(t, state, isolate) },
			Task:           conformance.Shell,
			Isolated:       isolate,
			Users:          os.Geteuid() == 0,
			DefaultSignals: true,
		}
	}
}

func TestConformanceIsolated(t *testing.T) { conformance.Run(t, harness(true)) }

func TestConformancePlain(t *testing.T) { conformance.Run(t, harness(false)) }
