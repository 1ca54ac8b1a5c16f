package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/identity/pki"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// Servers is the cluster of servers that this one is of: what it knows of it, and does to it. It has three parts, which
// are used apart. Errors are those of this package, of identity/pki, of state, or ones that count as "not now".
type Servers interface {
	Freshness
	Membership
	Trust
}

// Freshness says how old what this server knows may be.
type Freshness interface {
	// Fresh returns once Store.View has all that any server acknowledged before the call.
	Fresh(ctx context.Context) error
	Lag() time.Duration
}

// Membership is who the servers are, and what they keep.
type Membership interface {
	// Cluster describes the servers. What Store.View tells of nodes and trust is filled in by the Handler.
	Cluster(ctx context.Context) (client.Cluster, error)
	Promote(ctx context.Context, name string) error
	// Remove takes a server out and revokes its certificates. Done twice it completes what was left half done.
	Remove(ctx context.Context, name string) error
	// Backup writes nothing to w before the backup was checked.
	Backup(ctx context.Context, w io.Writer) error
}

// Trust is who may join.
type Trust interface {
	CreateToken(ctx context.Context, spec pki.TokenSpec) (pki.Token, error)
	DeleteToken(ctx context.Context, id string) error
	Rotate(ctx context.Context) error
	RotateAdmin(ctx context.Context) (identity.Token, error)
	Addrs() []string // host:port of the servers that can be joined
}

// Errors of Servers. They come wrapped in a sentence.
var (
	ErrNoServer = errors.New("no server")               // status 404
	ErrRefused  = errors.New("this cannot be done")     // 409
	ErrNotNow   = errors.New("this cannot be done now") // 503
)

var errAlone = conflict("this server is alone: clusters are made by gantry server")

// cluster returns the servers, or why there are none.
func (s *server) cluster() (Servers, error) {
	if s.Servers == nil {
		return nil, errAlone
	}
	return s.Servers, nil
}

// withCluster calls fn with the servers, and gives its errors their status.
func (s *server) withCluster(ctx context.Context, fn func(context.Context, Servers) error) error {
	c, err := s.cluster()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, storeTimeout, errStoreSlow)
	defer cancel()
	return clusterError(fn(ctx, c))
}

// clusterError gives errors of Servers their status.
func clusterError(err error) error {
	for _, k := range []struct {
		kind   error
		status int
	}{
		{ErrNoServer, http.StatusNotFound}, {ErrRefused, http.StatusConflict}, {ErrNotNow, http.StatusServiceUnavailable},
		{pki.ErrBadRequest, http.StatusUnprocessableEntity},
		{pki.ErrBusy, http.StatusConflict}, {pki.ErrUnavailable, http.StatusServiceUnavailable},
	} {
		if errors.Is(err, k.kind) {
			return problem(k.status, "%s", strings.TrimPrefix(err.Error(), pki.ErrBadRequest.Error()+": "))
		}
	}
	return storeError(err)
}

