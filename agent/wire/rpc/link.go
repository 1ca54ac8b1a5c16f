package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

// link is the agent's end of a session.
type link struct {
	d      *Dialer
	node   wire.Node
	id     model.NodeID // set by open
	conn   *grpc.ClientConn
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	began  time.Time
	heard  atomic.Int64  // nanoseconds after began
	ready  chan struct{} // has an element when downs has
	acks   chan ack
	opened chan struct{} // closed when the server has let this session in
	calls  atomic.Int64  // that are answered now

	turn chan struct{} // held by the one Send that is under way

	sending sync.Mutex // guards sends
	stream  grpc.ClientStream
	seq     uint64

	downsMu sync.Mutex
	downs   []wire.Down // that the agent has not taken yet
}

// maxDowns is how many messages may wait for the agent. One that falls further behind connects again, to be told what is.
const maxDowns = 1000

// errClosed is why calls on a link fail after its end.
var errClosed = errors.New("the connection is closed")

func newLink(ctx context.Context, d *Dialer, conn *grpc.ClientConn, node wire.Node) *link {
	l := &link{
		d: d, node: node, conn: conn, began: time.Now(), ready: make(chan struct{}, 1), acks: make(chan ack, 1),
		opened: make(chan struct{}), turn: make(chan struct{}, 1),
	}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	return l
}

// close ends everything of the link and returns why it ended first.
func (l *link) close() error {
	l.cancel(errClosed)
	l.wg.Wait()
	return context.Cause(l.ctx)
}

