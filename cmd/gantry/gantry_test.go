package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/creack/pty"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func (r result) want(t *testing.T, code int, out string, errs ...string) {
	t.Helper()
	if r.code != code || r.out != out {
		t.Errorf("code %d, want %d; printed:\n%swant:\n%s(stderr: %s)", r.code, code, r.out, out, r.err)
	}
	for _, e := range errs {
		if !strings.Contains(r.err, e) {
			t.Errorf("stderr lacks %q:\n%s", e, r.err)
		}
	}
	if len(errs) == 0 && r.err != "" {
		t.Errorf("stderr: %s", r.err)
	}
}

// Scripts rely on the exit codes, and people on the second line that says what to do next.
func TestExitCodes(t *testing.T) {
	f := newFake(t)
	f.addApp("/web")
	bad := write(t, "bad.yaml", "id: /bad\ncontainers:\n- imagee: x\n")
	refused := write(t, "refused.yaml", "id: /x\nlabels: {refuse: yes}\ncontainers:\n- name: a\n  image: b\n")
	for _, c := range []struct {
		args string
		code int
		errs []string
	}{
		{"", 0, nil},
		{"ps", 0, nil},
		{"image load /nowhere.tar", 1, []string{"/nowhere.tar", "no such file"}},
		{"run /nowhere.yaml", 1, []string{"no such file"}},
		{"pss", 2, []string{`no command "gantry pss"`, "did you mean ps?", "gantry --help"}},
		{"image lss", 2, []string{"did you mean ls?"}},
		{"ps --bogus", 2, []string{"--bogus", "gantry ps --help"}},
		{"scale web", 2, []string{"write gantry scale APP N"}},
		{"scale web many", 2, []string{`"many" is not a number of instances`}},
		{"scale web 1 2", 2, []string{`"2" is too much`}},
		{"scale WEB 1", 2, []string{"lower-case"}},
		{"run --cpus lots nginx", 2, []string{"not a number of cores"}},
		{"run", 2, []string{"say what to run"}},
		{"run --port 80 nginx", 2, []string{"write http:80"}},
		{"run --name x " + bad, 2, []string{"--name is for images"}},
		{"exec web", 2, []string{"gantry exec INSTANCE"}},
		{"status nothere", 3, []string{"no app /nothere", "gantry ps"}},
		{"ps nothere", 3, []string{"no app /nothere"}},
		{"rm nothere", 3, []string{"no app /nothere"}},
		{"logs nothere", 3, []string{"no app or instance nothere"}},
		{"nodes nothere", 3, []string{"no node nothere"}},
		{"deployment pause d-none", 3, []string{"no deployment d-none"}},
		{"deployment pause /web", 4, []string{"has ended"}},
		{"update web -c side --image x", 3, []string{`no container "side"`}},
		{"run " + bad, 4, []string{bad + ":3: containers[0].imagee: no such field"}},
		{"run " + refused, 4, []string{refused + ":5: containers[0].image: is not liked"}},
		{"run --name taken nginx", 0, nil},
		{"run registry.example/web:1", 4, []string{"app /web already", "--name"}},
		{"--token wrong ps", 4, []string{"token", "GANTRY_TOKEN"}},
		{"--addr 127.0.0.1:1 ps", 6, []string{"cannot reach", "gantry up"}},
		{"--data-dir /nowhere ps", 6, []string{"no Gantry runs here", "gantry up"}},
		{"--token-file /nowhere ps", 1, []string{"token"}},
	} {
		r := gantry(t, f, "", strings.Fields(c.args)...)
		if r.code != c.code {
			t.Errorf("gantry %s: code %d, want %d\n%s%s", c.args, r.code, c.code, r.out, r.err)
		}
		for _, e := range c.errs {
			if !strings.Contains(r.err, e) {
				t.Errorf("gantry %s: stderr lacks %q:\n%s", c.args, e, r.err)
			}
		}
		if c.code != 0 && (!strings.HasPrefix(r.err, "gantry: ") || strings.Contains(r.err, "Usage:")) {
			t.Errorf("gantry %s: stderr is not one clear line: %s", c.args, r.err)
		}
	}
}

// steps is a script of a deployment that ends in state.
func steps(state model.DeploymentState, last string) []model.Deployment {
	return []model.Deployment{
		{State: model.DeployRunning, Want: 2, Message: "starting 2 instances"},
		{State: model.DeployRunning, Done: 1, Want: 2, Message: "starting 2 instances"},
		{State: model.DeployRunning, Done: 1, Want: 2, Message: "waiting for one more"},
		{State: state, Done: 2, Want: 2, Message: last},
	}
}

