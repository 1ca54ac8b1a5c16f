package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// sampler looks at an app's instances all the time, as somebody outside does.
type sampler struct {
	most, least int // instances that exist, and that are healthy
	samples     int
	end         context.CancelFunc
	wg          sync.WaitGroup
}

// sample begins to look; stop ends it.
func (c *cluster) sample(app model.AppID) *sampler {
	ctx, cancel := context.WithCancel(context.Background())
	s := &sampler{least: 1 << 30, end: cancel}
	s.wg.Go(func() {
		for ctx.Err() == nil {
			list, err := c.Instances(ctx, client.InstanceFilter{App: app})
			if err != nil {
				continue // the end, or the next look shows more
			}
			healthy := 0
			for _, i := range list {
				if _, ok := i.HealthySince(); ok {
					healthy++
				}
			}
			s.most, s.least, s.samples = max(s.most, len(list)), min(s.least, healthy), s.samples+1
		}
	})
	return s
}

func (s *sampler) stop() { s.end(); s.wg.Wait() }

// rolling is an app of six that takes a moment to become ready and to stop.
func rolling(release string) *model.Spec {
	s := shell("/roll", `trap 'sleep 0.2; exit 0' TERM; sleep 0.2; touch up; while :; do sleep 0.05; done`)
	s.Instances = ptr(6)
	s.Containers[0].CPUs, s.Containers[0].Memory = 60, 16*model.MiB
	s.Containers[0].Env = map[string]string{"RELEASE": release}
	s.Readiness = []model.Check{{Command: &model.CommandCheck{Command: []string{"test", "-e", "up"}}, Interval: model.Duration(200 * time.Millisecond)}}
	s.Update = &model.Update{MinHealthy: "50%", MaxSurge: "2", MinHealthyTime: ptr(model.Duration(100 * time.Millisecond))}
	return s
}

// midway waits until some, but not all, instances of the version run.
func (c *cluster) midway(id model.AppID, version uint64) {
	c.t.Helper()
	c.until(fmt.Sprintf("the update to version %d to be under way", version), func() bool {
		for _, i := range c.running(id) {
			if i.Version == version {
				return true
			}
		}
		return false
	})
}

// settled waits until exactly n instances exist, all healthy and as the deployed version says.
func (c *cluster) settled(id model.AppID, n int) {
	c.t.Helper()
	c.until(fmt.Sprintf("%d current, healthy instances and no others", n), func() bool {
		list, err := c.Instances(testContext(c.t), client.InstanceFilter{App: id})
		if err != nil || len(list) != n {
			return false
		}
		for _, i := range list {
			if _, ok := i.HealthySince(); !ok || !i.Current {
				return false
			}
		}
		return true
	})
}

// A rolling update never has more instances than count and surge, nor fewer healthy ones than its floor, also when
// another update takes over in its midst; and scaling or removing the app amid an update does what was asked.
func TestRollingBounds(t *testing.T) {
	needRoot(t)
	c := start(t)
	if n := len(c.deploy(rolling("1"))); n != 6 {
		t.Fatalf("%d instances run, want 6", n)
	}
	bounds := func(s *sampler, what string, most, least int) {
		t.Helper()
		s.stop()
		if s.most > most || s.least < least || s.samples < 10 {
			t.Errorf("%s: up to %d instances and down to %d healthy ones in %d samples, want at most %d and at least %d", what, s.most, s.least, s.samples, most, least)
		}
	}

	s := c.sample("/roll")
	c.deploy(rolling("2"))
	bounds(s, "update", 8, 3)
	c.settled("/roll", 6)

	s = c.sample("/roll")
	third := c.apply(rolling("3"))
	c.midway("/roll", 3)
	fourth := c.apply(rolling("4"))
	if d := c.wait(fourth); d.State != model.DeploySucceeded {
		t.Errorf("the update that took over is %s: %s", d.State, d.Message)
	}
	bounds(s, "an update taking over", 8, 3)
	if d := c.wait(third); d.State != model.DeploySuperseded {
		t.Errorf("the update that was taken over is %s, want superseded", d.State)
	}
	c.settled("/roll", 6)

	c.apply(rolling("5"))
	c.midway("/roll", 5)
	change, err := c.ScaleApp(testContext(t), "/roll", 2)
	if err != nil {
		t.Fatal(err)
	}
	if d := c.wait(change); d.State != model.DeploySucceeded {
		t.Errorf("scaling amid an update is %s: %s", d.State, d.Message)
	}
	c.settled("/roll", 2)
	for _, i := range c.running("/roll") {
		if out, _ := c.exec(i.ID, "sh", "-c", "echo $RELEASE"); out != "5\n" {
			t.Errorf("after scaling amid the update to 5, %s runs release %q", i.ID, out)
		}
	}

	change = c.apply(rolling("6"))
	c.midway("/roll", change.Version)
	c.remove("/roll")
	if _, err := c.App(testContext(t), "/roll"); !notFound(err) {
		t.Errorf("the removed app: %v", err)
	}
	if list, err := c.Instances(testContext(t), client.InstanceFilter{}); err != nil || len(list) > 0 {
		t.Errorf("after the removal amid an update these are left: %v %v", pids(list), err)
	}
}