// open opens the stream and says hello. It returns once the server has let the agent in.
func (l *link) open(ctx context.Context, node *model.Node, routes bool) error {
	timer := time.AfterFunc(l.d.cfg.Timeout, func() { l.cancel(errNoAnswer) })
	defer timer.Stop()
	stream, err := l.conn.NewStream(l.ctx, &sessionDesc, "/"+serviceName+"/"+sessionName)
	if err != nil {
		return l.failure(err)
	}
	l.stream, l.id = stream, node.ID
	l.wg.Go(l.read)
	if err := l.send(&fromAgent{Hello: &hello{Release: l.d.cfg.Release, Gantry: l.d.cfg.Gantry, Silence: l.d.cfg.Silence, Node: *node, Routes: routes}}); err != nil {
		return err
	}
	select {
	case <-l.opened:
		return nil
	case <-l.ctx.Done():
		return context.Cause(l.ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// failure says why the connection ended: what was found out first, else err.
func (l *link) failure(err error) error {
	if l.ctx.Err() != nil {
		return context.Cause(l.ctx)
	}
	return err
}

// Send implements wire.Link.
func (l *link) Send(ctx context.Context, u wire.Up) error {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-l.ctx.Done():
		return context.Cause(l.ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if u.Hello != nil {
		if err := l.open(ctx, u.Hello, u.WantRoutes); err != nil {
			return err
		}
		if err := l.acked(ctx, 0); err != nil {
			return err
		}
	}
	for part := range split(u) {
		l.seq++
		part.Seq = l.seq
		if err := l.send(&fromAgent{Up: part}); err != nil {
			return err
		}
		if err := l.acked(ctx, part.Seq); err != nil {
			return err
		}
	}
	return nil
}

// acked waits until the server has what was sent.
func (l *link) acked(ctx context.Context, seq uint64) error {
	for {
		select {
		case a := <-l.acks:
			switch {
			case a.Seq != seq: // of a Send that was given up
			case a.Err != "":
				return fmt.Errorf("the server could not take it: %w", &remoteError{text: a.Err})
			default:
				return nil
			}
		case <-l.ctx.Done():
			return context.Cause(l.ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// split divides u into messages that servers take. Each is durable before the next is sent.
func split(u wire.Up) func(yield func(*up) bool) {
	return func(yield func(*up) bool) {
		part, size := &up{}, 0
		flush := func(more int) bool {
			full := size+more > maxUp || len(part.Reports) == maxReports || len(part.Removed) == maxRemoved
			if !full || size == 0 {
				return true
			}
			done := part
			part, size = &up{}, 0
			return yield(done)
		}
		for i := range u.Reports {
			n := reportSize(&u.Reports[i])
			if !flush(n) {
				return
			}
			part.Reports, size = append(part.Reports, u.Reports[i]), size+n
		}
		for _, id := range u.RemovedVolumes {
			if !flush(len(id) + 8) {
				return
			}
			part.Removed, size = append(part.Removed, id), size+len(id)+8
		}
		if size > 0 {
			yield(part)
		}
	}
}

// reportSize is at least what a report takes on the wire.
func reportSize(r *wire.Report) int {
	n := 96 + len(r.ID) + min(len(r.Status.Message), maxSentence)
	for _, t := range r.Status.Tasks {
		n += 32 + len(t.Name)
		if t.Exit != nil {
			n += 64 + min(len(t.Exit.Lost), maxSentence)
		}
	}
	return n
}

// Recv implements wire.Link.
func (l *link) Recv(ctx context.Context) (wire.Down, error) {
	select {
	case <-l.ready:
	case <-l.ctx.Done():
		return wire.Down{}, context.Cause(l.ctx)
	case <-ctx.Done():
		return wire.Down{}, context.Cause(ctx)
	}
	l.downsMu.Lock()
	defer l.downsMu.Unlock()
	d := l.downs[0]
	if l.downs = l.downs[1:]; len(l.downs) > 0 {
		l.ready <- struct{}{}
	}
	return d, nil
}

func (l *link) send(m *fromAgent) error {
	l.sending.Lock()
	defer l.sending.Unlock()
	if err := send(l.stream, m); err != nil {
		// The reader learns why the stream ended.
		select {
		case <-l.ctx.Done():
		case <-time.After(time.Second):
		}
		return l.failure(fmt.Errorf("send to the server: %w", err))
	}
	return nil
}

// read takes in messages until the stream ends.
func (l *link) read() {
	var specs specsIn
	var down []byte
	for {
		var m fromServer
		if err := receive(l.stream, &m); err != nil {
			l.cancel(fmt.Errorf("the connection to the server ended: %w", err))
			return
		}
		l.heard.Store(int64(time.Since(l.began)))
		if err := l.message(&m, &specs, &down); err != nil {
			l.cancel(err)
			return
		}
	}
}

// message takes in one message.
func (l *link) message(m *fromServer, specs *specsIn, down *[]byte) error {
	switch {
	case m.Refusal != nil:
		return m.Refusal
	case m.Welcome != nil:
		return l.welcomed(m.Welcome)
	case m.Ack != nil:
		select {
		case <-l.acks: // nobody waited for it
		default:
		}
		l.acks <- *m.Ack
	case m.Piece != nil:
		if len(*down)+len(m.Piece.Data) > maxDown {
			return fmt.Errorf("the server sends more than %d MiB at once", maxDown>>20)
		}
		*down = append(*down, m.Piece.Data...)
		if m.Piece.More {
			return nil
		}
		d, err := specs.decodeDown(*down)
		*down = nil
		if err != nil {
			return fmt.Errorf("read assignments: %w", err)
		}
		return l.deliver(d)
	case m.Beat != nil:
		l.d.spread(m.Beat.Spread)
	case m.Call != 0:
		if l.calls.Add(1) > 2*maxCalls {
			l.calls.Add(-1)
			return fmt.Errorf("the server makes more than %d calls at once", 2*maxCalls)
		}
		l.wg.Go(func() {
			defer l.calls.Add(-1)
			l.answer(m.Call)
		})
	}
	return nil
}

// welcomed begins the session in earnest.
func (l *link) welcomed(w *welcome) error {
	select {
	case <-l.opened:
		return errors.New("the server says welcome twice")
	default:
	}
	if own := l.d.cfg.Release; !own.Accepts(w.Release) {
		return &Refusal{Reason: WrongVersion, Message: tooFar(l.id, party{own, l.d.cfg.Gantry}, party{w.Release, w.Gantry})}
	}
	l.d.learn(w.Cluster)
	close(l.opened)
	l.wg.Go(func() { l.beat(beatEvery(l.d.cfg.Silence, w.Silence)) })
	return nil
}

// deliver gives d to the agent. The agent never sees where the servers are.
func (l *link) deliver(d wire.Down) error {
	if d.Cluster != nil {
		l.d.learn(*d.Cluster)
		d.Cluster = nil
	}
	if !d.Full && len(d.Set)+len(d.Drop)+len(d.DropVolumes)+len(d.Routes) == 0 {
		return nil
	}
	l.downsMu.Lock()
	defer l.downsMu.Unlock()
	if len(l.downs) >= maxDowns {
		return errors.New("the agent does not keep up with what the server says")
	}
	if l.downs = append(l.downs, d); len(l.downs) == 1 {
		l.ready <- struct{}{}
	}
	return nil
}

// beat sends a beat every so often, and ends the session when the server is silent.
func (l *link) beat(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	sent := make(chan struct{}, 1) // has an element while nothing is being sent
	sent <- struct{}{}
	for {
		select {
		case <-tick.C:
		case <-l.ctx.Done():
			return
		}
		silent := time.Since(l.began) - time.Duration(l.heard.Load())
		if silent > l.d.cfg.Silence {
			l.cancel(fmt.Errorf("the server has said nothing for %v", silent.Round(time.Millisecond)))
			return
		}
		select {
		case <-sent:
			l.wg.Go(func() { // it may block on a server that does not read
				_ = l.send(&fromAgent{Beat: true}) // when it fails the stream has ended, which read sees
				sent <- struct{}{}
			})
		default:
		}
	}
}
