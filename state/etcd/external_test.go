package etcd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/conformance"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// outside starts an etcd that is none of Gantry's, with TLS for clients, and returns how to reach it.
func outside(t *testing.T, ops uint, change ...func(*embed.Config)) *External {
	t.Helper()
	ca := newAuthority(t)
	own := ca.issue(t, "etcd", "127.0.0.1")
	c := embed.NewConfig()
	c.Dir, c.Name, c.UnsafeNoFsync = t.TempDir(), "outside", true
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(silent())
	client := url.URL{Scheme: "https", Host: address(t)}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = nil, []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
	c.InitialCluster = "outside=http://127.0.0.1:1"
	c.ClientTLSInfo = transport.TLSInfo{CertFile: own.Cert, KeyFile: own.Key, TrustedCAFile: own.CA, ClientCertAuth: true}
	c.MaxTxnOps, c.MaxRequestBytes = ops, maxBytes
	for _, fn := range change {
		fn(c)
	}
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	tls := ca.issue(t, "gantry", "gantry.test")
	return &External{Endpoints: []string{client.String()}, Cert: tls.Cert, Key: tls.Key, CA: tls.CA}
}

// remote is storage in an etcd outside.
type remote struct {
	at   *External
	open []*Store
}

func (r *remote) Open(t *testing.T) *state.DB {
	t.Helper()
	s := open(t, Config{External: r.at})
	r.open = append(r.open, s)
	return s.DB
}

func (r *remote) Reopen(t *testing.T) *state.DB {
	t.Helper()
	for _, s := range r.open {
		closeStore(t, s)
	}
	r.open = nil
	return r.Open(t)
}

// TestExternalConformance protects that all that a store promises holds with an etcd that somebody else runs.
func TestExternalConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: slow")
	}
	t.Parallel()
	at := outside(t, maxOps+2)
	conformance.Run(t, func(t *testing.T) conformance.Storage {
		s := open(t, Config{External: at})
		if _, err := s.link.Load().client.Delete(t.Context(), root, prefix); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
		return &remote{at: at}
	})
}

