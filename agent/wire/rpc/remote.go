package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// Methods of calls.
const (
	methodLogs   = "logs"
	methodExec   = "exec"
	methodImport = "import"
	methodImages = "images"
	methodUsage  = "usage"
)

// maxInput is how many messages of input may be under way to a program that does not read them.
const maxInput = 8

// maxAnswer bounds the answer to a call that is no stream, in bytes.
const maxAnswer = 16 << 20

// execAsk is what Exec sends of its arguments.
type execAsk struct {
	Instance  model.InstanceID
	Container string
	Command   []string
	Env       map[string]string
	Dir       string
	TTY       bool
	Stdin     bool
	Size      *runtime.Size // of the terminal at start
}

// remote reaches the agent of a session.
type remote struct{ x *session }

var _ wire.Node = (*remote)(nil)

// call is one call of an agent's method.
type call struct {
	x      *session
	ctx    context.Context // the caller's
	stream grpc.ServerStream
	came   chan grpc.ServerStream // has room for one
	done   chan struct{}          // closed by finish: the handler returns, which ends the stream
	finish func()
	credit chan struct{} // holds an element for each message of input that may be sent

	sending sync.Mutex
}

// serveCall is the handler of a Call: it hands the stream to the caller and waits for its end.
func (s *Server) serveCall(stream grpc.ServerStream) error {
	id, _, err := s.identify(stream.Context())
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	var n uint64
	if values := metadata.ValueFromIncomingContext(stream.Context(), callKey); len(values) == 1 {
		n, _ = strconv.ParseUint(values[0], 10, 64) // 0 is no call
	}
	s.mu.Lock()
	x := s.sessions[id]
	s.mu.Unlock()
	var c *call
	if x != nil {
		c = x.claim(n)
	}
	if c == nil {
		return status.Error(codes.NotFound, "there is no such call")
	}
	c.came <- stream
	select {
	case <-c.done:
	case <-stream.Context().Done():
	}
	return nil
}

// claim returns an announced call, once.
func (x *session) claim(n uint64) *call {
	x.callsMu.Lock()
	defer x.callsMu.Unlock()
	c := x.calls[n]
	delete(x.calls, n)
	return c
}

// call announces a call, waits for its stream, and asks. The caller finishes it.
func (r *remote) call(ctx context.Context, method string, args any) (*call, error) {
	x := r.x
	text, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("encode the arguments of %s: %w", method, err)
	}
	if len(text) > maxMessage/2 {
		return nil, fmt.Errorf("%w: the arguments have %d bytes, at most %d are allowed", runtime.ErrInvalid, len(text), maxMessage/2)
	}
	select {
	case x.slots <- struct{}{}:
	default:
		return nil, fmt.Errorf("node %s answers %d calls already, which is the most", x.id, maxCalls)
	}
	c := &call{x: x, ctx: ctx, came: make(chan grpc.ServerStream, 1), done: make(chan struct{}), credit: make(chan struct{}, maxInput)}
	for range maxInput {
		c.credit <- struct{}{}
	}
	x.callsMu.Lock()
	x.calledN++
	n := x.calledN
	x.calls[n] = c
	x.callsMu.Unlock()
	over := sync.OnceFunc(func() {
		close(c.done)
		x.claim(n)
		<-x.slots
	})
	stopCaller, stopSession := context.AfterFunc(ctx, over), context.AfterFunc(x.ctx, over)
	c.finish = func() {
		stopCaller()
		stopSession()
		over()
	}
	if err := c.open(n, &ask{Method: method, Args: text}); err != nil {
		c.finish()
		return nil, err
	}
	return c, nil
}

// open announces the call and asks on the stream that comes.
func (c *call) open(n uint64, a *ask) error {
	if err := c.x.send(&fromServer{Call: n}); err != nil {
		return c.failure(err)
	}
	timer := time.NewTimer(callTimeout)
	defer timer.Stop()
	select {
	case c.stream = <-c.came:
	case <-timer.C:
		return fmt.Errorf("node %s does not answer", c.x.id)
	case <-c.done:
		return c.failure(errEnded)
	}
	return c.send(&fromCaller{Ask: a})
}

func (c *call) send(m *fromCaller) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if err := send(c.stream, m); err != nil {
		return c.failure(err)
	}
	return nil
}

// receive returns the next message that is not about input.
func (c *call) receive() (*fromCallee, error) {
	for {
		m := &fromCallee{}
		if err := receive(c.stream, m); err != nil {
			return nil, c.failure(err)
		}
		if m.Taken == 0 {
			return m, nil
		}
		for range min(m.Taken, maxInput) {
			select {
			case c.credit <- struct{}{}:
			default: // more than was sent
			}
		}
	}
}

// failure says why the stream ended early.
func (c *call) failure(err error) error {
	switch {
	case c.ctx.Err() != nil:
		return context.Cause(c.ctx)
	case c.x.ctx.Err() != nil:
		return fmt.Errorf("node %s went away: %w", c.x.id, context.Cause(c.x.ctx))
	case errors.Is(err, io.EOF):
		return fmt.Errorf("node %s ended the call without an answer", c.x.id)
	}
	return fmt.Errorf("node %s does not answer: %w", c.x.id, err)
}

// ended returns the error that the agent says the call ended with. What it ended because either side went away is no news.
func (c *call) ended(last *end) error {
	err := last.err()
	if err != nil && (c.ctx.Err() != nil || c.x.ctx.Err() != nil) {
		return c.failure(err)
	}
	return err
}

