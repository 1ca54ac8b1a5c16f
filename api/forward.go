package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// ForwardedHeader marks a request that a server passed on to the leader, with the address it was passed to.
const ForwardedHeader = "Gantry-Forwarded"

const (
	// forwardTimeout bounds a call that is no stream. It is longer than what the leader takes at most.
	forwardTimeout = 30 * time.Second
	// maxForwarded is how many requests may be on their way to the leader at once.
	maxForwarded = 512
)

// reach says who can answer a call, beside any server.
type reach int

const (
	anyServer    reach = iota // from what is stored
	leaderAnswer              // who has the nodes' sessions and the scheduler
	leaderStream              // likewise, for as long as the client wants
)

// Answers of a server that cannot find the leader.
var (
	errNoLeader = unavailable("no server leads at the moment; try again")
	errTooMany  = unavailable("too many requests wait for the leader; try again")
)

// passOn gives calls that only the leader can answer to the leader.
func (s *server) passOn(how reach) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		if how == anyServer || s.Leader == nil {
			next(ctx)
			return
		}
		addr, self := s.Leader()
		r, w := humago.Unwrap(ctx)
		switch {
		case self:
			next(ctx)
		case r.Header.Get(ForwardedHeader) != "" || addr == "":
			writeProblem(w, errNoLeader)
		case s.Forward == nil:
			next(ctx)
		default:
			s.forward(w, r, addr, how)
		}
	}
}

// forward has the server at addr answer a request.
func (s *server) forward(w http.ResponseWriter, r *http.Request, addr string, how reach) {
	to, err := leaderURL(addr)
	if err != nil {
		s.Logger.Error("the leader's address is of no use", "addr", addr, "err", err)
		writeProblem(w, errNoLeader)
		return
	}
	select {
	case s.forwarding <- struct{}{}:
		defer func() { <-s.forwarding }()
	default:
		writeProblem(w, errTooMany)
		return
	}
	ctx, cancel := s.bounded(w, r, how)
	defer cancel()
	ctx, stop := s.whileLed(ctx, addr)
	defer stop()
	proxy := &httputil.ReverseProxy{
		Transport:     s.Forward,
		FlushInterval: -1, // output of programs is sent as it comes
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(to)
			p.Out.Header.Set(ForwardedHeader, to.Host)
		},
		ModifyResponse: func(resp *http.Response) error {
			for name := range resp.Header {
				w.Header().Del(name) // the leader's replaces this server's
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if why := endedBy(ctx); why != nil {
				err = why
			}
			writeProblem(w, unavailable("the leader at %s does not answer: %v; try again", to.Host, err))
		},
	}
	r = r.WithContext(ctx)
	if how == leaderStream {
		r.Body = s.briskBody(w, r.Body)
		w = s.brisk(w)
	}
	proxy.ServeHTTP(w, r)
}

// lookEvery is how often a server that waits for the leader looks whether another leads.
const lookEvery = 100 * time.Millisecond

var errOtherLeads = errors.New("another server has come to lead")

// whileLed returns a context that also ends when another server than the one at addr leads: one that is paused, or cut off, would
// leave the request waiting, and it no longer has the nodes' sessions.
func (s *server) whileLed(ctx context.Context, addr string) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if now, self := s.Leader(); self || now != "" && now != addr {
				cancel(errOtherLeads)
				return
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
	}
}

// bounded returns the context of a request that is passed on.
func (s *server) bounded(w http.ResponseWriter, r *http.Request, how reach) (context.Context, context.CancelFunc) {
	if how == leaderStream {
		return s.streaming(w, r)
	}
	return context.WithTimeout(r.Context(), forwardTimeout)
}

func leaderURL(addr string) (*url.URL, error) {
	if !strings.Contains(addr, "://") {
		addr = "https://" + addr
	}
	return url.Parse(addr)
}
