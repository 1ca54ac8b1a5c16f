package pki

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

// world is a cluster in simulated time, whose calls are slow, get lost, and are answered by servers that are behind.
type world struct {
	t     *testing.T
	ctx   context.Context
	store *memory.Store
	wg    sync.WaitGroup

	mu       sync.Mutex
	rng      *rand.Rand
	servers  []*server
	machines map[model.MachineID]*Machine
	broken   bool
	checks   int
	seen     map[model.MachineID]*papers // when they were last checked
}

type server struct {
	db    *state.DB
	lag   *lagging
	auth  *Authority
	reg   *Registrar
	own   *Machine
	sleep atomic.Bool
}

// lagging is a store whose view is sometimes old.
type lagging struct {
	*state.DB
	w   *world
	old state.View
	has bool
}

func (l *lagging) View() state.View {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if !l.has || l.w.rng.IntN(3) > 0 {
		l.old, l.has = l.DB.View(), true
	}
	return l.old
}

func (w *world) chance(percent int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(100) < percent
}

func (w *world) pause(most time.Duration) {
	w.mu.Lock()
	d := time.Duration(w.rng.Int64N(int64(most)))
	w.mu.Unlock()
	time.Sleep(d)
}

func newWorld(t *testing.T, ctx context.Context, seed uint64) *world {
	w := &world{t: t, ctx: ctx, store: memory.New(), rng: rand.New(rand.NewPCG(seed, 0)), machines: map[model.MachineID]*Machine{}, seen: map[model.MachineID]*papers{}}
	dir := t.TempDir()
	auth, own, err := Found(dir, "s0", nil, MachineOptions{Logger: quiet})
	must(t, err)
	s := w.addServer(auth, own)
	must(t, s.reg.Settle(ctx, own))
	w.start(s)
	for i := range 2 {
		m := w.join(model.ServerMachine, fmt.Sprint("s", i+1))
		auth, err := OpenAuthority(m.dir)
		must(t, err)
		w.start(w.addServer(auth, m))
	}
	w.spawn(func() { must(t, ignoreEnd(NewWarden(w.servers[0].db, time.Now, DefaultGrace, quiet).Run(ctx))) })
	return w
}

func ignoreEnd(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (w *world) spawn(fn func()) { w.wg.Go(fn) }

func (w *world) addServer(auth *Authority, own *Machine) *server {
	s := &server{db: w.store.Open(time.Now), auth: auth, own: own}
	s.lag = &lagging{DB: s.db, w: w}
	s.reg = NewRegistrar(RegistrarConfig{Store: s.lag, Authority: auth})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers = append(w.servers, s)
	w.machines[own.Peer().ID()] = own
	return s
}

func (w *world) start(s *server) {
	keeper := NewKeeper(s.db, s.auth, quiet, s.own)
	w.spawn(func() { must(w.t, ignoreEnd(keeper.Run(w.ctx))) })
	w.run(s.own, s.sleep.Load)
}

// run lets a machine check in for ever, but while it sleeps.
func (w *world) run(m *Machine, sleeps func() bool) {
	w.spawn(func() { must(w.t, ignoreEnd(m.Run(w.ctx, faulty{w, sleeps}))) })
}

// faulty is a door that loses calls and answers.
type faulty struct {
	w      *world
	sleeps func() bool
}

func (d faulty) CheckIn(ctx context.Context, in CheckIn) (*Standing, error) {
	w := d.w
	w.pause(5 * time.Second)
	if d.sleeps() || w.chance(10) {
		return nil, ErrUnavailable
	}
	w.mu.Lock()
	s := w.servers[w.rng.IntN(len(w.servers))]
	w.mu.Unlock()
	st, err := s.reg.CheckIn(ctx, in)
	w.check()
	w.pause(5 * time.Second)
	if w.chance(10) {
		return nil, ErrUnavailable
	}
	w.check()
	return st, err
}

func (w *world) join(role model.MachineRole, name string) *Machine {
	for {
		s := w.servers[0]
		tok, err := s.reg.CreateToken(w.ctx, TokenSpec{Role: role, TTL: time.Hour, Uses: 1})
		must(w.t, err)
		key, csr, err := newCSR(role, nil)
		must(w.t, err)
		out, err := s.reg.Join(w.ctx, JoinRequest{Token: tok.Text(), Role: role, Name: name, CSR: csr})
		if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrToken) { // the server is behind
			w.pause(time.Second)
			continue
		}
		must(w.t, err)
		m := newMachine(w.t.TempDir(), MachineOptions{Logger: quiet})
		must(w.t, keepAdmission(m, JoinOptions{Role: role, Name: name, Dir: m.dir}, out))
		w.pause(5 * time.Second)
		must(w.t, m.begin(out.Standing, key, nil))
		w.mu.Lock()
		w.machines[m.Peer().ID()] = m
		w.mu.Unlock()
		w.check()
		return m
	}
}

