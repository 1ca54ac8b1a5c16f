package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/gantry-os/gantry/agent"
	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/sim"
	"github.com/gantry-os/gantry/state"
)

// runs reports whether a node said that an instance runs.
func runs(id model.InstanceID) func(state.View) bool {
	return func(v state.View) bool {
		i := v.Instance(id)
		return i != nil && i.Status.Phase == model.PhaseRunning
	}
}

func nodeIs(id model.NodeID, s model.NodeState) func(state.View) bool {
	return func(v state.View) bool {
		n := v.Node(id)
		return n != nil && n.State == s
	}
}

// eventually polls what no watch tells.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 15 s: %s", what)
		}
	}
}

// The real agent works through the network as it does within a process: it gets all and then what changes, what it says is
// in the store, and it answers calls. When its server dies it goes on with another, and its instances do not notice.
func TestRealAgent(t *testing.T) {
	c := newCluster(t, 2)
	first := c.lead(0)
	c.app("/web")
	c.place("web-1", "/web", "n1")
	driver := sim.New()
	a, err := agent.New(agent.Config{
		Dir: t.TempDir(), Node: model.Node{ID: "n1", Name: "host-1"}, Process: driver, Logger: quiet, PortFree: func(uint16) bool { return true },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := a.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); a.Wait() })
	var learned atomic.Pointer[[]string]
	c.dial(a, "n1", func(d *DialerConfig) {
		d.Servers = []string{c.servers[0].addr}
		d.Learned = func(s []string) { learned.Store(&s) }
	})
	c.await("web-1 runs", runs("web-1"))
	c.place("web-2", "/web", "n1")
	c.await("web-2 runs", runs("web-2"))
	if s := learned.Load(); s == nil || !slices.Equal(*s, c.addrs()) {
		t.Errorf("the agent has learned %v of %v", s, c.addrs())
	}

	driver.OnExec(func(task runtime.Task, e runtime.Exec) (int, error) {
		fmt.Fprintf(e.Stdout, "in %s", task.ID)
		return 3, nil
	})
	var out bytes.Buffer
	node, _ := first.fleet.Node("n1")
	if code, err := node.Exec(t.Context(), "web-1", "", runtime.Exec{Command: []string{"x"}, Stdout: &out}); code != 3 || err != nil || out.String() != "in web-1.main" {
		t.Errorf("exec: %d, %v, %q", code, err, out.String())
	}
	if _, err := node.Exec(t.Context(), "nobody", "", runtime.Exec{}); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("exec in an instance that is not there: %v", err)
	}

	first.stop()
	c.await("the old leader's word that the node went away, or none", func(state.View) bool { return true })
	second := c.lead(1)
	c.place("web-3", "/web", "n1")
	c.await("web-3 runs", runs("web-3"))
	if _, ok := second.fleet.Node("n1"); !ok {
		t.Error("the agent is not with the second server")
	}
	for _, id := range []model.InstanceID{"web-1", "web-2"} {
		if n := driver.Starts(runtime.ID(id, "main")); n != 1 {
			t.Errorf("%s was started %d times", id, n)
		}
	}
}

// What an agent has sent is in the store when Send returns. What is said of another node's instances is not.
func TestReportsAreDurable(t *testing.T) {
	c := newCluster(t, 1)
	s := c.lead(0)
	c.app("/web")
	c.place("web-1", "/web", "n1")
	c.place("other-1", "/web", "n2")
	link, _ := c.link(s.addr, "n1")
	if err := link.Send(t.Context(), wire.Up{Hello: &model.Node{ID: "n1"}}); err != nil {
		t.Fatal(err)
	}
	if d, err := link.Recv(t.Context()); err != nil || !d.Full || len(d.Set) != 1 || d.Set[0].Spec == nil || d.Cluster != nil {
		t.Fatalf("first message: %+v, %v", d, err)
	}
	running := model.Status{Attempt: 1, Phase: model.PhaseRunning}
	if err := link.Send(t.Context(), wire.Up{Reports: []wire.Report{{ID: "web-1", Status: running}, {ID: "other-1", Status: running}}}); err != nil {
		t.Fatal(err)
	}
	if !runs("web-1")(c.store.View()) {
		t.Error("the report is not in the store though Send returned")
	}
	if runs("other-1")(c.store.View()) {
		t.Error("a node spoke for another")
	}
}

