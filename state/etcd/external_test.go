package etcd

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/conformance"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
)

// outside starts an etcd that is none of Gantry's, with TLS for clients, and returns how to reach it.
func outside(t *testing.T, ops uint) *External {
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
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	tls := ca.issue(t, "gantry", "gantry.test")
	return &External{Endpoints: []string{client.Host}, Cert: tls.Cert, Key: tls.Key, CA: tls.CA}
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

// TestExternalRefused protects from an etcd that cannot hold Gantry's transactions, from one that is not there, and from settings
// that cannot be.
func TestExternalRefused(t *testing.T) {
	small := outside(t, 128)
	if _, err := Open(t.Context(), Config{External: small}); err == nil || !strings.Contains(err.Error(), "--max-txn-ops=20002") {
		t.Errorf("small transactions: %v", err)
	}
	stranger := *small
	stranger.CA = newAuthority(t).issue(t, "x", "x").CA
	for _, at := range []*External{{}, {Endpoints: []string{"127.0.0.1:1"}, Cert: "x"}, &stranger} {
		if s, err := Open(t.Context(), Config{External: at}); err == nil {
			closeStore(t, s)
			t.Errorf("%+v was opened", at)
		}
	}
}
