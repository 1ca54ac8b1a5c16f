package rpc

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

// Fleet serves the sessions of agents. *fleet.Fleet does.
type Fleet interface {
	Dial(ctx context.Context, node wire.Node) wire.Link
	// Refuse writes down why the agent of a node is not let in.
	Refuse(ctx context.Context, id model.NodeID, why string) error
}

// Config is what a Server has to work with.
type Config struct {
	TLS      *tls.Config                                     // required; it must demand and verify certificates of clients
	Identify func(tls.ConnectionState) (model.NodeID, error) // required; returns whose the certificate is, or why it is not accepted
	Gantry   string                                          // version of this program, for people
	Logger   *slog.Logger                                    // required
	Silence  time.Duration                                   // after which an agent that says nothing is taken for dead; default 10s
	Timeout  time.Duration                                   // for the TLS handshake, and for the first message after it; default 10s
	Rate     int                                             // sessions admitted in a second; default 1000
	Hold     time.Duration                                   // how long an agent waits at most while no server is known to lead; default 2.5s
	Conns    int                                             // connections open at once; default 30000
	Release  model.Release                                   // default model.ThisRelease; for tests
}

// Times of the server.
const (
	DefaultSilence = 10 * time.Second
	longestWait    = 4 * time.Second  // for admission; with Hold, less than agents wait for an answer
	mostSpread     = 5 * time.Second  // over which agents are sent elsewhere
	callTimeout    = 10 * time.Second // until an agent opens the stream of a call
	endTimeout     = 2 * time.Second  // for telling agents why this server ends
)

// maxCalls bounds how many calls one agent answers at once.
const maxCalls = 64

// maxSpecTexts bounds the cache of encoded specs.
const maxSpecTexts = 4096

func (c *Config) fill() {
	c.Silence = cmp.Or(c.Silence, DefaultSilence)
	c.Timeout = cmp.Or(c.Timeout, 10*time.Second)
	c.Rate = cmp.Or(c.Rate, 1000)
	c.Hold = cmp.Or(c.Hold, 2500*time.Millisecond)
	c.Conns = cmp.Or(c.Conns, 30_000)
	c.Release = cmp.Or(c.Release, model.ThisRelease)
}

// Server is the end of agents' connections in a server process. Run serves them; only while Lead runs are sessions let in.
type Server struct {
	cfg   Config
	grpc  *grpc.Server
	admit admission
	wg    sync.WaitGroup // of goroutines of sessions

	mu       sync.Mutex
	leading  context.Context // nil while this server does not lead
	fleet    Fleet
	cluster  wire.Cluster
	moved    chan struct{}             // closed, and made anew, when another server leads
	held     int                       // agents that wait for that
	woken    int                       // how many did when moved was last closed
	sessions map[model.NodeID]*session // the newest of each node

	specsMu sync.Mutex
	specs   map[*model.Spec][]byte
}

// NewServer returns a Server. Nothing is served before Run.
func NewServer(cfg Config) (*Server, error) {
	cfg.fill()
	if cfg.TLS == nil || cfg.Identify == nil || cfg.Logger == nil {
		return nil, errors.New("serve agents: a TLS configuration, a way to identify agents and a logger are needed")
	}
	s := &Server{
		cfg:      cfg,
		admit:    admission{every: time.Second / time.Duration(cfg.Rate), wait: longestWait},
		moved:    make(chan struct{}),
		sessions: map[model.NodeID]*session{},
		specs:    map[*model.Spec][]byte{},
	}
	s.grpc = grpc.NewServer(
		grpc.Creds(inTurn{credentials.NewTLS(cfg.TLS)}),
		grpc.ForceServerCodec(codec{}),
		grpc.ConnectionTimeout(cfg.Timeout),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxCalls+8),
		grpc.MaxHeaderListSize(8<<10),
		// What an agent sends and nobody reads is held to one window for each stream.
		grpc.StaticStreamWindowSize(64<<10),
		grpc.StaticConnWindowSize(256<<10),
		// Thousands of connections are idle at any time: they hold no buffers of gRPC's beside those of TLS.
		grpc.ReadBufferSize(0),
		grpc.WriteBufferSize(16<<10),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 3 * cfg.Timeout, Time: cfg.Silence, Timeout: cfg.Silence}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: cfg.Silence / 4, PermitWithoutStream: true}),
	)
	s.grpc.RegisterService(service(), s)
	return s, nil
}

