package engine

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
)

// contest is roles that compete for one large node, so that nothing but fairness decides who gets it.
type contest struct {
	have  map[string]float64
	roles []model.Role
	work  []contender
}

// contender is the work of one role.
type contender struct {
	role  model.RoleID
	need  map[string]float64 // cores, GiB and units of one instance
	count int
	lost  bool // it fits nowhere
}

func (c *contest) weight(id model.RoleID, resource string) float64 {
	for _, r := range c.roles {
		if r.ID == id {
			if w := r.Weights[resource]; w > 0 {
				return w
			}
			if r.Weight > 0 {
				return r.Weight
			}
		}
	}
	return 1
}

// share returns the dominant share of what the work that counts has been given.
func (c *contest) share(id model.RoleID, given []float64, counts func(model.RoleID) bool) float64 {
	use := map[string]float64{}
	for i, w := range c.work {
		for resource, n := range w.need {
			if counts(w.role) {
				use[resource] += n * given[i]
			}
		}
	}
	share := 0.0
	for resource, n := range use {
		weight := 1.0
		if id != "" {
			weight = c.weight(id, resource)
		}
		share = max(share, n/c.have[resource]/weight)
	}
	return share
}

// ideal fills the cluster a small part of an instance at a time, always for whom it is fair, until nothing goes in any
// more, and returns how many instances each work has then.
func (c *contest) ideal(step float64) []float64 {
	given := make([]float64, len(c.work))
	left := map[string]float64{}
	for resource, n := range c.have {
		left[resource] = n
	}
	can := func(i int) bool {
		w := c.work[i]
		if w.lost || given[i]+step > float64(w.count)+1e-9 {
			return false
		}
		for resource, n := range w.need {
			if n*step > left[resource]+1e-9 {
				return false
			}
		}
		return true
	}
	for {
		i := c.turn("/", given, can)
		if i < 0 {
			return given
		}
		given[i] += step
		for resource, n := range c.work[i].need {
			left[resource] -= n * step
		}
	}
}

// turn returns whose turn it is at a role: its own work's, or that of whatever is below one of its children.
func (c *contest) turn(at model.RoleID, given []float64, can func(int) bool) int {
	best, least := -1, math.Inf(1)
	children := map[model.RoleID]bool{}
	for i, w := range c.work {
		switch {
		case w.role == at && can(i):
			if s := c.share("", given, func(r model.RoleID) bool { return r == at }); s < least {
				best, least = i, s
			}
		case w.role != at && w.role.Within(at) && can(i):
			child := w.role
			for child.Parent() != at {
				child = child.Parent()
			}
			children[child] = true
		}
	}
	for _, child := range slices.Sorted(maps.Keys(children)) {
		s := c.share(child, given, func(r model.RoleID) bool { return r.Within(child) })
		if s < least {
			best, least = c.turn(child, given, can), s
		}
	}
	return best
}

// play lets the engine hand out places, at most limit at a time, and returns how many instances each work got.
func (c *contest) play(limit int) ([]float64, []Placement) {
	e := New(Config{})
	e.SetNode(Node{ID: "n", OCI: model.Ability{OK: true}, Capacity: model.Resources{
		CPUs: model.CPU(1000 * c.have["cpus"]), Memory: model.Bytes(c.have["memory"]) * model.GiB,
	}, Custom: map[string]model.Custom{"seat": {Amount: model.Units(1000 * c.have["seat"])}}})
	e.SetRoles(c.roles)
	var wants []*Want
	for i, w := range c.work {
		a := Ask{
			App: model.AppID(fmt.Sprintf("/w%d", i)), Role: w.role,
			Need: model.Resources{CPUs: model.CPU(1000 * w.need["cpus"]), Memory: model.Bytes(w.need["memory"]) * model.GiB},
		}
		if w.need["seat"] > 0 {
			a.Custom = map[string]model.Units{"seat": model.Units(1000 * w.need["seat"])}
		}
		if w.lost {
			a.Pool = "nowhere"
		}
		wants = append(wants, &Want{Class: e.Class(a), IDs: names(fmt.Sprint("w", i), w.count)})
	}
	t := e.Begin(wants)
	defer t.End()
	var out []Placement
	for {
		had := len(out)
		if out = t.Place(limit, out); len(out) == had {
			break
		}
	}
	got := make([]float64, len(wants))
	for i, w := range wants {
		got[i] = float64(w.Placed)
	}
	return got, out
}

