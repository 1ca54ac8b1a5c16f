package pki

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"sync"

	"github.com/gantry-os/gantry/model"
)

// ServerTLS returns the configuration of a listener that takes machines of some roles, and nobody else. With no roles it
// asks nobody for a certificate: it is for doors at which people and joining machines knock. What the machine trusts and
// shows is looked up for each connection. Connections that come through Listener are cut when their machine is revoked.
func (m *Machine) ServerTLS(roles ...model.MachineRole) *tls.Config {
	base := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return m.cur.Load().cert, nil },
		SessionTicketsDisabled: true, // connections are long, and a resumed one would have to be verified anyway
		NextProtos:             []string{"h2", "http/1.1"},
	}
	if len(roles) == 0 {
		return base
	}
	base.ClientAuth = tls.RequireAnyClientCert // and VerifyConnection says which
	base.VerifyConnection = func(cs tls.ConnectionState) error { _, err := m.verify(cs, roles); return err }
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		l := linkOf(hello.Conn)
		if l == nil {
			return nil, nil // base it is
		}
		own := base.Clone()
		own.VerifyConnection = func(cs tls.ConnectionState) error {
			p, err := m.verify(cs, roles)
			if err != nil {
				return err
			}
			return m.hold(l, p)
		}
		return own, nil
	}
	return base
}

// linkOf returns the connection that Listener gave out, which others may have wrapped; nil when it is none.
func linkOf(c net.Conn) *link {
	for {
		switch x := c.(type) {
		case *link:
			return x
		case interface{ NetConn() net.Conn }:
			c = x.NetConn()
		default:
			return nil
		}
	}
}

// ClientTLS returns the configuration by which this machine calls servers of its cluster, by whatever address. It shows
// its certificate when it is asked.
func (m *Machine) ClientTLS() *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		InsecureSkipVerify:   true, // of host names: VerifyConnection looks at who it is
		VerifyConnection:     func(cs tls.ConnectionState) error { _, err := m.verify(cs, servers); return err },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return m.cur.Load().cert, nil },
	}
}

var servers = []model.MachineRole{model.ServerMachine}

// verify returns the machine at the other end, if it is of the cluster, has one of the roles, and is not revoked.
func (m *Machine) verify(cs tls.ConnectionState, roles []model.MachineRole) (Peer, error) {
	p, err := m.cur.Load().trust.verify(cs.PeerCertificates, m.now(), roles...)
	if err != nil {
		return Peer{}, err
	}
	return p, m.refuses(p)
}

func (m *Machine) refuses(p Peer) error {
	if _, gone := (*m.revoked.Load())[p.revocation()]; gone {
		return fmt.Errorf("%w: %s was", ErrRevoked, p)
	}
	return nil
}

// Roots returns what the machine trusts now, for callers of servers that are no machines, such as the CLI.
func (m *Machine) Roots() *x509.CertPool { return m.cur.Load().trust.pool.Clone() }

// link is something that lives as long as its machine is welcome: most often a connection.
type link struct {
	net.Conn
	m    *Machine
	cut  func()
	once sync.Once
	err  error

	// With Machine.mu:
	peer   Peer // once it is held
	closed bool
}

// Close implements net.Conn.
func (l *link) Close() error {
	l.once.Do(func() {
		l.m.release(l)
		l.err = l.Conn.Close()
	})
	return l.err
}

// hold keeps l until it is released, so that it can be cut. A revocation either finds it or is found.
func (m *Machine) hold(l *link, p Peer) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.refuses(p); err != nil {
		return err
	}
	if l.closed {
		return net.ErrClosed
	}
	l.peer = p
	m.links[l] = struct{}{}
	return nil
}

func (m *Machine) release(l *link) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l.closed = true
	delete(m.links, l)
}

// OnRevoked calls cut, once, when p is revoked before stop is called; at once when it already is.
func (m *Machine) OnRevoked(p Peer, cut func()) (stop func()) {
	l := &link{m: m, cut: cut}
	if m.hold(l, p) != nil {
		cut()
		return func() {}
	}
	return func() { m.release(l) }
}

// Listener returns l with connections that are cut when their machine is revoked. It belongs under TLS.
func (m *Machine) Listener(l net.Listener) net.Listener { return gate{l, m} }

type gate struct {
	net.Listener
	m *Machine
}

// Accept implements net.Listener.
func (g gate) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l := &link{Conn: c, m: g.m}
	l.cut = func() { l.Close() }
	return l, nil
}

// Revoke replaces the set of revoked machines, by keys of revocations, and cuts their connections.
func (m *Machine) Revoke(keys []string) {
	set := make(map[string]struct{}, len(keys))
	for _, k := range keys {
		set[k] = struct{}{}
	}
	var cut []*link
	m.mu.Lock()
	m.revoked.Store(&set)
	for l := range m.links {
		if _, gone := set[l.peer.revocation()]; gone {
			delete(m.links, l)
			cut = append(cut, l)
		}
	}
	m.mu.Unlock()
	for _, l := range cut {
		l.cut()
	}
}
