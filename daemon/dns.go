package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"github.com/gantry-os/gantry/route"
	"github.com/gantry-os/gantry/route/dns"
)

// What DNSOptions.Listen may say beside an address.
const (
	DNSAuto = "auto" // DNSAddr for root, else off
	DNSOff  = "off"
)

// DNSAddr is where a node answers names where the operator says nothing: an address of loopback that others leave alone, on the
// port that resolv.conf can name.
const DNSAddr = "127.53.53.53:53"

// DNSOptions is what an operator can choose for the names that a node answers.
type DNSOptions struct {
	Listen    string   // address:port, DNSAuto or DNSOff
	Zone      string   // domain of the names of apps
	Upstreams []string // who answers all others, see dns.ParseUpstreams; none for those of the machine
}

func (o *DNSOptions) validate() error {
	if _, err := o.addr(); err != nil {
		return err
	}
	if err := dns.CheckZone(o.Zone); err != nil {
		return fmt.Errorf("--dns-zone: %w", err)
	}
	if _, err := dns.ParseUpstreams(o.Upstreams); err != nil {
		return fmt.Errorf("--dns-upstream: %w", err)
	}
	return nil
}

// addr returns where to listen, the zero value for nowhere.
func (o *DNSOptions) addr() (netip.AddrPort, error) {
	listen := o.Listen
	switch {
	case listen == DNSAuto && os.Geteuid() == 0:
		listen = DNSAddr
	case listen == DNSAuto, listen == DNSOff:
		return netip.AddrPort{}, nil
	}
	at, err := netip.ParseAddrPort(listen)
	if err != nil {
		return at, fmt.Errorf("--dns-listen %q: write address:port such as %s, %s or %s", o.Listen, DNSAddr, DNSAuto, DNSOff)
	}
	return at, nil
}

// openDNS listens for questions, and writes the resolv.conf by which containers ask. A node is of use without names, so it only
// says why there are none.
func (h *host) openDNS() (server *dns.Server, resolv string) {
	log := h.logger.With("part", "dns")
	at, err := h.DNS.addr()
	if err != nil || !at.IsValid() {
		return nil, "" // it was refused before
	}
	ups, err := dns.ParseUpstreams(h.DNS.Upstreams)
	if err == nil {
		server, err = dns.New(at, dns.Config{Zone: h.DNS.Zone, Table: func() *route.Table { return h.agent.Table() }, Upstreams: ups, Logger: log})
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		err = errors.New("another program listens there: stop it and start Gantry again, or give another --dns-listen")
	}
	if err != nil {
		log.Warn("this node answers no names", "listen", at, "error", err)
		return nil, ""
	}
	resolv, err = h.writeResolv(server.Addr())
	if err != nil {
		log.Info("programs do not ask this node for names by themselves", "listen", server.Addr(), "why", err)
	}
	return server, resolv
}

// writeResolv writes the resolv.conf of containers, in place: those that run see the file itself.
func (h *host) writeResolv(at netip.AddrPort) (string, error) {
	text, err := dns.ResolvConf(at)
	if err != nil {
		return "", err
	}
	file := filepath.Join(h.dataDir, "agent", "resolv.conf")
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, text) {
		return file, nil
	}
	return file, os.WriteFile(file, text, 0o644)
}

// serveDNS answers questions until the end.
func (h *host) serveDNS(s *dns.Server) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		err := s.Run(ctx)
		if ctx.Err() == nil {
			h.logger.Error("this node answers no names any more", "error", err)
		}
		ended <- err
	}()
	h.later(func() error {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	})
}
