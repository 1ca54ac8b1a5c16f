package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gantry-os/gantry/model"
)

const (
	machineFile = "machine.json"
	pemFile     = "machine.pem"
	rootsFile   = "ca.pem"

	// checkEvery is how often a machine asks what the cluster trusts, though nobody nudges it.
	checkEvery = 10 * time.Minute
	retryLeast = time.Second
	retryMost  = time.Minute
	// rounds bounds the calls of one CheckIn: take new trust, say so, get a certificate of the new root, say so.
	rounds = 5
)

// Door is where a machine checks in: a Registrar in the same process, Self, or a Client.
type Door interface {
	CheckIn(context.Context, CheckIn) (*Standing, error)
}

// Machine is the identity of this machine in a cluster: its key and certificate and what it trusts. It is kept in a
// directory of its own, replaced as a whole, and takes effect in all TLS configurations at once.
//
// Beside what Machine itself reads, the directory has machine.pem (key, certificate and chain) and ca.pem, always current, for
// software that reads files.
type Machine struct {
	dir    string
	hosts  []string // of a server
	now    func() time.Time
	logger *slog.Logger
	nudged chan struct{}

	turn sync.Mutex // one CheckIn at a time
	cur  atomic.Pointer[papers]

	mu      sync.Mutex
	revoked atomic.Pointer[map[string]struct{}] // written with mu
	links   map[*link]struct{}
}

// papers is a machine's identity at one time: immutable.
type papers struct {
	peer    Peer
	cert    *tls.Certificate
	trust   *trust
	due     time.Time // when to renew
	servers []string
}

// stored is a Machine on disk.
type stored struct {
	Cluster string   `json:"cluster"`
	Trust   uint64   `json:"trust"`
	Roots   [][]byte `json:"roots"`
	Chain   [][]byte `json:"chain"`
	Key     []byte   `json:"key"` // PKCS #8
	Hosts   []string `json:"hosts,omitempty"`
	Servers []string `json:"servers,omitempty"`
	Revoked []string `json:"revoked,omitempty"`
}

// MachineOptions are what may be told to a Machine. Zero fields take their defaults.
type MachineOptions struct {
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default
	// Hosts are the addresses and host names that the certificate of a server that is opened is to name; by default, those that
	// it named before. When they are others, the next CheckIn gets a certificate for them.
	Hosts []string
}

// OpenMachine returns the machine in dir; errors.Is(err, fs.ErrNotExist) holds when there is none. Its certificate may
// have expired: then it can check in, and nothing else.
func OpenMachine(dir string, o MachineOptions) (*Machine, error) {
	var s stored
	if err := readPrivate(filepath.Join(dir, machineFile), &s); err != nil {
		return nil, fmt.Errorf("open this machine's identity: %w", err)
	}
	m := newMachine(dir, o)
	p, err := m.read(s)
	if err == nil {
		err = m.export(s)
	}
	if err != nil {
		return nil, fmt.Errorf("open this machine's identity: %s: %w", dir, err)
	}
	if m.hosts = s.Hosts; len(o.Hosts) > 0 && p.peer.Role == model.ServerMachine {
		if err := checkHosts(o.Hosts); err != nil {
			return nil, fmt.Errorf("open this machine's identity: %w", err)
		}
		m.hosts = o.Hosts
	}
	m.cur.Store(p)
	m.Revoke(s.Revoked)
	return m, nil
}

func newMachine(dir string, o MachineOptions) *Machine {
	m := &Machine{dir: dir, now: o.Now, logger: o.Logger, nudged: make(chan struct{}, 1), links: map[*link]struct{}{}}
	if m.now == nil {
		m.now = time.Now
	}
	if m.logger == nil {
		m.logger = slog.Default()
	}
	m.revoked.Store(&map[string]struct{}{})
	return m
}

