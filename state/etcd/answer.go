package etcd

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gantry-os/gantry/state"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A member passes a write on to the one that leads. When that one dies the write may have been lost, or a majority may have
// it, or it may even be under way still: a leader that was paused passes on later what it finds in its queue. Etcd waits for
// seven seconds and says that it does not know. A Store asks again as soon as there is a new leader, and does know:
//
// Each transaction of a Store writes a mark, which is another each time, under a key of the Store's own, and is refused when
// that key is not as the Store last saw it. So of all that a Store has sent since, one transaction is applied at most, and one
// that comes late never. When an answer is missing, the Store tries to put another mark there. Either that succeeds, then
// the transaction was not applied and never will be, and it is sent again under a new mark; or the key shows the
// transaction's mark, then it was applied, at the key's revision. Comparing the records' own revisions would not do: a record
// that is created, deleted by somebody else, and created again by the late twin of the first try was absent each time.
const marks = "/gantry/marks/" // a key for each server below it; outside root, since it is no record

const (
	// answerTime is how long one try of a transaction may take while nothing says that its answer will not come.
	answerTime = 3 * time.Second
	// againAfter is the pause before another try, which as a rule waits for a leader anyway.
	againAfter = 10 * time.Millisecond
)

// errUnanswered says that a transaction may be applied, now or later, or never.
var errUnanswered = errors.New("no answer came")

// txn is a transaction of etcd's.
type txn struct {
	term     state.Term // unless zero, to be still the leader's
	compares []*pb.Compare
	writes   []*pb.RequestOp
	marked   bool // without it, a missing answer stays missing
}

// marker is what a Store knows of its mark. It belongs to who has committing.
type marker struct {
	key   []byte
	rev   int64  // of the key, as last seen; wrong at first, which costs a try
	nonce []byte // of this Store, so that no mark of another run is taken for its own
	n     uint64
}

func newMarker(name string) marker {
	nonce := make([]byte, 8)
	rand.Read(nonce) // it never fails
	return marker{key: []byte(marks + name), nonce: nonce}
}

// next returns a mark that was never used.
func (m *marker) next() string {
	m.n++
	return string(binary.BigEndian.AppendUint64(m.nonce[:len(m.nonce):len(m.nonce)], m.n))
}

func (m *marker) unchanged() *pb.Compare { return revision(string(m.key), pb.Compare_EQUAL, m.rev) }

func put(key []byte, val string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: []byte(val)}}}
}

func get(key []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}
}

// see has t applied, and sees it through the loss of etcd's leader. What fails with ErrUnavailable may be applied later, but not
// once another transaction of this Store was.
func (s *Store) see(ctx context.Context, t *txn) (uint64, error) {
	for {
		mark := s.mark.next()
		rev, err := s.try(ctx, t, mark)
		if !errors.Is(err, errUnanswered) {
			return rev, err
		}
		if !t.marked {
			return 0, fmt.Errorf("%w: %w", state.ErrUnavailable, err)
		}
		rev, applied, settled := s.settle(ctx, mark)
		if settled != nil {
			return 0, fmt.Errorf("%w: %w: %v", state.ErrUnavailable, err, settled)
		}
		if applied {
			return rev, nil
		}
	}
}

// try sends t once for each time that the Store finds another mark than it knew.
func (s *Store) try(ctx context.Context, t *txn, mark string) (uint64, error) {
	for {
		req := &pb.TxnRequest{
			Compare: slices.Clone(t.compares), Success: slices.Clone(t.writes), // one that is given up may still be looked at
			Failure: []*pb.RequestOp{get([]byte(leaderKey)), get(s.mark.key)},
		}
		if t.term != 0 {
			req.Compare = append(req.Compare, revision(leaderKey, pb.Compare_EQUAL, int64(t.term)))
		}
		if t.marked {
			req.Compare = append(req.Compare, s.mark.unchanged())
			req.Success = append(req.Success, put(s.mark.key, mark))
		}
		resp, err := s.ask(ctx, t.patience(), req)
		if err != nil {
			return 0, err
		}
		rev := uint64(resp.Header.Revision)
		if resp.Succeeded {
			if t.marked {
				s.mark.rev = resp.Header.Revision
			}
			return rev, nil
		}
		head, mine := found(resp, 0), found(resp, 1)
		changed := mine.GetModRevision() != s.mark.rev
		s.mark.rev = mine.GetModRevision()
		switch {
		case t.marked && string(mine.GetValue()) == mark: // a client of an external etcd has sent it twice
			return uint64(mine.ModRevision), nil
		case t.marked && changed:
			continue
		case t.term != 0 && state.Term(head.GetModRevision()) != t.term:
			return rev, state.ErrDeposed
		}
		return rev, state.ErrConflict
	}
}

