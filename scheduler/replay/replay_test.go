package replay

import (
	"context"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/gantry-os/gantry/scheduler/policy"
)

// small returns a cluster in which machines differ, and a workload of few shapes as real ones have.
func small(seed uint64) (*Cluster, []Pod) {
	rng := rand.New(rand.NewPCG(seed, 9))
	var nodes []policy.Node
	for range 60 {
		gpus := []int{8, 8, 8, 2, 4, 0}[rng.IntN(6)]
		n := policy.Node{Total: policy.Amounts{CPU: 96000, Memory: 384 << 30}, GPUs: make([]int32, gpus), Models: make([]uint8, gpus)}
		n.Free = n.Total
		model := uint8(rng.IntN(2))
		for i := range n.GPUs {
			n.GPUs[i], n.Models[i] = policy.Whole, model
		}
		nodes = append(nodes, n)
	}
	var pods []Pod
	ask := func(times int, cores float64, gib int64, gpu int32, models uint64) {
		for range times {
			a := policy.Ask{Amounts: policy.Amounts{CPU: int64(cores * 1000), Memory: gib << 30}, GPU: gpu, Models: models}
			start := rng.Int64N(10000)
			pods = append(pods, Pod{Ask: a, Start: start, End: start + rng.Int64N(20000), Timed: true})
		}
	}
	ask(40, 12.5, 56, 0, 0)
	ask(20, 30, 48, 0, 0)
	ask(90, 11.3, 48, 1000, 0)
	ask(10, 8, 16, 1000, 1<<1)
	ask(50, 3, 6, 810, 0)
	ask(40, 11, 47, 470, 0)
	ask(30, 6, 16, 320, 0)
	ask(6, 64, 256, 8000, 0)
	ask(6, 16, 64, 2000, 0)
	return NewCluster(nodes, pods), pods
}

func none(float64) {}

// witness is a Scan whose every answer is checked against the nodes as they are by its own account.
type witness struct {
	*Scan
	t     *testing.T
	nodes []policy.Node
	on    map[int]placed
}

func newWitness(t *testing.T, c *Cluster, p policy.Policy) *witness {
	return &witness{NewScan(c.nodes, p), t, NewScan(c.nodes, p).nodes, map[int]placed{}}
}

func (w *witness) Place(a policy.Ask, id int) (int, bool) {
	best, cheapest := -1, 0.0
	for i := range w.nodes {
		if !a.Fits(&w.nodes[i]) {
			continue
		}
		if _, random := w.policy.(*policy.Random); random {
			best = i
		} else if cost, _ := w.policy.Cost(&w.nodes[i], &a); best < 0 || cost < cheapest {
			best, cheapest = i, cost
		}
	}
	node, ok := w.Scan.Place(a, id)
	switch {
	case ok != (best >= 0):
		w.t.Fatalf("%+v was placed: %v, though the best node is %d", a, ok, best)
	case !ok:
		return node, ok
	}
	at := w.Scan.placed[id]
	if !a.Fits(&w.nodes[node]) {
		w.t.Fatalf("%+v does not fit on node %d: %+v", a, node, w.nodes[node])
	}
	w.nodes[node].Take(&a, at.devices)
	w.on[id] = at
	for _, free := range w.nodes[node].GPUs {
		if free < 0 {
			w.t.Fatalf("a device of node %d was given twice: %+v", node, w.nodes[node])
		}
	}
	return node, ok
}

func (w *witness) End(id int) {
	w.Scan.End(id)
	p := w.on[id]
	w.nodes[p.node].Give(&p.ask, p.devices)
}

// No policy overcommits a node, and something is refused only when it fits nowhere; whether nothing ends or much does.
func TestNothingIsOvercommitted(t *testing.T) {
	c, pods := small(1)
	for _, name := range Policies() {
		for _, method := range []string{MethodOverload, MethodArrivals} {
			t.Run(name+"-"+method, func(t *testing.T) {
				p, err := NewPolicy(name, c, pods, 1)
				if err != nil {
					t.Fatal(err)
				}
				w := newWitness(t, c, p)
				if method == MethodOverload {
					_, err = Overload(context.Background(), w, c, pods, 1, none)
				} else {
					_, err = Arrivals(context.Background(), w, c, pods, none)
				}
				if err != nil {
					t.Fatal(err)
				}
				for i := range w.nodes {
					if !reflect.DeepEqual(w.nodes[i], *w.Node(i)) {
						t.Fatalf("node %d has %+v free, not %+v", i, *w.Node(i), w.nodes[i])
					}
				}
			})
		}
	}
}

// Costs that are kept choose the same nodes as costs that are computed for each pod anew.
func TestScanKeepsTheRightCosts(t *testing.T) {
	c, pods := small(2)
	for _, p := range []policy.Policy{policy.Spread{}, policy.Balanced{}, &policy.BestFit{Largest: policy.LargestOf(c.nodes)}} {
		s := NewScan(c.nodes, p)
		for i := range pods {
			want, least := -1, math.Inf(1)
			for n := range s.nodes {
				if pods[i].Ask.Fits(&s.nodes[n]) {
					if cost, _ := p.Cost(&s.nodes[n], &pods[i].Ask); cost < least {
						want, least = n, cost
					}
				}
			}
			if got, ok := s.Place(pods[i].Ask, i); ok && got != want || ok != (want >= 0) {
				t.Fatalf("%s: pod %d goes to %d (%v), want %d", p.Name(), i, got, ok, want)
			}
			if i%3 == 0 && want >= 0 {
				s.End(i)
			}
		}
	}
}