// An agent is who its certificate says.
func TestIdentity(t *testing.T) {
	c := newCluster(t, 1)
	s := c.lead(0)
	link, _ := c.link(s.addr, "n1")
	var r *Refusal
	if err := link.Send(t.Context(), wire.Up{Hello: &model.Node{ID: "n2"}}); !errors.As(err, &r) || r.Reason != WrongIdentity {
		t.Errorf("n1 says that it is n2: %v", err)
	} else if want := "the certificate is that of node n1, and the agent says that it is node n2"; r.Message != want {
		t.Errorf("it is told %q", r.Message)
	}
	if c.store.View().Node("n2") != nil {
		t.Error("the lie is in the store")
	}

	stranger := newAuthority(t)
	link, _ = c.link(s.addr, "n1", func(d *DialerConfig) {
		d.TLS = stranger.config(t, "n1")
		d.TLS.RootCAs = c.ca.pool
	})
	if err := link.Send(t.Context(), wire.Up{Hello: &model.Node{ID: "n1"}}); err == nil {
		t.Error("a certificate of another authority is accepted")
	}

	link, ended := c.link(s.addr, "n1")
	if err := link.Send(t.Context(), wire.Up{Hello: &model.Node{ID: "n1"}}); err != nil {
		t.Fatal(err)
	}
	s.Recheck()
	if _, err := link.Recv(t.Context()); err != nil {
		t.Errorf("a good certificate was checked again, and the session ended: %v", err)
	}
	c.refused.Store(model.NodeID("n1"), true)
	s.Recheck()
	if err := <-ended; !errors.As(err, &r) || r.Reason != WrongIdentity {
		t.Errorf("a revoked node's session ended with %v", err)
	}
}

// One minor version may lie between agent and server. Others are told so, and so are those who look at the node.
func TestVersions(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.Release, cfg.Gantry = model.Release{Major: 2, Minor: 3}, "2.3.9" })
	s := c.lead(0)
	for _, v := range []model.Release{
		{Major: 2, Minor: 2}, {Major: 2, Minor: 3}, {Major: 2, Minor: 4}, {Major: 2, Minor: 1}, {Major: 2, Minor: 5}, {Major: 1, Minor: 3},
	} {
		link, _ := c.link(s.addr, "n1", func(d *DialerConfig) { d.Release = v; d.Gantry = v.String() + ".1" })
		err := link.Send(t.Context(), wire.Up{Hello: &model.Node{ID: "n1"}})
		if v.Major == 2 && 2 <= v.Minor && v.Minor <= 4 {
			if n := c.store.View().Node("n1"); err != nil || n.Refused != "" {
				t.Errorf("an agent of version %v is refused: %v, %q", v, err, n.Refused)
			}
			continue
		}
		older := "the agent"
		if v.Minor == 5 {
			older = "the server"
		}
		want := fmt.Sprintf("the agent of node n1 is Gantry %v.1 and the server is Gantry 2.3.9: at most one minor version may lie between %v and 2.3; upgrade %s", v, v, older)
		if err == nil || err.Error() != want {
			t.Errorf("an agent of version %v is told %v", v, err)
		}
		if n := c.store.View().Node("n1"); n.Refused != want {
			t.Errorf("of an agent of version %v the node says %q", v, n.Refused)
		}
	}
	link, _ := c.link(s.addr, "n1", func(d *DialerConfig) { d.Release = model.Release{Major: 2, Minor: 2} })
	if err := link.Send(t.Context(), wire.Up{Hello: &model.Node{ID: "n1"}}); err != nil || c.store.View().Node("n1").Refused != "" {
		t.Errorf("an agent that was brought up to date: %v, %q", err, c.store.View().Node("n1").Refused)
	}
}

