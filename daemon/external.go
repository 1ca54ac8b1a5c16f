package daemon

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/gantry-os/gantry/api"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state/etcd"
)

// What differs for servers over an external etcd: they are known by the records of their machines, since the members of the
// etcd are not theirs.

// aliveTimeout bounds how long a server may take to answer another one.
const aliveTimeout = time.Second

// answers reports whether the server whose API is at addr takes connections of other servers.
func (s *server) answers(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, aliveTimeout)
	defer cancel()
	d := tls.Dialer{Config: s.machine.ClientTLS()}
	c, err := d.DialContext(ctx, "tcp", beside(addr, portServers))
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// overExternal fills in the servers, and how the etcd does that others run.
func (o *ops) overExternal(ctx context.Context, st *etcd.Status, out *client.Cluster) {
	out.Servers = o.machines(ctx, out.Leader)
	for i := range out.Servers {
		version := st.Servers[out.Servers[i].Name]
		out.Servers[i].Version, out.Servers[i].Release = version.Build, version.Release
	}
	answer := 0
	for _, m := range st.Members {
		out.Etcd = append(out.Etcd, client.EtcdMember{Name: m.Name, Addr: m.Addr, Leader: m.Leader, Learner: m.Learner, Answers: m.Answers})
		if m.Answers {
			answer++
		}
	}
	if why := etcdWhy(st, answer); why != "" {
		out.Why = why
		return
	}
	if out.Leader == "" {
		out.Why = "no server leads: one does within seconds while any reaches the external etcd"
	}
	for _, s := range out.Servers {
		if !s.Answers && out.Why == "" {
			out.Why = s.Name + " does not answer"
		}
	}
}

// etcdWhy says what is wrong with an external etcd of which so many members answer.
func etcdWhy(st *etcd.Status, answer int) string {
	all := len(st.Members)
	switch {
	case answer == 0:
		return "the external etcd does not answer: no changes are taken until it does; what runs goes on"
	case st.Leader == "":
		return fmt.Sprintf("the external etcd has no leader, and %d of its %d members answer: no changes are taken until a majority of them does; what runs goes on",
			answer, all)
	}
	for _, a := range st.Alarms {
		switch {
		case strings.HasPrefix(a, "NOSPACE"):
			return "the external etcd is full and takes no changes: those who run it have to make space (etcdctl compact and defrag, or a larger " +
				"--quota-backend-bytes) and then lift the alarm (etcdctl alarm disarm)"
		case strings.HasPrefix(a, "CORRUPT"):
			return "the external etcd says that a member's data is corrupt: those who run it have to replace that member"
		}
	}
	if answer < all {
		var silent []string
		for _, m := range st.Members {
			if !m.Answers {
				silent = append(silent, m.Name)
			}
		}
		return fmt.Sprintf("%d of %d members of the external etcd do not answer: %s", all-answer, all, strings.Join(silent, ", "))
	}
	return ""
}

// machines are the servers over an external etcd, by name.
func (o *ops) machines(ctx context.Context, leader string) []client.ClusterServer {
	var out []client.ClusterServer
	for m := range o.store.View().Machines() {
		if role, name := m.ID.Split(); role == model.ServerMachine {
			out = append(out, client.ClusterServer{Name: name, Addr: m.Addr, Leader: name == leader, Answers: name == o.name, Self: name == o.name})
		}
	}
	var asking sync.WaitGroup
	for i := range out {
		if s := &out[i]; !s.Self && s.Addr != "" {
			asking.Go(func() { s.Answers = o.alive(ctx, s.Addr) })
		}
	}
	asking.Wait()
	return out
}

// removeOverExternal takes a server's identity away; it has no vote to lose. One that is asked to remove itself can: it still
// writes, and ends once it reads that it is revoked.
func (o *ops) removeOverExternal(ctx context.Context, name string) error {
	known, others := false, false
	for _, s := range o.machines(ctx, "") {
		if s.Name == name {
			known = true
		} else if s.Answers {
			others = true
		}
	}
	switch {
	case !known:
		return fmt.Errorf("%w %s", api.ErrNoServer, name)
	case !others:
		return fmt.Errorf("%w: no other server answers, so %s has to stay", api.ErrRefused, name)
	}
	return opsError(o.Revoke(ctx, model.MachineOf(model.ServerMachine, name), "an operator removed it"))
}
