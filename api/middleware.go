package api

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/gantry-os/gantry/identity"
)

// outer wraps what every request passes, known path or not.
func (s *server) outer(next http.Handler) http.Handler {
	cross := http.NewCrossOriginProtection()
	cross.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, problem(http.StatusForbidden, "this request comes from a web page of another origin"))
	}))
	next = cross.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := s.Now()
		rec := &recorder{ResponseWriter: w}
		defer func() {
			v := recover()
			if v != nil && v != http.ErrAbortHandler {
				s.panicked(rec, r, v)
			}
			s.observe(rec, r, s.Now().Sub(start))
			if v == http.ErrAbortHandler {
				panic(v)
			}
		}()
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(rec, r)
	})
}

// panicked answers for a handler that failed in a way nobody thought of.
func (s *server) panicked(rec *recorder, r *http.Request, v any) {
	s.meters.panics.Inc()
	s.Logger.Error("a request made the server panic", "method", r.Method, "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
	if rec.status == 0 {
		writeProblem(rec, problem(http.StatusInternalServerError, "the server made a mistake; its log says more"))
	}
}

func (s *server) observe(rec *recorder, r *http.Request, took time.Duration) {
	_, route, _ := strings.Cut(r.Pattern, " ") // set by the mux; a path that is not known has none
	if route == "" {
		route = "unknown"
	}
	status := rec.status
	if status == 0 {
		status = http.StatusOK
	}
	s.meters.request(r.Method, route, status, took)
	s.Logger.LogAttrs(r.Context(), slog.LevelDebug, "request", slog.String("method", r.Method),
		slog.String("path", r.URL.Path), slog.Int("status", status), slog.Duration("took", took), slog.String("from", r.RemoteAddr))
}

// recorder remembers the status. Flushing, hijacking and deadlines reach the writer below through Unwrap.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController find the writer below.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// guard lets a request pass to an operation when its sender may use it.
func (s *server) guard(a identity.Access) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		if a == identity.Public {
			next(ctx)
			return
		}
		r, w := humago.Unwrap(ctx)
		if err := s.allow(r, a); err != nil {
			if err.GetStatus() == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="gantry"`)
			}
			writeProblem(w, err)
			return
		}
		next(ctx)
	}
}

func (s *server) allow(r *http.Request, a identity.Access) huma.StatusError {
	p, err := s.Auth.Authenticate(r)
	status := http.StatusUnauthorized
	switch {
	case err == nil && p.May(a):
		return nil
	case err == nil:
		status, err = http.StatusForbidden, fmt.Errorf("%s has %s access; this needs %s", p.Name, p.Granted, a)
	}
	return problem(status, "%v", err).(huma.StatusError)
}

// unknown answers for paths and methods that are not in the table.
func (s *server) unknown(w http.ResponseWriter, r *http.Request) {
	r.Pattern = ""
	var methods []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
		probe := &http.Request{Method: m, URL: r.URL, Host: r.Host}
		if _, pattern := s.mux.Handler(probe); pattern != "/" && pattern != "" {
			methods = append(methods, m)
		}
	}
	if len(methods) == 0 || slices.Contains(methods, r.Method) {
		hint := "/v1/openapi.json lists what there is"
		for prefix, what := range map[string]string{"/v1/apps/": "an app", "/v1/roles/": "a role", "/v1/volumes/": "a volume"} {
			if rest, ok := strings.CutPrefix(r.URL.Path, prefix); ok && strings.Contains(rest, "/") {
				hint = "write the id of " + what + " as one segment, with %2F for the slashes in it"
			}
		}
		writeProblem(w, notFound("nothing is at %s; %s", r.URL.Path, hint))
		return
	}
	w.Header().Set("Allow", strings.Join(methods, ", "))
	writeProblem(w, problem(http.StatusMethodNotAllowed, "%s takes %s, not %s", r.URL.Path, strings.Join(methods, " and "), r.Method))
}

// writeProblem answers with an error made by problem, where no handler of huma does.
func writeProblem(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	if se, ok := err.(huma.StatusError); ok {
		status = se.GetStatus()
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(err) // a client that has gone needs no answer
}
