package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/gantry-os/gantry/agent/logs"
	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

var _ wire.Node = (*Agent)(nil)

// find returns an instance's pump and one of its containers, the first when name is empty.
func (a *Agent) find(id model.InstanceID, name string) (*pump, *model.Container, error) {
	p := a.pump(id)
	if p == nil {
		return nil, nil, fmt.Errorf("%w: this node has no instance %s", runtime.ErrNotFound, id)
	}
	spec := p.spec()
	for i := range spec.Containers {
		if c := &spec.Containers[i]; name == "" || c.Name == name {
			return p, c, nil
		}
	}
	return nil, nil, fmt.Errorf("%w: instance %s has no container %q", runtime.ErrNotFound, id, name)
}

// Logs implements wire.Node.
func (a *Agent) Logs(ctx context.Context, r wire.LogRequest) (io.ReadCloser, error) {
	p, c, err := a.find(r.Instance, r.Container)
	if err != nil {
		return nil, err
	}
	stream := r.Stream
	switch stream {
	case "":
		stream = "stdout"
	case "stdout", "stderr":
	default:
		return nil, fmt.Errorf("%w: %q is neither stdout nor stderr", runtime.ErrNotFound, stream)
	}
	dir := a.store.logs(p.id, c.Name)
	if r.Follow && !p.isOver() { // there is something to watch before the program starts
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make log directory: %w", err)
		}
	}
	return logs.Open(ctx, logs.Options{Path: filepath.Join(dir, stream), Tail: r.Tail, Follow: r.Follow, Over: p.over})
}

// isOver reports whether nothing of the instance will run any more.
func (p *pump) isOver() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
}

// Exec implements wire.Node.
func (a *Agent) Exec(ctx context.Context, id model.InstanceID, container string, e runtime.Exec) (int, error) {
	p, c, err := a.find(id, container)
	if err != nil {
		return 0, err
	}
	if phase := p.phase(); phase != model.PhaseRunning && phase != model.PhaseStopping {
		return 0, fmt.Errorf("%w: instance %s is %s, not running", runtime.ErrNotFound, id, phase)
	}
	d, err := a.driver(c)
	if err != nil {
		return 0, err
	}
	x, ok := d.(runtime.Execer)
	if !ok {
		return 0, fmt.Errorf("%w: this node cannot run commands beside a program", runtime.ErrInvalid)
	}
	return x.Exec(ctx, runtime.ID(id, c.Name), e)
}

// images returns the driver that keeps images.
func (a *Agent) images() (runtime.Images, error) {
	if a.cfg.OCI == nil {
		_, err := a.driver(&model.Container{Image: "any"})
		return nil, err
	}
	im, ok := a.cfg.OCI.(runtime.Images)
	if !ok {
		return nil, errors.New("this node keeps no images")
	}
	return im, nil
}

// Import implements wire.Node.
func (a *Agent) Import(ctx context.Context, archive io.Reader) ([]string, error) {
	im, err := a.images()
	if err != nil {
		return nil, err
	}
	return im.Import(ctx, archive)
}

// Images implements wire.Node. A node that runs no images has none.
func (a *Agent) Images(ctx context.Context) ([]runtime.Image, error) {
	if a.cfg.OCI == nil {
		return nil, nil
	}
	im, err := a.images()
	if err != nil {
		return nil, err
	}
	return im.ListImages(ctx)
}
