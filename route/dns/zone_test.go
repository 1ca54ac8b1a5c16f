package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/route"
)

func entry(id, app string, slot uint32, serving bool, addrs ...string) *route.Entry {
	e := &route.Entry{
		ID: model.InstanceID(id), App: model.AppID(app), Slot: slot, Node: "n", Serving: serving,
		Ports: []route.Port{{Name: "http", Port: 8080, Proto: "tcp"}, {Name: "stats", Port: 8125, Proto: "udp"}},
	}
	for _, a := range addrs {
		e.Addrs = append(e.Addrs, netip.MustParseAddr(a))
	}
	return e
}

func testTable() *route.Table {
	return (&route.Table{}).With(route.Change{Put: []*route.Entry{
		entry("web-1", "/shop/web", 0, true, "10.0.0.1", "fd00::1"),
		entry("web-2", "/shop/web", 0, true, "10.0.0.2"),
		entry("web-3", "/shop/web", 0, false, "10.0.0.3"),
		entry("db-1", "/shop/db", 1, true, "10.0.0.2"),
		entry("db-2", "/shop/db", 2, false, "10.0.0.4"),
		entry("cache-1", "/shop/web/cache", 0, true, "10.0.0.5"),
		entry("deep-1", "/a/b/c", 0, false, "10.0.0.6"),
	}})
}

// newTest returns a server of the test table on a free port of loopback, which serves until the test ends.
func newTest(t testing.TB, table func() *route.Table, ups Upstreams) *Server {
	t.Helper()
	s, err := New(netip.MustParseAddrPort("127.0.0.1:0"), Config{Table: table, Upstreams: ups})
	if err != nil {
		t.Fatal(err)
	}
	ctx, done := t.Context(), make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { <-done })
	return s
}

// ask asks without a network.
func ask(t *testing.T, s *Server, name, kind string) *dns.Msg {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(name, dns.StringToType[kind])
	m := s.answer(q, true)
	b, err := m.Pack()
	if err != nil {
		t.Fatalf("the answer to %s %s does not encode: %v", name, kind, err)
	}
	if err := new(dns.Msg).Unpack(b); err != nil {
		t.Fatalf("the answer to %s %s does not decode: %v", name, kind, err)
	}
	return m
}

// say writes what an answer says, in a stable order.
func say(m *dns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(out)
	if m.Rcode != dns.RcodeSuccess {
		out = append(out, dns.RcodeToString[m.Rcode])
	} else if len(out) == 0 {
		out = append(out, "nothing")
	}
	if len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == dns.TypeSOA && m.Ns[0].Header().Name == "gantry." {
		out = append(out, "SOA")
	}
	return strings.Join(out, ", ")
}

