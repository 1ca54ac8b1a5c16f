package etcd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/conformance"
	"golang.org/x/sys/unix"
)

// childDir, in the environment, makes the test binary a server that writes until it is killed.
const childDir = "GANTRY_TEST_STATE_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Fprintln(os.Stderr, writeForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// storage is a data directory, with one member and any number of servers on it.
type storage struct {
	dir   string
	store *Store
	peers []*Store
}

func (s *storage) Open(t *testing.T) *state.DB {
	t.Helper()
	if s.store == nil {
		s.store = open(t, Config{Dir: s.dir, Ephemeral: true})
		return s.store.DB
	}
	p := &Store{cfg: s.store.cfg, log: s.store.log, broken: make(chan struct{})}
	p.living, p.cancel = context.WithCancel(context.Background())
	p.link.Store(s.store.link.Load())
	if err := p.attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.detach)
	s.peers = append(s.peers, p)
	return p.DB
}

func (s *storage) Reopen(t *testing.T) *state.DB {
	t.Helper()
	for _, p := range s.peers {
		p.detach()
	}
	closeStore(t, s.store)
	s.store, s.peers = nil, nil
	return s.Open(t)
}

// detach ends a server that shares another's member.
func (s *Store) detach() {
	s.Stop(errClosed)
	s.cancel()
	s.wg.Wait()
}

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestConformance(t *testing.T) {
	conformance.Run(t, func(t *testing.T) conformance.Storage { return &storage{dir: t.TempDir()} })
}

// TestKill protects that SIGKILL at any moment loses no acknowledged transaction, and tears none.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	acked := uint64(0)
	for round := range 6 {
		acked = max(acked, killWriter(t, dir, rand.N(300*time.Millisecond)))
		s := open(t, Config{Dir: dir})
		v := s.View()
		a := v.App("/n")
		if a == nil {
			if acked != 0 {
				t.Fatalf("round %d: %d writes were acknowledged, none is there", round, acked)
			}
			closeStore(t, s)
			continue
		}
		if a.Version < acked {
			t.Fatalf("round %d: %d writes were acknowledged, %d are there", round, acked, a.Version)
		}
		if got := v.InstanceCount(); uint64(got) != a.Version {
			t.Fatalf("round %d: a transaction is torn: %d instances beside counter %d", round, got, a.Version)
		}
		acked = a.Version
		closeStore(t, s)
	}
	if acked == 0 {
		t.Fatal("nothing was ever written")
	}
}

// killWriter runs a writer on dir, kills it a while after its first acknowledged write, and returns its last one.
func killWriter(t *testing.T, dir string, after time.Duration) uint64 {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last := uint64(0)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if last == 0 {
			time.AfterFunc(after, func() { _ = cmd.Process.Kill() }) // it has ended already when this fails
		}
		if n, err := strconv.ParseUint(lines.Text(), 10, 64); err == nil {
			last = n
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the writer ended by itself: %v", err)
	}
	return last
}

// writeForever writes transactions of two records and prints the number of each that was acknowledged.
func writeForever(dir string) error {
	ctx := context.Background()
	s, err := Open(ctx, Config{Dir: dir})
	if err != nil {
		return err
	}
	for {
		var n uint64
		err := s.Update(ctx, func(tx *state.Tx) error {
			if a := tx.App("/n"); a != nil {
				n = a.Version
			}
			n++
			tx.PutApp(&model.App{ID: "/n", Version: n})
			tx.PutInstance(&model.Instance{ID: model.InstanceID(fmt.Sprintf("i%08d", n)), App: "/n"})
			return nil
		})
		if err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// TestLock protects a data directory from two servers at once, and its message.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, Ephemeral: true})
	_, err := Open(t.Context(), Config{Dir: dir, Ephemeral: true})
	want := fmt.Sprintf("another gantry (pid %d) uses this data directory: %s", os.Getpid(), dir)
	if err == nil || err.Error() != want {
		t.Fatalf("second Open: %v, want %s", err, want)
	}
	closeStore(t, s)
	open(t, Config{Dir: dir, Ephemeral: true})
}

// TestTemporary protects that an ephemeral store leaves nothing behind.
func TestTemporary(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	s := open(t, Config{Ephemeral: true})
	closeStore(t, s)
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Fatalf("%v is left, %v", left, err)
	}
}

