package dns

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/gantry-os/gantry/route"
)

// Bounds of answers from the table.
const (
	ttl         = 1    // seconds for which an answer holds, that nothing is there included
	mostNames   = 1000 // instances in one answer: TCP carries as many
	mostHelpers = 200  // of them, those whose addresses come with the answer
)

// zone answers the names of the table.
type zone struct {
	name  string // lower case, with the dot at the end
	below string // what names within the zone end with
	table func() *route.Table
	soa   *dns.SOA
}

func newZone(name string, table func() *route.Table) zone {
	fqdn := dns.Fqdn(strings.ToLower(name))
	return zone{
		name: fqdn, below: "." + fqdn, table: table,
		soa: &dns.SOA{
			Hdr: dns.RR_Header{Name: fqdn, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
			Ns:  fqdn, Mbox: "hostmaster." + fqdn, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
		},
	}
}

// answer fills m if q is for the zone, or for the name of an address that one instance has, and reports whether.
func (z *zone) answer(m *dns.Msg, q *dns.Question) bool {
	name := strings.ToLower(q.Name)
	switch {
	case name == z.name || strings.HasSuffix(name, z.below):
		m.Authoritative = true
		t := z.table()
		if t == nil {
			m.Rcode = dns.RcodeServerFailure // that nothing is there would be a guess
			return true
		}
		z.fill(m, q, strings.TrimSuffix(strings.TrimSuffix(name, z.name), "."), t)
		return true
	case q.Qtype == dns.TypePTR && strings.HasSuffix(name, ".arpa."):
		return z.reverse(m, q, name)
	}
	return false
}

// fill answers for a name within the zone, without the zone's own.
func (z *zone) fill(m *dns.Msg, q *dns.Question, name string, t *route.Table) {
	if name == "" {
		if q.Qtype == dns.TypeSOA || q.Qtype == dns.TypeANY {
			m.Answer = append(m.Answer, z.soa)
			return
		}
		z.nothing(m)
		return
	}
	found, ok := lookup(t, name)
	if !ok {
		m.Rcode = dns.RcodeNameError
		z.nothing(m)
		return
	}
	header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: ttl}
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		m.Answer = addresses(header, found.entries(), q.Qtype)
	case dns.TypeSRV:
		z.services(m, header, &found)
	case dns.TypeANY: // as RFC 8482 has it
		header.Rrtype = dns.TypeHINFO
		m.Answer = []dns.RR{&dns.HINFO{Hdr: header, Cpu: "RFC8482"}}
	}
	if len(m.Answer) == 0 {
		z.nothing(m)
	}
}

// nothing says how long it holds that there is no answer.
func (z *zone) nothing(m *dns.Msg) { m.Ns = append(m.Ns, z.soa) }

// reverse answers what an address is called. That of a node on which several instances run is none of one instance.
func (z *zone) reverse(m *dns.Msg, q *dns.Question, name string) bool {
	addr, ok := reversed(name)
	if !ok || addr.IsLoopback() {
		return false
	}
	t := z.table()
	if t == nil {
		return false
	}
	e := t.At(addr)
	if e == nil {
		return false
	}
	m.Authoritative = true
	m.Answer = []dns.RR{&dns.PTR{
		Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: ttl}, Ptr: e.Host() + z.below,
	}}
	return true
}

// addresses returns the addresses of entries, each once, in an order of their own.
func addresses(header dns.RR_Header, entries []*route.Entry, kind uint16) []dns.RR {
	var out []dns.RR
	seen := map[netip.Addr]struct{}{}
	for _, e := range entries {
		for _, a := range e.Addrs {
			if _, ok := seen[a]; ok || a.Is4() != (kind == dns.TypeA) {
				continue
			}
			seen[a] = struct{}{}
			if out = append(out, address(header, a)); len(out) == mostNames {
				return out
			}
		}
	}
	return out
}

// address returns the record of one address.
func address(header dns.RR_Header, a netip.Addr) dns.RR {
	if a.Is4() {
		header.Rrtype = dns.TypeA
		return &dns.A{Hdr: header, A: net.IP(a.AsSlice())}
	}
	header.Rrtype = dns.TypeAAAA
	return &dns.AAAA{Hdr: header, AAAA: net.IP(a.AsSlice())}
}

// services answers with the ports of instances, and with the addresses of those instances beside. The endpoints of an app come
// in the order of its spec, as priorities.
func (z *zone) services(m *dns.Msg, header dns.RR_Header, found *names) {
	for _, e := range found.entries() {
		first := len(m.Answer)
		var host string
		for n, p := range e.Ports {
			if found.asks(&p) {
				if host == "" {
					host = e.Host() + z.below
				}
				m.Answer = append(m.Answer, &dns.SRV{Hdr: header, Priority: uint16(n), Weight: 1, Port: p.Port, Target: host})
			}
		}
		if len(m.Answer) > first && len(m.Extra) < mostHelpers {
			for _, a := range e.Addrs {
				m.Extra = append(m.Extra, address(dns.RR_Header{Name: host, Class: dns.ClassINET, Ttl: ttl}, a))
			}
		}
		if len(m.Answer) >= mostNames {
			return
		}
	}
}

// shuffled returns entries in another order, no more than an answer takes.
func shuffled(entries []*route.Entry) []*route.Entry {
	if len(entries) < 2 {
		return entries
	}
	out := make([]*route.Entry, len(entries))
	copy(out, entries)
	n := min(len(out), mostNames)
	for i := range n {
		j := i + rand.IntN(len(out)-i)
		out[i], out[j] = out[j], out[i]
	}
	return out[:n]
}

// reversed returns the address that a name of in-addr.arpa. or ip6.arpa. means.
func reversed(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := 62; i >= 0; i -= 2 {
		if i > 0 && rest[i-1] != '.' {
			return netip.Addr{}, false
		}
		text.WriteByte(rest[i])
		if n := 62 - i; n%8 == 6 && i > 0 {
			text.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(text.String())
	return a, err == nil
}
