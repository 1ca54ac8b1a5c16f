package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/test/images"
)

// dig asks a node's DNS server as people do, and returns the lines of its short answer, sorted.
func (c *cluster) dig(at netip.AddrPort, args ...string) []string {
	c.t.Helper()
	all := append([]string{"@" + at.Addr().String(), "-p", fmt.Sprint(at.Port()), "+short", "+timeout=2", "+tries=1"}, args...)
	out, err := exec.CommandContext(testContext(c.t), "dig", all...).Output()
	if err != nil {
		c.t.Fatalf("dig %v: %v (package bind9-dnsutils)", args, err)
	}
	lines := strings.Fields(strings.ReplaceAll(string(out), " ", "_"))
	slices.Sort(lines)
	return lines
}

// untilDig waits until an answer is as wanted, and logs how long after since that was.
func (c *cluster) untilDig(since time.Time, what string, at netip.AddrPort, n int, args ...string) []string {
	c.t.Helper()
	var got []string
	c.until(fmt.Sprintf("%s: %d answers to dig %v", what, n, args), func() bool {
		got = c.dig(at, args...)
		return len(got) == n
	})
	c.t.Logf("%s: in DNS %v later", what, time.Since(since).Round(time.Millisecond))
	return got
}

func freeAddrPort(t *testing.T) netip.AddrPort { return netip.MustParseAddrPort(freeAddr(t)) }