// TestExternal protects that others may write to the same etcd, that a lease decides who leads, and that a leader that dies is
// followed soon.
func TestExternal(t *testing.T) {
	t.Parallel()
	at := outside(t, maxOps+2)
	a, b := open(t, Config{External: at, Name: "a"}), open(t, Config{External: at, Name: "b"})
	for n := range uint64(20) {
		if _, err := a.link.Load().client.Put(t.Context(), "/others", fmt.Sprint(n)); err != nil {
			t.Fatal(err)
		}
		if err := increment(t.Context(), []*Store{a, b}[n%2], "/n"); err != nil {
			t.Fatal(err)
		}
		if _, err := a.link.Load().client.Put(t.Context(), "/others", fmt.Sprint(n)); err != nil {
			t.Fatal(err)
		}
		reader := []*Store{a, b}[(n+1)%2]
		if err := reader.Fresh(t.Context()); err != nil || count(reader.View(), "/n") != n+1 {
			t.Fatalf("a fresh view has %d, want %d: %v", count(reader.View(), "/n"), n+1, err)
		}
	}
	if st, err := b.Status(t.Context()); err != nil || !st.External || len(st.Members) != 1 || !st.Members[0].Answers || st.Leader != "outside" {
		t.Errorf("status %+v, %v", st, err)
	}
	if _, err := a.AddMember(t.Context(), "x", "127.0.0.1:1"); !errors.Is(err, ErrNotOurs) {
		t.Errorf("added a member: %v", err)
	}

	if info, err := a.Backup(t.Context(), io.Discard); err != nil || info.Keys == 0 {
		t.Errorf("backup %+v, %v", info, err)
	}
	first, lost, err := a.Campaign(t.Context(), "a", "a:1")
	if err != nil {
		t.Fatal(err)
	}
	led := make(chan *state.Leader)
	go func() {
		l, _, err := b.Campaign(t.Context(), "b", "b:1")
		if err != nil {
			t.Error(err)
		}
		led <- l
	}()
	select {
	case <-led:
		t.Fatal("two lead")
	case <-lost:
		t.Fatal("the leader lost its lease")
	case <-time.After(leaseTime * 3 / 2):
	}
	a.cancel() // as if it had died: nothing keeps the lease
	died := time.Now()
	second := <-led
	t.Logf("a leader that died was followed after %v", time.Since(died))
	if d := time.Since(died); d > 4*time.Second {
		t.Errorf("followed after %v", d)
	}
	within(t, "the first has lost", time.Second, lost)
	if err := increment(t.Context(), second, "/n"); err != nil {
		t.Fatal(err)
	}
	if err := increment(t.Context(), first, "/n"); err == nil {
		t.Error("the first leader wrote")
	}
	if name, addr, ok := b.Leader(); name != "b" || addr != "b:1" || !ok {
		t.Errorf("%s at %s leads, %v", name, addr, ok)
	}
	if err := b.Resign(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nobody leads", func() bool { _, _, ok := b.Leader(); return !ok })
}

// TestExternalPrefix protects that stores with prefixes of their own, in one etcd, see nothing of each other, and lead side by side.
func TestExternalPrefix(t *testing.T) {
	t.Parallel()
	at := outside(t, maxOps+2)
	below := func(prefix string) *Store {
		own := *at
		own.Prefix = prefix
		return open(t, Config{External: &own, Name: "s"})
	}
	all := map[string]*Store{"": below(""), "/a": below("/a"), "/b": below("/b")}
	want := map[string]uint64{"": 1, "/a": 2, "/b": 3}
	leaders := map[string]*state.Leader{}
	for prefix, s := range all {
		l, _, err := s.Campaign(t.Context(), "s", "s:1")
		if err != nil {
			t.Fatal(err)
		}
		leaders[prefix] = l
		for range want[prefix] {
			if err := increment(t.Context(), l, "/n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for prefix, s := range all {
		if err := s.Fresh(t.Context()); err != nil || count(s.View(), "/n") != want[prefix] {
			t.Errorf("below %q there is %d: %v", prefix, count(s.View(), "/n"), err)
		}
		if again := below(prefix); count(again.View(), "/n") != want[prefix] {
			t.Errorf("opened again, there is %d below %q", count(again.View(), "/n"), prefix)
		}
	}
	if err := all["/a"].Resign(t.Context(), leaders["/a"]); err != nil {
		t.Fatal(err)
	}
	if err := increment(t.Context(), leaders["/a"], "/n"); !errors.Is(err, state.ErrDeposed) {
		t.Errorf("one that resigned wrote: %v", err)
	}
	if err := increment(t.Context(), leaders["/b"], "/n"); err != nil {
		t.Errorf("another cluster's leader: %v", err)
	}
	if _, err := all["/a"].Backup(t.Context(), io.Discard); !errors.Is(err, ErrNotOurs) {
		t.Errorf("a backup of what others keep: %v", err)
	}
}

// TestExternalFull protects that an external etcd that is full refuses updates, says so, and takes them again once its owner has made
// space and lifted its alarm.
func TestExternalFull(t *testing.T) {
	t.Parallel()
	at := outside(t, maxOps+2, func(c *embed.Config) { c.QuotaBackendBytes = 32 << 20 })
	s := open(t, Config{External: at})
	owner := s.link.Load().client
	for full := false; !full; {
		_, err := owner.Put(t.Context(), "/others", strings.Repeat("x", 1<<20))
		if full = errors.Is(err, rpctypes.ErrNoSpace); err != nil && !full {
			t.Fatal(err)
		}
	}
	if err := increment(t.Context(), s, "/n"); !errors.Is(err, state.ErrNoSpace) {
		t.Errorf("an update: %v", err)
	}
	st, err := s.Status(t.Context())
	if err != nil || len(st.Alarms) != 1 || !strings.HasPrefix(st.Alarms[0], "NOSPACE") || st.Quota != 32<<20 {
		t.Errorf("status %+v, %v", st, err)
	}
	last, err := owner.Get(t.Context(), "/others")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := owner.Compact(t.Context(), last.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := owner.Defragment(t.Context(), at.Endpoints[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := owner.AlarmDisarm(t.Context(), &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	if err := increment(t.Context(), s, "/n"); err != nil {
		t.Errorf("an update after space was made: %v", err)
	}
}

// TestExternalBackup protects that the truth can move from an external etcd into the servers.
func TestExternalBackup(t *testing.T) {
	t.Parallel()
	s := open(t, Config{External: outside(t, maxOps+2)})
	for range 3 {
		if err := increment(t.Context(), s, "/n"); err != nil {
			t.Fatal(err)
		}
	}
	var file bytes.Buffer
	if _, err := s.Backup(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "own")
	if _, err := Restore(dir, &file, NewCluster{Name: "own"}); err != nil {
		t.Fatal(err)
	}
	if own := open(t, Config{Dir: dir, Name: "own"}); count(own.View(), "/n") != 3 {
		t.Errorf("%d of 3 were restored", count(own.View(), "/n"))
	}
}

// TestExternalSettings protects that settings that cannot be are refused by their name.
func TestExternalSettings(t *testing.T) {
	good := External{Endpoints: []string{"https://10.0.0.7:2379", "https://etcd.example:2379"}, Cert: "c", Key: "k", CA: "a"}
	for want, change := range map[string]func(*External){
		"":                                 func(*External) {},
		"etcd-endpoints: no endpoint":      func(e *External) { e.Endpoints = nil },
		`etcd-endpoints: "10.0.0.7:2379"`:  func(e *External) { e.Endpoints = []string{"10.0.0.7:2379"} },
		`etcd-endpoints: "https://a"`:      func(e *External) { e.Endpoints = []string{"https://a"} },
		`etcd-endpoints: "unix://a:1"`:     func(e *External) { e.Endpoints = []string{"unix://a:1"} },
		`etcd-endpoints: "https://a:1/b"`:  func(e *External) { e.Endpoints = []string{"https://a:1/b"} },
		"etcd-endpoints: some are":         func(e *External) { e.Endpoints[0] = "http://127.0.0.1:1" },
		"etcd-endpoints: http:// is for":   func(e *External) { *e = External{Endpoints: []string{"http://10.0.0.7:2379"}} },
		"etcd-endpoints: they are http://": func(e *External) { *e = External{Endpoints: []string{"http://127.0.0.1:1"}, CA: "a"} },
		"etcd-cert and etcd-key go":        func(e *External) { e.Key = "" },
		"etcd-cert and etcd-key are":       func(e *External) { e.Key, e.Cert = "", "" },
		`etcd-prefix: "a"`:                 func(e *External) { e.Prefix = "a" },
		`etcd-prefix: "/a/"`:               func(e *External) { e.Prefix = "/a/" },
	} {
		e := good
		e.Endpoints = slices.Clone(good.Endpoints)
		change(&e)
		if err := e.Validate(); (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want it to begin with %q", err, want)
		}
	}
	alone := External{Endpoints: []string{"http://127.0.0.1:2379", "http://localhost:2380"}, Prefix: "/a"}
	if err := alone.Validate(); err != nil {
		t.Errorf("without TLS on loopback: %v", err)
	}
}

// TestExternalRefused protects from an etcd that cannot hold Gantry's transactions, from one that is not there, and from settings
// that cannot be.
func TestExternalRefused(t *testing.T) {
	small := outside(t, 128)
	if _, err := Open(t.Context(), Config{External: small}); err == nil || !strings.Contains(err.Error(), "--max-txn-ops=20002") {
		t.Errorf("small transactions: %v", err)
	}
	stranger := *small
	stranger.CA = newAuthority(t).issue(t, "x", "x").CA
	for _, at := range []*External{{}, {Endpoints: []string{"https://127.0.0.1:1"}, Cert: "x"}, &stranger} {
		if s, err := Open(t.Context(), Config{External: at}); err == nil {
			closeStore(t, s)
			t.Errorf("%+v was opened", at)
		}
	}
}
