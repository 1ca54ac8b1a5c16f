package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gantry-os/gantry/state"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// commitTime bounds one commit. Past it the outcome is unknown, and the watch brings the writes if they come.
const commitTime = 15 * time.Second

var errClosed = fmt.Errorf("%w: it was closed", state.ErrUnavailable)

// backend is the state.Backend of a Store. Close waits for its calls.
type backend struct{ s *Store }

// Commit implements state.Backend as one etcd transaction, which compares the revision of the leader's key and of what it
// is to replace, then writes.
func (b *backend) Commit(term state.Term, base uint64, ops []state.Op) (uint64, error) {
	if len(ops) > maxOps {
		return 0, fmt.Errorf("%w: it has %d records, at most %d are allowed", state.ErrTooLarge, len(ops), maxOps)
	}
	writes, err := translate(ops)
	if err != nil {
		return 0, err
	}
	b.s.committing.Lock()
	defer b.s.committing.Unlock()
	if err := b.s.ready(); err != nil {
		return 0, err
	}
	t := &txn{term: term, writes: writes, marked: !b.s.sole()}
	rev, err := b.s.write(t, base, ops)
	if errors.Is(err, state.ErrNoSpace) && onlyDeletes(ops) { // which a full store takes, but no other write beside them
		t.writes[len(writes)-1], t.marked = remove([]byte(headKey)), false
		rev, err = b.s.write(t, base, ops)
	}
	if errors.Is(err, state.ErrNoSpace) && b.s.makeSpace() {
		rev, err = b.s.write(t, base, ops)
	}
	return rev, err
}

// leaderTime is how long a commit waits for the members to have elected one that leads them: some elections.
const leaderTime = 3 // times Config.Election

// ready reports why no transaction can be written now.
func (s *Store) ready() error {
	switch l := s.link.Load(); {
	case s.closed:
		return errClosed
	case s.parked != nil:
		return s.parked
	case l.member == nil:
		return nil
	default:
		if err := s.diskLeft(); err != nil {
			return err
		}
		return s.awaitMajority(l)
	}
}

// awaitMajority fails soon, and with nothing written, where etcd would hold a write for long.
func (s *Store) awaitMajority(l *link) error {
	late := time.Now().Add(leaderTime * s.cfg.Election)
	for l.member.Server.Leader() == 0 {
		select {
		case <-s.living.Done():
			return errClosed
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(late) {
			return fmt.Errorf("%w: %w", state.ErrUnavailable, errNoMajority)
		}
	}
	return nil
}

func onlyDeletes(ops []state.Op) bool {
	return !slices.ContainsFunc(ops, func(op state.Op) bool { return op.Val != nil })
}

// write is one transaction unless another server wrote at the same time. Every transaction also writes the head key, or
// deletes it: while its revision is not after base, no record was written that base does not have, and two comparisons
// stand for one of every record, which would cost as much again as the writes themselves.
func (s *Store) write(t *txn, base uint64, ops []state.Op) (uint64, error) {
	ctx, cancel := context.WithTimeout(s.living, commitTime)
	defer cancel()
	t.compares = []*pb.Compare{
		revision(headKey, pb.Compare_GREATER, 0),
		revision(headKey, pb.Compare_LESS, int64(base)+1),
	}
	rev, err := s.see(ctx, t)
	if !errors.Is(err, state.ErrConflict) {
		return rev, err
	}
	t.compares = make([]*pb.Compare, len(ops), len(ops)+2)
	for n, op := range ops {
		t.compares[n] = revision(encodeKey(op.Key), pb.Compare_EQUAL, int64(op.Read))
	}
	return s.see(ctx, t)
}

func revision(key string, is pb.Compare_CompareResult, rev int64) *pb.Compare {
	return &pb.Compare{Key: []byte(key), Target: pb.Compare_MOD, Result: is, TargetUnion: &pb.Compare_ModRevision{ModRevision: rev}}
}

func remove(key []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}}
}

// recordPut is one write of a record, in one piece of memory.
type recordPut struct {
	op  pb.RequestOp
	of  pb.RequestOp_RequestPut
	req pb.PutRequest
}

// translate returns ops in etcd's words, and the write of the head key.
func translate(ops []state.Op) ([]*pb.RequestOp, error) {
	writes := make([]*pb.RequestOp, 0, len(ops)+2) // the mark is to come
	puts := make([]recordPut, len(ops)+1)
	text := make([]byte, 0, 192*len(ops)) // of keys and values; what grew out of it stays valid
	size := 0
	add := func(key, val []byte) {
		p := &puts[len(writes)]
		p.req.Key, p.req.Value = key, val
		p.of.RequestPut = &p.req
		p.op.Request = &p.of
		writes = append(writes, &p.op)
	}
	for _, op := range ops {
		from := len(text)
		text = appendKey(text, op.Key)
		key := text[from:len(text):len(text)]
		size += 2 * len(key)
		if op.Val == nil {
			writes = append(writes, remove(key))
			continue
		}
		from = len(text)
		var err error
		if text, err = encode(text, op.Val); err != nil {
			return nil, fmt.Errorf("encode %q: %w", key, err)
		}
		add(key, text[from:len(text):len(text)])
		size += len(text) - from
	}
	if size > maxBytes {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", state.ErrTooLarge, size, maxBytes)
	}
	add([]byte(headKey), nil)
	return writes, nil
}

// explain puts etcd's errors in state's words. What is not certain to have written nothing is ErrUnavailable.
func explain(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return state.ErrNoSpace
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return fmt.Errorf("%w: %w", state.ErrTooLarge, err)
	}
	return fmt.Errorf("%w: %w", state.ErrUnavailable, err)
}

// Lead implements state.Backend. The revision that wrote the leader's key is the term: nobody can have the same.
func (b *backend) Lead(ctx context.Context, name string) (state.Term, uint64, error) {
	b.s.committing.Lock()
	defer b.s.committing.Unlock()
	if err := b.s.ready(); err != nil {
		return 0, 0, err
	}
	resp, err := b.s.link.Load().client.Put(ctx, leaderKey, name)
	if err != nil {
		return 0, 0, explain(err)
	}
	return state.Term(resp.Header.Revision), uint64(resp.Header.Revision), nil
}
