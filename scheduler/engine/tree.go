package engine

import (
	"cmp"
	"slices"

	"github.com/gantry-os/gantry/scheduler/policy"
)

// window is how many nodes that fit are compared for a class that comes once.
const window = 64

// tree finds nodes that may fit without looking at all: each of its nodes has the most that is free of each resource on
// any row below it. Rows are its leaves, those without devices first, so that work that needs none meets them first.
type tree struct {
	seen  uint64
	size  int      // leaves, a power of two
	leaf  []int32  // by row
	row   []int32  // by leaf
	most  []summit // by tree node; 1 is the root, leaves begin at size
	stamp []uint64 // by row: when it was last brought up to date
	round uint64
}

type summit struct {
	policy.Amounts
	share int32 // of one device
	whole int32 // devices
}

func (s *summit) may(c *Class) bool {
	return c.want.CPU <= s.CPU && c.want.Memory <= s.Memory && c.want.Disk <= s.Disk &&
		(len(c.gpus) == 0 || c.gpus[0].share <= s.share && c.gpus[0].whole <= s.whole)
}

func (e *Engine) summitOf(r int32) summit {
	if !e.known[r] || e.info[r].Shut != "" {
		return summit{Amounts: policy.Amounts{CPU: -1, Memory: -1, Disk: -1}}
	}
	s := summit{Amounts: e.free[r]}
	if b := e.booked[r]; b != nil {
		for n := range b.list {
			s.Amounts = plus(s.Amounts, b.list[n].unused)
		}
	}
	for _, free := range e.gpu[r].free {
		s.share = max(s.share, free)
		if free == wholeDevice {
			s.whole++
		}
	}
	return s
}

// catchUpTree brings the tree up to the end of the log.
func (e *Engine) catchUpTree() *tree {
	t := &e.tree
	rows, few := e.since(t.seen)
	t.round++
	if !few || len(t.leaf) != len(e.info) {
		t.build(e)
	} else {
		for _, r := range rows {
			if t.stamp[r] != t.round {
				t.stamp[r] = t.round
				t.set(int(t.leaf[r])+t.size, e.summitOf(r))
			}
		}
	}
	t.seen = e.now()
	return t
}

func (t *tree) build(e *Engine) {
	n := len(e.info)
	t.size = 1
	for t.size < n {
		t.size *= 2
	}
	t.row, t.leaf, t.stamp = make([]int32, n), make([]int32, n), make([]uint64, n)
	for r := range t.row {
		t.row[r] = int32(r)
	}
	slices.SortStableFunc(t.row, func(a, b int32) int { return cmp.Compare(len(e.gpu[a].free), len(e.gpu[b].free)) })
	t.most = make([]summit, 2*t.size)
	for i := range t.most {
		t.most[i].CPU, t.most[i].Memory, t.most[i].Disk = -1, -1, -1
	}
	for l, r := range t.row {
		t.leaf[r] = int32(l)
		t.most[t.size+l] = e.summitOf(r)
	}
	for i := t.size - 1; i > 0; i-- {
		t.most[i] = higher(&t.most[2*i], &t.most[2*i+1])
	}
}

func higher(a, b *summit) summit {
	return summit{policy.Amounts{CPU: max(a.CPU, b.CPU), Memory: max(a.Memory, b.Memory), Disk: max(a.Disk, b.Disk)},
		max(a.share, b.share), max(a.whole, b.whole)}
}

func (t *tree) set(i int, s summit) {
	t.most[i] = s
	for i /= 2; i > 0; i /= 2 {
		s := higher(&t.most[2*i], &t.most[2*i+1])
		if s == t.most[i] {
			return
		}
		t.most[i] = s
	}
}

// search returns the best row of the first few that fit, beginning at a leaf and going round, or none. Where there are domains, only
// rows in one of them count.
func (t *tree) search(e *Engine, c *Class, from int, domains []int32) int32 {
	s := search{e: e, c: c, domains: domains, best: none}
	if len(t.row) == 0 {
		return none
	}
	s.walk(t, 1, 0, t.size, from, t.size)
	if s.found < window && from > 0 {
		s.walk(t, 1, 0, t.size, 0, from)
	}
	return s.best
}

type search struct {
	e       *Engine
	c       *Class
	domains []int32
	best    int32
	cost    float64
	found   int
}

// walk looks at the leaves from first up to end below tree node i, which has those from lo up to hi.
func (s *search) walk(t *tree, i, lo, hi, first, end int) {
	if s.found >= window || hi <= first || end <= lo || !t.most[i].may(s.c) {
		return
	}
	if i < t.size {
		mid := (lo + hi) / 2
		s.walk(t, 2*i, lo, mid, first, end)
		s.walk(t, 2*i+1, mid, hi, first, end)
		return
	}
	if lo >= len(t.row) {
		return
	}
	r := t.row[lo]
	if s.domains != nil && !slices.Contains(s.domains, s.c.even.attr.value[r]) {
		return
	}
	if !s.e.able(s.c, r) || !s.e.fits(s.c, r) {
		return
	}
	s.found++
	if cost, _ := s.e.cost(s.c, r); s.best == none || cost < s.cost {
		s.best, s.cost = r, cost
	}
}
