package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// External is an etcd that somebody else runs, at --max-txn-ops=20002 --max-request-bytes=10485760 or more. Backups, quota and gaps
// in its files are for its owner to watch; history is dropped by Gantry.
type External struct {
	Endpoints     []string // host:port or URLs
	Cert, Key, CA string   // files of PEM; without CA, those of the system
	Insecure      bool     // talk without TLS
}

func (e *External) validate() error {
	switch {
	case len(e.Endpoints) == 0:
		return errors.New("open store: no endpoint of the external etcd was given")
	case (e.Cert == "") != (e.Key == ""):
		return errors.New("open store: the external etcd needs both a certificate and a key, or neither")
	}
	return nil
}

// connect makes the external etcd the one in use, once it answers and takes transactions as large as Gantry's.
func (s *Store) connect(ctx context.Context) error {
	e := s.cfg.External
	c := clientv3.Config{
		Endpoints: e.Endpoints, Logger: quiet(s.log, nil),
		DialTimeout: 5 * time.Second, DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
		MaxCallSendMsgSize: 2 * maxBytes,
		DialOptions:        []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(2 * maxBytes))},
	}
	if !e.Insecure {
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
	s.link.Store(l)
	return l.probe(ctx)
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
		return fmt.Errorf("it takes too small transactions: run it with --max-txn-ops=%d --max-request-bytes=%d", maxOps+2, maxBytes)
	}
	if err != nil {
		return fmt.Errorf("no answer from %v: %w", l.client.Endpoints(), err)
	}
	return nil
}
