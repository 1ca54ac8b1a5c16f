package policy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func cores(n float64) Amounts { return Amounts{CPU: int64(n * 1000), Memory: int64(n) << 30} }

// withFree returns an otherwise empty node of 96 cores whose devices have this much free.
func withFree(gpus ...int32) *Node {
	n := machine(96, len(gpus))
	copy(n.GPUs, gpus)
	return &n
}

func clone(n *Node) *Node {
	c := *n
	c.GPUs = slices.Clone(n.GPUs)
	return &c
}

// Whatever fits can be taken without anything going below zero, and giving it back undoes that.
func TestTakeWhatFits(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i, a := range mixed(20000, 3) {
		n := machine(32, 4)
		n.Free = Amounts{CPU: rng.Int64N(32001), Memory: rng.Int64N(33 << 30)}
		for d := range n.GPUs {
			n.GPUs[d], n.Models[d] = int32(rng.IntN(3))*Whole/2, uint8(rng.IntN(3))
		}
		a.Models = uint64(rng.IntN(8))
		before := clone(&n)
		if !a.Fits(&n) {
			continue
		}
		devices := a.Devices(&n, -1)
		n.Take(&a, devices)
		if n.Free.CPU < 0 || n.Free.Memory < 0 || slices.Min(n.GPUs) < 0 {
			t.Fatalf("%d: %+v does not fit into %+v", i, a, *before)
		}
		for d := range n.GPUs {
			if n.GPUs[d] != before.GPUs[d] && !a.Accepts(n.Models[d]) {
				t.Fatalf("%d: device %d is of a model that %+v does not accept", i, d, a)
			}
		}
		if taken := before.gpuFree() - n.gpuFree(); taken != int64(a.GPU) {
			t.Fatalf("%d: took %d of devices for %+v", i, taken, a)
		}
		n.Give(&a, devices)
		if n.Free != before.Free || !slices.Equal(n.GPUs, before.GPUs) {
			t.Fatalf("%d: taken and given back is %+v, was %+v", i, n, *before)
		}
	}
}

func TestFits(t *testing.T) {
	for i, c := range []struct {
		gpu    int32
		models uint64
		free   []int32
		fits   bool
	}{
		{0, 0, nil, true}, {1, 0, nil, false}, {500, 0, []int32{499, 400}, false}, {500, 0, []int32{400, 500}, true},
		{1000, 0, []int32{999, 999}, false}, {1000, 0, []int32{999, 1000}, true}, {2000, 0, []int32{1000, 999, 1000}, true},
		{2000, 0, []int32{1000, 999}, false}, {500, 1 << 1, []int32{1000}, false}, {500, 1<<0 | 1<<1, []int32{1000}, true},
	} {
		a := Ask{Amounts: cores(1), GPU: c.gpu, Models: c.models}
		if got := a.Fits(withFree(c.free...)); got != c.fits {
			t.Errorf("%d: fits %v", i, got)
		}
	}
	large := Ask{Amounts: cores(97)}
	if large.Fits(withFree()) {
		t.Error("97 cores fit into 96")
	}
}

// A share without a wish goes where least is left over.
func TestTightestDevice(t *testing.T) {
	a := Ask{GPU: 300}
	if got := a.Devices(withFree(1000, 200, 400, 300, 500), -1); got != 1<<3 {
		t.Errorf("took devices %b", got)
	}
	if got := a.Devices(withFree(1000, 200, 400, 300, 500), 2); got != 1<<2 {
		t.Errorf("took devices %b instead of the preferred one", got)
	}
}

// prefers fails unless p places a on the first node rather than on the second.
func prefers(t *testing.T, p Policy, a Ask, better, worse *Node) {
	t.Helper()
	b, _ := p.Cost(better, &a)
	w, _ := p.Cost(worse, &a)
	if !(b < w) {
		t.Errorf("%s: costs %g on %+v and %g on %+v", p.Name(), b, *better, w, *worse)
	}
}