// patience is how long a try may take. Where another could not be made it is for ctx to say.
func (t *txn) patience() time.Duration {
	if t.marked {
		return answerTime
	}
	return commitTime
}

// found returns the key that the nth operation of a transaction got, nil for none.
func found(resp *pb.TxnResponse, n int) *mvccpb.KeyValue {
	if kvs := resp.Responses[n].GetResponseRange().GetKvs(); len(kvs) == 1 {
		return kvs[0]
	}
	return nil
}

// settle finds out whether the transaction with a mark was applied, and when it was not, sees to it that it never is.
func (s *Store) settle(ctx context.Context, mark string) (rev uint64, applied bool, err error) {
	for {
		if err := s.await(ctx); err != nil {
			return 0, false, err
		}
		resp, err := s.ask(ctx, answerTime, &pb.TxnRequest{
			Compare: []*pb.Compare{s.mark.unchanged()},
			Success: []*pb.RequestOp{put(s.mark.key, s.mark.next()), put([]byte(headKey), "")}, // views wait for each revision
			Failure: []*pb.RequestOp{get(s.mark.key)},
		})
		switch {
		case errors.Is(err, errUnanswered):
			continue
		case err != nil:
			return 0, false, err
		case resp.Succeeded:
			s.mark.rev = resp.Header.Revision
			return 0, false, nil
		}
		mine := found(resp, 0)
		s.mark.rev = mine.GetModRevision()
		return uint64(s.mark.rev), string(mine.GetValue()) == mark, nil
	}
}

// await waits until it makes sense to ask again.
func (s *Store) await(ctx context.Context) error {
	select {
	case <-time.After(againAfter):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l := s.link.Load()
	if l.member == nil {
		return nil
	}
	select {
	case <-l.member.Server.StopNotify():
		return errStopped
	case <-l.died:
		return errStopped
	default:
		return s.awaitMajority(l)
	}
}

var errStopped = errors.New("this server's member has stopped")

// ask sends a transaction. It fails with errUnanswered after a time, and as soon as the member that led does no longer.
func (s *Store) ask(ctx context.Context, within time.Duration, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	l := s.link.Load()
	ctx, cancel := context.WithTimeoutCause(ctx, within, errUnanswered)
	defer cancel()
	ctx, stop := whileLed(ctx, l)
	defer stop()
	resp, err := l.kv.Txn(ctx, req)
	switch {
	case err == nil:
		return resp, nil
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), errUnanswered):
		return nil, context.Cause(ctx)
	case unanswered(err):
		return nil, fmt.Errorf("%w: %w", errUnanswered, rpctypes.Error(err))
	}
	return nil, explain(rpctypes.Error(err))
}

// errLed is why a call ends whose answer will not come.
var errLed = fmt.Errorf("%w: the member that led etcd does no longer", errUnanswered)

// whileLed returns a context that ends, with errLed, when the member that leads as far as l's member knows does not any more.
func whileLed(ctx context.Context, l *link) (_ context.Context, stop func()) {
	if l.member == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	server := l.member.Server
	changed, was := server.LeaderChangedNotify(), server.Leader()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(headEvery) // nothing tells when there is none
		defer tick.Stop()
		for server.Leader() == was {
			select {
			case <-tick.C:
				continue
			case <-changed:
			case <-l.died:
			case <-ctx.Done():
				return
			}
			break
		}
		cancel(errLed)
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
	}
}

// unanswered reports whether an error leaves it open what becomes of a write, and another try may tell.
func unanswered(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	case codes.Unknown: // the member refuses, because none leads that it could pass the write on to
		return strings.Contains(err.Error(), raft.ErrProposalDropped.Error())
	}
	return false
}
