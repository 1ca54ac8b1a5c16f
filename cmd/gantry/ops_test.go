package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

var rewrite = flag.Bool("rewrite", false, "write the files in testdata anew")

// opsFake is a cluster of servers that remembers what is done to it.
type opsFake struct {
	*httptest.Server
	tokens map[string]client.JoinToken
	led    int  // so often removal hands leadership over first
	cut    bool // backups end early
}

func newOpsFake(t *testing.T, start func(http.Handler) *httptest.Server) *opsFake {
	f := &opsFake{tokens: map[string]client.JoinToken{}}
	cluster := client.Cluster{ID: "c1", Leader: "a", Quota: 8 * model.GiB, Nodes: client.NodeCounts{Ready: 5}, Rotation: client.Rotation{Phase: "steady"},
		Servers: []client.ClusterServer{{Name: "a", Addr: "10.0.0.1:7070", Leader: true, Answers: true}, {Name: "b"}}}
	mux := http.NewServeMux()
	say := func(w http.ResponseWriter, v any) {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	refuse := func(w http.ResponseWriter, status int, detail string) {
		w.WriteHeader(status)
		say(w, client.Problem{Status: status, Detail: detail})
	}
	mux.HandleFunc("GET /v1/cluster", func(w http.ResponseWriter, _ *http.Request) { say(w, cluster) })
	mux.HandleFunc("POST /v1/cluster/rotate-admin", func(w http.ResponseWriter, _ *http.Request) {
		say(w, client.AdminToken{Token: "gantry_new"})
	})
	mux.HandleFunc("POST /v1/cluster/rotate-ca", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, 409, "the cluster's authority is being rotated already")
	})
	mux.HandleFunc("POST /v1/cluster/servers/{name}/promote", func(w http.ResponseWriter, _ *http.Request) { say(w, cluster) })
	mux.HandleFunc("DELETE /v1/cluster/servers/{name}", func(w http.ResponseWriter, r *http.Request) {
		switch name := r.PathValue("name"); {
		case f.led > 0:
			f.led--
			refuse(w, 503, "a led, and hands leadership over to b; ask again")
		case name != "a":
			refuse(w, 404, "no server "+name)
		default:
			say(w, client.RemovedServer{Name: name})
		}
	})
	mux.HandleFunc("GET /v1/tokens", func(w http.ResponseWriter, _ *http.Request) {
		list := []client.JoinToken{}
		for _, k := range f.tokens {
			list = append(list, k)
		}
		say(w, list)
	})
	mux.HandleFunc("POST /v1/tokens", func(w http.ResponseWriter, r *http.Request) {
		var ask client.NewToken
		if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
			t.Error(err)
		}
		k := client.JoinToken{ID: "k1", Role: ask.Role, State: "good", Uses: *ask.Uses, Expires: time.Date(2026, 3, 1, 13, 0, 0, 0, time.UTC)}
		f.tokens[k.ID] = k
		say(w, client.CreatedToken{JoinToken: k, Token: "the-secret", Servers: []string{"10.0.0.1:7070"}})
	})
	mux.HandleFunc("DELETE /v1/tokens/{id}", func(w http.ResponseWriter, r *http.Request) {
		if _, ok := f.tokens[r.PathValue("id")]; !ok {
			refuse(w, 404, "no token "+r.PathValue("id"))
			return
		}
		delete(f.tokens, r.PathValue("id"))
		say(w, struct{}{})
	})
	mux.HandleFunc("GET /v1/backup", func(w http.ResponseWriter, _ *http.Request) {
		body := strings.Repeat("snapshot", 1000)
		sum := sha256.Sum256([]byte(body))
		say(w, client.Backup{Revision: 7, Size: int64(len(body)), SHA256: hex.EncodeToString(sum[:])})
		if f.cut {
			body = body[:100]
		}
		fmt.Fprint(w, body)
	})
	f.Server = start(mux)
	t.Cleanup(f.Close)
	return f
}

func (f *opsFake) gantry(t *testing.T, args ...string) result {
	t.Helper()
	return gantry(t, nil, "", append([]string{"--addr", f.URL, "--token", fakeToken}, args...)...)
}

// check compares what a command line did with what it should, and returns it.
func check(t *testing.T, r result, code int, out, errs string) result {
	t.Helper()
	if r.code != code || !strings.Contains(r.out, out) || !strings.Contains(r.err, errs) {
		t.Errorf("exit code %d, want %d; printed %q, want %q; said %q, want %q", r.code, code, r.out, out, r.err, errs)
	}
	return r
}

