package etcd

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// smallDisk returns the place of a disk of that many MiB, and functions that fill it but for some MiB, and empty it again.
func smallDisk(t *testing.T, size string) (dir string, fill func(but uint64), empty func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root, to mount a small disk")
	}
	dir = t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	file := filepath.Join(dir, "fill")
	fill = func(but uint64) {
		t.Helper()
		f := must(os.Create(file))
		defer f.Close()
		if free := must(diskFree(dir)); free > but<<20 {
			if _, err := io.CopyN(f, zeros{}, int64(free-but<<20)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir, fill, func() {
		t.Helper()
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiskFills protects that a server that is alone refuses updates while its disk is full, goes on to show what it has, and takes
// updates again as soon as there is space.
func TestDiskFills(t *testing.T) {
	disk, fill, empty := smallDisk(t, "220m")
	s := open(t, Config{Dir: filepath.Join(disk, "store")})
	write(t, s, "/a")
	fill(8)
	err := s.Update(t.Context(), func(tx *state.Tx) error { tx.PutApp(&model.App{ID: "/b"}); return nil })
	if !errors.Is(err, state.ErrNoSpace) || !strings.Contains(err.Error(), "is full") {
		t.Fatalf("update on a full disk: %v", err)
	}
	if s.View().App("/a") == nil {
		t.Error("what was there is not shown")
	}
	empty()
	write(t, s, "/b")
}

// TestDiskFillsAmongOthers protects that a member whose disk is full rests while the others go on, and comes back by itself.
func TestDiskFillsAmongOthers(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: slow")
	}
	t.Parallel()
	disk, fill, empty := smallDisk(t, "300m")
	c := newServers(t, 2)
	full := c.config(t, "c")
	full.Dir = filepath.Join(disk, "store")
	c.cfg, c.at = append(c.cfg, full), append(c.at, nil)
	var err error
	if c.cfg[2].Join, err = c.at[0].AddMember(t.Context(), "c", full.Peer.Listen); err != nil {
		t.Fatal(err)
	}
	if c.open(t, 2); t.Failed() {
		t.FailNow()
	}
	s := c.at[2]
	write(t, s, "/a")
	fill(8)
	parked := func() string {
		st, err := s.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.Parked
	}
	eventually(t, "the member rests", func() bool { return strings.Contains(parked(), "MiB left") })
	err = s.Update(t.Context(), func(tx *state.Tx) error { tx.PutApp(&model.App{ID: "/b"}); return nil })
	if !errors.Is(err, state.ErrNoSpace) {
		t.Errorf("update through a member that rests: %v", err)
	}
	write(t, c.at[0], "/b")
	empty()
	eventually(t, "the member is back", func() bool { return parked() == "" })
	if err := s.Fresh(t.Context()); err != nil || s.View().App("/b") == nil {
		t.Errorf("the member that is back has %v: %v", s.View().App("/b"), err)
	}
	write(t, s, "/c")
}

// TestDied protects that an error for which etcd would end the process costs the member a restart.
func TestDied(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Dir: t.TempDir(), Ephemeral: true})
	write(t, s, "/a")
	was := s.link.Load()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.link.Load().member.GetLogger().Fatal("made up")
	}()
	<-ended
	eventually(t, "the member starts again", func() bool { return s.link.Load() != was })
	write(t, s, "/b")
	if v := s.View(); v.App("/a") == nil || v.App("/b") == nil {
		t.Error("records are missing")
	}
}

