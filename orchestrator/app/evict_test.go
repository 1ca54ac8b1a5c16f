package app

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
)

// leave wishes that an instance leaves its node; with no kind, that it need not.
func (w *world) leave(n int, kind model.EvictKind) {
	w.replace(n, func(i *model.Instance) {
		i.Evict = nil
		if kind != "" {
			i.Evict = &model.Eviction{Kind: kind, Why: "the node is old", At: w.now}
		}
	})
}

// place puts an instance on a node, running and ready if well.
func (w *world) place(n int, well bool) {
	w.replace(n, func(i *model.Instance) {
		i.Node, i.Status = "b", model.Status{Phase: model.PhaseStarting, Since: w.now, Attempt: 1}
		if well {
			i.Status.Phase, i.Status.Ready = model.PhaseRunning, true
		}
	})
}

func (w *world) over(n int) {
	w.replace(n, func(i *model.Instance) { i.Status = model.Status{Phase: model.PhaseStopped, Since: w.now} })
}

// still plans a few times and holds that nothing but sentences are written.
func (w *world) still(t *testing.T, at string) {
	t.Helper()
	for range 3 {
		w.now = w.now.Add(time.Minute)
		if d := w.check(t, at); len(d.Create)+len(d.Stop) != 0 {
			t.Fatalf("%s: %+v", at, d)
		}
	}
}

// pause makes the app's newest deployment a paused one, made an hour ago.
func (w *world) pause() {
	d := w.snap.Deployments[0]
	d.State, d.Created = model.DeployPaused, w.now.Add(-time.Hour)
}

var noWait = model.Duration(0)

// TestMovedStaysUntilItsHeirServes protects what a move costs: nothing. The one that has to leave stays while its
// replacement waits for a place or starts, however low the floor is.
func TestMovedStaysUntilItsHeirServes(t *testing.T) {
	for _, kind := range []model.EvictKind{model.EvictMove, model.EvictDrain} {
		for _, paused := range []bool{false, true} {
			w := running(4, &model.Update{MinHealthy: "0", MaxSurge: "1", MinHealthyTime: &noWait})
			at := fmt.Sprintf("%s, paused %t", kind, paused)
			if paused {
				w.pause()
			}
			w.leave(1, kind)
			d := w.check(t, at)
			if len(d.Create) != 1 || d.Create[0].Count != 1 || d.Create[0].Replaces[0] != "web-000001" || len(d.Stop) != 0 {
				t.Fatalf("%s: no replacement first: %+v", at, d)
			}
			w.still(t, at+", pending")
			if why := w.snap.Instances[1].Why; why != "stays until web-000006 has taken over: the node is old" {
				t.Fatalf("%s: it says %q", at, why)
			}
			w.place(4, false)
			w.still(t, at+", starting")
			w.place(4, true)
			if d = w.check(t, at); len(d.Stop) != 1 || d.Stop[0].ID != "web-000001" || len(d.Create) != 0 {
				t.Fatalf("%s: with a healthy replacement: %+v", at, d)
			}
			w.over(1)
			w.still(t, at+", moved")
		}
	}
}

// TestIdleIsMovedForAnIdle protects drains from programs that never become healthy: their replacements need not either.
func TestIdleIsMovedForAnIdle(t *testing.T) {
	w := running(1, &model.Update{MinHealthy: "100%", MaxSurge: "1", MinHealthyTime: &noWait})
	w.place(0, false)
	w.leave(0, model.EvictDrain)
	w.check(t, "first")
	w.still(t, "pending")
	w.place(1, false)
	if d := w.check(t, "placed"); len(d.Stop) != 1 || d.Stop[0].ID != "web-000000" {
		t.Fatalf("a starting replacement of a starting instance: %+v", d)
	}
}

// TestMoveWithoutSurge protects apps that cannot have one more: as many stop first as the floor lets go, and the others
// follow once replacements are healthy.
func TestMoveWithoutSurge(t *testing.T) {
	for _, paused := range []bool{false, true} {
		at := fmt.Sprintf("paused %t", paused)
		w := running(4, &model.Update{MinHealthy: "2", MaxSurge: "0", MinHealthyTime: &noWait})
		if paused {
			w.pause()
		}
		for n := range 4 {
			w.leave(n, model.EvictDrain)
		}
		d := w.check(t, at)
		if len(d.Stop) != 2 || d.Stop[0].Event != "instance.moving" || len(d.Create) != 0 {
			t.Fatalf("%s: first: %+v", at, d)
		}
		stays := 0
		for n, i := range w.snap.Instances {
			if i.Desired == model.Halt {
				w.over(n)
			} else if i.Why == "stays, since the floor is 2 healthy (update.minHealthy): the node is old" {
				stays++
			}
		}
		if stays != 2 {
			t.Fatalf("%s: %d say why they stay, want 2", at, stays)
		}
		if d = w.check(t, at); w.created(d) != 2 || len(d.Stop) != 0 {
			t.Fatalf("%s: second: %+v", at, d)
		}
		w.still(t, at)
		w.place(4, true)
		w.place(5, true)
		if d = w.check(t, at); len(d.Stop) != 2 || len(d.Create) != 0 {
			t.Fatalf("%s: third: %+v", at, d)
		}
	}
}

