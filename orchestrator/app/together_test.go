package app_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/orchestrator/app"
	"github.com/gantry-os/gantry/scheduler"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

// TestTogether runs both loops for real beside an agent and a user, who all write at once. It protects, in every state
// that the store was ever seen in, the ceiling of instances and the floor of healthy ones; and that all comes to rest.
func TestTogether(t *testing.T) {
	const count, surge, floor = 20, 4, 15
	db := memory.Open(time.Now)
	ctx, cancel := context.WithCancelCause(context.Background())
	end := errors.New("the end")
	var wg sync.WaitGroup
	start := func(name string, run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); !errors.Is(err, end) {
				t.Errorf("%s: %v", name, err)
				cancel(end)
			}
		})
	}
	write := func(fn func(*state.Tx)) {
		if err := db.Update(context.Background(), func(tx *state.Tx) error { fn(tx); return nil }); err != nil {
			t.Error(err)
			cancel(end)
		}
	}
	deploy := func(version uint64) {
		write(func(tx *state.Tx) {
			n := count
			a := &model.App{ID: "/web"}
			if old := tx.App("/web"); old != nil {
				*a = *old
			}
			a.Version = version
			a.Deployment = model.DeploymentID(fmt.Sprintf("d-%03d", version))
			tx.PutApp(a)
			tx.PutVersion(&model.AppVersion{App: "/web", Version: version, Spec: &model.Spec{
				ID: "/web", Instances: &n, Containers: []model.Container{{Shell: fmt.Sprint("run ", version), CPUs: 100}},
				Update: &model.Update{MinHealthy: "15", MaxSurge: "4", MinHealthyTime: new(model.Duration)},
			}})
			tx.PutDeployment(&model.Deployment{
				ID: a.Deployment, App: "/web", Kind: model.DeployUpdate, From: version - 1, To: version, State: model.DeployRunning,
			})
		})
	}
	write(func(tx *state.Tx) {
		tx.PutNode(&model.Node{ID: "a", Name: "a", State: model.NodeReady, Capacity: model.Resources{CPUs: 2300, Memory: model.TiB}})
	})
	deploy(1)
	start("orchestrator", app.New(db, app.Config{}).Run)
	start("scheduler", scheduler.New(db, scheduler.Config{}).Run)

	rnd := rand.New(rand.NewPCG(1, 2))
	_, watch := db.Watch()
	defer watch.Close()
	reached := false
	for version := uint64(1); ; {
		v, _, err := watch.Next(ctx)
		if err != nil {
			break
		}
		exist, healthy := tallyOf(v)
		if reached = reached || healthy >= floor; exist > count+surge || reached && healthy < floor {
			t.Errorf("%d instances exist, at most %d may; %d are healthy, at least %d must be", exist, count+surge, healthy, floor)
			cancel(end)
		}
		d := v.Deployment(v.App("/web").Deployment)
		switch {
		case d.State == model.DeploySucceeded && version == 12:
			cancel(end)
			continue
		case d.State == model.DeploySucceeded, version < 12 && rnd.IntN(40) == 0:
			version++
			deploy(version)
		}
		write(func(tx *state.Tx) { advance(tx, rnd) })
	}
	wg.Wait()
	if exist, healthy := tallyOf(db.View()); exist != count || healthy != count {
		t.Errorf("%d instances, %d healthy at the end, want %d", exist, healthy, count)
	}
}

func tallyOf(v state.View) (exist, healthy int) {
	for i := range v.Instances() {
		if !i.Over() {
			exist++
		}
		if _, ok := i.HealthySince(); ok {
			healthy++
		}
	}
	return exist, healthy
}

// advance moves some instances a step, as an agent does: at least one, if any has a step to take.
func advance(tx *state.Tx, rnd *rand.Rand) {
	moved, skip := false, rnd.IntN(3)
	for i := range tx.InstancesOn("a") {
		if i.Over() || moved && rnd.IntN(3) < skip {
			continue
		}
		i = i.Clone()
		s := model.Status{Attempt: 1, Since: time.Now()}
		switch {
		case i.Desired == model.Halt:
			s.Phase = model.PhaseStopped
		case i.Status.Phase == model.PhaseAssigned:
			s.Phase = model.PhaseStarting
		case i.Status.Phase == model.PhaseStarting:
			s.Phase, s.Ready = model.PhaseRunning, true
		default:
			continue
		}
		i.Status = s
		tx.PutInstance(i)
		moved = true
	}
}
