package engine

import (
	"cmp"
	"slices"

	"github.com/gantry-os/gantry/model"
)

const (
	wholeDevice = 1000 // thousandths
	otherModel  = 63   // number of all models beyond the first 63
)

// devices are the graphics processors of one row.
type devices struct {
	free  []int32 // thousandths, never below 0
	owed  []int32 // thousandths that were taken though they were not free
	model []uint8 // numbers
}

// take takes an amount of a device, or with a negative amount gives it back.
func (g *devices) take(d int, amount int32) {
	left := g.free[d] - g.owed[d] - amount
	g.free[d], g.owed[d] = max(0, left), max(0, -left)
}

// gpuWant is a GPUWant in the engine's numbers: whole devices, or a share of one.
type gpuWant struct {
	whole  int32
	share  int32  // thousandths
	models uint64 // bit set, 0 for any
	names  []string
	at     int // index in the class's GPUs
}

func (w *gpuWant) total() int64 { return int64(w.whole)*wholeDevice + int64(w.share) }

// deviceTake is what is taken of one device.
type deviceTake struct {
	device int32
	amount int32
	want   int // index in the class's GPUs
}

// stock is what a row has of one custom resource.
type stock struct {
	free  model.Units
	items []string // when they are told apart
	taken []int32  // of items: by how many
	left  int      // items that nobody has
}

// has reports whether w is free.
func (s *stock) has(w *customWant) bool {
	return s != nil && s.free >= w.amount && (len(s.items) == 0 || s.left >= w.items)
}

// take takes an item n times; negative gives it back.
func (s *stock) take(item string, n int32) {
	i := slices.Index(s.items, item)
	if i < 0 {
		return
	}
	was := s.taken[i] > 0
	s.taken[i] += n
	if is := s.taken[i] > 0; is && !was {
		s.left--
	} else if was && !is {
		s.left++
	}
}

func (e *Engine) modelNumber(name string) uint8 {
	n, ok := e.models[name]
	if !ok {
		n = uint8(min(len(e.models), otherModel))
		e.models[name] = n
	}
	return n
}

// wantGPUs fills in what c asks of devices.
func (c *Class) wantGPUs(e *Engine) {
	for i, g := range c.GPUs {
		w := gpuWant{names: g.Models, at: i}
		if g.Amount >= wholeDevice {
			w.whole = int32((g.Amount + wholeDevice - 1) / wholeDevice)
		} else {
			w.share = int32(g.Amount)
		}
		for _, m := range g.Models {
			w.models |= 1 << e.modelNumber(m)
		}
		if w.total() > 0 {
			c.gpus = append(c.gpus, w)
		}
	}
	slices.SortStableFunc(c.gpus, func(a, b gpuWant) int { return cmp.Compare(b.total(), a.total()) })
}

func (e *Engine) accepts(w *gpuWant, r int32, d int) bool {
	m := e.gpu[r].model[d]
	if w.models == 0 {
		return true
	}
	if w.models&(1<<m) == 0 {
		return false
	}
	return m != otherModel || slices.Contains(w.names, e.info[r].GPUs[d].Model)
}

// equip makes a row's devices and custom resources what its node says, less what is held of them.
func (e *Engine) equip(r int32) {
	n := &e.info[r]
	g := devices{}
	if len(n.GPUs) > 0 {
		g.free, g.owed, g.model = make([]int32, len(n.GPUs)), make([]int32, len(n.GPUs)), make([]uint8, len(n.GPUs))
		for d := range n.GPUs {
			g.free[d], g.model[d] = wholeDevice, e.modelNumber(n.GPUs[d].Model)
		}
	}
	e.gpu[r] = g
	e.custom[r] = nil
	if len(n.Custom) > 0 {
		e.custom[r] = make(map[string]*stock, len(n.Custom))
		for name, c := range n.Custom {
			e.custom[r][name] = &stock{free: c.Total(), items: c.Items, taken: make([]int32, len(c.Items)), left: len(c.Items)}
		}
	}
	for h := e.first[r]; h != none; h = e.at(h).next {
		e.takeExtras(r, e.at(h), 1)
	}
	for _, l := range e.loans {
		if l.row == r {
			e.takeShares(r, l.gpus, 1)
		}
	}
}

// takeExtras takes, or with -1 gives back, the devices and custom resources of a hold.
func (e *Engine) takeExtras(r int32, h *hold, sign int32) {
	if h.extra != nil {
		e.takeShares(r, h.extra.gpus, sign)
	}
	for _, w := range h.class.custom {
		s := e.custom[r][w.name]
		if s == nil {
			continue
		}
		s.free -= model.Units(sign) * w.amount
		if h.extra == nil {
			continue
		}
		for _, item := range h.extra.items[w.name] {
			s.take(item, sign)
		}
	}
}

