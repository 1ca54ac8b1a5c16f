package replay

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"slices"

	"github.com/gantry-os/gantry/scheduler/policy"
)

// arrivalPoints is how many points a run by Arrivals has.
const arrivalPoints = 240

// Arrivals submits pods when they were submitted, and ends them after they ran as long as they did. A pod that fits
// nowhere waits, and is tried again, the oldest first, whenever something ended. The result has points at even distances
// of time. progress is told how much of the way is done.
func Arrivals(ctx context.Context, p Placer, c *Cluster, pods []Pod, progress func(done float64)) (*Result, error) {
	if err := c.check(pods); err != nil {
		return nil, err
	}
	order := make([]int, len(pods))
	for i := range pods {
		if !pods[i].Timed {
			return nil, fmt.Errorf("pod %d of the workload has no creation_time: give all one, or use the method overload", i+1)
		}
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(pods[a].Start, pods[b].Start) })
	first, last := pods[order[0]].Start, pods[order[len(order)-1]].Start
	t := &timeline{gauge: newGauge(p, c, pods), pods: pods}
	for mark := range arrivalPoints + 1 {
		until := first + int64(float64(last-first)*float64(mark)/arrivalPoints)
		for len(order) > 0 && pods[order[0]].Start <= until {
			t.advance(pods[order[0]].Start)
			t.arrive(order[0])
			order = order[1:]
		}
		t.advance(until)
		t.gauge.mark(float64(until - first))
		progress(float64(mark) / arrivalPoints)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return t.gauge.end(), nil
}

// timeline is a run by Arrivals.
type timeline struct {
	gauge   *gauge
	pods    []Pod
	ends    ends
	waiting []int
}

// advance ends what ends until now, and at each such time tries those that wait.
func (t *timeline) advance(now int64) {
	for len(t.ends) > 0 && t.ends[0].at <= now {
		at := t.ends[0].at
		for len(t.ends) > 0 && t.ends[0].at == at {
			e := heap.Pop(&t.ends).(end)
			t.gauge.remove(&t.pods[e.pod].Ask, e.pod, e.node)
		}
		t.retry(at)
	}
}

// retry places what waits and fits. What did not fit for one does not for its equals.
func (t *timeline) retry(now int64) {
	full := map[policy.Ask]bool{}
	still := t.waiting[:0]
	for _, i := range t.waiting {
		if full[t.pods[i].Ask] || !t.start(i, now) {
			full[t.pods[i].Ask] = true
			still = append(still, i)
		}
	}
	t.waiting = still
	t.gauge.result.Waiting = len(still)
}

func (t *timeline) arrive(i int) {
	t.gauge.result.Asked++
	if !t.start(i, t.pods[i].Start) {
		t.waiting = append(t.waiting, i)
		t.gauge.result.Waited++
		t.gauge.result.Waiting = len(t.waiting)
	}
}

// start places pod i and plans its end.
func (t *timeline) start(i int, now int64) bool {
	pod := &t.pods[i]
	node, ok := t.gauge.place(&pod.Ask, i)
	if ok && pod.End != Forever {
		heap.Push(&t.ends, end{now + pod.End - pod.Start, i, node})
	}
	return ok
}

// end is when a pod ends.
type end struct {
	at        int64
	pod, node int
}

// ends is a heap of them, the next first.
type ends []end

func (e ends) Len() int { return len(e) }
func (e ends) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].pod < e[j].pod
}
func (e ends) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *ends) Push(x any)   { *e = append(*e, x.(end)) }
func (e *ends) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}
