package engine

import (
	"math/bits"

	"github.com/gantry-os/gantry/model"
)

// Protocols of ports, as indexes.
const (
	tcp = iota
	udp
)

// portSet is a set of ports. Pages exist where something was ever put.
type portSet struct {
	pages [64]*[16]uint64
}

func (s *portSet) has(p uint16) bool {
	page := s.pages[p>>10]
	return page != nil && page[p>>6&15]&(1<<(p&63)) != 0
}

// flip makes a port be in the set or not, and reports whether that changed anything.
func (s *portSet) flip(p uint16, in bool) bool {
	page := s.pages[p>>10]
	if page == nil {
		if !in {
			return false
		}
		page = new([16]uint64)
		s.pages[p>>10] = page
	}
	word, bit := &page[p>>6&15], uint64(1)<<(p&63)
	if (*word&bit != 0) == in {
		return false
	}
	*word ^= bit
	return true
}

// count returns how many ports of a range are in the set.
func (s *portSet) count(span model.PortRange) int {
	n := 0
	for at := uint32(span.First); at <= uint32(span.Last); {
		end := min(at|63, uint32(span.Last))
		if page := s.pages[at>>10]; page != nil {
			word := page[at>>6&15] >> (at & 63)
			if width := end - at + 1; width < 64 {
				word &= 1<<width - 1
			}
			n += bits.OnesCount64(word)
		}
		at = end + 1
	}
	return n
}

// nodePorts is what is known of one node's ports.
type nodePorts struct {
	taken [2]portSet
	room  [2]int // free ports of the span
	span  model.PortRange
	next  uint16 // where the search for a free port goes on, so that a port that was just freed rests
}

// size returns how many ports the node assigns from.
func (n *nodePorts) size() int {
	if n.span.First == 0 || n.span.Last < n.span.First {
		return 0
	}
	return int(n.span.Last) - int(n.span.First) + 1
}

func (n *nodePorts) inside(p uint16) bool {
	return n.span.First != 0 && p >= n.span.First && p <= n.span.Last
}

// reach sets the range that ports are assigned from.
func (n *nodePorts) reach(span model.PortRange) {
	if n.span == span {
		return
	}
	n.span = span
	for proto := range n.room {
		n.room[proto] = n.size()
		if n.room[proto] > 0 {
			n.room[proto] -= n.taken[proto].count(span)
		}
	}
}

func (n *nodePorts) mark(proto int, p uint16, in bool) {
	if n.taken[proto].flip(p, in) && n.inside(p) {
		if in {
			n.room[proto]--
		} else {
			n.room[proto]++
		}
	}
}

// fits reports whether the ports that an instance of c asks for are free.
func (n *nodePorts) fits(c *Class) bool {
	any := c.any
	if c.fixed > 0 {
		for _, w := range c.Ports {
			if w.Port == 0 {
				continue
			}
			if n.taken[w.proto()].has(w.Port) {
				return false
			}
			if n.inside(w.Port) && any[w.proto()] > 0 {
				any[w.proto()]++ // it leaves the range too
			}
		}
	}
	return any[tcp] <= n.room[tcp] && any[udp] <= n.room[udp]
}

// assign takes the ports that an instance asks for, which are free.
func (n *nodePorts) assign(wants []PortWant) []uint16 {
	if len(wants) == 0 {
		return nil
	}
	out := make([]uint16, len(wants))
	for i, w := range wants { // fixed ones first: an assigned one must not take their place
		if w.Port != 0 {
			out[i] = w.Port
			n.mark(w.proto(), w.Port, true)
		}
	}
	for i, w := range wants {
		if w.Port == 0 {
			out[i] = n.find(w.proto())
			n.mark(w.proto(), out[i], true)
		}
	}
	return out
}

// find returns the next free port of the range, of which there is one.
func (n *nodePorts) find(proto int) uint16 {
	if !n.inside(n.next) {
		n.next = n.span.First
	}
	for range n.size() {
		p := n.next
		if n.next == n.span.Last {
			n.next = n.span.First
		} else {
			n.next++
		}
		if !n.taken[proto].has(p) {
			return p
		}
	}
	panic("engine: no free port, though they were counted")
}

// take marks ports that an instance has already.
func (n *nodePorts) take(wants []PortWant, ports []uint16) {
	for i, p := range ports {
		if p == 0 {
			continue
		}
		for proto := range n.taken {
			if i >= len(wants) || wants[i].proto() == proto { // both, when it is not known any more
				n.mark(proto, p, true)
			}
		}
		if n.inside(p) && p < n.span.Last {
			n.next = max(n.next, p+1)
		}
	}
}

// give frees ports; zeros are none.
func (n *nodePorts) give(wants []PortWant, ports []uint16) {
	for i, p := range ports {
		if p == 0 {
			continue
		}
		for proto := range n.taken {
			if i >= len(wants) || wants[i].proto() == proto {
				n.mark(proto, p, false)
			}
		}
	}
}

// retake takes ports again that were given up for a trial.
func (n *nodePorts) retake(wants []PortWant, ports []uint16) {
	next := n.next
	n.take(wants, ports)
	n.next = next
}
