package policy

import (
	"cmp"
	"math/bits"
	"slices"
)

// recent are the asks of late.
type recent struct {
	runs    []run // oldest first
	first   int   // run that is the oldest still remembered
	total   int   // instances in runs
	seen    int   // since ever
	next    int   // value of seen at which to look whether what is asked for has changed
	outline map[outline]float64
}

// run is a number of equal asks in a row.
type run struct {
	ask   Ask
	count int
}

const (
	// window is how many instances are remembered. What came before has no say.
	window = 8192
	// mostOfOne is how many instances count of those that come at once, so that a few large apps are not all that is remembered.
	mostOfOne = window / 256
	// drift is which part of the instances has to ask for something else before that matters.
	drift = 0.15
)

// outline is an ask about as large as others of the same outline: sizes are powers of two.
type outline struct {
	cpu, memory, disk, gpu int8
	whole                  bool // asks for whole devices
	models                 uint64
}

func outlineOf(a *Ask) outline {
	size := func(v int64) int8 { return int8(bits.Len64(uint64(v))) }
	return outline{size(a.CPU), size(a.Memory), size(a.Disk), size(int64(a.GPU)), a.GPU >= Whole, a.Models}
}

// add remembers asks, and reports whether what is asked for is now another than at the last time it did so.
func (r *recent) add(a *Ask, count int) bool {
	count = min(count, mostOfOne)
	if count <= 0 {
		return false
	}
	if last := len(r.runs) - 1; last >= r.first && r.runs[last].ask == *a {
		r.runs[last].count += count
	} else {
		r.runs = append(r.runs, run{*a, count})
	}
	r.total += count
	r.seen += count
	r.forget()
	if r.seen < r.next {
		return false
	}
	r.next = r.seen + min(r.seen, window/4)
	return r.changed()
}

// forget leaves out what is outside of the window.
func (r *recent) forget() {
	for r.total > window {
		oldest := &r.runs[r.first]
		drop := min(oldest.count, r.total-window)
		oldest.count -= drop
		r.total -= drop
		if oldest.count == 0 {
			r.first++
		}
	}
	if r.first > window {
		r.runs = append(r.runs[:0], r.runs[r.first:]...)
		r.first = 0
	}
}

// changed compares outlines. While the window fills up, each doubling is a change, for the picture becomes clearer.
func (r *recent) changed() bool {
	now := map[outline]float64{}
	for _, x := range r.runs[r.first:] {
		now[outlineOf(&x.ask)] += float64(x.count) / float64(r.total)
	}
	moved := 0.0
	for o, part := range now {
		moved += max(0, part-r.outline[o])
	}
	if r.seen > window && moved < drift {
		return false
	}
	r.outline = now
	return true
}

// shapes returns what is asked for, the largest first.
func (r *recent) shapes() []Shape {
	at := map[Ask]int{}
	var shapes []Shape
	for _, x := range r.runs[r.first:] {
		i, ok := at[x.ask]
		if !ok {
			i = len(shapes)
			at[x.ask] = i
			shapes = append(shapes, Shape{Ask: x.ask})
		}
		shapes[i].Weight += float64(x.count) / float64(r.total)
	}
	slices.SortStableFunc(shapes, func(a, b Shape) int {
		return cmp.Or(cmp.Compare(b.GPU, a.GPU), cmp.Compare(b.CPU, a.CPU), cmp.Compare(b.Memory, a.Memory),
			cmp.Compare(b.Disk, a.Disk), cmp.Compare(b.Models, a.Models))
	})
	return shapes
}