// A server that does not lead says who does; the agent goes there, and follows the leadership as it moves.
func TestRedirect(t *testing.T) {
	c := newCluster(t, 3)
	link, _ := c.link(c.servers[0].addr, "n1")
	var r *Refusal
	if err := link.Send(t.Context(), wire.Up{Hello: &model.Node{ID: "n1"}}); !errors.As(err, &r) || r.Reason != NotLeader || r.Cluster.Leader != "" || r.RetryAfter == 0 {
		t.Errorf("without a leader: %#v, %v", r, err)
	}
	c.lead(1)
	link, _ = c.link(c.servers[0].addr, "n1")
	if err := link.Send(t.Context(), wire.Up{Hello: &model.Node{ID: "n1"}}); !errors.As(err, &r) || r.Cluster.Leader != c.servers[1].addr {
		t.Errorf("a follower says %v, want that %s leads", err, c.servers[1].addr)
	}
	a := newFakeAgent("n1")
	c.dial(a, "n1", func(d *DialerConfig) { d.Servers = []string{c.servers[0].addr} })
	with := func(i int) func() bool { return func() bool { return c.servers[i].Sessions() == 1 } }
	eventually(t, "the agent is with server 1", with(1))

	c.servers[1].yield() // it lives on
	c.tell("")
	c.lead(2)
	eventually(t, "the agent is with server 2", with(2))
	c.servers[2].stop()
	c.lead(0)
	eventually(t, "the agent is with server 0", with(0))
}

// An agent that comes while no server is known to lead is kept until one is, and let in or sent there then. Many that wait are
// sent one after the other.
func TestHeld(t *testing.T) {
	c := newCluster(t, 2, func(cfg *Config) { cfg.Hold, cfg.Rate = 20*time.Second, 10 })
	said := map[int]chan error{}
	for i, s := range c.servers {
		link, _ := c.link(s.addr, "n1", func(d *DialerConfig) { d.Timeout = 30 * time.Second })
		said[i] = make(chan error, 1)
		go func() { said[i] <- link.Send(t.Context(), wire.Up{Hello: &model.Node{ID: "n1"}}) }()
		eventually(t, "the agent waits", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.held == 1
		})
	}
	c.lead(0)
	if err := <-said[0]; err != nil {
		t.Errorf("the server that leads now says %v", err)
	}
	var r *Refusal
	if err := <-said[1]; !errors.As(err, &r) || r.Cluster.Leader != c.servers[0].addr || r.RetryAfter > time.Second/10 {
		t.Errorf("the other says %v", err)
	}
	most := time.Duration(0)
	for range 100 {
		most = max(most, c.servers[1].refusal(20).RetryAfter)
	}
	if most < time.Second || most > 2*time.Second {
		t.Errorf("of 20 at 10 each second the last is sent to the leader after %v", most)
	}
}

// A node that connects again takes the place of its older session.
func TestReplaced(t *testing.T) {
	c := newCluster(t, 1)
	s := c.lead(0)
	hello := wire.Up{Hello: &model.Node{ID: "n1"}}
	first, ended := c.link(s.addr, "n1")
	if err := first.Send(t.Context(), hello); err != nil {
		t.Fatal(err)
	}
	second, _ := c.link(s.addr, "n1")
	if err := second.Send(t.Context(), hello); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !strings.Contains(err.Error(), "the node has connected again") {
		t.Errorf("the first session ended with %v", err)
	}
	if err := second.Send(t.Context(), wire.Up{RemovedVolumes: []model.VolumeID{"/web:1:d"}}); err != nil {
		t.Errorf("the second session: %v", err)
	}
}

// Thousands of assignments come as one message, however many pieces it took.
func TestLargeDown(t *testing.T) {
	c := newCluster(t, 1)
	s := c.lead(0)
	c.app("/web")
	const n = 8000
	c.update(func(tx *state.Tx) {
		for i := range n {
			tx.PutInstance(&model.Instance{ID: model.InstanceID(fmt.Sprintf("web-%05d", i)), App: "/web", Version: 1, Desired: model.Run, Node: "n1"})
		}
	})
	link, _ := c.link(s.addr, "n1")
	if err := link.Send(t.Context(), wire.Up{Hello: &model.Node{ID: "n1"}}); err != nil {
		t.Fatal(err)
	}
	d, err := link.Recv(t.Context())
	if err != nil || len(d.Set) != n {
		t.Fatalf("%d assignments came: %v", len(d.Set), err)
	}
	for _, a := range d.Set {
		if a.Spec != d.Set[0].Spec {
			t.Fatal("the assignments of one version do not share their spec")
		}
	}
}

