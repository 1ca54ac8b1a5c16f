package show

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func before(d time.Duration) time.Time { return now.Add(-d) }

func instance(id, app, state, why string, port int) client.Instance {
	i := client.Instance{
		Instance: model.Instance{ID: model.InstanceID(id), App: model.AppID(app), Version: 2, Created: before(3 * time.Minute),
			Node: "n-7f3k", Status: model.Status{Phase: model.PhaseRunning}},
		Addr: "10.0.0.4", State: state, Why: why, Restarts: 1,
	}
	if port != 0 {
		i.Endpoints = map[string]int{"http": port}
	}
	return i
}

func deployment() model.Deployment {
	return model.Deployment{ID: "d-k3v9q2", App: "/shop/web", Kind: model.DeployUpdate, From: 1, To: 2, Created: before(90 * time.Second),
		State: model.DeployRunning, Done: 1, Want: 3, Message: "1 of 3 instances is healthy; waiting for web-bbbb to pass its checks"}
}

func apps() []client.AppSummary {
	d := deployment()
	return []client.AppSummary{
		{ID: "/redis", Version: 1, Target: 1, Instances: 1, Running: 1, Healthy: 1, Created: before(50 * time.Hour), State: "running",
			Resources: model.Resources{CPUs: 500, Memory: 256 * model.MiB}},
		{ID: "/shop/web", Version: 2, Target: 2, Instances: 3, Running: 2, Healthy: 1, Created: before(3 * time.Hour), State: "deploying",
			Deployment: &d, Labels: map[string]string{"team": "shop", "tier": "front"}, Resources: model.Resources{CPUs: 250, Memory: 64 * model.MiB, Disk: model.GiB},
			Why: "1 node lacks memory: wants 64 MiB, most free is 12 MiB on n-7f3k"},
	}
}

func instances() []client.Instance {
	pending := instance("web-cccc", "/shop/web", "pending", "1 node lacks memory:\nwants 64 MiB, most free is 12 MiB on n-7f3k", 0)
	pending.Node, pending.Status.Phase, pending.Restarts = "", model.PhasePending, 0
	both := instance("redis-dddd", "/redis", "running", "", 6379)
	both.Endpoints["admin"] = 8001
	return []client.Instance{
		instance("web-aaaa", "/shop/web", "running", "", 31000), instance("web-bbbb", "/shop/web", "not-ready", "http check: connection refused", 31001),
		pending, both,
	}
}

func versions() []client.Version {
	spec := func(image string) *model.Spec { return &model.Spec{Containers: []model.Container{{Image: image}}} }
	return []client.Version{
		{Version: 2, Created: before(time.Minute), Deployed: true, Spec: spec("nginx:1.28")},
		{Version: 1, Created: before(3 * time.Hour), Stable: true, Note: "roll back to version 3", Spec: spec("nginx:1.27")},
	}
}

func events() []model.Event {
	return []model.Event{
		{Seq: 1, At: before(2 * time.Minute), Type: "app.updated", App: "/shop/web", Message: "version 2"},
		{Seq: 2, At: before(time.Minute), Type: "instance.running", App: "/shop/web", Instance: "web-aaaa", Message: "/shop/web: web-aaaa runs on n-7f3k"},
		{Seq: 3, At: before(time.Second), Type: "node.ready", Node: "n-7f3k", Message: "connected"},
	}
}

func node() client.NodeDetail {
	return client.NodeDetail{
		Node: model.Node{ID: "n-7f3k", Name: "rack1-a", Addr: "10.0.0.4", State: model.NodeReady, Seen: before(4 * time.Second),
			Capacity: model.Resources{CPUs: 2000, Memory: 8 * model.GiB, Disk: 100 * model.GiB}, Ports: model.PortRange{First: 31000, Last: 32000},
			OCI: model.Ability{OK: true, Why: "containerd 2.4.2"}, Isolated: model.Ability{Why: "gantry does not run as root"},
			Attributes: map[string]string{"os": "linux", "arch": "amd64"}, Version: "0.1.0"},
		Used: model.Resources{CPUs: 750, Memory: 320 * model.MiB}, Instances: 4,
	}
}