// check protects the promise: of all machines whose certificate has not expired, each trusts each, by what it has in
// memory and without the help of cross-signed roots.
func (w *world) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, news := time.Now(), false
	for id, x := range w.machines {
		if p := x.cur.Load(); w.seen[id] != p {
			w.seen[id], news = p, true
		}
	}
	if !news { // time alone only makes fewer that have to be trusted
		return
	}
	for _, x := range w.machines {
		leaf := x.cur.Load().cert.Leaf
		if leaf.NotAfter.Before(now) {
			continue
		}
		for _, y := range w.machines {
			p := y.cur.Load()
			w.checks++
			if p.cert.Leaf.NotAfter.After(now) && p.trust.issuerOf(leaf) == "" && !w.broken {
				w.broken = true
				w.t.Errorf("at %v: %v, with trust %d, does not trust the certificate of %v, with trust %d", now, p.peer, p.trust.version, x.Peer(), x.Trust())
			}
		}
	}
}

func (w *world) cluster() *model.Cluster { return w.servers[0].db.View().Cluster() }

// rotate rotates the authority and returns how long it took.
func (w *world) rotate(most time.Duration) time.Duration {
	start := time.Now()
	for {
		err := w.servers[0].reg.Rotate(w.ctx)
		if err == nil {
			break
		}
		if !errors.Is(err, ErrUnavailable) {
			w.t.Fatal(err)
		}
		w.pause(time.Second)
	}
	for PhaseOf(w.cluster()) != Steady {
		w.pause(time.Minute)
		w.check()
		if time.Since(start) > most {
			w.t.Fatalf("after %v the authority is not rotated: %s", most, RotationOf(w.servers[0].db.View(), time.Now()).Reason)
		}
	}
	return time.Since(start)
}

// At every moment of a rotation every machine trusts every other, whatever gets lost and whoever joins or sleeps meanwhile,
// and nobody has to do anything for it to end.
func TestRotationCutsNobodyOff(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(context.Background())
				w := newWorld(t, ctx, seed)
				awake := func() bool { return false }
				for i := range 6 {
					w.run(w.join(model.AgentMachine, fmt.Sprint("n", i)), awake)
				}
				first := w.cluster().Issuer
				joined := make(chan struct{})
				w.spawn(func() { // while it goes on
					defer close(joined)
					for i := range 6 {
						w.pause(20 * time.Minute)
						w.run(w.join(model.AgentMachine, fmt.Sprint("late", i)), awake)
					}
				})
				quick := w.rotate(2 * time.Hour)
				<-joined
				w.join(model.AgentMachine, "sleeper") // never checks in: it is waited for while its certificate lasts
				slow := w.rotate(2*DefaultTTL + 2*time.Hour)
				if slow < DefaultTTL {
					t.Errorf("with a sleeper it took %v", slow)
				}
				time.Sleep(2 * 24 * time.Hour) // and certificates are renewed
				w.check()
				for id, m := range w.machines {
					if id != "agent/sleeper" && (m.Expires().Before(time.Now()) || m.cur.Load().trust.issuerOf(m.cur.Load().cert.Leaf) == "" || len(m.cur.Load().trust.roots) != 1) {
						t.Errorf("%s is left behind: trust %d, expires %v", id, m.Trust(), m.Expires())
					}
				}
				if w.cluster().Root(first) != nil {
					t.Error("the first root is still trusted")
				}
				cancel()
				w.wg.Wait()
				t.Logf("rotations took %v and %v, %d pairs were checked", quick, slow, w.checks)
			})
		})
	}
}

