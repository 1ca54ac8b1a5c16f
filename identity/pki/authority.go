package pki

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gantry-os/gantry/model"
)

const (
	rootLife = 10 * 365 * 24 * time.Hour
	// skew is how far the clocks of two machines may be apart.
	skew = 10 * time.Minute
	// DefaultTTL is how long a machine's certificate is good for.
	DefaultTTL = 24 * time.Hour

	authorityFile = "authority.json"
	sealBytes     = 32
)

// Authority signs the certificates of a cluster's machines. It is a server's copy of the cluster's record, in which the
// roots' private keys are sealed, and of the key that opens them, which is on the disks of servers and nowhere else. With
// both, a server can start again and renew itself while there is no quorum.
type Authority struct {
	path string
	seal []byte

	mu      sync.Mutex
	cluster *model.Cluster
	signers map[string]*ecdsa.PrivateKey // by fingerprint, those that were used
}

// sealed is an Authority on disk.
type sealed struct {
	Cluster *model.Cluster `json:"cluster"`
	Seal    []byte         `json:"seal"`
}

func authorityPath(dir string) string { return filepath.Join(dir, authorityFile) }

// OpenAuthority returns the authority in dir; errors.Is(err, fs.ErrNotExist) holds when there is none.
func OpenAuthority(dir string) (*Authority, error) {
	path := authorityPath(dir)
	var s sealed
	if err := readPrivate(path, &s); err != nil {
		return nil, fmt.Errorf("open the cluster's authority: %w", err)
	}
	a, err := newAuthority(path, s)
	if err != nil {
		return nil, fmt.Errorf("open the cluster's authority: %s: %w", path, err)
	}
	return a, nil
}

func newAuthority(path string, s sealed) (*Authority, error) {
	a := &Authority{path: path, seal: s.Seal, cluster: s.Cluster, signers: map[string]*ecdsa.PrivateKey{}}
	if s.Cluster == nil || len(s.Seal) != sealBytes {
		return nil, errors.New("it is not whole")
	}
	if _, err := a.signer(s.Cluster); err != nil {
		return nil, err
	}
	if _, err := a.adminToken(s.Cluster); err != nil {
		return nil, err
	}
	return a, nil
}

// foundAuthority makes a new cluster, with a root of its own.
func foundAuthority(dir string, now time.Time) (*Authority, error) {
	random := make([]byte, 8+sealBytes)
	rand.Read(random) // it never fails
	a := &Authority{path: authorityPath(dir), seal: random[8:], signers: map[string]*ecdsa.PrivateKey{}}
	c := &model.Cluster{ID: hex.EncodeToString(random[:8]), Trust: 1, Changed: now}
	root, err := a.newRoot(c, now)
	if err != nil {
		return nil, fmt.Errorf("make the cluster's authority: %w", err)
	}
	c.Roots, c.Issuer = []model.Root{*root}, root.Fingerprint
	if err := a.Update(c); err != nil {
		return nil, err
	}
	return a, nil
}

// Cluster returns the record that a holds, which must not be changed.
func (a *Authority) Cluster() *model.Cluster {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cluster
}

