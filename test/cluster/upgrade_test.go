package cluster

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// Releases of an upgrade.
var (
	before = model.ThisRelease
	after  = before.Next()
	beyond = after.Next()
)

// rolling is a cluster whose processes are upgraded one at a time.
type rolling struct {
	*rig
	bins   map[model.Release]string
	of     map[string]model.Release // of each process
	stored model.Release            // what is to be stored
	births map[int]string           // when each program of /web began, by pid, in ticks of the kernel
	wrote  atomic.Int64             // the newest write that a server acknowledged, of those that go on all the time
	checks int
}

// restart starts a process again, of a release.
func (u *rolling) restart(name string, r model.Release) {
	u.Helper()
	u.stop(name, syscall.SIGTERM)
	u.of[name], u.bin = r, u.bins[r]
	if strings.HasPrefix(name, "a") {
		u.agent(name, "--zone", name)
		return
	}
	u.server(name)
}

// refused starts a server of a release, which is to end with a sentence.
func (u *rolling) refused(name string, r model.Release, args []string, want ...string) {
	u.Helper()
	u.stop(name, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(u.Context(), patience)
	defer cancel()
	args = append([]string{"server", "--name", name, "--listen", u.addr(name), "--advertise", u.addr(name), "--data-dir", filepath.Join(u.dir, name)}, args...)
	out, err := exec.CommandContext(ctx, u.bins[r], args...).CombinedOutput()
	if err == nil || ctx.Err() != nil {
		u.Errorf("%s of %v goes on: %v", name, r, err)
	}
	for _, w := range want {
		if !strings.Contains(string(out), w) {
			u.Errorf("%s of %v said, without %q:\n%s", name, r, w, out)
		}
	}
}

// note takes down the programs that run, which are to run to the end.
func (u *rolling) note(n int) {
	u.Helper()
	u.eventually(fmt.Sprint(n, " instances run"), func() bool { return u.running("s1", "/web") == n })
	for _, pid := range u.pids("s1", "/web") {
		u.births[pid] = birth(pid)
	}
	if len(u.births) != n || slices.Contains(slices.Collect(maps.Values(u.births)), "") {
		u.Fatalf("of %d programs these run: %v", n, u.births)
	}
}

// birth returns when a process began, nothing for one that is gone. A pid may come again, the two together do not.
func birth(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	if f := strings.Fields(rest); len(f) > 19 && f[0] != "Z" {
		return f[19]
	}
	return ""
}

// check holds what is true at every moment of an upgrade: every server takes writes and tells the same, no program was disturbed,
// and nothing is stored that is not to be.
func (u *rolling) check(what string) {
	u.Helper()
	u.checks++
	for _, s := range []string{"s1", "s2", "s3"} {
		u.eventually(what+": "+s+" takes a write", func() bool {
			ctx, cancel := context.WithTimeout(u.Context(), 10*time.Second)
			defer cancel()
			_, err := u.client(s).PutRole(ctx, &model.Role{ID: model.RoleID("/by-" + s), Weight: float64(u.checks)})
			return err == nil
		})
	}
	for _, s := range []string{"s1", "s2", "s3"} {
		for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
			wrong := u.wrong(s)
			if wrong == "" {
				break
			}
			if time.Now().After(end) {
				u.Fatalf("%s: of %s: %s, after %v", what, s, wrong, patience)
			}
		}
	}
	for pid, began := range u.births {
		if now := birth(pid); now != began {
			u.Errorf("%s: program %d began at %s, and now at %q", what, pid, began, now)
		}
	}
	if u.stored == before && u.holds("s1", told) {
		u.Errorf("%s: what only the new version knows is stored", what)
	}
}