// A change is waited for; a pipe sees each sentence once.
func TestWaitPrintsEachSentenceOnce(t *testing.T) {
	f := newFake(t)
	f.addApp("/web")
	f.next = steps(model.DeploySucceeded, "done")
	gantry(t, f, "", "scale", "web", "2").want(t, 0,
		"/web: starting 2 instances\n/web: waiting for one more\n/web is running: 2 of 2 healthy, version 1, at 127.0.0.1:31000\n")
	gantry(t, f, "", "restart", "--no-wait", "web").want(t, 0, "d-2\n")
	gantry(t, f, "", "rm", "web").want(t, 0, "/web is gone\n")
}

func TestWaitEndsBadly(t *testing.T) {
	for state, word := range map[model.DeploymentState]string{
		model.DeployFailed: "failed", model.DeployRolledBack: "rolled back", model.DeploySuperseded: "superseded", model.DeployCancelled: "cancelled",
	} {
		f := newFake(t)
		f.addApp("/web")
		f.next = []model.Deployment{{State: state, Message: "web-bbbb never became healthy"}}
		gantry(t, f, "", "update", "web", "--image", "x").want(t, 4, "", word, "never became healthy", "gantry logs /web")
	}
	f := newFake(t)
	f.addApp("/web")
	f.next = []model.Deployment{{State: model.DeployRunning, Want: 1, Message: "no node has 4 TiB memory"}}
	f.apps["/web"].Why = "1 node lacks memory: wants 4 TiB"
	r := gantry(t, f, "", "restart", "web", "--timeout", "50ms")
	r.want(t, 5, "/web: no node has 4 TiB memory\n", "not done after 50ms: 1 node lacks memory: wants 4 TiB", "gantry status /web")
}

// Ctrl-C ends the waiting, not the deployment.
func TestInterrupted(t *testing.T) {
	f := newFake(t)
	f.addApp("/web")
	f.next = []model.Deployment{{State: model.DeployRunning, Want: 1, Message: "working"}}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	gantryCtx(t, ctx, f, "", "restart", "web").want(t, 130, "/web: working\n", "stopped waiting", "it goes on", "gantry status /web")
	if len(f.requests) != 1 {
		t.Errorf("sent %v", f.requests)
	}
}

// The deployment of a removed app goes with it.
func TestRemovedWhileWaiting(t *testing.T) {
	f := newFake(t)
	f.addApp("/web")
	f.next = []model.Deployment{{State: model.DeployRunning, Message: "stopping 1 instance"}}
	time.AfterFunc(100*time.Millisecond, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		clear(f.scripts)
	})
	gantry(t, f, "", "rm", "web").want(t, 0, "/web: stopping 1 instance\n/web is gone\n")
}

// A file is sent as it is, app after app, and the command says what became of each.
func TestRunFile(t *testing.T) {
	f := newFake(t)
	f.addApp("/web")
	text := "id: /web\ncontainers: [{image: a}]\n---\nid: /new\ncontainers: [{image: b}]\n"
	want := "updated /web to version 2\ncreated /new\n/web is running: 1 of 1 healthy, version 2, at 127.0.0.1:31000\n" +
		"/new is running: 1 of 1 healthy, version 1, at 127.0.0.1:31000\n"
	gantry(t, f, "", "run", write(t, "two.yml", text)).want(t, 0, want)
	gantry(t, f, `{"id": "/json", "containers": [{"image": "c"}]}`, "run", "--no-wait", "-").want(t, 0, "d-3\n")
	if got := f.apps["/json"]; got == nil || got.Spec.Containers[0].Image != "c" {
		t.Errorf("got %+v", got)
	}
	// One bad app in a file, and nothing of it is sent.
	before := len(f.requests)
	r := gantry(t, f, "", "run", write(t, "half.yaml", "id: /good\ncontainers: [{image: a}]\n---\nid: /bad\n"))
	if r.code != 4 || len(f.requests) != before {
		t.Errorf("code %d, sent %v", r.code, f.requests[before:])
	}
}

// One app that fails hides neither the others nor that it failed.
func TestRunFileFailsInPart(t *testing.T) {
	f := newFake(t)
	f.next = []model.Deployment{{State: model.DeployFailed, Message: "crashed"}}
	text := "id: /bad\ncontainers: [{image: a}]\n---\nid: /good\ncontainers: [{image: b}]\n"
	gantry(t, f, "", "run", write(t, "two.yml", text)).want(t, 4,
		"created /bad\ncreated /good\n/good is running: 1 of 1 healthy, version 1, at 127.0.0.1:31000\n", "/bad", "crashed")
}