// connected returns a server, a fake agent that is connected to it, and what reaches it.
func connected(t *testing.T) (*cluster, *fakeAgent, wire.Node) {
	t.Helper()
	c := newCluster(t, 1)
	s := c.lead(0)
	a := newFakeAgent("n1")
	c.dial(a, "n1")
	if err := s.fleet.WaitNode(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	node, _ := s.fleet.Node("n1")
	return c, a, node
}

// Exec carries input, output, sizes and the exit code.
func TestExec(t *testing.T) {
	_, a, node := connected(t)
	sizes := make(chan runtime.Size, 1)
	sizes <- runtime.Size{Columns: 80, Rows: 24}
	a.exec = func(_ context.Context, e runtime.Exec) (int, error) {
		fmt.Fprint(e.Stdout, <-e.Resize)
		sizes <- runtime.Size{Columns: 100, Rows: 30}
		fmt.Fprint(e.Stderr, <-e.Resize)
		_, err := io.Copy(e.Stdout, e.Stdin)
		return 7, err
	}
	input := make([]byte, 3<<20)
	for i := range input {
		input[i] = byte(rand.Uint32())
	}
	var stdout, stderr bytes.Buffer
	code, err := node.Exec(t.Context(), "web-1", "main", runtime.Exec{
		Command: []string{"sh"}, TTY: true, Stdin: bytes.NewReader(input), Stdout: &stdout, Stderr: &stderr, Resize: sizes,
	})
	if code != 7 || err != nil {
		t.Errorf("it ended with %d, %v", code, err)
	}
	if got, want := stdout.Bytes(), append([]byte("{80 24}"), input...); !bytes.Equal(got, want) {
		t.Errorf("%d bytes of output came, want %d", len(got), len(want))
	}
	if stderr.String() != "{100 30}" {
		t.Errorf("the second size is %q", stderr.String())
	}
}

// A program that takes no input holds back the sender, can still be resized, and ends when its caller goes away.
func TestExecCancel(t *testing.T) {
	_, a, node := connected(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	read := &countingReader{}
	a.exec = func(ctx context.Context, e runtime.Exec) (int, error) {
		select {
		case s := <-e.Resize:
			if s.Columns != 2 {
				t.Errorf("the size is %v", s)
			}
		case <-ctx.Done():
		}
		cancel()
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return 0, ctx.Err()
	}
	sizes := make(chan runtime.Size)
	go func() {
		for read.n.Load() < maxInput*maxChunk { // as much input as may be under way
			time.Sleep(time.Millisecond)
		}
		sizes <- runtime.Size{Columns: 2}
	}()
	if _, err := node.Exec(ctx, "web-1", "", runtime.Exec{TTY: true, Stdin: read, Resize: sizes}); !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	if err := <-ended; !errors.Is(err, errCallEnded) {
		t.Errorf("the program ended because %v", err)
	}
	if n := read.n.Load(); n > (maxInput+1)*maxChunk {
		t.Errorf("%d bytes of input were read for a program that takes none", n)
	}
}

// countingReader has no end.
type countingReader struct{ n atomic.Int64 }

func (r *countingReader) Read(p []byte) (int, error) {
	r.n.Add(int64(len(p)))
	return len(p), nil
}

// A log that is followed comes as it grows, no faster than it is read, and is let go of when the reader goes away.
func TestLogs(t *testing.T) {
	_, a, node := connected(t)
	var written atomic.Int64
	closed := make(chan struct{})
	a.logs = func(_ context.Context, r wire.LogRequest) (io.ReadCloser, error) {
		if r.Instance != "web-1" || r.Tail != 5 || !r.Follow {
			return nil, fmt.Errorf("%w: %+v", runtime.ErrNotFound, r)
		}
		pr, pw := io.Pipe()
		go func() {
			defer close(closed)
			for i := 0; ; i++ {
				n, err := fmt.Fprintf(pw, "%-1023d\n", i)
				if written.Add(int64(n)); err != nil {
					return
				}
			}
		}()
		return pr, nil
	}
	if _, err := node.Logs(t.Context(), wire.LogRequest{Instance: "nobody"}); !errors.Is(err, runtime.ErrNotFound) || !strings.HasPrefix(err.Error(), runtime.ErrNotFound.Error()+": {Instance:nobody") {
		t.Errorf("logs of nobody: %v", err)
	}
	r, err := node.Logs(t.Context(), wire.LogRequest{Instance: "web-1", Tail: 5, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 1024)
	for i := range 2000 {
		if _, err := io.ReadFull(r, line); err != nil || !strings.HasPrefix(string(line), fmt.Sprint(i, " ")) {
			t.Fatalf("line %d is %.20q, %v", i, line, err)
		}
	}
	before := int64(0)
	eventually(t, "the writer waits for the reader", func() bool {
		was := before
		before = written.Load()
		time.Sleep(100 * time.Millisecond)
		return was == before
	})
	if ahead := before - 2000*1024; ahead > 1<<20 {
		t.Errorf("the writer is %d bytes ahead of its reader", ahead)
	}
	woken := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, r); woken <- err }()
	_ = r.Close()
	<-closed
	if err := <-woken; err == nil {
		t.Error("a log that was closed ends as if it was all")
	}
}

// Errors keep what they are, and the rest of the calls works.
func TestCalls(t *testing.T) {
	_, a, node := connected(t)
	for i := range 20_000 { // more than one message carries
		a.images = append(a.images, runtime.Image{Name: fmt.Sprintf("registry.example/shop/image:%d", i), Digest: strings.Repeat("d", 64)})
	}
	if got, err := node.Images(t.Context()); err != nil || !slices.Equal(got, a.images) {
		t.Errorf("%d images came: %v", len(got), err)
	}
	if u, err := node.Usage(t.Context()); err != nil || u.Node.Memory != model.GiB || u.Instances["web-1"].CPUs != 0.5 || u.Interval != time.Second {
		t.Errorf("usage: %+v, %v", u, err)
	}
	for _, want := range []error{runtime.ErrInvalid, runtime.ErrNotFound, runtime.ErrUnavailable, context.DeadlineExceeded} {
		a.err = fmt.Errorf("ask: %w: really", want)
		if _, err := node.Usage(t.Context()); !errors.Is(err, want) || err.Error() != a.err.Error() {
			t.Errorf("%v came as %v", a.err, err)
		}
	}
	a.load = func(_ context.Context, r io.Reader) ([]string, error) {
		b, err := io.ReadAll(r)
		return []string{fmt.Sprint(len(b))}, err
	}
	if names, err := node.Import(t.Context(), bytes.NewReader(make([]byte, 5<<20))); err != nil || names[0] != fmt.Sprint(5<<20) {
		t.Errorf("import: %v, %v", names, err)
	}
	broken := io.MultiReader(bytes.NewReader(make([]byte, 1000)), &failingReader{})
	if _, err := node.Import(t.Context(), broken); err == nil || !strings.Contains(err.Error(), "the disk is broken") {
		t.Errorf("an archive that cannot be read to its end is imported: %v", err)
	}
	c, err := node.(*remote).call(t.Context(), "dance", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.answer(nil); err == nil || !strings.Contains(err.Error(), `does not know how to do "dance"`) {
		t.Errorf("a call that the agent does not know: %v", err)
	}
	c.finish()
	if n := len(node.(*remote).x.slots); n != 0 {
		t.Errorf("%d places of calls are still taken", n)
	}
}

type failingReader struct{}

func (*failingReader) Read([]byte) (int, error) { return 0, errors.New("the disk is broken") }

// Calls end when either side goes away, and there is a bound to how many there are.
func TestCallsEnd(t *testing.T) {
	c, a, node := connected(t)
	var began sync.WaitGroup
	began.Add(maxCalls)
	stopped := make(chan struct{}, maxCalls)
	a.exec = func(ctx context.Context, _ runtime.Exec) (int, error) {
		began.Done()
		<-ctx.Done()
		stopped <- struct{}{}
		return 0, ctx.Err()
	}
	errs := make(chan error, maxCalls)
	for range maxCalls {
		go func() { _, err := node.Exec(context.Background(), "web-1", "", runtime.Exec{}); errs <- err }()
	}
	began.Wait()
	if _, err := node.Usage(t.Context()); err == nil || !strings.Contains(err.Error(), "64 calls") {
		t.Errorf("one call too many: %v", err)
	}
	c.servers[0].yield()
	for range maxCalls {
		if err := <-errs; err == nil || !strings.Contains(err.Error(), "node n1 went away") {
			t.Errorf("a call ended with %v", err)
		}
		<-stopped
	}
	if _, err := node.Usage(t.Context()); err == nil {
		t.Error("a node that is not connected answers")
	}
}

// Either side notices within the silence that it does not hear the other, also when the other hears it.
func TestPartition(t *testing.T) {
	const silence = 1500 * time.Millisecond
	for _, way := range []string{"up", "down", "both"} {
		t.Run(way, func(t *testing.T) {
			c := newCluster(t, 1, func(cfg *Config) { cfg.Silence = silence })
			s := c.lead(0)
			p := newProxy(t, s.addr)
			a := newFakeAgent("n1")
			c.dial(a, "n1", func(d *DialerConfig) { d.Servers, d.Silence = []string{p.addr}, silence })
			c.await("the node is ready", nodeIs("n1", model.NodeReady))
			s.SetCluster(wire.Cluster{Servers: []string{p.addr}, Leader: p.addr})
			time.Sleep(silence)
			if a.mu.Lock(); len(a.errs) > 0 {
				t.Errorf("a session that nothing is wrong with ended: %v", a.errs)
			}
			a.mu.Unlock()
			began := time.Now()
			p.loseUp.Store(way != "down")
			p.loseDown.Store(way != "up")
			c.await("the server notices", nodeIs("n1", model.NodeUnreachable))
			eventually(t, "the agent notices", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.errs) > 0 })
			t.Logf("it took %v until both had noticed, with a silence of %v and the fleet's grace", time.Since(began), silence)
			p.loseUp.Store(false)
			p.loseDown.Store(false)
			c.await("the node is back", nodeIs("n1", model.NodeReady))
		})
	}
}

