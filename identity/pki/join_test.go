package pki

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

// An agent joins, and from its directory alone it is the same machine again.
func TestJoinAgent(t *testing.T) {
	c := newCluster(t)
	m := c.agent("n1")
	if p := m.Peer(); p.Role != model.AgentMachine || p.Name != "n1" || p.Cluster != c.auth.Cluster().ID {
		t.Errorf("joined as %+v", p)
	}
	if got := m.Servers(); !slices.Equal(got, []string{c.addr}) {
		t.Errorf("servers %v", got)
	}
	leaf := m.cur.Load().cert.Leaf
	if len(leaf.DNSNames)+len(leaf.IPAddresses) > 0 || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		t.Errorf("an agent's certificate is good for a server: %v %v", leaf.DNSNames, leaf.ExtKeyUsage)
	}
	again, err := OpenMachine(m.dir, c.options())
	if err != nil || again.Peer() != m.Peer() || !again.cur.Load().cert.Leaf.Equal(leaf) {
		t.Fatalf("opened again as %v, %v", again, err)
	}
	if _, err := os.Stat(authorityPath(m.dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an agent has the authority: %v", err)
	}
	for _, name := range []string{machineFile, pemFile} {
		if info, err := os.Stat(filepath.Join(m.dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	own, _ := m.Files()
	if _, err := tls.LoadX509KeyPair(own, own); err != nil {
		t.Errorf("others cannot read it: %v", err)
	}
	if rec := c.db.View().Machine("agent/n1"); rec == nil || rec.Trust != 1 || rec.Issuer != c.auth.Cluster().Issuer {
		t.Errorf("recorded as %+v", rec)
	}
	if err := os.Chmod(filepath.Join(m.dir, machineFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenMachine(m.dir, c.options()); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that all can read was used: %v", err)
	}
}

// A server that joins can do all that the first can: its authority admits machines that the first one trusts.
func TestJoinServer(t *testing.T) {
	c := newCluster(t)
	m, err := c.join(c.token(model.ServerMachine, 1), model.ServerMachine, "b")
	if err != nil {
		t.Fatal(err)
	}
	auth, err := OpenAuthority(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	leaf := m.cur.Load().cert.Leaf
	for _, host := range []string{"127.0.0.1", ServerName(c.auth.Cluster().ID)} {
		if err := leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	c.reg = NewRegistrar(RegistrarConfig{Store: c.db, Authority: auth, Now: c.clk.now})
	c.addr = c.serve(m.ServerTLS(), c.reg.Handler())
	agent := c.agent("n1")
	if peer, cerr, serr := handshake(agent.ClientTLS(), c.self.ServerTLS(model.AgentMachine)); cerr != nil || serr != nil || peer != agent.Peer() {
		t.Errorf("what the second server admitted: %v, %v, %v", cerr, serr, peer)
	}
}

// A server that moves gets a certificate for where it is now by itself, and is the same machine; one that has not moved keeps
// what it has, and an agent names no hosts.
func TestMoved(t *testing.T) {
	c := newCluster(t)
	reopen := func(dir string, hosts ...string) *Machine {
		t.Helper()
		o := c.options()
		o.Hosts = hosts
		m, err := OpenMachine(dir, o)
		must(t, err)
		must(t, m.CheckIn(t.Context(), Self{Authority: c.auth, Now: c.clk.now}))
		return m
	}
	was := c.self.cur.Load().cert.Leaf
	if m := reopen(c.dir, "a.example", "127.0.0.1"); !m.cur.Load().cert.Leaf.Equal(was) {
		t.Error("a server that has not moved was certified again")
	}
	m := reopen(c.dir, "10.1.2.3", "::1", "b.example")
	leaf := m.cur.Load().cert.Leaf
	for _, host := range []string{"10.1.2.3", "::1", "b.example", ServerName(c.auth.Cluster().ID)} {
		if err := leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if leaf.VerifyHostname("a.example") == nil || leaf.VerifyHostname("127.0.0.1") == nil {
		t.Error("the certificate names where the server was")
	}
	if m.Peer() != c.self.Peer() {
		t.Errorf("the server became %s", m.Peer())
	}
	must(t, m.CheckIn(t.Context(), c.reg))
	if again := reopen(c.dir); !again.cur.Load().cert.Leaf.Equal(leaf) {
		t.Error("a server that does not say where it is was certified again")
	}
	o := c.options()
	o.Hosts = []string{"server." + c.auth.Cluster().ID + ".gantry.internal"}
	if _, err := OpenMachine(c.dir, o); !errors.Is(err, ErrBadRequest) {
		t.Errorf("a host that is kept for Gantry: %v", err)
	}
	agent := c.agent("n1")
	if m := reopen(agent.dir, "10.1.2.3"); !m.cur.Load().cert.Leaf.Equal(agent.cur.Load().cert.Leaf) {
		t.Error("an agent was certified for hosts")
	}
}

// Each reason for which a machine is not admitted is told from the others, and nothing is written.
func TestJoinRefused(t *testing.T) {
	c := newCluster(t)
	other := newCluster(t)
	c.agent("n1")
	once := c.token(model.AgentMachine, 1)
	if _, err := c.join(once, model.AgentMachine, "n2"); err != nil {
		t.Fatal(err)
	}
	forged := c.token(model.AgentMachine, 1)
	forged.Secret = someToken(t, 1).Secret
	deleted := c.token(model.AgentMachine, 1)
	if err := c.reg.DeleteToken(t.Context(), deleted.ID); err != nil {
		t.Fatal(err)
	}
	foreign := other.token(model.AgentMachine, 1)
	pinnedHere := foreign
	pinnedHere.Roots = once.Roots
	before := c.db.View().Revision()
	for _, x := range []struct {
		what string
		tok  Token
		role model.MachineRole
		name string
		want error
	}{
		{"used up", once, model.AgentMachine, "n3", ErrTokenSpent},
		{"wrong secret", forged, model.AgentMachine, "n3", ErrToken},
		{"deleted", deleted, model.AgentMachine, "n3", ErrToken},
		{"wrong fingerprint", foreign, model.AgentMachine, "n3", ErrFingerprint},
		{"another cluster's", pinnedHere, model.AgentMachine, "n3", ErrToken},
	} {
		_, err := c.join(x.tok, x.role, x.name)
		want(t, x.what, err, x.want)
	}
	if rev := c.db.View().Revision(); rev != before {
		t.Errorf("the refused wrote: revision %d became %d", before, rev)
	}
	_, err := c.join(c.token(model.AgentMachine, 1), model.ServerMachine, "b")
	want(t, "wrong role", err, ErrTokenRole)
	_, err = c.join(c.token(model.AgentMachine, 1), model.AgentMachine, "n1")
	want(t, "taken", err, ErrTaken)
	late := c.token(model.AgentMachine, 1)
	c.clk.skip(2 * time.Hour)
	_, err = c.join(late, model.AgentMachine, "n3")
	want(t, "expired", err, ErrTokenExpired)
	_, err = c.join(late, model.AgentMachine, "../n3")
	if err == nil {
		t.Error("a name that is a path was taken")
	}
}

// Nothing is sent to a server that the token does not name.
func TestJoinSendsNothingToStrangers(t *testing.T) {
	c, evil := newCluster(t), newCluster(t)
	asked := atomic.Bool{}
	addr := c.serve(evil.self.ServerTLS(), http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Store(true) }))
	_, err := Join(t.Context(), JoinOptions{Addr: addr, Token: c.token(model.AgentMachine, 1), Role: model.AgentMachine, Name: "n1", Dir: t.TempDir(), MachineOptions: c.options()})
	want(t, "a stranger", err, ErrFingerprint)
	// An agent of the same cluster is no server either.
	agent := c.agent("n1")
	cfg := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return agent.cur.Load().cert, nil }}
	addr = c.serve(cfg, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Store(true) }))
	_, err = Join(t.Context(), JoinOptions{Addr: addr, Token: c.token(model.AgentMachine, 1), Role: model.AgentMachine, Name: "n2", Dir: t.TempDir(), MachineOptions: c.options()})
	want(t, "an agent", err, ErrUntrusted)
	if asked.Load() {
		t.Error("the stranger was sent a request")
	}
}

// A clock that is off is named as what is wrong.
func TestJoinClock(t *testing.T) {
	c := newCluster(t)
	for off, kind := range map[time.Duration]error{-48 * time.Hour: ErrClock, -time.Hour: ErrClock, time.Hour: nil, 48 * time.Hour: ErrUntrusted} {
		mine := &clock{}
		mine.skip(off)
		_, err := Join(t.Context(), JoinOptions{
			Addr: c.addr, Token: c.token(model.AgentMachine, 1), Role: model.AgentMachine, Name: "n1", Dir: t.TempDir(),
			MachineOptions: MachineOptions{Now: mine.now, Logger: quiet},
		})
		want(t, fmt.Sprint(off), err, kind)
	}
}

// Of many that join at once with a token for one, one does.
func TestTokenIsSpentOnce(t *testing.T) {
	c := newCluster(t)
	tok := c.token(model.AgentMachine, 1)
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_, err := c.join(tok, model.AgentMachine, fmt.Sprint("n", i))
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, ErrTokenSpent) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n := 0
	for range c.db.View().Machines() {
		n++
	}
	if won.Load() != 1 || n != 2 {
		t.Errorf("%d joined, %d machines are recorded", won.Load(), n)
	}
}

