package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/etcdhttp"
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

// endTime bounds how long a member may take to end, past which it hangs.
const endTime = 20 * time.Second

// Peer is how the members of other servers reach this one.
type Peer struct {
	Listen    string // IP:port
	Advertise string // host:port that the others call; default Listen
	TLS       TLS

	// Guard returns a listener of connections whose other end was found to be a server that is welcome, over one of bare
	// connections, and may cut them later. Without it, whoever has a certificate that TLS asks for is let in.
	Guard func(net.Listener) net.Listener
}

// TLS names the files by which servers know each other. Key and certificate are read again for every connection, so they may
// be renewed at any time; a changed CA has the member start again, see Store.Reload.
type TLS struct {
	Cert, Key, CA string // files of PEM; CA may hold several certificates
	Name          string // DNS name in the certificate of every server, and of nobody else's
}

func (t TLS) info() transport.TLSInfo {
	return transport.TLSInfo{
		CertFile: t.Cert, KeyFile: t.Key, TrustedCAFile: t.CA, ClientCertAuth: true,
		// Servers are known by their name, wherever they are.
		ServerName: t.Name, AllowedHostnames: []string{t.Name}, SkipClientSANVerify: true,
	}
}

func (p *Peer) validate() error {
	if p == nil {
		return nil
	}
	host, _, err := net.SplitHostPort(p.Listen)
	switch {
	case err != nil || net.ParseIP(host) == nil:
		return fmt.Errorf("open store: the address %q for other servers is not IP:port", p.Listen)
	case p.TLS.Cert == "" || p.TLS.Key == "" || p.TLS.CA == "" || p.TLS.Name == "":
		return errors.New("open store: the address for other servers needs a certificate, a key, a CA and the servers' name")
	}
	if ip := net.ParseIP(host); p.Advertise == "" && ip.IsUnspecified() {
		return fmt.Errorf("open store: %s says no address that other servers could call: one to advertise is needed", p.Listen)
	}
	return nil
}

// url returns what other members call.
func (p *Peer) url() url.URL {
	if p == nil {
		return url.URL{Scheme: "http", Host: "127.0.0.1:1"} // a member has to have an address even when nobody may call it
	}
	if p.Advertise != "" {
		return url.URL{Scheme: "https", Host: p.Advertise}
	}
	return url.URL{Scheme: "https", Host: p.Listen}
}

// memberConfig returns the settings of the member.
func (s *Store) memberConfig() *embed.Config {
	c := embed.NewConfig()
	c.Name, c.Dir = s.cfg.Name, s.cfg.Dir
	c.ListenPeerUrls, c.ListenClientUrls, c.AdvertiseClientUrls = nil, nil, nil
	c.EnableGRPCGateway = false
	c.AdvertisePeerUrls = []url.URL{s.cfg.Peer.url()}
	c.InitialCluster = c.Name + "=" + c.AdvertisePeerUrls[0].String()

	// Nobody waits for what it has applied to reach the database file, since the log has it.
	c.BackendBatchInterval = 500 * time.Millisecond
	c.MaxTxnOps, c.MaxRequestBytes = maxOps+2, maxBytes // the leader's key or the head key, and the mark, besides
	c.QuotaBackendBytes = s.cfg.Quota
	c.UnsafeNoFsync = s.cfg.Ephemeral
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModeRevision, strconv.Itoa(kept)
	c.MaxSnapFiles, c.MaxWalFiles = 2, 2

	if s.cfg.Peer == nil {
		s.alone(c)
	} else {
		s.among(c)
	}
	return c
}

// alone sets a member that is alone and small.
func (s *Store) alone(c *embed.Config) {
	c.TickMs, c.ElectionMs = 500, 2500 // nobody waits for its ticks, see elect
	// What is past the last snapshot is read and applied at start. The log in memory has to reach over that, see elect.
	c.SnapshotCount, c.SnapshotCatchUpEntries = 500, 1500
}

// among sets a member among others.
func (s *Store) among(c *embed.Config) {
	c.TickMs, c.ElectionMs = uint(s.cfg.Election.Milliseconds()/10), uint(s.cfg.Election.Milliseconds())
	c.SnapshotCount, c.SnapshotCatchUpEntries = 1000, 5000 // who was away for less is sent the log, not the whole database
	c.MaxLearners = 4                                      // servers that join at the same time
	c.PeerTLSInfo = s.cfg.Peer.TLS.info()
	c.TlsMinVersion = "TLS1.3"
	if s.cfg.Addr != "" {
		c.AdvertiseClientUrls = []url.URL{{Scheme: "https", Host: s.cfg.Addr}} // nobody listens there for etcd's own clients
	}
	if s.cfg.Join != "" {
		c.ClusterState, c.InitialCluster = embed.ClusterStateFlagExisting, s.cfg.Join
	}
}

// prime gives a new data directory its first snapshot, without which elect is not safe. One that has been among others elects
// itself at the pace of ticks.
func (s *Store) prime(ctx context.Context) error {
	for range 3 {
		snaps, err := filepath.Glob(filepath.Join(s.cfg.Dir, "member", "snap", "*.snap"))
		if err != nil {
			return err
		}
		logs, err := filepath.Glob(filepath.Join(s.cfg.Dir, "member", "wal", "*.wal"))
		s.snapped = len(snaps) > 0
		if err != nil || s.snapped || s.cfg.Join != "" || s.cfg.Peer != nil && len(logs) > 0 {
			return err
		}
		c := s.memberConfig()
		c.SnapshotCount = 1
		c.TickMs, c.ElectionMs = 10, 50 // it elects itself at the pace of ticks
		l, err := s.start(ctx, c, nil, func(context.Context, *etcdserver.EtcdServer) error { return nil })
		if err = errors.Join(err, l.end()); err != nil {
			return err
		}
	}
	return errors.New("it writes no snapshot")
}