// feed sends r as input until it ends or the call does.
func (c *call) feed(r io.Reader) {
	buf := make([]byte, maxChunk)
	for {
		n, err := r.Read(buf)
		if n > 0 && !c.input(&fromCaller{Input: buf[:n]}) {
			return
		}
		switch {
		case errors.Is(err, io.EOF):
			c.input(&fromCaller{InputEnd: true})
			return
		case err != nil:
			c.input(&fromCaller{InputFail: err.Error()})
			return
		}
	}
}

// input sends a message of input once the agent has room for it. It returns false when the call is over.
func (c *call) input(m *fromCaller) bool {
	select {
	case <-c.credit:
		return c.send(m) == nil
	case <-c.done:
		return false
	}
}

// Logs implements wire.Node.
func (r *remote) Logs(ctx context.Context, q wire.LogRequest) (io.ReadCloser, error) {
	c, err := r.call(ctx, methodLogs, q)
	if err != nil {
		return nil, err
	}
	for {
		m, err := c.receive()
		if err == nil && m.End != nil {
			err = c.ended(m.End)
		}
		if err != nil {
			c.finish()
			return nil, err
		}
		if m.Opened || m.End != nil {
			return &output{call: c, over: m.End != nil}, nil
		}
	}
}

// output reads what a call writes. It takes from the stream as much as is read, so the agent waits for a slow reader.
type output struct {
	call *call
	rest []byte
	over bool
}

// Read implements io.Reader.
func (o *output) Read(p []byte) (int, error) {
	for len(o.rest) == 0 {
		if o.over {
			return 0, io.EOF
		}
		m, err := o.call.receive()
		if err == nil && m.End != nil {
			o.over, err = true, o.call.ended(m.End)
		}
		if err != nil {
			return 0, err
		}
		o.rest = m.Stdout
	}
	n := copy(p, o.rest)
	o.rest = o.rest[n:]
	return n, nil
}

// Close implements io.Closer. It wakes a reader.
func (o *output) Close() error {
	o.call.finish()
	return nil
}

// Exec implements wire.Node. A read from e.Stdin that is under way when the program ends stays so until it returns.
func (r *remote) Exec(ctx context.Context, id model.InstanceID, container string, e runtime.Exec) (int, error) {
	a := execAsk{Instance: id, Container: container, Command: e.Command, Env: e.Env, Dir: e.Dir, TTY: e.TTY, Stdin: e.Stdin != nil}
	select {
	case size, ok := <-e.Resize:
		if ok {
			a.Size = &size
		}
	default:
	}
	c, err := r.call(ctx, methodExec, a)
	if err != nil {
		return 0, err
	}
	defer c.finish()
	if e.Stdin != nil {
		go c.feed(e.Stdin) // it may outlive the call by a read that nobody can end
	}
	if e.Resize != nil {
		c.x.server.wg.Go(func() { c.resize(e.Resize) })
	}
	last, err := c.copyOut(e.Stdout, e.Stderr)
	if err != nil {
		return 0, err
	}
	return last.Code, c.ended(last)
}

func (c *call) resize(sizes <-chan runtime.Size) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok || c.send(&fromCaller{Resize: &size}) != nil {
				return
			}
		case <-c.done:
			return
		}
	}
}

// copyOut writes what the call writes, until its last message.
func (c *call) copyOut(stdout, stderr io.Writer) (*end, error) {
	for {
		m, err := c.receive()
		if err != nil {
			return nil, err
		}
		if m.End != nil {
			return m.End, nil
		}
		if len(m.Stdout) > 0 && stdout != nil {
			_, err = stdout.Write(m.Stdout)
		}
		if len(m.Stderr) > 0 && stderr != nil {
			_, err = stderr.Write(m.Stderr)
		}
		if err != nil {
			return nil, fmt.Errorf("write output: %w", err)
		}
	}
}

// Import implements wire.Node. It returns once archive is not read any more.
func (r *remote) Import(ctx context.Context, archive io.Reader) ([]string, error) {
	c, err := r.call(ctx, methodImport, nil)
	if err != nil {
		return nil, err
	}
	fed := make(chan struct{})
	go func() { defer close(fed); c.feed(archive) }()
	defer func() { c.finish(); <-fed }()
	var names []string
	err = c.answer(&names)
	return names, err
}

// Images implements wire.Node.
func (r *remote) Images(ctx context.Context) ([]runtime.Image, error) {
	var out []runtime.Image
	err := r.ask(ctx, methodImages, &out)
	return out, err
}

// Usage implements wire.Node.
func (r *remote) Usage(ctx context.Context) (wire.Usage, error) {
	var out wire.Usage
	err := r.ask(ctx, methodUsage, &out)
	return out, err
}

// ask makes a call that answers with one value.
func (r *remote) ask(ctx context.Context, method string, out any) error {
	c, err := r.call(ctx, method, nil)
	if err != nil {
		return err
	}
	defer c.finish()
	return c.answer(out)
}

// answer waits for the end of the call and reads what it wrote.
func (c *call) answer(out any) error {
	var text bounded
	last, err := c.copyOut(&text, nil)
	if err != nil {
		return err
	}
	if err := c.ended(last); err != nil {
		return err
	}
	if err := json.Unmarshal(text.b, out); err != nil {
		return fmt.Errorf("read the answer of node %s: %w", c.x.id, err)
	}
	return nil
}

// bounded keeps what is written to it, up to maxAnswer.
type bounded struct{ b []byte }

// Write implements io.Writer.
func (w *bounded) Write(p []byte) (int, error) {
	if len(w.b)+len(p) > maxAnswer {
		return 0, fmt.Errorf("the answer has more than %d MiB", maxAnswer>>20)
	}
	w.b = append(w.b, p...)
	return len(p), nil
}
