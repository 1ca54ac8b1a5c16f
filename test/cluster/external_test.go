package cluster

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// outside is an etcd of three members that is none of Gantry's, with TLS for clients and among its members.
type outside struct {
	*rig
	bin             string
	ca, cert, key   string // files, for members and clients alike
	members         []string
	clusterSettings string
}

func (r *rig) outside() *outside {
	r.Helper()
	o := &outside{rig: r, bin: filepath.Join(r.dir, "etcd"), members: []string{"e1", "e2", "e3"}}
	if out, err := exec.Command("go", "build", "-o", o.bin, "go.etcd.io/etcd/server/v3").CombinedOutput(); err != nil {
		r.Fatalf("build etcd: %v\n%s", err, out)
	}
	o.certify()
	var at []string
	for _, m := range o.members {
		at = append(at, fmt.Sprintf("%s=https://127.0.0.1:%d", m, r.base(m)+1))
	}
	o.clusterSettings = strings.Join(at, ",")
	for _, m := range o.members {
		o.start(m)
	}
	return o
}

// certify makes a CA and a certificate of it.
func (o *outside) certify() {
	o.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		o.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd of the test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		o.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		o.Fatal(err)
	}
	o.cert, o.key = filepath.Join(o.dir, "etcd.pem"), filepath.Join(o.dir, "etcd-key.pem")
	o.ca = o.cert
	for file, block := range map[string]*pem.Block{o.cert: {Type: "CERTIFICATE", Bytes: cert}, o.key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			o.Fatal(err)
		}
	}
}

// start starts a member. Nobody waits for it: who needs it does.
func (o *outside) start(name string) {
	o.Helper()
	log := &bytes.Buffer{}
	client, peer := "https://"+o.addr(name), fmt.Sprintf("https://127.0.0.1:%d", o.base(name)+1)
	cmd := exec.Command(o.bin, "--name", name, "--data-dir", filepath.Join(o.dir, name), "--log-level", "warn",
		"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--initial-cluster", o.clusterSettings, "--max-txn-ops=20002", "--max-request-bytes=10485760",
		"--client-cert-auth", "--trusted-ca-file", o.ca, "--cert-file", o.cert, "--key-file", o.key,
		"--peer-client-cert-auth", "--peer-trusted-ca-file", o.ca, "--peer-cert-file", o.cert, "--peer-key-file", o.key)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		o.Fatal(err)
	}
	o.procs[name], o.logs[name] = cmd, log
}

// flags are those by which a server finds the etcd.
func (o *outside) flags(more ...string) []string {
	var at []string
	for _, m := range o.members {
		at = append(at, "https://"+o.addr(m))
	}
	return append([]string{"--etcd-endpoints", strings.Join(at, ","), "--etcd-cacert", o.ca, "--etcd-cert", o.cert, "--etcd-key", o.key}, more...)
}

// refuses starts a server that is to end by itself, and returns what it printed.
func (r *rig) refuses(name string, args ...string) string {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, r.bin, append([]string{"server", "--name", name, "--listen", r.addr(name), "--advertise", r.addr(name),
		"--data-dir", filepath.Join(r.dir, name)}, args...)...).CombinedOutput()
	if err == nil || ctx.Err() != nil {
		r.Errorf("%s ended with %v, and was to be refused:\n%s", name, err, out)
	}
	return string(out)
}

// writes returns how long it took until a server took a write.
func (r *rig) writes(server string, app model.AppID, instances int) time.Duration {
	r.Helper()
	from := time.Now()
	r.eventually("a write is taken", func() bool {
		ctx, cancel := context.WithTimeout(r.Context(), 3*time.Second)
		defer cancel()
		_, err := r.client(server).ScaleApp(ctx, app, instances)
		return err == nil
	})
	return time.Since(from).Round(10 * time.Millisecond)
}

func (r *rig) cluster(server string) client.Cluster {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	c, err := r.client(server).Cluster(ctx)
	if err != nil {
		r.Logf("the state of the cluster: %v", err)
	}
	return c
}