func TestOrderOfNodes(t *testing.T) {
	empty, half := withFree(1000, 1000), withFree(1000, 400)
	half.Free = cores(40)
	a := Ask{Amounts: cores(4), GPU: 300}
	l := LargestOf([]Node{*empty})
	prefers(t, Spread{}, a, empty, half)
	prefers(t, &BestFit{l}, a, half, empty)
	prefers(t, &DotProduct{l}, a, half, empty)

	lopsided := withFree(1000, 1000) // its processors are in use, its devices are not
	lopsided.Free = cores(20)
	prefers(t, Balanced{}, a, empty, lopsided)
}

func TestRandomIsSeeded(t *testing.T) {
	draws := func(seed uint64) string {
		r, s := NewRandom(seed), ""
		for range 20 {
			c, _ := r.Cost(nil, nil)
			s += fmt.Sprint(c, " ")
		}
		return s
	}
	if first, again := draws(1), draws(1); first != again || first == draws(2) {
		t.Error("what is drawn does not depend on the seed alone")
	}
	r := NewRandom(1)
	before := r.Epoch()
	if r.Learn(nil, 1); r.Epoch() == before {
		t.Error("each ask draws anew for all nodes, or the same node wins again and again")
	}
}

// The measure of the paper, by hand. Of 1700 free in two devices, for three kinds of pods:
// 500 of a device: 700 is enough, so is 1000: nothing is fragmented. Weight 0.5.
// one whole device: the 700 of the other are of no use. Weight 0.25.
// two devices do not fit, so all 1700 are. Weight 0.125.
// without a device: all 1700 are. Weight 0.125.
func TestFragmentationByHand(t *testing.T) {
	f := NewFragGradient([]Shape{
		{Ask{cores(1), 500, 0}, 0.5}, {Ask{cores(1), 1000, 0}, 0.25}, {Ask{cores(1), 2000, 0}, 0.125}, {Ask{Amounts: cores(1)}, 0.125},
	})
	n := withFree(1000, 700)
	if got, want := f.Fragmentation(n), 0.25*700+0.125*1700+0.125*1700; math.Abs(got-want) > 1e-9 {
		t.Errorf("fragmented %g, want %g", got, want)
	}
	// 500 into the 700: 1200 are free. The 200 are useless for shares too.
	_, device := f.Cost(n, &Ask{GPU: 500})
	inOther := 0.5*200 + 0.25*200 + 0.125*1200*2
	inWhole := 0.0 + 1200*0.25 + 0.125*1200*2 // 500 and 700: useless for whole ones
	if want := map[bool]int{true: 1, false: 0}[inOther < inWhole]; device != want {
		t.Errorf("takes device %d, want %d", device, want)
	}
	cost, _ := f.Cost(n, &Ask{GPU: 500})
	if want := inOther - 600; math.Abs(cost-want) > 1e-9 {
		t.Errorf("costs %g, want %g", cost, want)
	}
	n.Free = Amounts{} // without processors all is fragmented, whatever is asked for
	if got := f.Fragmentation(n); got != 1700 {
		t.Errorf("fragmented %g without processors", got)
	}
}

func TestFragmentationSeesModels(t *testing.T) {
	f := NewFragGradient([]Shape{{Ask{GPU: 1000, Models: 1 << 1}, 1}})
	n := withFree(1000, 1000, 1000)
	n.Models[2] = 1
	if got := f.Fragmentation(n); got != 2000 {
		t.Errorf("fragmented %g, want the two devices of another model", got)
	}
}

func TestPopular(t *testing.T) {
	shapes := Popular([]Ask{{GPU: 1}, {GPU: 2}, {GPU: 2}, {GPU: 3}})
	if len(shapes) != 3 || shapes[0] != (Shape{Ask{GPU: 2}, 0.5}) || shapes[1].Weight != 0.25 {
		t.Errorf("got %v", shapes)
	}
}
