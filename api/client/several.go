package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// reachTimeout bounds how long a server may take to be reached before the next is tried.
const reachTimeout = 3 * time.Second

// WithOthers names further servers of the cluster, each as New takes one. A call that reaches no server goes on to the next,
// and so does a read whose server hangs up; later calls begin with the server that answered last. Options that choose how
// calls are made come before this one.
func WithOthers(addrs ...string) Option {
	return func(c *Client) {
		if len(addrs) == 0 {
			return
		}
		h := *c.http
		if h.Transport == nil {
			h.Transport = http.DefaultTransport
		}
		if t, ok := h.Transport.(*http.Transport); ok {
			t = t.Clone()
			t.DialContext = (&net.Dialer{Timeout: reachTimeout}).DialContext
			h.Transport = t
		}
		s := &several{next: h.Transport}
		for _, addr := range append([]string{c.base}, addrs...) {
			_, host, ok := strings.Cut(strings.TrimRight(addr, "/"), "://")
			if !ok {
				host = addr
			}
			s.hosts = append(s.hosts, host)
		}
		h.Transport = s
		c.http = &h
	}
}

// several sends requests to whichever of several servers can be reached.
type several struct {
	next  http.RoundTripper
	hosts []string
	last  atomic.Int32 // the one that answered last
}

// RoundTrip implements http.RoundTripper.
func (s *several) RoundTrip(req *http.Request) (*http.Response, error) {
	first := int(s.last.Load())
	var errs []string
	for n := range s.hosts {
		at := (first + n) % len(s.hosts)
		try, err := s.request(req, s.hosts[at], n > 0)
		if err != nil {
			return nil, err
		}
		resp, err := s.next.RoundTrip(try)
		if err == nil {
			s.last.Store(int32(at))
			return resp, nil
		}
		if req.Context().Err() != nil || !mayGoOn(req, err) {
			return nil, err
		}
		errs = append(errs, fmt.Sprintf("%s: %v", s.hosts[at], err))
	}
	return nil, fmt.Errorf("none of %d servers answers: %s", len(s.hosts), strings.Join(errs, "; "))
}

// request returns req for one of the servers.
func (s *several) request(req *http.Request, host string, again bool) (*http.Request, error) {
	try := req.Clone(req.Context())
	u := *req.URL
	u.Host = host
	try.URL, try.Host = &u, host
	if again && req.Body != nil && req.Body != http.NoBody {
		if req.GetBody == nil {
			return nil, errors.New("the first server cannot be reached, and what was to be sent is gone: try again")
		}
		body, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		try.Body = body
	}
	return try, nil
}

// mayGoOn reports whether a request that failed did nothing, or does nothing when it is done twice.
func mayGoOn(req *http.Request, err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" || req.Method == http.MethodGet && !errors.Is(err, context.DeadlineExceeded) && tlsError("", err) == nil
}
