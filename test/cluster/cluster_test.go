// Package cluster drives the built binary as a cluster of several processes on this machine: servers and agents, each with
// a data directory and ports of its own.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

const patience = 60 * time.Second

// rig is a cluster, and the processes that it is made of.
type rig struct {
	testing.TB
	dir, bin string
	ports    map[string]int
	procs    map[string]*exec.Cmd
	logs     map[string]*bytes.Buffer
}

func newRig(t testing.TB) *rig {
	bin, err := filepath.Abs("../../bin/gantry")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	r := &rig{TB: t, dir: t.TempDir(), bin: bin, ports: map[string]int{}, procs: map[string]*exec.Cmd{}, logs: map[string]*bytes.Buffer{}}
	if err := os.Chmod(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.end)
	return r
}

// end ends everything, programs of instances included.
func (r *rig) end() {
	for name := range r.procs {
		r.stop(name, syscall.SIGTERM)
	}
	dirs, _ := filepath.Glob(filepath.Join(r.dir, "*", "process", "*"))
	for _, d := range dirs {
		r.endTask(d)
	}
	if !r.Failed() {
		return
	}
	for name, log := range r.logs {
		r.Logf("%s printed:\n%s", name, log)
	}
}

// endTask ends the program that a gantry-shim with a directory runs.
func (r *rig) endTask(dir string) {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil || !strings.Contains(string(b), "run\x00"+dir+"\x00") {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(p, "/proc/%d/cmdline", &pid); err == nil {
			children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
			for _, c := range strings.Fields(string(children)) {
				var child int
				if _, err := fmt.Sscan(c, &child); err == nil {
					_ = syscall.Kill(child, syscall.SIGKILL)
				}
			}
		}
	}
}

// base returns the first of four free ports in a row for a server.
func (r *rig) base(name string) int {
	if p := r.ports[name]; p != 0 {
		return p
	}
next:
	for p := 12_000 + os.Getpid()%7_000; ; p += 4 { // below what systems give to outgoing connections
		for i := range 4 {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p+i))
			if err != nil {
				continue next
			}
			defer l.Close()
		}
		for _, other := range r.ports {
			if other == p {
				continue next
			}
		}
		r.ports[name] = p
		return p
	}
}

func (r *rig) addr(server string) string { return fmt.Sprintf("127.0.0.1:%d", r.base(server)) }

// start starts a process and waits until it says that it is ready.
func (r *rig) start(name string, args ...string) {
	r.Helper()
	r.launch(name, args...)()
}

// launch starts a process, and returns what waits until it is ready.
func (r *rig) launch(name string, args ...string) (ready func()) {
	r.Helper()
	log := &bytes.Buffer{}
	out, w, err := os.Pipe()
	if err != nil {
		r.Fatal(err)
	}
	cmd := exec.Command(r.bin, append(args, "--data-dir", filepath.Join(r.dir, name), "--log-level", "info")...)
	cmd.Stdout, cmd.Stderr = w, log
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	w.Close()
	r.procs[name], r.logs[name] = cmd, log
	return func() {
		r.Helper()
		if err := out.SetReadDeadline(time.Now().Add(patience)); err != nil {
			r.Fatal(err)
		}
		line := make([]byte, 4096)
		n, err := out.Read(line)
		if err != nil || !strings.Contains(string(line[:n]), "is ready") {
			r.Fatalf("%s printed %q (%v), want that it is ready", name, line[:n], err)
		}
		go func() { _, _ = out.WriteTo(nowhere{}); out.Close() }()
	}
}

type nowhere struct{}

func (nowhere) Write(b []byte) (int, error) { return len(b), nil }

func (r *rig) server(name string, args ...string) {
	r.Helper()
	r.start(name, append([]string{"server", "--name", name, "--listen", r.addr(name), "--advertise", r.addr(name)}, args...)...)
}

