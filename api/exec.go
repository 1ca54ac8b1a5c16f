package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"
	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

const execDescription = "Connect with a WebSocket. Messages are binary; the first byte of each is its channel. From the client: 0 standard input, " +
	"without data for its end; 4 the terminal's size as JSON {\"columns\":80,\"rows\":24}. From the server: 1 standard output, 2 standard error, " +
	"3 the end as JSON, {\"code\":0} or {\"error\":\"why\"}, after which the connection closes. A message has at most 64 KiB of data. " +
	"The program ends when the connection does."

type execQuery struct {
	InstancePath
	Container string   `query:"container" doc:"Name of the container. Default: the first."`
	Command   []string `query:"command,explode" required:"true" minItems:"1" maxItems:"256" doc:"Program and arguments, each in a parameter of its own."`
	TTY       bool     `query:"tty" doc:"Give it a terminal: standard output then carries both streams."`
	Dir       string   `query:"dir" doc:"Working directory. Default: the container's."`
	Columns   uint16   `query:"columns" default:"80" doc:"Characters in a line of the terminal."`
	Rows      uint16   `query:"rows" default:"24" doc:"Lines of the terminal."`
	Stdin     bool     `query:"stdin" doc:"Give it standard input."`
}

func (s *server) exec(_ context.Context, in *execQuery) (*huma.StreamResponse, error) {
	v := s.Store.View()
	i, err := findInstance(v, &in.InstancePath)
	if err != nil {
		return nil, err
	}
	if err := checkContainer(v, i, in.Container); err != nil {
		return nil, err
	}
	if len(in.Command) == 0 || in.Command[0] == "" {
		return nil, badRequest("the command's program is empty")
	}
	node, err := s.place(v, i)
	if err != nil {
		return nil, err
	}
	if i.Status.Phase != model.PhaseRunning && i.Status.Phase != model.PhaseStopping {
		return nil, conflict("instance %s is %s, so nothing can run in it", i.ID, stateWord(i))
	}
	return streamed(func(w http.ResponseWriter, r *http.Request) error {
		if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			return badRequest("connect with a WebSocket")
		}
		ctx, cancel := s.streaming(w, r)
		defer cancel()
		conn, err := websocket.Accept(w, r, nil) // answers by itself when it refuses
		if err != nil {
			return nil
		}
		defer conn.CloseNow()
		runExec(ctx, conn, node, i.ID, in)
		return nil
	}), nil
}

// Times of an exec connection.
const (
	pingEvery   = 20 * time.Second
	pingTimeout = 20 * time.Second
	lastWords   = 5 * time.Second // for the rest of the output and the end, once the program was told to end
)

// session is one program and the connection that it talks over.
type session struct {
	conn    *websocket.Conn
	live    context.Context         // of the connection, which outlives the program to tell how it ended
	cancel  context.CancelCauseFunc // ends the program
	hangUp  context.CancelFunc      // ends the connection
	stdin   *io.PipeWriter          // nil without stdin
	sizes   chan runtime.Size       // holds the newest size; nil without a terminal
	blocked atomic.Bool             // the program does not take its input, so nothing is read from the connection
}

// errClientGone ends a program whose client does not answer.
var errClientGone = errors.New("the client is gone")

// runExec runs the program with the connection's streams until one of both ends.
func runExec(ctx context.Context, conn *websocket.Conn, node wire.Node, id model.InstanceID, in *execQuery) {
	live, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastWords, hangUp) })()
	s := &session{conn: conn, live: live, cancel: cancel, hangUp: hangUp}
	conn.SetReadLimit(client.MaxExecMessage + 1)
	e := runtime.Exec{
		Command: in.Command, Dir: in.Dir, TTY: in.TTY,
		Stdout: &channel{s, client.ChannelStdout}, Stderr: &channel{s, client.ChannelStderr},
	}
	if in.Stdin {
		var pipe *io.PipeReader
		pipe, s.stdin = io.Pipe()
		e.Stdin = pipe
		defer pipe.Close()
	}
	if in.TTY {
		s.sizes = make(chan runtime.Size, 1)
		s.sizes <- runtime.Size{Columns: in.Columns, Rows: in.Rows}
		e.Resize = s.sizes
	}
	done := make(chan struct{}, 2)
	go func() { s.receive(); done <- struct{}{} }()
	go func() { s.ping(); done <- struct{}{} }()
	code, err := node.Exec(ctx, id, in.Container, e)
	if s.stdin != nil {
		_ = s.stdin.CloseWithError(io.ErrClosedPipe) // frees receive from a program that read no more
	}
	s.end(ctx, code, err)
	hangUp()
	_ = conn.CloseNow()
	<-done
	<-done
}