// read makes papers of what is stored, and refuses what does not fit together.
func (m *Machine) read(s stored) (*papers, error) {
	t, err := newTrust(s.Cluster, s.Trust, s.Roots)
	if err != nil {
		return nil, err
	}
	chain, err := parseChain(s.Chain)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(s.Key)
	if err != nil {
		return nil, fmt.Errorf("read the key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(chain[0].PublicKey) {
		return nil, errors.New("the key is not that of the certificate")
	}
	peer, err := t.verify(chain, chain[0].NotAfter)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	p := &papers{
		peer: peer, trust: t, servers: s.Servers,
		cert: &tls.Certificate{Certificate: s.Chain, PrivateKey: key, Leaf: leaf},
		// At two thirds of its life, and some before, so that machines that joined together do not renew together.
		due: leaf.NotBefore.Add(2*life/3 - time.Duration(mathrand.Int64N(int64(life/10)+1))),
	}
	return p, nil
}

// take makes s this machine's identity, on disk first.
func (m *Machine) take(s stored) error {
	p, err := m.read(s)
	if err != nil {
		return err
	}
	if old := m.cur.Load(); old != nil && old.cert.Leaf.Equal(p.cert.Leaf) {
		p.due = old.due
	}
	if err := m.export(s); err != nil {
		return err
	}
	if err := writePrivate(filepath.Join(m.dir, machineFile), s); err != nil {
		return fmt.Errorf("keep this machine's identity: %w", err)
	}
	m.cur.Store(p)
	return nil
}

// export writes what others read: first the roots, which always cover the certificate that is there.
func (m *Machine) export(s stored) error {
	var roots, own []byte
	for _, der := range s.Roots {
		roots = append(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	for _, der := range s.Chain {
		own = append(own, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	own = append(own, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: s.Key})...)
	for _, f := range []struct {
		name    string
		content []byte
	}{{rootsFile, roots}, {pemFile, own}} {
		path := filepath.Join(m.dir, f.name)
		if old, err := os.ReadFile(path); err == nil && slices.Equal(old, f.content) {
			continue
		}
		if err := replaceFile(path, f.content); err != nil {
			return fmt.Errorf("keep this machine's identity: %w", err)
		}
	}
	return nil
}

// Found makes a new cluster, with this machine as its first server, in dir. Registrar.Settle tells the truth of it.
func Found(dir, name string, hosts []string, o MachineOptions) (*Authority, *Machine, error) {
	if err := model.CheckMachineName(name); err != nil {
		return nil, nil, err
	}
	m := newMachine(dir, o)
	a, err := OpenAuthority(dir) // a start that was cut short may have come this far
	if errors.Is(err, fs.ErrNotExist) {
		a, err = foundAuthority(dir, m.now())
	}
	if err != nil {
		return nil, nil, err
	}
	key, csr, err := newCSR(model.ServerMachine, hosts)
	if err != nil {
		return nil, nil, err
	}
	c := a.Cluster()
	pub, hosts, err := parseCSR(csr, model.ServerMachine)
	if err != nil {
		return nil, nil, err
	}
	chain, _, err := a.issue(c, subject{model.MachineOf(model.ServerMachine, name), newEpoch(), hosts, pub}, m.now(), DefaultTTL)
	if err != nil {
		return nil, nil, err
	}
	return a, m, m.begin(Standing{Cluster: c.ID, Trust: c.Trust, Roots: rootsOf(c), Chain: chain}, key, hosts)
}

// begin takes the first certificate.
func (m *Machine) begin(st Standing, key *ecdsa.PrivateKey, hosts []string) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	m.hosts = hosts
	return m.take(stored{
		Cluster: st.Cluster, Trust: st.Trust, Roots: st.Roots, Chain: st.Chain, Key: der, Hosts: hosts, Servers: st.Servers, Revoked: st.Revoked,
	})
}

// Peer returns who this machine is.
func (m *Machine) Peer() Peer { return m.cur.Load().peer }

// Servers returns where servers are reached, as the cluster last said.
func (m *Machine) Servers() []string { return m.cur.Load().servers }

// Expires returns when the machine's certificate ends.
func (m *Machine) Expires() time.Time { return m.cur.Load().cert.Leaf.NotAfter }

// Trust returns which change of the cluster's trust the machine knows.
func (m *Machine) Trust() uint64 { return m.cur.Load().trust.version }

// Files returns the paths of machine.pem, which is certificate and key in one, and ca.pem.
func (m *Machine) Files() (own, roots string) {
	return filepath.Join(m.dir, pemFile), filepath.Join(m.dir, rootsFile)
}

// Nudge makes Run check in now, since what the cluster trusts has changed.
func (m *Machine) Nudge() {
	select {
	case m.nudged <- struct{}{}:
	default:
	}
}

// Run keeps the machine's certificate and trust current until ctx ends, or the machine is put out of the cluster.
func (m *Machine) Run(ctx context.Context, door Door) error {
	wait, retry := time.Duration(0), retryLeast
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-m.nudged:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		switch err := m.CheckIn(ctx, door); {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrRevoked):
			return err
		case err != nil:
			wait, retry = retry, min(2*retry, retryMost)
			m.logger.Warn("check in with the servers: trying again", "wait", wait, "expires", m.Expires(), "err", err)
		default:
			wait, retry = min(checkEvery, max(0, m.cur.Load().due.Sub(m.now()))), retryLeast
		}
		timer.Reset(wait - wait/10 + time.Duration(mathrand.Int64N(int64(wait/5)+1)))
	}
}

// CheckIn says how the machine stands, takes what the cluster trusts now, and renews the certificate when it is due, names
// other hosts than it is to, or comes from a root that signs no more. It returns when there is nothing left to say.
func (m *Machine) CheckIn(ctx context.Context, door Door) error {
	m.turn.Lock()
	defer m.turn.Unlock()
	issuer := ""
	for range rounds {
		p := m.cur.Load()
		in := CheckIn{Chain: p.cert.Certificate, Trust: p.trust.version}
		var key *ecdsa.PrivateKey
		if !m.now().Before(p.due) || issuer != "" && issuer != p.trust.issuerOf(p.cert.Leaf) || !p.names(m.hosts) {
			var err error
			if key, in.CSR, err = newCSR(p.peer.Role, m.hosts); err != nil {
				return err
			}
		}
		if err := in.sign(p.cert.PrivateKey.(*ecdsa.PrivateKey)); err != nil {
			return err
		}
		st, err := door.CheckIn(ctx, in)
		if err != nil {
			return err
		}
		news, err := m.adopt(p, st, key)
		if err != nil {
			return err
		}
		issuer = st.Issuer
		if p = m.cur.Load(); !news && issuer == p.trust.issuerOf(p.cert.Leaf) {
			return nil
		}
	}
	return fmt.Errorf("%w: the cluster's trust changes faster than this machine can follow", ErrUnavailable)
}

