package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"google.golang.org/grpc"
)

// External is an etcd that somebody else runs, at --max-txn-ops=20002 --max-request-bytes=10485760 or more. Backups, quota and gaps
// in its files are for its owner to watch; history is dropped by Gantry.
type External struct {
	Endpoints     []string // URLs, https:// or, on loopback, http://
	Cert, Key, CA string   // files of PEM; without CA, those of the system. Key and certificate may be renewed at any time
	Prefix        string   // of all keys, such as /a; for several clusters on one etcd
}

// Validate returns the first thing wrong with e, by the names that fields have as settings. An etcd that takes anybody is refused
// unless it is on loopback.
func (e *External) Validate() error {
	if len(e.Endpoints) == 0 {
		return errors.New("etcd-endpoints: no endpoint of the external etcd was given")
	}
	local, schemes := true, map[string]bool{}
	for _, at := range e.Endpoints {
		u, err := url.Parse(at)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" {
			return fmt.Errorf("etcd-endpoints: %q: write a URL with a port, such as https://10.0.0.7:2379", at)
		}
		ip := net.ParseIP(u.Hostname())
		local = local && (ip != nil && ip.IsLoopback() || u.Hostname() == "localhost")
		schemes[u.Scheme] = true
	}
	switch {
	case len(schemes) > 1:
		return errors.New("etcd-endpoints: some are https:// and some http://: write all alike")
	case e.insecure() && !local:
		return errors.New("etcd-endpoints: http:// is for loopback only: anybody on the way could read and change everything; write https://")
	case e.insecure() && e.Cert+e.Key+e.CA != "":
		return errors.New("etcd-endpoints: they are http://, and certificates are for https://")
	case (e.Cert == "") != (e.Key == ""):
		return errors.New("etcd-cert and etcd-key go together")
	case e.Cert == "" && !local:
		return errors.New("etcd-cert and etcd-key are missing: an etcd that takes clients without a certificate lets anybody change everything")
	case e.Prefix != "" && (e.Prefix[0] != '/' || e.Prefix[len(e.Prefix)-1] == '/'):
		return fmt.Errorf("etcd-prefix: %q: begin it with / and end it with something else, such as /a", e.Prefix)
	}
	return nil
}

// insecure reports whether etcd is talked to without TLS. All endpoints are alike.
func (e *External) insecure() bool { return strings.HasPrefix(e.Endpoints[0], "http://") }

// External reports whether somebody else runs the etcd.
func (s *Store) External() bool { return s.cfg.External != nil }

// connect makes the external etcd the one in use, once it answers and takes transactions as large as Gantry's.
func (s *Store) connect(ctx context.Context) error {
	e := s.cfg.External
	c := clientv3.Config{
		Endpoints: e.Endpoints, Logger: quiet(s.log, nil),
		DialTimeout: 5 * time.Second, DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
		MaxCallSendMsgSize: 2 * maxBytes,
		DialOptions: []grpc.DialOption{
			grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(2 * maxBytes)),
			grpc.WithChainUnaryInterceptor(ledUnary), grpc.WithChainStreamInterceptor(ledStream),
		},
	}
	if !e.insecure() {
		tls, err := transport.TLSInfo{CertFile: e.Cert, KeyFile: e.Key, TrustedCAFile: e.CA}.ClientConfig()
		if err != nil {
			return fmt.Errorf("read certificates: %w", err)
		}
		c.TLS = tls
	}
	client, err := clientv3.New(c)
	if err != nil {
		return err
	}
	l := &link{client: client, kv: clientv3.RetryKVClient(client), died: make(chan struct{}), next: make(chan struct{})}
	if e.Prefix != "" {
		client.KV, client.Watcher = namespace.NewKV(client.KV, e.Prefix), namespace.NewWatcher(client.Watcher, e.Prefix)
		l.kv = &prefixed{l.kv, e.Prefix}
	}
	s.link.Store(l)
	return l.awaitAnswer(ctx)
}

// connectTime is how long an external etcd may take to answer at first: it may be starting, too, or hold an election.
const connectTime = 10 * time.Second

// awaitAnswer waits until the etcd takes transactions.
func (l *link) awaitAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	var last error
	for {
		err := l.probe(ctx)
		if err == nil || errors.Is(err, errSmall) {
			return err
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no answer from %s: %w", strings.Join(l.client.Endpoints(), ", "), last)
		case <-time.After(retryEvery):
		}
	}
}

// errSmall says that an external etcd was not set up for Gantry.
var errSmall = fmt.Errorf("it takes too small transactions: run it with --max-txn-ops=%d --max-request-bytes=%d", maxOps+2, maxBytes)

