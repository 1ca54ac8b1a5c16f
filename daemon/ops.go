package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/gantry-os/gantry/api"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/identity/pki"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state/etcd"
)

// promoteTimeout bounds how long a learner may take to catch up while somebody waits for its vote.
const promoteTimeout = 10 * time.Second

// ops is what the API knows of the cluster of servers, and does to it.
type ops struct {
	*pki.Registrar
	store *etcd.Store
	auth  *pki.Authority
	name  string
	addrs func() []string
	alive func(ctx context.Context, addr string) bool
}

var _ api.Servers = (*ops)(nil)

// newOps returns the cluster as the server called name has it. addrs returns where the APIs of the servers are, host:port, and alive
// whether the one there answers.
func newOps(store *etcd.Store, registrar *pki.Registrar, auth *pki.Authority, name string, addrs func() []string, alive func(context.Context, string) bool) *ops {
	return &ops{Registrar: registrar, store: store, auth: auth, name: name, addrs: addrs, alive: alive}
}

// Fresh implements api.Freshness.
func (o *ops) Fresh(ctx context.Context) error { return o.store.Fresh(ctx) }

// Lag implements api.Freshness.
func (o *ops) Lag() time.Duration { return o.store.Lag() }

// Addrs implements api.Trust.
func (o *ops) Addrs() []string { return o.addrs() }

// Cluster implements api.Membership.
func (o *ops) Cluster(ctx context.Context) (client.Cluster, error) {
	st, err := o.store.Status(ctx)
	if err != nil {
		return client.Cluster{}, opsError(err)
	}
	leader, _, _ := o.store.Leader()
	out := client.Cluster{
		ID: o.auth.Cluster().ID, Leader: leader, External: st.External, Revision: st.Revision, Lag: model.Duration(st.Lag),
		Size: model.Bytes(st.Size), Used: model.Bytes(st.Used), Quota: model.Bytes(st.Quota), Alarms: st.Alarms,
	}
	out.Stored = st.Stored
	if len(st.Waits) > 0 {
		out.Upgrade = fmt.Sprintf("records stay those of Gantry %v until all servers are Gantry %v; still to be upgraded: %s", st.Stored, st.Next, strings.Join(st.Waits, ", "))
	}
	switch {
	case st.Parked != "":
		out.Why = "this server rests: " + st.Parked
	case leader == "":
		out.Why = "no server leads: a majority of them has to answer each other"
	case len(st.Alarms) > 0:
		out.Why = "the store has raised an alarm"
	}
	if st.External {
		o.overExternal(ctx, &st, &out)
		return out, nil
	}
	for _, m := range st.Members {
		version := st.Servers[m.Name]
		out.Servers = append(out.Servers, client.ClusterServer{
			Version: version.Build, Release: version.Release, Name: cmp.Or(m.Name, m.ID), Addr: m.Addr, Peer: m.Peer, Leader: m.Name != "" && m.Name == leader,
			Learner: m.Learner, Answers: m.Answers, Self: m.Self,
		})
		if !m.Answers && out.Why == "" {
			out.Why = fmt.Sprintf("%s does not answer", cmp.Or(m.Name, m.ID))
		}
	}
	return out, nil
}

// Promote implements api.Membership.
func (o *ops) Promote(ctx context.Context, name string) error {
	if o.store.External() {
		return fmt.Errorf("%w: servers over an external etcd have no vote in it, and need none", api.ErrRefused)
	}
	m, err := o.member(ctx, name)
	switch {
	case err != nil:
		return err
	case !m.Learner:
		return fmt.Errorf("%w: %s votes already", api.ErrRefused, name)
	}
	ctx, cancel := context.WithTimeout(ctx, promoteTimeout)
	defer cancel()
	err = o.store.Promote(ctx, name)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %s has not caught up within %v, or too few servers answer; it gets its vote by itself once it has", api.ErrNotNow, name, promoteTimeout)
	}
	return opsError(err)
}

func (o *ops) member(ctx context.Context, name string) (etcd.Member, error) {
	all, err := o.store.Members(ctx)
	if err != nil {
		return etcd.Member{}, opsError(err)
	}
	i := slices.IndexFunc(all, func(m etcd.Member) bool { return m.Name == name || m.ID == name })
	if i < 0 {
		return etcd.Member{}, fmt.Errorf("%w %s", api.ErrNoServer, name)
	}
	return all[i], nil
}

// Remove implements api.Membership: first the vote goes, which can be refused, then the identity.
func (o *ops) Remove(ctx context.Context, name string) error {
	if o.store.External() {
		return o.removeOverExternal(ctx, name)
	}
	id := model.MachineOf(model.ServerMachine, name)
	known := o.store.View().Machine(id) != nil
	m, err := o.member(ctx, name)
	switch {
	case errors.Is(err, api.ErrNoServer) && known: // half of it was done
	case err != nil:
		return err
	case m.Self:
		return o.handOver(ctx, name)
	default:
		if err := o.store.Remove(ctx, m.ID); err != nil {
			return opsError(err)
		}
		id = model.MachineOf(model.ServerMachine, cmp.Or(m.Name, name))
	}
	if name == o.name {
		return fmt.Errorf("%w: %s is asked to remove itself; ask another server", api.ErrRefused, name)
	}
	return opsError(o.Revoke(ctx, id, "an operator removed it"))
}

// handOver has another server lead, since a server that was removed could not revoke itself.
func (o *ops) handOver(ctx context.Context, name string) error {
	st, err := o.store.Status(ctx)
	if err != nil {
		return opsError(err)
	}
	i := slices.IndexFunc(st.Members, func(m etcd.MemberStatus) bool { return !m.Self && !m.Learner && m.Answers })
	if i < 0 {
		return fmt.Errorf("%w: no other server that votes answers, so %s has to stay", api.ErrRefused, name)
	}
	to := st.Members[i].Name
	if leader, _, _ := o.store.Leader(); leader != name {
		return fmt.Errorf("%w: %s is asked to remove itself, and does not lead; ask another server", api.ErrNotNow, name)
	}
	if err := o.store.MoveLeader(ctx, to); err != nil {
		return opsError(err)
	}
	return fmt.Errorf("%w: %s led, and hands leadership over to %s; ask again", api.ErrNotNow, name, to)
}

// Backup implements api.Membership.
func (o *ops) Backup(ctx context.Context, w io.Writer) error {
	_, err := o.store.Backup(ctx, w)
	return opsError(err)
}

// opsError gives errors of the store's members a kind that the API knows.
func opsError(err error) error {
	switch {
	case errors.Is(err, etcd.ErrMember):
		return fmt.Errorf("%w: %w", api.ErrNoServer, err)
	case errors.Is(err, etcd.ErrQuorum), errors.Is(err, etcd.ErrNotOurs):
		return fmt.Errorf("%w: %w", api.ErrRefused, err)
	case errors.Is(err, etcd.ErrRemoved):
		return fmt.Errorf("%w: %w", api.ErrNotNow, err)
	}
	return err
}
