package agent

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// fakeGPUs makes what NVIDIA's driver shows of devices with these numbers.
func fakeGPUs(t *testing.T, minors ...string) gpuDriver {
	t.Helper()
	g := gpuDriver{proc: filepath.Join(t.TempDir(), "gpus"), dev: t.TempDir()}
	put := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range minors {
		put(filepath.Join(g.proc, "0000:0"+string(rune('a'+i))+":00.0", "information"),
			"Model: \t\t Tesla T4\nIRQ:   \t\t 63\nGPU UUID: \t GPU-"+n+"\nBus Location: \t 0000:00:04.0\nDevice Minor: \t "+n+"\n")
		put(filepath.Join(g.dev, "nvidia"+n), "")
	}
	put(filepath.Join(g.dev, "nvidiactl"), "")
	return g
}

// Devices are found in the order of their nodes, whatever the order of their addresses.
func TestFoundGPUs(t *testing.T) {
	g := fakeGPUs(t, "10", "2")
	want := []model.GPUDevice{{ID: "GPU-2", Model: "T4"}, {ID: "GPU-10", Model: "T4"}}
	if got := g.found(); !reflect.DeepEqual(got, want) {
		t.Errorf("found %+v, want %+v", got, want)
	}
	if got := (gpuDriver{proc: "/nowhere"}).found(); got != nil {
		t.Errorf("without a driver %+v are found", got)
	}
}

// What the driver says of a device that it could not start, or what is cut short, is no device.
func TestGPUsThatAreNone(t *testing.T) {
	for _, text := range []string{"", "Model: T4\n", "GPU UUID: GPU-????-??\nDevice Minor: 0\n", "GPU UUID: GPU-1\n", "GPU UUID: GPU-1\nDevice Minor: x\n"} {
		if d, n, ok := parseGPU(text); ok {
			t.Errorf("%q is %+v, %d", text, d, n)
		}
	}
}

// A container gets the nodes of its devices, by UUID or number, with the shared ones; none that does not exist.
func TestNodesOfGPUs(t *testing.T) {
	g := fakeGPUs(t, "10", "2")
	for ids, want := range map[string]string{
		"GPU-10":  "nvidia10 nvidiactl",
		"2 10":    "nvidia2 nvidia10 nvidiactl",
		"7":       "nvidiactl",
		"made-up": "nvidiactl",
		"":        "",
	} {
		got := g.nodes(strings.Fields(ids))
		for i := range got {
			got[i] = strings.TrimPrefix(got[i], g.dev+"/")
		}
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%q gets %v, want %q", ids, got, want)
		}
	}
	if got := (gpuDriver{proc: "/nowhere", dev: "/nowhere"}).nodes([]string{"0"}); len(got) != 0 {
		t.Errorf("without a driver %v are given", got)
	}
}
