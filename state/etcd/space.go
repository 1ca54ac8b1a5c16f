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
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < need {
		return fmt.Errorf("%w: the disk of %s is full: %d MiB are free and %d needed; make space and start again",
			state.ErrNoSpace, dir, free>>20, need>>20)
	}
	return nil
}

// makeSpace tries to make a full store take writes again, and reports whether it may. DB commits one at a time, so
// nothing else runs it.
func (s *Store) makeSpace() bool {
	if time.Since(s.spaceTried) < spaceEvery {
		return false
	}
	s.spaceTried = time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.disarm(ctx); err != nil {
		s.log.Error("the store is full, and making space in it failed", "dir", s.cfg.Dir, "err", err)
		return false
	}
	return true
}

// disarm drops history and gaps from a store that has met its quota, and lifts the alarm that this raised when there is
// space to spare then. Otherwise it does nothing.
func (s *Store) disarm(ctx context.Context) error {
	alarms, err := s.client.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("list alarms: %w", err)
	}
	for _, a := range alarms.Alarms {
		if a.Alarm != etcdserverpb.AlarmType_NOSPACE {
			continue
		}
		used, err := s.shrink(ctx)
		if err != nil {
			return err
		}
		if used > s.cfg.Quota/10*9 {
			return nil
		}
		if _, err := s.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			return fmt.Errorf("lift alarm: %w", err)
		}
	}
	return nil
}

// shrink drops all history and gaps, and returns the bytes that remain.
func (s *Store) shrink(ctx context.Context) (int64, error) {
	head, err := s.client.Get(ctx, leaderKey)
	if err != nil {
		return 0, fmt.Errorf("read revision: %w", err)
	}
	if _, err := s.client.Compact(ctx, head.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		s.log.Debug("drop history", "err", err) // it has been dropped before
	}
	if err := s.member.Server.Backend().Defrag(); err != nil {
		return 0, fmt.Errorf("close gaps: %w", err)
	}
	return s.member.Server.Backend().Size(), nil
}

// Stored returns how many records of a kind there are, and the bytes of their keys and values.
func (s *Store) Stored(ctx context.Context, kind state.Kind) (records int, bytes int64, err error) {
	prefix := root + kind.String() + "/"
	for from, more := prefix, true; more; {
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(page))
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

// FileSize returns the bytes of the database file, history and gaps included.
func (s *Store) FileSize() int64 { return s.member.Server.Backend().Size() }
