package rpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/fleet"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

var quiet = slog.New(slog.DiscardHandler)

// authority is a small CA.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
	next atomic.Int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	a.key, a.cert = a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(t testing.TB, c *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(a.next.Add(1)), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

// config returns what one that is called name uses for both ends.
func (a *authority) config(t testing.TB, name string) *tls.Config {
	t.Helper()
	key, cert := a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: a.pool, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
	}
}

// cluster is some servers on one store.
type cluster struct {
	t       testing.TB
	ca      *authority
	store   *state.DB
	servers []*testServer
	refused sync.Map // node ids that are not accepted any more
}

// testServer is one server, which may lead.
type testServer struct {
	*Server
	addr  string
	stop  func() // the whole server
	fleet *fleet.Fleet
	yield func() // leadership
}

func newCluster(t testing.TB, n int, change ...func(*Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, ca: newAuthority(t), store: memory.Open(time.Now)}
	for i := range n {
		cfg := Config{
			TLS: c.ca.config(t, fmt.Sprint("server-", i)), Gantry: "0.5.0", Logger: quiet, Timeout: 2 * time.Second, Hold: 200 * time.Millisecond,
			Identify: func(s tls.ConnectionState) (model.NodeID, error) {
				id := model.NodeID(s.PeerCertificates[0].Subject.CommonName)
				if _, ok := c.refused.Load(id); ok {
					return "", errors.New("the certificate was revoked")
				}
				return id, nil
			},
		}
		for _, f := range change {
			f(&cfg)
		}
		s, err := NewServer(cfg)
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = s.Run(ctx, l) }()
		ts := &testServer{Server: s, addr: l.Addr().String(), yield: func() {}}
		ts.stop = sync.OnceFunc(func() { ts.yield(); cancel(); <-ended })
		t.Cleanup(func() { ts.stop() })
		c.servers = append(c.servers, ts)
	}
	return c
}

// lead makes server i the leader, and tells all.
func (c *cluster) lead(i int) *testServer {
	s := c.servers[i]
	ctx, cancel := context.WithCancel(context.Background())
	s.fleet = fleet.New(c.store, fleet.Config{Now: time.Now, Logger: quiet})
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.fleet.Run(ctx) })
	wg.Go(func() { _ = s.Lead(ctx, s.fleet) })
	s.yield = sync.OnceFunc(func() { cancel(); wg.Wait() })
	for s.serving() == nil {
		time.Sleep(time.Millisecond)
	}
	c.tell(s.addr)
	return s
}

// tell makes all servers say who leads.
func (c *cluster) tell(leader string) {
	for _, s := range c.servers {
		s.SetCluster(wire.Cluster{Servers: c.addrs(), Leader: leader})
	}
}

func (c *cluster) addrs() []string {
	var out []string
	for _, s := range c.servers {
		out = append(out, s.addr)
	}
	return out
}

func (c *cluster) update(fn func(*state.Tx)) {
	c.t.Helper()
	if err := c.store.Update(context.Background(), func(tx *state.Tx) error { fn(tx); return nil }); err != nil {
		c.t.Fatal(err)
	}
}

// app puts an app's version.
func (c *cluster) app(id model.AppID) {
	c.update(func(tx *state.Tx) {
		tx.PutVersion(&model.AppVersion{App: id, Version: 1, Spec: &model.Spec{ID: id, Containers: []model.Container{{Shell: "run"}}}})
	})
}

// place puts an instance of app on node.
func (c *cluster) place(id model.InstanceID, app model.AppID, node model.NodeID) {
	c.update(func(tx *state.Tx) {
		tx.PutInstance(&model.Instance{ID: id, App: app, Version: 1, Desired: model.Run, Node: node, Status: model.Status{Phase: model.PhaseAssigned}})
	})
}

