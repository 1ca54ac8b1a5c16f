package rpc

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

// Agent is what a Dialer connects. *agent.Agent is one.
type Agent interface {
	wire.Node
	Session(ctx context.Context, link wire.Link) error
}

// DialerConfig is what a Dialer has to work with.
type DialerConfig struct {
	Servers []string      // required; addresses to begin with, host:port
	TLS     *tls.Config   // required; with the certificate of the node
	Gantry  string        // version of this program, for people
	Logger  *slog.Logger  // required
	Silence time.Duration // after which a server that says nothing is taken for dead; default 10s
	Timeout time.Duration // for connecting, until the server lets the agent in; default 10s
	Spread  time.Duration // over which agents that lost a server at once come back, unless it has said otherwise; default 2s
	Backoff time.Duration // the longest pause between tries; default 15s
	Release model.Release // default model.ThisRelease; for tests

	// Learned, if set, is called with the addresses of all servers whenever they change, to be kept for the next start.
	Learned func(servers []string)
}

func (c *DialerConfig) fill() {
	c.Silence = cmp.Or(c.Silence, DefaultSilence)
	c.Timeout = cmp.Or(c.Timeout, 10*time.Second)
	c.Spread = cmp.Or(c.Spread, 2*time.Second)
	c.Backoff = cmp.Or(c.Backoff, 15*time.Second)
	c.Release = cmp.Or(c.Release, model.ThisRelease)
}

// errNoAnswer is why an attempt ends when the server says nothing.
var errNoAnswer = errors.New("the server does not answer")

// Dialer keeps an agent connected to the leader.
type Dialer struct {
	cfg DialerConfig

	mu    sync.Mutex
	route route
}

// NewDialer returns a Dialer. Nothing is connected before Run.
func NewDialer(cfg DialerConfig) (*Dialer, error) {
	cfg.fill()
	if len(cfg.Servers) == 0 || cfg.TLS == nil || cfg.Logger == nil {
		return nil, errors.New("connect to servers: an address, a TLS configuration and a logger are needed")
	}
	return &Dialer{cfg: cfg, route: newRoute(cfg.Servers, cfg.Spread, cfg.Backoff)}, nil
}

// Run keeps the agent connected until ctx ends.
func (d *Dialer) Run(ctx context.Context, a Agent) error {
	addr := d.first()
	for ctx.Err() == nil {
		began := time.Now()
		err := d.connect(ctx, addr, a)
		if ctx.Err() != nil {
			break
		}
		next, pause := d.next(addr, err, time.Since(began))
		d.log(addr, next, pause, err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		addr = next
	}
	return context.Cause(ctx)
}

func (d *Dialer) log(addr, next string, pause time.Duration, err error) {
	log, what := d.cfg.Logger.Warn, "the connection to a server ended"
	var r *Refusal
	if errors.As(err, &r) {
		if what = "a server refuses this agent"; r.Reason == NotLeader || r.Reason == Busy {
			log, what = d.cfg.Logger.Info, "a server sends this agent on"
		}
	}
	log(what, "server", addr, "error", err, "next", next, "in", pause.Round(time.Millisecond))
}

// connect serves one connection. It returns why that ended.
func (d *Dialer) connect(ctx context.Context, addr string, a Agent) error {
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(credentials.NewTLS(d.cfg.TLS)),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: d.cfg.Timeout}),
		grpc.WithReadBufferSize(0), grpc.WithWriteBufferSize(16<<10),
	)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", addr, err)
	}
	l := newLink(ctx, d, conn, a)
	err = a.Session(l.ctx, l)
	l.cancel(err)
	closeErr := conn.Close() // frees what waits for the server
	return errors.Join(l.close(), closeErr)
}

func (d *Dialer) learn(c wire.Cluster) {
	d.mu.Lock()
	changed := d.route.learn(c)
	d.mu.Unlock()
	if changed && d.cfg.Learned != nil {
		d.cfg.Learned(slices.Clone(c.Servers))
	}
}

// spread takes in over which time agents are to come back that lose this server at once.
func (d *Dialer) spread(t time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.route.spread = max(d.cfg.Spread, min(t, d.cfg.Backoff))
}

func (d *Dialer) first() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.route.other("")
}

func (d *Dialer) next(addr string, err error, lived time.Duration) (string, time.Duration) {
	var r *Refusal
	if errors.As(err, &r) {
		d.learn(r.Cluster)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.route.next(addr, r, lived)
}

// Pauses and counts of a route.
const (
	firstPause   = 250 * time.Millisecond
	steady       = 20 * time.Second // a session that lived as long was none that failed
	maxRedirects = 3                // in a row, before a pause
	election     = time.Second      // before which nobody takes the place of a leader that died
)

// route decides where to connect next, and when. It does no I/O.
type route struct {
	seeds           []string // as configured: tried when all that was learned is of no use
	spread, backoff time.Duration

	servers   []string // as learned
	leader    string
	lost      string // the last server to which a connection failed
	turn      int
	failures  int // in a row
	redirects int // in a row
}

func newRoute(seeds []string, spread, backoff time.Duration) route {
	return route{seeds: slices.Clone(seeds), spread: spread, backoff: backoff, turn: rand.IntN(len(seeds))}
}

// learn takes in where the servers are, and reports whether their addresses have changed.
func (r *route) learn(c wire.Cluster) bool {
	r.leader = c.Leader
	if len(c.Servers) == 0 || slices.Equal(c.Servers, r.servers) {
		return false
	}
	r.servers = slices.Clone(c.Servers)
	r.turn = rand.IntN(len(r.servers))
	return true
}

// other returns the next server in turn that is not addr, if there is another.
func (r *route) other(addr string) string {
	all := r.servers
	for _, s := range r.seeds {
		if !slices.Contains(all, s) {
			all = append(slices.Clip(all), s)
		}
	}
	for range all {
		r.turn++
		if s := all[r.turn%len(all)]; s != addr {
			return s
		}
	}
	return all[0]
}

// next returns where to connect after addr has refused, with why, or the session with it ended after it had lived so long.
func (r *route) next(addr string, why *Refusal, lived time.Duration) (string, time.Duration) {
	if why == nil {
		r.redirects, r.lost = 0, addr
		if lived >= steady {
			// All agents of that server lose it at once, and the others do not know yet that it is dead.
			r.failures = 0
			return r.other(addr), min(election, r.spread) + rand.N(r.spread+1)
		}
		return r.other(addr), r.pause()
	}
	switch why.Reason {
	case NotLeader:
		if l := why.Cluster.Leader; l != "" && l != addr && r.redirects < maxRedirects {
			r.redirects++
			if l == r.lost { // the other does not know yet that it is dead
				return l, r.pause()
			}
			r.failures = 0
			return l, max(rand.N(firstPause), min(why.RetryAfter, r.backoff))
		}
		r.redirects = 0
		if why.RetryAfter > 0 {
			return r.other(addr), min(why.RetryAfter, r.backoff)
		}
		return r.other(addr), r.pause()
	case WrongVersion, WrongIdentity, BadHello:
		r.redirects = 0
		return r.other(addr), jitter(r.backoff)
	}
	r.redirects = 0
	if why.RetryAfter > 0 {
		return addr, min(why.RetryAfter, r.backoff)
	}
	return addr, r.pause()
}

// pause returns how long to wait after a failure: longer each time.
func (r *route) pause() time.Duration {
	d := min(firstPause<<min(r.failures, 10), r.backoff)
	r.failures++
	return jitter(d)
}