// A machine whose admission was lost on its way asks again and gets in, though the token was for one.
func TestJoinAnswerLost(t *testing.T) {
	c := newCluster(t)
	lost := atomic.Bool{}
	c.addr = c.serve(c.self.ServerTLS(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !lost.Swap(true) {
			c.reg.Handler().ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		c.reg.Handler().ServeHTTP(w, r)
	}))
	m := c.agent("n1")
	if rec := c.db.View().Machine("agent/n1"); rec.Epoch != m.Peer().Epoch {
		t.Errorf("recorded %s, certified %s", rec.Epoch, m.Peer().Epoch)
	}
}

// What a registrar signs and what it records belong together, also when trust changes in between.
func TestJoinWhileTrustChanges(t *testing.T) {
	c := newCluster(t)
	moving := &movingStore{Store: c.db}
	moving.before = func() { moving.before = nil; must(t, c.reg.Rotate(t.Context())) }
	c.reg = NewRegistrar(RegistrarConfig{Store: moving, Authority: c.auth, Now: c.clk.now})
	tok := c.token(model.AgentMachine, 1)
	moving.arm = true
	_, csr, err := newCSR(model.AgentMachine, nil)
	must(t, err)
	out, err := c.reg.Join(t.Context(), JoinRequest{Token: tok.Text(), Role: model.AgentMachine, Name: "n1", CSR: csr})
	must(t, err)
	if rec := c.db.View().Machine("agent/n1"); out.Trust != 2 || len(out.Roots) != 2 || rec.Trust != 2 {
		t.Errorf("admitted with trust %d, recorded %d", out.Trust, rec.Trust)
	}
}

