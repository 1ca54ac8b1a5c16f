package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/conformance"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// serversName is in the certificate of every server.
const serversName = "server.test"

// authority signs certificates of a test.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir(), n: 1}
	a.key = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &a.key.PublicKey, a.key))
	a.cert = must(x509.ParseCertificate(der))
	a.write(t, "ca.pem", "CERTIFICATE", der)
	return a
}

// issue returns the files of a new certificate for a DNS name or an address.
func (a *authority) issue(t testing.TB, file, name string) TLS {
	t.Helper()
	a.n++
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: file}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		tmpl.IPAddresses, tmpl.DNSNames = []net.IP{ip}, nil
	}
	a.write(t, file+".pem", "CERTIFICATE", must(x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)))
	a.write(t, file+".key", "EC PRIVATE KEY", must(x509.MarshalECPrivateKey(key)))
	at := func(ext string) string { return filepath.Join(a.dir, file+ext) }
	return TLS{Cert: at(".pem"), Key: at(".key"), CA: filepath.Join(a.dir, "ca.pem"), Name: serversName}
}

func (a *authority) write(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var given sync.Map // addresses that were returned: the kernel may choose one again that nobody listens on yet

// address returns one that nobody listens on.
func address(t testing.TB) string {
	t.Helper()
	for {
		l := must(net.Listen("tcp", "127.0.0.1:0"))
		defer l.Close()
		if _, again := given.LoadOrStore(l.Addr().String(), true); !again {
			return l.Addr().String()
		}
	}
}

// servers is a cluster in this process.
type servers struct {
	ca  *authority
	cfg []Config
	at  []*Store // nil for one that is down
}

func (c *servers) config(t testing.TB, name string) Config {
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("GANTRY_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("member", name)
	}
	return Config{
		Logger: log,
		Dir:    filepath.Join(t.TempDir(), name), Name: name, Ephemeral: true, Addr: "api-" + name + ":8080",
		Peer: &Peer{Listen: address(t), TLS: c.ca.issue(t, name, serversName)},
	}
}

// newServers returns a cluster of n.
func newServers(t testing.TB, n int) *servers {
	t.Helper()
	return newServersOf(t, &servers{ca: newAuthority(t)}, n, func(*Config) {})
}

func newServersOf(t testing.TB, c *servers, n int, set func(*Config)) *servers {
	t.Helper()
	for i := range n {
		cfg := c.config(t, string(rune('a'+i)))
		set(&cfg)
		c.cfg = append(c.cfg, cfg)
	}
	c.at = make([]*Store, n)
	c.at[0] = open(t, c.cfg[0])
	t.Cleanup(func() { c.killAll() })
	for range 2 { // who is added first has to know of all that are added later; to add one later would take 5 s
		for i := 1; i < n; i++ {
			join, err := c.at[0].AddMember(t.Context(), c.cfg[i].Name, c.cfg[i].Peer.Listen)
			if err != nil {
				t.Fatal(err)
			}
			c.cfg[i].Join = join
		}
	}
	for i := 1; i < n; i++ {
		if c.open(t, i); t.Failed() {
			t.FailNow()
		}
	}
	return c
}

func (c *servers) open(t testing.TB, i int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := Open(ctx, c.cfg[i])
	if err != nil {
		t.Errorf("open %s: %v", c.cfg[i].Name, err)
		return
	}
	t.Cleanup(func() { _ = s.Close() }) // which may have been removed
	c.at[i] = s
}

// leader returns the number of the server whose member leads.
func (c *servers) leader(t testing.TB) int {
	t.Helper()
	lead := -1
	eventually(t, "a member leads", func() bool {
		for i, s := range c.at {
			if s != nil && s.leadsMembers(s.link.Load()) {
				lead = i
				return true
			}
		}
		return false
	})
	return lead
}

// kill ends a server as SIGKILL would: it tells the others nothing.
func (c *servers) kill(i int) {
	s := c.at[i]
	s.link.Load().member.Server.HardStop()
	_ = s.Close() // the end of a member that has stopped
	c.at[i] = nil
}

func (c *servers) killAll() {
	var killing sync.WaitGroup
	for i, s := range c.at {
		if s != nil {
			killing.Go(func() { c.kill(i) })
		}
	}
	killing.Wait()
}

// isolate drops all messages between a server and the others, both ways, while connections stay.
func (c *servers) isolate(i int, on bool) {
	id := func(s *Store) types.ID { return s.link.Load().member.Server.MemberID() }
	set := func(s *Store, peer types.ID) {
		if server := s.link.Load().member.Server; on {
			server.CutPeer(peer)
		} else {
			server.MendPeer(peer)
		}
	}
	for j, s := range c.at {
		if j != i && s != nil {
			set(s, id(c.at[i]))
			set(c.at[i], id(s))
		}
	}
}

// eventually waits until cond holds. What it asks for is etcd's own state, of which nothing tells when it changes.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for late := time.Now().Add(30 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// count returns the value of the counter that the version of an app is.
func count(v state.View, id model.AppID) uint64 {
	if a := v.App(id); a != nil {
		return a.Version
	}
	return 0
}

func increment(ctx context.Context, s state.Store, id model.AppID) error {
	return s.Update(ctx, func(tx *state.Tx) error {
		next := &model.App{ID: id, Version: 1}
		if a := tx.App(id); a != nil {
			next.Version = a.Version + 1
		}
		tx.PutApp(next)
		return nil
	})
}

// shared is the storage of conformance tests on a cluster, which is emptied for each.
type shared struct {
	*servers
	views []*Store
	opens int
}

func (s *shared) Open(t *testing.T) *state.DB {
	t.Helper()
	of := s.at[s.opens%len(s.at)]
	s.opens++
	p := &Store{cfg: of.cfg, log: of.log, broken: make(chan struct{})}
	p.living, p.cancel = context.WithCancel(context.Background())
	p.link.Store(of.link.Load())
	if err := p.attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.detach)
	s.views = append(s.views, p)
	return p.DB
}

