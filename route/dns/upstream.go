package dns

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// resolvConf is where a machine says who answers its questions.
const resolvConf = "/etc/resolv.conf"

// Upstreams says who answers what is not of the zone.
type Upstreams struct {
	Default []netip.AddrPort            // for everything; none for those of the machine's resolv.conf
	Domains map[string][]netip.AddrPort // for names at or below a domain, in lower case with the dot at its end

	file string // instead of resolvConf, for tests
}

// ParseUpstreams reads ADDRESS, ADDRESS:PORT, DOMAIN=ADDRESS and DOMAIN=ADDRESS:PORT. Several for the same domain are tried in turn.
func ParseUpstreams(list []string) (Upstreams, error) {
	u := Upstreams{Domains: map[string][]netip.AddrPort{}}
	for _, s := range list {
		domain, addr, ok := strings.Cut(s, "=")
		if !ok {
			domain, addr = ".", s
		}
		if _, valid := dns.IsDomainName(domain); !valid || domain == "" || strings.ContainsAny(domain, " \t") {
			return Upstreams{}, fmt.Errorf("%q: %q is not a domain", s, domain)
		}
		at, err := parseServer(addr)
		if err != nil {
			return Upstreams{}, fmt.Errorf("%q: write ADDRESS, ADDRESS:PORT, DOMAIN=ADDRESS or DOMAIN=ADDRESS:PORT: %w", s, err)
		}
		if domain = dns.Fqdn(strings.ToLower(domain)); domain == "." {
			u.Default = append(u.Default, at)
		} else {
			u.Domains[domain] = append(u.Domains[domain], at)
		}
	}
	return u, nil
}

func parseServer(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	at, err := netip.ParseAddrPort(s)
	if err == nil && at.Port() == 0 {
		err = fmt.Errorf("%q has port 0", s)
	}
	return at, err
}

// of returns who is asked for a name: those of the longest domain that it is in.
func (u *Upstreams) of(name string) (servers []netip.AddrPort, ok bool) {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		if s, ok := u.Domains[name[off:]]; ok {
			return s, true
		}
	}
	return nil, false
}

// self reports whether a server that listens on own is what is reached at addr.
func self(own, addr netip.AddrPort) bool {
	if addr.Port() != own.Port() {
		return false
	}
	a, o := addr.Addr().Unmap().WithZone(""), own.Addr().Unmap().WithZone("")
	return a == o || a.IsUnspecified() || o.IsUnspecified() && localAddress(a)
}

// localAddress reports whether a is one of this machine's.
func localAddress(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	return slices.Contains(localAddresses(), a)
}

// resolvers returns the servers that a resolv.conf names, without own, and its other lines as they are.
func resolvers(file string, own netip.AddrPort) (servers []netip.AddrPort, rest []string, err error) {
	f, err := os.Open(cmp.Or(file, resolvConf))
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, 64<<10))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			if len(fields) > 0 && fields[0][0] != '#' && fields[0][0] != ';' {
				rest = append(rest, lines.Text())
			}
			continue
		}
		a, err := netip.ParseAddr(fields[1])
		if err != nil {
			continue // as the C library does
		}
		if at := netip.AddrPortFrom(a, 53); !self(own, at) && !slices.Contains(servers, at) {
			servers = append(servers, at)
		}
	}
	return servers, rest, lines.Err()
}

// ResolvConf returns a resolv.conf for programs of this machine by which they ask the server at own, and go on to the machine's
// own servers while it does not answer. It fails when a resolv.conf cannot name own, which has to listen on port 53.
func ResolvConf(own netip.AddrPort) ([]byte, error) { return resolvConfFor(own, resolvConf) }

func resolvConfFor(own netip.AddrPort, file string) ([]byte, error) {
	if own.Port() != 53 {
		return nil, fmt.Errorf("programs ask port 53 only, and %v is another", own)
	}
	first := own.Addr()
	if first.IsUnspecified() {
		first = netip.MustParseAddr("127.0.0.1")
		if own.Addr().Is6() {
			first = netip.IPv6Loopback()
		}
	}
	servers, rest, err := resolvers(file, own)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	var out strings.Builder
	fmt.Fprintf(&out, "nameserver %v\n", first)
	for _, s := range servers[:min(len(servers), 2)] { // more than three are not looked at
		fmt.Fprintf(&out, "nameserver %v\n", s.Addr())
	}
	for _, line := range rest {
		out.WriteString(line + "\n")
	}
	return []byte(out.String()), nil
}