// wrong returns what a server does not tell as it is: the writes of the others, and the version of every process.
func (u *rolling) wrong(s string) string {
	ctx, cancel := context.WithTimeout(u.Context(), 5*time.Second)
	defer cancel()
	c := u.client(s)
	for _, by := range []string{"s1", "s2", "s3"} {
		if r, err := c.Role(ctx, model.RoleID("/by-"+by)); err != nil || r.Weight != float64(u.checks) {
			return fmt.Sprintf("it does not have the write by %s: %v, %v", by, r.Weight, err)
		}
	}
	cluster, err := c.Cluster(ctx)
	if err != nil || cluster.Stored != u.stored || len(cluster.Servers) != 3 || cluster.Why != "" {
		return fmt.Sprintf("it says that %v is stored, and that %d servers are there: %s, %v", cluster.Stored, len(cluster.Servers), cluster.Why, err)
	}
	for _, m := range cluster.Servers {
		if m.Release != u.of[m.Name] || !strings.HasPrefix(m.Version, m.Release.String()+"+") || m.Release != u.stored && cluster.Upgrade == "" {
			return fmt.Sprintf("it says that %s is %v (%s), and of the upgrade %q", m.Name, m.Release, m.Version, cluster.Upgrade)
		}
	}
	nodes, err := c.Nodes(ctx)
	if err != nil || len(nodes) != 2 {
		return fmt.Sprintf("it knows %d nodes: %v", len(nodes), err)
	}
	for _, n := range nodes {
		if n.Release != u.of[n.Zone] || n.State != model.NodeReady || n.Refused != "" {
			return fmt.Sprintf("it says that node %s is %v (%s), %s, %s", n.Zone, n.Release, n.Version, n.State, n.Refused)
		}
	}
	return ""
}

// holds reports whether a text is anywhere in what a server stores.
func (u *rolling) holds(server, text string) bool {
	u.Helper()
	var all bytes.Buffer
	if _, err := u.client(server).Backup(u.Context(), &all, false); err != nil {
		u.Fatal(err)
	}
	return bytes.Contains(all.Bytes(), []byte(text))
}