func randomContest(rnd *rand.Rand) *contest {
	c := &contest{have: map[string]float64{"cpus": float64(100 + rnd.IntN(200)), "memory": float64(200 + rnd.IntN(400)), "seat": float64(50 + rnd.IntN(100))}}
	add := func(id model.RoleID, works bool) {
		r := model.Role{ID: id, Weight: float64(rnd.IntN(4))}
		if rnd.IntN(4) == 0 {
			r.Weights = map[string]float64{[]string{"cpus", "memory", "seat"}[rnd.IntN(3)]: float64(1 + rnd.IntN(3))}
		}
		c.roles = append(c.roles, r)
		if !works {
			return
		}
		w := contender{role: id, need: map[string]float64{"cpus": float64(rnd.IntN(4)), "memory": float64(1 + rnd.IntN(6))}, count: 1000}
		if rnd.IntN(3) == 0 {
			w.need["seat"] = float64(1 + rnd.IntN(3))
		}
		if rnd.IntN(4) == 0 {
			w.count = 1 + rnd.IntN(20)
		}
		w.lost = rnd.IntN(10) == 0
		c.work = append(c.work, w)
	}
	for i := range 2 + rnd.IntN(3) {
		top := model.RoleID(fmt.Sprintf("/r%d", i))
		add(top, rnd.IntN(3) > 0)
		for j := range rnd.IntN(4) {
			mid := model.RoleID(fmt.Sprintf("%s/m%d", top, j))
			add(mid, rnd.IntN(4) > 0)
			for k := range max(0, rnd.IntN(5)-2) {
				add(model.RoleID(fmt.Sprintf("%s/l%d", mid, k)), true)
			}
		}
	}
	return c
}

// Roles that compete for a full cluster get what handing it out one by one gives them, always to whom it is fair, whatever
// their weights, demands and place in the tree, and though some run out of work or fit nowhere.
func TestFairTurns(t *testing.T) {
	for seed := range uint64(100) {
		c := randomContest(rand.New(rand.NewPCG(seed, 2)))
		if got, _ := c.play(1 << 30); !slices.Equal(got, c.ideal(1)) {
			t.Fatalf("seed %d: got %v, fair are %v\n%+v", seed, got, c.ideal(1), c)
		}
	}
}

// Where one resource runs out, all end within one instance, of the largest, of the ideal share: what filling the cluster up
// in small parts of instances gives them.
func TestFairShares(t *testing.T) {
	const step = 1.0 / 16
	for seed := range uint64(30) {
		c := randomContest(rand.New(rand.NewPCG(seed, 2)))
		scarce := []string{"cpus", "memory", "seat"}[seed%3]
		for resource := range c.have {
			if resource != scarce {
				c.have[resource] *= 20
			}
		}
		if scarce == "seat" {
			for i := range c.work {
				c.work[i].need["seat"] = float64(1 + i%3)
			}
		}
		size := func(w contender) float64 {
			s := 0.0
			for resource, n := range w.need {
				s = max(s, n/c.have[resource])
			}
			return s
		}
		largest := size(slices.MaxFunc(c.work, func(a, b contender) int { return cmp.Compare(size(a), size(b)) }))
		want := c.ideal(step)
		got, _ := c.play(1 << 30)
		for i, w := range c.work {
			if off := math.Abs(got[i]-want[i]) * size(w) / largest; off > 1+2*step {
				t.Fatalf("seed %d: %s has %v instances, fair are %.2f: that is off by %.2f\n%+v", seed, w.role, got[i], want[i], off, c)
			}
		}
	}
}