func (w *world) created(d Decisions) int {
	n := 0
	for _, c := range d.Create {
		n += c.Count
	}
	return n
}

// TestWithdrawnEviction protects the one that may stay after all: its replacement goes, whatever the order of ages.
func TestWithdrawnEviction(t *testing.T) {
	for _, paused := range []bool{false, true} {
		for _, well := range []bool{false, true} {
			at := fmt.Sprintf("paused %t, healthy %t", paused, well)
			w := running(3, &model.Update{MaxSurge: "1", MinHealthyTime: &noWait})
			w.snap.Versions[0].Spec.KillOrder = model.OldestFirst
			if paused {
				w.pause()
			}
			w.leave(2, model.EvictMove)
			w.check(t, at)
			w.check(t, at)
			w.leave(2, "")
			w.place(3, well)
			d := w.check(t, at)
			if len(d.Stop) != 1 || d.Stop[0].ID != w.snap.Instances[3].ID || len(d.Create) != 0 {
				t.Fatalf("%s: %+v", at, d)
			}
			if w.snap.Instances[2].Why != "" {
				t.Fatalf("%s: it still says %q", at, w.snap.Instances[2].Why)
			}
			w.over(3)
			w.still(t, at)
		}
	}
}

// TestLossDuringMove protects the count while a replacement waits for a place: it is no substitute for what is lost.
func TestLossDuringMove(t *testing.T) {
	w := running(3, &model.Update{MaxSurge: "1", MinHealthyTime: &noWait})
	w.now = w.now.Add(time.Hour)
	w.leave(0, model.EvictMove)
	w.check(t, "moves")
	w.over(2)
	if d := w.check(t, "lost"); w.created(d) != 1 || len(d.Create[0].Replaces) != 0 {
		t.Fatalf("what is lost is not replaced: %+v", d)
	}
}

// TestHeirLostAtOnce protects the store from a move whose replacements end moments after their creation.
func TestHeirLostAtOnce(t *testing.T) {
	for _, paused := range []bool{false, true} {
		w := running(2, &model.Update{MaxSurge: "1", MinHealthyTime: &noWait})
		if paused {
			w.pause()
		}
		w.leave(0, model.EvictMove)
		w.check(t, "moves")
		w.place(2, false)
		w.over(2)
		if d := w.check(t, "lost"); len(d.Create) != 0 || d.Wake.IsZero() {
			t.Fatalf("paused %t: another comes at once, or never: %+v", paused, d)
		}
		w.now = w.now.Add(shortLived)
		if w.check(t, "later"); w.snap.Instances[len(w.snap.Instances)-1].Replaces != "web-000000" {
			t.Fatalf("paused %t: no other comes: %+v", paused, w.snap.Instances)
		}
	}
}

// TestScaleDownDuringMove protects against ends that count twice: of an app that shrinks the replacement goes that waits
// for a place, and the one that has to leave instead of another.
func TestScaleDownDuringMove(t *testing.T) {
	w := running(4, &model.Update{MaxSurge: "2", MinHealthyTime: &noWait})
	w.leave(1, model.EvictMove)
	w.check(t, "moves")
	three := 3
	w.snap.Versions[0].Spec.Instances = &three
	d := w.check(t, "shrinks")
	if len(d.Stop) != 2 || d.Stop[0].ID != w.snap.Instances[4].ID || d.Stop[1].ID != "web-000001" {
		t.Fatalf("want the replacement and web-000001 to stop: %+v", d)
	}
	w.over(1)
	w.still(t, "shrunk")
}

// TestPreempted protects that a preempted instance ends at once, floor or not, paused or not, and that the app asks for
// another as soon as it may have one.
func TestPreempted(t *testing.T) {
	for _, surge := range []model.Amount{"0", "1"} {
		for _, paused := range []bool{false, true} {
			at := fmt.Sprintf("surge %s, paused %t", surge, paused)
			w := running(2, &model.Update{MinHealthy: "2", MaxSurge: surge, MinHealthyTime: &noWait})
			w.snap.Versions[0].Spec.Update.MinHealthy = map[model.Amount]model.Amount{"0": "1", "1": "2"}[surge]
			if paused {
				w.pause()
			}
			w.leave(0, model.EvictPreempt)
			w.leave(1, model.EvictPreempt)
			d := w.check(t, at)
			if len(d.Stop) != 2 || d.Stop[0].Event != "instance.preempted" || d.Stop[0].Why != "the node is old" {
				t.Fatalf("%s: %+v", at, d)
			}
			w.over(0)
			w.over(1)
			w.check(t, at)
			if live, exist := w.live(); live != 2 || exist != 2 {
				t.Fatalf("%s: %d are wanted and %d exist, want 2", at, live, exist)
			}
			w.still(t, at)
		}
	}
}

