package app

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
)

// holders returns an app of n healthy instances with a slot each.
func holders(n int) *world {
	w := running(n, &model.Update{MinHealthyTime: &noWait})
	w.snap.Versions[0].Spec.Volumes = []model.Volume{{Name: "data", Persistent: &model.Persistent{Size: model.GiB}}}
	for n := range w.snap.Instances {
		w.replace(n, func(i *model.Instance) { i.Slot = uint32(n + 1) })
	}
	w.now = w.now.Add(time.Hour)
	return w
}

// slots returns those that d gives away.
func slots(d Decisions) []uint32 {
	var out []uint32
	for _, c := range d.Create {
		out = append(out, c.Slots...)
	}
	return out
}

// TestSlotWaitsForItsHolder protects the one law of slots at each way in which an instance goes: nobody takes its slot
// before it is over.
func TestSlotWaitsForItsHolder(t *testing.T) {
	for _, paused := range []bool{false, true} {
		w := holders(3)
		if paused {
			w.pause()
		}
		w.leave(1, model.EvictPreempt)
		if d := w.check(t, "preempted"); len(d.Stop) != 1 || len(d.Create) != 0 {
			t.Fatalf("preempted: %+v", d)
		}
		w.still(t, "ending")
		w.over(1)
		w.over(2)
		w.replace(2, func(i *model.Instance) { i.Status.Message = "its node is gone" })
		if d := w.check(t, "over"); !slices.Equal(slices.Sorted(slices.Values(slots(d))), []uint32{2, 3}) {
			t.Fatalf("paused %t: slots 2 and 3 are not given away: %+v", paused, d)
		}
		w.still(t, "whole")
		w.place(3, true)
		w.place(4, false)
		w.replace(4, func(i *model.Instance) { i.Created = w.now.Add(-time.Second) })
		w.over(4)
		if d := w.check(t, "lost at once"); len(d.Create) != 0 || d.Wake.IsZero() {
			t.Fatalf("paused %t: what ends at once is made anew at once, or never: %+v", paused, d)
		}
		w.now = w.now.Add(shortLived)
		if d := w.check(t, "later"); len(slots(d)) != 1 || slots(d)[0] != w.snap.Instances[4].Slot {
			t.Fatalf("paused %t: what ended at once is not made anew: %+v", paused, d)
		}
	}
}

// TestHolderStaysAtHome protects instances that can run nowhere else: moves and drains leave them, and they say why.
func TestHolderStaysAtHome(t *testing.T) {
	for _, kind := range []model.EvictKind{model.EvictMove, model.EvictDrain} {
		w := holders(2)
		w.leave(0, kind)
		w.still(t, string(kind))
		if why := w.snap.Instances[0].Why; why != "stays, since its persistent volumes are on its node: the node is old" {
			t.Fatalf("%s: it says %q", kind, why)
		}
		w.leave(0, "")
		w.still(t, "withdrawn")
		if why := w.snap.Instances[0].Why; why != "" {
			t.Fatalf("withdrawn: it says %q", why)
		}
	}
}

// TestScalingOfSlots protects who goes and who comes: the highest slots go, though a lower one does not serve, but not
// below the floor; the lowest free ones come.
func TestScalingOfSlots(t *testing.T) {
	w := holders(5)
	w.snap.Versions[0].Spec.KillOrder = model.OldestFirst
	scale := func(n int) { w.snap.Versions[0].Spec.Instances = &n }
	scale(3)
	if d := w.check(t, "down"); len(d.Stop) != 2 || d.Stop[0].ID != "web-000004" || d.Stop[1].ID != "web-000003" {
		t.Fatalf("down: %+v", d)
	}
	scale(4)
	w.still(t, "up, while slot 4 ends")
	w.over(3)
	w.over(4)
	if d := w.check(t, "up"); !slices.Equal(slots(d), []uint32{4}) {
		t.Fatalf("up: %+v", d)
	}
	w.place(5, true)
	w.place(0, false)
	w.place(1, false)
	scale(3)
	w.still(t, "down, with a floor of 2")
	w.place(0, true)
	if d := w.check(t, "down, above the floor"); len(d.Stop) != 1 || d.Stop[0].ID != w.snap.Instances[5].ID {
		t.Fatalf("down, above the floor: %+v", d)
	}
}

// TestSlotsComeAndGo protects both ways between an app with slots and one without: the new ones have what their version
// says, and a slot that comes back waits for whoever had it.
func TestSlotsComeAndGo(t *testing.T) {
	w := holders(2)
	change := func(volumes []model.Volume) {
		spec := w.snap.target().Spec.Clone()
		spec.Volumes = volumes
		a := *w.snap.App
		a.Version++
		w.snap.Versions = append(w.snap.Versions, &model.AppVersion{App: "/web", Version: a.Version, Spec: spec, Created: w.now})
		w.adopt(&a, &model.Deployment{App: "/web", Kind: model.DeployUpdate, To: a.Version, State: model.DeployRunning, Created: w.now})
	}
	persistent := w.snap.Versions[0].Spec.Volumes
	change(nil)
	if d := w.check(t, "to none"); len(d.Create) != 1 || len(slots(d)) != 0 || len(d.Stop) != 0 {
		t.Fatalf("to none: %+v", d)
	}
	w.place(2, true)
	w.check(t, "to none")
	change(persistent)
	w.check(t, "back")
	if got := w.snap.Instances[0]; got.Desired != model.Run || w.snap.Instances[1].Desired != model.Halt {
		t.Fatalf("the first that had a slot is to %s, want run; the second ends", got.Desired)
	}
	for round := 0; round < 20; round++ {
		w.check(t, fmt.Sprint("round ", round))
		w.allWell()
	}
	w.atRest(t, 0)
}
