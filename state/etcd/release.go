package etcd

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gantry-os/gantry/model"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Servers of two neighbouring releases work on one store. What is written is what the stored release has: the lowest of all
// servers, raised by the one that leads once all are of a newer, and never lowered. A server works with its own release and the
// one before, so none is further apart from another than that. When one starts, it looks at the stored release and tells its own
// in one transaction; who raises it does so only if no server has told another since.

// Keys of who is of which release. They are no records.
const (
	storedKey  = root + "release"   // the stored release
	serversKey = root + "releases/" // and the name of a server: what it tells
)

func isRelease(key []byte) bool { return bytes.HasPrefix(key, []byte(storedKey)) }

// ErrRelease says that a server's version does not go with what the cluster stores. It comes wrapped in a sentence.
var ErrRelease = errors.New("this version of Gantry does not go with the cluster")

// admits returns why a server of release own cannot work on a store of another, and what to do.
func admits(name string, own, stored model.Release) error {
	switch {
	case own == stored || own == stored.Next():
		return nil
	case own.Compare(stored) < 0:
		return fmt.Errorf("%w: server %s is Gantry %v, and the cluster has gone on to what Gantry %v stores, which it cannot read: start it with Gantry %v or %v",
			ErrRelease, name, own, stored, stored, stored.Next())
	}
	return fmt.Errorf("%w: server %s is Gantry %v, and the cluster stores what Gantry %v does: at most one minor version may lie between them; "+
		"start it with Gantry %v, and with a newer one when gantry cluster members shows that all servers are of %v",
		ErrRelease, name, own, stored, stored.Next(), stored.Next())
}

// Admit reports why a server of some release, which wants to join, cannot work with the others.
func (s *Store) Admit(name string, r model.Release) error { return admits(name, r, s.View().Stored()) }

// told is what a server tells the others of itself.
type told struct {
	Release model.Release `json:"release"`
	Build   string        `json:"build,omitempty"` // for people
}

// releases is what is known at one revision.
type releases struct {
	rev     int64
	stored  model.Release // zero for none yet
	mod     int64         // the revision that wrote it
	servers map[string]told
}

func (s *Store) releases(ctx context.Context, l *link) (releases, error) {
	resp, err := l.client.Get(ctx, storedKey, clientv3.WithPrefix())
	if err != nil {
		return releases{}, fmt.Errorf("read which versions the servers have: %w", explain(err))
	}
	out := releases{rev: resp.Header.Revision, servers: map[string]told{}}
	for _, kv := range resp.Kvs {
		if name, ok := strings.CutPrefix(string(kv.Key), serversKey); ok {
			if out.servers[name], err = parseTold(name, kv); err != nil {
				return out, err
			}
			continue
		}
		if out.stored, err = parseStored(kv); err != nil {
			return out, err
		}
		out.mod = kv.ModRevision
	}
	return out, nil
}

func parseTold(name string, kv *mvccpb.KeyValue) (t told, err error) {
	if err := json.Unmarshal(kv.Value, &t); err != nil { // not strictly: a newer server may tell more
		return t, fmt.Errorf("read the version of server %s: %w", name, err)
	}
	return t, nil
}

func parseStored(kv *mvccpb.KeyValue) (model.Release, error) {
	r, err := model.ParseRelease(string(kv.Value))
	if err != nil {
		return r, fmt.Errorf("read the stored release: %w", err)
	}
	return r, nil
}

// enter refuses a store that this program cannot work on, and tells the other servers of which release this one is.
func (s *Store) enter(ctx context.Context, l *link) error {
	own := told{s.cfg.Release, s.cfg.Build}
	text, err := json.Marshal(own)
	if err != nil {
		return err
	}
	for {
		known, err := s.releases(ctx, l)
		if err != nil {
			return err
		}
		if known.mod > 0 {
			if err := admits(s.cfg.Name, own.Release, known.stored); err != nil {
				return err
			}
		}
		var puts []clientv3.Op
		if known.servers[s.cfg.Name] != own {
			puts = append(puts, clientv3.OpPut(serversKey+s.cfg.Name, string(text)))
		}
		if known.mod == 0 || s.sole() && known.stored != own.Release {
			puts = append(puts, clientv3.OpPut(storedKey, own.Release.String()))
		}
		if len(puts) == 0 {
			return nil
		}
		resp, err := l.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(storedKey), "=", known.mod)).Then(puts...).Commit()
		if err != nil {
			return fmt.Errorf("tell the servers the version of this one: %w", explain(err))
		}
		if resp.Succeeded {
			return nil
		}
	}
}

