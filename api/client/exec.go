package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/coder/websocket"
	"github.com/gantry-os/gantry/model"
)

// ExecOptions is a program to run beside the programs of an instance.
type ExecOptions struct {
	Container string // empty for the first
	Command   []string
	Dir       string      // empty for the container's
	TTY       bool        // give it a terminal: Stdout then carries both streams
	Size      Size        // first size of the terminal
	Resize    <-chan Size // later sizes; may be nil
	Stdin     io.Reader   // nil for none
	Stdout    io.Writer   // nil drops it
	Stderr    io.Writer   // nil drops it
}

// Channels of an exec connection: the first byte of each message.
const (
	ChannelStdin  = 0 // client to server; without data it says that there is no more
	ChannelStdout = 1 // server to client
	ChannelStderr = 2 // server to client
	ChannelEnd    = 3 // server to client: an ExecEnd; the last message
	ChannelResize = 4 // client to server: a Size
)

// MaxExecMessage bounds one message of an exec connection, in bytes.
const MaxExecMessage = 64 << 10

// Exec runs a program in a running instance until it ends and returns its exit code. The program is ended when ctx ends.
// A read from Stdin that is under way may outlive the call.
func (c *Client) Exec(ctx context.Context, id model.InstanceID, o ExecOptions) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := c.dialExec(ctx, id, o)
	if err != nil {
		return 0, err
	}
	defer conn.CloseNow()
	conn.SetReadLimit(MaxExecMessage + 1)
	if o.Stdin != nil {
		go copyStdin(ctx, conn, o.Stdin)
	}
	if o.Resize != nil {
		go copySizes(ctx, conn, o.Resize)
	}
	return c.readExec(ctx, conn, o)
}

func (c *Client) dialExec(ctx context.Context, id model.InstanceID, o ExecOptions) (*websocket.Conn, error) {
	q := url.Values{"command": o.Command}
	set(q, "container", o.Container)
	set(q, "dir", o.Dir)
	setBool(q, "tty", o.TTY)
	setBool(q, "stdin", o.Stdin != nil)
	if o.TTY && o.Size != (Size{}) {
		q.Set("columns", strconv.Itoa(int(o.Size.Columns)))
		q.Set("rows", strconv.Itoa(int(o.Size.Rows)))
	}
	header := http.Header{}
	if c.token != "" {
		header.Set("Authorization", "Bearer "+c.token)
	}
	conn, resp, err := websocket.Dial(ctx, c.base+instancePath(id)+"/exec?"+q.Encode(),
		&websocket.DialOptions{HTTPClient: c.http, HTTPHeader: header})
	if err == nil {
		return conn, nil
	}
	if resp != nil && resp.StatusCode >= 400 {
		return nil, readError(resp)
	}
	return nil, c.lost(ctx, err)
}

// readExec writes output where it belongs until the program has ended.
func (c *Client) readExec(ctx context.Context, conn *websocket.Conn, o ExecOptions) (int, error) {
	for {
		_, msg, err := conn.Read(ctx)
		if err != nil {
			return 0, c.lost(ctx, err)
		}
		if len(msg) == 0 {
			return 0, errors.New("run program: the server sent an empty message")
		}
		var out io.Writer
		switch msg[0] {
		case ChannelStdout:
			out = o.Stdout
		case ChannelStderr:
			out = o.Stderr
		case ChannelEnd:
			return endOf(conn, msg[1:])
		}
		if out == nil {
			continue
		}
		if _, err := out.Write(msg[1:]); err != nil {
			return 0, fmt.Errorf("write output: %w", err)
		}
	}
}

func endOf(conn *websocket.Conn, msg []byte) (int, error) {
	var end ExecEnd
	if err := json.Unmarshal(msg, &end); err != nil {
		return 0, fmt.Errorf("decode the program's end: %w", err)
	}
	_ = conn.Close(websocket.StatusNormalClosure, "") // all that was wanted has come
	if end.Error != "" {
		return 0, errors.New(end.Error)
	}
	return end.Code, nil
}

// copyStdin ends quietly when the connection does: its reader then says why.
func copyStdin(ctx context.Context, conn *websocket.Conn, in io.Reader) {
	buf := make([]byte, 1+MaxExecMessage/2)
	buf[0] = ChannelStdin
	for {
		n, err := in.Read(buf[1:])
		if n > 0 && conn.Write(ctx, websocket.MessageBinary, buf[:1+n]) != nil {
			return
		}
		if err != nil {
			_ = conn.Write(ctx, websocket.MessageBinary, buf[:1])
			return
		}
	}
}

func copySizes(ctx context.Context, conn *websocket.Conn, sizes <-chan Size) {
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-sizes:
			if !ok {
				return
			}
			b, err := json.Marshal(s)
			if err != nil || conn.Write(ctx, websocket.MessageBinary, append([]byte{ChannelResize}, b...)) != nil {
				return
			}
		}
	}
}
