package daemon

import (
	"strings"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// What cannot hold together is refused by the name of the flag.
func TestOptionsThatAreRefused(t *testing.T) {
	for want, change := range map[string]func(*Options){
		"":                 func(*Options) {},
		"--reserve-cpus":   func(o *Options) { o.NodeCPUs, o.Keep.CPUs = 1000, 1000 },
		"--reserve-memory": func(o *Options) { o.NodeMemory, o.Keep.Memory = model.GiB, model.GiB },
		"--pool":           func(o *Options) { o.Node.Pool = "No" },
		"--no-gpus":        func(o *Options) { o.Node = model.Declaration{NoGPUs: true, GPUs: []model.GPUDevice{{ID: "0"}}} },
	} {
		o := DefaultOptions()
		o.DataDir = "/d"
		change(&o)
		err := o.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want it to begin with %q", err, want)
		}
	}
}
