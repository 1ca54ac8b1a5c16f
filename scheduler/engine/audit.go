package engine

import (
	"fmt"

	"github.com/gantry-os/gantry/model"
)

// Audit recomputes the picture from what is held and returns what is wrong with it: a node with more on it than it has, a
// port or device given twice, a count that is off. It is for tests.
func (e *Engine) Audit() error { return e.audit(false) }

// audit is Audit. With shrunk, nodes may have more on them than they have: they had more, once.
func (e *Engine) audit(shrunk bool) error {
	for r := range int32(len(e.info)) {
		if err := e.auditRow(r, shrunk); err != nil {
			return fmt.Errorf("node %s: %w", e.info[r].ID, err)
		}
	}
	return e.auditCounts()
}

func (e *Engine) auditRow(r int32, shrunk bool) error {
	sum := e.kept[r]
	ports := map[string]model.InstanceID{}
	gpus := map[string]model.GPU{}
	items := map[string]model.InstanceID{}
	custom := map[string]model.Units{}
	waits := false
	for h := e.first[r]; h != none; h = e.at(h).next {
		x := e.at(h)
		sum = plus(sum, x.class.need)
		if x.lifted {
			return fmt.Errorf("%s was left in a trial", x.id)
		}
		waits = waits || x.waits
		for _, w := range x.class.custom {
			custom[w.name] += w.amount
		}
		if x.extra == nil {
			continue
		}
		for i, p := range x.extra.ports {
			key := fmt.Sprintf("%d/%d", x.class.Ports[i].proto(), p)
			if other, twice := ports[key]; twice && !e.follows(other, x.id) {
				return fmt.Errorf("port %s is given to %s and %s", key, other, x.id)
			}
			ports[key] = x.id
			if !e.ports[r].taken[x.class.Ports[i].proto()].has(p) {
				return fmt.Errorf("port %s of %s is not marked", key, x.id)
			}
		}
		for _, g := range x.extra.gpus {
			gpus[g.ID] += g.Share
		}
		for name, list := range x.extra.items {
			for _, item := range list {
				if other, twice := items[name+"="+item]; twice && !e.follows(other, x.id) {
					return fmt.Errorf("item %s of %s is given to %s and %s", item, name, other, x.id)
				}
				items[name+"="+item] = x.id
			}
		}
	}
	for _, l := range e.loans {
		if l.row == r {
			for _, g := range l.gpus {
				gpus[g.ID] += g.Share
			}
			for _, p := range l.ports {
				if !e.ports[r].taken[tcp].has(p) || !e.ports[r].taken[udp].has(p) {
					return fmt.Errorf("port %d, which is lent, is not marked", p)
				}
			}
		}
	}
	if !e.known[r] {
		return nil
	}
	for d := range e.info[r].GPUs {
		id := e.info[r].GPUs[d].ID
		if gpus[id] > wholeDevice && !waits && !shrunk {
			return fmt.Errorf("device %s is given %s times", id, gpus[id])
		}
		if want := wholeDevice - int32(gpus[id]); e.gpu[r].free[d]-e.gpu[r].owed[d] != want || e.gpu[r].free[d] < 0 {
			return fmt.Errorf("device %s has %d free, counted %d", id, e.gpu[r].free[d]-e.gpu[r].owed[d], want)
		}
	}
	for name, s := range e.custom[r] {
		if total := e.info[r].Custom[name]; s.free != total.Total()-custom[name] {
			return fmt.Errorf("custom resource %s has %s free, counted %s", name, s.free, total.Total()-custom[name])
		} else if s.free < 0 && !waits && !shrunk {
			return fmt.Errorf("custom resource %s is overcommitted", name)
		}
	}
	for proto := range e.ports[r].room {
		if size := e.ports[r].size(); size > 0 && e.ports[r].room[proto] != size-e.ports[r].taken[proto].count(e.ports[r].span) {
			return fmt.Errorf("%d free ports were counted wrong", e.ports[r].room[proto])
		}
	}
	if !waits && !shrunk && !within(sum, e.total[r]) {
		return fmt.Errorf("holds %+v of %+v", sum, e.total[r])
	}
	free := minus(e.total[r], sum)
	if b := e.booked[r]; b != nil {
		free = minus(free, e.spoken(r, b))
	}
	if free != e.free[r] {
		return fmt.Errorf("has %+v free, counted %+v", e.free[r], free)
	}
	return nil
}

// follows reports whether one of two instances waits for the other to leave.
func (e *Engine) follows(a, b model.InstanceID) bool {
	x, y := e.at(e.index[a]), e.at(e.index[b])
	return x.waits && y.leaving || y.waits && x.leaving
}

func (e *Engine) auditCounts() error {
	n := 0
	for h := range e.all {
		if n++; e.index[e.at(h).id] != h {
			return fmt.Errorf("%s has two places", e.at(h).id)
		}
	}
	if n != len(e.index) {
		return fmt.Errorf("%d places are held, %d are known", n, len(e.index))
	}
	used := map[model.RoleID]vector{}
	for n := range e.all {
		h := e.at(n)
		used[h.class.Role] = used[h.class.Role].add(h.class.vector)
	}
	for _, l := range e.loans {
		used[l.role.id] = used[l.role.id].add(l.vec)
	}
	for id, r := range e.roles.all {
		want := vector{}
		for at, u := range used {
			if at.Within(id) {
				want = want.add(u)
			}
		}
		if !equal(want, r.used) {
			return fmt.Errorf("role %s uses %+v, counted %+v", id, r.used, want)
		}
	}
	for _, g := range e.groups {
		for _, t := range g.tallies {
			n = 0
			for i := range e.all {
				if e.at(i).class.group == g {
					n++
				}
			}
			if t.total != n {
				return fmt.Errorf("%s: %d instances were counted by %s, there are %d", g.key.app, t.total, t.name, n)
			}
		}
	}
	return nil
}

func equal(a, b vector) bool {
	for name := range b.custom {
		if a.custom[name] != b.custom[name] {
			return false
		}
	}
	for name := range a.custom {
		if a.custom[name] != b.custom[name] {
			return false
		}
	}
	return a.cpus == b.cpus && a.memory == b.memory && a.disk == b.disk && a.gpus == b.gpus
}
