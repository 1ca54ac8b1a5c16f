package api

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"
)

const defaultStall = 10 * time.Minute

// A stream lasts for as long as its client wants, so nothing bounds it as a whole. That a client takes, or gives, nothing for
// too long does: else one that stops reading would hold connections, here and at the server that a stream is passed on to.

// brisk returns w with a limit to each write, also to those after the connection was taken over for another protocol.
func (s *server) brisk(w http.ResponseWriter) http.ResponseWriter {
	return &brisk{ResponseWriter: w, rc: http.NewResponseController(w), stall: s.Stall}
}

type brisk struct {
	http.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration
}

// Write implements http.ResponseWriter.
func (b *brisk) Write(p []byte) (int, error) {
	_ = b.rc.SetWriteDeadline(time.Now().Add(b.stall)) // recorders in tests have none
	return b.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController find the writer below.
func (b *brisk) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// Hijack implements http.Hijacker.
func (b *brisk) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := b.rc.Hijack()
	if err != nil {
		return nil, nil, err
	}
	return &briskConn{Conn: c, stall: b.stall}, rw, nil
}

// briskConn has no CloseWrite: when the server that leads has ended a stream, nothing is left to wait for.
type briskConn struct {
	net.Conn
	stall time.Duration
}

// Write implements net.Conn.
func (c *briskConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// briskBody returns body, which is that of the request that w answers, with a limit to each read.
func (s *server) briskBody(w http.ResponseWriter, body io.ReadCloser) io.ReadCloser {
	return &briskBody{ReadCloser: body, rc: http.NewResponseController(w), stall: s.Stall}
}

type briskBody struct {
	io.ReadCloser
	rc    *http.ResponseController
	stall time.Duration
}

// Read implements io.Reader.
func (b *briskBody) Read(p []byte) (int, error) {
	_ = b.rc.SetReadDeadline(time.Now().Add(b.stall)) // recorders in tests have none
	n, err := b.ReadCloser.Read(p)
	if err == nil || err == io.EOF {
		_ = b.rc.SetReadDeadline(time.Time{}) // else it would end the request while something else takes long
	}
	return n, err
}
