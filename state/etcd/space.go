package etcd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gantry-os/gantry/state"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// spaceEvery bounds how often a full store is searched for space, since that halts it for a moment.
const spaceEvery = time.Minute

// Free disk space below which no update is taken, below which a member that others can do without rests, and from which on
// it goes on. What others write still comes in, and etcd needs some for itself.
const (
	updateDisk = 24 << 20
	parkDisk   = 16 << 20
	resumeDisk = 96 << 20
)

// tidyLeast is the least size of a file whose gaps are worth closing.
const tidyLeast = 128 << 20

// Free disk space without which etcd cannot start. It takes its log's space in advance, in segments of 64 MiB, of which a new
// store needs two; a store that has them still has to rewrite the end of one.
const (
	needNew = 144 << 20
	needOld = 8 << 20
)

// checkDisk says in time, and in words for people, what etcd would end the whole process for.
func checkDisk(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	need := uint64(needOld)
	if logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal")); err != nil || len(logs) == 0 {
		need = needNew
	}
	free, err := diskFree(dir)
	if err == nil && free < need {
		return fmt.Errorf("%w: the disk of %s is full: %d MiB are free and %d needed; make space and start again",
			state.ErrNoSpace, dir, free>>20, need>>20)
	}
	return err
}

func diskFree(dir string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	return fs.Bavail * uint64(fs.Bsize), nil
}

// diskLeft refuses an update that might be the one for which etcd finds no place in its log.
func (s *Store) diskLeft() error {
	free, err := diskFree(s.cfg.Dir)
	if err != nil || free >= updateDisk {
		return err
	}
	return fmt.Errorf("%w: the disk of %s is full: %d MiB are free and %d needed; updates go on once there is space",
		state.ErrNoSpace, s.cfg.Dir, free>>20, updateDisk>>20)
}

// makeSpace tries to make a full store take writes again, and reports whether it may.
func (s *Store) makeSpace() bool {
	s.spacing.Lock()
	defer s.spacing.Unlock()
	if s.living.Err() != nil {
		return false
	}
	if time.Since(s.spaceTried) < spaceEvery {
		return false
	}
	s.spaceTried = time.Now()
	ctx, cancel := context.WithTimeout(s.living, time.Minute)
	defer cancel()
	if err := s.disarm(ctx); err != nil {
		s.log.Error("the store is full, and making space in it failed", "dir", s.cfg.Dir, "err", err)
		return false
	}
	return true
}

// makeSpaceSoon is makeSpace, at once when another member has dropped the history that filled this one.
func (s *Store) makeSpaceSoon(l *link) {
	if l.member.Server.Backend().SizeInUse() <= s.cfg.Quota/2 {
		s.spacing.Lock()
		s.spaceTried = time.Time{}
		s.spacing.Unlock()
	}
	s.makeSpace()
}

// disarm drops history and gaps from a member that has met its quota, and lifts the alarm that this raised when there is
// space to spare then. Otherwise it does nothing: each member lifts its own.
func (s *Store) disarm(ctx context.Context) error {
	l := s.link.Load()
	if l.member == nil {
		return nil
	}
	for _, a := range l.member.Server.Alarms() {
		if a.Alarm != etcdserverpb.AlarmType_NOSPACE || a.MemberID != uint64(l.member.Server.MemberID()) {
			continue
		}
		used, err := s.shrink(ctx, l)
		if err != nil {
			return err
		}
		if used > s.cfg.Quota/10*9 {
			return nil
		}
		if _, err := l.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			return fmt.Errorf("lift alarm: %w", err)
		}
	}
	return nil
}

// shrink drops all history and gaps, and returns the bytes that remain.
func (s *Store) shrink(ctx context.Context, l *link) (int64, error) {
	head, err := l.client.Get(ctx, leaderKey)
	if err != nil {
		return 0, fmt.Errorf("read revision: %w", err)
	}
	if _, err := l.client.Compact(ctx, head.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		s.log.Debug("drop history", "err", err) // it has been dropped before
	}
	if err := l.member.Server.Backend().Defrag(); err != nil {
		return 0, fmt.Errorf("close gaps: %w", err)
	}
	return l.member.Server.Backend().Size(), nil
}

// Stored returns how many records of a kind there are, and the bytes of their keys and values.
func (s *Store) Stored(ctx context.Context, kind state.Kind) (records int, bytes int64, err error) {
	prefix := root + kind.String() + "/"
	for from, more := prefix, true; more; {
		resp, err := s.link.Load().client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(page))
		if err != nil {
			return 0, 0, explain(err)
		}
		for _, kv := range resp.Kvs {
			records++
			bytes += int64(len(kv.Key) + len(kv.Value))
		}
		if more = resp.More; more {
			from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		}
	}
	return records, bytes, nil
}

// FileSize returns the bytes of the member's database file, history and gaps included; zero with an external etcd.
func (s *Store) FileSize() int64 {
	if l := s.link.Load(); l.member != nil {
		return l.member.Server.Backend().Size()
	}
	return 0
}
