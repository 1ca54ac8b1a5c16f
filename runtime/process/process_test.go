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

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "gantry-shim-")
		if err == nil {
			defer os.RemoveAll(dir)
			err = os.Chmod(dir, 0o755)
		}
		if err == nil {
			helpers = dir
			make := exec.Command("make", "-s", "-C", "../../shim", "BIN="+dir)
			make.Stdout, make.Stderr = os.Stderr, os.Stderr
			err = make.Run()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "build gantry-shim:", err)
			return 1
		}
		return m.Run()
	}())
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
