package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// term is a period in which a server of a test leads.
type term struct {
	server int
	leader *state.Leader
	lost   <-chan struct{}
}

// campaign has a server campaign whenever it does not lead, until the test or the server ends.
func (c *servers) campaign(t testing.TB, i int, terms chan<- term) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	s := c.at[i]
	wg.Go(func() {
		for {
			leader, lost, err := s.Campaign(ctx, c.cfg[i].Name, c.cfg[i].Addr)
			if err != nil {
				return
			}
			terms <- term{i, leader, lost}
			select {
			case <-lost:
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func next(t testing.TB, terms <-chan term) term {
	t.Helper()
	select {
	case n := <-terms:
		return n
	case <-time.After(30 * time.Second):
		t.Fatal("nobody leads")
		return term{}
	}
}

func within(t testing.TB, what string, d time.Duration, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(d):
		t.Errorf("not within %v: %s", d, what)
	}
}

// TestCampaign protects that one server leads at a time, that all know which, and that it hands over when it is told to or ends.
func TestCampaign(t *testing.T) {
	t.Parallel()
	c := newServers(t, 3)
	terms := make(chan term, 100)
	for i := range c.at {
		c.campaign(t, i, terms)
	}
	first := next(t, terms)
	knows := func(want int) {
		t.Helper()
		for i, s := range c.at {
			if s != nil {
				eventually(t, fmt.Sprintf("server %d knows the leader", i), func() bool {
					name, addr, ok := s.Leader()
					return ok && name == c.cfg[want].Name && addr == c.cfg[want].Addr
				})
			}
		}
	}
	knows(first.server)
	update := func(l *state.Leader, id model.AppID) error { return increment(t.Context(), l, id) }
	if err := update(first.leader, "/a"); err != nil {
		t.Fatal(err)
	}
	if err := c.at[first.server].Resign(t.Context(), first.leader); err != nil {
		t.Fatal(err)
	}
	within(t, "who resigned has lost", time.Second, first.lost)
	second := next(t, terms)
	if err := update(first.leader, "/b"); !errors.Is(err, state.ErrDeposed) {
		t.Errorf("who resigned wrote: %v", err)
	}
	for second.server == first.server { // it led again before it had handed over
		<-second.lost
		second = next(t, terms)
	}
	knows(second.server)
	if err := c.at[second.server].Close(); err != nil {
		t.Fatal(err)
	}
	c.at[second.server] = nil
	ended := time.Now()
	third := next(t, terms)
	t.Logf("a leader that ended was followed after %v", time.Since(ended))
	knows(third.server)
	if third.leader.Term() <= second.leader.Term() || third.leader.View().App("/a") == nil || third.leader.View().App("/b") != nil {
		t.Errorf("the third leader has term %d after %d", third.leader.Term(), second.leader.Term())
	}
}

// TestFailover protects how soon writes are accepted again after the leader died. GANTRY_KILLS=n has it die n times.
func TestFailover(t *testing.T) {
	kills := 2
	if n, err := strconv.Atoi(os.Getenv("GANTRY_KILLS")); err == nil {
		kills = n
	} else if testing.Short() {
		kills = 1
	}
	c := newServers(t, 3)
	terms := make(chan term, 100)
	for i := range c.at {
		c.campaign(t, i, terms)
	}
	var took []time.Duration
	lead := next(t, terms)
	for n := range uint64(kills) {
		if err := increment(t.Context(), lead.leader, "/n"); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		died := lead.server
		go c.at[died].link.Load().member.Server.HardStop()
		for lead.server == died {
			lead = next(t, terms)
		}
		if err := increment(t.Context(), lead.leader, "/n"); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(at))
		if got := count(lead.leader.View(), "/n"); got != 2*n+2 {
			t.Fatalf("%d writes are there, want %d", got, 2*n+2)
		}
		c.kill(died)
		c.open(t, died)
		if t.Failed() {
			t.FailNow()
		}
		c.campaign(t, died, terms)
		if err := c.at[died].Fresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(took)
	t.Logf("writes accepted again after %v", took)
	if most := took[len(took)-1]; most > 3*time.Second {
		t.Errorf("writes are accepted again after %v", most)
	}
}

// TestIsolated protects that a leader without the others gives up soon and changes nothing, that the others go on, and that no
// acknowledged write is lost once it is back.
func TestIsolated(t *testing.T) {
	t.Parallel()
	c := newServers(t, 3)
	terms := make(chan term, 100)
	for i := range c.at {
		c.campaign(t, i, terms)
	}
	lead := next(t, terms)
	old := c.at[lead.server]
	if err := increment(t.Context(), lead.leader, "/n"); err != nil {
		t.Fatal(err)
	}
	c.isolate(lead.server, true)
	cut := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := increment(t.Context(), lead.leader, "/stale"); !errors.Is(err, state.ErrUnavailable) && !errors.Is(err, state.ErrDeposed) {
			t.Errorf("the isolated leader wrote: %v", err)
		}
	})
	within(t, "the isolated leader gives up", 5*time.Second, lead.lost)
	t.Logf("the isolated leader gave up after %v", time.Since(cut))
	heir := next(t, terms)
	if err := increment(t.Context(), heir.leader, "/n"); err != nil {
		t.Fatal(err)
	}
	t.Logf("the others went on after %v", time.Since(cut))
	if d := time.Since(cut); d > 5*time.Second {
		t.Errorf("the others went on after %v", d)
	}
	for range 20 {
		if err := increment(t.Context(), c.at[heir.server], "/n"); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, ok := old.Leader(); ok {
		t.Error("the isolated server says that somebody leads")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	if err := old.Fresh(ctx); err == nil {
		t.Error("the isolated server has a fresh view")
	}
	cancel()
	if lag := old.Lag(); lag < time.Second {
		t.Errorf("the isolated server lags %v", lag)
	}
	wg.Wait()
	c.isolate(lead.server, false)
	eventually(t, "the server that is back has a fresh view", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return old.Fresh(ctx) == nil
	})
	if n := count(old.View(), "/n"); n != 22 || old.View().App("/stale") != nil {
		t.Errorf("the server that is back has %d, want 22; stale %v", n, old.View().App("/stale"))
	}
	if err := increment(t.Context(), old, "/n"); err != nil {
		t.Errorf("the server that is back writes: %v", err)
	}
	if err := increment(t.Context(), lead.leader, "/stale"); !errors.Is(err, state.ErrDeposed) {
		t.Errorf("the former leader wrote: %v", err)
	}
}
