package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/identity/pki"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state/etcd"
)

// both is one run of a process that is a server and a node of its cluster. They share the data directory and nothing else: the node
// has a certificate of its own, and is connected to whichever server leads. So either goes on without the other: the node while
// this server reaches no majority, cannot run, or was removed; the server when the node was removed.
type both struct {
	ServerOptions
	node   *agentd
	joined atomic.Bool  // this machine is a node
	first  chan *server // the server that is ready first, for the node that has to join
}

// Pauses between tries to run the server of a process whose node goes on meanwhile.
const (
	againLeast = time.Second
	againMost  = 30 * time.Second
)

func runBoth(ctx context.Context, o ServerOptions, ready func(client.Local) error, node func(model.Node) error) (err error) {
	addr, err := nodeAddress(ctx, o.Advertise)
	if err != nil {
		return err
	}
	if o.Bin == "" {
		if o.Bin, err = helpers(); err != nil {
			return fmt.Errorf("find the helpers: %w", err)
		}
	}
	b := &both{ServerOptions: o, first: make(chan *server, 1)}
	b.node = &agentd{
		AgentOptions: AgentOptions{DataDir: o.DataDir, Join: o.Advertise, Advertise: addr, HostOptions: o.Host, Bin: o.Bin, Logger: o.Logger},
		identity:     filepath.Join(o.DataDir, "node-identity"), invite: b.invite,
	}
	b.joined.Store(exists(b.node.identity))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return b.runServer(ctx, ready) })
	group.Go(func() error { return b.runNode(ctx, node) })
	err = group.Wait()
	if errors.Is(err, errAsked) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// nodeAddress returns where instances of a server's machine are reached.
func nodeAddress(ctx context.Context, advertise string) (string, error) {
	host, _, err := splitPort(advertise)
	if err != nil {
		return "", err
	}
	if net.ParseIP(host) != nil {
		return host, nil
	}
	found, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return "", fmt.Errorf("--advertise: %w", err)
	}
	for _, a := range found {
		if !a.IP.IsLoopback() {
			return a.IP.String(), nil
		}
	}
	return "", fmt.Errorf("--advertise %q: on this machine the name means the machine itself; with --agent write its address, at which its instances are reached", advertise)
}

// invite makes the token by which this machine becomes a node, once its server can.
func (b *both) invite(ctx context.Context) (string, error) {
	select {
	case s := <-b.first:
		token, err := s.registrar.CreateToken(ctx, pki.TokenSpec{Role: model.AgentMachine, TTL: time.Minute, Uses: 1, By: "server " + s.Name})
		return token.Text(), err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// runNode runs the node until ctx ends or it fails.
func (b *both) runNode(ctx context.Context, ready func(model.Node) error) (err error) {
	defer func() { err = errors.Join(err, b.node.close()) }()
	if err := b.node.open(ctx); err != nil {
		return err
	}
	b.joined.Store(true)
	if err := ready(b.node.host.node); err != nil {
		return fmt.Errorf("say that the agent is ready: %w", err)
	}
	err = b.node.serve(ctx)
	if errors.Is(err, pki.ErrRevoked) {
		b.Logger.Error("this machine is no node any more; its server goes on. To make it one again, remove the directory and start again",
			"directory", b.node.identity, "err", err)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return err
}

// runServer runs the server until ctx ends or a user asks it to end. Once this machine is a node, a server that fails is started
// again, and the node goes on meanwhile.
func (b *both) runServer(ctx context.Context, ready func(client.Local) error) error {
	for pause := againLeast; ; pause = min(2*pause, againMost) {
		s := &server{ServerOptions: b.ServerOptions}
		err := s.run(ctx, func(l client.Local) error {
			pause = againLeast
			select {
			case b.first <- s:
			default: // the node has joined, or is about to
			}
			return ready(l)
		})
		switch {
		case ctx.Err() != nil:
			return err
		case err == nil:
			return errAsked
		case !b.joined.Load(), errors.Is(err, etcd.ErrHangs):
			return err
		case errors.Is(err, etcd.ErrRemoved), errors.Is(err, pki.ErrRevoked):
			b.Logger.Error("this machine is no server any more; its node goes on. Start it with gantry agent, or move its data of a server away and let it join again", "err", err)
			<-ctx.Done()
			return context.Cause(ctx)
		}
		b.Logger.Error("the server of this process failed and is started again; its node goes on", "in", pause, "err", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
