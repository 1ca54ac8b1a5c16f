package containerd

import (
	"testing"

	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/conformance"
)

func TestConformance(t *testing.T) {
	n := newNode(t)
	image := n.busybox(t)
	conformance.Run(t, func(t *testing.T) conformance.Harness {
		return conformance.Harness{
			Driver: n.Driver,
			Reopen: func(t *testing.T) runtime.Driver { return n.second(t) },
			Task: func(t *testing.T, p conformance.Program) runtime.Task {
				task := conformance.Shell(t, p)
				task.Image = image
				return task
			},
			Isolated: true,
			Users:    true,
		}
	})
}

// second returns another driver above the same engine, which knows nothing of what the first one remembers.
func (n *node) second(t *testing.T) *Driver {
	t.Helper()
	d, err := New(n.config)
	if err != nil {
		t.Fatal(err)
	}
	d.engine = n.engine
	return d
}