func (e *Engine) takeShares(r int32, shares []model.GPUShare, sign int32) {
	for _, g := range shares {
		for d := range e.info[r].GPUs {
			if e.info[r].GPUs[d].ID == g.ID {
				e.gpu[r].take(d, sign*int32(g.Share))
				break
			}
		}
	}
}

// devicesFit reports whether a row has the devices for one more instance of c.
func (e *Engine) devicesFit(c *Class, r int32) bool {
	if b := e.booked[r]; b != nil && !e.devicesSpare(c, r, b) {
		return false
	}
	if len(c.gpus) > 1 {
		_, ok := e.chooseMany(c, r)
		return ok
	}
	w := &c.gpus[0]
	found := int32(0)
	for d, free := range e.gpu[r].free {
		if w.whole == 0 {
			if free >= w.share && e.accepts(w, r, d) {
				return true
			}
		} else if free == wholeDevice && e.accepts(w, r, d) {
			if found++; found == w.whole {
				return true
			}
		}
	}
	return false
}

// choose picks the devices for one more instance of c on a row where it fits. A single share goes to the device that
// the policy names, or to the fullest that has room.
func (e *Engine) choose(c *Class, r int32, named int) []deviceTake {
	if len(c.gpus) > 1 {
		takes, _ := e.chooseMany(c, r)
		return takes
	}
	w, out := &c.gpus[0], e.choice[:0]
	g := &e.gpu[r]
	if w.whole == 0 {
		best := -1
		for d, free := range g.free {
			if free >= w.share && e.accepts(w, r, d) && (best < 0 || d == named || best != named && free < g.free[best]) {
				best = d
			}
		}
		out = append(out, deviceTake{int32(best), w.share, w.at})
	}
	for d, free := range g.free {
		if int32(len(out)) < w.whole && free == wholeDevice && e.accepts(w, r, d) {
			out = append(out, deviceTake{int32(d), wholeDevice, w.at})
		}
	}
	e.choice = out
	return out
}

// maxSearch bounds the steps of a search for devices.
const maxSearch = 20_000

// chooseMany picks devices for several wants. Shares may have to be tried in several ways; the first is the fullest device
// that has room.
func (e *Engine) chooseMany(c *Class, r int32) ([]deviceTake, bool) {
	free := slices.Clone(e.gpu[r].free)
	var out []deviceTake
	steps := 0
	var place func(n int, left int32) bool
	place = func(n int, left int32) bool {
		if n == len(c.gpus) {
			return true
		}
		w := &c.gpus[n]
		amount, next, rest := w.share, n+1, int32(0)
		if w.whole > 0 {
			if left == 0 {
				left = w.whole
			}
			if amount = wholeDevice; left > 1 {
				next, rest = n, left-1
			}
		}
		var order []int
		for d := range free {
			if free[d] >= amount && e.accepts(w, r, d) && !slices.ContainsFunc(order, func(o int) bool { return free[o] == free[d] && e.gpu[r].model[o] == e.gpu[r].model[d] }) {
				order = append(order, d)
			}
		}
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(free[a], free[b]) })
		for _, d := range order {
			if steps++; steps > maxSearch {
				return false
			}
			free[d] -= amount
			out = append(out, deviceTake{int32(d), amount, w.at})
			if place(next, rest) {
				return true
			}
			free[d] += amount
			out = out[:len(out)-1]
		}
		return false
	}
	ok := place(0, 0)
	return out, ok
}

// deal writes down what was chosen, in the order of the containers that want it: the agent deals it out to them in that
// order. So a device may be named twice, when another one's turn is in between.
func (e *Engine) deal(r int32, takes []deviceTake) []model.GPUShare {
	slices.SortStableFunc(takes, func(a, b deviceTake) int { return cmp.Compare(a.want, b.want) })
	out := make([]model.GPUShare, 0, len(takes))
	for _, t := range takes {
		id := e.info[r].GPUs[t.device].ID
		if n := len(out) - 1; n >= 0 && out[n].ID == id {
			out[n].Share += model.GPU(t.amount)
		} else {
			out = append(out, model.GPUShare{ID: id, Share: model.GPU(t.amount)})
		}
	}
	return out
}

// customFits reports whether a row has the custom resources for one more instance of c.
func (e *Engine) customFits(c *Class, r int32) bool {
	for i := range c.custom {
		if !e.custom[r][c.custom[i].name].has(&c.custom[i]) {
			return false
		}
	}
	return true
}

// pickItems picks items of the custom resources that are told apart.
func (e *Engine) pickItems(c *Class, r int32) map[string][]string {
	var out map[string][]string
	for _, w := range c.custom {
		s := e.custom[r][w.name]
		if len(s.items) == 0 {
			continue
		}
		if out == nil {
			out = map[string][]string{}
		}
		for n := 0; n < len(s.items) && len(out[w.name]) < w.items; n++ {
			if s.taken[n] == 0 {
				out[w.name] = append(out[w.name], s.items[n])
			}
		}
	}
	return out
}