// TestQuotaAmongOthers protects that members that have met their quota take deletions, and updates once each has made space.
func TestQuotaAmongOthers(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: slow")
	}
	t.Parallel()
	c := &servers{ca: newAuthority(t)}
	c = newServersOf(t, c, 3, func(cfg *Config) { cfg.Quota = 16 << 20 })
	put := func(n int) error {
		return c.at[n%3].Update(t.Context(), func(tx *state.Tx) error {
			for k := range 8 {
				tx.PutVersion(&model.AppVersion{
					App: "/a", Version: uint64(8*n + k), Note: strings.Repeat("x", 100_000), Spec: &model.Spec{ID: "/a"},
				})
			}
			return nil
		})
	}
	err := error(nil)
	for n := 0; err == nil && n < 1000; n++ {
		err = put(n)
	}
	if !errors.Is(err, state.ErrNoSpace) {
		t.Fatalf("filling the store: %v", err)
	}
	err = c.at[1].Update(t.Context(), func(tx *state.Tx) error {
		for v := range tx.Versions("/a") {
			tx.DeleteVersion(v.App, v.Version)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("deleting in a full store: %v", err)
	}
	for _, s := range c.at {
		triedSpace(s, time.Time{}) // or it would be a minute until the next try
	}
	eventually(t, "updates are taken again", func() bool { return put(5000) == nil })
	eventually(t, "by all", func() bool { return put(5001) == nil && put(5002) == nil })
	if st, err := c.at[0].Status(t.Context()); err != nil || len(st.Alarms) > 0 {
		t.Errorf("alarms %v, %v", st.Alarms, err)
	}
}

// TestTidy protects that gaps are closed one member at a time, that the leader hands over first, and that nobody starts while a
// member is missing.
func TestTidy(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: slow")
	}
	t.Parallel()
	c := newServers(t, 3)
	for n := range 20 {
		err := c.at[0].Update(t.Context(), func(tx *state.Tx) error {
			tx.PutVersion(&model.AppVersion{App: "/a", Version: uint64(n % 2), Note: strings.Repeat("x", 1<<20), Spec: &model.Spec{ID: "/a"}})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	client := c.at[0].link.Load().client
	if _, err := client.Compact(t.Context(), int64(c.at[0].View().Revision()), clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	for i, s := range c.at {
		if err := s.Fresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		be := s.link.Load().member.Server.Backend()
		n := 0
		eventually(t, "gaps to close", func() bool { // free pages count once they are written
			n++
			write(t, s, model.AppID("/"+string(rune('a'+i))))
			be.ForceCommit()
			return be.SizeInUse() < be.Size()/2
		})
	}
	size := func(s *Store) int64 { return s.link.Load().member.Server.Backend().Size() }
	lead := c.leader(t)
	k := &keeper{Store: c.at[lead], least: 1 << 20}
	was := size(k.Store)
	for range leaderWaits - 1 {
		k.tidy(k.link.Load())
	}
	if size(k.Store) != was || !k.leadsMembers(k.link.Load()) {
		t.Error("the leader did not wait")
	}
	follower := &keeper{Store: c.at[(lead+1)%3], least: 1 << 20}
	done, err := follower.takeTurn(t.Context(), follower.link.Load())
	if err != nil {
		t.Fatal(err)
	}
	other := &keeper{Store: c.at[(lead+2)%3], least: 1 << 20}
	before := size(other.Store)
	if other.tidy(other.link.Load()); size(other.Store) != before {
		t.Error("two members tidy at a time")
	}
	done()
	if follower.tidy(follower.link.Load()); size(follower.Store) > 8<<20 {
		t.Errorf("%d bytes after closing the gaps", size(follower.Store))
	}
	if k.tidy(k.link.Load()); k.leadsMembers(k.link.Load()) || size(k.Store) > 8<<20 {
		t.Errorf("the leader kept on leading, or its %d bytes", size(k.Store))
	}
	c.kill((lead + 1) % 3)
	if _, err := other.takeTurn(t.Context(), other.link.Load()); !errors.Is(err, ErrQuorum) {
		t.Errorf("a turn while a member is missing: %v", err)
	}
}

// TestCloseParked protects that a server whose member rests ends as any other.
func TestCloseParked(t *testing.T) {
	s := open(t, Config{Ephemeral: true})
	if err := s.park(errors.New("a test")); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
}
