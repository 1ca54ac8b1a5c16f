package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/memory"
)

// fault is what goes wrong with one transaction of a leader.
type fault string

const (
	fails   fault = "fails"                       // nothing is written
	deposes fault = "deposes"                     // another leads from then on
	applies fault = "applies without a word"      // it is written, and nobody says so
	delays  fault = "is written after the next %" // nobody says so, and it is written in the middle of what comes then
)

// shaky is a backend of which one transaction goes wrong.
type shaky struct {
	*memory.Store
	t       testing.TB
	servers []*state.DB

	mu    sync.Mutex
	count int // transactions of leaders
	at    int // which of them goes wrong, from 1; 0 for none
	how   fault
	wait  int // transactions after which a delayed one is written
	held  func()
}

func newShaky(t testing.TB, clock func() time.Time) *shaky {
	s := &shaky{Store: memory.New(), t: t}
	for range 2 {
		s.servers = append(s.servers, state.New(s, clock))
	}
	return s
}

func (s *shaky) Commit(term state.Term, base uint64, ops []state.Op) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		if s.wait--; s.wait < 0 {
			s.held()
			s.held = nil
		}
	}
	if term != 0 {
		s.count++
	}
	if term == 0 || s.count != s.at {
		return s.write(term, base, ops)
	}
	switch s.how {
	case deposes:
		if _, _, err := s.Lead(context.Background(), "another"); err != nil {
			s.t.Error(err)
		}
		return s.write(term, base, ops)
	case applies:
		if _, err := s.write(term, base, ops); err != nil {
			return 0, err
		}
	case delays:
		ops = copies(ops)
		s.held = func() { _, _ = s.write(term, base, ops) }
	case fails:
	}
	return 0, state.ErrUnavailable
}

// write makes a transaction durable, and brings it to all servers.
func (s *shaky) write(term state.Term, base uint64, ops []state.Op) (uint64, error) {
	rev, err := s.Store.Commit(term, base, copies(ops))
	if err == nil {
		for _, db := range s.servers {
			db.Apply(rev, copies(ops))
		}
	}
	return rev, err
}

func copies(ops []state.Op) []state.Op {
	out := append([]state.Op(nil), ops...)
	for n := range out {
		if out[n].Val != nil {
			val := reflect.ValueOf(out[n].Val).Elem()
			dup := reflect.New(val.Type())
			dup.Elem().Set(val)
			out[n].Val = dup.Interface()
		}
	}
	return out
}

// hand does what orchestrator and agents do, as bluntly as they may: who is to end ends, who leaves gets an heir.
type hand struct {
	testing.TB
	made int
	was  map[model.InstanceID]*model.Instance // as placed
}

func (h *hand) react(db state.Store) {
	h.Helper()
	err := db.Update(context.Background(), func(tx *state.Tx) error {
		heirs := map[model.InstanceID]*model.Instance{}
		for i := range tx.Instances() {
			if i.Replaces != "" && i.Live() {
				heirs[i.Replaces] = i
			}
		}
		for i := range tx.Instances() {
			h.advance(tx, i.Clone(), heirs[i.ID])
		}
		return nil
	})
	if err != nil {
		h.Fatal(err)
	}
}

func (h *hand) advance(tx *state.Tx, i *model.Instance, heir *model.Instance) {
	old := tx.Instance(i.Replaces)
	switch {
	case i.Over():
		return
	case i.Desired == model.Halt:
		over(i)
	case i.Evict != nil && i.Evict.Kind == model.EvictPreempt:
		i.Desired = model.Halt
		h.another(tx, i, "")
	case i.Evict != nil && i.Slot == 0 && heir == nil:
		h.another(tx, i, i.ID)
	case i.Evict != nil && heir != nil && heir.Status.Phase == model.PhaseRunning:
		i.Desired = model.Halt
	case i.Node == "" && old != nil && old.Live() && old.Evict == nil:
		i.Desired = model.Halt
	case i.Status.Phase == model.PhaseAssigned:
		i.Status.Phase, i.Status.Ready = model.PhaseRunning, true
	default:
		return
	}
	tx.PutInstance(i)
}

func (h *hand) another(tx *state.Tx, i *model.Instance, replaces model.InstanceID) {
	h.made++
	n := pending(i.App, 10_000+h.made)
	n.Version, n.Slot, n.Replaces = i.Version, i.Slot, replaces
	tx.PutInstance(n)
}

