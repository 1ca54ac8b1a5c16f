package policy

import (
	"math/bits"
	"math/rand/v2"
	"sort"
)

// futures are sequences of asks that may come next.
type futures struct {
	shapes []Ask
	draws  [][]uint16 // by future, of shapes
	mean   Amounts    // of what is asked for
}

// How far futures look. More of anything costs time and gains little. Of a node with more room than the draws of a future
// take, what is left over is just as much more; so the draws suffice.
const (
	futureCount = 32
	futureDraws = 128 // of each future at most
	futureFails = 10  // draws without room that end a future
	futureStart = 4   // first draws of each, for which a node is looked at as it stands
)

// What counts how much, against a device that is left over.
const (
	nowWorth   = 0.1 // a device that is free and of no use to what comes first
	otherWorth = 0.1 // what one average ask would take of all but devices, left over
)

// draw makes new futures out of shapes with weights that sum up to 1. An ask for several devices comes once for each of
// them: it has few nodes to choose from, so it comes to these more often than to the average node. At each step the
// futures together draw in proportion: each draws from another stretch of the weights, and from one step to the next the
// places within the stretches move by the golden ratio, so that also the rare come as often as they should.
func (f *futures) draw(shapes []Shape) {
	f.shapes, f.mean = f.shapes[:0], Amounts{}
	upTo := make([]float64, len(shapes))
	sum := 0.0
	var cpu, memory, disk float64
	for i := range shapes {
		s := &shapes[i]
		f.shapes = append(f.shapes, s.Ask)
		sum += s.Weight * float64(max(1, s.GPU/Whole))
		upTo[i] = sum
		cpu, memory, disk = cpu+s.Weight*float64(s.CPU), memory+s.Weight*float64(s.Memory), disk+s.Weight*float64(s.Disk)
	}
	f.mean = Amounts{int64(cpu), int64(memory), int64(disk)}
	rng := rand.New(rand.NewPCG(1, 1)) // always the same, so that equal asks give equal placements
	if f.draws == nil {
		f.draws = make([][]uint16, futureCount)
	}
	for i := range f.draws {
		f.draws[i] = f.draws[i][:0]
	}
	const golden = 0.6180339887498949
	at := 0.0
	for range futureDraws {
		at += golden
		at -= float64(int(at))
		for i, stretch := range rng.Perm(futureCount) {
			x := (float64(stretch) + at) / futureCount * sum
			f.draws[i] = append(f.draws[i], uint16(min(sort.SearchFloat64s(upTo, x), len(shapes)-1)))
		}
	}
}

// waste returns what is left of s in the mean: in devices, and in average asks of the rest.
func (f *futures) waste(s *state) float64 {
	n := s.node
	start := room{models: n.Models, count: min(len(n.GPUs), MaxDevices)}
	start.free = Amounts{roundUp(s.free.CPU, s.grain.cpu) << s.grain.cpu, roundUp(s.free.Memory, s.grain.memory) << s.grain.memory,
		roundUp(s.free.Disk, s.grain.disk) << s.grain.disk}
	for i := range start.count {
		start.set(i, s.gpu(i))
	}
	var left Amounts
	var devices int64
	for _, draws := range f.draws {
		r := start
		f.play(&r, draws)
		left.CPU, left.Memory, left.Disk = left.CPU+r.free.CPU, left.Memory+r.free.Memory, left.Disk+r.free.Disk
		devices += int64(r.sum)
	}
	count := float64(max(len(f.draws), 1))
	return (float64(devices)/Whole + nowWorth*f.useless(&start) + otherWorth*f.worth(&left)) / count
}

// useless returns how many devices are free in r and of no use to what comes first, in the mean of that and summed up over
// the futures. It is what keeps whole nodes for those who ask for much: they come too rarely to count for more.
func (f *futures) useless(r *room) float64 {
	if r.sum == 0 {
		return 0
	}
	var sum int64
	for _, draws := range f.draws {
		for _, d := range draws[:futureStart] {
			sum += int64(r.useless(&f.shapes[d]))
		}
	}
	return float64(sum) / Whole / futureStart
}

// play lets the asks of one future take from r.
func (f *futures) play(r *room, draws []uint16) {
	fails := 0
	for _, d := range draws {
		if a := &f.shapes[d]; !r.take(a) {
			if fails++; fails == futureFails {
				return
			}
		}
	}
}

// worth returns how many average asks left is for, summed up over its resources: the price of each is the same on all
// nodes, so that asks go where the one that they need most of would be left over.
func (f *futures) worth(left *Amounts) float64 {
	return share(left.CPU, f.mean.CPU) + share(left.Memory, f.mean.Memory) + share(left.Disk, f.mean.Disk)
}

// room is what a future has left to take.
type room struct {
	free   Amounts
	gpus   [MaxDevices]int32
	models []uint8
	count  int    // of devices
	idle   uint64 // devices with something free
	sum    int32  // free of all devices
}

func (r *room) set(i int, free int32) {
	r.gpus[i] = free
	r.sum += free
	if free > 0 {
		r.idle |= 1 << i
	}
}

// take takes what a asks for, or nothing and reports false.
func (r *room) take(a *Ask) bool {
	if a.CPU > r.free.CPU || a.Memory > r.free.Memory || a.Disk > r.free.Disk || a.GPU > r.sum {
		return false
	}
	if a.GPU > 0 && !r.takeDevices(a) {
		return false
	}
	r.free.CPU -= a.CPU
	r.free.Memory -= a.Memory
	r.free.Disk -= a.Disk
	return true
}

func (r *room) takeDevices(a *Ask) bool {
	if a.Shares() {
		best := -1
		for set := r.idle; set != 0; set &= set - 1 {
			i := bits.TrailingZeros64(set)
			if free := r.gpus[i]; free >= a.GPU && (best < 0 || free < r.gpus[best]) && a.Accepts(r.models[i]) {
				best = i
			}
		}
		if best < 0 {
			return false
		}
		r.use(best, a.GPU)
		return true
	}
	want, each := a.devices()
	var found uint64
	for set := r.idle; set != 0 && want > 0; set &= set - 1 {
		if i := bits.TrailingZeros64(set); r.gpus[i] >= each && a.Accepts(r.models[i]) {
			found |= 1 << i
			want--
		}
	}
	if want > 0 {
		return false
	}
	for ; found != 0; found &= found - 1 {
		r.use(bits.TrailingZeros64(found), each)
	}
	return true
}

// useless returns how much is free of devices that a cannot use.
func (r *room) useless(a *Ask) int32 {
	if a.GPU == 0 {
		return 0
	}
	if a.CPU > r.free.CPU || a.Memory > r.free.Memory || a.Disk > r.free.Disk || a.GPU > r.sum {
		return r.sum
	}
	want, each := a.devices()
	var sum int32
	for set := r.idle; set != 0; set &= set - 1 {
		if i := bits.TrailingZeros64(set); r.gpus[i] >= each && a.Accepts(r.models[i]) {
			want--
		} else {
			sum += r.gpus[i]
		}
	}
	if want > 0 {
		return r.sum
	}
	return sum
}

func (r *room) use(i int, amount int32) {
	r.gpus[i] -= amount
	r.sum -= amount
	if r.gpus[i] == 0 {
		r.idle &^= 1 << i
	}
}