// end says how the program ended, if anyone still listens.
func (s *session) end(ctx context.Context, code int, err error) {
	end := client.ExecEnd{Code: code}
	if err != nil {
		end = client.ExecEnd{Error: err.Error()}
		if why := endedBy(ctx); why != nil {
			end.Error = why.Error()
		}
	}
	msg, err := json.Marshal(end)
	if err != nil {
		return // a struct of a number and a string always encodes
	}
	last, cancel := context.WithTimeout(s.live, lastWords)
	defer cancel()
	if s.conn.Write(last, websocket.MessageBinary, append([]byte{client.ChannelEnd}, msg...)) == nil {
		_ = s.conn.Close(websocket.StatusNormalClosure, "")
	}
}

// gone ends everything: there is nobody to talk to.
func (s *session) gone() {
	s.cancel(errClientGone)
	s.hangUp()
}

// receive reads messages until the connection ends, and the program with it.
func (s *session) receive() {
	if s.stdin != nil {
		defer s.stdin.Close()
	}
	for {
		kind, msg, err := s.conn.Read(s.live)
		if err != nil {
			s.gone()
			return
		}
		if err := s.message(kind, msg); err != nil {
			s.cancel(err)
			_ = s.conn.Close(websocket.StatusPolicyViolation, err.Error())
			s.hangUp()
			return
		}
	}
}

// message takes one message of the client. It fails on those that make no sense.
func (s *session) message(kind websocket.MessageType, msg []byte) error {
	if kind != websocket.MessageBinary || len(msg) == 0 {
		return errors.New("messages are binary and begin with a channel")
	}
	switch channel, data := msg[0], msg[1:]; channel {
	case client.ChannelStdin:
		s.input(data)
		return nil
	case client.ChannelResize:
		return s.resize(data)
	}
	return errors.New("clients send on channels 0 and 4")
}

// input hands data to the program, and waits until it was taken: that is what holds back a client that is too fast.
func (s *session) input(data []byte) {
	if s.stdin == nil {
		return
	}
	if len(data) == 0 {
		_ = s.stdin.Close()
		return
	}
	s.blocked.Store(true)
	_, _ = s.stdin.Write(data) // a program that has closed its input loses the rest
	s.blocked.Store(false)
}

func (s *session) resize(data []byte) error {
	var size runtime.Size
	if json.Unmarshal(data, &size) != nil {
		return errors.New("a size is JSON with columns and rows")
	}
	if s.sizes == nil {
		return nil
	}
	select {
	case <-s.sizes: // the program has not seen the last one and need not
	default:
	}
	s.sizes <- size
	return nil
}

// ping ends the program when the client does not answer.
func (s *session) ping() {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.live.Done():
			return
		case <-tick.C:
		}
		short, cancel := context.WithTimeout(s.live, pingTimeout)
		err := s.conn.Ping(short)
		cancel()
		// While the program takes no input nobody reads the answer. A broken connection shows all the same.
		if err != nil && !(s.blocked.Load() && errors.Is(err, context.DeadlineExceeded)) {
			s.gone()
			return
		}
	}
}

// channel is a writer to one channel of a session. It waits for a client that is slow.
type channel struct {
	s  *session
	id byte
}

// Write implements io.Writer.
func (c *channel) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		n := min(len(p)-sent, client.MaxExecMessage/2)
		msg := append(append(make([]byte, 0, n+1), c.id), p[sent:sent+n]...)
		if err := c.s.conn.Write(c.s.live, websocket.MessageBinary, msg); err != nil {
			c.s.gone()
			return sent, err
		}
		sent += n
	}
	return sent, nil
}
