package engine

import (
	"cmp"
	"slices"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/policy"
)

// maxSteps bounds the steps of one hunt. When they run out it takes what a simpler search finds: victims of which none
// could be left out, but perhaps not the fewest.
const maxSteps = 4096

// hunt is the search for victims among a list of holds: those of one row, or of a role that is at its limit.
type hunt struct {
	e     *Engine
	c     *Class
	row   int32
	list  []int32 // who may be ended, the least important first
	spare func(model.AppID) int
	best  *trial                 // found elsewhere, or nil
	fits  func() bool            // whether there is room
	lift  func(h int32, up bool) // ends a hold, or brings it back
	short func(n int64) bool     // whether n more cannot be enough
	most  policy.Amounts         // of one in the list
	took  []int                  // indexes into list: those that are chosen
	lost  map[model.AppID]int    // of those
	broke int                    // how many of those are more than their app can spare
	steps int
}

// trial is a way to make room.
type trial struct {
	row     int32
	victims []int32
	breaks  int     // victims that are more than their app can spare
	top     int     // highest priority of a victim, and 1
	size    float64 // of all, in parts of the row
}

func (t *trial) before(o *trial) bool {
	return cmp.Or(cmp.Compare(t.breaks, o.breaks), cmp.Compare(t.top, o.top), cmp.Compare(len(t.victims), len(o.victims)), cmp.Compare(t.size, o.size)) < 0
}

// run returns the best trial, or nil. It leaves everything as it was.
func (s *hunt) run() *trial {
	s.lost = map[model.AppID]int{}
	if s.fits() {
		return s.trial()
	}
	for breaks := 0; breaks <= len(s.list) && (s.best == nil || breaks <= s.best.breaks); breaks++ {
		end := s.reach(breaks)
		if end == 0 && breaks > 0 {
			return nil
		}
		for ; end > 0 && s.hopeful(breaks, end); end = s.level(end) {
			if t := s.within(breaks, end); t != nil {
				return t
			}
		}
		if s.steps > maxSteps {
			breaks = max(breaks, len(s.list)-1)
		}
	}
	return nil
}

// reach returns how much of the list, up to the end of a priority, makes room when all of it goes that may; 0 when nothing
// does.
func (s *hunt) reach(breaks int) int {
	n, ok := 0, false
	for ; n < len(s.list) && !ok; n++ {
		if s.goes(n, breaks) {
			s.lift(s.list[n], true)
			ok = s.fits()
		}
	}
	for i := range n {
		if s.goes(i, breaks) {
			s.lift(s.list[i], false)
		}
	}
	if !ok {
		return 0
	}
	return s.level(n - 1)
}

// goes reports whether the app of a hold can lose any, or may be broken.
func (s *hunt) goes(n, breaks int) bool {
	return breaks > 0 || s.spare(s.e.at(s.list[n]).class.App) > 0
}

// level returns the end of the priority of the n-th of the list; 0 past the end.
func (s *hunt) level(n int) int {
	if n >= len(s.list) {
		return 0
	}
	p := s.priority(n)
	for n < len(s.list) && s.priority(n) == p {
		n++
	}
	return n
}

func (s *hunt) priority(n int) int { return s.e.at(s.list[n]).class.Priority }

// hopeful reports whether victims up to an end of the list may be better than those found elsewhere.
func (s *hunt) hopeful(breaks, end int) bool {
	return s.best == nil || cmp.Or(cmp.Compare(breaks, s.best.breaks), cmp.Compare(s.priority(end-1)+1, s.best.top)) <= 0
}

// within returns the fewest of the list up to an end that make room and break at most so many floors, or nil.
func (s *hunt) within(breaks, end int) *trial {
	simple := s.greedy(breaks, end)
	most := end
	if simple != nil {
		most = len(simple.victims) - 1
	}
	if s.best != nil && s.best.breaks == breaks && s.best.top == s.priority(end-1)+1 {
		most = min(most, len(s.best.victims))
	}
	for n := 1; n <= most && s.steps <= maxSteps; n++ {
		if t := s.exactly(n, 0, breaks, end); t != nil {
			return t
		}
	}
	return simple
}

// exactly returns n more of the list, from one on, that make room.
func (s *hunt) exactly(n, from, breaks, end int) *trial {
	if s.short(int64(n)) {
		return nil
	}
	var last *hold
	for i := from; i+n <= end && s.steps <= maxSteps; i++ {
		x := s.e.at(s.list[i])
		if last != nil && last.class == x.class && last.extra == nil && x.extra == nil {
			continue // it is as good as the last one
		}
		last = x
		s.steps++
		if !s.add(i, breaks) {
			continue
		}
		var t *trial
		if n > 1 {
			t = s.exactly(n-1, i+1, breaks, end)
		} else if s.fits() {
			t = s.trial()
		}
		s.drop(len(s.took) - 1)
		if t != nil {
			return t
		}
	}
	return nil
}

// greedy adds victims until there is room, those that break no floor first, and then spares, the most important first,
// whom it can do without.
func (s *hunt) greedy(breaks, end int) *trial {
	ok := s.addAll(0, end)
	if !ok && breaks > 0 {
		ok = s.addAll(breaks, end)
	}
	if ok {
		slices.Sort(s.took)
		for n := len(s.took) - 1; n >= 0; n-- {
			i := s.took[n]
			if s.drop(n); !s.fits() {
				s.add(i, breaks)
				s.took = slices.Insert(s.took[:len(s.took)-1], n, i)
			}
		}
	}
	var t *trial
	if ok {
		t = s.trial()
	}
	for len(s.took) > 0 {
		s.drop(len(s.took) - 1)
	}
	return t
}

// addAll chooses, up to an end of the list, all that may be until there is room, and reports whether there is.
func (s *hunt) addAll(breaks, end int) bool {
	had := slices.Clone(s.took)
	for i := range end {
		if len(had) > 0 && had[0] == i {
			had = had[1:]
		} else if s.add(i, breaks) && s.fits() {
			return true
		}
	}
	return false
}

// add chooses one of the list, unless that breaks more floors or takes what is guaranteed to its role.
func (s *hunt) add(i, breaks int) bool {
	x := s.e.at(s.list[i])
	if !s.e.victim(x, s.c) {
		return false
	}
	app := x.class.App
	breaking := s.lost[app]+1 > s.spare(app)
	if breaking && s.broke == breaks {
		return false
	}
	if breaking {
		s.broke++
	}
	s.lost[app]++
	s.lift(s.list[i], true)
	s.took = append(s.took, i)
	return true
}

// drop takes back the n-th that was chosen.
func (s *hunt) drop(n int) {
	x := s.e.at(s.list[s.took[n]])
	app := x.class.App
	if s.lost[app] > s.spare(app) {
		s.broke--
	}
	s.lost[app]--
	s.lift(s.list[s.took[n]], false)
	s.took = slices.Delete(s.took, n, n+1)
}

// trial returns what is chosen.
func (s *hunt) trial() *trial {
	t := &trial{row: s.row, breaks: s.broke}
	for _, i := range s.took {
		c := s.e.at(s.list[i]).class
		t.victims = append(t.victims, s.list[i])
		t.top = max(t.top, c.Priority+1)
		if s.row != none {
			t.size += s.e.weigh(c, s.row)
		}
	}
	return t
}
