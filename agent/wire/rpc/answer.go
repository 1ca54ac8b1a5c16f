package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/runtime"
)

// errCallEnded is why what a call started is ended: the caller does not wait for it any more.
var errCallEnded = errors.New("the caller went away")

// answering is the agent's side of one call.
type answering struct {
	ctx    context.Context
	stream grpc.ClientStream
	input  chan input        // has room for all that the server may send
	sizes  chan runtime.Size // holds the newest size

	sending sync.Mutex
}

// input is a part of a call's input, or why it ended.
type input struct {
	data []byte
	err  error
}

// answer serves call n.
func (l *link) answer(n uint64) {
	ctx, cancel := context.WithCancelCause(l.ctx)
	defer cancel(errCallEnded)
	stream, err := l.conn.NewStream(metadata.AppendToOutgoingContext(ctx, callKey, strconv.FormatUint(n, 10)), &callDesc, "/"+serviceName+"/"+callName)
	if err != nil {
		return // the server sees that none came
	}
	var first fromCaller
	if err := receive(stream, &first); err != nil || first.Ask == nil {
		return
	}
	a := &answering{ctx: ctx, stream: stream, input: make(chan input, maxInput+1), sizes: make(chan runtime.Size, 1)}
	var reader sync.WaitGroup
	reader.Go(func() { cancel(a.read()) })
	defer reader.Wait() // until the server has taken the answer, or ctx has ended
	last := a.serve(l.node, first.Ask)
	if l.ctx.Err() != nil {
		return // it ended for that, which is no answer
	}
	if a.send(&fromCallee{End: &last}) == nil {
		_ = stream.CloseSend() // never fails
	}
}

// read takes in what the server sends during the call. It returns why that ended.
func (a *answering) read() error {
	for {
		var m fromCaller
		if err := receive(a.stream, &m); err != nil {
			return errCallEnded
		}
		var in input
		switch {
		case m.Input != nil:
			in.data = m.Input
		case m.InputEnd:
			in.err = io.EOF
		case m.InputFail != "":
			in.err = &remoteError{text: m.InputFail}
		case m.Resize != nil:
			a.resize(*m.Resize)
			continue
		default:
			continue
		}
		select {
		case a.input <- in:
		default:
			return errors.New("the server sends more input than it may")
		}
	}
}

// resize keeps the newest size for the program.
func (a *answering) resize(s runtime.Size) {
	select {
	case <-a.sizes:
	default:
	}
	a.sizes <- s
}

func (a *answering) send(m *fromCallee) error {
	a.sending.Lock()
	defer a.sending.Unlock()
	return send(a.stream, m)
}

// serve does what is asked and returns the last message.
func (a *answering) serve(node wire.Node, q *ask) end {
	var code int
	var err error
	switch q.Method {
	case methodLogs:
		err = a.logs(node, q.Args)
	case methodExec:
		code, err = a.exec(node, q.Args)
	case methodImport:
		err = reply(a, func() ([]string, error) { return node.Import(a.ctx, &inputReader{a: a}) })
	case methodImages:
		err = reply(a, func() ([]runtime.Image, error) { return node.Images(a.ctx) })
	case methodUsage:
		err = reply(a, func() (wire.Usage, error) { return node.Usage(a.ctx) })
	default:
		err = fmt.Errorf("the agent of this node does not know how to do %q: it is of another version", q.Method)
	}
	if err != nil {
		return end{Kind: failureOf(err), Error: shorten(err.Error())}
	}
	return end{Code: code}
}

// reply answers with what ask returns.
func reply[T any](a *answering, ask func() (T, error)) error {
	out, err := ask()
	if err != nil {
		return err
	}
	text, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	_, err = a.stdout().Write(text)
	return err
}

func (a *answering) logs(node wire.Node, args []byte) error {
	var q wire.LogRequest
	if err := json.Unmarshal(args, &q); err != nil {
		return fmt.Errorf("%w: read the call: %w", runtime.ErrInvalid, err)
	}
	r, err := node.Logs(a.ctx, q)
	if err != nil {
		return err
	}
	closed := sync.OnceFunc(func() { _ = r.Close() })
	defer closed()
	defer context.AfterFunc(a.ctx, closed)() // wakes a read that does not watch ctx
	if err := a.send(&fromCallee{Opened: true}); err != nil {
		return err
	}
	if _, err := io.CopyBuffer(a.stdout(), struct{ io.Reader }{r}, make([]byte, maxChunk)); err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	return nil
}

func (a *answering) exec(node wire.Node, args []byte) (int, error) {
	var q execAsk
	if err := json.Unmarshal(args, &q); err != nil {
		return 0, fmt.Errorf("%w: read the call: %w", runtime.ErrInvalid, err)
	}
	e := runtime.Exec{Command: q.Command, Env: q.Env, Dir: q.Dir, TTY: q.TTY, Stdout: a.stdout(), Stderr: a.stderr()}
	if q.Stdin {
		e.Stdin = &inputReader{a: a}
	}
	if q.TTY {
		e.Resize = a.sizes
		if q.Size != nil {
			select {
			case a.sizes <- *q.Size:
			default: // a newer one came already
			}
		}
	}
	return node.Exec(a.ctx, q.Instance, q.Container, e)
}

// stdout returns a writer of the call's output.
func (a *answering) stdout() io.Writer {
	return &outputWriter{a, func(b []byte) *fromCallee { return &fromCallee{Stdout: b} }}
}

// stderr returns a writer of the call's other output.
func (a *answering) stderr() io.Writer {
	return &outputWriter{a, func(b []byte) *fromCallee { return &fromCallee{Stderr: b} }}
}

// outputWriter sends what is written. It waits for a server that is slow to take it.
type outputWriter struct {
	a    *answering
	wrap func([]byte) *fromCallee
}

// Write implements io.Writer.
func (w *outputWriter) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); {
		n := min(len(p)-sent, maxChunk)
		if err := w.a.send(w.wrap(p[sent : sent+n])); err != nil {
			if w.a.ctx.Err() != nil {
				err = context.Cause(w.a.ctx)
			}
			return sent, err
		}
		sent += n
	}
	return len(p), nil
}

// inputReader reads a call's input.
type inputReader struct {
	a    *answering
	rest []byte
	err  error
}

// Read implements io.Reader.
func (r *inputReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 && r.err == nil {
		select {
		case in := <-r.a.input:
			r.rest, r.err = in.data, in.err
			_ = r.a.send(&fromCallee{Taken: 1}) // when it fails the call has ended
		case <-r.a.ctx.Done():
			r.err = context.Cause(r.a.ctx)
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	if n == 0 && len(p) > 0 {
		return 0, r.err
	}
	return n, nil
}