// Update replaces the record that a holds, on disk first, unless c is older.
func (a *Authority) Update(c *model.Cluster) error {
	if cur := a.Cluster(); cur != nil {
		switch {
		case cur.ID != c.ID:
			return fmt.Errorf("this server belongs to cluster %s, but what is stored is of cluster %s: it has the data directory of another cluster", cur.ID, c.ID)
		case c.Trust < cur.Trust, c.Trust == cur.Trust && c.Admin.Count() <= cur.Admin.Count():
			return nil
		}
	}
	if _, err := a.signer(c); err != nil {
		return err
	}
	if _, err := a.adminToken(c); err != nil {
		return err
	}
	if err := writePrivate(a.path, sealed{c, a.seal}); err != nil {
		return fmt.Errorf("keep the cluster's authority: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cluster = c
	return nil
}

// newRoot makes a root for c. The one that signs now signs its key too, so that who trusts the old root alone, such as a
// process that read its roots long ago, still accepts what the new one signs.
func (a *Authority) newRoot(c *model.Cluster, now time.Time) (*model.Root, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	r := &model.Root{Fingerprint: Fingerprint(&x509.Certificate{RawSubjectPublicKeyInfo: spki}), Created: now}
	tmpl := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{Organization: []string{"Gantry"}, CommonName: c.ID + " " + r.Fingerprint[:8]},
		NotBefore: now.Add(-skew), NotAfter: now.Add(rootLife), KeyUsage: x509.KeyUsageCertSign,
		IsCA: true, BasicConstraintsValid: true,
	}
	if r.Cert, err = x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key); err != nil {
		return nil, err
	}
	if len(c.Roots) > 0 {
		if r.Cross, err = a.cross(c, tmpl, key); err != nil {
			return nil, err
		}
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	aead, err := a.aead()
	if err != nil {
		return nil, err
	}
	r.Key = aead.Seal(nil, nil, der, keyOf(c, r))
	return r, nil
}

// cross returns the certificate tmpl of key as the root that signs now signs it.
func (a *Authority) cross(c *model.Cluster, tmpl *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	signer, err := a.signer(c)
	if err != nil {
		return nil, err
	}
	old, err := x509.ParseCertificate(c.Root(c.Issuer).Cert)
	if err != nil {
		return nil, err
	}
	own := *tmpl
	own.SerialNumber, own.NotAfter = newSerial(), earlier(tmpl.NotAfter, old.NotAfter)
	return x509.CreateCertificate(rand.Reader, &own, old, &key.PublicKey, signer)
}

// keyOf binds a sealed key to its root and cluster.
func keyOf(c *model.Cluster, r *model.Root) []byte {
	return []byte("gantry root key " + c.ID + " " + r.Fingerprint)
}

func (a *Authority) aead() (cipher.AEAD, error) {
	block, err := aes.NewCipher(a.seal)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// signer returns the private key of the root of c that signs.
func (a *Authority) signer(c *model.Cluster) (*ecdsa.PrivateKey, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if key := a.signers[c.Issuer]; key != nil {
		return key, nil
	}
	root := c.Root(c.Issuer)
	if root == nil {
		return nil, fmt.Errorf("the record of cluster %s does not hold the root that signs", c.ID)
	}
	aead, err := a.aead()
	if err != nil {
		return nil, err
	}
	der, err := aead.Open(nil, nil, root.Key, keyOf(c, root))
	if err != nil {
		return nil, fmt.Errorf("the key of cluster %s cannot be opened: this server has another cluster's seal", c.ID)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("the key of cluster %s is of a kind that is not known", c.ID)
	}
	a.signers[c.Issuer] = key
	return key, nil
}

// subject is whom a certificate is for.
type subject struct {
	id    model.MachineID
	epoch string
	hosts []string // of servers
	key   any      // public
}

// issue returns a certificate from the root of c that signs now, and what leads from it to every root that c trusts. It is
// good for ttl, and somewhat before now for clocks that are behind.
func (a *Authority) issue(c *model.Cluster, s subject, now time.Time, ttl time.Duration) (chain [][]byte, leaf *x509.Certificate, err error) {
	signer, err := a.signer(c)
	if err != nil {
		return nil, nil, err
	}
	root := c.Root(c.Issuer)
	ca, err := x509.ParseCertificate(root.Cert)
	if err != nil {
		return nil, nil, fmt.Errorf("read the cluster's root: %w", err)
	}
	role, name := s.id.Split()
	tmpl := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{Organization: []string{"Gantry"}, CommonName: string(s.id)},
		NotBefore: now.Add(-skew), NotAfter: earlier(now.Add(ttl), ca.NotAfter),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{Peer{c.ID, role, name, s.epoch}.uri()}, BasicConstraintsValid: true,
	}
	if role == model.ServerMachine {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		tmpl.DNSNames = []string{ServerName(c.ID)}
		for _, h := range s.hosts {
			if ip := net.ParseIP(h); ip != nil {
				tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
			} else {
				tmpl.DNSNames = append(tmpl.DNSNames, h)
			}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, s.key, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("sign the certificate of %s: %w", s.id, err)
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		return nil, nil, err
	}
	chain = [][]byte{der}
	if root.Cross != nil {
		chain = append(chain, root.Cross)
	}
	return append(chain, root.Cert), leaf, nil
}

// ServerName is a host name that all servers of a cluster have in their certificates, and no agent: by asking for it,
// software that knows only host names, such as etcd, tells servers from agents.
func ServerName(cluster string) string { return "server." + cluster + ".gantry.internal" }

func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // it never fails
	b[0] &= 0x7f
	b[15] |= 1 // never zero
	return new(big.Int).SetBytes(b)
}

func newEpoch() string {
	b := make([]byte, 8)
	rand.Read(b) // it never fails
	return hex.EncodeToString(b)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// readPrivate reads JSON from a file that only its owner may see.
func readPrivate(path string, v any) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if perm := info.Mode().Perm(); !info.Mode().IsRegular() || perm&0o077 != 0 {
		return fmt.Errorf("%s is open to other users (mode %04o): run chmod 600 %s", path, perm, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := whole(b, v); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	return nil
}

func writePrivate(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return replaceFile(path, append(b, '\n'))
}

// replaceFile puts content in place of a file, as a whole or not at all, with mode 0600.
func replaceFile(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	_, err = tmp.Write(content)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil // it is replaced
	}
	return errors.Join(d.Sync(), d.Close())
}
