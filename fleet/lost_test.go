package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/fleet"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// inTime runs a test of a rig in the time of a bubble.
func inTime(t *testing.T, test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(newRig(t)) })
}

// pass lets time pass, and all that is to happen in it.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (r *rig) node(id model.NodeID) *model.Node { return r.store.View().Node(id) }

func (r *rig) wantState(id model.NodeID, want model.NodeState, when string) {
	r.t.Helper()
	if got := r.node(id).State; got != want {
		r.t.Errorf("%s, node %s is %s, want %s", when, id, got, want)
	}
}

func (r *rig) lastEvent(kind string) string {
	events := r.store.View().Events()
	for n := len(events) - 1; n >= 0; n-- {
		if events[n].Type == kind {
			return events[n].Message
		}
	}
	return ""
}

// A node whose session ended is lost after its grace, and nobody knows then how its instances are, until its agent tells.
// What it told before it was lost is kept.
func TestLostAfterGrace(t *testing.T) {
	inTime(t, func(r *rig) {
		running := model.Status{Attempt: 3, Phase: model.PhaseRunning, Ready: true, Since: time.Now()}
		for _, id := range []model.InstanceID{"web-1", "web-2", "web-3"} {
			r.put(id, "a", model.PhaseAssigned)
		}
		ctx, cancel := context.WithCancel(r.t.Context())
		link, _ := r.join(ctx, "a")
		if err := link.Send(ctx, wire.Up{Reports: []wire.Report{{ID: "web-1", Status: running}, {ID: "web-3", Status: model.Status{Phase: model.PhaseStopped}}}}); err != nil {
			r.t.Fatal(err)
		}
		pass(time.Minute)
		lost := time.Now()
		cancel()
		pass(9 * time.Second)
		r.wantState("a", model.NodeReady, "within its grace")
		pass(2 * time.Second)
		r.wantState("a", model.NodeUnreachable, "after its grace")
		if got := r.node("a").Lost; !got.Equal(lost) {
			r.t.Errorf("lost at %v, want %v", got, lost)
		}
		if got, want := r.lastEvent("node.unreachable"), "node a does not answer; nobody knows how its 2 instances are"; got != want {
			r.t.Errorf("the event says %q, want %q", got, want)
		}
		v := r.store.View()
		i := v.Instance("web-1")
		if _, healthy := i.HealthySince(); healthy || !i.Status.Away.Equal(lost) || i.Status.Attempt != 3 {
			r.t.Errorf("web-1 is %+v", i.Status)
		}
		if !v.Instance("web-3").Status.Away.IsZero() {
			r.t.Error("an instance that is over is away")
		}

		link, _ = r.join(r.t.Context(), "a")
		r.wantState("a", model.NodeReady, "when it is back")
		if _, healthy := r.store.View().Instance("web-1").HealthySince(); healthy {
			r.t.Error("an instance counts as healthy before its agent has told so")
		}
		stale := running
		stale.Attempt, stale.Away = 2, time.Now() // an agent that lost its newest records
		for _, s := range []model.Status{stale, running} {
			r.update(func(tx *state.Tx) {
				i := tx.Instance("web-1").Clone()
				i.Status.Away = lost
				tx.PutInstance(i)
			})
			if err := link.Send(r.t.Context(), wire.Up{Reports: []wire.Report{{ID: "web-1", Status: s}}}); err != nil {
				r.t.Fatal(err)
			}
			if got := r.store.View().Instance("web-1"); !got.Status.Away.IsZero() || got.Status.Attempt != 3 {
				r.t.Errorf("after the report of attempt %d, web-1 is %+v", s.Attempt, got.Status)
			}
		}
	})
}