// names reports whether p's certificate is for hosts, and no others. An agent's is for none, whatever it was told.
func (p *papers) names(hosts []string) bool {
	if p.peer.Role != model.ServerMachine {
		return true
	}
	var has []string
	for _, name := range p.cert.Leaf.DNSNames {
		if name != ServerName(p.peer.Cluster) {
			has = append(has, name)
		}
	}
	for _, ip := range p.cert.Leaf.IPAddresses {
		has = append(has, ip.String())
	}
	var want []string
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			h = ip.String()
		}
		want = append(want, h)
	}
	slices.Sort(has)
	slices.Sort(want)
	return slices.Equal(slices.Compact(has), slices.Compact(want))
}

// adopt takes an answer, and returns whether there is something in it that the servers have to hear was taken.
func (m *Machine) adopt(p *papers, st *Standing, key *ecdsa.PrivateKey) (news bool, err error) {
	if st.Cluster != p.peer.Cluster {
		return false, fmt.Errorf("%w: the server is of cluster %s, this machine of %s", ErrUntrusted, st.Cluster, p.peer.Cluster)
	}
	if st.Trust < p.trust.version {
		return false, fmt.Errorf("%w: the server is behind", ErrUnavailable)
	}
	s := stored{Cluster: st.Cluster, Trust: st.Trust, Roots: st.Roots, Chain: p.cert.Certificate, Hosts: m.hosts, Servers: st.Servers, Revoked: st.Revoked}
	own := p.cert.PrivateKey.(*ecdsa.PrivateKey)
	if key != nil {
		if len(st.Chain) == 0 {
			return false, fmt.Errorf("%w: the server gave no certificate", ErrUnavailable)
		}
		s.Chain, own = st.Chain, key
	}
	if s.Key, err = x509.MarshalPKCS8PrivateKey(own); err != nil {
		return false, err
	}
	news = key != nil || st.Trust != p.trust.version
	if p.peer.Role == model.AgentMachine {
		m.Revoke(st.Revoked) // a server's come from the truth
	}
	if !news && slices.Equal(st.Servers, p.servers) {
		return false, nil
	}
	if key != nil {
		if err := m.fits(p, s); err != nil {
			return false, err
		}
	}
	if err := m.take(s); err != nil {
		return false, err
	}
	if key != nil {
		m.logger.Info("the certificate of this machine was renewed", "machine", p.peer, "expires", m.Expires())
	}
	return news, nil
}

// fits refuses a new certificate that others would refuse.
func (m *Machine) fits(p *papers, s stored) error {
	now, err := m.read(s)
	if err != nil {
		return err
	}
	if now.peer != p.peer {
		return fmt.Errorf("%w: the server certified %s instead of %s", ErrUntrusted, now.peer, p.peer)
	}
	return inTime(now.peer, now.cert.Leaf, m.now())
}

// Self is the door of a server's own machine. While the truth cannot be written it certifies by what the server has on disk,
// so that a cluster that was off for longer than its certificates last can start.
type Self struct {
	Registrar *Registrar // nil before there is a truth
	Authority *Authority
	Now       func() time.Time // default time.Now
	TTL       time.Duration    // default DefaultTTL
}

// CheckIn implements Door.
func (s Self) CheckIn(ctx context.Context, in CheckIn) (*Standing, error) {
	err := ErrUnavailable
	if s.Registrar != nil {
		var st *Standing
		short, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if st, err = s.Registrar.CheckIn(short, in); err == nil {
			return st, nil
		}
	}
	if ctx.Err() != nil || !errors.Is(err, ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
		return nil, err
	}
	c := s.Authority.Cluster()
	if in.CSR == nil && s.Registrar != nil || c.Trust < in.Trust {
		return nil, err
	}
	return s.certify(c, in)
}

func (s Self) certify(c *model.Cluster, in CheckIn) (*Standing, error) {
	if s.Now == nil {
		s.Now = time.Now
	}
	if s.TTL == 0 {
		s.TTL = DefaultTTL
	}
	st := &Standing{Cluster: c.ID, Trust: c.Trust, Roots: rootsOf(c), Issuer: c.Issuer, Now: s.Now()}
	if in.CSR == nil {
		return st, nil
	}
	chain, err := parseChain(in.Chain)
	if err != nil {
		return nil, err
	}
	peer, err := peerIn(chain[0])
	if err != nil {
		return nil, err
	}
	key, hosts, err := parseCSR(in.CSR, peer.Role)
	if err != nil {
		return nil, err
	}
	st.Chain, _, err = s.Authority.issue(c, subject{peer.ID(), peer.Epoch, hosts, key}, s.Now(), s.TTL)
	return st, err
}
