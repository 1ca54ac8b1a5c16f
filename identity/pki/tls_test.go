package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
)

// Who is let through: machines of the cluster, in the role that is asked for, in time.
func TestWhoIsLetThrough(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	agent, stranger := c.agent("n1"), other.agent("n1")
	door := c.self.ServerTLS(model.AgentMachine)
	peer, cerr, serr := handshake(agent.ClientTLS(), door)
	if cerr != nil || serr != nil || peer != agent.Peer() {
		t.Errorf("an agent: %v, %v, %v", cerr, serr, peer)
	}
	if peer, cerr, serr = handshake(c.self.ClientTLS(), c.self.ServerTLS(model.ServerMachine, model.AgentMachine)); cerr != nil || serr != nil || peer != c.self.Peer() {
		t.Errorf("a server: %v, %v, %v", cerr, serr, peer)
	}
	if peer, cerr, serr = handshake(agent.ClientTLS(), c.self.ServerTLS()); cerr != nil || serr != nil || peer != (Peer{}) {
		t.Errorf("at the door of people: %v, %v, %v", cerr, serr, peer)
	}
	_, _, serr = handshake(agent.ClientTLS(), c.self.ServerTLS(model.ServerMachine))
	want(t, "an agent where a server is asked for", serr, ErrUntrusted)
	_, _, serr = handshake(c.self.ClientTLS(), door)
	want(t, "a server where an agent is asked for", serr, ErrUntrusted)
	lax := func(m *Machine) *tls.Config {
		cfg := m.ClientTLS()
		cfg.VerifyConnection = nil
		return cfg
	}
	_, _, serr = handshake(lax(stranger), door)
	want(t, "an agent of another cluster", serr, ErrUntrusted)
	_, cerr, _ = handshake(stranger.ClientTLS(), door)
	want(t, "a server of another cluster", cerr, ErrUntrusted)
	_, cerr, _ = handshake(agent.ClientTLS(), agent.ServerTLS(model.AgentMachine))
	want(t, "an agent that plays server", cerr, ErrUntrusted)
	none := &tls.Config{InsecureSkipVerify: true}
	if _, _, serr = handshake(none, door); serr == nil {
		t.Error("nobody was let through")
	}
	c.clk.skip(DefaultTTL + time.Hour)
	must(t, c.self.CheckIn(t.Context(), c.reg))
	_, _, serr = handshake(lax(agent), c.self.ServerTLS(model.AgentMachine))
	want(t, "an expired certificate", serr, ErrUntrusted)
	c.clk.skip(-3 * DefaultTTL)
	_, _, serr = handshake(lax(agent), door)
	want(t, "a certificate of the future", serr, ErrClock)
}

// A certificate that names another cluster, but is signed by this one's root, or that names this cluster and is signed by
// another, is refused; so is one that names nothing, or two things.
func TestForgedNames(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	rec, foreign := c.auth.Cluster(), other.auth.Cluster()
	pub, _, err := parseCSR(csrOf(t), model.AgentMachine)
	must(t, err)
	mine := c.self.cur.Load().trust
	forge := func(a *Authority, signed *model.Cluster, name string, id model.MachineID) error {
		as := *signed
		as.ID = name
		chain, _, err := a.issue(&as, subject{id: id, epoch: "e", key: pub}, c.clk.now(), time.Hour)
		must(t, err)
		certs, err := parseChain(chain)
		must(t, err)
		_, err = mine.verify(certs, c.clk.now())
		return err
	}
	must(t, forge(c.auth, rec, rec.ID, "agent/n1"))
	want(t, "other name", forge(c.auth, rec, foreign.ID, "agent/n1"), ErrUntrusted)
	want(t, "other root", forge(other.auth, foreign, rec.ID, "agent/n1"), ErrUntrusted)
	for _, id := range []model.MachineID{"boss/n1", "agent/", "agent/a/b", "agent", "agent/..", "agent/n1?x=1"} {
		want(t, string(id), forge(c.auth, rec, rec.ID, id), ErrUntrusted)
	}
	root, err := x509.ParseCertificate(rec.Roots[0].Cert)
	must(t, err)
	_, err = mine.verify([]*x509.Certificate{root}, c.clk.now())
	want(t, "a root as a machine", err, ErrUntrusted)
}

