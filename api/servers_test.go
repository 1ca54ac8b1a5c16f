package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/identity/pki"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// fakeServers is a cluster of servers a and b, and a learner c, with a registrar that works.
type fakeServers struct {
	*pki.Registrar
	mu      sync.Mutex
	servers []client.ClusterServer
	lag     time.Duration
	stale   error // of Fresh
	fresh   int   // calls of it
	snap    []byte
	cut     bool          // the backup ends in the middle
	gate    chan struct{} // when not nil, a backup waits for it
	waits   chan struct{} // says that one does
}

func newFakeServers(t *testing.T, d *door) *fakeServers {
	t.Helper()
	auth, own, err := pki.Found(t.TempDir(), "a", []string{"127.0.0.1"}, pki.MachineOptions{Now: d.clock, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeServers{snap: bytes.Repeat([]byte("snapshot "), 100_000), lag: 1500 * time.Microsecond}
	f.Registrar = pki.NewRegistrar(pki.RegistrarConfig{Store: d.db, Authority: auth, Now: d.clock})
	if err := f.Settle(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	f.servers = []client.ClusterServer{
		{Name: "a", Addr: "10.0.0.1:7070", Peer: "10.0.0.1:7071", Leader: true, Answers: true, Self: true},
		{Name: "b", Addr: "10.0.0.2:7070", Answers: true}, {Name: "c", Learner: true, Answers: true},
	}
	return f
}

func (f *fakeServers) Fresh(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fresh++
	return f.stale
}

func (f *fakeServers) Lag() time.Duration { return f.lag }

func (f *fakeServers) Addrs() []string { return []string{"10.0.0.1:7070"} }

func (f *fakeServers) Cluster(context.Context) (client.Cluster, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return client.Cluster{Leader: "a", Servers: slices.Clone(f.servers), Lag: model.Duration(f.lag), Quota: 8 * model.GiB}, nil
}

func (f *fakeServers) find(name string) (int, error) {
	if i := slices.IndexFunc(f.servers, func(s client.ClusterServer) bool { return s.Name == name }); i >= 0 {
		return i, nil
	}
	return 0, fmt.Errorf("%w %s", ErrNoServer, name)
}

func (f *fakeServers) Promote(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.find(name)
	if err == nil && !f.servers[i].Learner {
		return fmt.Errorf("%w: %s votes already", ErrRefused, name)
	}
	if err == nil {
		f.servers[i].Learner = false
	}
	return err
}

func (f *fakeServers) Remove(ctx context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.find(name)
	if err != nil {
		return err
	}
	f.servers = slices.Delete(f.servers, i, i+1)
	return f.Revoke(ctx, model.MachineOf(model.ServerMachine, name), "it was removed")
}

func (f *fakeServers) Backup(_ context.Context, w io.Writer) error {
	if f.gate != nil {
		f.waits <- struct{}{}
		<-f.gate
	}
	if f.stale != nil {
		return f.stale
	}
	sum := sha256.Sum256(f.snap)
	head, err := json.Marshal(client.Backup{Revision: 7, Size: int64(len(f.snap)), SHA256: hex.EncodeToString(sum[:])})
	if err != nil {
		return err
	}
	body := f.snap
	if f.cut {
		body = body[:len(body)/2]
	}
	if _, err := w.Write(append(append(head, '\n'), body...)); err != nil {
		return err
	}
	if f.cut {
		return errors.New("the disk is gone")
	}
	return nil
}

// servers puts a door before a cluster.
func (d *door) servers() *fakeServers {
	f := newFakeServers(d.t, d)
	d.more = func(c *Config) { c.Servers, c.Revoke = f, pki.RevokeIn }
	d.serve(d.handler(), nil)
	return f
}

// A server that is alone says so, and is never behind.
func TestAlone(t *testing.T) {
	d := newDoor(t)
	const want = "409 this server is alone: clusters are made by gantry server"
	for _, call := range []string{"GET /v1/cluster", "GET /v1/tokens", "DELETE /v1/tokens/x", "POST /v1/tokens", "POST /v1/cluster/rotate-ca", "POST /v1/cluster/rotate-admin",
		"POST /v1/cluster/servers/a/promote", "DELETE /v1/cluster/servers/a", "GET /v1/backup"} {
		method, path, _ := strings.Cut(call, " ")
		d.refusals(method, path, map[string]string{``: want})
	}
	if code, _, h := d.call("GET", "/v1/apps?fresh=true", ""); code != 200 || h.Get(LagHeader) != "0" {
		t.Errorf("a fresh read answers %d, lag %q", code, h.Get(LagHeader))
	}
}

func TestCluster(t *testing.T) {
	d := newDoor(t)
	f := d.servers()
	ctx := t.Context()
	got := must(d.c.Cluster(ctx))(t)
	if got.ID == "" || got.Leader != "a" || len(got.Servers) != 3 || got.Nodes.Ready != 1 || got.Rotation.Phase != "steady" || got.Rotation.Machines != 1 || got.Alarms == nil {
		t.Errorf("%+v", got)
	}
	if got := must(d.c.PromoteServer(ctx, "c"))(t); got.Servers[2].Learner {
		t.Errorf("%+v", got)
	}
	d.refusals("POST", "/v1/cluster/servers/c/promote", map[string]string{``: "409 c votes already"})
	d.refusals("POST", "/v1/cluster/servers/x/promote", map[string]string{``: "404 no server x"})
	if got := must(d.c.RotateCA(ctx))(t); got.Phase != "spreading" || !slices.Equal(got.Waits, []model.MachineID{"server/a"}) || !strings.Contains(got.Why, "1 of 1 machines") {
		t.Errorf("%+v", got)
	}
	if got := must(d.c.RotateAdmin(ctx))(t); !strings.HasPrefix(got.Token, "gantry_") || got.Token == string(d.token) || d.db.View().Cluster().Admin.Count() != 1 {
		t.Error("the administrator's token was not replaced")
	}
	d.refusals("POST", "/v1/cluster/rotate-ca", map[string]string{``: "409 is being rotated already"})
	if got := must(d.c.RemoveServer(ctx, "a"))(t); got.Name != "a" || len(f.servers) != 2 || d.db.View().Machine("server/a") != nil {
		t.Errorf("%+v, left are %+v", got, f.servers)
	}
	d.refusals("DELETE", "/v1/cluster/servers/a", map[string]string{``: "404 no server a"})
}

// The text of a token is told once, and nobody learns it from what is kept.
func TestTokens(t *testing.T) {
	d := newDoor(t)
	d.servers()
	ctx := t.Context()
	got := must(d.c.CreateToken(ctx, client.NewToken{Role: model.AgentMachine}))(t)
	token, err := pki.ParseToken(got.Token)
	if err != nil || token.ID != got.ID || got.Uses != 1 || got.By != "admin" || got.Expires.Sub(got.Created) != time.Hour || got.Servers[0] != "10.0.0.1:7070" {
		t.Errorf("%+v (%v)", got, err)
	}
	any := 0
	must(d.c.CreateToken(ctx, client.NewToken{Role: model.ServerMachine, TTL: model.Duration(time.Minute), Uses: &any}))(t)
	d.put(func(tx *state.Tx) {
		spent := *tx.Token(got.ID)
		spent.Used = 1
		tx.PutToken(&spent)
	})
	_, body, _ := d.call("GET", "/v1/tokens", "")
	if strings.Contains(body, token.Secret) || strings.Contains(body, "hash") || strings.Contains(body, "salt") {
		t.Errorf("the list has secrets: %s", body)
	}
	states := map[model.MachineRole]string{}
	for _, k := range must(d.c.Tokens(ctx))(t) {
		states[k.Role] = fmt.Sprintf("%s %d", k.State, k.Uses)
	}
	if states[model.AgentMachine] != "used up 1" || states[model.ServerMachine] != "good 0" {
		t.Errorf("%v", states)
	}
	d.refusals("POST", "/v1/tokens", map[string]string{
		`{"role":"king"}`:               `422 write server or agent`,
		`{}`:                            `422 role`,
		`{"role":"agent","ttl":"900h"}`: "422 ttl 900h0m0s is outside",
		`{"role":"agent","uses":-1}`:    "422 uses",
		`{"role":"agent","hours":1}`:    "422 hours",
		``:                              "400 no body",
	})
	if err := d.c.DeleteToken(ctx, got.ID); err != nil || d.db.View().Token(got.ID) != nil {
		t.Errorf("deleted: %v", err)
	}
	d.refusals("DELETE", "/v1/tokens/"+got.ID, map[string]string{``: "404 no token " + got.ID})
}

// A reader never takes the first half of a backup for all of it.
func TestBackup(t *testing.T) {
	d := newDoor(t)
	f := d.servers()
	ctx := t.Context()
	var out bytes.Buffer
	b, err := d.c.Backup(ctx, &out, false)
	if err != nil || b.Revision != 7 || !bytes.HasSuffix(out.Bytes(), f.snap) || f.fresh != 1 {
		t.Errorf("%+v, %d bytes, %d times fresh: %v", b, out.Len(), f.fresh, err)
	}
	f.cut = true
	if b, err := d.c.Backup(ctx, io.Discard, true); !errors.Is(err, client.ErrBackup) || f.fresh != 1 {
		t.Errorf("a backup that was cut off: %+v, %v", b, err)
	}
	f.cut, f.stale = false, fmt.Errorf("%w: no majority", state.ErrUnavailable)
	if _, err := d.c.Backup(ctx, io.Discard, true); status(err) != 503 {
		t.Errorf("a backup that cannot be made: %v", err)
	}
	f.stale, f.gate, f.waits = nil, make(chan struct{}), make(chan struct{}, 1)
	first := make(chan error, 1)
	go func() { _, err := d.c.Backup(ctx, io.Discard, true); first <- err }()
	<-f.waits
	if _, err := d.c.Backup(ctx, io.Discard, true); status(err) != 409 {
		t.Errorf("a second backup at the same time: %v", err)
	}
	close(f.gate)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// Whoever needs to know all that was written before can say so, and everybody sees how old an answer may be.
func TestFresh(t *testing.T) {
	d := newDoor(t)
	f := d.servers()
	if code, _, h := d.call("GET", "/v1/apps", ""); code != 200 || h.Get(LagHeader) != "1" || f.fresh != 0 {
		t.Errorf("a read answers %d, lag %q, %d times fresh", code, h.Get(LagHeader), f.fresh)
	}
	if code, _, _ := d.call("GET", "/v1/instances?all=true&fresh=true", ""); code != 200 || f.fresh != 1 {
		t.Errorf("a fresh read answers %d, %d times fresh", code, f.fresh)
	}
	if code, _, _ := d.call("GET", "/v1/instances?fresh=false", ""); code != 200 || f.fresh != 1 {
		t.Errorf("a read that need not be fresh answers %d, %d times fresh", code, f.fresh)
	}
	d.refusals("GET", "/v1/apps?fresh=yes", map[string]string{``: "422 write true or false"})
	f.stale = fmt.Errorf("%w: no majority", state.ErrUnavailable)
	d.refusals("GET", "/v1/apps?fresh=true", map[string]string{``: "503 without fresh=true it answers what it knows"})
	if code, _, _ := d.call("GET", "/v1/apps?fresh=true", "", "Authorization", "Bearer wrong"); code != 401 || f.fresh != 2 {
		t.Errorf("a stranger is answered %d, and asks the majority", code)
	}
}

// The certificate of a node ends with the node, in the same transaction.
func TestRemoveNodeRevokes(t *testing.T) {
	d := newDoor(t)
	d.servers()
	d.put(func(tx *state.Tx) {
		tx.PutMachine(&model.Machine{ID: "agent/n1", Epoch: "e", Expires: epoch.Add(time.Hour)})
	})
	must(d.c.RemoveNode(t.Context(), "alpha", false))(t)
	v := d.db.View()
	if v.Machine("agent/n1") != nil || v.Revocation(model.RevocationKey("agent/n1", "e")) == nil || v.Node("n1") != nil {
		t.Error("the machine is not revoked")
	}
}

// follower serves a second server that does not lead, and returns a door to it.
func (d *door) follower(leader func() (string, bool)) *door { return d.followerOf(leader, 0) }

func (d *door) followerOf(leader func() (string, bool), stall time.Duration) *door {
	h, err := New(Config{
		Stall: stall,
		Store: d.db, Auth: identity.WithToken(d.token), Now: d.clock, Leader: leader, Forward: http.DefaultTransport,
		Logger: slog.New(slog.DiscardHandler), Nodes: func(model.NodeID) (wire.Node, bool) { return nil, false },
	})
	if err != nil {
		d.t.Fatal(err)
	}
	f := &door{t: d.t, token: d.token, db: d.db}
	f.serve(h, nil)
	return f
}

// Every server answers every call: what only the leader can, it answers through the others.
func TestForward(t *testing.T) {
	d := newDoor(t)
	d.create(web(1))
	d.run("web-a", shop, nil)
	d.node.usage = wire.Usage{Node: model.Usage{CPUs: 1.5}}
	addr := d.srv.URL
	f := d.follower(func() (string, bool) { return addr, false })
	ctx := t.Context()
	if u := must(f.c.Usage(ctx))(t); len(u.Nodes) != 1 || u.Nodes[0].Usage.CPUs != 1.5 {
		t.Errorf("usage is %+v", u)
	}
	must(f.c.Plan(ctx, web(1)))(t)
	const size = 8 << 20
	if got := must(f.c.ImportImages(ctx, "", io.LimitReader(zeros{}, size)))(t); got.Images[0] != fmt.Sprintf("image-of-%d-bytes", size) {
		t.Errorf("imported %+v", got)
	}
	var out bytes.Buffer
	code, err := f.c.Exec(ctx, "web-a", client.ExecOptions{Command: []string{"cat"}, Stdin: strings.NewReader("over two servers"), Stdout: &out})
	if err != nil || code != 0 || out.String() != "over two servers" {
		t.Errorf("exec ended with %d, %q: %v", code, out.String(), err)
	}
	_, _, h := f.call("GET", "/v1/usage", "")
	if len(h.Values("Cache-Control")) != 1 || len(h.Values(LagHeader)) != 1 {
		t.Errorf("headers are there twice: %v", h)
	}
	if code, body, _ := f.call("GET", "/v1/instances/web-x/logs?fresh=true", ""); code != 404 || !strings.Contains(body, "web-x") {
		t.Errorf("the leader's refusal comes as %d: %s", code, body)
	}
	if code, _, _ := f.call("GET", "/v1/usage", "", "Authorization", "Bearer wrong"); code != 401 {
		t.Errorf("a stranger is answered %d", code)
	}
	if list := must(f.c.Apps(ctx))(t); len(list) != 1 {
		t.Errorf("apps are %+v", list)
	}
}

// Two servers that take each other for the leader do not send a request to and fro.
func TestForwardEnds(t *testing.T) {
	d := newDoor(t)
	var a, b *door
	a = d.follower(func() (string, bool) { return b.srv.URL, false })
	b = d.follower(func() (string, bool) { return a.srv.URL, false })
	const none = "503 no server leads at the moment; try again"
	a.refusals("GET", "/v1/usage", map[string]string{``: none})
	a.refusals("GET", "/v1/images", map[string]string{``: none})
	nobody := d.follower(func() (string, bool) { return "", false })
	nobody.refusals("GET", "/v1/moves", map[string]string{``: none})
	gone := httptest.NewServer(nil)
	gone.Close()
	dead := d.follower(func() (string, bool) { return gone.URL, false })
	dead.refusals("GET", "/v1/usage", map[string]string{``: "503 does not answer"})
}

// A client that reads no more of a stream, or sends no more of its own, is cut off after a while, and holds nothing then, neither
// at the follower nor at the leader.
func TestForwardedStreamStalls(t *testing.T) {
	d := started(t)
	d.node.logs["web-a.main.stdout"] = newLog(strings.Repeat("x", 64<<20)) // more than fits into what lies between
	var atLeader, atFollower, came atomic.Int64                            // requests
	counted := func(n *atomic.Int64, h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			came.Add(1)
			n.Add(1)
			defer n.Add(-1)
			h.ServeHTTP(w, r)
		})
	}
	d.serve(counted(&atLeader, d.handler()), nil)
	addr := d.srv.URL
	f := d.followerOf(func() (string, bool) { return addr, false }, 300*time.Millisecond)
	f.serve(counted(&atFollower, f.srv.Config.Handler), nil)
	for _, request := range []string{
		"GET /v1/instances/web-a/logs?tail=-1&follow=true HTTP/1.1\r\n",
		"GET /v1/instances/web-a/exec?command=spew HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
		"POST /v1/images HTTP/1.1\r\nContent-Type: application/x-tar\r\nContent-Length: 1000\r\n",
	} {
		c, err := net.Dial("tcp", f.srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() // it stands, and nobody reads
		if _, err := fmt.Fprintf(c, "%sHost: x\r\nAuthorization: Bearer %s\r\n\r\n", request, d.token); err != nil {
			t.Fatal(err)
		}
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %d requests at the follower, %d at the leader", what, atFollower.Load(), atLeader.Load())
			}
		}
	}
	<-d.node.execs
	until("all come to the leader", func() bool { return came.Load() == 6 })
	until("all streams end", func() bool { return atFollower.Load() == 0 && atLeader.Load() == 0 })
}

// A request that waits for a leader which answers no more, since it is paused or cut off, ends when another one leads.
func TestForwardToFormerLeader(t *testing.T) {
	d := started(t)
	asked, done := make(chan struct{}), make(chan struct{})
	paused := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(asked)
		<-done
	}))
	defer paused.Close()
	defer close(done)
	var leader atomic.Pointer[string]
	leader.Store(&paused.URL)
	f := d.follower(func() (string, bool) { return *leader.Load(), false })
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		f.refusals("GET", "/v1/usage", map[string]string{``: "503 another server has come to lead; try again"})
	}()
	<-asked
	leader.Store(&d.srv.URL)
	<-answered
	if code, _, _ := f.call("GET", "/v1/usage", ""); code != http.StatusOK {
		t.Errorf("the new leader answers %d", code)
	}
}
