package etcd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/gantry-os/gantry/state"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// One server leads Gantry: the one whose member leads etcd's. Nothing else decides it, so a new leader is there as soon as etcd has
// one: between Config.Election and twice that since the last sign of life of the old one, and as long again in the few cases in
// which two members stood at the same moment, each voting for itself. The old one, if it lives, gives up within twice
// Config.Election, because it hears of no majority; what it writes meanwhile, or after a pause, is refused, because its term is
// over.
//
// With an external etcd a lease decides. It ends leaseTime after the leader's last sign of life, and etcd takes up to half a second
// to see that, or the time to elect its own leader and leaseTime again when that died too.
const (
	leaseTime = 2 * time.Second        // the least etcd grants
	headEvery = 50 * time.Millisecond  // how often a leader makes sure that it still is one
	seekEvery = 100 * time.Millisecond // how often others look whether they may be
	claimTime = 5 * time.Second        // of one try to begin a term
)

var errNotLeader = errors.New("another server leads")

// headship is the content of the leader's key, whose revision is the term.
type headship struct {
	term       state.Term
	name, addr string
	member     uint64 // zero with an external etcd
}

func (h *headship) String() string {
	return h.name + "\n" + h.addr + "\n" + strconv.FormatUint(h.member, 16)
}

// parseHead returns who leads by kv, or nil when the key is deleted.
func parseHead(kv *mvccpb.KeyValue) *headship {
	if kv.CreateRevision == 0 {
		return nil
	}
	name, rest, _ := strings.Cut(string(kv.Value), "\n")
	addr, id, _ := strings.Cut(rest, "\n")
	member, _ := strconv.ParseUint(id, 16, 64) // zero for one that wrote no more than its name
	return &headship{term: state.Term(kv.ModRevision), name: name, addr: addr, member: member}
}

// Campaign waits until this server leads, and returns the Store for the leader's loops. lost is closed once it leads no longer; the
// loops are to end then, and the server may campaign again. name and addr are what Leader tells on every server.
func (s *Store) Campaign(ctx context.Context, name, addr string) (_ *state.Leader, lost <-chan struct{}, err error) {
	for {
		var elected <-chan struct{}
		if l := s.link.Load(); l.member != nil {
			elected = l.member.Server.LeaderChangedNotify()
		}
		leader, lost, err := s.claim(ctx, &headship{name: name, addr: addr})
		if err == nil {
			return leader, lost, nil
		}
		if !errors.Is(err, errNotLeader) {
			s.log.Debug("campaign: trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		case <-s.broken:
			return nil, nil, s.err
		case <-s.living.Done():
			return nil, nil, errClosed
		case <-elected:
		case <-time.After(seekEvery):
		}
	}
}

// leadsMembers reports whether this server's member leads etcd's, as far as it knows.
func (s *Store) leadsMembers(l *link) bool {
	return l.member.Server.Leader() == l.member.Server.MemberID() && !l.left.Load()
}

// claim begins a term of this server if it may.
func (s *Store) claim(ctx context.Context, h *headship) (*state.Leader, <-chan struct{}, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	l := s.link.Load()
	if l.member == nil {
		return s.claimLease(ctx, l, h)
	}
	if !s.leadsMembers(l) {
		return nil, nil, errNotLeader
	}
	h.member = uint64(l.member.Server.MemberID())
	ctx, stop := whileLed(ctx, l) // past that nothing answers for long
	defer stop()
	// Whoever leads the members after this look at the key will have changed it.
	was, err := l.client.Get(ctx, leaderKey)
	if err != nil {
		return nil, nil, explain(err)
	}
	mod := int64(0)
	if len(was.Kvs) == 1 {
		mod = was.Kvs[0].ModRevision
	}
	if !s.leadsMembers(l) {
		return nil, nil, errNotLeader
	}
	return s.begin(ctx, l, h, mod, 0, func(lost func() bool) {
		tick := time.NewTicker(headEvery)
		defer tick.Stop()
		for !lost() && s.leadsMembers(l) {
			select {
			case <-tick.C:
			case <-s.living.Done():
				return
			}
		}
	})
}

// begin writes the leader's key, unless it is not as of revision mod any more, and has hold watch over the term until it ends.
func (s *Store) begin(ctx context.Context, l *link, h *headship, mod int64, lease clientv3.LeaseID, hold func(lost func() bool)) (*state.Leader, <-chan struct{}, error) {
	resp, err := l.client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(leaderKey), "=", mod)).
		Then(clientv3.OpPut(leaderKey, h.String(), clientv3.WithLease(lease))).
		Commit()
	if err != nil {
		return nil, nil, explain(err)
	}
	if !resp.Succeeded {
		return nil, nil, errNotLeader
	}
	h.term = state.Term(resp.Header.Revision)
	leader, err := s.DB.Assume(ctx, h.term, uint64(h.term))
	if err != nil {
		return nil, nil, err
	}
	lost := make(chan struct{})
	s.wg.Go(func() {
		defer close(lost)
		hold(func() bool { return s.over(h.term) })
	})
	return leader, lost, nil
}