func csrOf(t *testing.T) []byte {
	t.Helper()
	_, csr, err := newCSR(model.AgentMachine, nil)
	must(t, err)
	return csr
}

// talk keeps asking a server through one connection, and returns what stops it.
func talk(c net.Conn, stop <-chan struct{}, n *atomic.Int64) error {
	b := []byte{1}
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		n.Add(1)
	}
}

// echo answers each byte, behind the door of agents.
func (c *cluster) echo() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(c.t, err)
	c.t.Cleanup(func() { l.Close() })
	in := tls.NewListener(c.self.Listener(l), c.self.ServerTLS(model.AgentMachine))
	go func() {
		for {
			conn, err := in.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); io.Copy(conn, conn) }()
		}
	}()
	return l.Addr().String()
}

// Certificates are renewed, and the authority is rotated, under connections that are in use and others that are made all
// the time: none fails.
func TestRenewalUnderLoad(t *testing.T) {
	c := newCluster(t)
	agent := c.agent("n1")
	addr, stop := c.echo(), make(chan struct{})
	var asked, dialed atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		conn, err := tls.Dial("tcp", addr, agent.ClientTLS())
		must(t, err)
		wg.Go(func() {
			defer conn.Close()
			if err := talk(conn, stop, &asked); err != nil {
				t.Errorf("a connection in use: %v", err)
			}
		})
	}
	wg.Go(func() {
		for ctx := context.Background(); ; dialed.Add(1) {
			select {
			case <-stop:
				return
			default:
			}
			d := tls.Dialer{Config: agent.ClientTLS()}
			conn, err := d.DialContext(ctx, "tcp", addr)
			if err == nil {
				_, err = conn.Write([]byte{1})
			}
			if err == nil {
				_, err = io.ReadFull(conn, make([]byte, 1))
				conn.Close()
			}
			if err != nil {
				t.Errorf("a new connection: %v", err)
				return
			}
		}
	})
	first := agent.cur.Load().cert.Leaf
	warden := NewWarden(c.db, c.clk.now, DefaultGrace, quiet)
	for range 5 { // days
		c.clk.skip(18 * time.Hour)
		for range 2 { // one renews first, then the other, as it comes
			must(t, agent.CheckIn(t.Context(), NewClient(agent, nil)))
			must(t, c.self.CheckIn(t.Context(), c.reg))
		}
		if PhaseOf(c.db.View().Cluster()) == Steady {
			must(t, c.reg.Rotate(t.Context()))
		}
		_, err := warden.Step(t.Context())
		must(t, err)
		waitMore(&dialed, 3)
	}
	close(stop)
	wg.Wait()
	if agent.cur.Load().cert.Leaf.Equal(first) || c.db.View().Cluster().Trust < 4 {
		t.Error("nothing was renewed")
	}
	t.Logf("%d questions over standing connections, %d new connections, %d changes of trust", asked.Load(), dialed.Load(), c.db.View().Cluster().Trust-1)
}

