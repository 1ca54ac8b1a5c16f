package etcd

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/gantry-os/gantry/state"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// page is how many records one read takes at start.
const page = 4096

// load reads all records as of one revision, which it returns. Pages are decoded while others are read.
func (s *Store) load(ctx context.Context) (int64, [][]state.Op, error) {
	client := s.link.Load().client
	var pages []*[]state.Op
	rev := int64(0)
	decoding, ctx := errgroup.WithContext(ctx)
	decoding.SetLimit(runtime.GOMAXPROCS(0))
	head := (*headship)(nil)
	for from, more := root, true; more; {
		opts := []clientv3.OpOption{clientv3.WithRange(clientv3.GetPrefixRangeEnd(root)), clientv3.WithLimit(page)}
		if rev != 0 {
			opts = append(opts, clientv3.WithRev(rev), clientv3.WithSerializable())
		}
		resp, err := client.Get(ctx, from, opts...)
		if err != nil {
			return 0, nil, errors.Join(explain(err), decoding.Wait())
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		if more = resp.More; more {
			from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		}
		for _, kv := range resp.Kvs {
			if string(kv.Key) == leaderKey {
				head = parseHead(kv)
			}
			if isRelease(kv.Key) {
				if err := s.follows(&clientv3.Event{Type: clientv3.EventTypePut, Kv: kv}); err != nil {
					return 0, nil, errors.Join(err, decoding.Wait())
				}
			}
		}
		ops := make([]state.Op, 0, len(resp.Kvs))
		pages = append(pages, &ops)
		decoding.Go(func() error { return decodeAll(resp.Kvs, &ops) })
	}
	if err := decoding.Wait(); err != nil {
		return 0, nil, err
	}
	s.head.Store(head)
	all := make([][]state.Op, len(pages))
	for i, ops := range pages {
		all[i] = *ops
	}
	return rev, all, nil
}

func decodeAll(kvs []*mvccpb.KeyValue, out *[]state.Op) error {
	for _, kv := range kvs {
		op, ok, err := decodeKV(kv)
		if err != nil {
			return err
		}
		if ok {
			*out = append(*out, op)
		}
	}
	return nil
}

// decodeKV returns the write of a record, and whether kv is one.
func decodeKV(kv *mvccpb.KeyValue) (state.Op, bool, error) {
	if !isRecord(kv.Key) {
		return state.Op{}, false, nil
	}
	key, err := decodeKey(string(kv.Key))
	if err != nil {
		return state.Op{}, false, err
	}
	val, err := decode(key, kv.Value)
	return state.Op{Key: key, Read: uint64(kv.ModRevision), Val: val}, true, err
}

// follow brings every change from revision rev on into the DB. It ends only with an error: when ctx ends, or when the
// changes cannot be had or read. When the member starts again it goes on; when history is gone that it needs, as for a server
// that was cut off for long, it reads all records again.
func (s *Store) follow(ctx context.Context, rev int64) error {
	for {
		l := s.link.Load()
		next, err := s.followLink(ctx, l, rev)
		rev = max(rev, next)
		switch {
		case ctx.Err() != nil:
			return errClosed
		case errors.Is(err, rpctypes.ErrCompacted):
			var pages [][]state.Op
			if rev, pages, err = s.load(ctx); err != nil {
				return fmt.Errorf("%w: read records again: %w", state.ErrUnavailable, err)
			}
			s.DB.Replace(uint64(rev), pages...)
			rev++
		case errors.Is(err, rpctypes.ErrNoLeader): // see needsLeader
			select {
			case <-time.After(retryEvery):
			case <-ctx.Done():
				return errClosed
			}
		case l.left.Load():
			select {
			case <-l.next:
			case <-ctx.Done():
				return errClosed
			}
		case err != nil:
			return fmt.Errorf("%w: follow changes: %w", state.ErrUnavailable, err)
		default:
			return fmt.Errorf("%w: changes no longer come", state.ErrUnavailable)
		}
	}
}

// followLink follows until l gives no more, and returns the revision to go on at.
func (s *Store) followLink(ctx context.Context, l *link, rev int64) (int64, error) {
	for resp := range l.client.Watch(ctx, root, clientv3.WithPrefix(), clientv3.WithRev(rev)) {
		if err := resp.Err(); err != nil {
			return rev, err
		}
		if resp.IsProgressNotify() {
			s.DB.Apply(uint64(resp.Header.Revision), nil) // others use this etcd too
		}
		if err := s.apply(resp.Events); err != nil {
			return rev, err
		}
		if n := len(resp.Events); n > 0 {
			rev = resp.Events[n-1].Kv.ModRevision + 1
		}
	}
	return rev, nil
}

// apply brings in events, a revision at a time.
func (s *Store) apply(events []*clientv3.Event) error {
	for len(events) > 0 {
		rev := events[0].Kv.ModRevision
		n := 1
		for n < len(events) && events[n].Kv.ModRevision == rev {
			n++
		}
		if err := s.applyOne(uint64(rev), events[:n]); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

func (s *Store) applyOne(rev uint64, events []*clientv3.Event) error {
	if len(events) == 1 && string(events[0].Kv.Key) == leaderKey {
		s.head.Store(parseHead(events[0].Kv))
	}
	for _, e := range events {
		if isRelease(e.Kv.Key) {
			if err := s.follows(e); err != nil {
				return err
			}
		}
	}
	if s.DB.Knows(rev) {
		return nil // our own write: spare the decoding
	}
	ops := make([]state.Op, 0, len(events))
	for _, e := range events {
		op, ok, err := decodeEvent(e)
		if err != nil {
			return err
		}
		if ok {
			ops = append(ops, op)
		}
	}
	s.DB.Apply(rev, ops)
	return nil
}

func decodeEvent(e *clientv3.Event) (state.Op, bool, error) {
	if e.Type != clientv3.EventTypeDelete || !isRecord(e.Kv.Key) {
		return decodeKV(e.Kv)
	}
	key, err := decodeKey(string(e.Kv.Key))
	return state.Op{Key: key}, true, err
}
