// Package etcd keeps the truth of a cluster in etcd, run inside this process as a cluster of one member.
//
// Nothing listens: the client calls the server's functions, and a member that is alone needs no peers. Open locks the
// data directory, starts the member, reads all records, and follows every later change. What a transaction wrote is
// synced to the write-ahead log before Commit returns, so killing the process at any moment loses nothing that was
// acknowledged.
//
// Read next: commit.go for transactions, codec.go and instance.go for the stored form.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/gantry-os/gantry/state"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// Config says how to open a store.
type Config struct {
	Dir       string           // data directory, this store's alone; required unless Ephemeral
	Name      string           // of the member; default gantry
	Ephemeral bool             // sync nothing to disk; without Dir, use a temporary one and remove it on Close
	Quota     int64            // bytes that the store may grow to; default 4 GiB
	Logger    *slog.Logger     // default: discard
	Now       func() time.Time // gives events their time; default time.Now
}

// Store is an open store. Its DB is the way to all records.
type Store struct {
	*state.DB
	cfg    Config
	temp   bool // cfg.Dir is to go on Close
	lock   *Lock
	member *embed.Etcd
	client *clientv3.Client
	kv     etcdserverpb.KVClient // what client uses too, without its copies of large transactions
	log    *slog.Logger

	committing sync.Mutex // held over a commit, and to close
	closed     bool       // the member has ended
	spaceTried time.Time  // when Commit last tried to make space

	cancel context.CancelFunc // ends the watch
	wg     sync.WaitGroup     // of follow

	closeOnce sync.Once
	closeErr  error
	broken    chan struct{} // closed when follow has ended
	err       error         // why; set before broken is closed
}

// Open locks cfg.Dir, starts the member, and returns once all records are in memory. ctx bounds only the opening.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	s := &Store{cfg: cfg, broken: make(chan struct{})}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := checkDisk(s.cfg.Dir); err != nil {
		return nil, err
	}
	if s.lock, err = LockDir(s.cfg.Dir); err != nil {
		return nil, err
	}
	if err := s.prime(ctx); err != nil {
		return nil, fmt.Errorf("prepare etcd in %s: %w", s.cfg.Dir, err)
	}
	if err := s.start(ctx, s.memberConfig(), elect); err != nil {
		return nil, fmt.Errorf("start etcd in %s: %w", s.cfg.Dir, err)
	}
	if err := s.disarm(ctx); err != nil {
		return nil, fmt.Errorf("make space in %s: %w", s.cfg.Dir, err)
	}
	if err := s.attach(ctx); err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	return s, nil
}

// prepare fills in defaults.
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
	if s.log = c.Logger; s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Dir == "" && !c.Ephemeral:
		return errors.New("open store: no data directory was given")
	case c.Dir == "":
		dir, err := os.MkdirTemp("", "gantry-state-")
		if err != nil {
			return fmt.Errorf("create temporary data directory: %w", err)
		}
		c.Dir, s.temp = dir, true
	}
	return nil
}

// attach makes the DB, fills it, and begins to follow.
func (s *Store) attach(ctx context.Context) error {
	s.DB = state.New(&backend{s}, s.cfg.Now)
	rev, err := s.load(ctx)
	if err != nil {
		return err
	}
	watching, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.wg.Go(func() {
		s.err = s.follow(watching, rev+1)
		s.DB.Stop(s.err)
		close(s.broken)
	})
	return nil
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

// Close ends the member and gives the directory up. Updates fail from then on; views stay.
func (s *Store) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	var errs []error
	if s.DB != nil {
		s.DB.Stop(errClosed)
	}
	if s.cancel != nil {
		s.cancel()
		s.wg.Wait()
	}
	s.committing.Lock()
	s.closed = true
	errs = append(errs, s.end())
	s.committing.Unlock()
	if s.temp {
		errs = append(errs, os.RemoveAll(s.cfg.Dir))
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}