// A server that does not answer is waited for until it is removed, and the sentence says so.
func TestRotationWaitsForServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		w := newWorld(t, ctx, 1)
		w.servers[2].sleep.Store(true)
		must(t, retryUnavailable(func() error { return w.servers[0].reg.Rotate(ctx) }))
		time.Sleep(5 * 24 * time.Hour)
		r := RotationOf(w.servers[0].db.View(), time.Now())
		if r.Phase != Spreading || !slices.Equal(r.Waits, []model.MachineID{"server/s2"}) || r.Of != 3 || !strings.Contains(r.Reason, "server/s2") {
			t.Errorf("waits as %+v", r)
		}
		want(t, "another rotation", retryUnavailable(func() error { return w.servers[0].reg.Rotate(ctx) }), ErrBusy)
		must(t, w.servers[0].db.Update(ctx, func(tx *state.Tx) error {
			RevokeIn(tx, "server/s2", "it is gone", time.Now())
			return nil
		}))
		w.mu.Lock()
		delete(w.machines, "server/s2")
		w.mu.Unlock()
		time.Sleep(2 * time.Hour)
		if p := PhaseOf(w.cluster()); p != Steady {
			t.Errorf("it is still %s", p)
		}
		cancel()
		w.wg.Wait()
	})
}

func retryUnavailable(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, ErrUnavailable) {
			return err
		}
	}
}

// The planner moves on when nobody is waited for, and says who is.
func TestRotationNext(t *testing.T) {
	now := time.Date(2026, 5, 9, 7, 0, 0, 0, time.UTC)
	roots := []model.Root{{Fingerprint: "old"}, {Fingerprint: "new"}}
	steady := &model.Cluster{ID: "c", Roots: roots[:1], Issuer: "old", Trust: 1}
	spreading := &model.Cluster{ID: "c", Roots: roots, Issuer: "old", Trust: 2}
	issuing := &model.Cluster{ID: "c", Roots: roots, Issuer: "new", Trust: 3}
	machine := func(id model.MachineID, trust uint64, issuer string, left time.Duration) *model.Machine {
		return &model.Machine{ID: id, Trust: trust, Issuer: issuer, Expires: now.Add(left)}
	}
	for _, c := range []struct {
		what     string
		cluster  *model.Cluster
		machines []*model.Machine
		phase    Phase
		waits    int
		then     Phase // "" for no change
	}{
		{"steady", steady, []*model.Machine{machine("agent/a", 1, "old", time.Hour)}, Steady, 0, ""},
		{"an agent has not heard", spreading, []*model.Machine{machine("agent/a", 1, "old", time.Hour)}, Spreading, 1, ""},
		{"all have heard", spreading, []*model.Machine{machine("agent/a", 2, "old", time.Hour)}, Spreading, 0, Issuing},
		{"an agent's time is over", spreading, []*model.Machine{machine("agent/a", 1, "old", 0)}, Spreading, 0, Issuing},
		{"a server's time is over", spreading, []*model.Machine{machine("server/a", 1, "old", 0)}, Spreading, 1, ""},
		{"an old certificate", issuing, []*model.Machine{machine("agent/a", 3, "old", time.Hour), machine("agent/b", 2, "new", time.Hour)}, Issuing, 1, ""},
		{"all new", issuing, []*model.Machine{machine("agent/a", 2, "new", time.Hour)}, Issuing, 0, Steady},
		{"nobody", issuing, nil, Issuing, 0, Steady},
	} {
		db := memory.Open(time.Now)
		must(t, db.Update(t.Context(), func(tx *state.Tx) error {
			copied := *c.cluster
			tx.PutCluster(&copied)
			for _, m := range c.machines {
				tx.PutMachine(m)
			}
			return nil
		}))
		r := RotationOf(db.View(), now)
		if r.Phase != c.phase || len(r.Waits) != c.waits || r.Reason == "" {
			t.Errorf("%s: %+v", c.what, r)
		}
		next := r.Next(c.cluster, now)
		if (next == nil) != (c.then == "") || next != nil && (PhaseOf(next) != c.then || next.Trust != c.cluster.Trust+1) {
			t.Errorf("%s: then %+v, want %s", c.what, next, c.then)
		}
	}
	if r := RotationOf(memory.Open(time.Now).View(), now); r.Phase != Steady || r.Next(nil, now) != nil {
		t.Errorf("without a cluster: %+v", r)
	}
}