// However small the parts in which a round is placed, every instance gets the place that it would get at once; also
// where classes come once and nodes are searched by the tree.
func TestPartsMakeNoDifference(t *testing.T) {
	for seed := range uint64(20) {
		c := randomContest(rand.New(rand.NewPCG(seed, 3)))
		_, all := c.play(1 << 30)
		for _, limit := range []int{1, 3, 64} {
			if _, got := c.play(limit); !reflect.DeepEqual(got, all) {
				t.Fatalf("seed %d: by %d at a time the outcome is another", seed, limit)
			}
		}
	}
	run := func(limit int) []Placement {
		e := fleet(3000)
		var wants []*Want
		for i := range 40 {
			a := Ask{App: model.AppID(fmt.Sprintf("/a%d", i)), Policy: []model.Policy{"pack", "spread"}[i%2], Need: model.Resources{CPUs: model.CPU(100 + i), Memory: model.GiB}}
			wants = append(wants, &Want{Class: e.Class(a), IDs: names(fmt.Sprint("a", i), 1+i*5)})
		}
		round := e.Begin(wants)
		defer round.End()
		var out []Placement
		for {
			had := len(out)
			if out = round.Place(limit, out); len(out) == had {
				return out
			}
		}
	}
	all := run(1 << 30)
	for _, limit := range []int{1, 7, 500} {
		if !reflect.DeepEqual(run(limit), all) {
			t.Fatalf("by %d at a time the outcome is another", limit)
		}
	}
}

func cores(n int) *model.CPU {
	c := model.CPU(1000 * n)
	return &c
}

// What is guaranteed goes first, whatever the weights, also below a role that has no guarantee itself; what is left is
// shared by weight.
func TestGuaranteesGoFirst(t *testing.T) {
	need := map[string]float64{"cpus": 1, "memory": 1}
	c := &contest{
		have: map[string]float64{"cpus": 100, "memory": 1000},
		roles: []model.Role{
			{ID: "/big", Weight: 1000},
			{ID: "/small", Weight: 0.001, Guarantee: model.Quota{CPUs: cores(30)}},
			{ID: "/group", Weight: 0.001},
			{ID: "/group/a", Weight: 0.001, Guarantee: model.Quota{CPUs: cores(20)}},
			{ID: "/group/b", Weight: 1000},
		},
		work: []contender{{"/big", need, 1000, false}, {"/small", need, 1000, false}, {"/group/a", need, 1000, false}, {"/group/b", need, 1000, false}},
	}
	got, _ := c.play(1 << 30)
	if got[1] < 30 || got[2] < 20 || got[0]+got[1]+got[2]+got[3] != 100 || got[0] < 48 {
		t.Errorf("got %v of 100; 30 of the second and 20 of the third are guaranteed, the first outweighs all", got)
	}
}

// A guarantee of what a role's work does not take gives it no turn before others: else it would be below it for ever.
func TestGuaranteeOfWhatIsNotAsked(t *testing.T) {
	need := map[string]float64{"cpus": 1, "memory": 1}
	gpus := model.GPU(4000)
	c := &contest{
		have:  map[string]float64{"cpus": 100, "memory": 1000},
		roles: []model.Role{{ID: "/a", Guarantee: model.Quota{CPUs: cores(10), GPUs: &gpus}}, {ID: "/b"}},
		work:  []contender{{"/a", need, 1000, false}, {"/b", need, 1000, false}},
	}
	if got, _ := c.play(1 << 30); got[0] != 50 || got[1] != 50 {
		t.Errorf("got %v, want half for each", got)
	}
}

