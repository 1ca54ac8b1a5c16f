package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/identity/pki"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler"
)

// What the API asks of the leader's loops. While this server does not lead, it has none.

func (s *server) node(id model.NodeID) (wire.Node, bool) {
	if l := s.loops.Load(); l != nil {
		return l.fleet.Node(id)
	}
	return nil, false
}

// Plan implements api.Placer.
func (s *server) Plan(ctx context.Context, spec *model.Spec) (model.Plan, error) {
	if l := s.loops.Load(); l != nil {
		return l.places.Plan(ctx, spec)
	}
	return model.Plan{}, scheduler.ErrStopped
}

// Funnel implements api.Placer.
func (s *server) Funnel(ctx context.Context, app model.AppID) (model.Funnel, error) {
	if l := s.loops.Load(); l != nil {
		return l.places.Funnel(ctx, app)
	}
	return model.Funnel{}, scheduler.ErrStopped
}

// Moves implements api.Placer.
func (s *server) Moves(ctx context.Context, pool string) ([]model.Move, error) {
	if l := s.loops.Load(); l != nil {
		return l.places.Moves(ctx, pool)
	}
	return nil, scheduler.ErrStopped
}

// membersPath is where a server that has joined asks to become a member of the store.
const membersPath = "/v1/members"

// newcomer is a server that wants to be a member.
type newcomer struct {
	Name string `json:"name"`
	Peer string `json:"peer"` // host:port of its etcd member

	Release model.Release `json:"release"`
}

type welcome struct {
	Join string `json:"join"` // for etcd.Config
}

// memberTimeout is less than what the API gives an answer.
const memberTimeout = 50 * time.Second

// serversHandler is what other servers find. Connections come from them alone.
func (s *server) serversHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+membersPath, func(w http.ResponseWriter, r *http.Request) {
		var in newcomer
		if err := json.NewDecoder(io.LimitReader(r.Body, 4096)).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if err := s.isMachine(r, in.Name); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		if s.external() {
			http.Error(w, "the servers of this cluster keep the truth in an etcd that others run: start this one with --etcd-endpoints, as the others", http.StatusConflict)
			return
		}
		if err := s.store.Admit(in.Name, in.Release); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), memberTimeout)
		defer cancel()
		join, err := s.store.AddMember(ctx, in.Name, in.Peer)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		json.NewEncoder(w).Encode(welcome{join}) // who has gone asks again
	})
	return mux
}

// isMachine reports whether a request comes from the server of a name, as it last joined: that a certificate is good is not
// enough, since whoever had the authority's key could make one.
func (s *server) isMachine(r *http.Request, name string) error {
	p, err := pki.PeerOf(*r.TLS)
	if err != nil {
		return err
	}
	if rec := s.store.View().Machine(p.ID()); rec == nil || rec.Epoch != p.Epoch || p.Name != name {
		return fmt.Errorf("%s has not joined this cluster as %s", p, name)
	}
	return nil
}

// askIn asks the servers of the cluster to take this one's member in, and returns what it is to be started with.
func (s *server) askIn(ctx context.Context, peer string) (string, error) {
	body, err := json.Marshal(newcomer{s.Name, peer, model.ThisRelease})
	if err != nil {
		return "", err
	}
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: s.machine.ClientTLS()}, Timeout: memberTimeout}
	defer hc.CloseIdleConnections()
	var errs []error
	for _, addr := range append([]string{s.Join}, s.machine.Servers()...) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+beside(addr, portServers)+membersPath, strings.NewReader(string(body)))
		if err != nil {
			return "", err
		}
		join, err := ask(hc, req)
		if err == nil {
			return join, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

func ask(hc *http.Client, req *http.Request) (string, error) {
	resp, err := hc.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s says: %s", req.URL.Host, strings.TrimSpace(string(b)))
	}
	var out welcome
	err = json.Unmarshal(b, &out)
	return out.Join, err
}