func (s *server) getCluster(ctx context.Context, _ *none) (*reply[client.Cluster], error) {
	var out client.Cluster
	err := s.withCluster(ctx, func(ctx context.Context, c Servers) (err error) {
		out, err = c.Cluster(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	v := s.Store.View()
	if c := v.Cluster(); c != nil {
		out.ID = c.ID
	}
	for n := range v.Nodes() {
		if n.State == model.NodeReady {
			out.Nodes.Ready++
		} else {
			out.Nodes.Unreachable++
		}
	}
	out.Rotation = s.rotation(v)
	out.Lag = model.Duration(out.Lag.Std().Round(time.Millisecond))
	out.Servers, out.Alarms = append([]client.ClusterServer{}, out.Servers...), append([]string{}, out.Alarms...)
	return answer(out)
}

func (s *server) rotation(v state.View) client.Rotation {
	r := pki.RotationOf(v, s.Now())
	return client.Rotation{
		Phase: string(r.Phase), Since: r.Since, Machines: r.Of, Waits: append([]model.MachineID{}, r.Waits...), Why: r.Reason,
	}
}

func (s *server) rotateCA(ctx context.Context, _ *none) (*reply[client.Rotation], error) {
	err := s.withCluster(ctx, func(ctx context.Context, c Servers) error { return c.Rotate(ctx) })
	if err != nil {
		return nil, err
	}
	return answer(s.rotation(s.Store.View()))
}

func (s *server) rotateAdmin(ctx context.Context, _ *none) (*reply[client.AdminToken], error) {
	var out client.AdminToken
	err := s.withCluster(ctx, func(ctx context.Context, c Servers) error {
		t, err := c.RotateAdmin(ctx)
		out.Token = string(t)
		return err
	})
	if err != nil {
		return nil, err
	}
	return answer(out)
}

// ServerPath is the server in the path of a request.
type ServerPath struct {
	Name string `path:"name" maxLength:"100" doc:"Name of the server."`
}

func (s *server) promoteServer(ctx context.Context, in *ServerPath) (*reply[client.Cluster], error) {
	err := s.withCluster(ctx, func(ctx context.Context, c Servers) error { return c.Promote(ctx, in.Name) })
	if err != nil {
		return nil, err
	}
	return s.getCluster(ctx, nil)
}

func (s *server) removeServer(ctx context.Context, in *ServerPath) (*reply[client.RemovedServer], error) {
	err := s.withCluster(ctx, func(ctx context.Context, c Servers) error { return c.Remove(ctx, in.Name) })
	if err != nil {
		return nil, err
	}
	return answer(client.RemovedServer{Name: in.Name})
}

func (s *server) listTokens(context.Context, *none) (*reply[[]client.JoinToken], error) {
	if _, err := s.cluster(); err != nil {
		return nil, err
	}
	out := []client.JoinToken{}
	for t := range s.Store.View().Tokens() {
		out = append(out, s.describeToken(t))
	}
	return answer(out)
}

func (s *server) describeToken(t *model.JoinToken) client.JoinToken {
	out := client.JoinToken{ID: t.ID, Role: t.Role, State: "good", Created: t.Created, Expires: t.Expires, Uses: t.Uses, Used: t.Used, By: t.By}
	switch {
	case t.Spent():
		out.State = "used up"
	case s.Now().After(t.Expires):
		out.State = "expired"
	}
	return out
}

const defaultTokenTTL = model.Duration(time.Hour)

type tokenInput struct{ body }

func (s *server) createToken(ctx context.Context, in *tokenInput) (*reply[client.CreatedToken], error) {
	if _, err := s.cluster(); err != nil {
		return nil, err
	}
	var ask client.NewToken
	if err := in.record(&ask, func() model.FieldErrors { return checkToken(&ask) }); err != nil {
		return nil, err
	}
	r, _ := humago.Unwrap(in.ctx)
	who, err := s.Auth.Authenticate(r)
	if err != nil {
		return nil, problem(http.StatusUnauthorized, "%v", err)
	}
	spec := pki.TokenSpec{Role: ask.Role, TTL: cmp.Or(ask.TTL, defaultTokenTTL).Std(), Uses: 1, By: who.Name}
	if ask.Uses != nil {
		spec.Uses = *ask.Uses
	}
	var out client.CreatedToken
	err = s.withCluster(ctx, func(ctx context.Context, c Servers) error {
		t, err := c.CreateToken(ctx, spec)
		if err != nil {
			return err
		}
		out.Token, out.Servers = t.Text(), append([]string{}, c.Addrs()...)
		if kept := s.Store.View().Token(t.ID); kept != nil { // nobody has deleted it meanwhile
			out.JoinToken = s.describeToken(kept)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return answer(out)
}

func checkToken(t *client.NewToken) model.FieldErrors {
	var errs model.FieldErrors
	if _, err := model.ParseMachineRole(string(t.Role)); err != nil {
		errs = append(errs, model.FieldError{Path: "role", Message: err.Error()})
	}
	return errs
}

// TokenPath is the join token in the path of a request.
type TokenPath struct {
	ID string `path:"id" maxLength:"100" doc:"Id of the token."`
}

func (s *server) deleteToken(ctx context.Context, in *TokenPath) (*reply[accepted], error) {
	err := s.withCluster(ctx, func(ctx context.Context, c Servers) error {
		err := c.DeleteToken(ctx, in.ID)
		if errors.Is(err, pki.ErrToken) {
			return s.noToken(in.ID)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return answer(accepted{})
}

func (s *server) noToken(id string) error {
	var ids []string
	for t := range s.Store.View().Tokens() {
		ids = append(ids, t.ID)
	}
	return notFound("no token %s%s", id, didYouMean(id, ids))
}

// Limits of a backup on its way. One is made at a time, since each takes as much disk as the store.
const (
	backupTimeout = time.Hour
	backupStall   = time.Minute // for a part of it to be taken
)

var errBacking = conflict("another backup is being taken from this server; take one from another server, or try again")

func (s *server) backup(context.Context, *none) (*huma.StreamResponse, error) {
	c, err := s.cluster()
	if err != nil {
		return nil, err
	}
	return streamed(func(w http.ResponseWriter, r *http.Request) error {
		if !s.backing.TryLock() {
			return errBacking
		}
		defer s.backing.Unlock()
		ctx, cancel := s.streaming(w, r)
		defer cancel()
		ctx, end := context.WithTimeout(ctx, backupTimeout)
		defer end()
		w.Header().Set("Content-Type", "application/octet-stream")
		// An error after the first byte cuts the connection, which no reader takes for the end.
		if err := c.Backup(ctx, &steady{w, http.NewResponseController(w)}); err != nil {
			return clusterError(fmt.Errorf("make a backup: %w", err))
		}
		return nil
	}), nil
}

// steady is a writer to a client that has to take each part within a time.
type steady struct {
	w  io.Writer
	rc *http.ResponseController
}

// Write implements io.Writer.
func (s *steady) Write(p []byte) (int, error) {
	_ = s.rc.SetWriteDeadline(time.Now().Add(backupStall)) // writers in tests have none
	return s.w.Write(p)
}