// Instances are found by name as soon as they serve, and not when they do not: failing a check, ended, or scaled away.
func TestNames(t *testing.T) {
	at := freeAddrPort(t)
	c := start(t, "--dns-listen", at.String(), "--dns-zone", "test")
	spec := shell("/shop/web", "touch ok; exec sleep 100000")
	spec.Instances = ptr(3)
	spec.Endpoints = []model.Endpoint{{Name: "http"}, {Name: "stats", Protocol: "udp"}}
	spec.Readiness = []model.Check{{
		Command: &model.CommandCheck{Command: []string{"/bin/sh", "-c", "test -e ok"}}, Interval: model.Duration(100 * time.Millisecond), Failures: 1,
	}}
	list := c.deploy(spec)
	const http = "_http._tcp.web.shop.test"
	srv := c.untilDig(time.Now(), "the deployment is done", at, 3, http, "SRV")
	for _, i := range list {
		want := fmt.Sprintf("0_1_%d_%s.web.shop.instance.test.", i.Ports[0], i.ID)
		if !slices.Contains(srv, want) {
			t.Errorf("SRV has no %s: %v", want, srv)
		}
		if got := c.dig(at, string(i.ID)+".web.shop.instance.test"); !slices.Equal(got, []string{"127.0.0.1"}) {
			t.Errorf("%s is at %v", i.ID, got)
		}
	}
	if got := c.dig(at, "WEB.shop.test"); !slices.Equal(got, []string{"127.0.0.1"}) {
		t.Errorf("the app is at %v", got)
	}
	if got := c.dig(at, "+tcp", "_stats._udp.web.shop.test", "SRV"); len(got) != 3 {
		t.Errorf("over TCP: %v", got)
	}

	sick := list[0]
	sandbox := filepath.Join(c.dir, "agent", "instances", string(sick.ID), "sandbox")
	if err := os.Remove(filepath.Join(sandbox, "ok")); err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	for _, line := range c.untilDig(since, "an instance fails its check", at, 2, http, "SRV") {
		if strings.Contains(line, string(sick.ID)) {
			t.Errorf("%s still serves: %v", sick.ID, line)
		}
	}
	if got := c.dig(at, "_http._tcp.web.shop.all.test", "SRV"); len(got) != 3 {
		t.Errorf("all of them: %v", got)
	}
	if err := os.WriteFile(filepath.Join(sandbox, "ok"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.untilDig(time.Now(), "it passes again", at, 3, http, "SRV")

	if proc, err := os.FindProcess(pids(list)[sick.ID]); err != nil || proc.Kill() != nil {
		t.Fatal("the program cannot be killed")
	}
	c.untilDig(time.Now(), "a program is killed", at, 2, http, "SRV")
	c.untilDig(time.Now(), "it is started again", at, 3, http, "SRV")

	if _, err := c.ScaleApp(testContext(t), "/shop/web", 1); err != nil {
		t.Fatal(err)
	}
	c.untilDig(time.Now(), "scaled to 1", at, 1, http, "SRV")
	if _, err := c.DeleteApp(testContext(t), "/shop/web"); err != nil {
		t.Fatal(err)
	}
	c.untilDig(time.Now(), "deleted", at, 0, http, "SRV")
	c.until("the name is gone", func() bool {
		out, _ := exec.Command("dig", "@"+at.Addr().String(), "-p", fmt.Sprint(at.Port()), "+timeout=2", "web.shop.test").Output()
		return strings.Contains(string(out), "NXDOMAIN")
	})
}

// A slot has a name, which goes with it from one instance to the next.
func TestSlotNames(t *testing.T) {
	needRoot(t)
	at := freeAddrPort(t)
	c := start(t, "--dns-listen", at.String())
	spec := shell("/db", "exec sleep 100000")
	spec.Instances = ptr(2)
	spec.Endpoints = []model.Endpoint{{Name: "sql"}}
	spec.Volumes = []model.Volume{{Name: "data", Persistent: &model.Persistent{Size: model.MiB}}}
	spec.Containers[0].Mounts = []model.Mount{{Volume: "data", Path: "data"}}
	port := func(slot int) string {
		got := c.dig(at, fmt.Sprintf("_sql._tcp.%d.db.slot.gantry", slot), "SRV")
		if len(got) != 1 {
			return ""
		}
		return got[0]
	}
	c.deploy(spec)
	var before string
	c.until("both slots have names", func() bool { before = port(1); return before != "" && port(2) != "" && before != port(2) })
	spec.Containers[0].Shell = "sleep 1; exec sleep 100000"
	c.deploy(spec)
	c.until("the slot's next instance has the name", func() bool { now := port(1); return now != "" && now != before })
	if got := c.dig(at, "3.db.slot.gantry"); len(got) != 0 {
		t.Errorf("a slot that is nobody's is at %v", got)
	}
}

// Programs and containers ask the node they are on by themselves, by names of the zone and by others.
func TestProgramsAskTheirNode(t *testing.T) {
	needRoot(t)
	at := netip.MustParseAddrPort(fmt.Sprintf("127.53.%d.%d:53", os.Getpid()>>8&255, os.Getpid()&127+1))
	c := start(t, "--dns-listen", at.String())
	web := shell("/shop/web", "exec sleep 100000")
	web.Endpoints = []model.Endpoint{{Name: "http"}}
	c.deploy(web)
	first := "nameserver " + at.Addr().String()
	i := c.deploy(shell("/program", "exec sleep 100000"))[0]
	var out string
	c.until("a program finds the app by name", func() bool {
		var code int
		out, code = c.exec(i.ID, "/bin/sh", "-c", "head -1 /etc/resolv.conf; getent ahostsv4 web.shop.gantry")
		return code == 0
	})
	if !strings.HasPrefix(out, first+"\n127.0.0.1 ") {
		t.Errorf("the program sees\n%s", out)
	}
	if b, err := os.ReadFile("/etc/resolv.conf"); err != nil || strings.Contains(string(b), at.Addr().String()) {
		t.Errorf("the node's own resolv.conf is\n%s, %v", b, err)
	}
	ref := pushed(t, "names", images.Busybox(t))
	box := &model.Spec{ID: "/box", Containers: []model.Container{{Image: ref, Command: []string{"sleep", "100000"}, Memory: 32 * model.MiB}}}
	i = c.deploy(box)[0]
	if out, code := c.exec(i.ID, "cat", "/etc/resolv.conf"); code != 0 || !strings.HasPrefix(out, first+"\n") {
		t.Errorf("the container sees\n%s", out)
	}
	if out, code := c.exec(i.ID, "nslookup", "web.shop.gantry"); code != 0 || !strings.Contains(out, "127.0.0.1") {
		t.Errorf("the container finds\n%s", out)
	}
}

// A node without a free port for names does everything else, and says why.
func TestNamesPortIsTaken(t *testing.T) {
	at := freeAddrPort(t)
	first := start(t, "--dns-listen", at.String())
	second := start(t, "--dns-listen", at.String())
	if out := second.out.String(); !strings.Contains(out, "answers no names") || !strings.Contains(out, "another program listens there") {
		t.Errorf("it says %q", out)
	}
	second.deploy(shell("/web", "exec sleep 100000"))
	first.untilDig(time.Now(), "of the first cluster there is nothing", at, 0, "web.gantry")
}
