package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// lossy is a way to etcd on which some requests are lost, some answers are, and some requests arrive when nobody waits for them
// any more.
type lossy struct {
	pb.KVClient
	mu   sync.Mutex
	late []*pb.TxnRequest
	lost atomic.Int64 // answers
}

var errLossy = status.Error(codes.Unavailable, "lost on the way")

func (l *lossy) Txn(ctx context.Context, req *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	l.deliver(ctx)
	switch fate := rand.IntN(12); {
	case fate < 1: // the request is lost
	case fate < 3: // it arrives later
		l.mu.Lock()
		l.late = append(l.late, proto.Clone(req).(*pb.TxnRequest))
		l.mu.Unlock()
	case fate < 5: // the answer is lost
		if _, err := l.KVClient.Txn(ctx, req); err != nil {
			return nil, err
		}
	case fate < 6: // it arrives twice
		if _, err := l.KVClient.Txn(ctx, req); err != nil {
			return nil, err
		}
		return l.KVClient.Txn(ctx, req)
	default:
		return l.KVClient.Txn(ctx, req)
	}
	l.lost.Add(1)
	return nil, errLossy
}

// deliver delivers one that is late, more often than not.
func (l *lossy) deliver(ctx context.Context) {
	l.mu.Lock()
	var req *pb.TxnRequest
	if n := len(l.late); n > 0 && rand.IntN(3) > 0 {
		i := rand.IntN(n)
		req = l.late[i]
		l.late = append(l.late[:i], l.late[i+1:]...)
	}
	l.mu.Unlock()
	if req != nil {
		_, _ = l.KVClient.Txn(ctx, req) // nobody hears of it
	}
}

// TestLostAnswers protects that a transaction whose answer is lost is applied once and called so, whether its request arrived, did
// not, or does so when what it created was deleted by another server.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	c := newServers(t, 3)
	var ways []*lossy
	for _, s := range c.at {
		l := s.link.Load()
		way := &lossy{KVClient: l.kv}
		l.kv = way
		ways = append(ways, way)
	}
	each := 120
	if testing.Short() {
		each = 40
	}
	ctx := t.Context()
	check := func(what string, err error) {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	var wg sync.WaitGroup
	for i, s := range c.at {
		wg.Go(func() {
			for range each {
				check("count", increment(ctx, s, "/n"))
			}
		})
		wg.Go(func() { // what one server creates another one deletes, and it stays so
			other := c.at[(i+1)%3]
			for n := range each {
				id := model.AppID(fmt.Sprintf("/k%d-%d", i, n%3))
				check("create", s.Update(ctx, func(tx *state.Tx) error { tx.PutApp(&model.App{ID: id, Version: uint64(n)}); return nil }))
				check("wait", other.Fresh(ctx))
				check("delete", other.Update(ctx, func(tx *state.Tx) error {
					if tx.App(id) == nil {
						return errors.New("what was created is not there")
					}
					tx.DeleteApp(id)
					return nil
				}))
				check("wait", s.Fresh(ctx))
			}
		})
	}
	wg.Wait()
	lost := int64(0)
	for _, way := range ways {
		lost += way.lost.Load()
		for left := true; left; {
			way.deliver(ctx)
			way.mu.Lock()
			left = len(way.late) > 0
			way.mu.Unlock()
		}
	}
	if lost < int64(each) {
		t.Fatalf("only %d answers were lost", lost)
	}
	for i, s := range c.at {
		check("wait", s.Fresh(ctx))
		if got := count(s.View(), "/n"); got != uint64(3*each) {
			t.Errorf("server %d counts %d, want %d", i, got, 3*each)
		}
		for a := range s.View().Apps() {
			if a.ID != "/n" {
				t.Errorf("server %d has %s, which was deleted", i, a.ID)
			}
		}
	}
}

// slowest is the longest of some times that goroutines measure.
type slowest struct{ atomic.Int64 }

func (m *slowest) add(d time.Duration) {
	for was := m.Load(); int64(d) > was && !m.CompareAndSwap(was, int64(d)); was = m.Load() {
	}
}

// TestUnderWay protects that a write which is under way while the leader dies, or hears of the others no longer, is answered soon
// after another one leads, that the answer is true, and that what it counts is counted once.
func TestUnderWay(t *testing.T) {
	t.Parallel()
	c := newServers(t, 3)
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	var longest slowest
	known, unknown := uint64(0), uint64(0)
	for n := range rounds {
		lead := c.leader(t)
		ctx, stop := context.WithCancel(t.Context())
		var acked, unsure atomic.Uint64
		var wg sync.WaitGroup
		for i, s := range c.at {
			for range 2 {
				wg.Go(func() {
					for ctx.Err() == nil {
						at := time.Now()
						switch err := increment(ctx, s, "/n"); {
						case err == nil && i != lead:
							acked.Add(1)
							longest.add(time.Since(at))
						case err == nil:
							acked.Add(1)
						case ctx.Err() != nil: // it waited for its turn
						case i == lead:
							unsure.Add(1) // its answer may have died with the server
							return
						default:
							t.Errorf("a server that lives: %v", err)
							return
						}
					}
				})
			}
		}
		eventually(t, "writes are under way", func() bool { return acked.Load() > 20 })
		if n%2 == 0 {
			go c.at[lead].link.Load().member.Server.HardStop()
		} else {
			c.isolate(lead, true)
		}
		eventually(t, "another leads", func() bool {
			for i, s := range c.at {
				if i != lead && s.leadsMembers(s.link.Load()) {
					return true
				}
			}
			return false
		})
		before := acked.Load()
		eventually(t, "writes are taken again", func() bool { return acked.Load() > before+20 })
		if n%2 == 1 {
			c.isolate(lead, false)
		}
		stop()
		wg.Wait()
		known, unknown = known+acked.Load(), unknown+unsure.Load()
		if n%2 == 0 {
			c.kill(lead)
			c.open(t, lead)
		}
		if t.Failed() {
			return
		}
		for i, s := range c.at {
			eventually(t, "a fresh view", func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				return s.Fresh(ctx) == nil
			})
			if got := count(s.View(), "/n"); got < known || got > known+unknown {
				t.Fatalf("server %d counts %d: %d writes were acknowledged, and of %d nobody heard", i, got, known, unknown)
			}
		}
	}
	t.Logf("%d writes, the longest took %v", known, time.Duration(longest.Load()))
}
