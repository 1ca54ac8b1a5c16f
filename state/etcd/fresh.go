package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gantry-os/gantry/state"
)

// confirmEvery is how often a server among others makes sure that its view is no older than that.
const confirmEvery = 500 * time.Millisecond

// epoch is what Store.confirmed counts from; unlike the time of day it never goes back.
var epoch = time.Now()

// Fresh returns once View has every transaction that was acknowledged, by any server, before the call.
func (s *Store) Fresh(ctx context.Context) error {
	asked := time.Since(epoch)
	l := s.link.Load()
	if l.member != nil && l.member.Server.Leader() == 0 { // it would wait for long
		return fmt.Errorf("%w: %w", state.ErrUnavailable, errNoMajority)
	}
	resp, err := l.client.Get(ctx, leaderKey) // etcd asks a majority for it
	if err != nil {
		return explain(err)
	}
	rev := uint64(resp.Header.Revision)
	if l.member == nil && s.View().Revision() < rev { // the newest revision may be another's, of which no change tells
		if err := l.client.RequestProgress(s.living); err != nil {
			return explain(err)
		}
	}
	if err := s.DB.Await(ctx, rev); err != nil {
		return err
	}
	s.confirm(asked)
	return nil
}

var errNoMajority = errors.New("this server does not reach a majority of the servers")

func (s *Store) confirm(at time.Duration) {
	for {
		was := s.confirmed.Load()
		if was >= int64(at) || s.confirmed.CompareAndSwap(was, int64(at)) {
			return
		}
	}
}

// Lag returns how old View may be: it has all that was acknowledged up to that long ago. While all is well it is some
// hundred milliseconds; for a server that is alone, zero.
func (s *Store) Lag() time.Duration {
	if s.sole() {
		return 0
	}
	return time.Since(epoch) - time.Duration(s.confirmed.Load())
}

// sole reports whether nobody but this server can write.
func (s *Store) sole() bool { return s.cfg.Peer == nil && s.cfg.External == nil }

// confirmAlways keeps Lag small.
func (s *Store) confirmAlways() {
	tick := time.NewTicker(confirmEvery)
	defer tick.Stop()
	for {
		ctx, cancel := context.WithTimeout(s.living, 4*confirmEvery)
		if err := s.Fresh(ctx); err != nil && s.living.Err() == nil {
			s.log.Debug("the view is not confirmed", "lag", s.Lag(), "err", err)
		}
		cancel()
		select {
		case <-tick.C:
		case <-s.living.Done():
			return
		}
	}
}