func usage() *client.Usage {
	return &client.Usage{
		Nodes: []client.NodeUsage{{Node: "n-7f3k", Name: "rack1-a", Usage: model.Usage{CPUs: 0.5, Memory: 2 * model.GiB, Disk: 10 * model.GiB},
			Capacity: model.Resources{CPUs: 2000, Memory: 8 * model.GiB, Disk: 100 * model.GiB}}},
		Instances: []client.InstanceUsage{{Instance: "web-aaaa", App: "/shop/web", Usage: model.Usage{CPUs: 0.2, Memory: 60 * model.MiB},
			Limit: model.Resources{CPUs: 250, Memory: 64 * model.MiB}}},
	}
}

// What people see, page by page: without a terminal, on a narrow one and with colours.
func TestGolden(t *testing.T) {
	time.Local = time.UTC
	n, detail := node(), client.AppDetail{AppSummary: apps()[1], List: instances()[:3], Stable: 1}
	pages := map[string]func(p *Printer){
		"apps":        func(p *Printer) { p.Apps(apps(), instances()) },
		"instances":   func(p *Printer) { p.Instances(instances(), true) },
		"versions":    func(p *Printer) { p.Versions(versions()) },
		"deployments": func(p *Printer) { p.Deployments([]model.Deployment{deployment()}, true) },
		"nodes":       func(p *Printer) { p.Nodes([]client.NodeDetail{n}) },
		"node":        func(p *Printer) { p.Node(&n, instances()) },
		"images": func(p *Printer) {
			p.Images([]client.Image{{Name: "registry.example/nginx:1.27", Digest: "sha256:0123456789abcdef0123", Size: 71 * model.MiB, Created: before(time.Hour)}})
		},
		"simulation": func(p *Printer) {
			p.Simulation([]SimulationRow{
				{Policy: "pack", GPU: 95.98, GPUs: 6212, CPU: 84.78, Memory: 62.76, Fragmented: 3.9, Asked: 10781, Placed: 8536},
				{Policy: "spread", GPU: 93.64, GPUs: 6212, CPU: 84.44, Memory: 62.77, Fragmented: 6.05, Asked: 10781, Placed: 8834, Waits: true, Waited: 12, Waiting: 1},
			})
		},
		"usage":  func(p *Printer) { p.Usage(usage()) },
		"status": func(p *Printer) { p.Status(&Status{detail, versions(), events()}) },
	}
	looks := map[string]Printer{"plain": {}, "narrow": {Width: 72}, "color": {Width: 120, Color: true}}
	for page, draw := range pages {
		for look, p := range looks {
			t.Run(page+"-"+look, func(t *testing.T) {
				var out bytes.Buffer
				p.W, p.Now = &out, now
				draw(&p)
				golden(t, page+"-"+look, out.Bytes())
			})
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name+".txt")
	if *rewrite {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; -rewrite accepts it\ngot:\n%s\nwant:\n%s", file, got, want)
	}
}

// Tables fit the terminal, whatever is in them; a pipe gets everything.
func TestWidth(t *testing.T) {
	for width := 20; width < 200; width += 7 {
		var out bytes.Buffer
		p := &Printer{W: &out, Width: width, Color: true, Now: now}
		p.Apps(apps(), instances())
		for line := range bytes.Lines(out.Bytes()) {
			if w := ansi.StringWidth(string(bytes.TrimSuffix(line, []byte("\n")))); w > width {
				t.Errorf("a line is %d wide on a terminal of %d: %s", w, width, line)
			}
		}
	}
	var out bytes.Buffer
	(&Printer{W: &out, Now: now}).Apps(apps(), instances())
	if !bytes.Contains(out.Bytes(), []byte(apps()[1].Why)) {
		t.Error("a pipe gets cut text")
	}
}

// What a program printed must not reach the terminal as control sequences, or break a table.
func TestCellsAreOneLine(t *testing.T) {
	var out bytes.Buffer
	list := instances()[:1]
	list[0].Why = "bad\x1b[2Jthing\nnext\rline"
	(&Printer{W: &out, Width: 200, Now: now}).Instances(list, true)
	if bytes.ContainsAny(out.Bytes(), "\x1b\r") || bytes.Count(out.Bytes(), []byte("\n")) != 2 {
		t.Errorf("got %q", out.String())
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 59 * time.Second: "59s", time.Minute: "1m", 59*time.Minute + 59*time.Second: "59m",
		time.Hour: "1h", 23*time.Hour + 59*time.Minute: "23h", 24 * time.Hour: "1d", 1000 * time.Hour: "41d",
	} {
		if got := Age(d); got != want {
			t.Errorf("Age(%v) = %s, want %s", d, got, want)
		}
	}
}
