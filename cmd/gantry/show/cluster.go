package show

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/api/client"
)

// Cluster writes the servers and how they do.
func (p *Printer) Cluster(c *client.Cluster) {
	state := "ready"
	if c.Why != "" {
		state = "degraded"
	}
	p.title("cluster "+c.ID, state)
	rotation := ""
	if c.Rotation.Phase != "steady" {
		rotation = fmt.Sprintf("%s, %d of %d machines done: %s", c.Rotation.Phase, c.Rotation.Machines-len(c.Rotation.Waits), c.Rotation.Machines, c.Rotation.Why)
	}
	alarms := strings.Join(c.Alarms, ", ")
	p.facts([][2]string{
		{"Why", c.Why}, {"Leader", c.Leader}, {"Nodes", fmt.Sprintf("%d ready, %d unreachable", c.Nodes.Ready, c.Nodes.Unreachable)},
		{"Revision", strconv.FormatUint(c.Revision, 10)}, {"Lag", c.Lag.String()},
		{"Store", store(c)},
		{"Alarms", alarms}, {"Rotation", rotation}, {"Upgrade", c.Upgrade},
	})
	p.section("Servers")
	p.Servers(c.Servers)
	if c.External {
		p.section("External etcd")
		p.etcdMembers(c.Etcd)
	}
}

func store(c *client.Cluster) string {
	text := fmt.Sprintf("%s used, %s on disk", c.Used.Human(), c.Size.Human())
	if c.Quota > 0 {
		text += ", of " + c.Quota.Human()
	}
	return text
}

func (p *Printer) etcdMembers(list []client.EtcdMember) {
	t := table{header: []string{"MEMBER", "STATE", "ROLE", "ADDRESS"}, states: columns(1), rigid: columns(0), spare: columns(3)}
	for _, m := range list {
		state, role := "unreachable", "follower"
		if m.Answers {
			state = "ready"
		}
		switch {
		case m.Leader:
			role = "leader"
		case m.Learner:
			role = "learner"
		}
		t.add(m.Name, state, role, m.Addr)
	}
	p.table(&t)
}

// Servers writes one line per server.
func (p *Printer) Servers(list []client.ClusterServer) {
	t := table{header: []string{"SERVER", "STATE", "ROLE", "ADDRESS", "PEER", "VERSION"}, states: columns(1), rigid: columns(0), spare: columns(4)}
	for _, s := range list {
		state, role := "unreachable", "follower"
		if s.Answers {
			state = "ready"
		}
		switch {
		case s.Leader:
			role = "leader"
		case s.Learner:
			role = "learner"
		}
		t.add(s.Name, state, role, s.Addr, s.Peer, s.Version)
	}
	p.table(&t)
}

// Tokens writes one line per join token.
func (p *Printer) Tokens(list []client.JoinToken) {
	t := table{header: []string{"TOKEN", "ROLE", "STATE", "EXPIRES", "USED", "MADE BY"}, rigid: columns(0), spare: columns(5)}
	for _, k := range list {
		used := strconv.Itoa(k.Used)
		if k.Uses > 0 {
			used = of(used, strconv.Itoa(k.Uses))
		}
		t.add(k.ID, string(k.Role), k.State, k.Expires.UTC().Format("2006-01-02 15:04:05Z"), used, k.By)
	}
	p.table(&t)
}

// Uses writes how many machines may join with a token.
func Uses(n int) string {
	if n == 0 {
		return "any number of machines"
	}
	return Count(n, "machine")
}