// Every kind of name answers what it means, and what is not there is told from what has nothing of the type asked for.
func TestNames(t *testing.T) {
	s := newTest(t, testTable, Upstreams{})
	for _, c := range []struct{ name, kind, want string }{
		{"web.shop.gantry.", "A", "10.0.0.1, 10.0.0.2"},
		{"web.shop.gantry.", "AAAA", "fd00::1"},
		{"web.shop.gantry.", "MX", "nothing, SOA"},
		{"web.shop.all.gantry.", "A", "10.0.0.1, 10.0.0.2, 10.0.0.3"},
		{"cache.web.shop.gantry.", "A", "10.0.0.5"},
		{"cache.web.shop.gantry.", "AAAA", "nothing, SOA"},
		{"c.b.a.gantry.", "A", "nothing, SOA"}, // none serves
		{"c.b.a.all.gantry.", "A", "10.0.0.6"},

		{"shop.gantry.", "A", "nothing, SOA"}, // apps are below
		{"b.a.gantry.", "SRV", "nothing, SOA"},
		{"gantry.", "A", "nothing, SOA"},
		{"gantry.", "SOA", "gantry. hostmaster.gantry. 1 3600 600 86400 1"},
		{"all.gantry.", "A", "nothing, SOA"},
		{"slot.gantry.", "A", "nothing, SOA"},
		{"shop.slot.gantry.", "A", "nothing, SOA"},
		{"db.shop.slot.gantry.", "A", "nothing, SOA"},
		{"nobody.gantry.", "A", "NXDOMAIN, SOA"},
		{"web.gantry.", "A", "NXDOMAIN, SOA"},
		{"web.shop.a.gantry.", "A", "NXDOMAIN, SOA"},
		{"nobody.all.gantry.", "A", "NXDOMAIN, SOA"},

		{"1.db.shop.slot.gantry.", "A", "10.0.0.2"},
		{"2.db.shop.slot.gantry.", "A", "10.0.0.4"}, // those who ask for one are told where it is
		{"3.db.shop.slot.gantry.", "A", "NXDOMAIN, SOA"},
		{"01.db.shop.slot.gantry.", "A", "NXDOMAIN, SOA"},
		{"0.web.shop.slot.gantry.", "A", "NXDOMAIN, SOA"},
		{"1.db.shop.gantry.", "A", "NXDOMAIN, SOA"},
		{"web-1.web.shop.instance.gantry.", "A", "10.0.0.1"},
		{"web-1.web.shop.instance.gantry.", "AAAA", "fd00::1"},
		{"web-1.db.shop.instance.gantry.", "A", "NXDOMAIN, SOA"},

		{"_http._tcp.web.shop.gantry.", "SRV", "0 1 8080 web-1.web.shop.instance.gantry., 0 1 8080 web-2.web.shop.instance.gantry."},
		{"_http._tcp.web.shop.gantry.", "A", "10.0.0.1, 10.0.0.2"},
		{"_stats._udp.1.db.shop.slot.gantry.", "SRV", "1 1 8125 db-1.db.shop.instance.gantry."},
		{"_http._tcp.web-3.web.shop.instance.gantry.", "SRV", "0 1 8080 web-3.web.shop.instance.gantry."},
		{"_http._tcp.c.b.a.gantry.", "SRV", "nothing, SOA"},
		{"_http._tcp.c.b.a.all.gantry.", "SRV", "0 1 8080 deep-1.c.b.a.instance.gantry."},
		{"db.shop.gantry.", "SRV", "0 1 8080 db-1.db.shop.instance.gantry., 1 1 8125 db-1.db.shop.instance.gantry."},
		{"_tcp.web.shop.gantry.", "SRV", "nothing, SOA"},
		{"_http._udp.web.shop.gantry.", "SRV", "NXDOMAIN, SOA"},
		{"_ftp._tcp.web.shop.gantry.", "SRV", "NXDOMAIN, SOA"},
		{"_http.web.shop.gantry.", "SRV", "NXDOMAIN, SOA"},
		{"_http._tcp.shop.gantry.", "SRV", "NXDOMAIN, SOA"},
		{"_http._tcp.gantry.", "SRV", "NXDOMAIN, SOA"},
		{"_._tcp.web.shop.gantry.", "SRV", "NXDOMAIN, SOA"},

		{"1.0.0.10.in-addr.arpa.", "PTR", "web-1.web.shop.instance.gantry."},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", "PTR", "web-1.web.shop.instance.gantry."},
	} {
		if got := say(ask(t, s, c.name, c.kind)); got != c.want {
			t.Errorf("%s %s: %s; want %s", c.name, c.kind, got, c.want)
		}
	}
}

// Names are found in any case, and come back in the case they were asked in.
func TestCase(t *testing.T) {
	m := ask(t, newTest(t, testTable, Upstreams{}), "wEb.ShOp.GANTRY.", "A")
	if say(m) != "10.0.0.1, 10.0.0.2" || m.Answer[0].Header().Name != "wEb.ShOp.GANTRY." || m.Question[0].Name != "wEb.ShOp.GANTRY." {
		t.Errorf("got %v", m)
	}
}

// The addresses of an SRV answer's hosts come with it, and can be asked for.
func TestHelpers(t *testing.T) {
	s := newTest(t, testTable, Upstreams{})
	m := ask(t, s, "_http._tcp.web.shop.gantry.", "SRV")
	if len(m.Extra) != 3 {
		t.Errorf("%d addresses come with the answer, want 3: %v", len(m.Extra), m.Extra)
	}
	for _, rr := range m.Answer {
		if got := ask(t, s, rr.(*dns.SRV).Target, "A"); len(got.Answer) != 1 {
			t.Errorf("%s has no address", rr.(*dns.SRV).Target)
		}
	}
}

// Each instance comes first at times.
func TestOrder(t *testing.T) {
	s, first := newTest(t, testTable, Upstreams{}), map[string]int{}
	for range 200 {
		first[ask(t, s, "web.shop.gantry.", "A").Answer[0].(*dns.A).A.String()]++
	}
	if first["10.0.0.1"] < 50 || first["10.0.0.2"] < 50 {
		t.Errorf("who came first: %v", first)
	}
}

// While nothing is known it is not said that nothing is there.
func TestUnknown(t *testing.T) {
	m := ask(t, newTest(t, func() *route.Table { return nil }, Upstreams{}), "web.shop.gantry.", "A")
	if m.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", m)
	}
}