// No limit is exceeded at any moment in any resource, though it is lowered below what is used, through whatever call
// places or lends.
func TestLimitsHold(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		e := New(Config{})
		for i := range 4 {
			n := Node{ID: model.NodeID(fmt.Sprint("n", i)), OCI: model.Ability{OK: true}, Capacity: model.Resources{CPUs: 8000, Memory: 32 * model.GiB, Disk: model.TiB}, Custom: map[string]model.Custom{"seat": {Amount: 8000}}}
			for d := range 4 {
				n.GPUs = append(n.GPUs, model.GPUDevice{ID: fmt.Sprint(d), Model: "T4"})
			}
			e.SetNode(n)
		}
		ids := []model.RoleID{"/", "/a", "/a/b", "/a/c", "/d"}
		var roles []model.Role
		limits := func() {
			roles = nil
			for _, id := range ids[1:] {
				r := model.Role{ID: id}
				memory, gpus, disk := model.Bytes(rnd.IntN(40))*model.GiB, model.GPU(rnd.IntN(6000)), model.Bytes(rnd.IntN(60))*model.GiB
				switch rnd.IntN(6) {
				case 0:
					r.Limit.CPUs = cores(rnd.IntN(10))
				case 1:
					r.Limit.Memory = &memory
				case 2:
					r.Limit.GPUs = &gpus
				case 3:
					r.Limit.Custom = map[string]model.Units{"seat": model.Units(rnd.IntN(10_000))}
				case 4:
					r.Limit.Disk = &disk
				}
				roles = append(roles, r)
			}
			e.SetRoles(roles)
		}
		limits()
		var classes []*Class
		for i := range 10 {
			classes = append(classes, e.Class(Ask{
				App: model.AppID(fmt.Sprint("/a", i)), Role: ids[rnd.IntN(len(ids))], Priority: rnd.IntN(3),
				Need:   model.Resources{CPUs: model.CPU(rnd.IntN(3000)), Memory: model.Bytes(rnd.IntN(8)) * model.GiB, Disk: model.Bytes(rnd.IntN(9)) * model.GiB},
				GPUs:   []GPUWant{{Amount: model.GPU(rnd.IntN(1000))}},
				Custom: map[string]model.Units{"seat": model.Units(rnd.IntN(2000))},
			}))
		}
		used := map[model.RoleID]vector{}
		note := func() {
			for _, id := range ids {
				used[id] = vector{}.add(e.roles.of(id).used)
			}
		}
		note()
		made := 0
		var waiting []model.InstanceID
		for range 80 {
			made++
			id, c := model.InstanceID(fmt.Sprint("i", made)), classes[rnd.IntN(len(classes))]
			node := model.NodeID(fmt.Sprint("n", rnd.IntN(4)))
			switch rnd.IntN(8) {
			case 0, 1:
				e.PlaceAll([]*Want{{Class: c, IDs: []model.InstanceID{id, id + "x"}}}, nil)
			case 2:
				e.PlaceOn(c, id, node)
			case 3:
				_ = e.Lend(Loan{ID: string(id), Node: node, Role: c.Role, Resources: c.Need, GPUs: []model.GPUShare{{ID: "1", Share: 300}}})
			case 4:
				if p, ok := e.Preempt(c, id, func(model.AppID) int { return 9 }); ok && p.Node != "" {
					waiting = append(waiting, id)
				}
			case 5:
				for _, id := range waiting {
					e.Settle(id)
				}
			case 6:
				for h := range e.all {
					if !e.at(h).waits {
						e.Release(e.at(h).id)
						break
					}
				}
			case 7:
				limits()
			}
			for _, r := range roles {
				now, was := &e.roles.of(r.ID).used, used[r.ID]
				each(&r.Limit, now, &was, func(name string, limit, now, was int64) bool {
					if now > limit && now > was {
						t.Errorf("seed %d: role %s uses %d of %d %s, after %d", seed, r.ID, now, limit, name, was)
					}
					return true
				})
			}
			note()
			if err := e.Audit(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// BenchmarkManyRoles is a hundred roles that compete for all there is.
func BenchmarkManyRoles(b *testing.B) {
	for b.Loop() {
		e := fleet(1000)
		var roles []model.Role
		var wants []*Want
		for i := range 100 {
			id := model.RoleID(fmt.Sprintf("/g%d/r%d", i%10, i))
			roles = append(roles, model.Role{ID: id, Weight: float64(1 + i%5)})
			c := e.Class(Ask{App: model.AppID(fmt.Sprintf("/a%d", i)), Role: id, Need: model.Resources{CPUs: model.CPU(500 + i), Memory: model.GiB}})
			wants = append(wants, &Want{Class: c, IDs: names(fmt.Sprint("a", i), 2000)})
		}
		slices.SortFunc(roles, func(a, b model.Role) int { return len(a.ID) - len(b.ID) })
		e.SetRoles(roles)
		start := time.Now()
		out := e.PlaceAll(wants, nil)
		b.ReportMetric(float64(len(out))/time.Since(start).Seconds(), "placements/s")
	}
}
