// Package etcd keeps the truth of a cluster in etcd: in a member that runs inside this process, alone or with those of other
// servers, or in an etcd that somebody else runs.
//
// A member that is alone listens nowhere: the client calls the server's functions. One with a Peer listens for the members of
// other servers, with mutual TLS; clients have no door either, each server talks to its own member, which passes writes on to
// the one that etcd's members elected. Open locks the data directory, starts the member, reads all records, and follows every
// later change. What a transaction wrote is synced to the write-ahead logs of a majority before Commit returns, so killing
// processes at any moment loses nothing that was acknowledged.
//
// Read next: commit.go for transactions, answer.go for those whose answer is lost with a leader, codec.go and instance.go for the
// stored form, campaign.go for who leads, cluster.go for who is a member, release.go for servers of different versions, door.go for
// how members reach each other, keeper.go for what a member does to stay well.
package etcd

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// Config says how to open a store.
type Config struct {
	Dir       string           // data directory, this store's alone; required unless Ephemeral
	Name      string           // of this server, its own in the cluster; default gantry
	Ephemeral bool             // sync nothing to disk; without Dir, use a temporary one and remove it on Close
	Quota     int64            // bytes that the store may grow to; default 4 GiB
	Logger    *slog.Logger     // default: discard
	Now       func() time.Time // gives events their time; default time.Now
	Build     string           // name of this build, which Status tells the others
	Release   model.Release    // what this program stores; default model.ThisRelease, another for tests

	Peer     *Peer         // how other servers reach this one; without it the member is alone
	Join     string        // what AddMember of another server returned; only read while Dir is new
	Addr     string        // host:port of this server's API, which Members tells the others
	Election time.Duration // without a sign of life from the leading member, others elect a new one; default 750 ms, a LAN's

	External *External // an etcd that somebody else runs, in place of a member; of the rest only Name, Logger, Now and, for what is temporary, Dir are used then
}

// Store is an open store. Its DB is the way to all records.
type Store struct {
	*state.DB
	cfg  Config
	temp bool // cfg.Dir is to go on Close
	lock *Lock
	log  *slog.Logger

	link    atomic.Pointer[link] // the etcd in use
	snapped bool                 // the data directory has a snapshot, see elect

	committing sync.Mutex // held over a commit, and while link changes
	closed     bool       // the member has ended
	parked     error      // why the member rests; nil when it does not
	mark       marker     // of the last transaction

	spacing    sync.Mutex // held while making space
	spaceTried time.Time  // when a commit last tried to make space

	servers   atomic.Pointer[map[string]told] // what servers tell of themselves, by name
	head      atomic.Pointer[headship]        // who leads Gantry; nil for nobody
	confirmed atomic.Int64                    // since epoch: View has all that was acknowledged before

	living context.Context // ends with the store
	cancel context.CancelFunc
	wg     sync.WaitGroup // of all goroutines

	closeOnce sync.Once
	closeErr  error
	breakOnce sync.Once
	broken    chan struct{} // closed when changes no longer come
	err       error         // why; set before broken is closed
}

// link is an etcd in use. A member that starts again makes a new one.
type link struct {
	member *embed.Etcd // nil for an external etcd
	door   *door       // of the members of other servers; nil for a member that is alone
	client *clientv3.Client
	kv     pb.KVClient       // what client uses too, without its copies of large transactions
	ca     [sha256.Size]byte // of the CA that the member started with
	died   chan struct{}     // closed when the member has had a fatal error
	left   atomic.Bool       // another is to follow
	next   chan struct{}     // closed when it is there

	endOnce sync.Once
	endErr  error
}

// Open locks cfg.Dir, starts the member, and returns once all records are in memory. Where there are other servers, that needs a
// majority of them. ctx bounds only the opening.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	s := &Store{cfg: cfg, broken: make(chan struct{})}
	s.living, s.cancel = context.WithCancel(context.Background())
	if err := s.prepare(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.cfg.External != nil {
		if err := s.connect(ctx); err != nil {
			return nil, fmt.Errorf("connect to etcd: %w", err)
		}
		if err := s.enter(ctx, s.link.Load()); err != nil {
			return nil, err
		}
	} else if err := s.openMember(ctx); err != nil {
		return nil, err
	}
	if err := s.attach(ctx); err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	s.wg.Go(s.keep)
	return s, nil
}

func (s *Store) openMember(ctx context.Context) (err error) {
	if err := checkDisk(s.cfg.Dir); err != nil {
		return err
	}
	if s.lock, err = LockDir(s.cfg.Dir); err != nil {
		return err
	}
	if err := s.prime(ctx); err != nil {
		return fmt.Errorf("prepare etcd in %s: %w", s.cfg.Dir, err)
	}
	l, err := s.start(ctx, s.memberConfig(), s.cfg.Peer, s.elect)
	if err != nil {
		return fmt.Errorf("start etcd in %s: %w", s.cfg.Dir, err)
	}
	s.link.Store(l)
	if err := s.disarm(ctx); err != nil {
		return fmt.Errorf("make space in %s: %w", s.cfg.Dir, err)
	}
	if err := s.enter(ctx, l); err != nil {
		return err
	}
	return s.settleIn(ctx)
}

// prepare fills in defaults, and refuses what cannot be.
func (s *Store) prepare() error {
	c := &s.cfg
	if c.Name == "" {
		c.Name = "gantry"
	}
	if c.Quota == 0 {
		c.Quota = defaultQuota
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Release = cmp.Or(c.Release, model.ThisRelease)
	if c.Election == 0 {
		c.Election = 750 * time.Millisecond
	}
	if s.log = c.Logger; s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.External != nil:
		if err := c.External.Validate(); err != nil {
			return fmt.Errorf("open store: %w", err)
		}
		return nil
	case c.Join != "" && c.Peer == nil:
		return errors.New("open store: to join other servers, this one needs an address for them")
	case c.Dir == "" && !c.Ephemeral:
		return errors.New("open store: no data directory was given")
	case c.Dir == "":
		dir, err := os.MkdirTemp("", "gantry-state-")
		if err != nil {
			return fmt.Errorf("create temporary data directory: %w", err)
		}
		c.Dir, s.temp = dir, true
	}
	return c.Peer.validate()
}

// attach makes the DB, fills it, and begins to follow.
func (s *Store) attach(ctx context.Context) error {
	s.DB = state.New(&backend{s}, s.cfg.Now)
	s.servers.Store(&map[string]told{})
	s.mark = newMarker(s.cfg.Name)
	rev, pages, err := s.load(ctx)
	if err != nil {
		return err
	}
	s.DB.Load(uint64(rev), pages...)
	s.wg.Go(func() { s.fail(s.follow(s.living, rev+1)) })
	return nil
}

// fail ends all updates, since changes no longer come in.
func (s *Store) fail(err error) {
	s.breakOnce.Do(func() {
		s.err = err
		s.DB.Stop(err)
		close(s.broken)
	})
}

// Run returns when ctx ends, with nil, or when the store is broken and takes no more writes.
func (s *Store) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.broken:
		return s.err
	}
}

// Close ends the member and gives the directory up. Updates fail from then on; views stay. Where other members can, one of them
// takes over what this one led.
func (s *Store) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	var errs []error
	if s.DB != nil {
		s.DB.Stop(errClosed)
	}
	s.cancel()
	s.wg.Wait()
	s.committing.Lock()
	s.closed = true
	errs = append(errs, s.link.Load().end())
	s.committing.Unlock()
	if s.temp {
		errs = append(errs, os.RemoveAll(s.cfg.Dir))
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}
