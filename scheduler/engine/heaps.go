package engine

// The heaps of a field: of rows in each cell, and of cells.

// less orders rows by cost; of equal ones the first comes first.
func (f *field) less(a, b int32) bool {
	if f.cost[a] != f.cost[b] {
		return f.cost[a] < f.cost[b]
	}
	return a < b
}

func (f *field) swap(c *cell, i, j int32) {
	h := c.heap
	h[i], h[j] = h[j], h[i]
	f.pos[h[i]], f.pos[h[j]] = i, j
}

func (f *field) heapify(c *cell) {
	for i := int32(len(c.heap)/2) - 1; i >= 0; i-- {
		f.sink(c, i)
	}
}

// up moves a row toward the head, and reports whether it moved.
func (f *field) up(c *cell, i int32) bool {
	start := i
	for i > 0 {
		parent := (i - 1) / 2
		if !f.less(c.heap[i], c.heap[parent]) {
			break
		}
		f.swap(c, i, parent)
		i = parent
	}
	return i != start
}

func (f *field) sink(c *cell, i int32) {
	n := int32(len(c.heap))
	for {
		child := 2*i + 1
		if child >= n {
			return
		}
		if child+1 < n && f.less(c.heap[child+1], c.heap[child]) {
			child++
		}
		if !f.less(c.heap[child], c.heap[i]) {
			return
		}
		f.swap(c, i, child)
		i = child
	}
}

// fixCell puts a cell where it belongs among the others, or takes it out.
func (f *field) fixCell(k int32) {
	c := &f.cells[k]
	switch listed := f.listed(k); {
	case listed && c.at == none:
		c.at = int32(len(f.heap))
		f.heap = append(f.heap, k)
		f.upCell(int(c.at))
	case listed:
		if !f.upCell(int(c.at)) {
			f.sinkCell(int(c.at))
		}
	case c.at != none:
		at, last := int(c.at), len(f.heap)-1
		f.swapCells(at, last)
		f.heap = f.heap[:last]
		c.at = none
		if at < last && !f.upCell(at) {
			f.sinkCell(at)
		}
	}
}

func (f *field) swapCells(i, j int) {
	h := f.heap
	h[i], h[j] = h[j], h[i]
	f.cells[h[i]].at, f.cells[h[j]].at = int32(i), int32(j)
}

func (f *field) upCell(i int) bool {
	start := i
	for i > 0 {
		parent := (i - 1) / 2
		if !f.before(f.heap[i], f.heap[parent]) {
			break
		}
		f.swapCells(i, parent)
		i = parent
	}
	return i != start
}

func (f *field) sinkCell(i int) {
	for {
		child := 2*i + 1
		if child >= len(f.heap) {
			return
		}
		if child+1 < len(f.heap) && f.before(f.heap[child+1], f.heap[child]) {
			child++
		}
		if !f.before(f.heap[child], f.heap[i]) {
			return
		}
		f.swapCells(i, child)
		i = child
	}
}