func waitMore(n *atomic.Int64, by int64) {
	for end, until := time.Now().Add(10*time.Second), n.Load()+by; n.Load() < until && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// A machine that is revoked is cut off at once, its new connections are refused, it cannot check in, and its name is free.
func TestRevoked(t *testing.T) {
	c := newCluster(t)
	agent, bystander := c.agent("n1"), c.agent("n2")
	addr, stop := c.echo(), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	keeper := NewKeeper(c.db, c.auth, quiet, c.self)
	kept := make(chan error, 1)
	go func() { kept <- keeper.Run(ctx) }()
	defer func() { cancel(); <-kept }()

	var n atomic.Int64
	ends := map[string]chan error{}
	for name, m := range map[string]*Machine{"n1": agent, "n2": bystander} {
		conn, err := tls.Dial("tcp", addr, m.ClientTLS())
		must(t, err)
		ends[name] = make(chan error, 1)
		go func() { defer conn.Close(); ends[name] <- talk(conn, stop, &n) }()
	}
	waitMore(&n, 10)
	cut := make(chan struct{})
	c.self.OnRevoked(agent.Peer(), func() { close(cut) })
	c.self.OnRevoked(bystander.Peer(), func() { t.Error("the bystander was cut") })
	released := c.self.OnRevoked(agent.Peer(), func() { t.Error("it was released") })
	released()

	start := time.Now()
	must(t, c.reg.Revoke(t.Context(), "agent/n1", "stolen"))
	select {
	case err := <-ends["n1"]:
		t.Logf("cut after %v: %v", time.Since(start), err)
	case <-time.After(5 * time.Second):
		t.Error("the connection lives on")
	}
	<-cut
	_, _, serr := handshake(agent.ClientTLS(), c.self.ServerTLS(model.AgentMachine))
	want(t, "a new connection", serr, ErrRevoked)
	want(t, "checking in", agent.CheckIn(t.Context(), NewClient(agent, nil)), ErrRevoked)
	want(t, "running", agent.Run(t.Context(), NewClient(agent, nil)), ErrRevoked)
	again := false
	c.self.OnRevoked(agent.Peer(), func() { again = true })
	if !again {
		t.Error("what is tracked after the revocation was not cut")
	}
	close(stop)
	if err := <-ends["n2"]; err != nil {
		t.Errorf("the bystander: %v", err)
	}

	back := c.agent("n1")
	if _, cerr, serr := handshake(back.ClientTLS(), c.self.ServerTLS(model.AgentMachine)); cerr != nil || serr != nil {
		t.Errorf("joined again: %v, %v", cerr, serr)
	}
	_, _, serr = handshake(agent.ClientTLS(), c.self.ServerTLS(model.AgentMachine))
	want(t, "the old one after that", serr, ErrRevoked)
	must(t, c.reg.Revoke(t.Context(), "agent/never", ""))
	waitClosed(t, c.self)
}

// waitClosed waits until only the bystander's hook is kept.
func waitClosed(t *testing.T, m *Machine) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		m.mu.Lock()
		n := len(m.links)
		m.mu.Unlock()
		if n <= 1 {
			return
		}
	}
	t.Error("ended connections are kept")
}

// Agents hear of revoked servers when they check in.
func TestRevokedServer(t *testing.T) {
	c := newCluster(t)
	b, err := c.join(c.token(model.ServerMachine, 1), model.ServerMachine, "b")
	must(t, err)
	agent := c.agent("n1")
	if _, cerr, _ := handshake(agent.ClientTLS(), b.ServerTLS(model.AgentMachine)); cerr != nil {
		t.Fatal(cerr)
	}
	must(t, c.reg.Revoke(t.Context(), "server/b", ""))
	must(t, agent.CheckIn(t.Context(), NewClient(agent, nil)))
	_, cerr, _ := handshake(agent.ClientTLS(), b.ServerTLS(model.AgentMachine))
	want(t, "a revoked server", cerr, ErrRevoked)
}

// A machine that slept past its certificate's end checks in, within the grace, and past it does not.
func TestSleeper(t *testing.T) {
	c := newCluster(t)
	agent := c.agent("n1")
	c.clk.skip(10 * 24 * time.Hour)
	must(t, c.self.CheckIn(t.Context(), Self{Authority: c.auth, Now: c.clk.now, TTL: DefaultTTL})) // the whole cluster slept
	must(t, c.self.CheckIn(t.Context(), c.reg))
	awake, err := OpenMachine(agent.dir, c.options())
	must(t, err)
	must(t, awake.CheckIn(t.Context(), NewClient(awake, nil)))
	if !awake.Expires().After(c.clk.now()) {
		t.Error("it was not renewed")
	}
	c.clk.skip(DefaultGrace + 2*DefaultTTL)
	must(t, c.self.CheckIn(t.Context(), Self{Authority: c.auth, Now: c.clk.now, TTL: DefaultTTL}))
	want(t, "past the grace", awake.CheckIn(t.Context(), NewClient(awake, nil)), ErrUntrusted)
}

