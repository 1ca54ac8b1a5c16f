package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gantry-os/gantry/state"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// commitTime bounds one commit. Past it the outcome is unknown, and the watch brings the writes if they come.
const commitTime = 15 * time.Second

var errClosed = fmt.Errorf("%w: it was closed", state.ErrUnavailable)

// backend is the state.Backend of a Store. Close waits for its calls.
type backend struct{ s *Store }

// Commit implements state.Backend as one etcd transaction: it compares the revision of every record and of the leader's
// key, then writes.
func (b *backend) Commit(term state.Term, ops []state.Op) (uint64, error) {
	if len(ops) > maxOps {
		return 0, fmt.Errorf("%w: it has %d records, at most %d are allowed", state.ErrTooLarge, len(ops), maxOps)
	}
	cmps, puts, err := translate(term, ops)
	if err != nil {
		return 0, err
	}
	b.s.committing.Lock()
	defer b.s.committing.Unlock()
	if b.s.closed {
		return 0, errClosed
	}
	rev, err := b.s.txn(term, cmps, puts)
	if errors.Is(err, state.ErrNoSpace) && b.s.makeSpace() {
		rev, err = b.s.txn(term, cmps, puts)
	}
	return rev, err
}

func translate(term state.Term, ops []state.Op) (cmps []clientv3.Cmp, puts []clientv3.Op, err error) {
	cmps = make([]clientv3.Cmp, 0, len(ops)+1)
	puts = make([]clientv3.Op, 0, len(ops))
	if term != 0 {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(leaderKey), "=", int64(term)))
	}
	size := 0
	for _, op := range ops {
		key := encodeKey(op.Key)
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "=", int64(op.Read)))
		if op.Val == nil {
			puts = append(puts, clientv3.OpDelete(key))
			size += 2 * len(key)
			continue
		}
		val, err := encode(op.Val)
		if err != nil {
			return nil, nil, fmt.Errorf("encode %q: %w", key, err)
		}
		puts = append(puts, clientv3.OpPut(key, string(val)))
		size += 2*len(key) + len(val)
	}
	if size > maxBytes {
		return nil, nil, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", state.ErrTooLarge, size, maxBytes)
	}
	return cmps, puts, nil
}

func (s *Store) txn(term state.Term, cmps []clientv3.Cmp, puts []clientv3.Op) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commitTime)
	defer cancel()
	resp, err := s.client.Txn(ctx).If(cmps...).Then(puts...).Else(clientv3.OpGet(leaderKey)).Commit()
	if err != nil {
		return 0, explain(err)
	}
	rev := uint64(resp.Header.Revision)
	if resp.Succeeded {
		return rev, nil
	}
	if term != 0 && leader(resp.Responses) != term {
		return rev, state.ErrDeposed
	}
	return rev, state.ErrConflict
}

// leader returns the term in the answer to a get of the leader's key.
func leader(resps []*etcdserverpb.ResponseOp) state.Term {
	if len(resps) == 1 {
		for _, kv := range resps[0].GetResponseRange().GetKvs() {
			return state.Term(kv.ModRevision)
		}
	}
	return 0
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
	if b.s.closed {
		return 0, 0, errClosed
	}
	resp, err := b.s.client.Put(ctx, leaderKey, name)
	if err != nil {
		return 0, 0, explain(err)
	}
	return state.Term(resp.Header.Revision), uint64(resp.Header.Revision), nil
}
