package app

import (
	"container/heap"
	"time"

	"github.com/gantry-os/gantry/model"
)

// alarms holds at most one time for each app. The zero alarms are ready to use.
type alarms struct {
	at   map[model.AppID]time.Time
	heap alarmHeap // may hold times that were set anew since
}

type alarm struct {
	at  time.Time
	app model.AppID
}

// set replaces an app's time; zero for none.
func (a *alarms) set(app model.AppID, at time.Time) {
	if at.IsZero() {
		delete(a.at, app)
		return
	}
	if a.at[app].Equal(at) {
		return
	}
	if a.at == nil {
		a.at = map[model.AppID]time.Time{}
	}
	a.at[app] = at
	heap.Push(&a.heap, alarm{at, app})
	if len(a.heap) > 64 && len(a.heap) > 4*len(a.at) {
		a.compact()
	}
}

func (a *alarms) compact() {
	a.heap = a.heap[:0]
	for app, at := range a.at {
		a.heap = append(a.heap, alarm{at, app})
	}
	heap.Init(&a.heap)
}

// next returns the earliest time; zero for none.
func (a *alarms) next() time.Time {
	for len(a.heap) > 0 {
		if first := a.heap[0]; a.at[first.app].Equal(first.at) {
			return first.at
		}
		heap.Pop(&a.heap)
	}
	return time.Time{}
}

// due takes out the apps whose time has come.
func (a *alarms) due(now time.Time) []model.AppID {
	var out []model.AppID
	for at := a.next(); !at.IsZero() && !at.After(now); at = a.next() {
		app := heap.Pop(&a.heap).(alarm).app
		delete(a.at, app)
		out = append(out, app)
	}
	return out
}

type alarmHeap []alarm

func (h alarmHeap) Len() int           { return len(h) }
func (h alarmHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h alarmHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *alarmHeap) Push(x any)        { *h = append(*h, x.(alarm)) }
func (h *alarmHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
