package scheduler

import "github.com/gantry-os/gantry/model"

// portSet is a set of ports. Pages exist where something was ever put.
type portSet struct {
	pages [64]*[16]uint64
}

func (s *portSet) has(p uint16) bool {
	page := s.pages[p>>10]
	return page != nil && page[p>>6&15]&(1<<(p&63)) != 0
}

func (s *portSet) add(p uint16) {
	page := s.pages[p>>10]
	if page == nil {
		page = new([16]uint64)
		s.pages[p>>10] = page
	}
	page[p>>6&15] |= 1 << (p & 63)
}

func (s *portSet) remove(p uint16) {
	if page := s.pages[p>>10]; page != nil {
		page[p>>6&15] &^= 1 << (p & 63)
	}
}

// nodePorts is what is known of one node's ports.
type nodePorts struct {
	taken [2]portSet // tcp, udp
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

// assign finds ports for what is wanted and takes them. It takes none when they do not suffice.
func (n *nodePorts) assign(wants []portWant) ([]uint16, bool) {
	if len(wants) == 0 {
		return nil, true
	}
	out := make([]uint16, len(wants))
	for i, w := range wants { // fixed ones first: an assigned one must not take their place
		if w.port == 0 {
			continue
		}
		if n.taken[w.proto].has(w.port) {
			n.give(wants, out)
			return nil, false
		}
		n.taken[w.proto].add(w.port)
		out[i] = w.port
	}
	for i, w := range wants {
		if w.port != 0 {
			continue
		}
		p, ok := n.find(w.proto)
		if !ok {
			n.give(wants, out)
			return nil, false
		}
		n.taken[w.proto].add(p)
		out[i] = p
	}
	return out, true
}

// find returns the next free port of the range.
func (n *nodePorts) find(proto uint8) (uint16, bool) {
	size := n.size()
	if size == 0 {
		return 0, false
	}
	if n.next < n.span.First || n.next > n.span.Last {
		n.next = n.span.First
	}
	for range size {
		p := n.next
		if n.next == n.span.Last {
			n.next = n.span.First
		} else {
			n.next++
		}
		if !n.taken[proto].has(p) {
			return p, true
		}
	}
	return 0, false
}

// take marks ports that an instance has already.
func (n *nodePorts) take(wants []portWant, ports []uint16) {
	for i, p := range ports {
		for _, proto := range protocols(wants, i) {
			n.taken[proto].add(p)
		}
		if p >= n.span.First && p < n.span.Last {
			n.next = max(n.next, p+1)
		}
	}
}

// give frees ports; zeros are none.
func (n *nodePorts) give(wants []portWant, ports []uint16) {
	for i, p := range ports {
		if p == 0 {
			continue
		}
		for _, proto := range protocols(wants, i) {
			n.taken[proto].remove(p)
		}
	}
}

// room returns how many ports of the range are free.
func (n *nodePorts) room(proto uint8) int {
	free := 0
	for i := range n.size() {
		if !n.taken[proto].has(n.span.First + uint16(i)) {
			free++
		}
	}
	return free
}

// protocols returns those that the i'th port is of: both, when it is not known any more.
func protocols(wants []portWant, i int) []uint8 {
	if i < len(wants) {
		return []uint8{wants[i].proto}
	}
	return []uint8{tcp, udp}
}