// check compares all records with each other and with how they were before. It knows nothing of the scheduler.
func (h *hand) check(v state.View) {
	h.Helper()
	for n := range v.Nodes() {
		if msg := overbooked(v, n); msg != "" {
			h.Fatalf("node %s: %s", n.ID, msg)
		}
	}
	slots := map[string]model.InstanceID{}
	for i := range v.Instances() {
		if was := h.was[i.ID]; was != nil && (was.Node != i.Node || !reflect.DeepEqual(was.Ports, i.Ports) || !reflect.DeepEqual(was.GPUs, i.GPUs)) {
			h.Fatalf("%s was placed twice: %+v, then %+v", i.ID, was, i)
		}
		if i.Node == "" {
			continue
		}
		h.was[i.ID] = i
		if i.Slot == 0 || i.Over() {
			continue
		}
		key := fmt.Sprint(i.App, i.Slot)
		if slots[key] != "" {
			h.Fatalf("slot %s is held by %s and %s", key, slots[key], i.ID)
		}
		slots[key] = i.ID
		for _, decl := range v.Version(i.App, i.Version).Spec.Volumes {
			if vol := v.Volume(model.VolumeOf(i.App, i.Slot, decl.Name)); vol == nil || vol.Node != i.Node {
				h.Fatalf("%s is on %s, its volume %s is %+v", i.ID, i.Node, decl.Name, vol)
			}
		}
	}
	homes := map[string]model.NodeID{}
	for vol := range v.Volumes() {
		key := fmt.Sprint(vol.App, vol.Slot)
		if homes[key] != "" && homes[key] != vol.Node {
			h.Fatalf("volumes of slot %s are on %s and %s", key, homes[key], vol.Node)
		}
		homes[key] = vol.Node
	}
}

// overbooked says what of a node is given away that it does not have, or twice.
func overbooked(v state.View, n *model.Node) string {
	var sum model.Resources
	shares := map[string]model.GPU{}
	once := map[string]model.InstanceID{}
	units := map[string]model.Units{}
	for vol := range v.VolumesOn(n.ID) {
		sum.Disk += vol.Size
	}
	for i := range v.InstancesOn(n.ID) {
		if i.Over() {
			continue
		}
		s := v.Version(i.App, i.Version).Spec
		need := s.Resources()
		need.GPUs = 0
		sum = sum.Add(need)
		var given model.GPU
		for _, g := range i.GPUs {
			shares[g.ID] += g.Share
			given += g.Share
		}
		if given != s.Resources().GPUs {
			return fmt.Sprintf("%s has %s GPUs of %s", i.ID, given, s.Resources().GPUs)
		}
		var keys []string
		for k, p := range i.Ports {
			keys = append(keys, fmt.Sprintf("port %d/%s", p, protocol(s.Endpoints[k])))
		}
		for name, list := range i.Items {
			for _, item := range list {
				keys = append(keys, name+" "+item)
			}
		}
		for _, key := range keys {
			if once[key] != "" {
				return fmt.Sprintf("%s is given to %s and %s", key, once[key], i.ID)
			}
			once[key] = i.ID
		}
		for name, amount := range s.Custom() {
			units[name] += amount
		}
		if len(i.Ports) != len(s.Endpoints) {
			return fmt.Sprintf("%s has ports %v for %d endpoints", i.ID, i.Ports, len(s.Endpoints))
		}
	}
	room := n.Capacity
	if !room.Fits(sum) {
		return fmt.Sprintf("%+v of %+v is given away", sum, room)
	}
	for id, share := range shares {
		if share > 1000 {
			return fmt.Sprintf("device %s is given %s times", id, share)
		}
	}
	for name, amount := range units {
		if amount > n.Custom[name].Total() {
			return fmt.Sprintf("%s of %s %s is given away", amount, n.Custom[name].Total(), name)
		}
	}
	return ""
}

// busy is a life of a small, full cluster: placements in several transactions, volumes, devices, preemption, a drain that
// is withdrawn, and moves. After it all work fits.
type busy struct {
	hand
	now    time.Time
	store  *shaky
	server int
	loop   *Loop
	failed int
}

func newBusy(t testing.TB) *busy {
	b := &busy{hand: hand{TB: t, was: map[model.InstanceID]*model.Instance{}}, now: epoch}
	b.store = newShaky(t, func() time.Time { return b.now })
	b.lead()
	return b
}