// Connections that do not come to anything are closed: before TLS, before a stream, and before a hello.
func TestHalfOpen(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.Timeout = 200 * time.Millisecond })
	s := c.lead(0)
	closes := func(what string, conn net.Conn) {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s stays open: %v", what, err)
		}
		_ = conn.Close()
	}
	raw, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	closes("a connection that says nothing", raw)
	cfg := c.ca.config(t, "n1")
	cfg.NextProtos = []string{"h2"}
	secure, err := tls.Dial("tcp", s.addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	closes("a connection that does TLS and no more", secure)

	conn := c.rawConn(s.addr, "n1")
	stream, err := conn.NewStream(t.Context(), &sessionDesc, "/"+serviceName+"/"+sessionName)
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	if err := stream.RecvMsg(&b); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), errNoHello.Error()) {
		t.Errorf("a session without a hello ended with %v", err)
	}
	eventually(t, "the idle connection is closed", func() bool { return conn.GetState().String() != "READY" })
}

// rawConn returns a connection to misuse.
func (c *cluster) rawConn(addr string, node model.NodeID) *grpc.ClientConn {
	c.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(c.ca.config(c.t, string(node)))),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{})))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// rawSession opens a session to misuse, past its hello.
func (c *cluster) rawSession(addr string, node model.NodeID) grpc.ClientStream {
	c.t.Helper()
	stream, err := c.rawConn(addr, node).NewStream(c.t.(*testing.T).Context(), &sessionDesc, "/"+serviceName+"/"+sessionName)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := send(stream, &fromAgent{Hello: &hello{Release: model.ThisRelease, Node: model.Node{ID: node}}}); err != nil {
		c.t.Fatal(err)
	}
	for {
		var m fromServer
		if err := receive(stream, &m); err != nil {
			c.t.Fatal(err)
		}
		if m.Ack != nil {
			return stream
		}
	}
}

