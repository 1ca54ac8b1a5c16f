package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// started returns a door with one running instance, web-a.
func started(t *testing.T) *door {
	t.Helper()
	d := newDoor(t)
	d.create(web(1))
	d.run("web-a", shop, nil)
	return d
}

func TestLogs(t *testing.T) {
	d := started(t)
	ctx := t.Context()
	log := newLog("one\ntwo\nthree\n")
	d.node.logs["web-a.main.stdout"] = log
	d.node.logs["web-a.main.stderr"] = newLog("oops\n")
	read := func(o client.LogOptions) string {
		r := must(d.c.Logs(ctx, "web-a", o))(t)
		defer r.Close()
		return string(must(io.ReadAll(r))(t))
	}
	for want, o := range map[string]client.LogOptions{
		"one\ntwo\nthree\n": {Tail: -1}, "two\nthree\n": {Tail: 2}, "": {}, "oops\n": {Tail: -1, Stream: "stderr", Container: "main"},
	} {
		if got := read(o); got != want {
			t.Errorf("%+v: %q, want %q", o, got, want)
		}
	}
	if _, body, h := d.call("GET", "/v1/instances/web-a/logs", ""); body != "one\ntwo\nthree\n" || h.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("by default %q, %s", body, h.Get("Content-Type"))
	}
	follow := must(d.c.Logs(ctx, "web-a", client.LogOptions{Tail: 1, Follow: true}))(t)
	defer follow.Close()
	lines := bufio.NewReader(follow)
	if got := readLine(t, lines); got != "three" {
		t.Errorf("follow begins with %q", got)
	}
	log.write("four\n") // must come before the stream ends
	if got := readLine(t, lines); got != "four" {
		t.Errorf("follow goes on with %q", got)
	}
	log.end()
	if rest := must(io.ReadAll(lines))(t); len(rest) != 0 {
		t.Errorf("follow ends with %q", rest)
	}
}

// A log that breaks off must not look complete.
func TestLogsBreakOff(t *testing.T) {
	d := started(t)
	log := newLog("one\n")
	d.node.logs["web-a.main.stdout"] = log
	r := must(d.c.Logs(t.Context(), "web-a", client.LogOptions{Tail: -1, Follow: true}))(t)
	defer r.Close()
	lines := bufio.NewReader(r)
	readLine(t, lines)
	d.srv.CloseClientConnections()
	if _, err := lines.ReadString('\n'); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the end is %v, want an error", err)
	}
}

// Shutting down must not wait for those who only watch.
func TestShutdownEndsStreams(t *testing.T) {
	d := started(t)
	d.node.logs["web-a.main.stdout"] = newLog("one\n")
	r := must(d.c.Logs(t.Context(), "web-a", client.LogOptions{Tail: -1, Follow: true}))(t)
	defer r.Close()
	readLine(t, bufio.NewReader(r))
	events := sse(t, d, "", "follow=true")
	events.next()
	ended := make(chan error, 1)
	go func() {
		_, err := d.c.Exec(t.Context(), "web-a", client.ExecOptions{Command: []string{"sleep"}})
		ended <- err
	}()
	<-d.node.execs
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := d.srv.Config.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if cause := <-d.node.aborted; !errors.Is(cause, errClosing) {
		t.Errorf("the program was ended by %v", cause)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("exec ended with %v", err)
	}
}

// Who opened a stream with a token that is replaced meanwhile is cut off.
func TestReplacedTokenEndsStreams(t *testing.T) {
	d := newDoor(t)
	auth := identity.WithToken(d.token)
	d.more = func(c *Config) { c.Auth = auth }
	d.serve(d.handler(), nil)
	d.create(web(1))
	d.run("web-a", shop, nil)
	d.node.logs["web-a.main.stdout"] = newLog("one\n")
	r := must(d.c.Logs(t.Context(), "web-a", client.LogOptions{Tail: -1, Follow: true}))(t)
	defer r.Close()
	lines := bufio.NewReader(r)
	readLine(t, lines)
	events := sse(t, d, "", "follow=true")
	events.next()
	ended := make(chan error, 1)
	go func() {
		_, err := d.c.Exec(t.Context(), "web-a", client.ExecOptions{Command: []string{"sleep"}})
		ended <- err
	}()
	<-d.node.execs
	other, err := identity.NewToken(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	auth.Replace(other)
	if cause := <-d.node.aborted; !errors.Is(cause, errReplaced) {
		t.Errorf("the program was ended by %v", cause)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "replaced") {
		t.Errorf("exec ended with %v", err)
	}
	for _, from := range []io.Reader{lines, events.lines} {
		_, _ = io.Copy(io.Discard, from) // which ends
	}
}

// stream is an open stream of events.
type stream struct {
	t     *testing.T
	lines *bufio.Reader
	body  io.Closer
}

func sse(t *testing.T, d *door, last, query string) *stream {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", d.srv.URL+"/v1/events?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+string(d.token))
	req.Header.Set("Accept", "text/event-stream")
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Fatalf("%d %s", resp.StatusCode, ct)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return &stream{t, bufio.NewReader(resp.Body), resp.Body}
}