func (r *rig) agent(name string, args ...string) {
	r.Helper()
	r.start(name, append([]string{"agent"}, args...)...)
}

func (r *rig) stop(name string, sig syscall.Signal) {
	cmd := r.procs[name]
	if cmd == nil {
		return
	}
	delete(r.procs, name)
	_ = cmd.Process.Signal(sig)
	_ = cmd.Wait()
}

// client returns a client of a server.
func (r *rig) client(server string) *client.Client {
	r.Helper()
	return r.clientAt(server, r.addr(server))
}

// clientAt returns a client of a server that listens elsewhere.
func (r *rig) clientAt(server, addr string) *client.Client {
	r.Helper()
	trust, err := client.WithCAFile(filepath.Join(r.dir, server, "identity", "ca.pem"))
	if err != nil {
		r.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(r.dir, server, "admin.token"))
	if err != nil {
		r.Fatal(err)
	}
	return client.New("https://"+addr, strings.TrimSpace(string(token)), trust)
}

func (r *rig) token(server string, role model.MachineRole, uses int) string {
	r.Helper()
	t, err := r.client(server).CreateToken(r.Context(), client.NewToken{Role: role, Uses: &uses})
	if err != nil {
		r.Fatal(err)
	}
	return t.Token
}

func (r *rig) eventually(what string, ok func() bool) {
	r.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// running returns how many instances of an app run and are healthy, by one server's word.
func (r *rig) running(server string, app model.AppID) int {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	a, err := r.client(server).App(ctx, app)
	if err != nil {
		return -1
	}
	n := 0
	for i := range a.List {
		if _, ok := a.List[i].HealthySince(); ok {
			n++
		}
	}
	return n
}

// leader returns the name of the server that leads, "" for none.
func (r *rig) leader(ask string) string {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	c, err := r.client(ask).Cluster(ctx)
	if err != nil {
		return ""
	}
	return c.Leader
}

// pids returns the programs that an agent's instances run, by task.
func (r *rig) pids(server string, app model.AppID) map[string]int {
	out := map[string]int{}
	a, err := r.client(server).App(r.Context(), app)
	if err != nil {
		r.Fatal(err)
	}
	for i := range a.List {
		for _, t := range a.List[i].Status.Tasks {
			out[string(a.List[i].ID)] = t.PID
		}
	}
	return out
}

// A cluster of three servers and two agents takes writes at every server, goes on when its leader is killed and when all
// servers are, and stops no program for it; a machine without a token, or with one for another role, gets nowhere; a backup
// makes a new cluster that adopts what runs.
func TestCluster(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: agents of a cluster are started as root")
	}
	r := newRig(t)
	ctx := t.Context()
	r.server("s1")
	servers := r.token("s1", model.ServerMachine, 2)
	agents := r.token("s1", model.AgentMachine, 2)
	for _, name := range []string{"s2", "s3"} {
		r.server(name, "--join", r.addr("s1"), "--token", servers)
	}
	for n, name := range []string{"a1", "a2"} {
		r.agent(name, "--join", r.addr("s2"), "--token", agents, "--zone", fmt.Sprint("z", n))
	}
	r.eventually("two nodes are ready at every server", func() bool {
		for _, s := range []string{"s1", "s2", "s3"} {
			nodes, err := r.client(s).Nodes(ctx)
			if err != nil || len(nodes) != 2 || nodes[0].State != model.NodeReady || nodes[1].State != model.NodeReady {
				return false
			}
		}
		return true
	})
	refused, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(refused, r.bin, "server", "--name", "s4", "--listen", r.addr("s4"), "--advertise", r.addr("s4"),
		"--data-dir", filepath.Join(r.dir, "s4"), "--join", r.addr("s1"), "--token", agents).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "token") {
		t.Errorf("a server joined with an agent's token: %v\n%s", err, out)
	}

	n := 4
	spec := &model.Spec{ID: "/web", Instances: &n, Containers: []model.Container{{Shell: "exec sleep 100000", CPUs: 50}}}
	spec.Constraints = []model.Constraint{{Attribute: model.AttrZone, Operator: model.OpGroupBy}}
	if _, err := r.client("s3").CreateApp(ctx, spec); err != nil {
		t.Fatal(err)
	}
	r.eventually("4 instances run", func() bool { return r.running("s2", "/web") == 4 })
	before := r.pids("s1", "/web")

	lead := r.leader("s1")
	others := map[string][2]string{"s1": {"s2", "s3"}, "s2": {"s1", "s3"}, "s3": {"s1", "s2"}}[lead]
	if others[0] == "" {
		t.Fatalf("the leader is %q", lead)
	}
	r.stop(lead, syscall.SIGKILL)
	killed := time.Now()
	r.eventually("another server takes writes", func() bool {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		_, err := r.client(others[0]).ScaleApp(ctx, "/web", 6)
		return err == nil
	})
	t.Logf("a write was taken %v after the leader was killed", time.Since(killed).Round(10*time.Millisecond))
	r.eventually("6 instances run under another leader", func() bool { return r.running(others[1], "/web") == 6 })

	for _, name := range others {
		r.stop(name, syscall.SIGKILL)
	}
	r.stop("a1", syscall.SIGKILL)
	r.agent("a1") // with no server in reach it adopts what runs
	var wait []func()
	for _, name := range []string{"s1", "s2", "s3"} { // side by side: a majority has to be there before any is ready
		wait = append(wait, r.launch(name, "server", "--name", name, "--listen", r.addr(name), "--advertise", r.addr(name)))
	}
	for _, ready := range wait {
		ready()
	}
	r.eventually("all run again", func() bool { return r.running("s1", "/web") == 6 })
	for id, pid := range r.pids("s1", "/web") {
		if was, ok := before[id]; ok && was != pid {
			t.Errorf("%s was process %d, and is %d: it was started again", id, was, pid)
		}
	}

	file := filepath.Join(r.dir, "backup")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.client("s1").Backup(ctx, f, false); err != nil {
		t.Fatal(err)
	}
	f.Close()
	running := r.pids("s1", "/web")
	for _, name := range []string{"s1", "s2", "s3"} {
		r.stop(name, syscall.SIGTERM)
	}
	if err := os.Rename(filepath.Join(r.dir, "s1", "etcd"), filepath.Join(r.dir, "s1", "etcd.old")); err != nil {
		t.Fatal(err)
	}
	out, err = exec.Command(r.bin, "restore", file, "--data-dir", filepath.Join(r.dir, "s1"), "--listen", r.addr("s1"), "--advertise", r.addr("s1")).CombinedOutput()
	if err != nil {
		t.Fatalf("restore: %v\n%s", err, out)
	}
	r.server("s1")
	r.eventually("the restored cluster has adopted all", func() bool { return r.running("s1", "/web") == 6 })
	after := r.pids("s1", "/web")
	if a, b := text(running), text(after); a != b {
		t.Errorf("before the restore %s ran, and after it %s", a, b)
	}
	if _, err := r.client("s1").DeleteApp(ctx, "/web"); err != nil {
		t.Fatal(err)
	}
	r.eventually("the app is gone", func() bool {
		apps, err := r.client("s1").Apps(ctx)
		return err == nil && len(apps) == 0
	})

	nodes, err := r.client("s1").Nodes(ctx)
	if err != nil || len(nodes) != 2 {
		t.Fatalf("%d nodes: %v", len(nodes), err)
	}
	if _, err := r.client("s1").RemoveNode(ctx, nodes[0].ID, false); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		left, err := r.client("s1").Nodes(ctx) // its agent runs on, and must not get in again
		if err != nil || len(left) != 1 || left[0].ID == nodes[0].ID {
			t.Fatalf("after a node was removed there are %d: %v", len(left), err)
		}
	}
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
