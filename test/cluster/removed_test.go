package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
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

// shown returns the configuration of who calls servers with the identity that a server keeps on its disk.
func (r *rig) shown(server string) *tls.Config {
	r.Helper()
	dir := filepath.Join(r.dir, server, "identity")
	own := filepath.Join(dir, "machine.pem")
	cert, err := tls.LoadX509KeyPair(own, own)
	if err != nil {
		r.Fatal(err)
	}
	roots, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		r.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: "127.0.0.1"}
}

// getsIn reports whether etcd's member of the server at addr answers who shows cfg on a new connection.
func getsIn(addr string, cfg *tls.Config) bool {
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
	resp, err := c.Get("https://" + addr + "/version")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err == nil && resp.StatusCode == http.StatusOK
}

// remove takes a server out of the cluster by another one's word.
func (r *rig) remove(ask, server string) {
	r.Helper()
	r.eventually(server+" is removed", func() bool {
		_, err := r.client(ask).RemoveServer(r.Context(), server)
		return err == nil // or it leads, and hands over
	})
}

// A server that was removed is refused by the members of etcd as well, though its certificate is good, and what connections it had
// to them are cut.
func TestRemovedServerIsNoPeer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: the cluster is started as root")
	}
	r := newRig(t)
	r.server("s1")
	token := r.token("s1", model.ServerMachine, 2)
	for _, name := range []string{"s2", "s3"} {
		r.server(name, "--join", r.addr("s1"), "--token", token)
	}
	peer := fmt.Sprintf("127.0.0.1:%d", r.base("s1")+2)
	stolen := r.shown("s3")
	stranger := stolen.Clone()
	stranger.Certificates = nil
	if !getsIn(peer, stolen) || getsIn(peer, stranger) {
		t.Fatal("a server gets no answer from a member of etcd, or a stranger gets one")
	}
	standing, err := tls.Dial("tcp", peer, stolen)
	if err != nil {
		t.Fatal(err)
	}
	defer standing.Close()
	cut := make(chan error, 1)
	go func() {
		for { // its requests keep it from being closed as idle
			if _, err := io.WriteString(standing, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				cut <- err
				return
			}
			if _, err := standing.Read(make([]byte, 4096)); err != nil {
				cut <- err
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	r.remove("s1", "s3")
	removed := time.Now()
	r.eventually("the removed server is refused", func() bool { return !getsIn(peer, stolen) })
	t.Logf("the removed server was refused after %v", time.Since(removed))
	select {
	case <-cut:
		t.Logf("its connection was cut after %v", time.Since(removed))
	case <-time.After(patience):
		t.Error("its connection stands")
	}
	if !getsIn(peer, r.shown("s2")) {
		t.Error("a server that was not removed gets no answer")
	}
	if !strings.HasPrefix(r.leader("s1"), "s") {
		t.Error("nobody leads the servers that are left")
	}
}

// The administrator's token is replaced at all servers, also at one that was down meanwhile, and not at one that was removed; the old
// one is refused everywhere.
func TestRotateAdmin(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: the cluster is started as root")
	}
	r := newRig(t)
	r.server("s1")
	token := r.token("s1", model.ServerMachine, 3)
	for _, name := range []string{"s2", "s3", "s4"} {
		r.server(name, "--join", r.addr("s1"), "--token", token)
	}
	r.remove("s1", "s4")
	old := r.client("s1")
	clients := map[string]*client.Client{}
	for _, name := range []string{"s1", "s2", "s3"} {
		clients[name] = r.client(name)
	}
	r.stop("s3", syscall.SIGKILL)
	r.eventually("a majority takes writes", func() bool { _, err := old.Tokens(t.Context()); return err == nil && r.leader("s1") != "" })
	out, err := exec.Command(r.bin, "cluster", "rotate-admin", "--data-dir", filepath.Join(r.dir, "s2")).Output()
	if err != nil {
		t.Fatalf("rotate-admin: %v", err)
	}
	rotated := time.Now()
	kept := func(name string) string {
		b, err := os.ReadFile(filepath.Join(r.dir, name, "admin.token"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, name := range []string{"s1", "s2"} {
		r.eventually(name+" keeps the new token", func() bool { return kept(name) == string(out) })
		r.eventually(name+" refuses the old token", func() bool {
			_, err := clients[name].Tokens(t.Context())
			var refused *client.Error
			return errors.As(err, &refused) && refused.Status == http.StatusUnauthorized
		})
		if _, err := r.client(name).Tokens(t.Context()); err != nil {
			t.Errorf("%s with the new token: %v", name, err)
		}
	}
	t.Logf("the old token was refused after %v", time.Since(rotated))
	if kept("s3") == string(out) || kept("s4") == string(out) {
		t.Error("a server that is down or removed has the new token")
	}
	r.server("s3", "--join", r.addr("s1"), "--token", token)
	if kept("s3") != string(out) {
		t.Error("a server that was down is ready with an old token")
	}
	if _, err := clients["s3"].Tokens(t.Context()); err == nil {
		t.Error("a server that was down takes the old token")
	}
}

// A server that is started at another address is found there, by the others and by people, without joining again.
func TestServerMoves(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: the cluster is started as root")
	}
	r := newRig(t)
	r.server("s1")
	token := r.token("s1", model.ServerMachine, 2)
	for _, name := range []string{"s2", "s3"} {
		r.server(name, "--join", r.addr("s1"), "--token", token)
	}
	r.stop("s2", syscall.SIGTERM)
	moved := fmt.Sprintf("127.0.0.2:%d", r.base("s2"))
	r.start("s2", "server", "--listen", moved, "--advertise", moved)
	c, err := r.client("s3").Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range c.Servers {
		if want := fmt.Sprintf("127.0.0.2:%d", r.base("s2")+2); s.Name == "s2" && (s.Addr != moved || s.Peer != want || !s.Answers) {
			t.Errorf("s2 is known at %s and %s, answers %v; want %s and %s", s.Addr, s.Peer, s.Answers, moved, want)
		}
	}
	r.stop("s1", syscall.SIGKILL) // without s1 the others need each other
	at := r.clientAt("s3", moved)
	r.eventually("the server that moved takes writes", func() bool {
		_, err := at.PutRole(t.Context(), &model.Role{ID: "/moved"})
		return err == nil
	})
}