// A write that is sent again under its key happens once, a write against an old revision is refused, and of many at
// once under one revision exactly one wins.
func TestWritesAtOnce(t *testing.T) {
	needRoot(t)
	c := start(t)
	spec := func(release string) *model.Spec {
		s := shell("/w", "exec sleep 100000")
		s.Containers[0].Env = map[string]string{"RELEASE": release}
		s.Containers[0].CPUs, s.Update = 20, &model.Update{MinHealthyTime: ptr(model.Duration(0))}
		return s
	}
	c.deploy(spec("0"))
	var same []client.Change
	for range 2 {
		change, err := c.RestartApp(testContext(t), "/w", client.IdempotencyKey("once"))
		if err != nil {
			t.Fatal(err)
		}
		c.wait(change)
		same = append(same, change)
	}
	if same[0] != same[1] {
		t.Errorf("the same write under one key answered %+v and %+v", same[0], same[1])
	}
	list, err := c.Deployments(testContext(t), client.DeploymentFilter{App: "/w"})
	if err != nil || len(list) != 2 {
		t.Errorf("%d deployments (%v), want the first and one restart", len(list), err)
	}
	app, err := c.App(testContext(t), "/w")
	if err != nil {
		t.Fatal(err)
	}
	outcomes := make(chan error, 8)
	for n := range cap(outcomes) {
		go func() {
			_, err := c.PutApp(testContext(t), spec(fmt.Sprintf("if-match-%d", n)), client.IfRevision(app.Revision))
			outcomes <- err
		}()
	}
	won := 0
	for range cap(outcomes) {
		switch err := <-outcomes; {
		case err == nil:
			won++
		case refusal(err) != http.StatusPreconditionFailed:
			t.Errorf("a write that came too late: %v, want status 412", err)
		}
	}
	if won != 1 {
		t.Errorf("%d writes under one revision won, want 1", won)
	}

	for n := range cap(outcomes) {
		go func() {
			_, err := c.PutApp(testContext(t), spec(fmt.Sprintf("free-%d", n)))
			outcomes <- err
		}()
	}
	for range cap(outcomes) {
		if err := <-outcomes; err != nil {
			t.Errorf("a write beside others: %v", err)
		}
	}
	c.until("one instance of the last written version to be left", func() bool {
		app, err := c.App(testContext(t), "/w")
		if err != nil || app.State != "running" || app.Version != 11 || app.Target != 11 {
			return false
		}
		list := c.running("/w")
		return len(list) == 1 && list[0].Version == 11
	})
	want, err := c.Versions(testContext(t), "/w")
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := c.exec(c.running("/w")[0].ID, "sh", "-c", "echo $RELEASE"); out != want[0].Spec.Containers[0].Env["RELEASE"]+"\n" {
		t.Errorf("release %q runs, the last written is %v", out, want[0].Spec.Containers[0].Env)
	}
}

// refusal returns the status with which a request was refused, 0 when it was not.
func refusal(err error) int {
	var problem *client.Error
	if errors.As(err, &problem) {
		return problem.Status
	}
	return 0
}