// An update changes what was named and nothing else, and begins again when someone else was faster.
func TestUpdate(t *testing.T) {
	f := newFake(t)
	f.addApp("/web").Spec.Containers[0].Shell = "old"
	f.conflict = 2
	r := gantry(t, f, "", "update", "web", "--env", "B=2", "--unset-env", "A", "--memory", "64MiB", "--label", "x=y", "--", "new", "--flag")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	b, err := json.Marshal(f.apps["/web"].Spec)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"id":"/web","containers":[{"image":"nginx:1","command":["new","--flag"],"env":{"B":"2"},"memory":"64MiB"}],"labels":{"x":"y"}}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	if len(f.requests) != 3 {
		t.Errorf("sent %v", f.requests)
	}
	f.conflict = 100
	gantry(t, f, "", "update", "web", "--image", "x").want(t, 4, "", "changed")
	file := write(t, "web.yaml", "id: /web\ncontainers: [{image: file}]")
	f.conflict = 0
	if r := gantry(t, f, "", "update", "web", "--file", file); r.code != 0 || f.apps["/web"].Spec.Containers[0].Image != "file" {
		t.Errorf("--file: %+v, %+v", r, f.apps["/web"].Spec)
	}
}

// Pages and their JSON, and nothing but JSON on the standard output when that was asked for.
func TestLooking(t *testing.T) {
	f := newFake(t)
	f.addApp("/web")
	for args, want := range map[string]string{
		"ps": "/web  running      1/1        1", "ps web": "web-aaaa  running", "ps -a": "/web", "status web": "1 asked for",
		"versions web": "nginx:1", "deployments": "d-first", "nodes": "here", "nodes here": "Instances", "top": "here",
		"image ls": "nginx:1", "events": "node.ready", "events --tail 1": "node.ready", "version": "server 9.9",
		"scale web 1": "running", "rollback web --to 1": "running", "deployment resume /web": "running",
	} {
		if r := gantry(t, f, "", strings.Fields(args)...); r.code != 0 || !strings.Contains(r.out, want) || r.err != "" {
			t.Errorf("gantry %s: code %d, want %q in:\n%s%s", args, r.code, want, r.out, r.err)
		}
		r := gantry(t, f, "", strings.Fields(args+" --json")...)
		dec := json.NewDecoder(strings.NewReader(r.out))
		for n := 0; dec.More() || n == 0; n++ {
			var v any
			if err := dec.Decode(&v); err != nil || r.code != 0 {
				t.Errorf("gantry %s --json: code %d, %v:\n%s", args, r.code, err, r.out)
				break
			}
		}
	}
	gantry(t, newFake(t), "", "ps").want(t, 0, "no apps yet; run one with gantry run IMAGE, or see gantry run --help\n")
	gantry(t, newFake(t), "", "ps", "--json").want(t, 0, "[]\n")
	gantry(t, f, "archive", "image", "load", "-").want(t, 0, "loaded web:1\n")
	gantry(t, f, "nonsense", "image", "load", "-").want(t, 4, "", "no archive")
}

func TestLogs(t *testing.T) {
	f := newFake(t)
	a := f.addApp("/web")
	line := func(stream string) string { return stream + " of web-aaaa in main, tail -1\n" }
	r := gantry(t, f, "", "logs", "web-aaaa")
	if r.code != 0 || r.out != line("stdout") || r.err != line("stderr") {
		t.Errorf("an instance: %+v", r)
	}
	gantry(t, f, "", "logs", "--stdout", "web").want(t, 0, "web-aaaa | "+line("stdout"))
	gantry(t, f, "", "logs", "--stdout", "--json", "web-aaaa").want(t, 0,
		`{"instance":"web-aaaa","container":"main","stream":"stdout","line":"stdout of web-aaaa in main, tail -1\n"}`+"\n")
	a.List[0].Status.Tasks = []model.TaskStatus{{Name: "main"}, {Name: "side"}}
	gantry(t, f, "", "logs", "--stdout", "--tail", "5", "/web").want(t, 0,
		"web-aaaa/main | stdout of web-aaaa in main, tail 5\nweb-aaaa/side | stdout of web-aaaa in side, tail 5\n")
}

