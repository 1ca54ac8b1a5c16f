package pki

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// DefaultGrace is how long after the end of its certificate a machine can still check in, if it was not removed and the
// root is still trusted.
const DefaultGrace = 30 * 24 * time.Hour

const (
	maxTokenTTL  = 30 * 24 * time.Hour
	maxTokenUses = 100_000
	maxTokens    = 1000
	signTries    = 8 // of one request while trust changes under it
)

// RegistrarConfig is what a Registrar needs. Zero durations and Now take their defaults.
type RegistrarConfig struct {
	Store     state.Store // any server's: it need not be the leader's
	Authority *Authority
	Now       func() time.Time // default time.Now
	TTL       time.Duration    // of certificates; default DefaultTTL
	Grace     time.Duration    // default DefaultGrace
	Servers   func() []string  // where servers are reached; optional
	Addr      string           // where this server is, to be noted of its machine; optional
}

// Registrar admits machines, certifies and revokes them. Every server has one.
type Registrar struct{ cfg RegistrarConfig }

// NewRegistrar returns a Registrar.
func NewRegistrar(cfg RegistrarConfig) *Registrar {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.TTL == 0 {
		cfg.TTL = DefaultTTL
	}
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.Servers == nil {
		cfg.Servers = func() []string { return nil }
	}
	return &Registrar{cfg}
}

// errMoved says that trust changed between a signature and its record.
var errMoved = errors.New("the cluster's trust has changed meanwhile")

// Settle makes the cluster of the first server the truth's, if the truth has none yet, and m one of its machines. A truth that
// is older than what this server's disk has was restored from a backup: machines, which never go back, trust what is on disk, and an
// administrator's token that was replaced stays so.
func (r *Registrar) Settle(ctx context.Context, m *Machine) error {
	own := r.cfg.Authority.Cluster()
	peer, leaf := m.Peer(), m.cur.Load().cert.Leaf
	err := r.cfg.Store.Update(ctx, func(tx *state.Tx) error {
		c := tx.Cluster()
		if c == nil {
			copied := *own
			tx.PutCluster(&copied)
			c = &copied
		}
		if c.ID != own.ID {
			return fmt.Errorf("this server belongs to cluster %s, the stored truth to %s: one of them is another cluster's", own.ID, c.ID)
		}
		if own.Trust > c.Trust || own.Admin.Count() > c.Admin.Count() {
			copied := *c
			if own.Trust > c.Trust {
				copied = *own
				copied.Joins, copied.Revision = c.Joins, c.Revision
			}
			copied.Admin = newer(own.Admin, c.Admin)
			tx.PutCluster(&copied)
		}
		if tx.Revocation(peer.revocation()) != nil {
			return fmt.Errorf("%w: %s", ErrRevoked, peer)
		}
		if old := tx.Machine(peer.ID()); old != nil && old.Epoch == peer.Epoch {
			if old.Addr != r.cfg.Addr {
				moved := *old
				moved.Addr = r.cfg.Addr
				tx.PutMachine(&moved)
			}
			return nil
		}
		t := m.cur.Load().trust
		tx.PutMachine(&model.Machine{
			ID: peer.ID(), Epoch: peer.Epoch, Joined: r.cfg.Now(), Issuer: t.issuerOf(leaf), Trust: t.version,
			Serial: leaf.SerialNumber.Text(16), Expires: leaf.NotAfter, Addr: r.cfg.Addr,
		})
		return nil
	})
	if err != nil {
		return fmt.Errorf("settle the identity of this server: %w", err)
	}
	return nil
}

// TokenSpec says what a join token is for.
type TokenSpec struct {
	Role model.MachineRole
	TTL  time.Duration
	Uses int    // 0 for any number
	By   string // who asks
}

