package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

// Why sessions end.
var (
	errReplaced = errors.New("the node has connected again")
	errNoHello  = errors.New("no hello came")
	errEnded    = errors.New("the session has ended")
)

// session is one connected agent. Its handler serves what the agent says, one message after the other; while one is
// served, at most one more has been read, so an agent that says too much is held back by the flow control of its stream.
type session struct {
	server *Server
	stream grpc.ServerStream
	id     model.NodeID // from the certificate
	tls    tls.ConnectionState
	ctx    context.Context
	cancel context.CancelCauseFunc

	heard atomic.Int64  // nanoseconds of the clock when the agent last said something
	every time.Duration // between beats
	timer *time.Timer   // of the next beat
	hello chan *hello   // the first message
	ups   chan *up      // those after it
	slots chan struct{} // holds an element for each call
	began time.Time     // on the monotonic clock, heard counts from it

	sending sync.Mutex // guards what follows, and sends
	specs   specsOut
	full    bool // the first wire.Down was sent

	callsMu sync.Mutex
	calls   map[uint64]*call // announced, not yet taken up
	calledN uint64
}

// identify returns whose connection it is.
func (s *Server) identify(ctx context.Context) (model.NodeID, tls.ConnectionState, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", tls.ConnectionState{}, errors.New("the connection is not known")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 { // that it is verified is the business of the TLS configuration
		return "", tls.ConnectionState{}, errors.New("the agent has shown no certificate of this cluster")
	}
	id, err := s.cfg.Identify(info.State)
	if err == nil && id == "" {
		err = errors.New("the certificate names no node")
	}
	return id, info.State, err
}

// serveSession is the handler of a Session.
func (s *Server) serveSession(stream grpc.ServerStream) error {
	id, state, err := s.identify(stream.Context())
	if err != nil {
		_ = send(stream, &fromServer{Refusal: &Refusal{Reason: WrongIdentity, Message: err.Error()}})
		return nil
	}
	x := &session{
		server: s, stream: stream, id: id, tls: state, began: time.Now(),
		hello: make(chan *hello), ups: make(chan *up), slots: make(chan struct{}, maxCalls),
		specs: specsOut{json: s.specText}, calls: map[uint64]*call{},
	}
	x.ctx, x.cancel = context.WithCancelCause(stream.Context())
	defer x.cancel(errEnded)
	s.wg.Go(x.read)
	err = x.serve()
	s.cfg.Logger.Debug("a session of an agent ended", "node", id, "after", time.Since(x.began), "error", err)
	var refusal *Refusal
	if errors.As(err, &refusal) {
		x.cancel(err)
		_ = x.send(&fromServer{Refusal: refusal}) // the agent may be gone
		return nil
	}
	return status.Error(codes.Unavailable, err.Error())
}

// read takes in messages until the stream ends.
func (x *session) read() {
	for first := true; ; {
		var m fromAgent
		if err := receive(x.stream, &m); err != nil {
			x.cancel(fmt.Errorf("read from the agent: %w", err))
			return
		}
		x.hear()
		switch {
		case first && m.Hello == nil, !first && m.Hello != nil:
			x.cancel(&Refusal{Reason: BadHello, Message: "a session begins with one hello"})
			return
		case first:
			first = false
			select {
			case x.hello <- m.Hello:
			case <-x.ctx.Done():
				return
			}
		case m.Up != nil:
			select {
			case x.ups <- m.Up:
				x.hear() // it waited here for the server, not for the agent
			case <-x.ctx.Done():
				return
			}
		}
	}
}

func (x *session) hear() { x.heard.Store(int64(time.Since(x.began))) }

// serve returns why the session ended.
func (x *session) serve() error {
	hello, err := x.awaitHello()
	if err != nil {
		return err
	}
	together, err := x.server.awaitLeader(x.ctx)
	if err != nil {
		return err
	}
	fleet := x.server.serving()
	if fleet == nil {
		return x.server.refusal(together)
	}
	if again, err := x.server.admit.enter(x.ctx); err != nil {
		return err
	} else if again > 0 {
		return &Refusal{Reason: Busy, Message: "too many agents connect at once", Cluster: x.server.where(), RetryAfter: again}
	}
	if own := x.server.cfg.Release; !own.Accepts(hello.Release) {
		return x.refuse(fleet, tooFar(x.id, party{hello.Release, hello.Gantry}, party{own, x.server.cfg.Gantry}))
	}
	leading, fleet, err := x.server.enter(x) // it may be another term by now
	if err != nil {
		return err
	}
	defer x.server.leave(x)
	defer context.AfterFunc(leading, func() { x.cancel(x.server.refusal(x.server.Sessions())) })()

	if err := x.send(&fromServer{Welcome: &welcome{
		Release: x.server.cfg.Release, Gantry: x.server.cfg.Gantry, Silence: x.server.cfg.Silence, Cluster: x.server.where(),
	}}); err != nil {
		return err
	}
	x.startBeat(hello.Silence)
	defer x.timer.Stop()
	link := fleet.Dial(x.ctx, &remote{x})
	if err := x.pass(link, 0, wire.Up{Hello: &hello.Node, WantRoutes: hello.Routes}); err != nil {
		return err
	}
	x.server.wg.Go(func() { x.cancel(x.speak(link)) })
	return x.listen(link)
}

