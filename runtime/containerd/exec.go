package containerd

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-os/gantry/runtime"
)

// drainTimeout is how long output is waited for after the program has ended: a child of it may hold the pipes open.
const drainTimeout = 2 * time.Second

// Exec runs a further program in a running task's container.
func (d *Driver) Exec(ctx context.Context, id runtime.TaskID, e runtime.Exec) (int, error) {
	if len(e.Command) == 0 || e.Command[0] == "" {
		return 0, fmt.Errorf("run in %s: %w: no program is given", id, runtime.ErrInvalid)
	}
	nctx, cli, err := d.client(ctx)
	if err != nil {
		return 0, fmt.Errorf("run in %s: %w", id, err)
	}
	var inputEnds <-chan struct{}
	if e.Stdin != nil && !e.TTY { // to end the input of a terminal would hang it up
		e.Stdin, inputEnds = watchEnd(e.Stdin)
	}
	p, image, err := d.newProcess(nctx, cli, id, e)
	if err != nil {
		return 0, fmt.Errorf("run in %s: %w", id, err)
	}
	code, err := d.runProcess(nctx, p, e.Resize, inputEnds)
	if err != nil {
		return 0, fmt.Errorf("run in %s: %w", id, explainProgram(fmt.Sprintf("%q", e.Command[0]), image, err))
	}
	return code, nil
}

// newProcess adds the program to the container, not yet started.
func (d *Driver) newProcess(ctx context.Context, cli *client.Client, id runtime.TaskID, e runtime.Exec) (client.Process, string, error) {
	c, t, err := d.find(ctx, cli, id)
	if err != nil {
		return nil, "", err
	}
	if t.GetStatus() != tasktypes.Status_RUNNING {
		return nil, "", fmt.Errorf("%w: the task is not running", runtime.ErrNotFound)
	}
	var s specs.Spec
	if err := typeurl.UnmarshalTo(c.Spec, &s); err != nil {
		return nil, "", fmt.Errorf("read specification: %w", err)
	}
	container, err := cli.LoadContainer(ctx, c.ID)
	if err != nil {
		return nil, "", d.failure(ctx, err)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return nil, "", d.failure(ctx, err)
	}
	p, err := task.Exec(ctx, "x"+rand.Text(), execSpec(s.Process, e), d.streams(e))
	if err != nil {
		return nil, "", d.failure(ctx, err)
	}
	return p, c.Image, nil
}

// execSpec returns the container's own process with what e changes.
func execSpec(own *specs.Process, e runtime.Exec) *specs.Process {
	p := *own
	p.Args = e.Command
	p.Env = environment(own.Env, e.Env)
	p.Terminal = e.TTY
	if e.Dir != "" {
		p.Cwd = e.Dir
	}
	if !path.IsAbs(p.Cwd) {
		p.Cwd = path.Join(own.Cwd, p.Cwd)
	}
	if e.TTY {
		p.ConsoleSize = firstSize(e.Resize)
		p.Env = environment(append([]string{"TERM=xterm"}, p.Env...), nil)
	}
	return &p
}

// firstSize returns the size that is known before the program starts, so that it never sees another, nil when none is.
func firstSize(sizes <-chan runtime.Size) *specs.Box {
	select {
	case s, ok := <-sizes:
		if ok {
			return &specs.Box{Width: uint(s.Columns), Height: uint(s.Rows)}
		}
	default:
	}
	return nil
}

// streams connects the program. The shim wants somewhere to write to, whether or not anyone reads it.
func (d *Driver) streams(e runtime.Exec) cio.Creator {
	stdout, stderr := e.Stdout, e.Stderr
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	opts := []cio.Opt{cio.WithStreams(e.Stdin, stdout, stderr), cio.WithFIFODir(filepath.Join(d.engine.run, "f"))}
	if e.TTY {
		opts = append(opts, cio.WithTerminal)
	}
	return cio.NewCreator(opts...)
}

// runProcess starts the program and waits for its end, or ends it when ctx ends.
func (d *Driver) runProcess(ctx context.Context, p client.Process, resize <-chan runtime.Size, inputEnds <-chan struct{}) (int, error) {
	detached := context.WithoutCancel(ctx)
	defer func() {
		clean, cancel := context.WithTimeout(detached, cleanTimeout)
		defer cancel()
		_, _ = p.Delete(clean) // when it fails, the container's end frees it
	}()
	exited, err := p.Wait(detached)
	if err != nil {
		return 0, d.failure(ctx, err)
	}
	if err := p.Start(detached); err != nil { // not to be left half started
		return 0, d.failure(detached, err)
	}
	for {
		select {
		case size, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			// It fails when the program has just ended; and a wrong size is no reason to end it.
			_ = p.Resize(ctx, uint32(size.Columns), uint32(size.Rows))
		case <-inputEnds:
			inputEnds = nil
			_ = p.CloseIO(detached, client.WithStdinCloser) // fails only when the program has just ended
		case status := <-exited:
			if err := status.Error(); err != nil {
				return 0, d.failure(ctx, err)
			}
			drain(p.IO())
			return int(status.ExitCode()), nil
		case <-ctx.Done():
			return 0, d.killProcess(detached, p, exited, ctx.Err())
		}
	}
}

// watchEnd returns r, and a channel that is closed once r has nothing more. The shim holds the program's input open by
// itself, so the program would never see the end if the shim was not told.
func watchEnd(r io.Reader) (io.Reader, <-chan struct{}) {
	w := &watchedReader{r: r, ended: make(chan struct{})}
	return w, w.ended
}

type watchedReader struct {
	r     io.Reader
	ended chan struct{}
	once  sync.Once
}

// Read implements io.Reader.
func (w *watchedReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil {
		if n > 0 { // the last bytes are passed on before the end is told
			return n, nil
		}
		w.once.Do(func() { close(w.ended) })
	}
	return n, err
}

// drain waits until all output has been copied.
func drain(streams cio.IO) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		streams.Wait()
	}()
	select {
	case <-done:
	case <-time.After(drainTimeout):
		streams.Cancel()
		_ = streams.Close()
	}
}

func (d *Driver) killProcess(ctx context.Context, p client.Process, exited <-chan client.ExitStatus, why error) error {
	if err := p.Kill(ctx, syscall.SIGKILL); err != nil && !ended(err) {
		return fmt.Errorf("%w, and it cannot be killed: %w", why, d.failure(ctx, err))
	}
	select {
	case <-exited:
	case <-time.After(cleanTimeout):
	}
	return why
}