// lead makes the other server the leader.
func (b *busy) lead() {
	b.server = 1 - b.server
	leader, err := b.store.servers[b.server].Lead(context.Background(), "x")
	if err != nil {
		b.Fatal(err)
	}
	b.loop = New(leader, Config{Now: func() time.Time { return b.now }, Logger: slog.New(slog.DiscardHandler)})
	b.loop.chunk = 7
}

func (b *busy) db() *state.DB { return b.store.servers[b.server] }

func (b *busy) put(fn func(*state.Tx)) {
	b.Helper()
	if err := b.db().Update(context.Background(), func(tx *state.Tx) error { fn(tx); return nil }); err != nil {
		b.Fatal(err)
	}
}

// turn lets time pass, and everyone act once. Whoever fails hands over to the other server, or tries again.
func (b *busy) turn() {
	b.Helper()
	b.now = b.now.Add(2 * time.Second)
	_, err := b.loop.Step(context.Background())
	b.check(b.db().View())
	if err != nil {
		b.failed++
		if !errors.Is(err, state.ErrDeposed) && !errors.Is(err, state.ErrUnavailable) {
			b.Fatal(err)
		}
		b.put(func(tx *state.Tx) { // so that the next decision is another
			for n := range 3 {
				tx.PutInstance(pending("/vip", n))
			}
		})
		if errors.Is(err, state.ErrDeposed) || b.store.at%2 == 0 {
			b.lead()
		}
		return
	}
	b.react(b.db())
	b.check(b.db().View())
}

func (b *busy) turns(n int) {
	b.Helper()
	for range n {
		b.turn()
	}
}

func fullNode(id string) *model.Node {
	n := node(id, 4000, 8*model.GiB, 31000, 31005)
	n.GPUs = []model.GPUDevice{{ID: id + "-g0"}, {ID: id + "-g1"}}
	n.Custom = map[string]model.Custom{"licence": {Items: []string{"l1", "l2"}}}
	return n
}

func prioritized(v *model.AppVersion, priority int) *model.AppVersion {
	v.Spec.Priority = &priority
	return v
}

func (b *busy) live() {
	b.put(func(tx *state.Tx) {
		for n := range 4 {
			tx.PutNode(fullNode(fmt.Sprint("n", n)))
		}
		tx.PutPool(&model.Pool{Name: model.DefaultPool, Defragment: model.DefragmentPerform})
		tx.PutVersion(prioritized(app("/low", 600, model.GiB/2, model.Endpoint{Name: "main"}), 10))
		db := app("/db", 300, model.GiB/2)
		db.Spec.Volumes = []model.Volume{{Name: "a", Persistent: &model.Persistent{Size: 20 * model.GiB}}, {Name: "b", Persistent: &model.Persistent{Size: 5 * model.GiB}}}
		tx.PutVersion(db)
		gpu := app("/gpu", 200, model.GiB/2)
		gpu.Spec.Containers[0].GPUs, gpu.Spec.Containers[0].Custom = 500, map[string]model.Units{"licence": 1000}
		tx.PutVersion(gpu)
		tx.PutVersion(prioritized(app("/top", 1200, model.GiB), 80))
		tx.PutVersion(prioritized(app("/vip", 1000, model.GiB), 90))
		for _, id := range []model.AppID{"/low", "/db", "/gpu", "/top", "/vip"} { // for the defragmenter
			tx.PutApp(&model.App{ID: id, Version: 1})
		}
		for n := range 30 {
			tx.PutInstance(pending("/low", n))
		}
		for n := range 5 {
			i := pending("/db", n)
			i.Slot = uint32(n + 1)
			tx.PutInstance(i)
			tx.PutInstance(pending("/gpu", n))
		}
	})
	b.turns(4)
	b.put(func(tx *state.Tx) {
		for n := range 4 {
			tx.PutInstance(pending("/top", n))
		}
	})
	b.turns(6)
	b.put(func(tx *state.Tx) { tx.PutSettings(&model.NodeSettings{ID: "n1", Draining: true}) })
	b.turns(3)
	b.put(func(tx *state.Tx) {
		for n := range 2 {
			tx.PutNode(fullNode(fmt.Sprint("m", n)))
		}
	})
	b.turns(4)
	b.put(func(tx *state.Tx) {
		tx.DeleteSettings("n1")
		for i := range tx.InstancesOf("/low") { // room for the defragmenter
			if i.ID[len(i.ID)-1]%2 == 0 {
				i = i.Clone()
				i.Desired = model.Halt
				tx.PutInstance(i)
			}
		}
	})
	b.turns(3)
	for range 3 {
		b.now = b.now.Add(time.Minute)
		b.turns(4)
	}
	b.put(func(tx *state.Tx) {
		for n := range 4 {
			tx.PutNode(fullNode(fmt.Sprint("z", n)))
		}
	})
	b.turns(12)
}