// joinTime is how long the members of other servers may take to learn of one that joins.
const joinTime = 10 * time.Second

// lateAfter is how long a start waits for other members before it says so.
const lateAfter = 15 * time.Second

// others returns where other members are, as this one knows.
func (l *link) others() []string {
	server := l.member.Server
	var out []string
	for _, m := range server.Cluster().Members() {
		if m.ID != server.MemberID() {
			out = append(out, hosts(m.PeerURLs))
		}
	}
	return out
}

// startMember starts etcd. A member that joins others is refused while one of those that it asks has not heard yet that it may.
func startMember(ctx context.Context, c *embed.Config) (*embed.Etcd, error) {
	for end := time.Now().Add(joinTime); ; {
		m, err := embed.StartEtcd(c)
		if err == nil || c.ClusterState != embed.ClusterStateFlagExisting || time.Now().After(end) || !strings.Contains(err.Error(), "error validating peerURLs") {
			return m, err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// start runs the member and waits until it takes writes. Others reach it when there is a peer. What it returns is to be ended
// whatever the error.
func (s *Store) start(ctx context.Context, c *embed.Config, peer *Peer, elect func(context.Context, *etcdserver.EtcdServer) error) (_ *link, err error) {
	l := &link{ca: s.caSum(), died: make(chan struct{}), next: make(chan struct{})}
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(quiet(s.log, l.die))
	if peer != nil {
		if l.door, err = peer.open(); err != nil {
			return nil, err
		}
	}
	if l.member, err = startMember(ctx, c); err != nil {
		return nil, errors.Join(err, l.end())
	}
	server := l.member.Server
	l.door.serve(etcdhttp.NewPeerHandler(l.member.GetLogger(), server))
	l.client = v3client.New(server)
	l.kv = adapter.KvServerToKvClient(v3rpc.NewQuotaKVServer(server))
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	late := time.NewTimer(lateAfter)
	defer late.Stop()
	for {
		select {
		case <-late.C:
			s.log.Warn("waiting for a majority of the servers; if most have moved at once, start them where they were and move one at a time", "at", l.others())
			continue
		case <-server.ReadyNotify():
			return l, nil
		case <-server.StopNotify():
			err = errors.New("it stopped while starting")
		case <-l.died:
			err = errors.New("it failed while starting")
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-poll.C:
			if err = elect(ctx, server); err == nil && !l.reads(ctx) {
				continue
			}
			if err == nil {
				return l, nil
			}
		}
		return nil, errors.Join(err, l.end())
	}
}

// reads reports whether a member among others takes part in their work. Etcd calls it ready only once it has told the others its
// name, which it tries every 7 s when the connections are not there at first.
func (l *link) reads(ctx context.Context) bool {
	if server := l.member.Server; l.door == nil || server.Leader() == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	_, err := l.client.Get(ctx, leaderKey)
	return err == nil
}

// elect has a member that is alone campaign at once. Raft would wait for an election timeout first, which has to be long
// to let an idle member sleep. It does nothing where it makes no sense, and too early it has no effect.
//
// Raft panics when it campaigns before it has noted as applied what etcd has dropped from the log in memory. That log
// begins at the last snapshot on disk, or else its first entry is dropped soon: hence prime. From there on it keeps
// SnapshotCatchUpEntries, which is more than a start can have to apply.
func (s *Store) elect(ctx context.Context, server *etcdserver.EtcdServer) error {
	members := len(server.Cluster().Members())
	if members > 1 && s.cfg.Peer == nil {
		return fmt.Errorf("the data directory belongs to one of %d servers: start it as such", members)
	}
	if server.Leader() != 0 || members != 1 || !s.snapped {
		return nil
	}
	id := uint64(server.MemberID())
	if err := server.Process(ctx, &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: &id, To: &id}); err != nil {
		return fmt.Errorf("elect itself: %w", err)
	}
	return nil
}

// die takes note of an error for which etcd would end the process.
func (l *link) die() {
	select {
	case <-l.died:
	default:
		close(l.died)
	}
}

// end ends the member, if one runs. Later calls return the same as the first: etcd panics when it is ended twice.
func (l *link) end() error {
	if l == nil {
		return nil
	}
	l.endOnce.Do(func() { l.endErr = l.endIt() })
	return l.endErr
}

func (l *link) endIt() (err error) {
	if l.client != nil {
		if err = l.client.Close(); errors.Is(err, context.Canceled) { // which is how an in-process one says it is closed
			err = nil
		}
	}
	if l.member == nil {
		return errors.Join(err, l.door.close())
	}
	ended := make(chan struct{})
	go func() {
		l.member.Close()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(endTime):
		err = errors.Join(err, ErrHangs)
	}
	return errors.Join(err, l.door.close()) // only now: with others in reach it hands leadership over
}

// ErrHangs says that a member did not end in time: only the end of the process gives its files up.
var ErrHangs = errors.New("the member does not end")