// present returns the names of all servers, dead ones included; "" for one that has not started yet.
func (s *Store) present(l *link) []string {
	var names []string
	if l.member == nil {
		for m := range s.View().Machines() {
			if role, name := m.ID.Split(); role == model.ServerMachine {
				names = append(names, name)
			}
		}
		return names
	}
	for _, m := range l.member.Server.Cluster().Members() {
		names = append(names, m.Name)
	}
	return names
}

// raise raises the stored release when this server leads and all others are of a newer one.
func (s *Store) raise(l *link) error {
	h := s.head.Load()
	if s.View().Stored() == s.cfg.Release || h == nil || h.name != s.cfg.Name {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.living, commitTime)
	defer cancel()
	known, err := s.releases(ctx, l)
	if err != nil {
		return err
	}
	lowest := s.cfg.Release
	for _, name := range s.present(l) {
		if r := known.servers[name].Release; r.Compare(lowest) < 0 {
			lowest = r
		}
	}
	if lowest.Compare(known.stored) <= 0 {
		return nil
	}
	resp, err := l.client.Txn(ctx).If(
		clientv3.Compare(clientv3.ModRevision(leaderKey), "=", int64(h.term)),
		clientv3.Compare(clientv3.ModRevision(storedKey), "=", known.mod),
		clientv3.Compare(clientv3.ModRevision(serversKey).WithPrefix(), "<", known.rev+1),
	).Then(clientv3.OpPut(storedKey, lowest.String())).Commit()
	if err != nil {
		return fmt.Errorf("raise the stored release: %w", explain(err))
	}
	if resp.Succeeded {
		s.log.Info("all servers are upgraded: what is stored is that of the newer version from now on", "from", known.stored, "to", lowest)
	}
	return nil
}

// follows takes in a change of what servers tell, or of what is stored.
func (s *Store) follows(e *clientv3.Event) error {
	key := string(e.Kv.Key)
	name, tells := strings.CutPrefix(key, serversKey)
	switch {
	case key == storedKey && e.Type == clientv3.EventTypePut:
		return s.setStored(e.Kv)
	case !tells:
		return nil
	}
	next := maps.Clone(*s.servers.Load())
	delete(next, name)
	if e.Type == clientv3.EventTypePut {
		t, err := parseTold(name, e.Kv)
		if err != nil {
			return err
		}
		next[name] = t
	}
	s.servers.Store(&next)
	return nil
}

// setStored takes in which release is stored now. No server that is there can be too old for it, so one that is ends.
func (s *Store) setStored(kv *mvccpb.KeyValue) error {
	r, err := parseStored(kv)
	if err != nil {
		return err
	}
	if err := admits(s.cfg.Name, s.cfg.Release, r); err != nil {
		return err
	}
	return s.DB.SetStored(r)
}

// describeReleases fills in of which release the servers are, and which of them hold the stored one back.
func (s *Store) describeReleases(l *link, out *Status) {
	servers := *s.servers.Load()
	out.Stored, out.Servers = s.View().Stored(), map[string]ServerRelease{}
	for name, t := range servers {
		out.Servers[name] = ServerRelease(t)
	}
	names := s.present(l)
	out.Next = out.Stored
	for _, name := range names {
		if r := servers[name].Release; r.Compare(out.Next) > 0 {
			out.Next = r
		}
	}
	for _, name := range names {
		if servers[name].Release != out.Next {
			out.Waits = append(out.Waits, cmp.Or(name, "one that has not started"))
		}
	}
	slices.Sort(out.Waits)
}
