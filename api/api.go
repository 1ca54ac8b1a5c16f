// Package api is the door of Gantry: the native HTTP API, described by the OpenAPI document that it serves.
//
// routes.go is the table of everything that can be asked for, with the access it takes. A request passes the outer
// layers of middleware.go (panics, metrics, log, cross-origin), then the table's check of access, then its handler,
// which reads a state.View or makes one state.Update. change.go holds what writes do to the records, as functions of a
// transaction; words.go turns records into sentences. problem.go says which error has which status.
//
// A write is answered once it is durable, and before anything has happened: it leaves a new app version and a
// deployment, which the orchestrator carries out.
//
// Package api/client is the other end, and holds the values that both exchange.
package api

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a Handler works with. Store and Auth are required.
type Config struct {
	Store state.Store
	Auth  *identity.Authenticator

	// Nodes returns the agent of a node, false when it is not connected.
	Nodes func(model.NodeID) (wire.Node, bool)

	// Placer is asked what would fit, and why something does not. Without one such questions are answered with 503.
	Placer Placer

	// Servers is the cluster of servers. Without it this server is alone: it refuses what is done to a cluster.
	Servers Servers

	// Revoke refuses the certificates of a machine whose node is removed, in the same transaction. Optional.
	Revoke func(tx *state.Tx, id model.MachineID, why string, now time.Time)

	// Leader returns the address of the server that leads, host:port (then by TLS) or with a scheme, empty when none does,
	// and whether it is this one. Optional: then this one always leads. What only the leader can answer is passed on to it
	// through Forward; without that, this server answers as well as it can.
	Leader  func() (addr string, self bool)
	Forward http.RoundTripper

	// Info describes the server; its counts and Auth are filled in by the Handler.
	Info client.Info
	// Shutdown is called when a client asked for it. It must return at once: the answer is sent after it.
	Shutdown func(client.Shutdown)

	// Stall is how long the client of a stream may take for one piece of it, in either direction, before the stream is cut.
	// 10 minutes by default.
	Stall time.Duration

	Now    func() time.Time // time.Now by default
	NewID  func() string    // ids for deployments; random ones by default
	Logger *slog.Logger     // slog.Default() by default

	// Meters is where the door registers its metrics, and Gather where /metrics takes what it shows. A registry of their
	// own by default.
	Meters prometheus.Registerer
	Gather prometheus.Gatherer
}

func (c *Config) fillDefaults() error {
	if c.Store == nil || c.Auth == nil {
		return errors.New("api: Store and Auth are required")
	}
	if (c.Meters == nil) != (c.Gather == nil) {
		return errors.New("api: give both Meters and Gather, or none")
	}
	if c.Nodes == nil {
		c.Nodes = func(model.NodeID) (wire.Node, bool) { return nil, false }
	}
	if c.Shutdown == nil {
		c.Shutdown = func(client.Shutdown) {}
	}
	if c.Stall == 0 {
		c.Stall = defaultStall
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.NewID == nil {
		c.NewID = func() string { return strings.ToLower(rand.Text()[:idLength]) }
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Meters == nil {
		r := prometheus.NewRegistry()
		c.Meters, c.Gather = r, r
	}
	return nil
}

// idLength is the number of base-32 characters in a deployment's id: 80 bits.
const idLength = 16

// server holds what handlers share.
type server struct {
	Config
	api     huma.API
	mux     *http.ServeMux
	openapi []byte
	meters  *meters

	forwarding chan struct{} // has a token for each request on its way to the leader
	backing    sync.Mutex    // held while a backup is made
}

// New returns the handler of the native API.
func New(c Config) (http.Handler, error) {
	if err := c.fillDefaults(); err != nil {
		return nil, err
	}
	s := &server{Config: c, mux: http.NewServeMux(), forwarding: make(chan struct{}, maxForwarded)}
	s.Info.Auth = string(c.Auth.Mode())
	var err error
	if s.meters, err = newMeters(c.Meters, s); err != nil {
		return nil, err
	}
	s.api = humago.New(s.mux, humaConfig())
	for _, r := range routes() {
		r.register(s)
	}
	s.mux.HandleFunc("/", s.unknown)
	if s.openapi, err = document(s.api.OpenAPI()); err != nil {
		return nil, fmt.Errorf("describe api: %w", err)
	}
	return s.outer(s.mux), nil
}

// Limits of the HTTP server.
const (
	readHeaderTimeout = 10 * time.Second
	bodyTimeout       = 30 * time.Second // for a whole JSON body
	writeTimeout      = 60 * time.Second // from the end of the header to the end of the answer; streams lift it
	idleTimeout       = 2 * time.Minute
	maxHeader         = 64 << 10
	maxBody           = 1 << 20  // of JSON
	maxArchive        = 16 << 30 // of images
	storeTimeout      = 20 * time.Second
)

// Server returns an HTTP server for a Handler, with limits on slow and greedy clients. Its Shutdown ends streams (logs,
// events, exec) at once and lets other requests finish.
func Server(h http.Handler) *http.Server {
	closing := make(chan struct{})
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug), // what clients do wrong
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.Background(), closingKey{}, (<-chan struct{})(closing))
		},
	}
	s.RegisterOnShutdown(func() { close(closing) })
	return s
}

type closingKey struct{}

// Why a stream ends though its client is there.
var (
	errClosing  = errors.New("the server is shutting down")
	errReplaced = errors.New("the token was replaced meanwhile")
)

// endedBy returns which of our reasons ctx ended for, nil for another.
func endedBy(ctx context.Context) error {
	cause := context.Cause(ctx)
	for _, why := range []error{errClosing, errReplaced, errOtherLeads} {
		if errors.Is(cause, why) {
			return why
		}
	}
	return nil
}

// streaming lifts the time limits of a request and returns a context that also ends when the server shuts down, or no longer
// knows the token of the request.
func (s *server) streaming(w http.ResponseWriter, r *http.Request) (context.Context, context.CancelFunc) {
	rc := http.NewResponseController(w)
	// Writers without deadlines, as in tests, have none to lift.
	_ = rc.SetReadDeadline(time.Time{})
	_ = rc.SetWriteDeadline(time.Time{})
	ctx, cancel := context.WithCancelCause(r.Context())
	closing, _ := r.Context().Value(closingKey{}).(<-chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			replaced := s.Auth.Replaced()
			if _, err := s.Auth.Authenticate(r); err != nil {
				cancel(errReplaced)
				return
			}
			select {
			case <-replaced:
			case <-closing:
				cancel(errClosing)
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// update makes one durable change, within a time after which the store counts as unavailable.
func (s *server) update(ctx context.Context, fn func(*state.Tx) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, storeTimeout, errStoreSlow)
	defer cancel()
	return storeError(s.Store.Update(ctx, fn))
}
