package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// coming is the release after this one.
var coming = model.ThisRelease.Next()

// lead has a server lead whenever it may.
func (c *servers) lead(t *testing.T, i int) {
	s := c.at[i]
	go func() {
		for {
			_, lost, err := s.Campaign(s.living, s.cfg.Name, s.cfg.Addr)
			if err != nil {
				return
			}
			<-lost
		}
	}()
}

// restart starts a server again, of another release.
func (c *servers) restart(t *testing.T, i int, r model.Release) {
	t.Helper()
	if c.at[i] != nil {
		closeStore(t, c.at[i])
	}
	c.at[i], c.cfg[i].Release = nil, r
	if c.open(t, i); t.Failed() {
		t.FailNow()
	}
	c.lead(t, i)
}

func (c *servers) refused(t *testing.T, i int, r model.Release, want string) {
	t.Helper()
	cfg := c.cfg[i]
	cfg.Release = r
	s, err := Open(t.Context(), cfg)
	if err == nil {
		closeStore(t, s)
	}
	if !errors.Is(err, ErrRelease) || !strings.Contains(err.Error(), want) {
		t.Errorf("a server of %v: %v, want %q", r, err, want)
	}
}

// TestUpgrade protects that servers are upgraded one at a time: what is stored changes once all are, and not before; one that goes
// back before may, and after it is refused, as is one that is too new; every server takes writes at every moment.
func TestUpgrade(t *testing.T) {
	c := newServers(t, 3)
	this := model.ThisRelease
	for i := range c.at {
		c.lead(t, i)
	}
	check := func(stored model.Release, waits string) {
		t.Helper()
		for i, s := range c.at {
			if s == nil {
				continue
			}
			eventually(t, s.cfg.Name+" takes a write", func() bool { return increment(t.Context(), s, "/n") == nil })
			var st Status
			told := func() bool { // names and versions come to each server a moment later
				var err error
				if st, err = s.Status(t.Context()); err != nil {
					t.Fatal(err)
				}
				return st.Stored == stored && fmt.Sprint(st.Waits) == waits && st.Servers[c.cfg[i].Name].Release == s.cfg.Release
			}
			eventually(t, fmt.Sprintf("%s says that %v is stored and that it waits for %s", s.cfg.Name, stored, waits), told)
		}
	}
	check(this, "[]")
	closeStore(t, c.at[1])
	c.at[1] = nil
	c.refused(t, 1, coming.Next(), fmt.Sprintf("start it with Gantry %v", coming))
	c.restart(t, 1, coming)
	check(this, "[a c]")
	c.restart(t, 1, this)
	check(this, "[]")
	c.restart(t, 1, coming)
	c.restart(t, 2, coming)
	check(this, "[a]")
	if err := c.at[1].Admit("d", coming.Next()); !errors.Is(err, ErrRelease) {
		t.Errorf("a server that is too new may join: %v", err)
	}
	c.kill(0)
	check(this, "[a]") // it may come back as it was
	c.cfg[0].Release = this
	c.open(t, 0)
	c.lead(t, 0)
	c.restart(t, 0, coming)
	for i, s := range c.at {
		eventually(t, "what is stored is that of the new release", func() bool { return s.View().Stored() == coming })
		if st, err := s.Status(t.Context()); err != nil || st.Stored != coming || len(st.Waits) > 0 {
			t.Errorf("%s: %v is stored, %v are waited for: %v", c.cfg[i].Name, st.Stored, st.Waits, err)
		}
	}
	closeStore(t, c.at[2])
	c.at[2] = nil
	c.refused(t, 2, this, fmt.Sprintf("start it with Gantry %v", coming))
	if err := c.at[1].Admit("d", this); !errors.Is(err, ErrRelease) {
		t.Errorf("a server that is too old may join: %v", err)
	}
	c.open(t, 2)
	check(coming, "[]")
}

// TestAloneUpgrades protects that a server that is alone upgrades what it stores, and that the old program refuses that.
func TestAloneUpgrades(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, Ephemeral: true})
	closeStore(t, s)
	s = open(t, Config{Dir: dir, Ephemeral: true, Release: coming})
	if st, err := s.Status(t.Context()); err != nil || st.Stored != coming {
		t.Errorf("%v is stored: %v", st.Stored, err)
	}
	closeStore(t, s)
	if _, err := Open(t.Context(), Config{Dir: dir, Ephemeral: true}); !errors.Is(err, ErrRelease) {
		t.Errorf("the old program takes it: %v", err)
	}
}

// TestRaiseAgainstStart protects that a server which goes back while the stored release is raised is either known to who raises it,
// or refused.
func TestRaiseAgainstStart(t *testing.T) {
	at := outside(t, maxOps+2)
	s := open(t, Config{External: at, Name: "witness", Release: coming})
	if _, _, err := s.Campaign(t.Context(), "new", "new:1"); err != nil {
		t.Fatal(err)
	}
	raiser := &Store{cfg: Config{Name: "new", Release: coming, External: at}, DB: s.DB, living: s.living, log: s.log}
	raiser.head.Store(s.head.Load())
	if err := s.Update(t.Context(), func(tx *state.Tx) error {
		tx.PutMachine(&model.Machine{ID: model.MachineOf(model.ServerMachine, "old")})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	raised := 0
	for n := range 200 {
		l := s.link.Load()
		if _, err := l.client.Txn(t.Context()).Then(
			clientv3.OpPut(serversKey+"old", `{"release":"`+coming.String()+`"}`), clientv3.OpPut(storedKey, model.ThisRelease.String()),
		).Commit(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the view follows", func() bool { return s.View().Stored() == model.ThisRelease })
		old := &Store{cfg: Config{Name: "old", Release: model.ThisRelease, External: at}}
		entered := make(chan error)
		go func() { entered <- old.enter(context.WithoutCancel(t.Context()), l) }()
		if err := raiser.raise(l); err != nil {
			t.Fatal(err)
		}
		err := <-entered
		if err != nil && !errors.Is(err, ErrRelease) {
			t.Fatal(err)
		}
		known, readErr := s.releases(t.Context(), l)
		if readErr != nil {
			t.Fatal(readErr)
		}
		if known.stored == coming {
			raised++
		}
		if (err == nil) == (known.stored == coming) {
			t.Fatalf("round %d: the old server is told %v, and %v is stored", n, err, known.stored)
		}
	}
	t.Logf("it was raised first in %d rounds of 200", raised)
}