// Following an app picks up instances that come later, and ends with Ctrl-C.
func TestLogsFollow(t *testing.T) {
	f := newFake(t)
	a := f.addApp("/web")
	second := a.List[0]
	second.ID = "web-bbbb"
	ctx, cancel := context.WithCancel(t.Context())
	var out watched
	out.on = func(text string) {
		switch {
		case strings.Contains(text, "web-aaaa | stdout"):
			f.mu.Lock()
			a.List = append(a.List, second)
			f.mu.Unlock()
		case strings.Contains(text, "web-bbbb | stdout"):
			cancel()
		}
	}
	c := newCLI(strings.NewReader(""), &out, &out)
	if code := c.run(ctx, []string{"--addr", f.URL, "--token", fakeToken, "logs", "-f", "web"}); code != 130 {
		t.Errorf("code %d", code)
	}
	if ctx.Err() == nil {
		t.Error("the second instance was not followed")
	}
}

// watched calls on with everything that is written.
type watched struct{ on func(string) }

func (w *watched) Write(b []byte) (int, error) { w.on(string(b)); return len(b), nil }

// The exit code of exec is the program's own, and its streams are apart.
func TestExec(t *testing.T) {
	f := newFake(t)
	f.addApp("/web")
	gantry(t, f, "", "exec", "web-aaaa", "--", "echo", "-n", "--json").want(t, 42, "echo -n --json\n", "tty \n")
	gantry(t, f, "", "exec", "web", "echo").want(t, 42, "echo\n", "tty")
	gantry(t, f, "some input", "exec", "-it", "web", "--", "cat").want(t, 42, "cat\nsome input", "tty true")
	gantry(t, f, "", "exec", "web", "--", "broken").want(t, 1, "broken\n", "no such program")
	f.apps["/web"].List[0].Status.Phase = model.PhaseBackoff
	gantry(t, f, "", "exec", "/web", "--", "echo").want(t, 4, "", "no running instance", "gantry status /web")
}

// On the one line of a terminal there is no room to say twice how many are healthy.
func TestAfterTally(t *testing.T) {
	for in, want := range map[string]string{
		"0 of 2 instances of version 1 are healthy; waits: a": "waits: a",
		"all 2 instances of version 1 are healthy":            "all 2 instances of version 1 are healthy",
		"no progress: 0 of 1 is healthy; waits: a":            "no progress: 0 of 1 is healthy; waits: a",
	} {
		if got := afterTally(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// An empty name is a mistake to be told, such as a variable of a script that is not set.
func TestRunEmptyName(t *testing.T) {
	if _, _, err := splitDash([]string{""}, -1); exitCode(err) != exitUsage {
		t.Errorf("got %v", err)
	}
}

func TestDown(t *testing.T) {
	f := newFake(t)
	gantry(t, f, "", "down", "--keep-instances").want(t, 0, "Gantry is down; start it again with gantry up --data-dir /data\n")
	if f.shutdown == nil || !f.shutdown.KeepInstances {
		t.Errorf("asked for %+v", f.shutdown)
	}
}

// The address and the token come from flags, else the environment.
func TestConnectPrecedence(t *testing.T) {
	f := newFake(t)
	file := write(t, "token", fakeToken+"\n")
	env := map[string]string{"GANTRY_ADDR": "127.0.0.1:1", "GANTRY_TOKEN": "wrong"}
	for _, args := range [][]string{{"--addr", f.URL, "--token", fakeToken, "ps"}, {"--addr", f.URL, "--token-file", file, "ps"}} {
		c := newCLI(nil, &strings.Builder{}, &strings.Builder{})
		c.getenv = func(k string) string { return env[k] }
		if code := c.run(t.Context(), args); code != 0 {
			t.Errorf("%v: code %d", args, code)
		}
	}
}

// Shells can complete commands, and the names of apps and instances.
func TestCompletion(t *testing.T) {
	f := newFake(t)
	f.addApp("/web")
	f.addApp("/shop/api")
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := gantry(t, nil, "", "completion", shell); r.code != 0 || !strings.Contains(r.out, "gantry") {
			t.Errorf("%s: %+v", shell, r)
		}
	}
	for args, want := range map[string]string{
		"status ": "shop/api web", "status /": "/shop/api /web", "status w": "web", "rm web s": "shop/api", "status web ": "",
		"logs ": "shop/api web web-aaaa api-aaaa", "exec web": "web web-aaaa", "nodes n": "n-1", "nodes h": "here", "node drain h": "here", "role rm /b": "/batch", "pool set d": "default",
		"reservation rm ": "db-a", "volume rm ": "/db:1:data", "defrag --pool ": "default", "run --role ": "/ /batch", "plan --placement s": "spread", "events --app w": "web",
	} {
		r := gantry(t, f, "", append([]string{"__complete"}, strings.Split(args, " ")...)...)
		got := strings.Fields(regexp.MustCompile(`(?m)^:\d+$`).ReplaceAllString(r.out, ""))
		if len(got) != len(strings.Fields(want)) {
			t.Errorf("%q completes to %v, want %s", args, got, want)
		}
		for _, w := range strings.Fields(want) {
			if !strings.Contains(r.out, w+"\n") {
				t.Errorf("%q completes to %v, want %s", args, got, want)
			}
		}
	}
	if r := gantry(t, nil, "", "__complete", "--addr", "127.0.0.1:1", "status", ""); r.code != 0 || strings.Contains(r.out, "web") {
		t.Errorf("without a server: %+v", r)
	}
}

// Every command that is shown explains itself.
func TestHelp(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			if sub.Hidden || sub.Name() == "completion" || sub.Name() == "help" {
				continue
			}
			if sub.Short == "" || sub.Example == "" {
				t.Errorf("%s has no short text or no example", sub.CommandPath())
			}
			if r := gantry(t, nil, "", append(strings.Fields(sub.CommandPath())[1:], "--help")...); r.code != 0 || !strings.Contains(r.out, "Usage:") {
				t.Errorf("%s --help: %+v", sub.CommandPath(), r)
			}
			walk(sub)
		}
	}
	walk(newCLI(nil, nil, nil).root())
}

