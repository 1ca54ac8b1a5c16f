package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// upstream is a DNS server of a test's own, on loopback.
type upstream struct {
	addr  netip.AddrPort
	asked atomic.Int64
}

func newUpstream(t testing.TB, answer func(q *dns.Msg, tcp bool) *dns.Msg) *upstream {
	t.Helper()
	u := &upstream{}
	var s Server // only its sockets are of use: a port that is free for UDP and TCP
	if err := s.listen(netip.MustParseAddrPort("127.0.0.1:0")); err != nil {
		t.Fatal(err)
	}
	u.addr = s.addr
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		u.asked.Add(1)
		_, tcp := w.LocalAddr().(*net.TCPAddr)
		if m := answer(q, tcp); m != nil {
			_ = w.WriteMsg(m)
		}
	})
	for _, s := range []*dns.Server{{PacketConn: s.udp, Handler: handler}, {Listener: s.tcp, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return u
}

// says returns an upstream's answer of one record.
func says(record string) func(*dns.Msg, bool) *dns.Msg {
	return func(q *dns.Msg, _ bool) *dns.Msg {
		m := new(dns.Msg)
		m.SetReply(q)
		rr, err := dns.NewRR(record)
		if err != nil {
			panic(err)
		}
		m.Answer = []dns.RR{rr}
		return m
	}
}

// Questions go to those of the longest domain that they are in, and all others to the default.
func TestUpstreams(t *testing.T) {
	all, corp, lab := newUpstream(t, says("x. 60 A 1.1.1.1")), newUpstream(t, says("x. 60 A 2.2.2.2")), newUpstream(t, says("x. 60 A 3.3.3.3"))
	ups, err := ParseUpstreams([]string{all.addr.String(), "Corp.example=" + corp.addr.String(), "lab.corp.example.=" + lab.addr.String()})
	if err != nil {
		t.Fatal(err)
	}
	s := newTest(t, testTable, ups)
	for name, want := range map[string]string{
		"example.com.": "1.1.1.1", "corp.example.": "2.2.2.2", "a.CORP.example.": "2.2.2.2", "a.lab.corp.example.": "3.3.3.3", "notcorp.example.": "1.1.1.1",
		"2.0.0.10.in-addr.arpa.": "1.1.1.1", // of two instances
	} {
		if got := say(ask(t, s, name, "A")); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// Answers are kept as long as they say and no longer, those that there is nothing too, and their times to live run down.
func TestCache(t *testing.T) {
	u := newUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		if strings.HasPrefix(q.Question[0].Name, "no") {
			m := new(dns.Msg)
			m.SetRcode(q, dns.RcodeNameError)
			soa, _ := dns.NewRR("example. 300 SOA ns.example. me.example. 1 2 3 4 20")
			m.Ns = []dns.RR{soa}
			return m
		}
		return says(q.Question[0].Name+" 30 A 1.1.1.1")(q, tcp)
	})
	s := newTest(t, testTable, Upstreams{Default: []netip.AddrPort{u.addr}})
	now := time.Now()
	s.fwd.cache.now = func() time.Time { return now }
	for _, c := range []struct {
		name  string
		after time.Duration
		asked int64
		ttl   uint32
	}{
		{"yes.example.", 0, 1, 30}, {"YES.example.", 10 * time.Second, 1, 20}, {"yes.example.", 19 * time.Second, 1, 1}, {"yes.example.", time.Second, 2, 30},
		{"no.example.", 0, 3, 300}, {"no.example.", 19 * time.Second, 3, 281}, {"no.example.", time.Second, 4, 300},
	} {
		now = now.Add(c.after)
		m := ask(t, s, c.name, "A")
		rr := append(m.Answer, m.Ns...)[0].Header()
		if u.asked.Load() != c.asked || rr.Ttl != c.ttl || len(m.Answer) > 0 && rr.Name != c.name {
			t.Errorf("%s after %v: asked %d times, %v; want %d times, %d s left", c.name, c.after, u.asked.Load(), rr, c.asked, c.ttl)
		}
	}
}

// The cache stays within its bounds.
func TestCacheBounds(t *testing.T) {
	c := newCache(time.Now)
	for i := range cacheEntries + 500 {
		q := new(dns.Msg)
		q.SetQuestion(fmt.Sprintf("%d.example.", i), dns.TypeA)
		c.put(question{name: q.Question[0].Name}, says("x. 60 A 1.1.1.1")(q, false))
	}
	if len(c.index) != cacheEntries || c.order.Len() != cacheEntries || c.bytes > cacheBytes {
		t.Errorf("%d entries, %d in order, %d bytes", len(c.index), c.order.Len(), c.bytes)
	}
	if c.get(question{name: "0.example."}) != nil || c.get(question{name: "600.example."}) == nil {
		t.Error("not the least used went")
	}
}

// A server that does not answer, or cannot, is passed over, and asked last for a while.
func TestFailover(t *testing.T) {
	silent := newUpstream(t, func(*dns.Msg, bool) *dns.Msg { return nil })
	broken := newUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg { m := new(dns.Msg); return m.SetRcode(q, dns.RcodeServerFailure) })
	good := newUpstream(t, says("x. 60 A 1.1.1.1"))
	s := newTest(t, testTable, Upstreams{Default: []netip.AddrPort{silent.addr, broken.addr, good.addr}})
	for i := range 3 {
		if got := say(ask(t, s, fmt.Sprintf("%d.example.", i), "A")); got != "1.1.1.1" {
			t.Errorf("got %s", got)
		}
	}
	if silent.asked.Load() != 1 {
		t.Errorf("the silent server was asked %d times, want once", silent.asked.Load())
	}
}

