package daemon

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/containerd"
)

// engine is what runs images on this node, or why nothing does.
type engine struct {
	able   model.Ability
	driver runtime.Driver // nil unless able
}

// openEngine starts the container engine, where there can be one. It does not wait for it: the driver's calls do.
func (d *daemon) openEngine() error {
	d.engine = &engine{able: containerd.Available(d.Bin)}
	if !d.engine.able.OK {
		return nil
	}
	driver, err := containerd.New(containerd.Config{
		Dir:       filepath.Join(d.DataDir, "containerd"),
		Bin:       d.Bin,
		Cluster:   d.cluster(),
		PlainHTTP: d.PlainHTTP,
		Log:       d.Logger.With("part", "containerd"),
	})
	if err != nil {
		return err
	}
	d.engine.driver = driver
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- driver.Run(ctx) }()
	d.later(func() error {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	})
	return nil
}