// TestPausedScaleUp protects a pause from evictions: who was evicted during it is replaced once, who was before it not
// at all, and the rest of the count waits for the user.
func TestPausedScaleUp(t *testing.T) {
	for _, during := range []bool{true, false} {
		w := running(2, &model.Update{MaxSurge: "1", MinHealthyTime: &noWait})
		six := 6
		w.snap.Versions[0].Spec.Instances = &six
		w.now = w.now.Add(2 * time.Hour)
		w.pause()
		w.leave(0, model.EvictPreempt)
		if !during {
			w.replace(0, func(i *model.Instance) { i.Evict.At, i.Desired = w.now.Add(-90*time.Minute), model.Halt })
		}
		want := map[bool]int{true: 1, false: 0}[during]
		if d := w.check(t, "evicted"); w.created(d) != want {
			t.Fatalf("during the pause: %t: %+v", during, d)
		}
		w.over(0)
		w.still(t, "over")
	}
}

// TestPausedEndIsNoDebt protects a pause from going back: what was stopped for the new version is not made again because
// it was evicted besides.
func TestPausedEndIsNoDebt(t *testing.T) {
	w := running(2, &model.Update{MinHealthy: "0", MaxSurge: "1", MinHealthyTime: &noWait})
	w.pause()
	w.leave(0, model.EvictDrain)
	w.replace(0, func(i *model.Instance) { i.Desired, i.Why = model.Halt, "version 2 replaces version 1" })
	w.still(t, "ending")
	w.over(0)
	w.still(t, "over")
}

// TestPausedWithdrawal protects the one that serves: the replacement stays when the other, that may stay, does less.
func TestPausedWithdrawal(t *testing.T) {
	w := running(2, &model.Update{MinHealthy: "1", MaxSurge: "1", MinHealthyTime: &noWait})
	w.pause()
	w.leave(0, model.EvictDrain)
	w.check(t, "moves")
	w.place(2, true)
	w.place(0, false)
	w.leave(0, "")
	w.still(t, "withdrawn")
}

// TestEvictedOldGoFirst protects that a deployment which replaces an instance anyway begins with those that have to leave.
func TestEvictedOldGoFirst(t *testing.T) {
	w := running(3, &model.Update{MaxSurge: "1", MinHealthyTime: &noWait})
	w.leave(1, model.EvictDrain)
	spec := w.snap.Versions[0].Spec.Clone()
	spec.Containers[0].Shell = "two"
	w.snap.Versions = append(w.snap.Versions, &model.AppVersion{App: "/web", Version: 2, Spec: spec, Created: w.now})
	a := *w.snap.App
	a.Version = 2
	w.adopt(&a, &model.Deployment{App: "/web", Kind: model.DeployUpdate, From: 1, To: 2, State: model.DeployRunning, Created: w.now})
	d := w.check(t, "first")
	if w.created(d) != 1 || d.Create[0].Version != 2 || len(d.Create[0].Replaces) != 1 || d.Create[0].Replaces[0] != "web-000001" {
		t.Fatalf("the first of version 2 does not take over: %+v", d)
	}
	w.place(3, true)
	if d = w.check(t, "second"); len(d.Stop) != 1 || d.Stop[0].ID != "web-000001" {
		t.Fatalf("another goes first: %+v", d)
	}
}

// TestEvictionIsNoRest protects that a plan is made for an app at rest when one of its instances has to leave.
func TestEvictionIsNoRest(t *testing.T) {
	w := running(2, nil)
	if d := w.check(t, "before"); !d.Settled {
		t.Fatalf("not settled: %+v", d)
	}
	w.leave(0, model.EvictMove)
	for range 2 {
		if d := w.check(t, "after"); d.Settled {
			t.Fatalf("settled: %+v", d)
		}
	}
}

// TestDeploymentEndsDuringMove protects deployments from waiting for a move: all of the version are healthy.
func TestDeploymentEndsDuringMove(t *testing.T) {
	w := running(2, nil)
	w.leave(0, model.EvictMove)
	w.check(t, "moves")
	w.snap.Deployments[0].State = model.DeployRunning
	w.check(t, "is deployed")
	if d := w.snap.Deployments[0]; d.State != model.DeploySucceeded || !strings.HasPrefix(d.Message, "all 2 instances") {
		t.Fatalf("%s: %s", d.State, d.Message)
	}
}
