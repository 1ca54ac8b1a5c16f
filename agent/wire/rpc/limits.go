package rpc

import (
	"errors"
	"net"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// errCrowded is why a handshake is given up: the agent, which would give up soon itself, is to come back when there are fewer.
var errCrowded = errors.New("too many agents shake hands at once")

// limited is a listener that closes connections beyond a number at once. Of those that shake hands, few work at the same time:
// thousands that are ready to would each wait for all others at every step, and so would those that are further on.
type limited struct {
	net.Listener
	free  chan struct{} // holds an element for each connection
	turns chan struct{} // holds an element for each handshake that works now
	wait  time.Duration // the longest that one waits for its turn
}

func newLimited(l net.Listener, conns int, timeout time.Duration) *limited {
	return &limited{
		Listener: l, free: make(chan struct{}, conns), turns: make(chan struct{}, 2*runtime.GOMAXPROCS(0)), wait: timeout / 3,
	}
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.free <- struct{}{}:
			return &counted{Conn: c, gone: sync.OnceFunc(func() { <-l.free }), from: l}, nil
		default:
			_ = c.Close()
		}
	}
}

// counted is a connection that gives its place back.
type counted struct {
	net.Conn
	gone func()
	from *limited
}

// NetConn returns the connection below, as that of a TLS connection does.
func (c *counted) NetConn() net.Conn { return c.Conn }

// Close implements net.Conn.
func (c *counted) Close() error {
	c.gone()
	return c.Conn.Close()
}

// shaking is a connection during its handshake, which has a turn except while it waits for the agent: who never answers keeps
// nobody waiting. One goroutine reads and writes.
type shaking struct {
	*counted
	over bool // the handshake
	turn bool
}

// Read implements net.Conn.
func (s *shaking) Read(b []byte) (int, error) {
	if s.over {
		return s.counted.Read(b)
	}
	s.yield()
	n, err := s.counted.Read(b)
	if err == nil {
		err = s.take()
	}
	return n, err
}

func (s *shaking) take() error {
	select {
	case s.from.turns <- struct{}{}:
		s.turn = true
		return nil
	default:
	}
	timer := time.NewTimer(s.from.wait)
	defer timer.Stop()
	select {
	case s.from.turns <- struct{}{}:
		s.turn = true
		return nil
	case <-timer.C:
		return errCrowded
	}
}

func (s *shaking) yield() {
	if s.turn {
		s.turn = false
		<-s.from.turns
	}
}

// inTurn are credentials whose handshakes take turns.
type inTurn struct {
	credentials.TransportCredentials
}

// ServerHandshake implements credentials.TransportCredentials.
func (t inTurn) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	x, ok := c.(*counted)
	if !ok {
		return t.TransportCredentials.ServerHandshake(c)
	}
	s := &shaking{counted: x}
	defer func() { s.yield(); s.over = true }()
	return t.TransportCredentials.ServerHandshake(s)
}

// Clone implements credentials.TransportCredentials.
func (t inTurn) Clone() credentials.TransportCredentials {
	return inTurn{t.TransportCredentials.Clone()}
}
