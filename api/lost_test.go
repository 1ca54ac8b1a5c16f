package api

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// lose makes the node of a door unreachable, as fleet does.
func (d *door) lose() time.Time {
	lost := epoch.Add(time.Hour)
	d.put(func(tx *state.Tx) {
		n := *tx.Node("n1")
		n.State, n.Lost = model.NodeUnreachable, lost
		tx.PutNode(&n)
		for i := range tx.InstancesOn("n1") {
			i = i.Clone()
			i.Status.Away = lost
			tx.PutInstance(i)
		}
	})
	return lost
}

// A user reads of each instance on a lost node what becomes of it.
func TestLostInstancesSayWhatBecomesOfThem(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	spec := func(id model.AppID, u *model.Unreachable) *model.Spec {
		return &model.Spec{ID: id, Containers: []model.Container{{Shell: "true"}}, Unreachable: u}
	}
	db := spec("/db", nil)
	db.Volumes = []model.Volume{{Name: "d", Persistent: &model.Persistent{Size: model.GiB}}}
	for _, s := range []*model.Spec{spec("/web", nil), spec("/pet", &model.Unreachable{Never: true}), db} {
		d.create(s)
		d.finish(s.ID, model.DeploySucceeded, "done")
		d.run(model.InstanceID(s.ID.Name()+"-1"), s.ID, func(i *model.Instance) {
			if s.Stateful() {
				i.Slot = 1
			}
		})
	}
	d.lose()
	why := func(app model.AppID) string {
		t.Helper()
		a := must(d.c.App(ctx, app))(t)
		if a.List[0].State != "unreachable" || a.Running != 0 || a.State != "degraded" {
			t.Errorf("%s is %s with %d running, its instance %s", app, a.State, a.Running, a.List[0].State)
		}
		if !strings.Contains(a.Why, a.List[0].Why) || !strings.Contains(a.Why, "1 on a node that does not answer") {
			t.Errorf("%s says %q, its instance %q", app, a.Why, a.List[0].Why)
		}
		return a.List[0].Why
	}
	const since = "its node alpha has not answered since 2026-01-02T04:04:05Z; it is "
	for app, want := range map[model.AppID]string{
		"/web": since + "replaced at 2026-01-02T04:05:05Z and given up at 2026-01-02T04:14:05Z",
		"/pet": since + "not replaced, since unreachable.never says so",
		"/db":  since + "not replaced, since its persistent volumes are there; if the machine is dead, remove the node",
	} {
		if got := why(app); got != want {
			t.Errorf("%s: %q, want %q", app, got, want)
		}
	}
	d.put(func(tx *state.Tx) {
		tx.PutLosses(&model.Losses{Outage: &model.Outage{Since: epoch, Noted: epoch.Add(time.Hour), Lost: 4, Nodes: 10}})
	})
	if got := why("/web"); !strings.Contains(got, "are not replaced for now: 4 of 10 nodes were lost") {
		t.Errorf("in an outage: %q", got)
	}
	if got := must(d.c.Info(ctx))(t).Notice; !strings.Contains(got, "4 of 10") {
		t.Errorf("the notice is %q", got)
	}
	if got := must(d.c.ResumeReplacement(ctx))(t); got.Notice != "" || d.db.View().Outage() != nil || d.db.View().Losses().Resumed.IsZero() {
		t.Errorf("after it was ended by hand: %+v", got)
	}
	d.refusals("POST", "/v1/cluster/resume-replacement", map[string]string{``: "409 no outage"})
}

// A node with instances is removed only when it does not answer, and when the operator says that it is dead: law 4 holds
// as far as the records tell.
func TestRemoveNode(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	d.create(&model.Spec{ID: "/web", Containers: []model.Container{{Shell: "true"}}})
	d.run("web-1", "/web", nil)
	d.run("web-2", "/web", func(i *model.Instance) { i.Status.Phase = model.PhaseStopped })
	d.put(func(tx *state.Tx) {
		tx.PutVolume(&model.PersistentVolume{ID: "/db:1:d", App: "/db", Slot: 1, Name: "d", Node: "n1"})
		tx.PutSettings(&model.NodeSettings{ID: "n1", Cordoned: true})
	})
	d.refusals("DELETE", "/v1/nodes/alpha", map[string]string{``: "409 1 instance has not ended on node alpha; drain it first"})
	d.refusals("DELETE", "/v1/nodes/alpha?force=true", map[string]string{``: "409 node alpha answers"})
	d.lose()
	d.refusals("DELETE", "/v1/nodes/alpha", map[string]string{``: "409 does not answer; if the machine is dead, force gives them up"})
	got := must(d.c.RemoveNode(ctx, "alpha", true))(t)
	if got.ID != "n1" || !slices.Equal(got.Instances, []model.InstanceID{"web-1"}) || !slices.Equal(got.Volumes, []model.VolumeID{"/db:1:d"}) {
		t.Errorf("%+v", got)
	}
	v := d.db.View()
	i := v.Instance("web-1")
	if v.Node("n1") != nil || v.Settings("n1") != nil || v.Volume("/db:1:d") == nil || !i.Over() || i.Desired != model.Run || i.Status.Message != "its node alpha was removed" {
		t.Errorf("left are node %+v, settings %+v, volume %+v, instance %+v", v.Node("n1"), v.Settings("n1"), v.Volume("/db:1:d"), i)
	}
	if e := v.Events()[len(v.Events())-1]; e.Message != "node alpha is removed; 1 instance that it ran is given up" {
		t.Errorf("the event says %q", e.Message)
	}
	d.refusals("DELETE", "/v1/nodes/alpha", map[string]string{``: "404 no node alpha"})
}

// A drain has a deadline only as long as the last request says so.
func TestDrainDeadline(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	n := must(d.c.DrainNode(ctx, "n1", client.Drain{Deadline: model.Duration(10 * time.Minute)}))(t)
	if !strings.HasPrefix(n.Why, "what is left stops at 2026-01-02T") {
		t.Errorf("it says %q", n.Why)
	}
	if left := n.Settings.Deadline.Sub(d.clock()); left < 9*time.Minute || left > 10*time.Minute {
		t.Errorf("the deadline is %v away", left)
	}
	if n = must(d.c.DrainNode(ctx, "n1", client.Drain{}))(t); !n.Settings.Draining || !n.Settings.Deadline.IsZero() {
		t.Errorf("settings are %+v", n.Settings)
	}
	must(d.c.DrainNode(ctx, "n1", client.Drain{Deadline: model.Duration(time.Minute)}))(t)
	if n = must(d.c.UncordonNode(ctx, "n1"))(t); n.Settings != nil {
		t.Errorf("settings are %+v", n.Settings)
	}
	d.refusals("POST", "/v1/nodes/n1/drain", map[string]string{`{"deadline":"-1s"}`: "422 body.deadline"})
	d.refusals("PUT", "/v1/nodes/n1/settings", map[string]string{`{"deadline":"2026-01-31T22:00:00Z"}`: "422 body.deadline | draining"})
}

// A node that came and went too often says until when it takes no new work.
func TestUnstableNode(t *testing.T) {
	d := newDoor(t)
	d.put(func(tx *state.Tx) {
		n := *tx.Node("n1")
		n.Flaps, n.Unstable = 3, epoch.Add(time.Hour)
		tx.PutNode(&n)
	})
	n := must(d.c.Node(t.Context(), "n1"))(t)
	if n.Availability != client.NodeUnstable || n.Why != "it takes no new work until 04:04:05 UTC, since it came and went 3 times within minutes" {
		t.Errorf("%s: %q", n.Availability, n.Why)
	}
}