// onTerminal runs a command line on a terminal of 60 columns and returns what the terminal got.
func onTerminal(t *testing.T, f *fake, args ...string) (int, string) {
	t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	defer master.Close()
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 20, Cols: 60}); err != nil {
		t.Fatal(err)
	}
	c := newCLI(tty, tty, tty)
	c.options = []client.Option{client.WithPoll(150 * time.Millisecond)}
	got := make(chan string)
	go func() {
		b, _ := io.ReadAll(master) // ends with an error once the terminal is closed
		got <- string(b)
	}()
	code := c.run(t.Context(), append([]string{"--addr", f.URL, "--token", fakeToken}, args...))
	tty.Close()
	return code, <-got
}

// On a terminal progress is redrawn in place, states have colours and nothing is wider than the screen; NO_COLOR and a
// dumb terminal are respected.
func TestTerminal(t *testing.T) {
	f := newFake(t)
	f.addApp("/web").Why = strings.Repeat("long ", 40)
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	f.next = steps(model.DeploySucceeded, "done")
	code, out := onTerminal(t, f, "scale", "web", "2")
	if code != 0 || !strings.Contains(out, clearLine) || !strings.Contains(out, "waiting for one more") ||
		!strings.HasSuffix(out, clearLine+"/web is running: 2 of 2 healthy, version 1, at 127.0.0.1:31000\r\n") {
		t.Errorf("code %d, %q", code, out)
	}
	for frame := range strings.SplitSeq(out, clearLine) {
		if w := ansi.StringWidth(strings.TrimSpace(frame)); w > 60 && !strings.Contains(frame, "is running") {
			t.Errorf("progress is %d wide: %q", w, frame)
		}
	}
	if _, out := onTerminal(t, f, "ps"); !strings.Contains(out, "\x1b[32mrunning") || !strings.Contains(out, "…") {
		t.Errorf("ps: %q", out)
	}
	t.Setenv("NO_COLOR", "1")
	if _, out := onTerminal(t, f, "ps"); strings.Contains(out, "\x1b[") {
		t.Errorf("ps with NO_COLOR: %q", out)
	}
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "dumb")
	f.next = steps(model.DeploySucceeded, "done")
	if _, out := onTerminal(t, f, "scale", "web", "2"); strings.ContainsAny(out, "\x1b") || strings.Count(out, "starting 2") != 1 {
		t.Errorf("dumb: %q", out)
	}
}

// exec -t tells the program the size of the terminal, and gives the terminal back as it was.
func TestExecTerminal(t *testing.T) {
	f := newFake(t)
	f.addApp("/web")
	t.Setenv("TERM", "xterm")
	code, out := onTerminal(t, f, "exec", "-t", "web", "--", "size")
	if code != 42 || !strings.Contains(out, "60x20") {
		t.Errorf("code %d, %q", code, out)
	}
}