// CreateToken makes a join token. Its text can be had only now.
func (r *Registrar) CreateToken(ctx context.Context, spec TokenSpec) (Token, error) {
	if _, err := model.ParseMachineRole(string(spec.Role)); err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	if spec.TTL < time.Second || spec.TTL > maxTokenTTL {
		return Token{}, fmt.Errorf("%w: ttl %v is outside 1s to %v", ErrBadRequest, spec.TTL, maxTokenTTL)
	}
	if spec.Uses < 0 || spec.Uses > maxTokenUses {
		return Token{}, fmt.Errorf("%w: %d uses are outside 0 to %d", ErrBadRequest, spec.Uses, maxTokenUses)
	}
	c := r.cfg.Store.View().Cluster()
	if c == nil {
		return Token{}, errNoCluster
	}
	var roots []string
	for i := range c.Roots {
		roots = append(roots, c.Roots[i].Fingerprint)
	}
	t, err := NewToken(rand.Reader, roots)
	if err != nil {
		return Token{}, err
	}
	salt := make([]byte, tokenSaltBytes)
	rand.Read(salt) // it never fails
	now := r.cfg.Now()
	err = r.cfg.Store.Update(ctx, func(tx *state.Tx) error {
		n := 0
		for range tx.Tokens() {
			n++
		}
		if n >= maxTokens {
			return fmt.Errorf("%w: there are %d join tokens: delete some", ErrBusy, n)
		}
		tx.PutToken(&model.JoinToken{
			ID: t.ID, Salt: salt, Hash: hashSecret(salt, t.Secret), Role: spec.Role, Created: now, Expires: now.Add(spec.TTL),
			Uses: spec.Uses, By: spec.By,
		})
		tx.Emit(model.Event{Type: "token.created", Message: fmt.Sprintf("A token for joining as %s was made: %s, good for %v.", spec.Role, t, spec.TTL)})
		return nil
	})
	return t, err
}

// DeleteToken makes a join token useless.
func (r *Registrar) DeleteToken(ctx context.Context, id string) error {
	return r.cfg.Store.Update(ctx, func(tx *state.Tx) error {
		if tx.Token(id) == nil {
			return fmt.Errorf("%w: %q", ErrToken, id)
		}
		tx.DeleteToken(id)
		return nil
	})
}

var errNoCluster = fmt.Errorf("%w: the cluster's authority is not stored yet", ErrUnavailable)

// Join admits a machine: the token is spent and the machine recorded in one transaction.
func (r *Registrar) Join(ctx context.Context, in JoinRequest) (*Admission, error) {
	t, err := ParseToken(in.Token)
	if err != nil {
		return nil, fmt.Errorf("%w: token: %w", ErrBadRequest, err)
	}
	if _, err := model.ParseMachineRole(string(in.Role)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	if err := model.CheckMachineName(in.Name); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	key, hosts, err := parseCSR(in.CSR, in.Role)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("%w: csr: %w", ErrBadRequest, err)
	}
	sum := sha256.Sum256(spki)
	j := joining{token: t, machine: model.MachineOf(in.Role, in.Name), role: in.Role, key: text.EncodeToString(sum[:]), epoch: newEpoch()}
	return retry(func() (*Admission, error) {
		return r.join(ctx, j, subject{id: j.machine, hosts: hosts, key: key})
	})
}

