package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/model"
)

// gpuDriver is where NVIDIA's kernel driver shows its devices: as directories below proc and as device nodes in dev.
type gpuDriver struct {
	proc string
	dev  string
}

var hostGPUs = gpuDriver{proc: "/proc/driver/nvidia/gpus", dev: "/dev"}

// minor is the number of a device's node.
type minor int

// found returns the devices of this machine in the order of their nodes. Their ids are UUIDs, which mean the same to every
// program, while numbers depend on what a program sees.
func (g gpuDriver) found() []model.GPUDevice {
	minors := map[string]minor{}
	var out []model.GPUDevice
	g.each(func(d model.GPUDevice, n minor) {
		minors[d.ID] = n
		out = append(out, d)
	})
	slices.SortFunc(out, func(a, b model.GPUDevice) int { return int(minors[a.ID] - minors[b.ID]) })
	return out
}

func (g gpuDriver) each(visit func(model.GPUDevice, minor)) {
	files, err := filepath.Glob(filepath.Join(g.proc, "*", "information"))
	if err != nil {
		return // the pattern is a good one
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it was taken out meanwhile
		}
		if d, n, ok := parseGPU(string(text)); ok {
			visit(d, n)
		}
	}
}

// parseGPU reads lines such as "Model: 		 Tesla T4". It needs the UUID and the number of the device's node.
func parseGPU(text string) (model.GPUDevice, minor, bool) {
	var d model.GPUDevice
	n := -1
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "Model":
			d.Model = strings.TrimPrefix(strings.TrimPrefix(value, "NVIDIA "), "Tesla ")
		case "GPU UUID":
			d.ID = value
		case "Device Minor":
			if v, err := strconv.Atoi(value); err == nil {
				n = v
			}
		}
	}
	return d, minor(n), n >= 0 && d.ID != "" && !strings.ContainsAny(d.ID, "?, ")
}

// nodes returns the device nodes that a container needs in order to use devices: their own, and those that all share. It
// names none that does not exist. An id is a UUID, or the number of the device's node.
func (g gpuDriver) nodes(ids []string) []string {
	if len(ids) == 0 {
		return nil
	}
	numbers := map[string]minor{}
	g.each(func(d model.GPUDevice, n minor) { numbers[d.ID] = n })
	var out []string
	for _, id := range ids {
		n, known := numbers[id]
		if v, err := strconv.ParseUint(id, 10, 16); !known && err == nil {
			n, known = minor(v), true
		}
		if known {
			out = append(out, filepath.Join(g.dev, "nvidia"+strconv.Itoa(int(n))))
		}
	}
	for _, shared := range []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"} {
		out = append(out, filepath.Join(g.dev, shared))
	}
	return slices.DeleteFunc(out, func(path string) bool {
		_, err := os.Stat(path)
		return err != nil
	})
}