func many(n int) *route.Table {
	var c route.Change
	for i := range n {
		c.Put = append(c.Put, entry(fmt.Sprintf("web-%d", i), "/web", 0, true, fmt.Sprintf("10.1.%d.%d", i/200, i%200+1)))
	}
	return (&route.Table{}).With(c)
}

// What does not fit into the size that the client takes is cut, says so, and is all there over TCP.
func TestTruncation(t *testing.T) {
	table := many(300)
	s := newTest(t, func() *route.Table { return table }, Upstreams{})
	for _, c := range []struct {
		network    string
		size, most int
		want       int // answers, 0 for fewer than all
	}{{"udp", 0, 512, 0}, {"udp", 1000, 1000, 0}, {"udp", 65000, mostUDP, 0}, {"udp", 100, 512, 0}, {"tcp", 0, dns.MaxMsgSize, 300}, {"tcp", 600, dns.MaxMsgSize, 300}} {
		q := new(dns.Msg)
		q.SetQuestion("web.gantry.", dns.TypeA)
		if c.size > 0 {
			q.SetEdns0(uint16(c.size), true)
		}
		client := dns.Client{Net: c.network, UDPSize: dns.MaxMsgSize}
		m, _, err := client.ExchangeContext(t.Context(), q, s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		m.Compress = true
		if m.Truncated != (c.want == 0) || c.want > 0 && len(m.Answer) != c.want || m.Len() > c.most || len(m.Answer) < 20 {
			t.Errorf("%s with %d bytes: %d answers in %d bytes, truncated %v", c.network, c.size, len(m.Answer), m.Len(), m.Truncated)
		}
		if opt := m.IsEdns0(); (opt != nil) != (c.size > 0) || opt != nil && (opt.UDPSize() != mostUDP || !opt.Do()) {
			t.Errorf("%s with %d bytes: EDNS0 is %v", c.network, c.size, opt)
		}
	}
}

// What is no question of the Internet gets the code that says so, and answers none at all.
func TestOddQuestions(t *testing.T) {
	s := newTest(t, testTable, Upstreams{})
	for code, change := range map[int]func(*dns.Msg){
		dns.RcodeNotImplemented: func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate },
		dns.RcodeFormatError:    func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) },
		dns.RcodeBadVers:        func(q *dns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(3) },
		dns.RcodeRefused:        func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS },
	} {
		q := new(dns.Msg)
		q.SetQuestion("web.shop.gantry.", dns.TypeA)
		change(q)
		m := s.answer(q, true)
		fit(m, q, false)
		if b, err := m.Pack(); m.Rcode != code || err != nil || new(dns.Msg).Unpack(b) != nil {
			t.Errorf("got code %v (%v), want %v", dns.RcodeToString[m.Rcode], err, dns.RcodeToString[code])
		}
	}
	q := new(dns.Msg)
	q.SetQuestion("web.shop.gantry.", dns.TypeA)
	q.Response = true
	if m := s.answer(q, true); m != nil {
		t.Errorf("an answer is answered by %v", m)
	}
}

// Zones that are no domain are refused.
func TestCheckZone(t *testing.T) {
	for name, ok := range map[string]bool{
		"gantry": true, "gantry.": true, "prod.example.com": true, "": false, ".": false, "a..b": false, "-a": false, "Gantry": false,
		"a_b": false, "a b": false, strings.Repeat("a", 41): false,
	} {
		if err := CheckZone(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// Nothing that comes in a packet makes the server panic, or answer what cannot be read or is too large.
func FuzzPacket(f *testing.F) {
	s, err := New(netip.MustParseAddrPort("127.0.0.1:0"), Config{Table: testTable, Upstreams: Upstreams{file: "testdata/none.conf"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.close() })
	for _, name := range []string{
		"web.shop.gantry.", "_http._tcp.web.shop.gantry.", "1.db.shop.slot.gantry.", "web-1.web.shop.instance.gantry.", "gantry.", "all.gantry.",
		"1.0.0.10.in-addr.arpa.", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", "example.com.", ".",
	} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypePTR, dns.TypeANY} {
			q := new(dns.Msg)
			q.SetQuestion(name, kind)
			q.SetEdns0(700, true)
			b, err := q.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return // the library answers these
		}
		m := s.answer(q, true)
		if m == nil {
			return
		}
		fit(m, q, false)
		out, err := m.Pack()
		if err != nil {
			return // nothing is sent
		}
		if err := new(dns.Msg).Unpack(out); err != nil {
			t.Fatalf("the answer cannot be read: %v", err)
		}
		if len(out) > mostUDP && len(m.Question) == 1 {
			t.Fatalf("the answer has %d bytes", len(out))
		}
	})
}
