package etcd

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
)

// door is where the members of other servers find this one's. Etcd's own would do, but knows certificates by files alone, and so
// not of a server that was removed while its certificate is good.
type door struct {
	listener net.Listener
	server   *http.Server
	served   chan struct{} // closed when serve has ended
}

// open listens for other members. Who calls waits until serve.
func (p *Peer) open() (*door, error) {
	l, err := net.Listen("tcp", p.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for other servers: %w", err)
	}
	l = brisk{l}
	if p.Guard != nil {
		return &door{listener: p.Guard(l)}, nil
	}
	info := p.TLS.info()
	guarded, err := transport.NewTLSListener(l, &info)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for other servers: %w", err), l.Close())
	}
	return &door{listener: guarded}, nil
}

// serve has h answer until close.
func (d *door) serve(h http.Handler) {
	if d == nil {
		return
	}
	d.server = &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 5 * time.Minute, // etcd's
		ErrorLog: log.New(io.Discard, "", 0), // which is about strangers
	}
	d.served = make(chan struct{})
	go func() {
		defer close(d.served)
		_ = d.server.Serve(d.listener) // it ends by close
	}()
}

func (d *door) close() error {
	switch {
	case d == nil:
		return nil
	case d.server == nil:
		return d.listener.Close()
	}
	err := d.server.Close()
	<-d.served
	return err
}

// brisk gives connections that fail once nothing has moved for the time after which members give them up.
type brisk struct{ net.Listener }

// Accept implements net.Listener.
func (b brisk) Accept() (net.Conn, error) {
	c, err := b.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return briskConn{c}, nil
}

type briskConn struct{ net.Conn }

// Read implements net.Conn.
func (c briskConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(rafthttp.ConnReadTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// Write implements net.Conn.
func (c briskConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(rafthttp.ConnWriteTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