// Run serves connections to l until ctx ends. It closes l.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		s.sendAway()
		time.AfterFunc(endTimeout, s.grpc.Stop)
		s.grpc.GracefulStop()
		s.grpc.Stop()
	})
	err := s.grpc.Serve(newLimited(l, s.cfg.Conns, s.cfg.Timeout))
	if stop() {
		s.grpc.Stop()
	} else {
		<-ended
	}
	s.wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("serve agents: %w", err)
}

// Lead lets agents in and has f serve them, until ctx ends. Then all are told to go elsewhere.
func (s *Server) Lead(ctx context.Context, f Fleet) error {
	s.mu.Lock()
	s.leading, s.fleet = ctx, f
	s.moveLocked()
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	if s.leading == ctx {
		s.leading, s.fleet = nil, nil
	}
	s.mu.Unlock()
	s.sendAway()
	return context.Cause(ctx)
}

// SetCluster says where servers are and which leads. Connected agents are told, others when they ask.
func (s *Server) SetCluster(c wire.Cluster) {
	c.Servers = slices.Clone(c.Servers)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cluster.Leader == c.Leader && slices.Equal(s.cluster.Servers, c.Servers) {
		return
	}
	s.cluster = c
	s.moveLocked()
	for _, x := range s.sessions {
		s.wg.Go(x.tellCluster)
	}
}

// Recheck identifies the agents of all sessions anew, and ends those whose certificate is no longer accepted.
func (s *Server) Recheck() {
	for _, x := range s.all() {
		if id, err := s.cfg.Identify(x.tls); err != nil || id != x.id {
			x.cancel(&Refusal{Reason: WrongIdentity, Message: fmt.Sprintf("the certificate of node %s is no longer accepted", x.id)})
		}
	}
}

// Sessions returns how many agents are connected.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

func (s *Server) all() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.sessions))
}

// sendAway ends all sessions, and says who leads instead.
func (s *Server) sendAway() {
	all := s.all()
	for _, x := range all {
		x.cancel(s.refusal(len(all)))
	}
}

// enter makes x the session of its node, in place of any older one, and returns who serves it. It fails when this server
// does not lead.
func (s *Server) enter(x *session) (context.Context, Fleet, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fleet == nil {
		return nil, nil, s.refusalLocked(1)
	}
	if old := s.sessions[x.id]; old != nil {
		old.cancel(errReplaced)
	}
	s.sessions[x.id] = x
	return s.leading, s.fleet, nil
}

// leave forgets a session.
func (s *Server) leave(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[x.id] == x {
		delete(s.sessions, x.id)
	}
}

func (s *Server) moveLocked() {
	close(s.moved)
	s.moved, s.woken = make(chan struct{}), s.held
}

// awaitLeader returns once this server leads or knows who does, or when that takes too long, and how many agents waited for it.
// Agents that lost their leader come while another is elected: to send them to and fro meanwhile would cost a handshake each
// time, of thousands at once.
func (s *Server) awaitLeader(ctx context.Context) (together int, err error) {
	timer := time.NewTimer(s.cfg.Hold)
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held++
	defer func() { s.held-- }()
	for s.fleet == nil && s.cluster.Leader == "" {
		moved := s.moved
		s.mu.Unlock()
		select {
		case <-moved:
			s.mu.Lock()
			together = s.woken
		case <-timer.C:
			s.mu.Lock()
			return s.held, nil
		case <-ctx.Done():
			s.mu.Lock()
			return 0, context.Cause(ctx)
		}
	}
	return together, nil
}

// serving returns who serves agents, nil while this server does not lead.
func (s *Server) serving() Fleet {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fleet
}

// refusal says who leads instead of this server, to one of some agents that are told so together: they are to go there one after
// the other.
func (s *Server) refusal(together int) *Refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusalLocked(together)
}

func (s *Server) refusalLocked(together int) *Refusal {
	after := rand.N(s.spread(together) + 1)
	if s.cluster.Leader == "" {
		after += jitter(time.Second)
	}
	return notLeader(s.cluster, after)
}

// spread returns over which time n agents should come to one server.
func (s *Server) spread(n int) time.Duration {
	return min(time.Duration(n)*time.Second/time.Duration(s.cfg.Rate), mostSpread)
}

func (s *Server) where() wire.Cluster {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster
}

// specText encodes a spec, once for all sessions. A spec never changes.
func (s *Server) specText(spec *model.Spec) ([]byte, error) {
	s.specsMu.Lock()
	defer s.specsMu.Unlock()
	if text, ok := s.specs[spec]; ok {
		return text, nil
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	if len(s.specs) >= maxSpecTexts {
		clear(s.specs)
	}
	s.specs[spec] = text
	return text, nil
}
