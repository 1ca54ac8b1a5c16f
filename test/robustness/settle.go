package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
)

// calmDown makes clients wait, with all faults undone, until all is as asked for.
func (r *run) calmDown(ctx context.Context) error {
	r.gate.Lock()
	defer r.gate.Unlock()
	return r.settleDown(ctx, "after the faults")
}

// settleDown waits until all is as asked for. That it takes too long is a violation, and the run is over.
func (r *run) settleDown(ctx context.Context, when string) error {
	began := time.Now()
	if err := r.eventually(ctx, healTimeout, "all is as asked for "+when, func() error { return r.asAsked(ctx) }); err != nil {
		if ctx.Err() != nil {
			return err
		}
		r.violate("%v", err)
		return r.giveUp(ctx)
	}
	took := time.Since(began)
	r.say("all is as asked for %s, after %v", when, took.Round(100*time.Millisecond))
	r.mu.Lock()
	r.heals = append(r.heals, took)
	r.mu.Unlock()
	return nil
}

// giveUp keeps what every server says, for whoever looks for the cause.
func (r *run) giveUp(ctx context.Context) error {
	for _, s := range r.servers {
		var text string
		for _, id := range allApps {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			app, err := r.client(s).App(ctx, id)
			cancel()
			text += fmt.Sprintf("%s: %v\n%+v\n", id, err, app.AppSummary)
			for _, i := range app.List {
				text += fmt.Sprintf("  %s on %s: %s, desired %v: %s %s\n", i.ID, i.Node, i.State, i.Desired, i.Why, i.Pending)
			}
		}
		if err := os.WriteFile(filepath.Join(r.Dir, "state-by-"+s.Name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return errNotHealed
}

var errNotHealed = fmt.Errorf("the cluster did not become well")

// asAsked says what is not as it was asked for: machines, apps, or the programs that run.
func (r *run) asAsked(ctx context.Context) error {
	if err := r.allReady(ctx); err != nil {
		return err
	}
	running := r.census.running()
	for _, s := range r.servers {
		for _, id := range allApps {
			if err := r.appAsAsked(ctx, s, id, running[string(id)]); err != nil {
				return fmt.Errorf("by %s, %s: %w", s.Name, id, err)
			}
		}
	}
	return nil
}

func (r *run) appAsAsked(ctx context.Context, s *member, id model.AppID, running map[string]*program) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	app, err := r.client(s).Fresh().App(ctx, id)
	if err != nil {
		return err
	}
	if app.Healthy != app.Instances || app.State != "running" {
		return fmt.Errorf("%d of %d are healthy, it is %s: %s", app.Healthy, app.Instances, app.State, app.Why)
	}
	if id == calmApp && len(onMachines(running)) != app.Instances {
		return fmt.Errorf("%d programs run on %d machines, though its constraint says one on each", app.Instances, len(onMachines(running)))
	}
	if len(running) != app.Instances {
		return fmt.Errorf("%d programs run, %d were asked for", len(running), app.Instances)
	}
	for i := range app.List {
		inst := &app.List[i]
		if inst.Live() && running[string(inst.ID)] == nil {
			return fmt.Errorf("%s is said to run and does not", inst.ID)
		}
	}
	return nil
}

func onMachines(running map[string]*program) map[string]bool {
	out := map[string]bool{}
	for _, p := range running {
		out[p.Machine] = true
	}
	return out
}

// remove removes all apps, and looks for what is left on the machines.
func (r *run) remove(ctx context.Context) error {
	for n, id := range allApps {
		if _, err := r.client(r.servers[n%serverCount]).DeleteApp(ctx, id); err != nil {
			return err
		}
	}
	if err := r.eventually(ctx, healTimeout, "nothing runs any more", func() error {
		list, err := r.client(r.servers[0]).Fresh().Apps(ctx)
		if err == nil && (len(list) > 0 || len(r.census.running()) > 0) {
			err = fmt.Errorf("%d apps are left, and programs %v", len(list), r.census.running())
		}
		return err
	}); err != nil {
		r.violate("%v", err)
		return r.giveUp(ctx)
	}
	for _, m := range r.agents {
		var left []string
		err := r.eventually(ctx, 20*time.Second, "nothing is left", func() (err error) {
			if left, err = r.leftOn(m); err == nil && len(left) > 0 {
				err = fmt.Errorf("%d things are left", len(left))
			}
			return err
		})
		if err != nil {
			r.violate("on %s: %v: %q", m.Name, err, left)
			continue
		}
		r.clean++
	}
	return nil
}

// leftOn returns what instances have left on a machine: processes, mounts and control groups.
func (r *run) leftOn(m *member) ([]string, error) {
	left, err := m.Processes()
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	proc := m.proc
	m.mu.Unlock()
	engine := m.engine()
	left = slices.DeleteFunc(left, func(p string) bool {
		var pid int
		fmt.Sscan(p, &pid)
		return proc != nil && pid == proc.PID || pid == engine
	})
	mounts, err := m.Mounts(m.Disk())
	if err != nil {
		return nil, err
	}
	groups, err := m.groups()
	return slices.Concat(left, mounts, groups), err
}

// keepHistory writes down what was called and what ran.
func (r *run) keepHistory() error {
	f, err := os.Create(filepath.Join(r.Dir, "history.jsonl"))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := r.log.WriteTo(f); err != nil {
		return err
	}
	return r.census.keep(filepath.Join(r.Dir, "programs.jsonl"))
}