// TestNothingListens protects law 7: no socket of any kind belongs to the store, and nobody else can read its files.
func TestNothingListens(t *testing.T) {
	before := sockets(t)
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, Ephemeral: true})
	write(t, s, "/a")
	if after := sockets(t); after > before {
		t.Errorf("the store has %d sockets", after-before)
	}
	for _, port := range []string{"2379", "2380"} {
		if c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second); err == nil {
			c.Close()
			t.Errorf("something listens on port %s", port)
		}
	}
	err := filepath.WalkDir(filepath.Join(dir, "member"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sockets counts the sockets of this process.
func sockets(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	n := 0
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

func write(t testing.TB, s *Store, id model.AppID) {
	t.Helper()
	err := s.Update(t.Context(), func(tx *state.Tx) error { tx.PutApp(&model.App{ID: id}); return nil })
	if err != nil {
		t.Fatal(err)
	}
}

// TestLargest protects that one transaction holds ten thousand instances, and that too much is refused as a whole.
func TestLargest(t *testing.T) {
	s := open(t, Config{Ephemeral: true})
	put := func(from, to int, message string) error {
		return s.Update(t.Context(), func(tx *state.Tx) error {
			for n := from; n < to; n++ {
				i := typical(n)
				i.Status.Message = message
				tx.PutInstance(i)
			}
			return nil
		})
	}
	if err := put(0, 10_000, ""); err != nil {
		t.Fatal(err)
	}
	if err := put(10_000, 40_000, ""); !errors.Is(err, state.ErrTooLarge) {
		t.Fatalf("too many records: %v", err)
	}
	if err := put(10_000, 18_000, strings.Repeat("x", 2000)); !errors.Is(err, state.ErrTooLarge) {
		t.Fatalf("too many bytes: %v", err)
	}
	if n := s.View().InstanceCount(); n != 10_000 {
		t.Fatalf("%d instances, want 10000", n)
	}
	write(t, s, "/goes-on")
}

// TestNearLargest protects that the sizes we admit are sizes that etcd takes.
func TestNearLargest(t *testing.T) {
	s := open(t, Config{Ephemeral: true})
	err := s.Update(t.Context(), func(tx *state.Tx) error {
		for n := range 18_000 {
			i := typical(n)
			i.Status.Message = strings.Repeat("x", 300)
			tx.PutInstance(i)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNoSpace protects that a full store says so, takes deletions, and takes writes again once there is space.
func TestNoSpace(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, Ephemeral: true, Quota: 16 << 20})
	triedSpace(s, time.Now()) // not by itself, at first
	put := func(n int) error {
		return s.Update(t.Context(), func(tx *state.Tx) error {
			for k := range 8 {
				note := strings.Repeat("x", 100_000)
				tx.PutVersion(&model.AppVersion{App: "/a", Version: uint64(8*n + k), Note: note, Spec: &model.Spec{ID: "/a"}})
			}
			return nil
		})
	}
	err := error(nil)
	n := 0
	for ; err == nil && n < 1000; n++ { // etcd sees how large its file is only now and then
		err = put(n)
	}
	if !errors.Is(err, state.ErrNoSpace) {
		t.Fatalf("after %d puts: %v, want ErrNoSpace", n, err)
	}
	err = s.Update(t.Context(), func(tx *state.Tx) error {
		for v := range tx.Versions("/a") {
			tx.DeleteVersion(v.App, v.Version)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("deleting in a full store: %v", err)
	}
	triedSpace(s, time.Time{})
	if err := put(10_000); err != nil {
		t.Fatalf("after deleting: %v", err)
	}
	closeStore(t, s)
	s = open(t, Config{Dir: dir, Ephemeral: true, Quota: 16 << 20})
	write(t, s, "/after")
}

// triedSpace has s believe that it looked for space at that time.
func triedSpace(s *Store, at time.Time) {
	s.spacing.Lock()
	defer s.spacing.Unlock()
	s.spaceTried = at
}

// TestGarbage protects that a record that cannot be read stops the start with an error that names it.
func TestGarbage(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, Ephemeral: true})
	if _, err := s.link.Load().client.Put(t.Context(), root+"app//shop/web", "\x01{}garbage"); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), `"/gantry/v1/app//shop/web"`) {
		t.Errorf("Run: %v, want an error that names the record", err)
	}
	err := s.Update(t.Context(), func(tx *state.Tx) error { tx.PutApp(&model.App{ID: "/b"}); return nil })
	if !errors.Is(err, state.ErrUnavailable) {
		t.Errorf("Update of a store that cannot follow: %v, want ErrUnavailable", err)
	}
	closeStore(t, s)
	if _, err := Open(t.Context(), Config{Dir: dir, Ephemeral: true}); err == nil || !strings.Contains(err.Error(), `"/gantry/v1/app//shop/web"`) {
		t.Errorf("Open: %v, want an error that names the record", err)
	}
}

// TestRun protects that Run ends quietly with its context.
func TestRun(t *testing.T) {
	s := open(t, Config{Ephemeral: true})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestClosed protects that a closed store refuses writes and still answers reads.
func TestClosed(t *testing.T) {
	s := open(t, Config{Ephemeral: true})
	write(t, s, "/a")
	closeStore(t, s)
	err := s.Update(context.Background(), func(tx *state.Tx) error { tx.PutApp(&model.App{ID: "/b"}); return nil })
	if !errors.Is(err, state.ErrUnavailable) || s.View().App("/a") == nil {
		t.Fatalf("Update: %v; app %v", err, s.View().App("/a"))
	}
}

// TestStartQuick protects how soon a store with data serves; docs/benchmarks.md has the figures, this has slack.
func TestStartQuick(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	write(t, s, "/a")
	closeStore(t, s)
	best := time.Hour
	for range 3 {
		begin := time.Now()
		s := open(t, Config{Dir: dir})
		best = min(best, time.Since(begin))
		closeStore(t, s)
	}
	t.Logf("start with data: %v", best)
	if best > time.Second {
		t.Errorf("a start takes %v", best)
	}
}

// TestStartAfterMany protects starts that replay a log, of any length since the last snapshot: campaigning amid the
// replay once made raft panic.
func TestStartAfterMany(t *testing.T) {
	dir := t.TempDir()
	total := 0
	for round := range 15 {
		s := open(t, Config{Dir: dir, Ephemeral: true})
		if n := s.View().InstanceCount(); n != total {
			t.Fatalf("round %d starts with %d instances, want %d", round, n, total)
		}
		for range 290 {
			err := s.Update(t.Context(), func(tx *state.Tx) error { tx.PutInstance(typical(total)); return nil })
			if err != nil {
				t.Fatal(err)
			}
			total++
		}
		closeStore(t, s)
	}
}

// On a full disk etcd would end the process in the midst of starting; the store says what is wrong instead, and starts once
// there is space.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root, to mount a small disk")
	}
	disk := t.TempDir()
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=160m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	fill := filepath.Join(disk, "fill")
	for _, dir := range []string{"new", "old"} {
		s := open(t, Config{Dir: filepath.Join(disk, "old")})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(fill)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(f, zeros{}); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("filling the disk: %v", err)
		}
		f.Close()
		_, err = Open(t.Context(), Config{Dir: filepath.Join(disk, dir)})
		if !errors.Is(err, state.ErrNoSpace) || !strings.Contains(err.Error(), "make space") {
			t.Errorf("%s: opened on a full disk with %v", dir, err)
		}
		if err := os.Remove(fill); err != nil {
			t.Fatal(err)
		}
	}
	open(t, Config{Dir: filepath.Join(disk, "old")})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// A transaction on an old base is written when its own records are as they were, and refused when they are not, whether the
// head key is there or a full store made room by deleting it.
func TestOldBase(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir(), Ephemeral: true})
	b := &backend{s}
	commit := func(base uint64, read uint64, id string, val any) (uint64, error) {
		return b.Commit(0, base, []state.Op{{Key: state.Key{Kind: state.KindInstance, ID: id}, Read: read, Val: val}})
	}
	must := func(rev uint64, err error) uint64 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	record := func(id string) *model.Instance { return &model.Instance{ID: model.InstanceID(id), App: "/a"} }
	base := s.View().Revision()
	for _, head := range []string{"written", "deleted"} {
		first := must(commit(base, 0, "x-"+head, record("x-"+head)))
		must(commit(base, 0, "y-"+head, record("y-"+head))) // another record: no conflict
		if head == "deleted" {
			if _, err := s.link.Load().client.Delete(t.Context(), headKey); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := commit(base, 0, "x-"+head, record("x-"+head)); !errors.Is(err, state.ErrConflict) {
			t.Errorf("head %s: a record that exists was made: %v", head, err)
		}
		if _, err := commit(base, first-1, "x-"+head, nil); !errors.Is(err, state.ErrConflict) {
			t.Errorf("head %s: a record that changed was deleted: %v", head, err)
		}
		must(commit(base, first, "x-"+head, nil))
	}
}