// retry runs fn again while trust changes under it.
func retry[T any](fn func() (*T, error)) (*T, error) {
	for try := 1; ; try++ {
		out, err := fn()
		switch {
		case !errors.Is(err, errMoved):
			return out, err
		case try == signTries:
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
}

// joining is a JoinRequest that was read.
type joining struct {
	token   Token
	machine model.MachineID
	role    model.MachineRole
	key     string // fingerprint of its public key
	epoch   string
}

func (r *Registrar) join(ctx context.Context, j joining, s subject) (*Admission, error) {
	v, now := r.cfg.Store.View(), r.cfg.Now()
	c := v.Cluster()
	if c == nil {
		return nil, errNoCluster
	}
	again, err := j.check(v, now) // first on what is at hand: who has no good token costs no signature and no write
	if err != nil {
		return nil, err
	}
	if s.epoch = j.epoch; again {
		s.epoch = v.Machine(j.machine).Epoch
	}
	chain, leaf, err := r.cfg.Authority.issue(c, s, now, r.cfg.TTL)
	if err != nil {
		return nil, err
	}
	err = r.cfg.Store.Update(ctx, func(tx *state.Tx) error { return r.admit(tx, j, c, leaf, s.epoch, now) })
	if err != nil {
		return nil, storeError(err)
	}
	out := &Admission{Standing: r.standing(r.cfg.Store.View(), c)}
	out.Chain = chain
	if j.role == model.ServerMachine {
		out.Record, out.Seal = c, r.cfg.Authority.seal
	}
	return out, nil
}

// check returns why j is not admitted, and whether it already was and did not hear of it.
func (j joining) check(v state.View, now time.Time) (again bool, err error) {
	k := v.Token(j.token.ID)
	switch {
	case k == nil || !j.token.opens(k):
		return false, fmt.Errorf("%w: %s; it may have been deleted, or be of another cluster", ErrToken, j.token)
	case k.Role != j.role:
		return false, fmt.Errorf("%w: %s is for joining as %s, not as %s", ErrTokenRole, j.token, k.Role, j.role)
	case now.After(k.Expires):
		return false, fmt.Errorf("%w: %s did at %s, and now it is %s: make a new one with gantry token create",
			ErrTokenExpired, j.token, k.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	m := v.Machine(j.machine)
	if m != nil && m.Token == k.ID && m.Key == j.key {
		return true, nil
	}
	if k.Spent() {
		return false, fmt.Errorf("%w: %s was good for %d, and was made by %q: make a new one with gantry token create", ErrTokenSpent, j.token, k.Uses, k.By)
	}
	if m != nil && m.Expires.After(now) {
		_, name := j.machine.Split()
		return false, fmt.Errorf("%w: %s %q is a machine of this cluster, with a certificate that is good until %s: remove it first if this one takes its place",
			ErrTaken, j.role, name, m.Expires.UTC().Format(time.RFC3339))
	}
	return false, nil
}

// admit records what was signed by c, if all is still as it was.
func (r *Registrar) admit(tx *state.Tx, j joining, c *model.Cluster, leaf *x509.Certificate, epoch string, now time.Time) error {
	again, err := j.check(tx.View, now)
	if err != nil {
		return err
	}
	cur := tx.Cluster()
	if cur == nil || cur.Trust != c.Trust || again != (epoch != j.epoch) {
		return errMoved
	}
	counted := *cur
	counted.Joins++ // see model.Cluster
	tx.PutCluster(&counted)
	m := &model.Machine{
		ID: j.machine, Epoch: epoch, Joined: now, Issuer: c.Issuer, Trust: c.Trust, Token: j.token.ID, Key: j.key,
		Serial: leaf.SerialNumber.Text(16), Expires: leaf.NotAfter,
	}
	tx.PutMachine(m)
	if again {
		return nil
	}
	k := *tx.Token(j.token.ID)
	k.Used++
	tx.PutToken(&k)
	tx.Emit(model.Event{Type: "machine.joined", Node: nodeOf(j.machine), Message: fmt.Sprintf("%s joined with %s.", j.machine, j.token)})
	return nil
}

func nodeOf(id model.MachineID) model.NodeID {
	if role, name := id.Split(); role == model.AgentMachine {
		return model.NodeID(name)
	}
	return ""
}

// CheckIn implements Door: it notes how a machine stands, answers what the cluster trusts now, and certifies the machine
// anew if it asks.
func (r *Registrar) CheckIn(ctx context.Context, in CheckIn) (*Standing, error) {
	chain, err := parseChain(in.Chain)
	if err != nil {
		return nil, err
	}
	return retry(func() (*Standing, error) { return r.checkIn(ctx, in, chain) })
}

func (r *Registrar) checkIn(ctx context.Context, in CheckIn, chain []*x509.Certificate) (*Standing, error) {
	v, now := r.cfg.Store.View(), r.cfg.Now()
	c := v.Cluster()
	if c == nil {
		return nil, errNoCluster
	}
	t, err := trustOf(c)
	if err != nil {
		return nil, err
	}
	peer, err := r.recognise(t, in, chain, now)
	if err != nil {
		return nil, err
	}
	if in.Trust > c.Trust {
		return nil, fmt.Errorf("%w: this server is behind: it knows change %d of the cluster's trust, and %s knows %d", ErrUnavailable, c.Trust, peer, in.Trust)
	}
	n := note{peer: peer, issuer: t.issuerOf(chain[0]), trust: in.Trust, known: c.Trust}
	out := r.standing(v, c)
	if in.CSR != nil {
		key, hosts, err := parseCSR(in.CSR, peer.Role)
		if err != nil {
			return nil, err
		}
		if out.Chain, n.leaf, err = r.cfg.Authority.issue(c, subject{peer.ID(), peer.Epoch, hosts, key}, now, r.cfg.TTL); err != nil {
			return nil, err
		}
	}
	if m, err := n.apply(v); err != nil {
		return nil, err
	} else if m == nil {
		return &out, nil // nothing is new, so nothing is written
	}
	err = r.cfg.Store.Update(ctx, func(tx *state.Tx) error {
		m, err := n.apply(tx.View)
		if m != nil {
			tx.PutMachine(m)
		}
		return err
	})
	if err != nil {
		return nil, storeError(err)
	}
	return &out, nil
}

// recognise returns the machine that checks in. Within the grace, its certificate may have expired.
func (r *Registrar) recognise(t *trust, in CheckIn, chain []*x509.Certificate, now time.Time) (Peer, error) {
	at := now
	if end := chain[0].NotAfter; now.After(end) && now.Before(end.Add(r.cfg.Grace)) {
		at = end
	}
	peer, err := t.verify(chain, at)
	if err != nil {
		return Peer{}, err
	}
	return peer, in.proven(chain[0])
}

// note is what a machine that checked in said.
type note struct {
	peer   Peer
	issuer string // of the certificate that it uses
	trust  uint64
	known  uint64            // trust by which leaf was signed
	leaf   *x509.Certificate // new, or nil
}

// apply returns the machine's new record, nil when it stays as it is. A new certificate always makes one: that the record
// is written in each such transaction is what keeps a server that is behind from certifying, by a root that is on its way
// out, a machine that already said it uses a newer.
func (n note) apply(v state.View) (*model.Machine, error) {
	if rev := v.Revocation(n.peer.revocation()); rev != nil {
		return nil, fmt.Errorf("%w: %s was, at %s", ErrRevoked, n.peer, rev.At.UTC().Format(time.RFC3339))
	}
	old := v.Machine(n.peer.ID())
	if old == nil || old.Epoch != n.peer.Epoch {
		return nil, fmt.Errorf("%w: %s; it was removed, or joined again meanwhile, or this server is behind", ErrUnknown, n.peer)
	}
	m := *old
	m.Issuer, m.Trust = n.issuer, n.trust
	if n.leaf != nil {
		if c := v.Cluster(); c.Trust != n.known {
			return nil, errMoved
		}
		m.Serial, m.Expires = n.leaf.SerialNumber.Text(16), n.leaf.NotAfter
	}
	if m == *old {
		return nil, nil
	}
	return &m, nil
}

func (r *Registrar) standing(v state.View, c *model.Cluster) Standing {
	out := Standing{Cluster: c.ID, Trust: c.Trust, Roots: rootsOf(c), Issuer: c.Issuer, Servers: r.cfg.Servers(), Now: r.cfg.Now()}
	for x := range v.Revocations() {
		if role, _ := x.ID.Split(); role == model.ServerMachine {
			out.Revoked = append(out.Revoked, model.RevocationKey(x.ID, x.Epoch))
		}
	}
	return out
}

// Revoke puts a machine out of the cluster: its certificates are refused, and its connections cut, wherever the revocation
// comes to be known. Revoking what is not there changes nothing.
func (r *Registrar) Revoke(ctx context.Context, id model.MachineID, why string) error {
	return r.cfg.Store.Update(ctx, func(tx *state.Tx) error {
		RevokeIn(tx, id, why, r.cfg.Now())
		return nil
	})
}

// RevokeIn is Revoke as part of a transaction, such as one that removes a node.
func RevokeIn(tx *state.Tx, id model.MachineID, why string, now time.Time) {
	m := tx.Machine(id)
	if m == nil {
		return
	}
	until := m.Expires.Add(2 * skew)
	if role, _ := id.Split(); role == model.ServerMachine {
		until = time.Time{} // it held the key of the authority, and can certify itself for as long as the root is trusted
	}
	tx.PutRevocation(&model.Revocation{ID: id, Epoch: m.Epoch, At: now, Until: until, Why: why})
	tx.DeleteMachine(id)
	tx.Emit(model.Event{Type: "machine.revoked", Node: nodeOf(id), Message: fmt.Sprintf("%s was removed from the cluster.", id)})
}

// storeError gives errors of the store a kind that crosses HTTP.
func storeError(err error) error {
	for _, e := range []error{state.ErrConflict, state.ErrDeposed, state.ErrNoSpace, state.ErrUnavailable} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return err
}