// await waits until the store says so.
func (c *cluster) await(what string, is func(state.View) bool) {
	c.t.Helper()
	_, watch := c.store.Watch()
	defer watch.Close()
	deadline := time.After(20 * time.Second)
	for !is(c.store.View()) {
		select {
		case <-watch.Ready():
			watch.Take()
		case <-deadline:
			c.t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// dial keeps a connected until the test ends, or the returned function is called.
func (c *cluster) dial(a Agent, node model.NodeID, change ...func(*DialerConfig)) (end func()) {
	c.t.Helper()
	cfg := DialerConfig{
		Servers: c.addrs(), TLS: c.ca.config(c.t, string(node)), Gantry: "0.5.0", Logger: quiet,
		Timeout: 2 * time.Second, Spread: 50 * time.Millisecond, Backoff: time.Second,
	}
	for _, f := range change {
		f(&cfg)
	}
	d, err := NewDialer(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = d.Run(ctx, a) }()
	end = sync.OnceFunc(func() { cancel(); <-ended })
	c.t.Cleanup(end)
	return end
}

// link opens one session as node, past a Dialer, to say on it what a test wants. Its second result says why it ended.
func (c *cluster) link(addr string, node model.NodeID, change ...func(*DialerConfig)) (wire.Link, <-chan error) {
	c.t.Helper()
	links, ended := make(chan wire.Link, 1), make(chan error, 1)
	cfg := DialerConfig{Servers: []string{addr}, TLS: c.ca.config(c.t, string(node)), Gantry: "0.5.0", Logger: quiet, Timeout: 2 * time.Second}
	for _, f := range change {
		f(&cfg)
	}
	d, err := NewDialer(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- d.connect(ctx, addr, &fakeAgent{session: func(ctx context.Context, l wire.Link) error {
			links <- l
			<-ctx.Done()
			return context.Cause(ctx)
		}})
	}()
	c.t.Cleanup(func() { cancel(); <-done })
	return <-links, ended
}

// fakeAgent is a node that a test plays.
type fakeAgent struct {
	id      model.NodeID
	session func(context.Context, wire.Link) error

	logs   func(context.Context, wire.LogRequest) (io.ReadCloser, error)
	exec   func(context.Context, runtime.Exec) (int, error)
	load   func(context.Context, io.Reader) ([]string, error)
	images []runtime.Image
	err    error

	mu   sync.Mutex
	errs []error         // why sessions ended
	runs map[string]bool // instances that it has been given
}

func newFakeAgent(id model.NodeID) *fakeAgent {
	return &fakeAgent{id: id, runs: map[string]bool{}}
}

// Session says hello, takes in what it is given, and reports that it runs.
func (a *fakeAgent) Session(ctx context.Context, l wire.Link) (err error) {
	if a.session != nil {
		return a.session(ctx, l)
	}
	defer func() {
		a.mu.Lock()
		a.errs = append(a.errs, err)
		a.mu.Unlock()
	}()
	if err := l.Send(ctx, wire.Up{Hello: &model.Node{ID: a.id, Name: string(a.id)}}); err != nil {
		return err
	}
	for {
		d, err := l.Recv(ctx)
		if err != nil {
			return err
		}
		var u wire.Up
		for _, s := range d.Set {
			u.Reports = append(u.Reports, wire.Report{ID: s.ID, Status: model.Status{Attempt: 1, Phase: model.PhaseRunning, Ready: true}})
		}
		a.mu.Lock()
		if d.Full {
			clear(a.runs)
		}
		for _, s := range d.Set {
			a.runs[string(s.ID)] = true
		}
		for _, id := range d.Drop {
			delete(a.runs, string(id))
		}
		a.mu.Unlock()
		if err := l.Send(ctx, u); err != nil {
			return err
		}
	}
}

func (a *fakeAgent) has() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for id := range a.runs {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

func (a *fakeAgent) Logs(ctx context.Context, r wire.LogRequest) (io.ReadCloser, error) {
	return a.logs(ctx, r)
}

func (a *fakeAgent) Exec(ctx context.Context, _ model.InstanceID, _ string, e runtime.Exec) (int, error) {
	return a.exec(ctx, e)
}

func (a *fakeAgent) Import(ctx context.Context, r io.Reader) ([]string, error) { return a.load(ctx, r) }

func (a *fakeAgent) Images(context.Context) ([]runtime.Image, error) { return a.images, a.err }

func (a *fakeAgent) Usage(context.Context) (wire.Usage, error) {
	return wire.Usage{Node: model.Usage{CPUs: 1.5, Memory: model.GiB}, Instances: map[model.InstanceID]model.Usage{"web-1": {CPUs: 0.5}}, Interval: time.Second}, a.err
}

// proxy passes connections on to an address, until it is told to lose what goes one way.
type proxy struct {
	addr             string
	loseUp, loseDown atomic.Bool // towards the server, and from it
	mu               sync.Mutex
	conns            []net.Conn
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				_ = client.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, client, server)
			p.mu.Unlock()
			wg.Go(func() { pass(server, client, &p.loseUp) })
			wg.Go(func() { pass(client, server, &p.loseDown) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		wg.Wait()
	})
	return p
}

// pass copies from one to the other. What is lost includes the news that from was closed.
func pass(to, from net.Conn, lose *atomic.Bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if lose.Load() {
			if err != nil {
				return
			}
			continue
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			_ = to.Close()
			return
		}
	}
}