// What is over is forgotten, and a removed server is not.
func TestWardenForgets(t *testing.T) {
	c := newCluster(t)
	c.agent("n1")
	c.agent("n2")
	_, err := c.join(c.token(model.ServerMachine, 1), model.ServerMachine, "b")
	must(t, err)
	must(t, c.reg.Revoke(t.Context(), "agent/n2", ""))
	must(t, c.reg.Revoke(t.Context(), "server/b", ""))
	w := NewWarden(c.db, c.clk.now, DefaultGrace, quiet)
	count := func() (tokens, machines, revoked int) {
		_, err := w.Step(t.Context())
		must(t, err)
		v := c.db.View()
		return len(slices.Collect(v.Tokens())), len(slices.Collect(v.Machines())), len(slices.Collect(v.Revocations()))
	}
	for _, x := range []struct {
		after                     time.Duration
		tokens, machines, revoked int
	}{{0, 3, 2, 2}, {24 * time.Hour, 3, 2, 2}, {2 * time.Hour, 0, 2, 1}, {DefaultGrace, 0, 1, 1}, {1000 * time.Hour, 0, 1, 1}} {
		c.clk.skip(x.after)
		if a, b, d := count(); a != x.tokens || b != x.machines || d != x.revoked {
			t.Errorf("after %v more: %d tokens, %d machines, %d revocations, want %+v", x.after, a, b, d, x)
		}
	}
}

// Who trusts the old root alone accepts what the new one signs, through the new root's certificate by the old.
func TestCrossSigned(t *testing.T) {
	c := newCluster(t)
	old := c.self.cur.Load().trust
	w := NewWarden(c.db, c.clk.now, DefaultGrace, quiet)
	must(t, c.reg.Rotate(t.Context()))
	for range 4 {
		must(t, c.self.CheckIn(t.Context(), c.reg))
		_, err := w.Step(t.Context())
		must(t, err)
	}
	if c.db.View().Cluster().Trust != 4 {
		t.Fatal("the authority was not rotated")
	}
	chain, err := parseChain(c.self.cur.Load().cert.Certificate)
	must(t, err)
	if _, err := old.verify(chain, c.clk.now()); err != nil {
		t.Errorf("one rotation later: %v", err)
	}
	stale := c.token(model.AgentMachine, 1) // as one made before the rotation: it names the old root
	stale.Roots = []string{Fingerprint(old.roots[0])}
	_, err = c.join(stale, model.AgentMachine, "n1")
	want(t, "a token from before", err, ErrFingerprint)
	must(t, c.auth.Update(c.db.View().Cluster()))
	again, err := OpenAuthority(c.dir)
	if err != nil || again.Cluster().Trust != 4 {
		t.Errorf("the authority on disk is not the new one: %v", err)
	}
}