// stuck is a fleet whose store takes nothing after hellos.
type stuck struct{ taken atomic.Int64 }

func (s *stuck) Dial(context.Context, wire.Node) wire.Link { return s }

func (s *stuck) Refuse(context.Context, model.NodeID, string) error { return nil }

func (s *stuck) Send(ctx context.Context, u wire.Up) error {
	if u.Hello != nil {
		return nil
	}
	s.taken.Add(1)
	<-ctx.Done()
	return context.Cause(ctx)
}

func (s *stuck) Recv(ctx context.Context) (wire.Down, error) {
	<-ctx.Done()
	return wire.Down{}, context.Cause(ctx)
}

// An agent that says more than the server takes is held back, and costs it no memory to speak of.
func TestFlood(t *testing.T) {
	c := newCluster(t, 1)
	s := c.servers[0]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	led := make(chan error, 1)
	fleet := &stuck{}
	go func() { led <- s.Lead(ctx, fleet) }()
	eventually(t, "the server leads", func() bool { return s.serving() != nil })

	const floods = 20
	message := (&fromAgent{Up: &up{Seq: 1, Reports: make([]wire.Report, maxReports)}}).encode()
	message = append(message, (&fromAgent{Up: &up{Seq: 1, Removed: slices.Repeat([]model.VolumeID{"/web:1:d"}, maxRemoved)}}).encode()...)
	var before, after goruntime.MemStats
	goruntime.GC()
	goruntime.ReadMemStats(&before)
	var sent atomic.Int64
	var wg sync.WaitGroup
	for i := range floods {
		stream := c.rawSession(s.addr, model.NodeID(fmt.Sprint("n", i)))
		wg.Go(func() {
			for stream.SendMsg(&message) == nil {
				sent.Add(1)
			}
		})
	}
	was := int64(-1)
	eventually(t, "the floods are held back", func() bool {
		now := sent.Load()
		defer func() { was = now }()
		time.Sleep(200 * time.Millisecond)
		return fleet.taken.Load() == floods && now == was
	})
	goruntime.GC()
	goruntime.ReadMemStats(&after)
	if n := sent.Load(); n > floods*8 {
		t.Errorf("%d messages of %d bytes were taken from %d agents", n, len(message), floods)
	}
	each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / floods
	t.Logf("%d messages of %d KiB, %d KiB of memory for each agent, both sides", sent.Load(), len(message)>>10, each>>10)
	if each > 8<<20 {
		t.Errorf("each flood costs %d KiB", each>>10)
	}
	cancel()
	wg.Wait()
	<-led
}