// next returns the id and type of the next event.
func (s *stream) next() string {
	s.t.Helper()
	id := strings.TrimPrefix(readLine(s.t, s.lines), "id: ")
	kind := strings.TrimPrefix(readLine(s.t, s.lines), "event: ")
	data := readLine(s.t, s.lines)
	if !strings.HasPrefix(data, `data: {"seq":`+id+`,`) || readLine(s.t, s.lines) != "" {
		s.t.Errorf("event %s has data %s", id, data)
	}
	return id + " " + kind
}

func TestEventsFollowAndResume(t *testing.T) {
	d := newDoor(t)
	d.create(web(1))
	s := sse(t, d, "", "")
	for _, want := range []string{"1 app.created", "2 deployment.created"} {
		if got := s.next(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	must(d.c.RestartApp(t.Context(), shop))(t)
	if got := s.next(); got != "3 app.restarted" {
		t.Errorf("live event is %s", got)
	}
	s.body.Close()
	must(d.c.ScaleApp(t.Context(), shop, 2))(t) // while nobody listens
	again := sse(t, d, "3", "since=1&app=shop/web")
	for _, want := range []string{"4 deployment.created", "5 app.scaled"} {
		if got := again.next(); got != want {
			t.Errorf("after resuming got %s, want %s", got, want)
		}
	}
	// A number from an earlier run of the server, which had counted further: all there is comes.
	if got := sse(t, d, "9999", "").next(); got != "1 app.created" {
		t.Errorf("after a restart got %s", got)
	}
	other := sse(t, d, "", "app=/other")
	spec := web(1)
	spec.ID = "/other"
	d.create(spec)
	if got := other.next(); got != "7 app.created" {
		t.Errorf("events of one app begin with %s", got)
	}
}

func TestEventsList(t *testing.T) {
	d := newDoor(t)
	ctx := t.Context()
	if got := must(d.c.Events(ctx, client.EventFilter{}))(t); got == nil || len(got) != 0 {
		t.Errorf("no events are %v", got)
	}
	d.create(web(1))
	if got := must(d.c.Events(ctx, client.EventFilter{Since: 1}))(t); len(got) != 1 || got[0].Seq != 2 {
		t.Errorf("events since 1: %+v", got)
	}
	if got := must(d.c.Events(ctx, client.EventFilter{App: "/x"}))(t); len(got) != 0 {
		t.Errorf("events of another app: %+v", got)
	}
}

// Following survives the loss of a connection: each event comes once.
func TestClientFollowsAcrossConnections(t *testing.T) {
	d := newDoor(t)
	d.create(web(1))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []uint64
	enough := errors.New("enough")
	err := d.c.FollowEvents(ctx, client.EventFilter{}, func(e model.Event) error {
		got = append(got, e.Seq)
		switch e.Seq {
		case 2:
			d.srv.CloseClientConnections()
			d.put(func(tx *state.Tx) { tx.Emit(model.Event{Type: "a.b"}); tx.Emit(model.Event{Type: "a.c"}) })
		case 4:
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || fmt.Sprint(got) != "[1 2 3 4]" {
		t.Errorf("%v, %v", got, err)
	}
	d.c = client.New(d.srv.URL, "wrong")
	if err := d.c.FollowEvents(ctx, client.EventFilter{}, nil); status(err) != http.StatusUnauthorized {
		t.Errorf("a refusal is not final: %v", err)
	}
}

// Waiting learns of the end from an event: the poll of these clients is an hour.
func TestWaitDeployment(t *testing.T) {
	d := newDoor(t)
	c := d.create(web(3))
	var seen []string
	step := 0
	got, err := d.c.WaitDeployment(t.Context(), c.Deployment, func(dep model.Deployment) {
		seen = append(seen, fmt.Sprintf("%s %d", dep.State, dep.Done))
		step++
		d.put(func(tx *state.Tx) {
			next := *tx.Deployment(c.Deployment)
			if next.Done++; next.Done == 3 {
				next.State = model.DeploySucceeded
			}
			if !dep.State.Over() {
				tx.PutDeployment(&next)
				tx.Emit(model.Event{Type: "instance.running", App: shop})
			}
		})
	})
	if err != nil || got.State != model.DeploySucceeded || strings.Join(seen, ",") != "running 0,running 1,running 2,succeeded 3" {
		t.Errorf("%v %+v %v", seen, got, err)
	}
	if _, err := d.c.WaitDeployment(t.Context(), "none", nil); status(err) != http.StatusNotFound {
		t.Errorf("of none: %v", err)
	}
	c = must(d.c.RestartApp(t.Context(), shop))(t)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := d.c.WaitDeployment(ctx, c.Deployment, func(model.Deployment) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

func TestClientSaysUnreachable(t *testing.T) {
	d := newDoor(t)
	d.srv.Close()
	_, err := d.c.Apps(t.Context())
	if !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), d.srv.URL) {
		t.Errorf("error is %v", err)
	}
	if _, err := d.c.Exec(t.Context(), "x", client.ExecOptions{Command: []string{"x"}}); !errors.Is(err, client.ErrUnreachable) {
		t.Errorf("exec: %v", err)
	}
}

func TestExec(t *testing.T) {
	d := started(t)
	ctx := t.Context()
	var out, errs bytes.Buffer
	code, err := d.c.Exec(ctx, "web-a", client.ExecOptions{Command: []string{"both", "a b", "--x=y"}, Container: "main", Dir: "/tmp", Stdout: &out, Stderr: &errs})
	if err != nil || code != 3 || out.String() != "out" || errs.String() != "err" {
		t.Errorf("%d, %v, %q, %q", code, err, out.String(), errs.String())
	}
	call := <-d.node.execs
	if e := call.exec; strings.Join(e.Command, "|") != "both|a b|--x=y" || e.Dir != "/tmp" || e.Stdin != nil || e.TTY || e.Resize != nil || call.container != "main" {
		t.Errorf("the node was asked for %+v", call)
	}
	if code, err := d.c.Exec(ctx, "web-a", client.ExecOptions{Command: []string{"both"}}); err != nil || code != 3 {
		t.Errorf("without writers: %d, %v", code, err)
	}
	if _, err := d.c.Exec(ctx, "web-a", client.ExecOptions{Command: []string{"nosuch"}}); err == nil || !strings.Contains(err.Error(), "no program nosuch") {
		t.Errorf("no such program: %v", err)
	}
	if _, err := d.c.Exec(ctx, "web-b", client.ExecOptions{Command: []string{"both"}}); status(err) != http.StatusNotFound {
		t.Errorf("no such instance: %v", err)
	}
	if _, err := client.New(d.srv.URL, "wrong").Exec(ctx, "web-a", client.ExecOptions{Command: []string{"both"}}); status(err) != http.StatusUnauthorized {
		t.Errorf("wrong token: %v", err)
	}
	d.run("web-off", shop, func(i *model.Instance) { i.Status.Phase = model.PhaseBackoff })
	if _, err := d.c.Exec(ctx, "web-off", client.ExecOptions{Command: []string{"both"}}); status(err) != http.StatusConflict {
		t.Errorf("not running: %v", err)
	}
}

// Input and output of any size and content arrive whole.
func TestExecCopiesStreams(t *testing.T) {
	d := started(t)
	in := make([]byte, 3<<20)
	for i := range in {
		in[i] = byte(i * 7)
	}
	var out bytes.Buffer
	code, err := d.c.Exec(t.Context(), "web-a", client.ExecOptions{Command: []string{"cat"}, Stdin: bytes.NewReader(in), Stdout: &out})
	if err != nil || code != 0 || !bytes.Equal(out.Bytes(), in) {
		t.Errorf("%d, %v, %d bytes of %d", code, err, out.Len(), len(in))
	}
}

func TestExecResizes(t *testing.T) {
	d := started(t)
	sizes := make(chan client.Size)
	r, w := io.Pipe()
	lines := bufio.NewReader(r)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer w.Close()
		_, err := d.c.Exec(t.Context(), "web-a", client.ExecOptions{Command: []string{"sizes"}, TTY: true, Size: client.Size{Columns: 132, Rows: 43}, Resize: sizes, Stdout: w})
		if err != nil {
			t.Error(err)
		}
	})
	if got := readLine(t, lines); got != "132x43" {
		t.Errorf("first size is %s", got)
	}
	for _, s := range []client.Size{{Columns: 90, Rows: 30}, {Columns: 1, Rows: 1}} {
		sizes <- s
		if got := readLine(t, lines); got != fmt.Sprintf("%dx%d", s.Columns, s.Rows) {
			t.Errorf("size is %s, want %v", got, s)
		}
	}
	wg.Wait()
}

// dial opens an exec connection by hand.
func dial(t *testing.T, d *door, query string) *websocket.Conn {
	t.Helper()
	conn, _, err := websocket.Dial(t.Context(), d.srv.URL+"/v1/instances/web-a/exec?"+query,
		&websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + string(d.token)}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.CloseNow() })
	conn.SetReadLimit(1 << 20)
	return conn
}

// A program must not outlive the client that ran it.
func TestExecEndsWithItsClient(t *testing.T) {
	d := started(t)
	for name, leave := range map[string]func(*websocket.Conn){
		"closed": func(c *websocket.Conn) { _ = c.Close(websocket.StatusNormalClosure, "") },
		"cut":    func(c *websocket.Conn) { _ = c.CloseNow() },
	} {
		conn := dial(t, d, "command=sleep&stdin=true")
		<-d.node.execs
		go leave(conn)
		if cause := <-d.node.aborted; !errors.Is(cause, errClientGone) {
			t.Errorf("%s: the program was ended by %v", name, cause)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := d.c.Exec(ctx, "web-a", client.ExecOptions{Command: []string{"sleep"}})
		done <- err
	}()
	<-d.node.execs
	cancel()
	<-d.node.aborted
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the client ended with %v", err)
	}
}

// A program that writes faster than its client reads must wait, not fill the server's memory.
func TestExecHoldsBackOutput(t *testing.T) {
	d := started(t)
	conn := dial(t, d, "command=flood")
	call := <-d.node.execs
	if _, ok := call.exec.Stdout.(*channel); !ok {
		t.Fatalf("output is buffered by %T", call.exec.Stdout)
	}
	total := 0
	for {
		_, msg, err := conn.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if msg[0] == client.ChannelEnd {
			if string(msg[1:]) != `{"code":0}` {
				t.Errorf("end is %s", msg[1:])
			}
			break
		}
		if len(msg) > client.MaxExecMessage+1 {
			t.Fatalf("a message has %d bytes", len(msg))
		}
		total += len(msg) - 1
	}
	if total != 8<<20 {
		t.Errorf("%d bytes came", total)
	}
}

// Frames that make no sense end the connection and the program, nothing else.
func TestExecRefusesNonsense(t *testing.T) {
	d := started(t)
	for name, send := range map[string]struct {
		kind websocket.MessageType
		data string
	}{
		"text":      {websocket.MessageText, "hello"},
		"empty":     {websocket.MessageBinary, ""},
		"channel":   {websocket.MessageBinary, "\x01x"},
		"size":      {websocket.MessageBinary, "\x04big"},
		"too large": {websocket.MessageBinary, "\x00" + strings.Repeat("x", client.MaxExecMessage+1)},
	} {
		conn := dial(t, d, "command=sleep&stdin=true&tty=true")
		<-d.node.execs
		if err := conn.Write(t.Context(), send.kind, []byte(send.data)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if cause := <-d.node.aborted; cause == nil {
			t.Errorf("%s: the program was not ended", name)
		}
	}
}

// A page of another origin must not run programs through the browser of a user.
func TestExecRefusesOtherOrigins(t *testing.T) {
	d := started(t)
	_, resp, err := websocket.Dial(t.Context(), d.srv.URL+"/v1/instances/web-a/exec?command=both", &websocket.DialOptions{
		HTTPHeader: http.Header{"Authorization": {"Bearer " + string(d.token)}, "Origin": {"http://evil.example"}}})
	if err == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("%v", err)
	}
}
