package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

// Times and bounds of asking others.
const (
	tryTime      = 1500 * time.Millisecond // for one server
	mostAsked    = 500                     // questions that others are asked at once
	badFor       = 5 * time.Second         // for which a server that did not answer is asked last
	lookAgain    = 5 * time.Second         // between looks at the resolv.conf
	mostWait     = 4 * time.Second         // in all
	mostAttempts = 4
)

// forwarder asks others.
type forwarder struct {
	ups    Upstreams
	own    netip.AddrPort
	log    *slog.Logger
	cache  *cache
	flight singleflight.Group
	slots  chan struct{} // holds an element for each question under way

	mu      sync.Mutex
	servers []netip.AddrPort             // of the resolv.conf
	looked  time.Time                    // at the resolv.conf
	changed time.Time                    // the resolv.conf, when it was read
	bad     map[netip.AddrPort]time.Time // until when a server is asked last
}

// newForwarder refuses to ask the server at own, which would ask itself.
func newForwarder(ups Upstreams, own netip.AddrPort, log *slog.Logger) (*forwarder, error) {
	for _, s := range ups.Default {
		if self(own, s) {
			return nil, fmt.Errorf("the upstream %v is this server itself", s)
		}
	}
	for domain, list := range ups.Domains {
		for _, s := range list {
			if self(own, s) {
				return nil, fmt.Errorf("the upstream %v of %s is this server itself", s, domain)
			}
		}
	}
	return &forwarder{
		ups: ups, own: own, log: log, cache: newCache(time.Now), slots: make(chan struct{}, mostAsked), bad: map[netip.AddrPort]time.Time{},
	}, nil
}

// answer fills m with what others, or the cache, answer to q.
func (f *forwarder) answer(m, q *dns.Msg) {
	ask := question{name: strings.ToLower(q.Question[0].Name), kind: q.Question[0].Qtype, class: q.Question[0].Qclass, checked: q.CheckingDisabled}
	if opt := q.IsEdns0(); opt != nil {
		ask.secure = opt.Do()
	}
	got := f.cache.get(ask)
	if got == nil {
		got = f.ask(ask)
	}
	if got == nil {
		m.Rcode = dns.RcodeServerFailure
		return
	}
	m.Rcode, m.Answer, m.Ns, m.AuthenticatedData = got.Rcode, got.Answer, got.Ns, got.AuthenticatedData
	for _, rr := range got.Extra {
		if rr.Header().Rrtype != dns.TypeOPT { // that is between each two
			m.Extra = append(m.Extra, rr)
		}
	}
	for _, rr := range m.Answer { // names may differ by case, which the client may check
		if h := rr.Header(); strings.EqualFold(h.Name, q.Question[0].Name) {
			h.Name = q.Question[0].Name
		}
	}
}

// ask asks others, once for all who ask the same at the same time, so that a ring of servers that ask each other does not feed
// itself. It returns nil when nobody answers.
func (f *forwarder) ask(q question) *dns.Msg {
	got, _, _ := f.flight.Do(fmt.Sprint(q), func() (any, error) {
		select {
		case f.slots <- struct{}{}:
			defer func() { <-f.slots }()
		default:
			return (*dns.Msg)(nil), nil
		}
		m := f.exchange(q)
		if m != nil {
			f.cache.put(q, m)
		}
		return m, nil
	})
	if m := got.(*dns.Msg); m != nil {
		return m.Copy()
	}
	return nil
}

// exchange asks one server after the other.
func (f *forwarder) exchange(q question) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.kind)
	m.Question[0].Qclass = q.class
	m.CheckingDisabled = q.checked
	m.SetEdns0(mostUDP, q.secure)
	ctx, cancel := context.WithTimeout(context.Background(), mostWait)
	defer cancel()
	var last *dns.Msg
	servers := f.serversFor(q.name)
	for _, s := range servers[:min(len(servers), mostAttempts)] {
		got, err := exchange(ctx, m, s)
		f.judge(s, err)
		switch {
		case err != nil:
			f.log.Debug("a DNS server does not answer", "server", s, "name", q.name, "error", err)
		case got.Rcode == dns.RcodeSuccess || got.Rcode == dns.RcodeNameError:
			return got
		default:
			last = got // another may know more
		}
		if ctx.Err() != nil {
			break
		}
	}
	return last
}

// exchange asks one server, over TCP when its answer does not fit into UDP.
func exchange(ctx context.Context, m *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	c := dns.Client{Net: "udp", Timeout: tryTime, UDPSize: mostUDP}
	m.Id = dns.Id()
	got, _, err := c.ExchangeContext(ctx, m, server.String())
	if err == nil && got.Truncated {
		c.Net = "tcp"
		got, _, err = c.ExchangeContext(ctx, m, server.String())
	}
	if err != nil {
		return nil, err
	}
	if len(got.Question) != 1 || !strings.EqualFold(got.Question[0].Name, m.Question[0].Name) || got.Question[0].Qtype != m.Question[0].Qtype {
		return nil, fmt.Errorf("it answers another question")
	}
	return got, nil
}

// judge takes in whether a server answered.
func (f *forwarder) judge(server netip.AddrPort, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.bad, server)
	} else {
		f.bad[server] = time.Now().Add(badFor)
	}
}

// serversFor returns who is asked for a name, in that order: those last that did not answer lately.
func (f *forwarder) serversFor(name string) []netip.AddrPort {
	servers, ok := f.ups.of(name)
	if !ok {
		servers = f.ups.Default
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(servers) == 0 {
		servers = f.machineLocked()
	}
	now := time.Now()
	var good, bad []netip.AddrPort
	for _, s := range servers {
		if now.Before(f.bad[s]) {
			bad = append(bad, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, bad...)
}

// machineLocked returns the servers of the machine, as of a moment ago.
func (f *forwarder) machineLocked() []netip.AddrPort {
	if time.Since(f.looked) < lookAgain {
		return f.servers
	}
	f.looked = time.Now()
	file := resolvConf
	if f.ups.file != "" {
		file = f.ups.file
	}
	info, err := os.Stat(file)
	if err == nil && info.ModTime().Equal(f.changed) {
		return f.servers
	}
	servers, _, err := resolvers(file, f.own)
	if err != nil {
		f.log.Warn("whom this machine asks for names cannot be read", "file", file, "error", err)
		return f.servers
	}
	clear(f.bad)
	f.servers, f.changed = servers, info.ModTime()
	return f.servers
}

// localAddresses returns the addresses of this machine.
func localAddresses() []netip.Addr {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out
}
