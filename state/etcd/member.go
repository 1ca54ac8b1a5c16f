package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy/adapter"
	"go.etcd.io/raft/v3/raftpb"
)

// Limits of one transaction, and of what is kept.
const (
	maxOps       = 20_000   // records in one transaction
	maxBytes     = 10 << 20 // of one transaction, keys and comparisons included; etcd advises no more
	defaultQuota = 4 << 30
	kept         = 1000 // revisions of history; only watches read it, and ours lags by a few at most
)

// memberConfig returns the settings of a member that is alone and small.
func (s *Store) memberConfig() *embed.Config {
	c := embed.NewConfig()
	c.Name, c.Dir = s.cfg.Name, s.cfg.Dir
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(quiet(s.log))
	c.ListenPeerUrls, c.ListenClientUrls, c.AdvertiseClientUrls = nil, nil, nil
	c.EnableGRPCGateway = false

	// A member has to have an address even when nobody may call it.
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
	c.InitialCluster = c.Name + "=" + c.AdvertisePeerUrls[0].String()

	// Nobody waits for its ticks, see elect, nor for what it has applied to reach the database file, since the log has it.
	c.TickMs, c.ElectionMs = 500, 2500
	c.BackendBatchInterval = 500 * time.Millisecond

	c.MaxTxnOps, c.MaxRequestBytes = maxOps+1, maxBytes // the leader's key or the head key besides
	c.QuotaBackendBytes = s.cfg.Quota
	c.UnsafeNoFsync = s.cfg.Ephemeral
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModeRevision, strconv.Itoa(kept)

	// What is past the last snapshot is read and applied at start. The log in memory has to reach over that, see elect.
	c.SnapshotCount, c.SnapshotCatchUpEntries = 500, 1500
	c.MaxSnapFiles, c.MaxWalFiles = 2, 2
	return c
}

// prime gives a new data directory its first snapshot, without which elect is not safe.
func (s *Store) prime(ctx context.Context) error {
	for range 3 {
		snaps, err := filepath.Glob(filepath.Join(s.cfg.Dir, "member", "snap", "*.snap"))
		if err != nil || len(snaps) > 0 {
			return err
		}
		c := s.memberConfig()
		c.SnapshotCount = 1
		c.TickMs, c.ElectionMs = 10, 50 // it elects itself at the pace of ticks
		err = s.start(ctx, c, func(context.Context, *etcdserver.EtcdServer) error { return nil })
		if err = errors.Join(err, s.end()); err != nil {
			return err
		}
	}
	return errors.New("it writes no snapshot")
}

// start runs the member and waits until it takes writes.
func (s *Store) start(ctx context.Context, c *embed.Config, elect func(context.Context, *etcdserver.EtcdServer) error) (err error) {
	if s.member, err = embed.StartEtcd(c); err != nil {
		return err
	}
	server := s.member.Server
	s.client = v3client.New(server)
	s.kv = adapter.KvServerToKvClient(v3rpc.NewQuotaKVServer(server))
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case <-server.ReadyNotify():
			return nil
		case <-server.StopNotify():
			return errors.New("it stopped while starting")
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-poll.C:
			if err := elect(ctx, server); err != nil {
				return fmt.Errorf("elect itself: %w", err)
			}
		}
	}
}

// elect has a member that is alone campaign at once. Raft would wait for an election timeout first, which has to be long
// to let an idle member sleep. It does nothing where it makes no sense, and too early it has no effect.
//
// Raft panics when it campaigns before it has noted as applied what etcd has dropped from the log in memory. That log
// begins at the last snapshot on disk, or else its first entry is dropped soon: hence prime. From there on it keeps
// SnapshotCatchUpEntries, which is more than a start can have to apply.
func elect(ctx context.Context, server *etcdserver.EtcdServer) error {
	if server.Leader() != 0 || len(server.Cluster().Members()) != 1 {
		return nil
	}
	id := uint64(server.MemberID())
	return server.Process(ctx, &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: &id, To: &id})
}

// end ends the member, if one runs.
func (s *Store) end() (err error) {
	if s.client != nil {
		if err = s.client.Close(); errors.Is(err, context.Canceled) { // which is how an in-process one says it is closed
			err = nil
		}
	}
	if s.member != nil {
		s.member.Close()
	}
	s.client, s.member = nil, nil
	return err
}