// needsLeader reports whether a call is of no use to a member that has no leader. Such a member, cut off from the others, is to
// refuse it at once, so that another one is asked; it would hold a write for seconds, and a watch for ever.
func needsLeader(method string) bool {
	for _, service := range []string{"/etcdserverpb.KV/", "/etcdserverpb.Watch/", "/etcdserverpb.Lease/"} {
		if strings.HasPrefix(method, service) {
			return true
		}
	}
	return false
}

func ledUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if needsLeader(method) {
		ctx = clientv3.WithRequireLeader(ctx)
	}
	return call(ctx, method, req, reply, cc, opts...)
}

func ledStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if needsLeader(method) {
		ctx = clientv3.WithRequireLeader(ctx)
	}
	return open(ctx, desc, cc, method, opts...)
}

// prefixed puts a prefix before the keys of Gantry's transactions. Those in the answers stay as they are: nobody reads them.
type prefixed struct {
	pb.KVClient
	prefix string
}

// Txn implements pb.KVClient. The request is copied, since it may be sent again.
func (p *prefixed) Txn(ctx context.Context, in *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	out := &pb.TxnRequest{Success: p.below(in.Success), Failure: p.below(in.Failure)}
	for _, c := range in.Compare {
		out.Compare = append(out.Compare, &pb.Compare{Key: p.key(c.Key), Target: c.Target, Result: c.Result, TargetUnion: c.TargetUnion})
	}
	return p.KVClient.Txn(ctx, out, opts...)
}

func (p *prefixed) key(k []byte) []byte { return append([]byte(p.prefix), k...) }

// below returns ops of the kinds that commit.go makes, of single keys.
func (p *prefixed) below(ops []*pb.RequestOp) []*pb.RequestOp {
	out := make([]*pb.RequestOp, len(ops))
	for i, op := range ops {
		switch {
		case op.GetRequestPut() != nil:
			put := op.GetRequestPut()
			out[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: p.key(put.Key), Value: put.Value}}}
		case op.GetRequestDeleteRange() != nil:
			out[i] = remove(p.key(op.GetRequestDeleteRange().Key))
		default:
			get := &pb.RangeRequest{Key: p.key(op.GetRequestRange().GetKey())}
			out[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: get}}
		}
	}
	return out
}

// probe tries a transaction of the largest kind, whose condition never holds.
func (l *link) probe(ctx context.Context) error {
	never := []*pb.Compare{revision(headKey, pb.Compare_LESS, 0)}
	writes := make([]*pb.RequestOp, maxOps+2)
	for i := range writes {
		writes[i] = remove([]byte(headKey))
	}
	_, err := l.kv.Txn(ctx, &pb.TxnRequest{Compare: never, Success: writes})
	if err = rpctypes.Error(err); errors.Is(err, rpctypes.ErrTooManyOps) {
		return errSmall
	}
	return err
}

// statusExternal says how the members of the external etcd do, each by its own word: also when too few are there for the etcd
// to say who they are.
func (s *Store) statusExternal(ctx context.Context, l *link, out Status) Status {
	short, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	all, err := s.Members(short)
	if err != nil {
		all = nil
		for _, at := range l.client.Endpoints() {
			all = append(all, Member{Name: at, Addr: hosts([]string{at})})
		}
	}
	said := make([]*clientv3.StatusResponse, len(all))
	var asking sync.WaitGroup
	for i, m := range all {
		asking.Go(func() {
			one, cancel := context.WithTimeout(ctx, probeTime)
			defer cancel()
			if st, err := l.client.Status(one, m.Addr); err == nil {
				said[i] = st
			}
		})
	}
	asking.Wait()
	for i, m := range all {
		out.add(MemberStatus{Member: m, Answers: said[i] != nil}, said[i])
	}
	alarmed, end := context.WithTimeout(ctx, probeTime)
	defer end()
	if alarms, err := l.client.AlarmList(alarmed); err == nil { // without a majority nobody can say
		for _, a := range alarms.Alarms {
			out.Alarms = append(out.Alarms, a.Alarm.String()+" "+memberID(a.MemberID))
		}
	}
	s.describeReleases(l, &out)
	return out
}

// add adds a member of an external etcd, and what it said of itself if it answered.
func (st *Status) add(m MemberStatus, said *clientv3.StatusResponse) {
	if said != nil {
		m.ID = memberID(said.Header.MemberId)
		m.Leader = said.Leader == said.Header.MemberId
		st.Term, st.Applied = max(st.Term, said.RaftTerm), max(st.Applied, said.RaftAppliedIndex)
		st.Size, st.Used = max(st.Size, said.DbSize), max(st.Used, said.DbSizeInUse)
		st.Quota = max(st.Quota, said.DbSizeQuota)
		if m.Leader {
			st.Leader = m.Name
		}
	}
	st.Members = append(st.Members, m)
}