// write writes all the time, by whichever server takes it, until done is closed. It returns the longest time in which none did.
func (u *rolling) write(done <-chan struct{}) (longest time.Duration) {
	clients := map[string]*client.Client{"s1": u.client("s1"), "s2": u.client("s2"), "s3": u.client("s3")}
	last := time.Now()
	for n := 1; ; {
		for _, c := range clients {
			select {
			case <-done:
				return longest
			case <-time.After(20 * time.Millisecond):
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			_, err := c.PutRole(ctx, &model.Role{ID: "/always", Weight: float64(n)})
			if cancel(); err != nil {
				continue
			}
			longest, last = max(longest, time.Since(last)), time.Now()
			u.wrote.Store(int64(n))
			n++
		}
	}
}

// A cluster is upgraded to the next version, whose wire and store differ, one process at a time: one agent before the servers, the
// leader last of these, the other agent after them. Leader and followers are of both versions, either way. One server goes back before
// what is stored changes, which is when the last server is upgraded; after it the old version is refused, and versions that are
// further apart always are. All the while every server takes writes, none is lost, and no program is disturbed.
func TestUpgrade(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: agents of a cluster are started as root")
	}
	r := newRig(t)
	dir := t.TempDir()
	changed := overlay(t, dir)
	u := &rolling{rig: r, stored: before, births: map[int]string{}, of: map[string]model.Release{}, bins: map[model.Release]string{
		before: r.bin, after: buildNext(t, dir, changed, after), beyond: buildNext(t, dir, changed, beyond),
	}}
	began := time.Now()
	ctx := t.Context()
	r.server("s1")
	servers, agents := r.token("s1", model.ServerMachine, 3), r.token("s1", model.AgentMachine, 2)
	for _, name := range []string{"s2", "s3"} {
		r.server(name, "--join", r.addr("s1"), "--token", servers)
	}
	for _, name := range []string{"a1", "a2"} {
		r.agent(name, "--join", r.addr("s2"), "--token", agents, "--zone", name)
	}
	for _, name := range []string{"s1", "s2", "s3", "a1", "a2"} {
		u.of[name] = before
	}
	u.eventually("both nodes are ready", func() bool {
		nodes, err := u.client("s1").Nodes(ctx)
		return err == nil && len(nodes) == 2 && nodes[0].State == model.NodeReady && nodes[1].State == model.NodeReady
	})
	n := 4
	spec := &model.Spec{ID: "/web", Instances: &n, Containers: []model.Container{{Shell: "exec sleep 100000", CPUs: 50}}}
	spec.Constraints = []model.Constraint{{Attribute: model.AttrZone, Operator: model.OpGroupBy}}
	if _, err := u.client("s3").CreateApp(ctx, spec); err != nil {
		t.Fatal(err)
	}
	u.note(4)
	u.check("before")
	done, gap := make(chan struct{}), make(chan time.Duration, 1)
	go func() { gap <- u.write(done) }()

	last := u.leader("s1")
	others := map[string][2]string{"s1": {"s2", "s3"}, "s2": {"s1", "s3"}, "s3": {"s1", "s2"}}[last]
	if others[0] == "" {
		t.Fatalf("the leader is %q", last)
	}
	first, second := others[0], others[1]

	u.restart("a2", beyond)
	sentence := fmt.Sprintf("at most one minor version may lie between %v and %v; upgrade the server", beyond, before)
	u.eventually("an agent that is too new is refused", func() bool {
		nodes, err := u.client(first).Nodes(ctx)
		return err == nil && (strings.HasSuffix(nodes[0].Refused, sentence) || strings.HasSuffix(nodes[1].Refused, sentence))
	})
	u.stop("a2", syscall.SIGTERM)
	if !strings.Contains(u.logs["a2"].String(), sentence) {
		t.Errorf("the agent that was refused printed:\n%s", u.logs["a2"])
	}
	u.restart("a2", before)
	u.check("an agent that was refused is back")

	u.restart("a1", after)
	u.check("one agent is upgraded, no server")
	u.refused("s4", beyond, []string{"--join", u.addr(last), "--token", servers}, fmt.Sprintf("server s4 is Gantry %v", beyond), fmt.Sprintf("start it with Gantry %v", after))
	u.refused(first, beyond, nil, fmt.Sprintf("is Gantry %v", beyond), fmt.Sprintf("start it with Gantry %v", after))
	u.restart(first, after)
	u.check("one server is upgraded, and follows an old one")
	u.restart(second, after)
	u.check("all servers but the leader are upgraded")
	u.restart(second, before)
	u.check("one has gone back")
	u.restart(second, after)
	u.restart(last, before)
	u.eventually("an upgraded server leads an old one", func() bool { l := u.leader(last); return l == first || l == second })
	if _, err := u.client(last).ScaleApp(ctx, "/web", 6); err != nil {
		t.Fatal(err)
	}
	u.note(6)
	u.eventually("the old server tells what the new one did", func() bool { return u.running(last, "/web") == 6 })
	u.check("an old server follows a new one")

	u.stored = after
	u.restart(last, after)
	u.check("all servers are upgraded")
	u.eventually("the new kind of record is stored", func() bool { return u.holds("s1", "/gantry/v1/next/self") })
	u.refused(first, before, nil, fmt.Sprintf("is Gantry %v", before), fmt.Sprintf("which it cannot read: start it with Gantry %v", after))
	u.refused(first, beyond, nil, fmt.Sprintf("is Gantry %v", beyond), "upgrade those first", before.String()+"+")
	u.restart(first, after)
	u.check("all servers are upgraded, and one agent")
	u.restart("a2", after)
	u.check("all are upgraded")
	u.eventually("what agents say is stored", func() bool { return u.holds("s1", told) })

	close(done)
	t.Logf("upgraded in %v; the longest time without an acknowledged write was %v", time.Since(began).Round(time.Second), (<-gap).Round(time.Millisecond))
	if r, err := u.client(last).Role(ctx, "/always"); err != nil || int64(r.Weight) < u.wrote.Load() {
		t.Errorf("write %d was acknowledged, and found is %v: %v", u.wrote.Load(), r, err)
	}
}