// Large answers are fetched over TCP.
func TestLargeAnswers(t *testing.T) {
	u := newUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		m := new(dns.Msg)
		m.SetReply(q)
		if m.Truncated = !tcp; tcp {
			for i := range 200 {
				rr, _ := dns.NewRR(fmt.Sprintf("%s 60 A 1.1.1.%d", q.Question[0].Name, i))
				m.Answer = append(m.Answer, rr)
			}
		}
		return m
	})
	m := ask(t, newTest(t, testTable, Upstreams{Default: []netip.AddrPort{u.addr}}), "large.example.", "A")
	if len(m.Answer) != 200 {
		t.Errorf("%d answers", len(m.Answer))
	}
}

// Strangers are refused what others answer, and so are those who want no recursion; the zone is answered.
func TestStrangers(t *testing.T) {
	u := newUpstream(t, says("x. 60 A 1.1.1.1"))
	s := newTest(t, testTable, Upstreams{Default: []netip.AddrPort{u.addr}})
	for _, c := range []struct {
		name           string
		local, recurse bool
		want           string
	}{{"example.com.", false, true, "REFUSED"}, {"example.com.", true, false, "REFUSED"}, {"example.com.", true, true, "1.1.1.1"}, {"db.shop.gantry.", false, false, "10.0.0.2"}} {
		q := new(dns.Msg)
		q.SetQuestion(c.name, dns.TypeA)
		q.RecursionDesired = c.recurse
		if got := say(s.answer(q, c.local)); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
	for addr, want := range map[string]bool{"127.0.0.1": true, "10.1.2.3": true, "::ffff:192.168.0.1": true, "fd00::1": true, "8.8.8.8": false, "2001:db8::1": false} {
		if trusted(netip.MustParseAddr(addr)) != want {
			t.Errorf("%s is trusted: %v", addr, !want)
		}
	}
}

// A server does not ask itself, and a ring of servers ends in a failure, not in ever more questions.
func TestLoops(t *testing.T) {
	own := netip.MustParseAddrPort("127.0.0.1:53")
	for _, ups := range []Upstreams{{Default: []netip.AddrPort{own}}, {Domains: map[string][]netip.AddrPort{"a.": {own}}}} {
		if _, err := newForwarder(ups, own, nil); err == nil || !strings.Contains(err.Error(), "this server itself") {
			t.Errorf("%v: %v", ups, err)
		}
	}
	if !self(netip.MustParseAddrPort("0.0.0.0:53"), own) || self(own, netip.MustParseAddrPort("127.0.0.1:54")) || self(own, netip.MustParseAddrPort("127.0.0.2:53")) {
		t.Error("who is itself is not told")
	}
	if testing.Short() {
		t.Skip("a ring takes its time to end")
	}
	a := newTest(t, testTable, Upstreams{file: "testdata/none.conf"})
	b := newTest(t, testTable, Upstreams{Default: []netip.AddrPort{a.Addr()}})
	a.fwd.ups.Default = []netip.AddrPort{b.Addr()}
	if m := ask(t, a, "example.com.", "A"); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", m)
	}
}