// A node that is back within its grace was never lost, however often that happens, and so are those of a server that
// starts again: they have the grace to come to it.
func TestBackWithinGrace(t *testing.T) {
	inTime(t, func(r *rig) {
		for range 5 {
			ctx, cancel := context.WithCancel(r.t.Context())
			r.join(ctx, "a")
			pass(7 * time.Second)
			cancel()
			pass(7 * time.Second)
		}
		r.join(r.t.Context(), "a")
		pass(time.Minute)
		r.wantState("a", model.NodeReady, "after short breaks")
		if n := r.node("a"); n.Flaps != 0 || r.lastEvent("node.unreachable") != "" {
			r.t.Errorf("short breaks count as %d losses", n.Flaps)
		}

		r.update(func(tx *state.Tx) {
			tx.PutNode(&model.Node{ID: "b", Name: "b", State: model.NodeReady, Seen: time.Now().Add(time.Hour)})
		}) // by another clock
		next := fleet.New(r.store, fleet.Config{Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancelCause(r.t.Context())
		ended := make(chan error, 1)
		go func() { ended <- next.Run(ctx) }()
		pass(5 * time.Second)
		if err := next.Dial(ctx, nil).Send(ctx, wire.Up{Hello: &model.Node{ID: "a", Name: "a"}}); err != nil {
			r.t.Fatal(err)
		}
		r.wantState("b", model.NodeReady, "within the grace of a new server")
		pass(time.Minute)
		r.wantState("a", model.NodeReady, "since it came to the new server")
		r.wantState("b", model.NodeUnreachable, "since it did not come to the new server")
		cancel(errors.New("the end"))
		<-ended
	})
}

// lose connects a node and lets it be lost.
func (r *rig) lose(id model.NodeID, up, down time.Duration) {
	ctx, cancel := context.WithCancel(r.t.Context())
	r.join(ctx, id)
	pass(up)
	cancel()
	pass(down)
}

// A node that comes and goes gets no new work for a while, which grows; one that was stable in between starts anew.
func TestFlapping(t *testing.T) {
	inTime(t, func(r *rig) {
		for range 3 {
			r.lose("a", time.Minute, time.Minute)
		}
		r.join(r.t.Context(), "a")
		calm := func() time.Duration { return max(0, time.Until(r.node("a").Unstable)) }
		if got := calm(); got != 2*time.Minute {
			r.t.Errorf("after 3 losses it takes no new work for %v, want 2m", got)
		}
		if got := r.lastEvent("node.ready"); !strings.Contains(got, "is back after 1m0s; it takes no new work until") {
			r.t.Errorf("the event says %q", got)
		}
		r.lose("a", time.Minute, time.Minute)
		r.join(r.t.Context(), "a")
		if got := calm(); got != 4*time.Minute {
			r.t.Errorf("after 4 losses it takes no new work for %v, want 4m", got)
		}
		for range 12 {
			r.lose("a", time.Minute, time.Minute)
		}
		r.join(r.t.Context(), "a")
		if got := calm(); got != time.Hour {
			r.t.Errorf("after many losses it takes no new work for %v, want 1h", got)
		}
		r.lose("a", 2*time.Hour, time.Minute)
		r.join(r.t.Context(), "a")
		if n := r.node("a"); n.Flaps != 1 || calm() != 0 {
			r.t.Errorf("after hours it is blamed for %d losses, for %v", n.Flaps, calm())
		}
	})
}

// A node that is lost for very long is gone, which gives up nothing that it may still run, and it is welcome back.
func TestGone(t *testing.T) {
	inTime(t, func(r *rig) {
		r.put("web-1", "a", model.PhaseRunning)
		r.lose("a", time.Minute, 23*time.Hour)
		r.wantState("a", model.NodeUnreachable, "within a day")
		pass(2 * time.Hour)
		r.wantState("a", model.NodeGone, "after a day")
		if r.store.View().Instance("web-1").Over() {
			r.t.Error("what ran on it is given up")
		}
		r.join(r.t.Context(), "a")
		r.wantState("a", model.NodeReady, "when it is back")
	})
}

// Many nodes that are lost at once are an outage, until enough are back, or an operator says that it is none.
func TestOutage(t *testing.T) {
	inTime(t, func(r *rig) {
		ends := map[model.NodeID]context.CancelFunc{}
		join := func(from, to int) {
			for n := from; n < to; n++ {
				id := model.NodeID(fmt.Sprint("n", n))
				ctx, cancel := context.WithCancel(r.t.Context())
				ends[id] = cancel
				r.join(ctx, id)
			}
		}
		lose := func(from, to int) {
			for n := from; n < to; n++ {
				ends[model.NodeID(fmt.Sprint("n", n))]()
			}
		}
		want := func(outage bool, when string) {
			r.t.Helper()
			if got := r.store.View().Outage(); (got != nil) != outage {
				r.t.Fatalf("%s, the outage is %+v; want one: %t", when, got, outage)
			}
		}
		join(0, 10)
		pass(time.Minute)
		lose(0, 3)
		pass(15 * time.Second)
		want(false, "with 3 of 10 lost")
		lose(3, 4)
		pass(15 * time.Second)
		want(true, "with 4 of 10 lost")
		if got := r.lastEvent("cluster.outage"); !strings.Contains(got, "4 of 10 nodes were lost within minutes") {
			r.t.Errorf("the event says %q", got)
		}
		pass(time.Hour)
		want(true, "after an hour")
		join(0, 1)
		pass(2 * time.Second)
		want(false, "with 3 of 10 lost")
		if got := r.lastEvent("cluster.healed"); !strings.Contains(got, "3 of 10 nodes are lost") {
			r.t.Errorf("the event says %q", got)
		}
		if got := r.node("n0").Flaps; got != 0 {
			r.t.Errorf("a node is blamed for an outage: %d", got)
		}

		lose(0, 1)
		pass(15 * time.Second)
		want(false, "since the others were lost long ago")
		lose(4, 7)
		pass(15 * time.Second)
		want(true, "with 4 more lost")
		r.update(func(tx *state.Tx) { tx.PutLosses(&model.Losses{Resumed: time.Now()}) })
		lose(7, 9)
		pass(time.Minute)
		want(false, "after it was ended by hand")
	})
}

// A node that was removed has no session any more; it may join anew.
func TestRemovedNode(t *testing.T) {
	inTime(t, func(r *rig) {
		link, _ := r.join(r.t.Context(), "a")
		r.update(func(tx *state.Tx) { tx.DeleteNode("a") })
		if _, err := link.Recv(r.t.Context()); err == nil || !strings.Contains(err.Error(), "was removed") {
			r.t.Errorf("the session goes on: %v", err)
		}
		r.join(r.t.Context(), "a")
		r.wantState("a", model.NodeReady, "when it joins anew")
	})
}

// What was written down by a clock that was days ahead comes to lie in the past: the status that a node reports, how long a
// node takes no new work, and since when it and its instances are lost.
func TestClocksAhead(t *testing.T) {
	inTime(t, func(r *rig) {
		const days = 72 * time.Hour
		r.put("web-1", "a", model.PhaseAssigned)
		ctx, cancel := context.WithCancel(r.t.Context())
		link, _ := r.join(ctx, "a")
		ahead := wire.Up{Reports: []wire.Report{{ID: "web-1", Status: model.Status{Phase: model.PhaseRunning, Ready: true, Since: time.Now().Add(days)}}}}
		since := func() time.Time { return r.store.View().Instance("web-1").Status.Since }
		told := time.Now()
		for range 2 { // it says the same again when it connects again
			if err := link.Send(ctx, ahead); err != nil {
				r.t.Fatal(err)
			}
			if got := since(); !got.Equal(told) {
				r.t.Errorf("told at %v that it is ready: since %v", told, got)
			}
			pass(time.Second)
		}
		ahead.Reports[0].Status.Ready = false
		if err := link.Send(ctx, ahead); err != nil {
			r.t.Fatal(err)
		}
		if got := since(); !got.Equal(time.Now()) {
			r.t.Errorf("since %v it is not ready", got)
		}

		cancel()
		pass(15 * time.Second)
		r.wantState("a", model.NodeUnreachable, "after its grace")
		r.update(func(tx *state.Tx) { // as a leader whose clock is ahead does
			n := *tx.Node("a")
			n.Lost, n.Unstable = time.Now().Add(days), time.Now().Add(days)
			tx.PutNode(&n)
			i := tx.Instance("web-1").Clone()
			i.Status.Away = n.Lost
			tx.PutInstance(i)
		})
		pass(time.Minute)
		if n, i := r.node("a"), r.store.View().Instance("web-1"); n.Lost.After(time.Now()) || i.Status.Away.After(time.Now()) || i.Status.Away.IsZero() {
			r.t.Errorf("lost since %v, its instance since %v", n.Lost, i.Status.Away)
		}
		r.join(r.t.Context(), "a")
		if n := r.node("a"); n.Unstable.After(time.Now().Add(time.Hour)) {
			r.t.Errorf("it takes no new work until %v", n.Unstable)
		}
	})
}