// TestCrashAnywhere protects from double-booking: whichever transaction of the loop fails, is refused since another
// server leads, is written without a word, or is written later, in the middle of the next, what runs is never more than
// there is, and all gets its place in the end.
func TestCrashAnywhere(t *testing.T) {
	b := newBusy(t)
	b.live()
	kinds := map[model.EvictKind]int{}
	for i := range b.db().View().Instances() {
		if i.Evict != nil {
			kinds[i.Evict.Kind]++
		}
	}
	if kinds[model.EvictPreempt] == 0 || kinds[model.EvictMove] == 0 || kinds[model.EvictDrain] == 0 {
		t.Fatalf("nothing happens in it: %v", kinds)
	}
	all := b.store.count
	t.Logf("%d transactions, evictions %v", all, kinds)
	for _, how := range []fault{fails, deposes, applies, delays} {
		for n := 1; n <= all; n++ {
			for wait := range 4 {
				if wait > 0 && how != delays {
					break
				}
				t.Run(fmt.Sprintf("%s/%d/%d", how, n, wait), func(t *testing.T) {
					b := newBusy(t)
					b.store.at, b.store.how, b.store.wait = n, how, wait
					b.live()
					if b.failed == 0 {
						t.Skip("it did not come to that")
					}
					b.rest()
				})
			}
		}
	}
}

// rest checks that nothing waits, and that the picture is as the records are.
func (b *busy) rest() {
	b.Helper()
	v := b.db().View()
	for i := range v.Pending() {
		b.Fatalf("%s waits: %s", i.ID, i.Pending)
	}
	if err := b.loop.pic.engine.Audit(); err != nil {
		b.Fatal(err)
	}
	fresh := newPicture(v, b.now).engine
	for n := range v.Nodes() {
		if got, want := b.loop.pic.engine.Free(n.ID), fresh.Free(n.ID); got != want {
			b.Fatalf("%s: %+v is free, the picture says %+v", n.ID, want, got)
		}
	}
}

// TestTwoLeaders protects the time in which a leader does not know yet that another leads: both work at full speed on the
// same instances, and only one of them writes.
func TestTwoLeaders(t *testing.T) {
	s := newShaky(t, time.Now)
	h := &hand{TB: t, was: map[model.InstanceID]*model.Instance{}}
	write := func(fn func(*state.Tx)) {
		if err := s.servers[0].Update(t.Context(), func(tx *state.Tx) error { fn(tx); return nil }); err != nil {
			t.Error(err)
		}
	}
	write(func(tx *state.Tx) {
		for n := range 6 {
			tx.PutNode(node(fmt.Sprint("n", n), 8000, 16*model.GiB, 31000, 31020))
		}
		tx.PutVersion(app("/web", 100, 128*model.MiB, model.Endpoint{Name: "main"}))
		tx.PutVersion(prioritized(app("/low", 500, 128*model.MiB), 10))
	})
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for term := range 6 {
		leader, err := s.servers[term%2].Lead(t.Context(), fmt.Sprint(term))
		if err != nil {
			t.Fatal(err)
		}
		l := New(leader, Config{Logger: slog.New(slog.DiscardHandler)})
		l.chunk = 5
		wg.Go(func() {
			if err := l.Run(ctx); !errors.Is(err, state.ErrDeposed) && !errors.Is(err, context.Canceled) {
				t.Errorf("term %d ended with %v", term, err)
			}
		})
		_, watch := s.servers[0].Watch()
		write(func(tx *state.Tx) {
			for n := range 25 {
				tx.PutInstance(pending("/web", 100*term+n))
				tx.PutInstance(pending("/low", 100*term+n))
			}
		})
		for placed(s.servers[0].View(), "/web") < min(21*(term+1), 126) { // the next leader comes while this one is busy
			<-watch.Ready()
			h.react(s.servers[0])
			h.check(s.servers[0].View())
		}
		watch.Close()
	}
	stop()
	wg.Wait()
}

func placed(v state.View, app model.AppID) int {
	n := 0
	for i := range v.InstancesOf(app) {
		if i.Node != "" && i.Live() {
			n++
		}
	}
	return n
}
