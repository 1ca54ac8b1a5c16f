package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/gantry-os/gantry/state"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Paces of the keeper.
const (
	keepEvery    = time.Second
	keepAlone    = 5 * time.Second // of a member that is alone, which may sleep
	tidyEvery    = time.Minute
	compactEvery = 5 * time.Minute
	resumeTime   = 2 * time.Minute // of one try to start a member again, which may have to wait for others
	turnTime     = time.Minute     // of one member at a time, unless it says that it is done
	leaderWaits  = 10              // looks, during which other members may tidy before the leader hands over to do so
)

// keeper is what looks after the member: one goroutine, whose memory this is.
type keeper struct {
	*Store
	tidied, compacted time.Time
	least             int64 // size of a file whose gaps are worth closing
	waits             int   // looks at which a leader has had something to tidy
}

// keep looks after the member until the store ends.
func (s *Store) keep() {
	if !s.sole() {
		s.wg.Go(s.confirmAlways)
	}
	every := keepEvery
	if s.sole() {
		every = keepAlone
	}
	now := time.Now()
	k := &keeper{Store: s, tidied: now, compacted: now, least: tidyLeast}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := k.wait(tick.C); err != nil {
			s.fail(err)
			return
		}
		if s.living.Err() != nil {
			return
		}
	}
}

// wait looks after the member once there is something to do.
func (k *keeper) wait(tick <-chan time.Time) error {
	l := k.link.Load()
	var stopped, died <-chan struct{}
	if l.member != nil && !l.left.Load() {
		stopped, died = l.member.Server.StopNotify(), l.died
	}
	select {
	case <-k.living.Done():
		return nil
	case <-died:
		return k.revive()
	case <-stopped:
		select {
		case <-died:
			return k.revive()
		default:
		}
		return fmt.Errorf("%w: %w", state.ErrUnavailable, ErrRemoved)
	case <-tick:
	}
	switch {
	case l.member == nil:
		k.raiseSoon(l)
		k.compactExternal(l)
		return nil
	case l.left.Load():
		return k.resume()
	default:
		return k.look(l)
	}
}

// look does what there is to do for a member that runs.
func (k *keeper) look(l *link) error {
	if id := l.member.Server.MemberID(); l.member.Server.IsIDRemoved(uint64(id)) {
		return fmt.Errorf("%w: %w", state.ErrUnavailable, ErrRemoved)
	}
	if free, err := diskFree(k.cfg.Dir); err == nil && free < parkDisk && !k.aloneNow(l) {
		return k.park(fmt.Errorf("%w: the disk of %s has %d MiB left", state.ErrNoSpace, k.cfg.Dir, free>>20))
	}
	for _, a := range l.member.Server.Alarms() {
		if a.MemberID == uint64(l.member.Server.MemberID()) {
			k.makeSpaceSoon(l)
		}
	}
	k.raiseSoon(l)
	if time.Since(k.tidied) >= tidyEvery {
		k.tidied = time.Now()
		k.tidy(l)
	}
	if k.caSum() != l.ca {
		ctx, cancel := context.WithTimeout(k.living, resumeTime)
		defer cancel()
		if err := k.Reload(ctx); err != nil {
			k.log.Warn("starting the member again with the changed CA waits", "err", err)
		}
	}
	return nil
}

// raiseSoon raises the stored release if it is time. What fails is tried again at the next look.
func (k *keeper) raiseSoon(l *link) {
	if err := k.raise(l); err != nil {
		k.log.Debug("raise the stored release", "err", err)
	}
}

// revive starts a member again that has failed, at once if it can.
func (k *keeper) revive() error {
	if err := k.park(errors.New("the member has failed")); err != nil {
		return err
	}
	return k.resume()
}

// aloneNow reports whether no other member could go on without this one.
func (s *Store) aloneNow(l *link) bool {
	voters := 0
	for _, m := range l.member.Server.Cluster().Members() {
		if !m.IsLearner {
			voters++
		}
	}
	return voters < 3
}

// park ends a member that cannot go on, so that the process and, where there are enough of them, the other members do. Updates
// through this server fail until it is back; views stay.
func (s *Store) park(why error) error {
	s.committing.Lock()
	defer s.committing.Unlock()
	s.log.Error("the member rests until it can go on", "dir", s.cfg.Dir, "err", why)
	s.parked = fmt.Errorf("%w: this server's member rests: %w", state.ErrUnavailable, why)
	l := s.link.Load()
	l.left.Store(true)
	if err := l.end(); errors.Is(err, ErrHangs) { // it still has its files
		return fmt.Errorf("%w: %w: %w", state.ErrUnavailable, why, err)
	}
	return nil
}

// resume starts a member that was parked, if it can go on.
func (s *Store) resume() error {
	if free, err := diskFree(s.cfg.Dir); err != nil || free < resumeDisk {
		return err
	}
	ctx, cancel := context.WithTimeout(s.living, resumeTime)
	defer cancel()
	l, err := s.startAgain(ctx)
	if err != nil {
		s.log.Warn("the member does not start again", "err", err)
		if errors.Is(err, ErrHangs) {
			return fmt.Errorf("%w: %w", state.ErrUnavailable, err)
		}
		return nil
	}
	s.committing.Lock()
	defer s.committing.Unlock()
	s.relink(l)
	s.log.Info("the member goes on")
	return nil
}