// movingStore does something before an Update.
type movingStore struct {
	state.Store
	arm    bool
	before func()
}

func (s *movingStore) Update(ctx context.Context, fn func(*state.Tx) error) error {
	if s.arm && s.before != nil {
		s.before()
	}
	return s.Store.Update(ctx, fn)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCreateTokenRefuses(t *testing.T) {
	c := newCluster(t)
	for _, s := range []TokenSpec{
		{}, {Role: "boss", TTL: time.Hour}, {Role: "agent"}, {Role: "agent", TTL: -time.Hour}, {Role: "agent", TTL: 1000 * time.Hour},
		{Role: "agent", TTL: time.Hour, Uses: -1}, {Role: "agent", TTL: time.Hour, Uses: 1 << 30},
	} {
		if _, err := c.reg.CreateToken(t.Context(), s); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	for tok := range c.db.View().Tokens() {
		t.Errorf("kept %+v", tok)
	}
	tok := c.token(model.AgentMachine, 0)
	kept, err := json.Marshal(c.db.View().Token(tok.ID))
	if must(t, err); bytes.Contains(kept, []byte(tok.Secret)) {
		t.Error("the secret is stored")
	}
}

// The request for a certificate cannot ask for what its machine may not have.
func TestCSRRefused(t *testing.T) {
	for _, hosts := range [][]string{
		{"*.example"}, {"a b"}, {""}, {"-a"}, {strings.Repeat("a.", 200)}, {"server.x.gantry.internal"}, make([]string, 99),
	} {
		if _, _, err := newCSR(model.ServerMachine, hosts); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%q: %v", hosts, err)
		}
	}
	_, csr, err := newCSR(model.ServerMachine, []string{"127.0.0.1"})
	must(t, err)
	_, _, err = parseCSR(csr, model.AgentMachine)
	want(t, "an agent with hosts", err, ErrBadRequest)
	_, _, err = parseCSR(csr[:len(csr)-1], model.ServerMachine)
	want(t, "cut short", err, ErrBadRequest)
	csr[len(csr)-1] ^= 1
	_, _, err = parseCSR(csr, model.ServerMachine)
	want(t, "signature", err, ErrBadRequest)
}

// The doors bound and refuse what they cannot read.
func TestDoorsRefuse(t *testing.T) {
	c := newCluster(t)
	h := c.reg.Handler()
	for _, x := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", JoinPath, "", 400}, {"POST", JoinPath, "{", 400}, {"POST", JoinPath, `{"tokn":"x"}`, 400}, {"POST", JoinPath, "{} {}", 400},
		{"POST", JoinPath, "{}", 400}, {"POST", RenewPath, "{}", 400}, {"POST", RenewPath, `{"chain":["AAAA"]}`, 400},
		{"POST", JoinPath, `{"token":"` + strings.Repeat("a", maxBody) + `"}`, 400}, {"GET", JoinPath, "", 405}, {"POST", "/v1/other", "", 404},
	} {
		r := httptest.NewRequest(x.method, x.path, strings.NewReader(x.body))
		r.TLS = &tls.ConnectionState{}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != x.status {
			t.Errorf("%s %s %.20q: %d %s", x.method, x.path, x.body, w.Code, w.Body)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", JoinPath, strings.NewReader("{}")))
	if w.Code != 400 || !strings.Contains(w.Body.String(), "TLS") {
		t.Errorf("without TLS: %d %s", w.Code, w.Body)
	}
}

// What is no server of Gantry's is said to be none.
func TestJoinElsewhere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go http.Serve(l, http.NotFoundHandler())
	defer l.Close()
	for _, addr := range []string{l.Addr().String(), "127.0.0.1", "127.0.0.1:1"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := Join(ctx, JoinOptions{Addr: addr, Token: someToken(t, 1), Role: model.AgentMachine, Name: "n", Dir: t.TempDir(), MachineOptions: MachineOptions{Logger: quiet}})
		if cancel(); err == nil {
			t.Errorf("joined %s", addr)
		}
	}
}

// FuzzJoinRequest protects that nothing a stranger sends makes the door panic, or write.
func FuzzJoinRequest(f *testing.F) {
	_, csr, err := newCSR(model.AgentMachine, nil)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(JoinRequest{Token: someToken(f, 1).Text(), Role: model.AgentMachine, Name: "n1", CSR: csr})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(JoinPath, good)
	in, err := json.Marshal(CheckIn{Chain: [][]byte{csr}, CSR: csr, Proof: csr})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(RenewPath, in)
	f.Add(JoinPath, []byte(`{"token":"gtk1.a.b.c"}`))
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		if path != JoinPath && path != RenewPath {
			t.Skip()
		}
		c := fuzzed(t)
		before := c.db.View().Revision()
		r := httptest.NewRequest("POST", path, bytes.NewReader(body))
		r.TLS = &tls.ConnectionState{}
		w := httptest.NewRecorder()
		c.reg.Handler().ServeHTTP(w, r)
		if w.Code < 400 || w.Code >= 500 || c.db.View().Revision() != before {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

var (
	fuzzOnce sync.Once
	fuzzing  *cluster
)

// fuzzed returns one cluster for all that is fuzzed.
func fuzzed(t *testing.T) *cluster {
	fuzzOnce.Do(func() {
		dir, err := os.MkdirTemp("", "pki")
		must(t, err)
		defer os.RemoveAll(dir)
		c := &cluster{clk: &clock{}}
		c.db = memory.Open(c.clk.now)
		c.auth, c.self, err = Found(dir, "a", nil, c.options())
		must(t, err)
		c.reg = NewRegistrar(RegistrarConfig{Store: c.db, Authority: c.auth, Now: c.clk.now})
		must(t, c.reg.Settle(context.Background(), c.self))
		fuzzing = c
	})
	return fuzzing
}

// A truth that was restored from before a change of trust takes over what the server's disk has: machines do not go back, and
// would wait for a server that is not behind.
func TestSettleAfterRestore(t *testing.T) {
	c := newCluster(t)
	newer := *c.auth.Cluster()
	newer.Trust++
	must(t, c.auth.Update(&newer))
	must(t, c.reg.Settle(t.Context(), c.self))
	if got := c.db.View().Cluster().Trust; got != newer.Trust {
		t.Errorf("the truth has trust %d, the server's disk %d", got, newer.Trust)
	}
}

// A machine of a newer version may say more when it joins or checks in, and a file that it kept may hold more.
func TestNewerSaysMore(t *testing.T) {
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{`{"token":"t","role":"agent","name":"n","csr":null}`, true}, {`{"token":"t","later":{"x":[1]}}`, true},
		{`{"token":"t"} {}`, false}, {`{"token":1}`, false}, {``, false},
	} {
		var in JoinRequest
		if err := whole([]byte(c.text), &in); (err == nil) != c.ok || c.ok && in.Token != "t" {
			t.Errorf("%s is read as %+v, %v", c.text, in, err)
		}
	}
}
