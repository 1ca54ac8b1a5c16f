package engine

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// story does the same things each time, and returns all answers. With fresh, no field outlives the call that needed it;
// with curious, questions are asked in between, which must not matter.
func story(t *testing.T, seed uint64, small int, fresh, curious bool) string {
	rnd := rand.New(rand.NewPCG(seed, 7))
	w, classes, node := people(t, rnd, small)
	e := w.e
	e.SetReservations([]Reserved{{ID: "r", Role: "/a", Node: "n1", Resources: model.Resources{CPUs: 500}}})
	var said []any
	var placedIDs []model.InstanceID
	for step := range 60 {
		if fresh {
			clear(e.fields)
			e.tree = tree{}
		}
		c := classes[rnd.IntN(len(classes))]
		if curious {
			e.Explain(c)
			e.Defrag("default", func(model.InstanceID) bool { return true })
			e.try(c, 0, func(model.AppID) int { return 1 }, nil)
		}
		switch k := rnd.IntN(8); {
		case k < 4:
			var wants []*Want
			for i := range 1 + rnd.IntN(4) {
				wants = append(wants, &Want{Class: classes[rnd.IntN(len(classes))], IDs: names(fmt.Sprintf("i%d-%d", step, i), 1+rnd.IntN(5))})
			}
			out := e.PlaceAll(wants, nil)
			for _, p := range out {
				placedIDs = append(placedIDs, p.ID)
			}
			said = append(said, out)
		case k == 4:
			p, ok := e.Preempt(c, model.InstanceID(fmt.Sprint("p", step)), func(model.AppID) int { return 1 })
			said = append(said, p, ok)
		case k == 5:
			said = append(said, e.Defrag("default", func(model.InstanceID) bool { return true }))
		case k == 6:
			f, why := e.Explain(c)
			said = append(said, f, why)
			e.SetNode(node(rnd.IntN(4)))
		case len(placedIDs) > 0:
			e.Release(placedIDs[rnd.IntN(len(placedIDs))])
		}
	}
	text, err := json.Marshal(said)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The same calls give the same answers to the last byte, whether fields were kept or made anew, and whatever was asked in
// between.
func TestDeterminism(t *testing.T) {
	for seed := range uint64(100) {
		for _, small := range []int{smallCluster, 0} {
			want := story(t, seed, small, false, false)
			for range 2 {
				if got := story(t, seed, small, false, false); got != want {
					t.Fatalf("seed %d: the same calls give\n%s\nafter\n%s", seed, got, want)
				}
			}
			if got := story(t, seed, small, false, true); got != want {
				t.Fatalf("seed %d: with questions in between the same calls give\n%s\nafter\n%s", seed, got, want)
			}
		}
		if got, want := story(t, seed, smallCluster, true, false), story(t, seed, smallCluster, false, false); got != want {
			t.Fatalf("seed %d: without kept fields the same calls give\n%s\nafter\n%s", seed, got, want)
		}
	}
}

// dealt does what the agent does: it deals devices to the containers in their order, each as much as it asks for.
func dealt(wants []GPUWant, shares []model.GPUShare) [][]model.GPUShare {
	left := slices.Clone(shares)
	var out [][]model.GPUShare
	for _, w := range wants {
		var own []model.GPUShare
		for need := w.Amount; need > 0 && len(left) > 0; {
			take := min(need, left[0].Share)
			own = append(own, model.GPUShare{ID: left[0].ID, Share: take})
			need -= take
			if left[0].Share -= take; left[0].Share == 0 {
				left = left[1:]
			}
		}
		out = append(out, own)
	}
	return out
}

// A container gets what it asked for when the agent deals an instance's devices out: a share of one device, or whole ones,
// of a model that it accepts.
func TestDevicesAreDealtToContainers(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 8))
		e := New(Config{})
		n := Node{ID: "n"}
		models := map[string]string{}
		for d := range 2 + rnd.IntN(5) {
			g := model.GPUDevice{ID: fmt.Sprint("d", d), Model: []string{"T4", "A10"}[rnd.IntN(2)]}
			n.GPUs = append(n.GPUs, g)
			models[g.ID] = g.Model
		}
		e.SetNode(n)
		for i := range 6 {
			a := Ask{App: model.AppID(fmt.Sprint("/a", i))}
			for range 1 + rnd.IntN(3) {
				w := GPUWant{Amount: []model.GPU{250, 500, 500, 700, 1000, 2000}[rnd.IntN(6)]}
				if rnd.IntN(3) == 0 {
					w.Models = []string{"T4"}
				}
				a.GPUs = append(a.GPUs, w)
			}
			p, ok := e.PlaceOn(e.Class(a), model.InstanceID(fmt.Sprint("i", i)), "n")
			if !ok {
				continue
			}
			for i, own := range dealt(a.GPUs, p.GPUs) {
				w := a.GPUs[i]
				var sum model.GPU
				for _, g := range own {
					sum += g.Share
					if len(w.Models) > 0 && !slices.Contains(w.Models, models[g.ID]) || w.Amount >= 1000 && g.Share != 1000 || w.Amount < 1000 && len(own) != 1 {
						t.Fatalf("seed %d: container %d, which wants %+v, is dealt %v of %v for %v", seed, i, w, own, p.GPUs, a.GPUs)
					}
				}
				if sum != w.Amount {
					t.Fatalf("seed %d: container %d, which wants %+v, is dealt %v of %v", seed, i, w, own, p.GPUs)
				}
			}
			if err := e.Audit(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// No item is divided between containers: each gets as many as its own amount comes to, as the agent deals them.
func TestItemsOfContainers(t *testing.T) {
	half := map[string]model.Units{"slot": 500}
	v := &model.AppVersion{App: "/a", Spec: &model.Spec{Containers: []model.Container{{Name: "x", Custom: half}, {Name: "y", Custom: half}}}}
	e := New(Config{})
	e.SetNode(Node{ID: "n", Capacity: model.Resources{CPUs: 9000, Memory: 99 * model.GiB, Disk: model.TiB}, Custom: map[string]model.Custom{"slot": {Items: []string{"1", "2", "3"}}}})
	a := AskOf(v)
	a.Image = false
	c := e.Class(a)
	p, ok := e.PlaceOn(c, "i", "n")
	if !ok || !slices.Equal(p.Items["slot"], []string{"1", "2"}) {
		t.Errorf("items are %v, %v; want 1 and 2", p.Items, ok)
	}
	if p, ok := e.PlaceOn(c, "j", "n"); ok {
		t.Errorf("a second instance got %v, though one item is left", p.Items)
	}
}

// What is reserved for a role is not lent: neither amounts nor devices.
func TestReservedDevicesAreNotLent(t *testing.T) {
	e := New(Config{})
	e.SetNode(Node{ID: "n", Capacity: model.Resources{CPUs: 4000}, GPUs: []model.GPUDevice{{ID: "a"}, {ID: "b"}}})
	e.SetReservations([]Reserved{{ID: "r", Role: "/x", Node: "n", Resources: model.Resources{CPUs: 1000, GPUs: 1000}}})
	if err := e.Lend(Loan{ID: "1", Node: "n", Role: "/", GPUs: []model.GPUShare{{ID: "a", Share: 500}}}); err != nil {
		t.Error(err)
	}
	if err := e.Lend(Loan{ID: "2", Node: "n", Role: "/", GPUs: []model.GPUShare{{ID: "b", Share: 500}}}); err == nil {
		t.Error("the device that is reserved was lent")
	}
	if err := e.Lend(Loan{ID: "3", Node: "n", Role: "/", Resources: model.Resources{CPUs: 3500}}); err == nil {
		t.Error("cores that are reserved were lent")
	}
}
