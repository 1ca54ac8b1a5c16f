package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

// clock is a time that tests move.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time        { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) skip(by time.Duration) { c.ahead.Add(int64(by)) }

// cluster is a first server that listens on loopback, at the doors of people and at that of machines.
type cluster struct {
	t    *testing.T
	clk  *clock
	dir  string
	db   *state.DB
	auth *Authority
	self *Machine
	reg  *Registrar
	addr string // of the HTTP door
}

var quiet = slog.New(slog.DiscardHandler)

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, clk: &clock{}, dir: t.TempDir()}
	c.db = memory.Open(c.clk.now)
	var err error
	c.auth, c.self, err = Found(c.dir, "a", []string{"127.0.0.1", "a.example"}, c.options())
	if err != nil {
		t.Fatal(err)
	}
	c.reg = NewRegistrar(RegistrarConfig{Store: c.db, Authority: c.auth, Now: c.clk.now, Servers: func() []string { return []string{c.addr} }})
	if err := c.reg.Settle(t.Context(), c.self); err != nil {
		t.Fatal(err)
	}
	c.addr = c.serve(c.self.ServerTLS(), c.reg.Handler())
	return c
}

func (c *cluster) options() MachineOptions { return MachineOptions{Now: c.clk.now, Logger: quiet} }

// serve answers HTTP on loopback and returns the address.
func (c *cluster) serve(cfg *tls.Config, h http.Handler) string {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	s := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	go s.Serve(tls.NewListener(c.self.Listener(l), cfg))
	c.t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

func (c *cluster) token(role model.MachineRole, uses int) Token {
	c.t.Helper()
	tok, err := c.reg.CreateToken(c.t.Context(), TokenSpec{Role: role, TTL: time.Hour, Uses: uses, By: "admin"})
	if err != nil {
		c.t.Fatal(err)
	}
	return tok
}

func (c *cluster) join(tok Token, role model.MachineRole, name string) (*Machine, error) {
	return Join(c.t.Context(), JoinOptions{
		Addr: c.addr, Token: tok, Role: role, Name: name, Dir: c.t.TempDir(), Hosts: []string{"127.0.0.1"}, MachineOptions: c.options(),
	})
}

func (c *cluster) agent(name string) *Machine {
	c.t.Helper()
	m, err := c.join(c.token(model.AgentMachine, 1), model.AgentMachine, name)
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

func want(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: %v, want: %v", what, err, kind)
	} else {
		t.Logf("%s: %v", what, err)
	}
}

// handshake lets two ends shake hands over a pipe and returns what each says.
func handshake(client, server *tls.Config) (peer Peer, cerr, serr error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	var cs tls.ConnectionState
	go func() {
		s := tls.Server(b, server)
		err := s.HandshakeContext(context.Background())
		cs = s.ConnectionState()
		if err == nil {
			_, err = s.Write([]byte{1})
		} else {
			b.Close()
		}
		done <- err
	}()
	c := tls.Client(a, client)
	if cerr = c.HandshakeContext(context.Background()); cerr == nil {
		_, cerr = io.ReadFull(c, make([]byte, 1)) // a server that refuses says so after the handshake
	} else {
		a.Close()
	}
	serr = <-done
	peer, _ = PeerOf(cs)
	return peer, cerr, serr
}

func agentKey(m *Machine) *ecdsa.PrivateKey { return m.cur.Load().cert.PrivateKey.(*ecdsa.PrivateKey) }
