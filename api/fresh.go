package api

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// LagHeader tells in each answer to a GET how old it may be, in milliseconds.
const LagHeader = "Gantry-Lag"

// freshTimeout bounds how long a read waits to be fresh.
const freshTimeout = 5 * time.Second

// fresh is what reads pass: with fresh=true they wait until this server knows all that was acknowledged before, and all
// say how old what they answer may be.
func (s *server) fresh(ctx huma.Context, next func(huma.Context)) {
	r, w := humago.Unwrap(ctx)
	want, err := takeFresh(r)
	if err == nil && want && s.Servers != nil {
		err = s.waitFresh(r.Context())
	}
	if err != nil {
		writeProblem(w, err)
		return
	}
	w.Header().Set(LagHeader, strconv.FormatInt(s.lag().Milliseconds(), 10))
	next(ctx)
}

// takeFresh takes the parameter out of a request: operations know nothing of it.
func takeFresh(r *http.Request) (bool, error) {
	q := r.URL.Query()
	if !q.Has("fresh") {
		return false, nil
	}
	want, err := strconv.ParseBool(q.Get("fresh"))
	if err != nil {
		return false, problem(http.StatusUnprocessableEntity, "fresh is %q: write true or false", q.Get("fresh"))
	}
	u := *r.URL
	q.Del("fresh")
	u.RawQuery = q.Encode()
	*r.URL = u
	return want, nil
}

func (s *server) waitFresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, freshTimeout)
	defer cancel()
	if err := s.Servers.Fresh(ctx); err != nil {
		return unavailable("this server cannot tell whether it knows all that was written: %v; without fresh=true it answers what it knows", err)
	}
	return nil
}

// lag is none for a server that is alone.
func (s *server) lag() time.Duration {
	if s.Servers == nil {
		return 0
	}
	return max(s.Servers.Lag(), 0)
}

// describeFresh puts what fresh does into an operation's entry in the document.
func describeFresh(op *huma.Operation) {
	op.Parameters = append(op.Parameters, &huma.Param{
		Name: "fresh", In: "query", Schema: &huma.Schema{Type: huma.TypeBoolean},
		Description: "Wait until the server knows all that was acknowledged before.",
	})
	for status, r := range op.Responses {
		if code, err := strconv.Atoi(status); err == nil && code < http.StatusBadRequest {
			if r.Headers == nil {
				r.Headers = map[string]*huma.Param{}
			}
			r.Headers[LagHeader] = &huma.Param{Schema: &huma.Schema{Type: huma.TypeInteger}, Description: "How old the answer may be, in milliseconds."}
		}
	}
}
