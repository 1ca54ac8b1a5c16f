package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

// fakeNode is an agent that holds logs and images in memory and runs a few built-in programs.
type fakeNode struct {
	mu     sync.Mutex
	logs   map[string]*fakeLog // by instance.container.stream
	images []runtime.Image
	usage  wire.Usage
	err    error // for every call, when set

	execs   chan execCall // one per Exec that began
	aborted chan error    // one per program that its context ended
}

type execCall struct {
	container string
	exec      runtime.Exec
}

// fakeLog is output that grows.
type fakeLog struct {
	mu    sync.Mutex
	grown *sync.Cond
	data  []byte
	over  bool
}

func newLog(text string) *fakeLog {
	l := &fakeLog{data: []byte(text)}
	l.grown = sync.NewCond(&l.mu)
	return l
}

func (l *fakeLog) write(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.data = append(l.data, s...)
	l.grown.Broadcast()
}

func (l *fakeLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	l.grown.Broadcast()
}

// logReader reads a fakeLog; Close wakes a reader that waits.
type logReader struct {
	l      *fakeLog
	at     int
	follow bool
	closed bool
}

func (r *logReader) Read(p []byte) (int, error) {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	for r.at == len(r.l.data) {
		if r.closed {
			return 0, io.ErrClosedPipe
		}
		if !r.follow || r.l.over {
			return 0, io.EOF
		}
		r.l.grown.Wait()
	}
	n := copy(p, r.l.data[r.at:])
	r.at += n
	return n, nil
}

func (r *logReader) Close() error {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	r.closed = true
	r.l.grown.Broadcast()
	return nil
}

func (f *fakeNode) Logs(_ context.Context, q wire.LogRequest) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	container := q.Container
	if container == "" {
		container = "main"
	}
	l := f.logs[fmt.Sprintf("%s.%s.%s", q.Instance, container, q.Stream)]
	if l == nil {
		return nil, fmt.Errorf("logs of %s: %w", q.Instance, runtime.ErrNotFound)
	}
	r := &logReader{l: l, follow: q.Follow}
	if q.Tail >= 0 {
		l.mu.Lock()
		r.at = len(l.data)
		for n := 0; r.at > 0; r.at-- {
			if l.data[r.at-1] == '\n' && r.at < len(l.data) {
				if n++; n == q.Tail {
					break
				}
			}
		}
		if q.Tail == 0 {
			r.at = len(l.data)
		}
		l.mu.Unlock()
	}
	return r, nil
}

func (f *fakeNode) Exec(ctx context.Context, _ model.InstanceID, container string, e runtime.Exec) (int, error) {
	f.mu.Lock()
	err := f.err
	f.mu.Unlock()
	if err != nil {
		return 0, err
	}
	f.execs <- execCall{container, e}
	switch e.Command[0] {
	case "cat":
		_, err := io.Copy(e.Stdout, e.Stdin)
		return 0, err
	case "both":
		fmt.Fprint(e.Stdout, "out")
		fmt.Fprint(e.Stderr, "err")
		return 3, nil
	case "flood":
		n, err := io.Copy(e.Stdout, io.LimitReader(zeros{}, 8<<20))
		if err != nil {
			return 0, fmt.Errorf("after %d bytes: %w", n, err)
		}
		return 0, nil
	case "spew":
		_, err := io.Copy(e.Stdout, zeros{})
		return 0, err
	case "sizes":
		for s := range e.Resize {
			fmt.Fprintf(e.Stdout, "%dx%d\n", s.Columns, s.Rows)
			if s.Columns == 1 {
				return 0, nil
			}
		}
		return 0, nil
	case "sleep":
		<-ctx.Done()
		f.aborted <- context.Cause(ctx)
		return 0, context.Cause(ctx)
	}
	return 0, fmt.Errorf("%w: no program %s", runtime.ErrInvalid, e.Command[0])
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func (f *fakeNode) Import(_ context.Context, archive io.Reader) ([]string, error) {
	if f.err != nil {
		return nil, f.err
	}
	n, err := io.Copy(io.Discard, archive)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("image-of-%d-bytes", n)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images = append(f.images, runtime.Image{Name: name, Digest: "sha256:0", Size: model.Bytes(n), Created: epoch})
	return []string{name}, nil
}

func (f *fakeNode) Images(context.Context) ([]runtime.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]runtime.Image(nil), f.images...), f.err
}

