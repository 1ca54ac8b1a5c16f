package app

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

func put(t testing.TB, s state.Store, fn func(*state.Tx)) {
	t.Helper()
	if err := s.Update(context.Background(), func(tx *state.Tx) error { fn(tx); return nil }); err != nil {
		t.Fatal(err)
	}
}

// putApp writes version 1 of an app of n instances, and its deployment.
func putApp(tx *state.Tx, id model.AppID, n int) {
	spec := &model.Spec{ID: id, Instances: &n, Containers: []model.Container{{Shell: "run"}}, Update: &model.Update{MinHealthyTime: new(model.Duration)}}
	dep := model.DeploymentID("d" + string(id[1:]))
	tx.PutApp(&model.App{ID: id, Version: 1, Deployment: dep})
	tx.PutVersion(&model.AppVersion{App: id, Version: 1, Spec: spec})
	tx.PutDeployment(&model.Deployment{ID: dep, App: id, Kind: model.DeployCreate, To: 1, State: model.DeployRunning})
}

func ready(tx *state.Tx, i *model.Instance, now time.Time) {
	i = i.Clone()
	i.Node, i.Status = "a", model.Status{Attempt: 1, Phase: model.PhaseRunning, Ready: true, Since: now}
	tx.PutInstance(i)
}

func step(t testing.TB, l *Loop) time.Time {
	t.Helper()
	next, err := l.Step(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// TestLargeCreatesComeInChunks protects the store from transactions that grow with the app.
func TestLargeCreatesComeInChunks(t *testing.T) {
	const n = 2*chunk + 500
	db := memory.Open(time.Now)
	put(t, db, func(tx *state.Tx) { putApp(tx, "/big", n) })
	before := db.View().Revision()
	l := New(db, Config{})
	step(t, l)
	if got, writes := db.View().InstanceCount(), db.View().Revision()-before; got != n || writes < 3 {
		t.Fatalf("%d instances in %d transactions, want %d in at least 3", got, writes, n)
	}
	for range 5 {
		step(t, l)
	}
	if got := db.View().InstanceCount(); got != n {
		t.Fatalf("%d instances after more steps, want %d", got, n)
	}
}

// TestLargeCreatesShareNoSlot protects slots where a plan is cut into transactions, each of which is planned anew.
func TestLargeCreatesShareNoSlot(t *testing.T) {
	const n = chunk + 500
	db := memory.Open(time.Now)
	put(t, db, func(tx *state.Tx) {
		putApp(tx, "/big", n)
		v := *tx.Target("/big")
		v.Spec = v.Spec.Clone()
		v.Spec.Volumes = []model.Volume{{Name: "data", Persistent: &model.Persistent{Size: model.GiB}}}
		tx.PutVersion(&v)
	})
	step(t, New(db, Config{}))
	slots := map[uint32]bool{}
	for i := range db.View().Instances() {
		slots[i.Slot] = true
	}
	if got := db.View().InstanceCount(); got != n || len(slots) != n || !slots[1] || !slots[n] {
		t.Fatalf("%d instances in %d slots, want %d in 1 to %d", got, len(slots), n, n)
	}
}

// TestManyAppsShareATransaction protects the speed of a mass of small changes.
func TestManyAppsShareATransaction(t *testing.T) {
	db := memory.Open(time.Now)
	put(t, db, func(tx *state.Tx) {
		for n := range 500 {
			putApp(tx, model.AppID(fmt.Sprintf("/app-%d", n)), 1)
		}
	})
	before := db.View().Revision()
	step(t, New(db, Config{}))
	if got, writes := db.View().InstanceCount(), db.View().Revision()-before; got != 500 || writes != 1 {
		t.Fatalf("%d instances in %d transactions, want 500 in 1", got, writes)
	}
}

// TestIdleAppsAreLeftAlone protects the cost of a settled app: a change of a live instance's status plans nothing, an
// instance that is lost does.
func TestIdleAppsAreLeftAlone(t *testing.T) {
	now := epoch
	db := memory.Open(func() time.Time { return now })
	l := New(db, Config{Now: func() time.Time { return now }})
	put(t, db, func(tx *state.Tx) { putApp(tx, "/web", 3) })
	step(t, l)
	put(t, db, func(tx *state.Tx) {
		for i := range tx.Instances() {
			ready(tx, i, now)
		}
	})
	var next time.Time
	for range 3 {
		next = step(t, l)
	}
	if d := db.View().Deployment("dweb"); d.State != model.DeploySucceeded {
		t.Fatalf("deployment is %s: %s", d.State, d.Message)
	}
	if next.Before(now.Add(resync)) {
		t.Fatalf("an idle app asks to be planned in %v", next.Sub(now))
	}
	flip := func(phase model.Phase) {
		put(t, db, func(tx *state.Tx) {
			for i := range tx.Instances() {
				if i.Live() {
					i = i.Clone()
					i.Status.Phase, i.Status.Ready = phase, false
					tx.PutInstance(i)
					return
				}
			}
		})
		step(t, l)
	}
	flip(model.PhaseBackoff)
	if l.looked != 0 {
		t.Fatalf("a restart in a settled app made it plan %d instances", l.looked)
	}
	put(t, db, func(tx *state.Tx) {
		for i := range tx.Instances() {
			i = i.Clone()
			i.Evict = &model.Eviction{Kind: model.EvictDrain, Why: "work on a", At: now}
			tx.PutInstance(i)
			return
		}
	})
	if step(t, l); db.View().InstanceCount() != 4 {
		t.Fatalf("%d instances after one has to leave, want 4", db.View().InstanceCount())
	}
	put(t, db, func(tx *state.Tx) {
		for i := range tx.Instances() {
			i = i.Clone()
			i.Evict = nil
			if i.Replaces != "" {
				tx.DeleteInstance(i.ID)
				continue
			}
			ready(tx, i, now)
		}
	})
	for range 3 {
		step(t, l)
	}
	now = now.Add(time.Minute)
	flip(model.PhaseStopped)
	if got := db.View().InstanceCount(); got != 4 {
		t.Fatalf("%d instances after one was lost, want 4", got)
	}
}

// TestPlansAreMadeAnew protects against a write on records that changed after they were planned on.
func TestPlansAreMadeAnew(t *testing.T) {
	db := memory.Open(time.Now)
	put(t, db, func(tx *state.Tx) { putApp(tx, "/web", 3) })
	between := &interloper{Store: db, do: func(tx *state.Tx) {
		for n := range 2 {
			tx.PutInstance(&model.Instance{ID: model.InstanceID(fmt.Sprint("web-x", n)), App: "/web", Version: 1, Desired: model.Run,
				Status: model.Status{Phase: model.PhasePending}})
		}
	}}
	step(t, New(between, Config{}))
	if got := db.View().InstanceCount(); got != 3 {
		t.Fatalf("%d instances, want 3: the plan was written on old records", got)
	}
}

// interloper writes once, in the transaction that it takes, before its owner does.
type interloper struct {
	state.Store
	do func(*state.Tx)
}

func (s *interloper) Update(ctx context.Context, fn func(*state.Tx) error) error {
	return s.Store.Update(ctx, func(tx *state.Tx) error {
		if s.do != nil {
			s.do(tx)
			s.do = nil
		}
		return fn(tx)
	})
}

// TestRunEnds protects that a loop ends with its context, and at once when another server leads.
func TestRunEnds(t *testing.T) {
	store := memory.New()
	db := store.Open(time.Now)
	first, err := db.Lead(context.Background(), "one")
	if err != nil {
		t.Fatal(err)
	}
	put(t, db, func(tx *state.Tx) { putApp(tx, "/web", 1) })
	ctx, cancel := context.WithCancelCause(context.Background())
	_, watch := db.Watch()
	done := make(chan error, 1)
	go func() { done <- New(first, Config{}).Run(ctx) }()
	for db.View().InstanceCount() == 0 {
		if _, _, err := watch.Next(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	cause := errors.New("enough")
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Fatalf("Run ended with %v, want the context's cause", err)
	}
	if _, err := db.Lead(context.Background(), "two"); err != nil {
		t.Fatal(err)
	}
	put(t, db, func(tx *state.Tx) { putApp(tx, "/other", 1) })
	if err := New(first, Config{}).Run(context.Background()); !errors.Is(err, state.ErrDeposed) {
		t.Fatalf("Run of a deposed leader ended with %v", err)
	}
}

// TestRunRetries protects that a store which fails for a while is no end.
func TestRunRetries(t *testing.T) {
	db := memory.Open(time.Now)
	put(t, db, func(tx *state.Tx) { putApp(tx, "/web", 1) })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, watch := db.Watch()
	done := make(chan error, 1)
	go func() { done <- New(&failing{Store: db, left: 2}, Config{}).Run(ctx) }()
	for db.View().InstanceCount() == 0 {
		select {
		case <-watch.Ready():
		case err := <-done:
			t.Fatalf("Run ended: %v", err)
		}
	}
	cancel()
	<-done
}

type failing struct {
	state.Store
	left int
}

func (s *failing) Update(ctx context.Context, fn func(*state.Tx) error) error {
	if s.left > 0 {
		s.left--
		return state.ErrUnavailable
	}
	return s.Store.Update(ctx, fn)
}

// TestFullStoreIsRelieved protects the way out of a full store, which takes only deletions: what is past goes even while
// nothing else can be written.
func TestFullStoreIsRelieved(t *testing.T) {
	now := epoch
	db := memory.Open(func() time.Time { return now })
	put(t, db, func(tx *state.Tx) {
		putApp(tx, "/web", 3)
		tx.PutInstance(&model.Instance{ID: "web-old", App: "/web", Version: 1, Desired: model.Halt,
			Status: model.Status{Phase: model.PhaseStopped, Since: now.Add(-2 * time.Hour)}})
	})
	l := New(&full{db}, Config{Now: func() time.Time { return now }})
	if _, err := l.Step(context.Background()); !errors.Is(err, state.ErrNoSpace) {
		t.Fatalf("step ended with %v", err)
	}
	if db.View().InstanceCount() != 0 {
		t.Fatal("what is past is still there")
	}
}

// full is a store that takes only deletions.
type full struct{ *state.DB }

func (s *full) Update(ctx context.Context, fn func(*state.Tx) error) error {
	return s.DB.Update(ctx, func(tx *state.Tx) error {
		before := tx.InstanceCount()
		if err := fn(tx); err != nil {
			return err
		}
		if tx.InstanceCount() > before {
			return state.ErrNoSpace
		}
		return nil
	})
}

func TestRandomID(t *testing.T) {
	form := regexp.MustCompile(`^web-[a-z2-7]{8}$`)
	seen := map[string]bool{}
	for range 1000 {
		id := RandomID("web")
		if !form.MatchString(id) || seen[id] {
			t.Fatalf("%q is not new, or not of the form %s", id, form)
		}
		seen[id] = true
	}
}

// TestAlarms protects the order of wake-ups, and that a time set anew replaces the one before.
func TestAlarms(t *testing.T) {
	var a alarms
	for n := range 1000 {
		a.set(model.AppID(fmt.Sprint("/app-", n%10)), epoch.Add(time.Duration(1000-n)*time.Second))
	}
	if len(a.heap) > 128 {
		t.Fatalf("%d entries for 10 apps", len(a.heap))
	}
	if got := a.next(); !got.Equal(epoch.Add(time.Second)) {
		t.Fatalf("next is %v", got)
	}
	a.set("/app-9", time.Time{})
	if got := a.due(epoch.Add(3 * time.Second)); len(got) != 2 || got[0] != "/app-8" || got[1] != "/app-7" {
		t.Fatalf("due are %v", got)
	}
	if got := a.next(); !got.Equal(epoch.Add(4 * time.Second)) {
		t.Fatalf("next is %v", got)
	}
}

// BenchmarkOneOfMany is one report from an app of 100,000 instances that is settled, and the loss of one.
func BenchmarkOneOfMany(b *testing.B) {
	db := memory.Open(time.Now)
	l := New(db, Config{})
	put(b, db, func(tx *state.Tx) { putApp(tx, "/big", 100_000) })
	step(b, l)
	put(b, db, func(tx *state.Tx) {
		for i := range tx.Instances() {
			ready(tx, i, epoch)
		}
	})
	for range 3 {
		step(b, l)
	}
	if len(l.settled) != 1 {
		b.Fatalf("the app is not settled: %s", db.View().Deployment("dbig").Message)
	}
	one := func(change func(*model.Instance)) {
		put(b, db, func(tx *state.Tx) {
			for i := range tx.InstancesOf("/big") {
				if i.Live() {
					i = i.Clone()
					change(i)
					tx.PutInstance(i)
					return
				}
			}
		})
	}
	b.Run("report", func(b *testing.B) {
		for b.Loop() {
			one(func(i *model.Instance) { i.Status.Attempt++ })
			step(b, l)
		}
	})
	b.Run("loss", func(b *testing.B) {
		for b.Loop() {
			one(func(i *model.Instance) { i.Status.Phase = model.PhaseStopped })
			step(b, l)
		}
	})
}