func TestSameSeedSameResult(t *testing.T) {
	c, pods := small(3)
	for _, name := range Policies() {
		var all [3]*Result
		for i, seed := range []uint64{5, 5, 6} {
			var err error
			if all[i], err = Simulate(context.Background(), name, c, pods, Options{Seed: seed}); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(all[0], all[1]) || reflect.DeepEqual(all[0], all[2]) {
			t.Errorf("%s: what comes out does not depend on the seed alone", name)
		}
	}
}

// Pack leaves fewest devices unused, and without devices the least CPU.
func TestPackPacksBest(t *testing.T) {
	mean := func(name string, c *Cluster, pods []Pod) (sum float64) {
		for seed := range uint64(5) {
			r, err := Simulate(context.Background(), name, c, pods, Options{Seed: seed})
			if err != nil {
				t.Fatal(err)
			}
			if last := r.Last(); c.ByGPU() {
				sum += last.GPU / 5
			} else {
				sum += last.CPU / 5
			}
		}
		return sum
	}
	c, pods := small(4)
	plain, plainPods := c.WithoutGPUs(pods)
	pack, packPlain := mean("pack", c, pods), mean("pack", plain, plainPods)
	for _, name := range Policies() {
		if name == "pack" {
			continue
		}
		if other := mean(name, c, pods); other > pack {
			t.Errorf("%s allocates %.2f %% of the devices, pack %.2f %%", name, other, pack)
		}
		if other := mean(name, plain, plainPods); other > packPlain {
			t.Errorf("%s allocates %.2f %% of the CPU, pack %.2f %%", name, other, packPlain)
		}
	}
}

// Overload ends when 30% more is asked for than there is, with a point for each percent.
func TestOverloadDemand(t *testing.T) {
	c, pods := small(5)
	r, err := Simulate(context.Background(), "bestfit", c, pods, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if last := r.Last().At; last < 130 || last > 135 || len(r.Points) < 100 || len(r.Points) > 131 {
		t.Errorf("ends at %g %% with %d points", last, len(r.Points))
	}
	for i, p := range r.Points[1:] {
		if p.GPU < r.Points[i].GPU || p.GPU > min(p.At, 100)+1e-9 || p.CPU > 100 || p.Fragmented > 100-p.GPU+1e-9 {
			t.Fatalf("point %d is %+v", i, p)
		}
	}
}

// A node for two at a time, by hand: the third waits for the first to end, and then runs as long as it did.
func TestArrivalsByHand(t *testing.T) {
	n := policy.Node{Total: policy.Amounts{CPU: 2000, Memory: 2 << 30}}
	n.Free = n.Total
	pod := func(start, end int64) Pod {
		return Pod{Ask: policy.Ask{Amounts: policy.Amounts{CPU: 1000, Memory: 1 << 30}}, Start: start, End: end, Timed: true}
	}
	pods := []Pod{pod(240, 480), pod(0, 100), pod(0, 200), pod(50, 90), pod(60, Forever)}
	c := NewCluster([]policy.Node{n}, pods)
	r, err := Simulate(context.Background(), "pack", c, pods, Options{Method: MethodArrivals})
	if err != nil {
		t.Fatal(err)
	}
	if r.Asked != 5 || r.Placed != 5 || r.Waited != 2 || r.Waiting != 0 {
		t.Errorf("got %+v", r)
	}
	// The third runs from 100 to 140, the last from 140 on; the second ends at 200, the one of 240 takes its place.
	for at, want := range map[float64]float64{0: 100, 99: 100, 139: 100, 199: 100, 200: 50, 239: 50, 240: 100} {
		if p := r.Points[int(at)]; p.At != at || p.CPU != want {
			t.Errorf("at %g: %+v, want %g %% of the CPU", at, p, want)
		}
	}
}

func TestRefusedLists(t *testing.T) {
	c, pods := small(6)
	untimed := []Pod{pods[0], {Ask: pods[0].Ask}}
	for want, try := range map[string]func() error{
		"pod 2 of the workload has no creation_time": func() error {
			_, err := Simulate(context.Background(), "pack", NewCluster(c.nodes, untimed), untimed, Options{Method: MethodArrivals})
			return err
		},
		"the pods ask for nothing": func() error {
			_, err := Simulate(context.Background(), "pack", c, []Pod{{}}, Options{})
			return err
		},
		"the nodes have no CPU": func() error {
			_, err := Simulate(context.Background(), "pack", NewCluster([]policy.Node{{}}, pods), pods, Options{})
			return err
		},
		`there is no policy "best"`: func() error {
			_, err := Simulate(context.Background(), "best", c, pods, Options{})
			return err
		},
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestRunsEndWithTheContext(t *testing.T) {
	c, pods := small(7)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, method := range []string{MethodOverload, MethodArrivals} {
		if _, err := Simulate(ctx, "spread", c, pods, Options{Method: method}); err != context.Canceled {
			t.Errorf("%s: got %v", method, err)
		}
	}
}