func (s *shared) Reopen(t *testing.T) *state.DB {
	t.Helper()
	for _, p := range s.views {
		p.detach()
	}
	s.views = nil
	return s.Open(t)
}

// TestClusterConformance protects that all that a store promises holds for servers that each have a member of their own.
func TestClusterConformance(t *testing.T) {
	t.Parallel()
	c := newServers(t, 3)
	conformance.Run(t, func(t *testing.T) conformance.Storage {
		eventually(t, "the store is emptied", func() bool { // another may come to lead meanwhile
			_, err := c.at[0].link.Load().client.Delete(t.Context(), root, prefix)
			return err == nil
		})
		return &shared{servers: c}
	})
}

// TestIncrements protects that servers which write the same record at the same time lose no write.
func TestIncrements(t *testing.T) {
	t.Parallel()
	c := newServers(t, 3)
	each := 60
	if testing.Short() {
		each = 15
	}
	var wg sync.WaitGroup
	for _, s := range c.at {
		for range 2 {
			wg.Go(func() {
				for range each {
					if err := increment(t.Context(), s, "/n"); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	for i, s := range c.at {
		if err := s.Fresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := count(s.View(), "/n"); got != uint64(6*each) {
			t.Errorf("server %d counts %d, want %d", i, got, 6*each)
		}
	}
}

// TestFresh protects that a view after Fresh has what any server acknowledged before, and that Lag says how old views may be.
func TestFresh(t *testing.T) {
	t.Parallel()
	c := newServers(t, 3)
	for n := range uint64(30) {
		if err := increment(t.Context(), c.at[n%3], "/n"); err != nil {
			t.Fatal(err)
		}
		reader := c.at[(n+1)%3]
		if err := reader.Fresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := count(reader.View(), "/n"); got != n+1 {
			t.Fatalf("a fresh view has %d, want %d", got, n+1)
		}
	}
	for i, s := range c.at {
		eventually(t, "a short lag", func() bool { return s.Lag() < 2*confirmEvery })
		if l := s.Lag(); l <= 0 {
			t.Errorf("server %d lags %v", i, l)
		}
	}
	if s := open(t, Config{Ephemeral: true}); s.Lag() != 0 || s.Fresh(t.Context()) != nil {
		t.Errorf("a server that is alone lags %v", s.Lag())
	}
}

// TestDownAndBack protects that a cluster goes on without one member, that the member catches up, and that two of three missing
// stops writes instead of losing them.
func TestDownAndBack(t *testing.T) {
	t.Parallel()
	c := newServers(t, 3)
	down := (c.leader(t) + 1) % 3
	c.kill(down)
	up := c.at[(down+1)%3]
	for range 20 {
		if err := increment(t.Context(), up, "/n"); err != nil {
			t.Fatal(err)
		}
	}
	c.open(t, down)
	if err := c.at[down].Fresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := count(c.at[down].View(), "/n"); got != 20 {
		t.Fatalf("the member that came back has %d, want 20", got)
	}
	c.kill((down + 1) % 3)
	c.kill((down + 2) % 3)
	if err := increment(t.Context(), c.at[down], "/n"); !errors.Is(err, state.ErrUnavailable) {
		t.Fatalf("a write without a majority: %v", err)
	}
}

// TestStrangers protects law 7: who has a certificate of the same CA, and is no server, is not a member's peer.
func TestStrangers(t *testing.T) {
	c := newServers(t, 1)
	s := c.at[0]
	probe := func(tls TLS) bool {
		p := &Store{cfg: s.cfg}
		peer := *s.cfg.Peer
		peer.TLS = tls
		p.cfg.Peer = &peer
		client, err := p.prober()
		if err != nil {
			t.Fatal(err)
		}
		defer client.CloseIdleConnections()
		return answers(t.Context(), client, s.cfg.Peer.Listen)
	}
	if !probe(c.ca.issue(t, "server", serversName)) {
		t.Error("another server gets no answer")
	}
	if probe(c.ca.issue(t, "agent", "agent.test")) {
		t.Error("an agent gets an answer")
	}
	other := newAuthority(t).issue(t, "server", serversName)
	other.CA = c.cfg[0].Peer.TLS.CA
	if probe(other) {
		t.Error("a server of another CA gets an answer")
	}
}

// TestGuard protects that it is the guard who says which servers get in, also after one was started.
func TestGuard(t *testing.T) {
	t.Parallel()
	var out atomic.Pointer[string] // the name of a server that is not welcome
	c := newServersOf(t, &servers{ca: newAuthority(t)}, 3, func(cfg *Config) {
		tlsOf := must(cfg.Peer.TLS.info().ServerConfig())
		tlsOf.VerifyConnection = func(cs tls.ConnectionState) error {
			if name := out.Load(); name != nil && cs.PeerCertificates[0].Subject.CommonName == *name {
				return errors.New("not welcome")
			}
			return nil
		}
		cfg.Peer.Guard = func(l net.Listener) net.Listener { return tls.NewListener(l, tlsOf) }
	})
	write(t, c.at[0], "/before")
	client := must(c.at[2].prober())
	if !answers(t.Context(), client, c.cfg[0].Peer.Listen) {
		t.Error("a server gets no answer")
	}
	client.CloseIdleConnections()
	out.Store(&c.cfg[2].Name)
	if answers(t.Context(), client, c.cfg[0].Peer.Listen) {
		t.Error("a server that is not welcome gets an answer")
	}
	client.CloseIdleConnections()
	if !answers(t.Context(), must(c.at[1].prober()), c.cfg[0].Peer.Listen) {
		t.Error("a server that is welcome gets no answer")
	}
	write(t, c.at[0], "/after")
}

// TestGrowAndShrink protects growing a server that began alone, and taking members out again, dead or alive, but not so many
// that the others could not go on.
func TestGrowAndShrink(t *testing.T) {
	t.Parallel()
	c := &servers{ca: newAuthority(t), at: make([]*Store, 3)}
	for _, name := range []string{"a", "b", "c"} {
		c.cfg = append(c.cfg, c.config(t, name))
	}
	alone := c.cfg[0]
	alone.Peer, alone.Addr = nil, ""
	s := open(t, alone)
	write(t, s, "/before")
	if _, err := s.AddMember(t.Context(), "b", "127.0.0.1:9"); err == nil || !strings.Contains(err.Error(), "listens for no others") {
		t.Errorf("a server that is alone adds a member: %v", err)
	}
	closeStore(t, s)

	c.open(t, 0)
	for i := 1; i < 3; i++ {
		join, err := c.at[0].AddMember(t.Context(), c.cfg[i].Name, c.cfg[i].Peer.Listen)
		if err != nil {
			t.Fatal(err)
		}
		c.cfg[i].Join = join
		c.open(t, i)
		if c.at[i] == nil || c.at[i].View().App("/before") == nil {
			t.Fatal("the new member has not what was there before")
		}
	}
	if _, err := c.at[1].AddMember(t.Context(), "c", "127.0.0.1:9"); err == nil || !strings.Contains(err.Error(), "is a member already") {
		t.Errorf("two members of one name: %v", err)
	}
	st, err := c.at[1].Status(t.Context())
	if err != nil || len(st.Members) != 3 || st.Leader == "" || st.Term == 0 || st.Size == 0 || len(st.Alarms) > 0 {
		t.Errorf("status %+v, %v", st, err)
	}
	for i, m := range st.Members {
		if m.Name != c.cfg[i].Name || m.Addr != "api-"+m.Name+":8080" || m.Peer != c.cfg[i].Peer.Listen || !m.Answers || m.Learner || m.Self != (i == 1) {
			t.Errorf("member %+v", m)
		}
	}

	c.kill(2)
	if err := c.at[0].Remove(t.Context(), "b"); !errors.Is(err, ErrQuorum) {
		t.Errorf("removed one of the last two that live: %v", err)
	}
	if err := c.at[0].Remove(t.Context(), "x"); !errors.Is(err, ErrMember) {
		t.Errorf("removed one that is none: %v", err)
	}
	if err := c.at[0].Remove(t.Context(), "c"); err != nil {
		t.Fatalf("remove the dead: %v", err)
	}
	eventually(t, "b can be removed", func() bool { err = c.at[0].Remove(t.Context(), "b"); return err == nil })
	if err := c.at[1].Run(t.Context()); !errors.Is(err, ErrRemoved) {
		t.Errorf("the removed server ends with %v", err)
	}
	if err := c.at[0].Remove(t.Context(), "a"); !errors.Is(err, ErrQuorum) {
		t.Errorf("removed the only one: %v", err)
	}
	write(t, c.at[0], "/after")
	closeStore(t, c.at[0])
	c.open(t, 0)
	write(t, c.at[0], "/again")
	if _, err := Open(t.Context(), Config{Dir: c.cfg[1].Dir, Name: "b", Ephemeral: true}); err == nil {
		t.Error("a removed member was opened alone")
	}
}

// TestMoveLeader protects that leadership goes where it is told.
func TestMoveLeader(t *testing.T) {
	t.Parallel()
	c := newServers(t, 3)
	from := c.leader(t)
	to := (from + 1) % 3
	if err := c.at[to].MoveLeader(t.Context(), c.cfg[(to+1)%3].Name); !errors.Is(err, state.ErrUnavailable) {
		t.Errorf("who does not lead hands over: %v", err)
	}
	if err := c.at[from].MoveLeader(t.Context(), c.cfg[to].Name); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other leads", func() bool { return c.at[to].leadsMembers(c.at[to].link.Load()) })
}

// TestReload protects that a changed CA comes into use by itself, one member after the other, while writes go on.
func TestReload(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: slow")
	}
	t.Parallel()
	c := newServers(t, 3)
	var writing sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer writing.Wait()
	defer stop()
	done, writer := 0, c.at[0]
	writing.Go(func() {
		for ctx.Err() == nil {
			if err := increment(ctx, writer, "/n"); err == nil {
				done++
			} else if !errors.Is(err, state.ErrUnavailable) && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	was := make([]*link, 3)
	for i, s := range c.at {
		was[i] = s.link.Load()
	}
	next := newAuthority(t)
	bundle := append(must(os.ReadFile(filepath.Join(c.ca.dir, "ca.pem"))), must(os.ReadFile(filepath.Join(next.dir, "ca.pem")))...)
	if err := os.WriteFile(filepath.Join(c.ca.dir, "ca.pem"), bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, s := range c.at {
		eventually(t, fmt.Sprintf("member %d starts again", i), func() bool { return s.link.Load() != was[i] })
	}
	old := c.ca.dir
	c.ca.key, c.ca.cert, c.ca.dir = next.key, next.cert, old
	for _, cfg := range c.cfg { // certificates of the new CA, for new connections
		c.ca.issue(t, cfg.Name, serversName)
	}
	c.kill(1)
	c.open(t, 1)
	stop()
	writing.Wait()
	if c.at[1] == nil {
		t.FailNow()
	}
	if err := c.at[1].Fresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := count(c.at[1].View(), "/n"); got < uint64(done) || done == 0 {
		t.Errorf("%d writes were acknowledged, %d are there", done, got)
	}
}

var prefix = clientv3.WithPrefix()
