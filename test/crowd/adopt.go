package crowd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// adoptTimes is how often an agent is killed.
const adoptTimes = 5

// adopt kills an agent, a process of the built binary with 100 programs that runtime/process runs: seconds from its execution until
// a server has its word again on all of them, the median of some times. The server has given the node up in between, so that
// nothing of what it knew before counts.
func (b *Bench) adopt(ctx context.Context) (_ float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dir := filepath.Join(b.Dir, "adopt")
	if err := os.Mkdir(dir, 0o711); err != nil {
		return 0, err
	}
	servers, err := StartServers(ctx, dir, 1, "")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, servers.Close()) }()
	api, err := servers.Client()
	if err != nil {
		return 0, err
	}
	token, err := servers.Token(ctx, model.AgentMachine, 1)
	if err != nil {
		return 0, err
	}
	a := &lone{bin: b.Bin, dir: filepath.Join(dir, "agent"), api: api}
	if err := a.start(ctx, "--join", servers.list[0].Addr, "--token", token); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, a.end(syscall.SIGTERM)) }()
	a.count = max(1, 100/b.Shrink)
	spec := &model.Spec{ID: "/adopted", Instances: &a.count, Containers: []model.Container{{
		Shell: "exec sleep 100000", CPUs: 10, Memory: 16 * model.MiB,
	}}}
	if _, err := api.CreateApp(ctx, spec); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, a.remove(context.WithoutCancel(ctx))) }()
	if err := a.healthy(ctx, true); err != nil {
		return 0, err
	}
	var took []time.Duration
	for range adoptTimes {
		one, ready, err := a.again(ctx)
		if err != nil {
			return 0, err
		}
		b.Note("adopted %d after %.3f s; ready after %.3f s", a.count, one.Seconds(), ready.Seconds())
		took = append(took, one)
	}
	slices.Sort(took)
	return took[len(took)/2].Seconds(), nil
}

// lone is one agent as a process, with an app whose instances all run there.
type lone struct {
	bin, dir string
	api      *client.Client
	count    int
	cmd      *exec.Cmd
}

func (a *lone) start(ctx context.Context, args ...string) error {
	cmd := exec.Command(filepath.Join(a.bin, "gantry"), append([]string{"agent", "--data-dir", a.dir}, args...)...)
	cmd.Stderr = os.Stderr
	if err := launch(ctx, cmd, "is ready"); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	a.cmd = cmd
	return nil
}

func (a *lone) end(sig syscall.Signal) error {
	if a.cmd == nil {
		return nil
	}
	cmd := a.cmd
	a.cmd = nil
	return errors.Join(cmd.Process.Signal(sig), ignoreExit(cmd.Wait()))
}

// again kills the agent, waits until the server has given its node up, and starts it: how long it takes until the server knows of
// all instances, and until the agent says that it is ready.
func (a *lone) again(ctx context.Context) (known, ready time.Duration, err error) {
	before, err := a.programs(ctx)
	if err != nil {
		return 0, 0, err
	}
	if err := a.end(syscall.SIGKILL); err != nil {
		return 0, 0, err
	}
	if err := a.healthy(ctx, false); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := a.start(ctx); err != nil {
		return 0, 0, err
	}
	ready = time.Since(began)
	if err := a.healthy(ctx, true); err != nil {
		return 0, 0, err
	}
	known = time.Since(began)
	after, err := a.programs(ctx)
	if err == nil && !slices.Equal(before, after) {
		err = fmt.Errorf("the programs were %v and are %v: some were started again", before, after)
	}
	return known, ready, err
}

// healthy waits until all instances are, or none is, by the word of the server.
func (a *lone) healthy(ctx context.Context, all bool) error {
	want := 0
	if all {
		want = a.count
	}
	return a.await(ctx, func(apps []client.AppSummary) bool { return len(apps) == 1 && apps[0].Healthy == want })
}

func (a *lone) await(ctx context.Context, ok func([]client.AppSummary) bool) error {
	for {
		apps, err := a.api.Apps(ctx)
		if err == nil && ok(apps) {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// programs returns the process ids of all instances, in order.
func (a *lone) programs(ctx context.Context) (pids []int, err error) {
	app, err := a.api.App(ctx, "/adopted")
	if err != nil {
		return nil, err
	}
	for _, i := range app.List {
		for _, t := range i.Status.Tasks {
			pids = append(pids, t.PID)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// remove ends all instances.
func (a *lone) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := a.api.DeleteApp(ctx, "/adopted"); err != nil {
		return err
	}
	return a.await(ctx, func(apps []client.AppSummary) bool { return len(apps) == 0 })
}
