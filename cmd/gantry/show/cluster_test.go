package show

import (
	"bytes"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// The page on the cluster names what is wrong before anything else.
func TestGoldenCluster(t *testing.T) {
	c := client.Cluster{
		ID: "0f3a9c1d2b4e5f60", Leader: "server-a", Why: "server-c does not answer", Revision: 4711, Lag: model.Duration(120 * time.Millisecond),
		Size: 12 * model.MiB, Used: 9 * model.MiB, Quota: 8 * model.GiB, Alarms: []string{"NOSPACE 1f"}, Nodes: client.NodeCounts{Ready: 4, Unreachable: 1},
		Rotation: client.Rotation{Phase: "spreading", Machines: 8, Waits: []model.MachineID{"server/server-c"}, Why: "1 of 8 machines do not yet trust the new root, server/server-c among them."},
		Upgrade:  "records stay those of Gantry 0.1 until all servers are Gantry 0.2; still to be upgraded: server-c",
		Servers: []client.ClusterServer{
			{Name: "server-a", Addr: "10.0.0.1:7070", Peer: "10.0.0.1:7071", Leader: true, Answers: true, Self: true, Version: "0.2.1"},
			{Name: "server-b", Addr: "10.0.0.2:7070", Peer: "10.0.0.2:7071", Answers: true, Learner: true, Version: "0.2.1"},
			{Name: "server-c", Addr: "10.0.0.3:7070", Peer: "10.0.0.3:7071", Version: "0.1.4"},
		},
	}
	outside := client.Cluster{
		ID: "0f3a9c1d2b4e5f60", Leader: "server-a", External: true, Revision: 4711, Size: 12 * model.MiB, Used: 9 * model.MiB,
		Why:      "1 of 2 members of the external etcd do not answer: etcd-2",
		Rotation: client.Rotation{Phase: "steady"},
		Servers:  []client.ClusterServer{{Name: "server-a", Addr: "10.0.0.1:7070", Leader: true, Answers: true, Self: true}},
		Etcd: []client.EtcdMember{
			{Name: "etcd-1", Addr: "10.0.1.1:2379", Leader: true, Answers: true}, {Name: "etcd-2", Addr: "10.0.1.2:2379"},
		},
	}
	tokens := []client.JoinToken{
		{ID: "3f9a0c11", Role: model.AgentMachine, State: "good", Expires: now, Used: 3, By: "admin"},
		{ID: "77b1e2d0", Role: model.ServerMachine, State: "used up", Expires: now, Uses: 1, Used: 1, By: "admin"},
	}
	for page, draw := range map[string]func(p *Printer){
		"cluster":  func(p *Printer) { p.Cluster(&c) },
		"external": func(p *Printer) { p.Cluster(&outside) },
		"tokens":   func(p *Printer) { p.Tokens(tokens) },
	} {
		for look, p := range map[string]Printer{"plain": {}, "narrow": {Width: 60}, "color": {Width: 120, Color: true}} {
			t.Run(page+"-"+look, func(t *testing.T) {
				var out bytes.Buffer
				p.W, p.Now = &out, now
				draw(&p)
				golden(t, page+"-"+look, out.Bytes())
			})
		}
	}
}
