package cluster

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// dig returns how many ports a node's DNS server has for a name; -1 when it does not answer.
func (r *rig) dig(port, name string) int {
	out, err := exec.CommandContext(r.Context(), "dig", "@127.0.0.1", "-p", port, "+short", "+timeout=2", "+tries=1", name, "SRV").Output()
	if err != nil {
		return -1
	}
	return strings.Count(string(out), "\n")
}

// Every node answers the names of the whole cluster, and goes on when all servers are dead, also after its own agent was killed and
// started again; once there are servers again, it learns what has changed.
func TestNamesWithoutServers(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	if _, err := exec.LookPath("dig"); err != nil {
		t.Fatalf("%v: install the Debian package bind9-dnsutils", err)
	}
	r.server("s1")
	token := r.token("s1", model.AgentMachine, 2)
	port := map[string]string{}
	for _, name := range []string{"a1", "a2"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port[name], _ = net.SplitHostPort(l.Addr().String())
		l.Close()
	}
	listen := func(name string) string { return "127.0.0.1:" + port[name] }
	for n, name := range []string{"a1", "a2"} {
		r.agent(name, "--join", r.addr("s1"), "--token", token, "--zone", fmt.Sprint("z", n), "--dns-listen", listen(name))
	}
	n := 4
	spec := &model.Spec{
		ID: "/shop/web", Instances: &n, Containers: []model.Container{{Shell: "exec sleep 100000", CPUs: 50}}, Endpoints: []model.Endpoint{{Name: "http"}},
		Constraints: []model.Constraint{{Attribute: model.AttrZone, Operator: model.OpGroupBy}},
	}
	if _, err := r.client("s1").CreateApp(ctx, spec); err != nil {
		t.Fatal(err)
	}
	const name = "_http._tcp.web.shop.gantry"
	both := func(want int) func() bool {
		return func() bool { return r.dig(port["a1"], name) == want && r.dig(port["a2"], name) == want }
	}
	r.eventually("both nodes know all 4", both(4))

	r.stop("s1", syscall.SIGKILL)
	if !both(4)() {
		t.Error("without a server names are not answered")
	}
	r.stop("a1", syscall.SIGTERM)
	r.agent("a1", "--dns-listen", listen("a1"))
	if got := r.dig(port["a1"], name); got != 4 {
		t.Errorf("after a start without a server %d are known, want 4", got)
	}

	r.server("s1")
	r.eventually("a scaled app is known to both", func() bool {
		_, err := r.client("s1").ScaleApp(ctx, "/shop/web", 2)
		return err == nil && both(2)()
	})
	if _, err := r.client("s1").DeleteApp(ctx, "/shop/web"); err != nil {
		t.Fatal(err)
	}
	r.eventually("nothing is known of an app that is gone", both(0))
}
