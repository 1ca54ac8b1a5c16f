package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// starts returns how often the programs of an app that counts them were started on the node in the directory of a process.
func (r *rig) starts(name string) int {
	r.Helper()
	files, err := filepath.Glob(filepath.Join(r.dir, name, "agent", "instances", "*", "sandbox", "starts"))
	if err != nil {
		r.Fatal(err)
	}
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			r.Fatal(err)
		}
		n += strings.Count(string(b), "\n")
	}
	return n
}

// zone returns the programs of an app that run in a zone.
func (r *rig) zone(server, zone string, app model.AppID) (pids []int) {
	r.Helper()
	nodes, err := r.client(server).Nodes(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	a, err := r.client(server).App(r.Context(), app)
	if err != nil {
		r.Fatal(err)
	}
	for i := range a.List {
		for _, n := range nodes {
			if n.ID == a.List[i].Node && n.Zone == zone {
				for _, t := range a.List[i].Status.Tasks {
					pids = append(pids, t.PID)
				}
			}
		}
	}
	return pids
}

// Three processes that are server and node each: whichever dies, the others take writes, and no program stops; alone, without
// a majority, a node looks after its programs, also when its process was started again; a machine that is no server any more
// stays a node, and one that is no node any more a server.
func TestServersThatAreNodes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: agents of a cluster are started as root")
	}
	r := newRig(t)
	ctx := t.Context()
	names := []string{"s1", "s2", "s3"}
	both := func(name string, args ...string) {
		t.Helper()
		r.server(name, append(args, "--agent", "--zone", "z"+name)...)
	}
	both("s1")
	token := r.token("s1", model.ServerMachine, 2)
	both("s2", "--join", r.addr("s1"), "--token", token)
	both("s3", "--join", r.addr("s1"), "--token", token)
	ready := func(want int, servers ...string) func() bool {
		return func() bool {
			for _, s := range servers {
				nodes, err := r.client(s).Nodes(ctx)
				c := r.cluster(s)
				if err != nil || len(nodes) != want || slices.ContainsFunc(nodes, func(n client.NodeDetail) bool { return n.State != model.NodeReady }) ||
					c.Leader == "" || slices.ContainsFunc(c.Servers, func(s client.ClusterServer) bool { return !s.Answers }) {
					return false
				}
			}
			return true
		}
	}
	r.eventually("three servers answer, and their nodes", ready(3, names...))
	n := 6
	spec := &model.Spec{ID: "/web", Instances: &n, Containers: []model.Container{{Shell: `echo started >> "$GANTRY_SANDBOX/starts"; exec sleep 100000`, CPUs: 50}}}
	spec.Constraints = []model.Constraint{{Attribute: model.AttrZone, Operator: model.OpGroupBy}}
	if _, err := r.client("s2").CreateApp(ctx, spec); err != nil {
		t.Fatal(err)
	}
	r.eventually("6 instances run", func() bool { return r.running("s3", "/web") == 6 })
	before := r.pids("s1", "/web")
	for _, name := range names {
		if got := r.starts(name); got != 2 {
			t.Errorf("on %s %d programs were started, want 2", name, got)
		}
	}
	unmoved := func(when string, server string) {
		t.Helper()
		now := r.pids(server, "/web")
		for id, pid := range before {
			if now[id] != pid || syscall.Kill(pid, 0) != nil {
				t.Errorf("%s %s is process %d, and was %d: %v", when, id, now[id], pid, syscall.Kill(pid, 0))
			}
		}
	}

	for i, name := range names {
		other := names[(i+1)%3]
		lead := r.leader(other)
		r.stop(name, syscall.SIGKILL)
		t.Logf("a write was taken %v after %s was killed while %s led", r.writes(other, "/web", 7+i), name, lead)
		unmoved("after "+name+" was killed", other)
		both(name)
		r.eventually("all are back", ready(3, names...))
		r.eventually("all run", func() bool { return r.running(other, "/web") == 7+i })
		unmoved("after "+name+" was started again", other)
	}

	// The node of s1 alone.
	mine := r.zone("s1", "zs1", "/web")
	r.stop("s2", syscall.SIGKILL)
	r.stop("s3", syscall.SIGKILL)
	again := func(what string, pid int) {
		t.Helper()
		was := r.starts("s1")
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		r.eventually(what, func() bool { return r.starts("s1") == was+1 })
	}
	again("without a majority, a program that ended is started again", mine[0])
	r.stop("s1", syscall.SIGKILL)
	both("s1") // ready is the node; the server waits for a majority
	again("without a majority, a program that ended is started again by a node that was, too", mine[1])
	both("s2")
	both("s3")
	r.eventually("all are back", ready(3, names...))
	r.eventually("all run again", func() bool { return r.running("s2", "/web") == 9 })
	for id, pid := range before {
		if slices.Contains(mine, pid) {
			delete(before, id)
		}
	}
	unmoved("after all servers were killed", "s3")

	r.eventually("s3 is no server any more", func() bool {
		_, err := r.client("s1").RemoveServer(ctx, "s3")
		return err == nil
	})
	r.eventually("s3 is still a node", func() bool {
		return len(r.cluster("s1").Servers) == 2 && ready(3, "s1", "s2")()
	})
	unmoved("after s3 was removed as a server", "s1")
	if _, err := r.client("s1").DeleteApp(ctx, "/web"); err != nil {
		t.Fatal(err)
	}
	r.eventually("the app is gone from all nodes", func() bool {
		apps, err := r.client("s1").Apps(ctx)
		return err == nil && len(apps) == 0
	})
	nodes, err := r.client("s1").Nodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	second := nodes[slices.IndexFunc(nodes, func(n client.NodeDetail) bool { return n.Zone == "zs2" })]
	if _, err := r.client("s1").RemoveNode(ctx, second.ID, false); err != nil {
		t.Fatal(err)
	}
	r.eventually("s2 is still a server", ready(2, "s1", "s2"))
	for _, name := range names {
		if err := r.procs[name].Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("%s has ended: %v", name, err)
		}
	}
}

// Flags that describe a node need one, and an address that is of no use for its instances is refused.
func TestNodeFlagsWithoutNode(t *testing.T) {
	r := newRig(t)
	if out := r.refuses("s1", "--zone", "a"); !strings.Contains(out, "--zone describes a node, and without --agent this machine is none") {
		t.Errorf("a zone without a node: %s", out)
	}
	if out := r.refuses("s1", "--agent", "--advertise", fmt.Sprintf("localhost:%d", r.base("s1"))); !strings.Contains(out, "write its address") {
		t.Errorf("a node that is reached at localhost: %s", out)
	}
}