func (s *Store) startAgain(ctx context.Context) (*link, error) {
	if err := s.prime(ctx); err != nil {
		return nil, err
	}
	return s.start(ctx, s.memberConfig(), s.cfg.Peer, s.elect)
}

// relink puts l in use. The caller has committing.
func (s *Store) relink(l *link) {
	old := s.link.Swap(l)
	s.parked = nil
	close(old.next)
}

// Reload starts the member again, so that it uses a changed CA, while no other member does the same. What it led, another takes
// over; updates through this server wait meanwhile. The store does so by itself within seconds of a change.
func (s *Store) Reload(ctx context.Context) error {
	old, err := s.own()
	if err != nil {
		return err
	}
	done, err := s.takeTurn(ctx, old)
	if err != nil {
		return err
	}
	defer done()
	s.committing.Lock()
	defer s.committing.Unlock()
	if s.closed || s.parked != nil {
		return errors.Join(s.parked, s.living.Err())
	}
	old.left.Store(true)
	if err := old.end(); errors.Is(err, ErrHangs) {
		s.fail(fmt.Errorf("%w: %w", state.ErrUnavailable, err))
		return err
	}
	l, err := s.startAgain(ctx)
	if err != nil {
		s.parked = fmt.Errorf("%w: start the member again: %w", state.ErrUnavailable, err)
		return s.parked
	}
	s.relink(l)
	return nil
}

// caSum returns what is in the file of the CA.
func (s *Store) caSum() (sum [sha256.Size]byte) {
	if s.cfg.Peer == nil {
		return sum
	}
	b, err := os.ReadFile(s.cfg.Peer.TLS.CA)
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return sum
	}
	return sha256.Sum256(b)
}

// errTurn says that another member has its turn.
var errTurn = errors.New("another server's member is at it")

// takeTurn lets one member at a time do what the others have to make up for, and only while all of them answer.
func (s *Store) takeTurn(ctx context.Context, l *link) (done func(), err error) {
	if len(l.member.Server.Cluster().Members()) == 1 {
		return func() {}, nil
	}
	st, err := s.Status(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range st.Members {
		if !m.Answers && !m.Learner {
			return nil, fmt.Errorf("%w: %s does not answer, and the others have to", ErrQuorum, m.Name)
		}
	}
	lease, err := l.client.Grant(ctx, int64(turnTime/time.Second))
	if err != nil {
		return nil, explain(err)
	}
	resp, err := l.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(turnKey), "=", 0)).
		Then(clientv3.OpPut(turnKey, s.cfg.Name, clientv3.WithLease(lease.ID))).
		Commit()
	done = func() { s.endTurn(lease.ID) }
	if err != nil || !resp.Succeeded {
		done()
		return nil, errors.Join(errTurn, err)
	}
	return done, nil
}

// endTurn gives a turn back. It would end by itself, later.
func (s *Store) endTurn(id clientv3.LeaseID) {
	for range 5 {
		ctx, cancel := context.WithTimeout(s.living, 2*time.Second)
		_, err := s.link.Load().client.Revoke(ctx, id)
		cancel()
		if err == nil || errors.Is(err, rpctypes.ErrLeaseNotFound) || s.living.Err() != nil {
			return
		}
		time.Sleep(retryEvery)
	}
}

// tidy closes the gaps in the member's file when they are most of it. That halts the member, so one does it at a time, and a leader
// hands over first.
func (k *keeper) tidy(l *link) {
	be := l.member.Server.Backend()
	if size := be.Size(); size < k.least || be.SizeInUse() > size/2 {
		k.waits = 0
		return
	}
	if k.leadsMembers(l) && !k.aloneNow(l) {
		if k.waits++; k.waits < leaderWaits {
			return
		}
		if err := l.member.Server.TryTransferLeadershipOnShutdown(); err != nil {
			k.log.Debug("tidy: hand leadership over", "err", err)
			return
		}
	}
	ctx, cancel := context.WithTimeout(k.living, turnTime)
	defer cancel()
	done, err := k.takeTurn(ctx, l)
	if err != nil {
		k.log.Debug("tidy: waiting for a turn", "err", err)
		return
	}
	defer done()
	k.waits = 0
	k.spacing.Lock()
	defer k.spacing.Unlock()
	if err := be.Defrag(); err != nil {
		k.log.Warn("closing the gaps in the store failed", "err", err)
	}
}

// compactExternal drops history of an external etcd, which may not do so by itself.
func (k *keeper) compactExternal(l *link) {
	if h := k.head.Load(); time.Since(k.compacted) < compactEvery || h == nil || h.name != k.cfg.Name {
		return
	}
	k.compacted = time.Now()
	ctx, cancel := context.WithTimeout(k.living, time.Minute)
	defer cancel()
	rev := int64(k.View().Revision()) - kept
	if rev <= 0 {
		return
	}
	if _, err := l.client.Compact(ctx, rev); err != nil {
		k.log.Debug("drop history", "err", err) // it may have been dropped before
	}
}
