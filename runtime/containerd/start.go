package containerd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/cgroup"
)

// cleanTimeout bounds the removal of what a failed start left, which goes on when its caller has given up.
const cleanTimeout = 30 * time.Second

// Start runs a task, unless the same attempt of it was started before.
func (d *Driver) Start(ctx context.Context, t runtime.Task) (runtime.State, error) {
	if err := check(t); err != nil {
		return runtime.State{}, fmt.Errorf("start %s: %w", t.ID, err)
	}
	defer d.mark(t.ID, starting)()
	nctx, cli, err := d.client(ctx)
	if err != nil {
		return runtime.State{}, fmt.Errorf("start %s: %w", t.ID, err)
	}
	before, err := d.before(nctx, cli, t)
	if err != nil || before.ID != "" {
		return before, err
	}
	s, err := d.launch(nctx, cli, t)
	if err != nil {
		return s, fmt.Errorf("start %s: %w", t.ID, errors.Join(err, d.clean(ctx, t.ID)))
	}
	return s, nil
}

func check(t runtime.Task) error {
	switch {
	case t.ID == "" || strings.ContainsAny(string(t.ID), "/\x00") || len(t.ID) > 200:
		return fmt.Errorf("%w: %q is not a task id", runtime.ErrInvalid, t.ID)
	case t.Image == "":
		return fmt.Errorf("%w: it names no image", runtime.ErrInvalid)
	case !filepath.IsAbs(t.Sandbox) || !filepath.IsAbs(t.Logs.Dir):
		return fmt.Errorf("%w: sandbox %q and log directory %q must be absolute", runtime.ErrInvalid, t.Sandbox, t.Logs.Dir)
	}
	return nil
}

// before returns the state of an earlier start of the same attempt; it has no id when there was none. What a start that
// was cut short has left is removed.
func (d *Driver) before(ctx context.Context, cli *client.Client, t runtime.Task) (runtime.State, error) {
	c, p, err := d.find(ctx, cli, t.ID)
	if errors.Is(err, runtime.ErrNotFound) {
		return runtime.State{}, nil
	}
	if err != nil {
		return runtime.State{}, fmt.Errorf("start %s: %w", t.ID, err)
	}
	if !begun(c, p) {
		if err := d.remove(ctx, cli, t.ID); err != nil {
			return runtime.State{}, fmt.Errorf("remove what an earlier start of %s left: %w", t.ID, err)
		}
		return runtime.State{}, nil
	}
	s, _ := d.state(c, p)
	if s.Attempt != t.Attempt {
		return runtime.State{}, fmt.Errorf("start attempt %d of %s: attempt %d still exists", t.Attempt, t.ID, s.Attempt)
	}
	return s, nil
}

// clean removes what a failed start left.
func (d *Driver) clean(ctx context.Context, id runtime.TaskID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	ctx, cli, err := d.client(ctx)
	if err == nil {
		err = d.remove(ctx, cli, id)
	}
	if err != nil {
		return fmt.Errorf("remove what was begun: %w", err)
	}
	return nil
}

// launch does the work of Start, where nothing of the task exists yet.
func (d *Driver) launch(ctx context.Context, cli *client.Client, t runtime.Task) (runtime.State, error) {
	img, err := d.image(ctx, cli, t.Image)
	if err != nil {
		return runtime.State{}, err
	}
	leased, release, err := cli.WithLease(ctx) // until the container refers to the snapshot
	if err != nil {
		return runtime.State{}, d.failure(ctx, err)
	}
	defer func() { _ = release(context.WithoutCancel(leased)) }() // an unreleased lease ends by itself
	mounts, err := d.snapshot(leased, cli, string(t.ID), img)
	if err != nil {
		return runtime.State{}, err
	}
	if err := d.createContainer(leased, cli, t, img); err != nil {
		return runtime.State{}, err
	}
	return d.run(ctx, cli, t, mounts)
}

// snapshot makes the task's writable file system on top of the image's.
func (d *Driver) snapshot(ctx context.Context, cli *client.Client, key string, img *image) ([]mount.Mount, error) {
	snapshots := cli.SnapshotService(d.snapshotter)
	mounts, err := snapshots.Prepare(ctx, key, img.chain)
	if err = d.failure(ctx, err); errdefs.IsNotFound(err) { // the image was never unpacked
		if err := d.unpack(ctx, cli, img); err != nil {
			return nil, err
		}
		mounts, err = snapshots.Prepare(ctx, key, img.chain)
	}
	if errdefs.IsAlreadyExists(err) { // left by a removal that was cut short
		if err := snapshots.Remove(ctx, key); err != nil {
			return nil, fmt.Errorf("remove old snapshot: %w", d.failure(ctx, err))
		}
		mounts, err = snapshots.Prepare(ctx, key, img.chain)
	}
	if err != nil {
		return nil, fmt.Errorf("make file system: %w", d.failure(ctx, err))
	}
	return mounts, nil
}