// A message that is too large, or makes no sense, ends its session and nothing else.
func TestMalicious(t *testing.T) {
	c := newCluster(t, 1)
	s := c.lead(0)
	a := newFakeAgent("good")
	c.dial(a, "good")
	c.await("the good one is connected", nodeIs("good", model.NodeReady))
	large := (&fromAgent{Up: &up{Removed: slices.Repeat([]model.VolumeID{model.VolumeID(strings.Repeat("v", 1000))}, 2000)}}).encode()
	garbage := []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}
	again := (&fromAgent{Hello: &hello{Release: model.ThisRelease, Node: model.Node{ID: "good"}}}).encode()
	for name, b := range map[string][]byte{"large": large, "garbage": garbage, "another hello": again} {
		stream := c.rawSession(s.addr, "bad")
		if err := stream.SendMsg(&b); err != nil {
			t.Fatal(err)
		}
		for {
			var m fromServer
			err := receive(stream, &m)
			if err != nil || m.Refusal != nil {
				t.Logf("%s: %v%+v", name, err, m.Refusal)
				break
			}
		}
	}
	call, err := c.rawConn(s.addr, "bad").NewStream(t.Context(), &callDesc, "/"+serviceName+"/"+callName)
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	if err := call.RecvMsg(&b); status.Code(err) != codes.NotFound {
		t.Errorf("a call that nobody made: %v", err)
	}
	c.app("/web")
	c.place("web-1", "/web", "good")
	c.await("the good one works", runs("web-1"))
	if a.mu.Lock(); len(a.errs) != 0 {
		t.Errorf("the good one's sessions ended: %v", a.errs)
	}
	a.mu.Unlock()
}