func (f *fakeNode) Usage(context.Context) (wire.Usage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.usage, f.err
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// door is a server over a store in memory, with one node.
type door struct {
	t      *testing.T
	db     *state.DB
	node   *fakeNode
	placer *fakePlacer
	online bool // whether the node is connected
	token  identity.Token
	srv    *httptest.Server
	c      *client.Client
	log    bytes.Buffer
	asked  chan client.Shutdown
	more   func(*Config) // what a test adds

	mu  sync.Mutex
	now time.Time
	ids int
}

func newDoor(t *testing.T) *door {
	t.Helper()
	d := &door{t: t, now: epoch, online: true, asked: make(chan client.Shutdown, 1)}
	d.db = memory.Open(d.clock)
	d.placer = &fakePlacer{db: d.db}
	d.node = &fakeNode{logs: map[string]*fakeLog{}, execs: make(chan execCall, 16), aborted: make(chan error, 16)}
	token, err := identity.NewToken(bytes.NewReader(bytes.Repeat([]byte{42}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	d.token = token
	d.serve(d.handler(), nil)
	d.put(func(tx *state.Tx) {
		tx.PutNode(&model.Node{ID: "n1", Name: "alpha", Addr: "10.0.0.1", State: model.NodeReady, Seen: epoch,
			Capacity: model.Resources{CPUs: 4000, Memory: 8 * model.GiB}})
	})
	return d
}

// serve begins to serve h, beside what was served before. tweak may change the server first.
func (d *door) serve(h http.Handler, tweak func(*http.Server)) {
	d.srv = httptest.NewUnstartedServer(h)
	d.srv.Config = Server(h)
	if tweak != nil {
		tweak(d.srv.Config)
	}
	d.srv.Start()
	d.t.Cleanup(d.srv.Close)
	d.c = client.New(d.srv.URL, string(d.token), client.WithPoll(time.Hour))
}

func (d *door) handler() http.Handler {
	c := Config{
		Store: d.db, Auth: identity.WithToken(d.token), Now: d.clock, NewID: d.nextID, Placer: d.placer,
		Nodes: func(id model.NodeID) (wire.Node, bool) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.node, d.online && id == "n1"
		},
		Info:     client.Info{Version: "test", Started: epoch},
		Shutdown: func(s client.Shutdown) { d.asked <- s },
		Logger:   slog.New(slog.NewTextHandler(&d.log, nil)),
	}
	if d.more != nil {
		d.more(&c)
	}
	h, err := New(c)
	if err != nil {
		d.t.Fatal(err)
	}
	return h
}

// clock moves a second on at every look, so that what happens later is newer.
func (d *door) clock() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = d.now.Add(time.Second)
	return d.now
}

func (d *door) nextID() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ids++
	return fmt.Sprintf("d%d", d.ids)
}

func (d *door) put(fn func(*state.Tx)) {
	d.t.Helper()
	err := d.db.Update(d.t.Context(), func(tx *state.Tx) error { fn(tx); return nil })
	if err != nil {
		d.t.Fatal(err)
	}
}

// run makes an instance of the app's newest version and returns it for changes before it is written.
func (d *door) run(id model.InstanceID, app model.AppID, change func(*model.Instance)) {
	d.t.Helper()
	d.put(func(tx *state.Tx) {
		i := &model.Instance{ID: id, App: app, Version: tx.App(app).Version, Created: d.clock(), Desired: model.Run, Node: "n1",
			Status: model.Status{Phase: model.PhaseRunning, Attempt: 1, Ready: true}}
		if change != nil {
			change(i)
		}
		tx.PutInstance(i)
	})
}

// finish ends the app's deployment as the orchestrator would.
func (d *door) finish(app model.AppID, st model.DeploymentState, message string) {
	d.t.Helper()
	d.put(func(tx *state.Tx) {
		a := *tx.App(app)
		dep := *tx.Deployment(a.Deployment)
		dep.State, dep.Message, dep.Ended = st, message, epoch
		tx.PutDeployment(&dep)
		if st == model.DeploySucceeded {
			a.Stable = dep.To
			tx.PutApp(&a)
		}
		tx.Emit(model.Event{Type: "deployment." + string(st), App: app, Deployment: dep.ID, Message: "deployment has ended"})
	})
}

// call sends a request as it is and returns status and body.
func (d *door) call(method, path, body string, header ...string) (int, string, http.Header) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, d.srv.URL+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+string(d.token))
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func web(n int) *model.Spec {
	return &model.Spec{ID: "/shop/web", Instances: &n, Containers: []model.Container{{Command: []string{"serve"}}},
		Endpoints: []model.Endpoint{{Name: "http"}}}
}

func (d *door) create(spec *model.Spec) client.Change {
	d.t.Helper()
	return must(d.c.CreateApp(d.t.Context(), spec))(d.t)
}

// must ends the test on an error.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// readLine reads one line of a stream.
func readLine(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("read line: %v (got %q)", err, line)
	}
	return strings.TrimSuffix(line, "\n")
}

// panicStore fails as only a mistake in our own code can.
type panicStore struct{ state.Store }

func (panicStore) View() state.View { panic("a secret of the server") }