// over reports whether another term has begun, or this one was given up.
func (s *Store) over(term state.Term) bool {
	select {
	case <-s.broken:
		return true
	default:
	}
	h := s.head.Load()
	return h == nil || h.term != term
}

// claimLease begins a term that a lease bounds, when nobody else has one.
func (s *Store) claimLease(ctx context.Context, l *link, h *headship) (*state.Leader, <-chan struct{}, error) {
	if s.head.Load() != nil {
		return nil, nil, errNotLeader
	}
	asked := time.Now()
	grant, err := l.client.Grant(ctx, int64(leaseTime/time.Second))
	if err != nil {
		return nil, nil, explain(err)
	}
	ttl := time.Duration(grant.TTL) * time.Second
	leader, lost, err := s.begin(ctx, l, h, 0, grant.ID, func(lost func() bool) { s.holdLease(l, grant.ID, asked.Add(ttl), lost) })
	if err != nil {
		_, end := l.client.Revoke(context.WithoutCancel(ctx), grant.ID) // it ends anyway
		return nil, nil, errors.Join(err, end)
	}
	return leader, lost, nil
}

// holdLease keeps a lease that ends at end until lost, or until it may have ended.
func (s *Store) holdLease(l *link, id clientv3.LeaseID, end time.Time, lost func() bool) {
	tick := time.NewTicker(headEvery)
	defer tick.Stop()
	kept := make(chan time.Time, 1)
	renewing := false
	for !lost() && time.Now().Before(end) {
		if !renewing && time.Until(end) < leaseTime*2/3 {
			renewing = true
			s.wg.Go(func() { kept <- s.renew(l, id) })
		}
		select {
		case <-tick.C:
		case t := <-kept:
			renewing = false
			if t.After(end) {
				end = t
			}
		case <-s.living.Done():
			return
		}
	}
}

// renew returns when the lease ends, the zero time if it could not be kept.
func (s *Store) renew(l *link, id clientv3.LeaseID) time.Time {
	ctx, cancel := context.WithTimeout(s.living, leaseTime/2)
	defer cancel()
	asked := time.Now()
	resp, err := l.client.KeepAliveOnce(ctx, id)
	if err != nil {
		return time.Time{}
	}
	return asked.Add(time.Duration(resp.TTL) * time.Second)
}

// Leader returns the name and address that the leader campaigned with, and whether there is one, as far as this server knows.
func (s *Store) Leader() (name, addr string, ok bool) {
	h := s.head.Load()
	if h == nil {
		return "", "", false
	}
	if l := s.link.Load(); l.member != nil && h.member != 0 && uint64(l.member.Server.Leader()) != h.member {
		return "", "", false
	}
	return h.name, h.addr, true
}

// Resign has this server lead no longer, so that another one does at once. The loops have ended before.
func (s *Store) Resign(ctx context.Context, leader *state.Leader) error {
	l := s.link.Load()
	_, err := l.client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(leaderKey), "=", int64(leader.Term()))).
		Then(clientv3.OpDelete(leaderKey)).
		Commit()
	if err != nil {
		return fmt.Errorf("resign: %w", explain(err))
	}
	if l.member == nil {
		return nil
	}
	if err := l.member.Server.TryTransferLeadershipOnShutdown(); err != nil {
		return fmt.Errorf("hand leadership over: %w", explain(err))
	}
	return nil
}
