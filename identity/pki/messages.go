package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/gantry-os/gantry/model"
)

// JoinRequest asks that a machine be admitted.
type JoinRequest struct {
	Token string            `json:"token"`
	Role  model.MachineRole `json:"role"`
	Name  string            `json:"name"` // of an agent: its node's id
	CSR   []byte            `json:"csr"`  // DER; a server's names its hosts
}

// Admission is the answer to a JoinRequest.
type Admission struct {
	Standing
	// Record and Seal are what an Authority is made of. Only servers get them.
	Record *model.Cluster `json:"record,omitempty"`
	Seal   []byte         `json:"seal,omitempty"`
}

// CheckIn is how a machine that joined says how it stands. It is signed with the key of its certificate rather than made
// through a connection that shows it: so it needs no door that asks every browser for a certificate, and a machine that
// slept past its certificate's end can still make it.
type CheckIn struct {
	Chain [][]byte `json:"chain"`         // the certificate that the machine uses, and what leads to its root; DER
	Trust uint64   `json:"trust"`         // which change of the cluster's trust it knows
	CSR   []byte   `json:"csr,omitempty"` // for a new certificate; DER
	Proof []byte   `json:"proof"`
}

// Standing is the answer to a CheckIn: what the cluster trusts now.
type Standing struct {
	Cluster string    `json:"cluster"`
	Trust   uint64    `json:"trust"` // counts changes; a machine takes no lower one than it has
	Roots   [][]byte  `json:"roots"` // DER
	Issuer  string    `json:"issuer"`
	Chain   [][]byte  `json:"chain,omitempty"`   // the new certificate, when one was asked for
	Servers []string  `json:"servers,omitempty"` // where servers are reached
	Revoked []string  `json:"revoked,omitempty"` // keys of the revocations of servers
	Now     time.Time `json:"now"`
}

// digest is what a Proof signs.
func (c *CheckIn) digest() []byte {
	h := sha256.New()
	io.WriteString(h, "gantry check-in 1\n")
	for _, part := range [][]byte{c.Chain[0], c.CSR} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write(part)
	}
	h.Write(binary.BigEndian.AppendUint64(nil, c.Trust))
	return h.Sum(nil)
}

func (c *CheckIn) sign(key *ecdsa.PrivateKey) (err error) {
	c.Proof, err = ecdsa.SignASN1(rand.Reader, key, c.digest())
	return err
}

func (c *CheckIn) proven(leaf *x509.Certificate) error {
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(key, c.digest(), c.Proof) {
		return fmt.Errorf("%w: the request is not signed with its key", ErrUntrusted)
	}
	return nil
}

const maxHosts = 32

// parseCSR returns the key and the hosts that a machine asks a certificate for, and refuses what it may not have.
func parseCSR(der []byte, role model.MachineRole) (*ecdsa.PublicKey, []string, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: csr: %w", ErrBadRequest, err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve.Params().BitSize != 256 {
		return nil, nil, fmt.Errorf("%w: csr: the key is not an ECDSA key on P-256", ErrBadRequest)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, nil, fmt.Errorf("%w: csr: it is not signed with its own key", ErrBadRequest)
	}
	hosts := csr.DNSNames
	for _, ip := range csr.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	if role != model.ServerMachine && len(hosts) > 0 {
		return nil, nil, fmt.Errorf("%w: csr: it names hosts, which only the certificates of servers have", ErrBadRequest)
	}
	return key, hosts, checkHosts(hosts)
}

func checkHosts(hosts []string) error {
	if len(hosts) > maxHosts {
		return fmt.Errorf("%w: %d hosts, at most %d are allowed", ErrBadRequest, len(hosts), maxHosts)
	}
	for _, h := range hosts {
		if net.ParseIP(h) == nil && !hostName(h) {
			return fmt.Errorf("%w: %q is neither an address nor a host name", ErrBadRequest, h)
		}
		if strings.HasSuffix(strings.ToLower(h), ".gantry.internal") {
			return fmt.Errorf("%w: host name %q is kept for Gantry", ErrBadRequest, h)
		}
	}
	return nil
}

func hostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

// newCSR makes a key pair and the request for its certificate.
func newCSR(role model.MachineRole, hosts []string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	tmpl := &x509.CertificateRequest{}
	if role == model.ServerMachine {
		if err := checkHosts(hosts); err != nil {
			return nil, nil, err
		}
		for _, h := range hosts {
			if ip := net.ParseIP(h); ip != nil {
				tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
			} else {
				tmpl.DNSNames = append(tmpl.DNSNames, h)
			}
		}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	return key, csr, err
}

// whole reads one JSON value, and refuses anything left over. Unknown fields are a newer version's: of a machine that is upgraded
// before this one, or of this one before it went back.
func whole(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows its end")
	}
	return nil
}
