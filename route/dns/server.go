// Package dns answers the names of a node's endpoint table, and passes every other question on.
//
// Zone is what the table says, see names.go for how things are called; forward.go and cache.go are the rest of the world. A
// Server answers over UDP and TCP from whichever table is the newest at that moment, and needs nobody else for that.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/route"
)

// DefaultZone is the zone of names where the operator chose none.
const DefaultZone = "gantry"

// Sizes of UDP messages: what is never too much for a client, and what passes every network undivided.
const (
	leastUDP = dns.MinMsgSize
	mostUDP  = 1232
)

// Config is what a Server has to work with.
type Config struct {
	Zone      string              // default DefaultZone
	Table     func() *route.Table // required; nil while nothing is known
	Upstreams Upstreams           // who answers all else
	Logger    *slog.Logger        // default slog.Default
}

// Server answers questions. It listens from New on and serves while Run does.
type Server struct {
	zone zone
	fwd  *forwarder
	addr netip.AddrPort
	udp  net.PacketConn
	tcp  net.Listener
}

// New returns a Server that listens on addr, for UDP and TCP; with port 0 on one that is free for both.
func New(addr netip.AddrPort, cfg Config) (*Server, error) {
	if cfg.Zone == "" {
		cfg.Zone = DefaultZone
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := CheckZone(cfg.Zone); err != nil {
		return nil, err
	}
	s := &Server{zone: newZone(cfg.Zone, cfg.Table)}
	if err := s.listen(addr); err != nil {
		return nil, err
	}
	fwd, err := newForwarder(cfg.Upstreams, s.addr, cfg.Logger)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.fwd = fwd
	return s, nil
}

// listen opens both sockets.
func (s *Server) listen(addr netip.AddrPort) (err error) {
	for range 20 { // a port that was free for UDP may not be for TCP
		if s.udp, err = net.ListenPacket("udp", addr.String()); err != nil {
			return err
		}
		s.addr = netip.MustParseAddrPort(s.udp.LocalAddr().String())
		if s.tcp, err = net.Listen("tcp", s.addr.String()); err == nil {
			return nil
		}
		_ = s.udp.Close() // nothing was done with it
		if addr.Port() != 0 {
			break
		}
	}
	return err
}

func (s *Server) close() error { return errors.Join(s.udp.Close(), s.tcp.Close()) }

// Addr returns where s listens.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	udp := &dns.Server{PacketConn: s.udp, Handler: s, UDPSize: 4096}
	tcp := &dns.Server{Listener: s.tcp, Handler: s, ReadTimeout: 5 * time.Second, IdleTimeout: func() time.Duration { return 10 * time.Second }}
	group, ctx := errgroup.WithContext(ctx)
	for _, srv := range []*dns.Server{udp, tcp} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		group.Go(srv.ActivateAndServe)
		group.Go(func() error {
			<-ctx.Done()
			select {
			case <-started:
			case <-time.After(time.Second): // it failed to start
				return context.Cause(ctx)
			}
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_ = srv.ShutdownContext(end) // who still waits for an answer asks another server
			return context.Cause(ctx)
		})
	}
	return group.Wait()
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	_, tcp := w.LocalAddr().(*net.TCPAddr)
	var local bool
	if a, err := netip.ParseAddrPort(w.RemoteAddr().String()); err == nil {
		local = trusted(a.Addr())
	}
	if m := s.answer(q, local); m != nil {
		fit(m, q, tcp)
		_ = w.WriteMsg(m) // whoever asked asks again
	}
}

// trusted reports whether a client may ask for what others answer. Strangers could use such answers to flood somebody.
func trusted(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast()
}

// answer returns the answer to a question, before it is fitted to the size that the client takes; nil for none.
func (s *Server) answer(q *dns.Msg, local bool) *dns.Msg {
	if q.Response {
		return nil
	}
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = local
	switch opt := q.IsEdns0(); {
	case q.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
	case len(q.Question) != 1:
		m.Rcode = dns.RcodeFormatError
	case opt != nil && opt.Version() != 0:
		m.Rcode = dns.RcodeBadVers
	case q.Question[0].Qclass != dns.ClassINET && q.Question[0].Qclass != dns.ClassANY:
		m.Rcode = dns.RcodeRefused
	case s.zone.answer(m, &q.Question[0]):
	case !local || !q.RecursionDesired:
		m.Rcode = dns.RcodeRefused
	default:
		s.fwd.answer(m, q)
	}
	return m
}

// fit gives m the client's EDNS0 record back, and cuts it to the size that the client takes.
func fit(m, q *dns.Msg, tcp bool) {
	size := leastUDP
	if opt := q.IsEdns0(); opt != nil {
		size = min(max(int(opt.UDPSize()), leastUDP), mostUDP)
		m.SetEdns0(mostUDP, opt.Do())
	}
	if tcp {
		size = dns.MaxMsgSize
	}
	if m.Rcode > 0xF && m.IsEdns0() == nil {
		m.Rcode = dns.RcodeServerFailure // there is no room for the code
	}
	m.Truncate(size)
}

// CheckZone returns what is wrong with the name of a zone.
func CheckZone(name string) error {
	trimmed := strings.TrimSuffix(name, ".")
	if _, ok := dns.IsDomainName(name); trimmed == "" || !ok || len(trimmed) > 40 {
		return fmt.Errorf("%q is not a domain of at most 40 characters, such as %s", name, DefaultZone)
	}
	for label := range strings.SplitSeq(trimmed, ".") {
		for _, r := range label {
			if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
				return fmt.Errorf("%q has %q: lower-case letters, digits and '-' are allowed", name, r)
			}
		}
		if label == "" || strings.Trim(label, "-") != label {
			return fmt.Errorf("%q is not a domain such as %s", name, DefaultZone)
		}
	}
	return nil
}