// Sessions are let in at the rate that is set; those that would wait too long are told when to come back, and all get in.
func TestAdmission(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.Rate = 40 })
	s := c.lead(0)
	s.admit.wait = 200 * time.Millisecond // 8 may wait
	const n = 40
	began := time.Now()
	agents := make([]*fakeAgent, n)
	for i := range n {
		agents[i] = newFakeAgent(model.NodeID(fmt.Sprint("n", i)))
		c.dial(agents[i], agents[i].id)
	}
	eventually(t, "all are connected", func() bool { return s.Sessions() == n })
	if took := time.Since(began); took < (n-1)*time.Second/40 {
		t.Errorf("%d agents were let in within %v at 40 each second", n, took)
	}
	refused := 0
	for _, a := range agents {
		a.mu.Lock()
		for _, err := range a.errs {
			var r *Refusal
			if !errors.As(err, &r) || r.Reason != Busy || r.RetryAfter < 200*time.Millisecond {
				t.Errorf("a session ended with %v", err)
			}
			refused++
		}
		a.mu.Unlock()
	}
	if refused == 0 {
		t.Error("none was told to come back later")
	}
}

// Connections that never shake hands, or stop in the middle, have no turn, however many they are; those that do give theirs back.
func TestTurns(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.Timeout = 20 * time.Second })
	c.lead(0)
	turns := 2 * goruntime.GOMAXPROCS(0)
	for range 4 * turns {
		conn, err := net.Dial("tcp", c.servers[0].addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		cfg := c.ca.config(t, "half")
		cfg.ServerName = "127.0.0.1"
		if err := tls.Client(&halfway{conn}, cfg).Handshake(); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	for range 4 * turns {
		conn, err := net.Dial("tcp", c.servers[0].addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	for n := range 4 * turns {
		link, _ := c.link(c.servers[0].addr, model.NodeID(fmt.Sprint("n", n)))
		if err := link.Send(t.Context(), wire.Up{Hello: &model.Node{ID: model.NodeID(fmt.Sprint("n", n))}}); err != nil {
			t.Fatal(err)
		}
	}
}

// halfway is a connection on which nothing is heard.
type halfway struct{ net.Conn }

func (h *halfway) Read([]byte) (int, error) { return 0, io.EOF }

// A handshake that does not get its turn is given up.
func TestCrowded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lim := newLimited(l, 10, 30*time.Millisecond)
	defer lim.Close()
	for range cap(lim.turns) {
		lim.turns <- struct{}{}
	}
	go func() {
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
			_, _ = c.Write([]byte("hello"))
		}
	}()
	c, err := lim.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := &shaking{counted: c.(*counted)}
	if n, err := s.Read(make([]byte, 5)); n != 5 || !errors.Is(err, errCrowded) {
		t.Fatalf("without a turn it reads %d bytes: %v", n, err)
	}
	<-lim.turns
	if err := s.take(); err != nil || len(lim.turns) != cap(lim.turns) {
		t.Fatalf("with one it has %d of %d: %v", len(lim.turns), cap(lim.turns), err)
	}
	if s.yield(); len(lim.turns) != cap(lim.turns)-1 {
		t.Error("it keeps its turn")
	}
}

// A listener that is full closes what comes, and takes more when there is room again.
func TestConnectionLimit(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.Conns = 1 })
	s := c.lead(0)
	first, _ := c.link(s.addr, "n1")
	if err := first.Send(t.Context(), wire.Up{Hello: &model.Node{ID: "n1"}}); err != nil {
		t.Fatal(err)
	}
	second, _ := c.link(s.addr, "n2")
	if err := second.Send(t.Context(), wire.Up{Hello: &model.Node{ID: "n2"}}); err == nil {
		t.Error("a second connection is taken where one is allowed")
	}
	first.(*link).cancel(errClosed)
	a := newFakeAgent("n3")
	c.dial(a, "n3")
	c.await("there is room again", nodeIs("n3", model.NodeReady))
}