// The standard output of token create is the token alone: scripts pipe it.
func TestTokenCommands(t *testing.T) {
	f := newOpsFake(t, httptest.NewServer)
	r := check(t, f.gantry(t, "token", "create", "--role", "server", "--uses", "0"), 0, "", "for any number of machines; on the machine that joins:\n  gantry server --join 10.0.0.1:7070 --token ...")
	if r.out != "the-secret\n" {
		t.Errorf("printed %q", r.out)
	}
	check(t, f.gantry(t, "token", "create", "--json"), 0, `"token": "the-secret"`, "")
	check(t, f.gantry(t, "token", "create", "--role", "king"), exitUsage, "", "write server or agent")
	check(t, f.gantry(t, "token", "ls"), 0, "k1     agent  good   2026-03-01 13:00:00Z  0 / 1", "")
	check(t, f.gantry(t, "token", "rm", "k1"), 0, "token k1 is gone", "")
	check(t, f.gantry(t, "token", "rm", "k1"), exitNotFound, "", "gantry token ls lists them")
	check(t, f.gantry(t, "token", "ls"), 0, "no join tokens", "")
}

func TestClusterCommands(t *testing.T) {
	f := newOpsFake(t, httptest.NewServer)
	check(t, f.gantry(t, "cluster", "status"), 0, "5 ready, 0 unreachable", "")
	check(t, f.gantry(t, "cluster", "members"), 0, "b       unreachable  follower", "")
	check(t, f.gantry(t, "cluster", "members", "--json"), 0, `"addr": "10.0.0.1:7070"`, "")
	check(t, f.gantry(t, "cluster", "promote", "b"), 0, "server b votes", "")
	check(t, f.gantry(t, "cluster", "rotate-ca"), exitRefused, "", "rotated already")
	check(t, f.gantry(t, "cluster", "rotate-admin"), 0, "gantry_new", "who has the old one needs this one")
	check(t, f.gantry(t, "cluster", "remove", "x"), exitNotFound, "", "gantry cluster members lists them")
	f.led = 1
	check(t, f.gantry(t, "cluster", "remove", "a"), 0, "server a is removed", "")
}

// FILE is there only when it is whole, and what was there before stays until then.
func TestBackupCommand(t *testing.T) {
	f := newOpsFake(t, httptest.NewServer)
	file := filepath.Join(t.TempDir(), "b")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.cut = true
	check(t, f.gantry(t, "backup", file), exitFailure, "", "the backup is not whole")
	if b, _ := os.ReadFile(file); string(b) != "old" {
		t.Errorf("the file has %d bytes of a backup that failed", len(b))
	}
	f.cut = false
	check(t, f.gantry(t, "backup", file), 0, "revision 7, sha256 ", "")
	if b, _ := os.ReadFile(file); !strings.HasSuffix(string(b), "snapshot") {
		t.Errorf("the file has %d bytes", len(b))
	}
	if left, _ := filepath.Glob(file + ".*"); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}

// A server of another cluster is refused in words that say so.
func TestServersCertificate(t *testing.T) {
	f := newOpsFake(t, httptest.NewTLSServer)
	dir := t.TempDir()
	own := filepath.Join(dir, "roots.pem")
	if err := os.WriteFile(own, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	check(t, f.gantry(t, "--ca-file", own, "cluster", "members"), 0, "leader", "")
	check(t, f.gantry(t, "cluster", "members"), exitUnreachable, "", "GANTRY_CACERT")
	check(t, f.gantry(t, "--ca-file", filepath.Join(dir, "none"), "cluster", "members"), exitFailure, "", "no such file")
	if err := os.WriteFile(own, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	check(t, f.gantry(t, "--ca-file", own, "cluster", "members"), exitFailure, "", "has no certificate in PEM")
}

// What keeps instances alive when the unit stops is in its text.
func TestUnit(t *testing.T) {
	u := unit{Role: model.AgentMachine, Binary: "/opt/100% gantry/gantry", Config: "/etc/gantry/agent.yaml"}
	path := filepath.Join("testdata", "gantry-agent.service")
	if *rewrite {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(u.text()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(path); err != nil || u.text() != string(want) {
		t.Errorf("the unit differs from %s (%v); if that is meant, run go test ./cmd/gantry -run TestUnit -rewrite:\n%s", path, err, u.text())
	}
	r := check(t, gantry(t, nil, "", "install", "systemd", "--role", "server", "--print"), 0, "KillMode=process", "")
	if !strings.Contains(r.out, ` server --config "/etc/gantry/server.yaml"`) {
		t.Errorf("printed %s", r.out)
	}
	dir := t.TempDir()
	check(t, gantry(t, nil, "", "install", "systemd", "--role", "server", "--dir", dir), 0, "systemctl enable --now gantry-server.service", "")
	check(t, gantry(t, nil, "", "install", "systemd"), exitUsage, "", "--role")
	if tool, err := exec.LookPath("systemd-analyze"); err == nil {
		if out, err := exec.Command(tool, "verify", filepath.Join(dir, "gantry-server.service")).CombinedOutput(); err != nil {
			t.Errorf("systemd-analyze: %v: %s", err, out)
		}
	}
}
