package scheduler

import (
	"fmt"
	"strings"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// reason is why no node takes one more of a class.
type reason struct {
	text  string // the sentence
	shape string // what does not change with every number in the sentence
}

type cause struct {
	nodes int
	text  string
}

// explain says why none of the nodes fits one more of c. A node that lacks several things counts for each.
func (l *ledger) explain(v state.View, c *class) reason {
	var away, engine, cpu, mem, disk, spread cause
	var mostCPU model.CPU
	var mostMem, mostDisk model.Bytes
	taken := map[int]*cause{} // by index into c.ports
	seen := 0
	for r := range l.id {
		if !l.known[r] {
			continue
		}
		seen++
		switch {
		case !l.ready[r]:
			away.note("")
			continue
		case c.image && !l.oci[r].OK:
			engine.note(l.oci[r].Why)
			continue
		}
		noteMost(&cpu, c.need.CPUs, l.cpus[r], &mostCPU, l.name[r])
		noteMost(&mem, c.need.Memory, l.memory[r], &mostMem, l.name[r])
		noteMost(&disk, c.need.Disk, l.disk[r], &mostDisk, l.name[r])
		if n := l.portTaken(c, r); n >= 0 {
			if taken[n] == nil {
				taken[n] = &cause{}
			}
			taken[n].note(l.owner(v, r, c.ports[n]))
		} else if !l.portsSuffice(c, r) {
			spread.note(l.name[r])
		}
	}
	if seen == 0 {
		return reason{"no node has joined yet", "none"}
	}
	var s sentence
	s.add(mem, "%s memory: wants %s, most free is %s on %s", mem.lack(), c.need.Memory.Human(), max(mostMem, 0).Human(), mem.text)
	s.add(cpu, "%s CPUs: wants %s, most free is %s on %s", cpu.lack(), c.need.CPUs, max(mostCPU, 0), cpu.text)
	s.add(disk, "%s disk: wants %s, most free is %s on %s", disk.lack(), c.need.Disk.Human(), max(mostDisk, 0).Human(), disk.text)
	for n, w := range c.ports {
		if t := taken[n]; t != nil {
			s.add(*t, "port %d/%s is taken on %s%s", w.port, [...]string{"tcp", "udp"}[w.proto], t.count(), by(t.text))
		}
	}
	s.add(spread, "%s free ports to assign: wants %d", spread.lack(), len(c.ports)-c.fixed)
	s.add(engine, "%s cannot run images%s", engine.count(), colon(engine.text))
	s.add(away, "%s unreachable", away.count()+map[bool]string{true: " is", false: " are"}[away.nodes == 1])
	if len(s.parts) == 0 {
		return reason{"it will be placed in a moment", "soon"}
	}
	return reason{strings.Join(s.parts, "; "), strings.Join(s.shapes, ";")}
}

// note counts a node, and keeps the first text.
func (c *cause) note(text string) {
	if c.nodes++; c.text == "" {
		c.text = text
	}
}

func (c cause) count() string {
	if c.nodes == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", c.nodes)
}

func (c cause) lack() string {
	if c.nodes == 1 {
		return "1 node lacks"
	}
	return fmt.Sprintf("%d nodes lack", c.nodes)
}

// noteMost counts a node that has less than is wanted, and keeps the one that has most.
func noteMost[T ~int64](c *cause, want, free T, most *T, name string) {
	if free >= want {
		return
	}
	if c.nodes++; c.nodes == 1 || free > *most {
		*most, c.text = free, name
	}
}

// portsSuffice reports whether a node has enough free ports to assign.
func (l *ledger) portsSuffice(c *class, r int) bool {
	var need [2]int
	for _, w := range c.ports {
		if w.port == 0 {
			need[w.proto]++
		}
	}
	for proto, n := range need {
		if n == 0 {
			continue
		}
		free := l.ports[r].room(uint8(proto))
		for _, w := range c.ports { // its own fixed ports leave the range
			if span := l.ports[r].span; w.port != 0 && int(w.proto) == proto && w.port >= span.First && w.port <= span.Last {
				free--
			}
		}
		if free < n {
			return false
		}
	}
	return true
}

// owner returns the instance that has a port of a node, empty when it is not known.
func (l *ledger) owner(v state.View, r int, w portWant) string {
	for i := range v.InstancesOn(l.id[r]) {
		h, ok := l.holds[i.ID]
		if !ok {
			continue
		}
		for n, p := range h.ports {
			if p == w.port && (n >= len(h.class.ports) || h.class.ports[n].proto == w.proto) {
				return string(i.ID)
			}
		}
	}
	return ""
}

type sentence struct{ parts, shapes []string }

func (s *sentence) add(c cause, format string, args ...any) {
	if c.nodes > 0 {
		s.parts = append(s.parts, fmt.Sprintf(format, args...))
		s.shapes = append(s.shapes, format)
	}
}

func by(owner string) string {
	if owner == "" {
		return ""
	}
	return " (by " + owner + ")"
}

func colon(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}
