package policy

import (
	"math"
	"slices"
	"testing"
)

// packing returns a Pack that has learned asks, each as often as it is given.
func packing(asks ...Ask) *Pack {
	p := NewPack()
	for range 200 {
		for i := range asks {
			p.Learn(&asks[i], 1)
		}
	}
	return p
}

var (
	plain = Ask{Amounts: cores(12)}
	train = Ask{Amounts: cores(10), GPU: Whole}
	eight = Ask{Amounts: cores(64), GPU: 8 * Whole}
	infer = Ask{Amounts: cores(4), GPU: 300}
)

// The processors beside idle devices are kept for those who ask for devices.
func TestPackKeepsProcessorsForDevices(t *testing.T) {
	p := packing(plain, train)
	idle, used := withFree(1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000), withFree(0, 0, 0, 0, 0, 0, 0, 0)
	prefers(t, p, plain, used, idle)
	without := withFree()
	prefers(t, p, plain, without, idle)
	many := withFree(1000, 1000) // has more processors than its devices need
	prefers(t, p, plain, many, idle)
}

// A share goes where something fits beside it, or exactly.
func TestPackFillsDevices(t *testing.T) {
	p := packing(infer, train)
	n := withFree(1000, 300, 500, 600)
	if _, device := p.Cost(n, &infer); device != 1 {
		t.Errorf("takes device %d", device)
	}
	n = withFree(1000, 400, 600, 1000)
	if _, device := p.Cost(n, &infer); device != 2 { // 600 is two of them, 400 one and a rest
		t.Errorf("takes device %d", device)
	}
}

// Nodes whose devices are all idle are kept for those who ask for all of them.
func TestPackKeepsWholeNodes(t *testing.T) {
	p := packing(train, train, train, eight)
	used := withFree(1000, 1000, 1000, 1000, 0, 0, 0, 0)
	used.Free = cores(56)
	prefers(t, p, train, used, withFree(1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000))
}

// Who takes any model does not take what others insist on.
func TestPackKeepsScarceModels(t *testing.T) {
	choosy := train
	choosy.Models = 1 << 1
	p := packing(train, choosy)
	scarce := withFree(1000, 1000, 1000, 1000)
	for i := range scarce.Models {
		scarce.Models[i] = 1
	}
	prefers(t, p, train, withFree(1000, 1000, 1000, 1000), scarce)
}

// Rests that nothing fits into are avoided, without any devices too.
func TestPackAvoidsUselessRests(t *testing.T) {
	p := packing(plain, Ask{Amounts: cores(7)})
	exact, rest := withFree(), withFree()
	exact.Free, rest.Free = cores(19), cores(18)
	prefers(t, p, plain, exact, rest)
}

// Of what is equally good the fuller node is taken, also before anything was learned.
func TestPackFillsFullerNodes(t *testing.T) {
	half := withFree()
	half.Free = cores(48)
	prefers(t, NewPack(), plain, half, withFree())
}

// The order of devices does not matter, and a cost is the same the second time.
func TestPackCostIsOfTheState(t *testing.T) {
	p := packing(plain, train, infer, eight)
	one, other := withFree(1000, 300, 0, 700), withFree(700, 0, 1000, 300)
	for _, a := range []Ask{plain, train, infer} {
		x, _ := p.Cost(one, &a)
		y, _ := p.Cost(other, &a)
		again, _ := packing(plain, train, infer, eight).Cost(one, &a)
		if x != y || x != again {
			t.Errorf("%+v costs %g, %g and %g", a, x, y, again)
		}
	}
}

func TestCostAllocatesNothing(t *testing.T) {
	asks := mixed(64, 5)
	policies := []Policy{packing(asks...), Spread{}, Balanced{}, &BestFit{}, &DotProduct{}, NewFragGradient(Popular(asks))}
	for _, p := range policies {
		n := machine(96, 8)
		i := 0
		if got := testing.AllocsPerRun(200, func() {
			n.Free.CPU = n.Total.CPU - int64(i)*130 // states that were not met before
			p.Cost(&n, &asks[i%len(asks)])
			i++
		}); got != 0 {
			t.Errorf("%s allocates %g times", p.Name(), got)
		}
	}
}

// An epoch makes whoever keeps costs compute them anew: it ends while the picture becomes clearer, and when it changes.
func TestEpochsAreRare(t *testing.T) {
	p := NewPack()
	learn := func(asks []Ask) uint64 {
		before := p.Epoch()
		for i := range asks {
			p.Learn(&asks[i], 1)
		}
		return p.Epoch() - before
	}
	if got := learn(mixed(window, 1)); got > 20 {
		t.Errorf("%d epochs while the window filled up", got)
	}
	if got := learn(mixed(100_000, 2)); got != 0 {
		t.Errorf("%d epochs although what is asked for stayed the same", got)
	}
	if got := learn(slices.Repeat([]Ask{plain}, window)); got == 0 || got > 4 {
		t.Errorf("%d epochs when all asked for something else", got)
	}
}

// One large app is not all that is remembered.
func TestLargeAppDoesNotDrownOthers(t *testing.T) {
	p := packing(train, infer)
	p.Learn(&plain, 1_000_000)
	var rest float64
	for _, s := range p.recent.shapes() {
		if s.GPU > 0 {
			rest += s.Weight
		}
	}
	if rest < 0.9 {
		t.Errorf("what others ask for is %g of what is remembered", rest)
	}
}

// The window is exact: what has left it has no say.
func TestRecentForgets(t *testing.T) {
	var r recent
	r.add(&train, 1000)
	for range 10 * window {
		r.add(&infer, 1)
		r.add(&plain, 1)
	}
	sum := 0.0
	for _, s := range r.shapes() {
		if s.Ask == train {
			t.Errorf("%+v is remembered", s)
		}
		sum += s.Weight
	}
	if math.Abs(sum-1) > 1e-9 || r.total != window || len(r.runs) > 3*window {
		t.Errorf("weights sum up to %g, %d instances in %d runs", sum, r.total, len(r.runs))
	}
}

// Each ask is drawn as often as it comes, and one for several devices once for each.
func TestDrawsAreInProportion(t *testing.T) {
	var f futures
	rare := Shape{train, 0.01}
	f.draw([]Shape{{eight, 0.04}, rare, {infer, 0.95}})
	count := map[Ask]float64{}
	for _, draws := range f.draws {
		for _, d := range draws {
			count[f.shapes[d]] += 1 / float64(futureCount*futureDraws)
		}
	}
	all := 8*0.04 + 0.01 + 0.95
	for a, want := range map[Ask]float64{eight: 8 * 0.04 / all, train: 0.01 / all, infer: 0.95 / all} {
		if math.Abs(count[a]-want) > 0.002 {
			t.Errorf("%+v is %g of the draws, want %g", a, count[a], want)
		}
	}
}