// A request to check in is good for nothing without the key of the certificate.
func TestCheckInForged(t *testing.T) {
	c := newCluster(t)
	agent := c.agent("n1")
	p := agent.cur.Load()
	key, csr, err := newCSR(model.AgentMachine, nil)
	must(t, err)
	in := CheckIn{Chain: p.cert.Certificate, Trust: 1, CSR: csr}
	must(t, in.sign(key))
	_, err = c.reg.CheckIn(t.Context(), in)
	want(t, "another key", err, ErrUntrusted)
	must(t, in.sign(agentKey(agent)))
	in.CSR = csrOf(t)
	_, err = c.reg.CheckIn(t.Context(), in)
	want(t, "another request", err, ErrUntrusted)
	in.CSR, in.Trust = csr, 7
	must(t, in.sign(agentKey(agent)))
	_, err = c.reg.CheckIn(t.Context(), in)
	want(t, "from the future", err, ErrUnavailable)
}

// A file that is damaged in any way is refused, or it is still the same machine.
func TestDamagedFiles(t *testing.T) {
	c := newCluster(t)
	for _, name := range []string{machineFile, authorityFile} {
		path := c.dir + "/" + name
		whole, err := os.ReadFile(path)
		must(t, err)
		for i := 0; i < len(whole); i += 97 {
			bad := append([]byte(nil), whole...)
			bad[i] ^= 0x15
			must(t, os.WriteFile(path, bad, 0o600))
			if name == machineFile {
				if m, err := OpenMachine(c.dir, c.options()); err == nil && m.Peer() != c.self.Peer() {
					t.Errorf("byte %d: became %v", i, m.Peer())
				}
			} else if a, err := OpenAuthority(c.dir); err == nil && a.Cluster().Issuer != c.auth.Cluster().Issuer {
				t.Errorf("byte %d: became %v", i, a.Cluster())
			}
		}
		must(t, os.WriteFile(path, whole[:len(whole)/2], 0o600))
		_, merr := OpenMachine(c.dir, c.options())
		_, aerr := OpenAuthority(c.dir)
		if merr == nil && aerr == nil {
			t.Errorf("half of %s was taken", name)
		}
		must(t, os.WriteFile(path, whole, 0o600))
	}
	if _, err := OpenMachine(t.TempDir(), c.options()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
}

// The seal is what keeps the keys: with another one, or for another cluster, they cannot be had.
func TestSeal(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	_, err := newAuthority("", sealed{c.auth.Cluster(), other.auth.seal})
	if err == nil {
		t.Error("another seal opened the key")
	}
	moved := *c.auth.Cluster()
	moved.ID = "x"
	if _, err := newAuthority("", sealed{&moved, c.auth.seal}); err == nil {
		t.Error("the key was opened for another cluster")
	}
	if err := c.auth.Update(other.auth.Cluster()); err == nil {
		t.Error("another cluster's record was taken")
	} else {
		t.Log(err)
	}
	c.db = other.db
	reg := NewRegistrar(RegistrarConfig{Store: other.db, Authority: c.auth})
	if err := reg.Settle(t.Context(), c.self); err == nil {
		t.Error("settled in another cluster")
	}
}

// A server whose store does not answer certifies itself, but never by what it knows to be out of date.
func TestSelfWithoutTruth(t *testing.T) {
	c := newCluster(t)
	c.db.Stop(fmt.Errorf("gone: %w", ErrUnavailable))
	self := Self{Registrar: c.reg, Authority: c.auth, Now: c.clk.now, TTL: DefaultTTL}
	c.clk.skip(20 * time.Hour)
	before := c.self.Expires()
	err := c.self.CheckIn(t.Context(), self)
	if !c.self.Expires().After(before) {
		t.Errorf("it was not renewed: %v", err)
	}
	_, err = self.CheckIn(t.Context(), CheckIn{Chain: c.self.cur.Load().cert.Certificate, Trust: 9, CSR: csrOf(t)})
	if err == nil {
		t.Error("it certified by old trust")
	}
}