// awaitHello returns the first message, if it is one to work with.
func (x *session) awaitHello() (*hello, error) {
	timer := time.NewTimer(x.server.cfg.Timeout)
	defer timer.Stop()
	var h *hello
	select {
	case h = <-x.hello:
	case <-timer.C:
		return nil, errNoHello
	case <-x.ctx.Done():
		return nil, context.Cause(x.ctx)
	}
	if h.Node.ID != x.id {
		return nil, &Refusal{Reason: WrongIdentity, Message: fmt.Sprintf(
			"the certificate is that of node %s, and the agent says that it is node %s", x.id, shorten(string(h.Node.ID)))}
	}
	return h, nil
}

// refuse turns the agent of another version away, and lets those see why who look at its node.
func (x *session) refuse(fleet Fleet, why string) error {
	if err := fleet.Refuse(x.ctx, x.id, why); err != nil {
		x.server.cfg.Logger.Warn("why an agent is refused cannot be written down", "node", x.id, "error", err) // it comes again
	}
	return &Refusal{Reason: WrongVersion, Cluster: x.server.where(), Message: why}
}

// listen serves what the agent says.
func (x *session) listen(link wire.Link) error {
	for {
		select {
		case u := <-x.ups:
			if err := x.pass(link, u.Seq, wire.Up{Reports: u.Reports, RemovedVolumes: u.Removed}); err != nil {
				return err
			}
		case <-x.ctx.Done():
			return context.Cause(x.ctx)
		}
	}
}

// pass hands u to the fleet and tells the agent what became of it.
func (x *session) pass(link wire.Link, seq uint64, u wire.Up) error {
	a := ack{Seq: seq}
	err := link.Send(x.ctx, u)
	if x.ctx.Err() != nil {
		return context.Cause(x.ctx)
	}
	if err != nil {
		a.Err = err.Error()
	}
	return x.send(&fromServer{Ack: &a})
}

// speak sends what the fleet has for the agent.
func (x *session) speak(link wire.Link) error {
	for {
		d, err := link.Recv(x.ctx)
		if err != nil {
			return err
		}
		if err := x.sendDown(d); err != nil {
			return err
		}
	}
}

func (x *session) sendDown(d wire.Down) error {
	x.sending.Lock()
	defer x.sending.Unlock()
	if d.Full {
		where := x.server.where() // it may have changed since the welcome
		d.Cluster, x.full = &where, true
	}
	return x.sendDownLocked(d)
}

// tellCluster sends where the servers are, unless the first wire.Down will say so.
func (x *session) tellCluster() {
	x.sending.Lock()
	defer x.sending.Unlock()
	if x.full {
		where := x.server.where()
		_ = x.sendDownLocked(wire.Down{Cluster: &where}) // when it fails the session ends
	}
}

func (x *session) sendDownLocked(d wire.Down) error {
	b, err := x.specs.encodeDown(&d)
	if err != nil {
		return err
	}
	for more := true; more; {
		n := min(len(b), maxPiece)
		p := piece{Data: b[:n], More: n < len(b)}
		if err := send(x.stream, &fromServer{Piece: &p}); err != nil {
			return err
		}
		b, more = b[n:], p.More
	}
	return nil
}

func (x *session) send(m *fromServer) error {
	x.sending.Lock()
	defer x.sending.Unlock()
	return send(x.stream, m)
}

// startBeat begins to send beats, and to end the session of an agent that is silent.
func (x *session) startBeat(agent time.Duration) {
	x.every = beatEvery(x.server.cfg.Silence, agent)
	x.timer = time.AfterFunc(math.MaxInt64, x.beat)
	x.timer.Reset(rand.N(x.every)) // agents that came together do not beat together
}

// beat is the timer's. A send may block on an agent that does not read; the next beats go on beside it.
func (x *session) beat() {
	if silent := time.Since(x.began) - time.Duration(x.heard.Load()); silent > x.server.cfg.Silence {
		x.cancel(fmt.Errorf("the agent has said nothing for %v", silent.Round(time.Millisecond)))
	}
	if x.ctx.Err() != nil {
		return
	}
	x.timer.Reset(x.every)
	if x.sending.TryLock() { // or something else is being sent, which is as good
		defer x.sending.Unlock()
		_ = send(x.stream, &fromServer{Beat: &beat{Spread: x.server.spread(x.server.Sessions())}}) // when it fails the stream has ended, which read sees
	}
}

// beatEvery returns how often to send a beat, given after which silence each side takes the other for dead.
func beatEvery(own, other time.Duration) time.Duration {
	if other <= 0 {
		other = own
	}
	return max(min(own, other)/3, 20*time.Millisecond)
}

// jitter returns between half of d and d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