// Beyond a number of questions at once, the next fail rather than wait.
func TestMostAsked(t *testing.T) {
	hold, asked := make(chan struct{}), make(chan struct{}, mostAsked)
	u := newUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		asked <- struct{}{}
		<-hold
		return says("x. 60 A 1.1.1.1")(q, tcp)
	})
	s := newTest(t, testTable, Upstreams{Default: []netip.AddrPort{u.addr}})
	for range mostAsked - 1 {
		s.fwd.slots <- struct{}{}
	}
	done := make(chan string, 1)
	go func() { done <- say(ask(t, s, "first.example.", "A")) }()
	<-asked
	if got := say(ask(t, s, "second.example.", "A")); got != "SERVFAIL" {
		t.Errorf("the one too many: %s", got)
	}
	close(hold)
	if got := <-done; got != "1.1.1.1" {
		t.Errorf("the first: %s", got)
	}
}

// The machine's own servers are found, as they change, without this one.
func TestResolvConf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("# here\nsearch corp.example\nnameserver 127.0.0.1\nnameserver 10.0.0.1\nnameserver nonsense\nnameserver 10.0.0.2\nnameserver 10.0.0.3\noptions ndots:2\n")
	got, err := resolvConfFor(netip.MustParseAddrPort("0.0.0.0:53"), file)
	if want := "nameserver 127.0.0.1\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch corp.example\noptions ndots:2\n"; err != nil || string(got) != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, got, want)
	}
	if _, err := resolvConfFor(netip.MustParseAddrPort("127.0.0.1:5353"), file); err == nil {
		t.Error("a port that a resolv.conf cannot name is taken")
	}
	f, err := newForwarder(Upstreams{file: file}, netip.MustParseAddrPort("127.0.0.1:53"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if s := f.serversFor("x."); len(s) != 3 || s[0].String() != "10.0.0.1:53" {
		t.Errorf("servers %v", s)
	}
	write("nameserver 10.9.9.9\n")
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(file, later, later); err != nil {
		t.Fatal(err)
	}
	f.looked = time.Time{}
	if s := f.serversFor("x."); len(s) != 1 || s[0].String() != "10.9.9.9:53" {
		t.Errorf("servers %v", s)
	}
}

// What is no server is refused with what would be right.
func TestParseUpstreams(t *testing.T) {
	for _, s := range []string{"", "example.com", "1.2.3.4:0", "1.2.3.4:99999", "=1.2.3.4", "a b=1.2.3.4", "corp=", "a..b=1.2.3.4"} {
		if _, err := ParseUpstreams([]string{s}); err == nil || !strings.Contains(err.Error(), "\""+s+"\"") {
			t.Errorf("%q: %v", s, err)
		}
	}
	u, err := ParseUpstreams([]string{"1.2.3.4", "[fd00::1]:5353", "fd00::2", ".=9.9.9.9"})
	if err != nil || len(u.Default) != 4 || u.Default[0].String() != "1.2.3.4:53" || u.Default[1].String() != "[fd00::1]:5353" {
		t.Errorf("%v, %v", u, err)
	}
}

// Run ends with its context, and gives the port back.
func TestRunEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, err := New(netip.MustParseAddrPort("127.0.0.1:0"), Config{Table: testTable})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	if _, err := New(s.Addr(), Config{Table: testTable}); err == nil {
		t.Error("two listen on one port")
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("Run ended without saying why")
	}
	again, err := New(s.Addr(), Config{Table: testTable})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.close(); err != nil {
		t.Error(err)
	}
}
