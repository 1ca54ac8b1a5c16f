package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gantry-os/gantry/model"
)

// Peer is the machine at the other end of a connection.
type Peer struct {
	Cluster string
	Role    model.MachineRole
	Name    string // of an agent: its node's id
	Epoch   string // which of its joins
}

// ID returns the machine's id.
func (p Peer) ID() model.MachineID { return model.MachineOf(p.Role, p.Name) }

func (p Peer) String() string { return string(p.ID()) }

// uri is how a certificate names a machine: gantry://CLUSTER/ROLE/NAME/EPOCH.
func (p Peer) uri() *url.URL {
	return &url.URL{Scheme: "gantry", Host: p.Cluster, Path: "/" + string(p.Role) + "/" + p.Name + "/" + p.Epoch}
}

func (p Peer) revocation() string { return model.RevocationKey(p.ID(), p.Epoch) }

// PeerOf returns the machine at the other end of a connection that a Machine's configuration let through.
func PeerOf(cs tls.ConnectionState) (Peer, error) {
	if len(cs.PeerCertificates) == 0 {
		return Peer{}, fmt.Errorf("%w: none was shown", ErrUntrusted)
	}
	return peerIn(cs.PeerCertificates[0])
}

// peerIn reads the name in a certificate, which nobody has verified yet.
func peerIn(c *x509.Certificate) (Peer, error) {
	bad := fmt.Errorf("%w: it names no machine of Gantry's", ErrUntrusted)
	if len(c.URIs) != 1 {
		return Peer{}, bad
	}
	u := c.URIs[0]
	parts := strings.Split(u.Path, "/")
	if len(parts) != 4 || parts[0] != "" {
		return Peer{}, bad
	}
	role, err := model.ParseMachineRole(parts[1])
	p := Peer{u.Host, role, parts[2], parts[3]}
	if err != nil || model.CheckMachineName(p.Name) != nil || p.Epoch == "" || *p.uri() != *u {
		return Peer{}, bad
	}
	return p, nil
}

// trust is what a machine trusts: immutable.
type trust struct {
	cluster string
	version uint64
	roots   []*x509.Certificate
	pool    *x509.CertPool
}

func newTrust(cluster string, version uint64, ders [][]byte) (*trust, error) {
	t := &trust{cluster: cluster, version: version, pool: x509.NewCertPool()}
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("read the cluster's roots: %w", err)
		}
		if !c.IsCA {
			return nil, errors.New("read the cluster's roots: one is no authority")
		}
		t.roots = append(t.roots, c)
		t.pool.AddCert(c)
	}
	if len(t.roots) == 0 || cluster == "" {
		return nil, errors.New("read the cluster's roots: there are none")
	}
	return t, nil
}

func trustOf(c *model.Cluster) (*trust, error) { return newTrust(c.ID, c.Trust, rootsOf(c)) }

func rootsOf(c *model.Cluster) [][]byte {
	ders := make([][]byte, len(c.Roots))
	for i := range c.Roots {
		ders[i] = c.Roots[i].Cert
	}
	return ders
}

// verify returns the machine that chain is of, when it was good for its role at some time. Any role does when none is asked for.
func (t *trust) verify(chain []*x509.Certificate, at time.Time, roles ...model.MachineRole) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, fmt.Errorf("%w: none was shown", ErrUntrusted)
	}
	leaf := chain[0]
	p, err := peerIn(leaf)
	if err != nil {
		return Peer{}, err
	}
	if p.Cluster != t.cluster {
		return Peer{}, fmt.Errorf("%w: %s is of cluster %s, this machine is of cluster %s", ErrUntrusted, p, p.Cluster, t.cluster)
	}
	if err := inTime(p, leaf, at); err != nil {
		return Peer{}, err
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	use := x509.ExtKeyUsageClientAuth // servers have both
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: t.pool, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
		return Peer{}, fmt.Errorf("%w: that of %s comes from no authority that this machine trusts; if the cluster's was rotated while "+
			"a machine was away, that machine has to join again: %w", ErrUntrusted, p, err)
	}
	if len(roles) > 0 && !slices.Contains(roles, p.Role) {
		return Peer{}, fmt.Errorf("%w: %s is no %s", ErrUntrusted, p, roles[0])
	}
	return p, nil
}

// inTime says what is wrong with clocks, which is most often why a new certificate is not good.
func inTime(p Peer, leaf *x509.Certificate, at time.Time) error {
	if early := leaf.NotBefore.Sub(at); early > 0 {
		return fmt.Errorf("%w: the certificate of %s is good from %s on, which is %v ahead of this machine's clock: set the clocks of both",
			ErrClock, p, leaf.NotBefore.UTC().Format(time.RFC3339), early.Round(time.Second))
	}
	if late := at.Sub(leaf.NotAfter); late > 0 {
		return fmt.Errorf("%w: that of %s expired at %s, %v ago by this machine's clock", ErrUntrusted, p, leaf.NotAfter.UTC().Format(time.RFC3339), late.Round(time.Second))
	}
	return nil
}

// issuerOf returns the fingerprint of the root that signed a certificate.
func (t *trust) issuerOf(leaf *x509.Certificate) string {
	for _, r := range t.roots {
		if string(r.SubjectKeyId) == string(leaf.AuthorityKeyId) {
			return Fingerprint(r)
		}
	}
	return ""
}

// parseChain reads certificates, the machine's own first.
func parseChain(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) == 0 || len(ders) > 8 {
		return nil, fmt.Errorf("%w: a chain of %d certificates", ErrBadRequest, len(ders))
	}
	chain := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d: %w", ErrBadRequest, i, err)
		}
		chain[i] = c
	}
	return chain, nil
}