func (d *Driver) createContainer(ctx context.Context, cli *client.Client, t runtime.Task, img *image) error {
	opts, err := typeurl.MarshalAny(&options.Options{
		BinaryName: d.tools.runtime,
		Root:       filepath.Join(d.engine.run, "r"),
	})
	if err != nil {
		return fmt.Errorf("encode options: %w", err)
	}
	c := containers.Container{
		ID:          string(t.ID),
		Image:       img.record.Name,
		Runtime:     containers.RuntimeInfo{Name: d.tools.shim, Options: opts},
		Snapshotter: d.snapshotter,
		SnapshotKey: string(t.ID),
		Labels: map[string]string{
			labelAttempt: strconv.FormatUint(uint64(t.Attempt), 10),
			labelBoot:    d.config.BootID,
			labelStop:    strconv.Itoa(img.stopSignal()),
			labelMemory:  strconv.FormatInt(int64(t.Memory), 10),
		},
	}
	spec, err := d.spec(ctx, cli, &c, t, img)
	if err != nil {
		return err
	}
	if c.Spec, err = typeurl.MarshalAny(spec); err != nil {
		return fmt.Errorf("encode specification: %w", err)
	}
	if _, err := cli.ContainerService().Create(ctx, c); err != nil {
		return fmt.Errorf("create container: %w", d.failure(ctx, err))
	}
	return nil
}

// run starts the container's shim and program.
func (d *Driver) run(ctx context.Context, cli *client.Client, t runtime.Task, mounts []mount.Mount) (runtime.State, error) {
	// runc would make it too, but would not let all tasks together weigh what they should.
	if err := d.group(t.ID).Create(cgroup.Limits{}); err != nil {
		return runtime.State{}, err
	}
	output := d.output(t.Logs)
	_, err := cli.TaskService().Create(ctx, &tasksapi.CreateTaskRequest{
		ContainerID: string(t.ID),
		Rootfs:      rootfs(mounts),
		Stdout:      output,
		Stderr:      output,
	})
	if err != nil {
		return runtime.State{}, explain(t, d.failure(ctx, err))
	}
	// Only now, with the program next to run: the OCI runtime takes tens of milliseconds of processor time inside the
	// group to get here, which under a small ceiling would be seconds.
	if err := d.group(t.ID).Create(cgroup.Limits{CPUs: t.CPUs}); err != nil {
		return runtime.State{}, err
	}
	r, err := cli.TaskService().Start(ctx, &tasksapi.StartRequest{ContainerID: string(t.ID)})
	if err != nil {
		return runtime.State{}, explain(t, d.failure(ctx, err))
	}
	s := runtime.State{ID: t.ID, Attempt: t.Attempt, PID: int(r.Pid), Started: time.Now()}
	mark := containers.Container{ID: string(t.ID), Labels: map[string]string{labelStarted: s.Started.Format(time.RFC3339Nano)}}
	if _, err := cli.ContainerService().Update(ctx, mark, "labels."+labelStarted); err != nil {
		return runtime.State{}, fmt.Errorf("note the start: %w", d.failure(ctx, err))
	}
	return s, nil
}

func rootfs(mounts []mount.Mount) []*types.Mount {
	out := make([]*types.Mount, len(mounts))
	for i, m := range mounts {
		out[i] = &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	}
	return out
}

// output returns the address of a program that the shim starts and that writes the task's logs.
func (d *Driver) output(l runtime.LogFiles) string {
	q := url.Values{}
	q.Set("--dir", l.Dir)
	q.Set("--size", strconv.FormatInt(int64(l.Size), 10))
	q.Set("--keep", strconv.Itoa(l.Keep))
	u := url.URL{Scheme: "binary", Path: d.tools.log, RawQuery: q.Encode()}
	return u.String()
}

// What runc and crun say when the program, not the machine, is at fault.
var (
	noProgram  = regexp.MustCompile(`executable file (?:.{0,40} )?not found in \$PATH|exec: "[^"]*": stat [^:]*: no such file or directory|open executable: No such file|exec [^:]*: no such file or directory|executable file .* not found`)
	noAccess   = regexp.MustCompile(`exec: "[^"]*": (?:permission denied|is a directory)|exec [^:]*: permission denied|open executable: Permission denied|is not executable`)
	noFormat   = regexp.MustCompile(`[eE]xec format error`)
	noMemory   = regexp.MustCompile(`container init was OOM-killed|memory limit too low|unable to set memory limit`)
	runtimeErr = regexp.MustCompile(`(?s)^.*(?:OCI runtime (?:create|start|exec) failed|failed to create shim task|failed to start shim)[^:]*: `)
)

// explain turns what the OCI runtime says into a sentence about the task.
func explain(t runtime.Task, err error) error {
	return explainProgram(programOf(t), t.Image, err)
}

func programOf(t runtime.Task) string {
	if len(t.Command) > 0 {
		return strconv.Quote(t.Command[0])
	}
	return "that it is to run"
}

func explainProgram(program, image string, err error) error {
	text := err.Error()
	switch {
	case errors.Is(err, runtime.ErrUnavailable):
		return err
	case noProgram.MatchString(text):
		return fmt.Errorf("%w: image %s has no program %s", runtime.ErrInvalid, image, program)
	case noAccess.MatchString(text):
		return fmt.Errorf("%w: the program %s of image %s is not executable", runtime.ErrInvalid, program, image)
	case noFormat.MatchString(text):
		return fmt.Errorf("%w: the program %s of image %s is not one for this machine", runtime.ErrInvalid, program, image)
	case noMemory.MatchString(text):
		return fmt.Errorf("%w: the memory limit is too low to start anything", runtime.ErrInvalid)
	}
	if loc := runtimeErr.FindStringIndex(text); loc != nil {
		return fmt.Errorf("%s", text[loc[1]:])
	}
	return err
}