// Servers over an etcd that others run, of three members: they join by token and are no members of it; one leads, and when it is
// killed another; a member of the etcd that is killed holds up nothing, and a majority of them no program; what is wrong is said;
// a server that is removed ends, and does not come back.
func TestExternalEtcd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: agents of a cluster are started as root")
	}
	r := newRig(t)
	ctx := t.Context()
	etcd := r.outside()
	r.server("s1", etcd.flags()...)
	join := []string{"--join", r.addr("s1"), "--token", r.token("s1", model.ServerMachine, 3)}
	if out := r.refuses("s4", etcd.flags()...); !strings.Contains(out, "holds cluster "+r.cluster("s1").ID+" already: join it") {
		t.Errorf("a second cluster on one etcd: %s", out)
	}
	if out := r.refuses("s5", join...); !strings.Contains(out, "start this one with --etcd-endpoints") {
		t.Errorf("a server without the etcd: %s", out)
	}
	if out := r.refuses("s6", etcd.flags(append(join, "--etcd-prefix", "/other")...)...); !strings.Contains(out, "holds no cluster") {
		t.Errorf("a server with another prefix: %s", out)
	}
	r.server("s2", etcd.flags(join...)...)
	r.server("s3", etcd.flags(join...)...)
	agents := r.token("s2", model.AgentMachine, 2)
	for _, name := range []string{"a1", "a2"} {
		r.agent(name, "--join", r.addr("s3"), "--token", agents)
	}
	n := 4
	spec := &model.Spec{ID: "/web", Instances: &n, Containers: []model.Container{{Shell: "exec sleep 100000", CPUs: 50}}}
	spec.Constraints = []model.Constraint{{Attribute: model.AttrHostname, Operator: model.OpMaxPer, Value: "6"}}
	r.eventually("an app is taken", func() bool { _, err := r.client("s3").CreateApp(ctx, spec); return err == nil })
	r.eventually("4 instances run", func() bool { return r.running("s2", "/web") == 4 })
	before := r.pids("s1", "/web")
	unmoved := func(when string) {
		t.Helper()
		now := r.pids("s1", "/web")
		for id, pid := range before {
			if now[id] != pid {
				t.Errorf("%s %s is process %d, and was %d", when, id, now[id], pid)
			}
		}
	}

	all := r.cluster("s2")
	if !all.External || len(all.Etcd) != 3 || len(all.Servers) != 4 || all.Leader == "" { // s5 has joined, and was not started as it has to be
		t.Errorf("the cluster is %s", text(all))
	}
	r.eventually("all that there are answer", func() bool {
		c := r.cluster("s3")
		return !slices.ContainsFunc(c.Etcd, func(m client.EtcdMember) bool { return !m.Answers }) &&
			!slices.ContainsFunc(c.Servers, func(s client.ClusterServer) bool { return s.Answers != (s.Name != "s5") })
	})
	if _, err := r.client("s2").RemoveServer(ctx, "s5"); err != nil {
		t.Error(err)
	}
	var refused *client.Error
	if _, err := r.client("s2").PromoteServer(ctx, "s1"); !errors.As(err, &refused) || refused.Status != 409 || !strings.Contains(err.Error(), "external etcd") {
		t.Errorf("a promotion: %v", err)
	}

	// The leading server dies.
	lead := r.leader("s1")
	left := slices.DeleteFunc([]string{"s1", "s2", "s3"}, func(s string) bool { return s == lead })
	r.stop(lead, syscall.SIGKILL)
	t.Logf("a write was taken %v after the leading server was killed", r.writes(left[0], "/web", 5))
	killed := time.Now()
	r.eventually("5 instances run under another leader", func() bool { return r.running(left[1], "/web") == 5 })
	t.Logf("and its instance ran %v later", time.Since(killed).Round(10*time.Millisecond))
	r.eventually("it is said that the server does not answer", func() bool { return strings.Contains(r.cluster(left[0]).Why, lead+" does not answer") })
	r.server(lead, etcd.flags()...)
	unmoved("after a server was killed")

	// The member of the etcd that leads it dies, then another.
	first := ""
	r.eventually("the etcd has a leader", func() bool {
		for _, m := range r.cluster("s1").Etcd {
			if m.Leader {
				first = m.Name
			}
		}
		return first != ""
	})
	r.stop(first, syscall.SIGKILL)
	t.Logf("a write was taken %v after the leading member of the etcd was killed", r.writes("s1", "/web", 6))
	r.eventually("6 instances run without the member", func() bool { return r.running("s1", "/web") == 6 })
	r.eventually("it is said that the member does not answer", func() bool {
		return strings.Contains(r.cluster("s2").Why, "1 of 3 members of the external etcd do not answer: "+first)
	})
	second := slices.DeleteFunc(slices.Clone(etcd.members), func(m string) bool { return m == first })[0]
	r.stop(second, syscall.SIGKILL)
	r.eventually("it is said that no changes are taken", func() bool {
		why := r.cluster("s2").Why
		return strings.Contains(why, "no changes are taken") && strings.Contains(why, "1 of its 3 members")
	})
	if _, err := r.client("s2").ScaleApp(ctx, "/web", 7); err == nil {
		t.Error("a write was taken without a majority of the etcd")
	}
	etcd.start(first)
	etcd.start(second)
	t.Logf("a write was taken %v after the members were started again", r.writes("s3", "/web", 6))
	r.eventually("all run", func() bool { return r.running("s1", "/web") == 6 })
	unmoved("after a majority of the etcd was killed")

	// Servers that are removed end: one that is asked to remove itself, too, which is the one that leads.
	r.eventually("a server leads", func() bool { lead = r.leader("s1"); return lead != "" })
	left = slices.DeleteFunc([]string{"s1", "s2", "s3"}, func(s string) bool { return s == lead })
	r.eventually("the leading server is removed", func() bool {
		_, err := r.client(left[0]).RemoveServer(ctx, lead)
		gone := errors.As(err, &refused) && refused.Status == 404 // the one that answers may have ended before it had
		return err == nil || gone
	})
	ended := make(chan error, 1)
	go func() { ended <- r.procs[lead].Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the removed server ended without an error")
		}
	case <-time.After(patience):
		t.Fatalf("the removed server runs on")
	}
	delete(r.procs, lead)
	r.eventually("writes are taken", func() bool { _, err := r.client(left[1]).ScaleApp(ctx, "/web", 5); return err == nil })
	r.eventually("5 instances run", func() bool { return r.running(left[0], "/web") == 5 })
	if out := r.refuses(lead, etcd.flags()...); !strings.Contains(out, "was removed from the cluster") {
		t.Errorf("the removed server: %s", out)
	}
}
