// Package daemon is the composition root: it makes every part of Gantry, gives each what it needs, runs them as one
// group, and ends them in order. Nothing is configured anywhere else.
//
// The order of life is: data directory and lock, token, store (etcd) and container engine side by side, the agent,
// leadership and the leader's loops, the API, and last the announcement by which the CLI finds this server. The end goes
// the other way. Instances are left running unless the operator asked for their end.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/fleet"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/etcd"
)

// stopTimeout bounds how long the instances may take to end when the operator asked for it.
const stopTimeout = 2 * time.Minute

// Running is what a started server tells its starter.
type Running struct {
	client.Local
	Node model.Node // the node in this process
}

// Run starts a server and an agent in this process, calls ready once they take requests, and works until ctx ends, a user
// asks it to end, or a part fails.
func Run(ctx context.Context, o Options, ready func(Running) error) (err error) {
	if err := o.Validate(); err != nil {
		return err
	}
	if o.Bin == "" {
		if o.Bin, err = helpers(); err != nil {
			return fmt.Errorf("find the helpers: %w", err)
		}
	}
	Tune()
	d := &daemon{Options: o, started: time.Now()}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.open(ctx); err != nil {
		return err
	}
	return d.serve(ctx, ready)
}

// daemon is one run of the server.
type daemon struct {
	Options
	started time.Time
	undo

	auth  *identity.Authenticator
	store *etcd.Store
	host  *host
}

// open takes the data directory and starts what everything else stands on.
func (d *daemon) open(ctx context.Context) error {
	lock, err := etcd.LockDir(d.DataDir)
	if err != nil {
		return err
	}
	if d.Ephemeral {
		d.later(func() error { return os.RemoveAll(d.DataDir) })
	}
	d.later(lock.Close)
	if err := letThrough(d.DataDir); err != nil {
		return err
	}
	if err := d.openAuth(); err != nil {
		return err
	}
	d.host = &host{
		HostOptions: d.HostOptions, dataDir: d.DataDir, bin: d.Bin, cluster: d.cluster(), addr: nodeAddr, logger: d.Logger, later: d.later,
	}
	if err := d.host.openEngine(); err != nil { // it goes on starting beside the store
		return err
	}
	dir := filepath.Join(d.DataDir, "etcd")
	d.store, err = etcd.Open(ctx, etcd.Config{Dir: dir, Ephemeral: d.Ephemeral, Logger: d.Logger.With("part", "etcd"), Build: Build()})
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	d.later(d.store.Close)
	return d.host.openAgent()
}

// letThrough lets the programs of other users get to their sandboxes below dir. What they may not see is closed itself.
func letThrough(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && os.Geteuid() == 0 && info.Mode().Perm()&0o011 != 0o011 {
		err = os.Chmod(dir, info.Mode().Perm()|0o011)
	}
	if err != nil {
		return fmt.Errorf("open the data directory to programs: %w", err)
	}
	return nil
}

func (d *daemon) openAuth() error {
	if identity.Mode(d.Auth) == identity.ModeNone {
		d.auth = identity.WithoutToken()
		return nil
	}
	token, err := identity.LoadOrCreateToken(TokenFile(d.DataDir))
	if err != nil {
		return err
	}
	d.auth = identity.WithToken(token)
	return nil
}

// listenError says plainly that an address is taken.
func listenError(addr string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("another program listens on %s: stop it, or choose another address", addr)
	}
	return err
}

// errAsked is why the parts end when a user asked for it.
var errAsked = errors.New("a user asked the server to end")

// serve runs all parts until one fails or the end is asked for, then ends the instances if that was asked for too.
func (d *daemon) serve(ctx context.Context, ready func(Running) error) error {
	leader, err := d.store.Lead(ctx, d.host.node.Name)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", d.HTTPAddr)
	if err != nil {
		return fmt.Errorf("--http-addr: %w", listenError(d.HTTPAddr, err))
	}
	asked, end := context.WithCancelCause(ctx)
	defer end(nil)
	var endInstances atomic.Bool
	endInstances.Store(d.Ephemeral)
	shutdown := func(s client.Shutdown) {
		endInstances.Store(d.Ephemeral || !s.KeepInstances)
		end(errAsked)
	}
	err = d.runParts(asked, leader, listener, shutdown, ready)
	if asked.Err() != nil && (errors.Is(err, errAsked) || errors.Is(err, context.Canceled)) {
		err = nil
	}
	if endInstances.Load() {
		d.host.endAgent() // or it would start again what ends
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err = errors.Join(err, d.host.agent.StopAll(ctx))
	}
	return err
}

// runParts runs everything that lives as long as the server, as one group: the first that ends, ends all.
func (d *daemon) runParts(ctx context.Context, leader state.Store, l net.Listener, shutdown func(client.Shutdown), ready func(Running) error) error {
	control, err := NewControl(ControlConfig{
		Store: leader, Auth: d.auth, Info: d.info(), KeepStopped: d.KeepStopped, Shutdown: shutdown, Logger: d.Logger,
	})
	if err != nil {
		return err
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.store.Run(ctx) })
	group.Go(func() error { return control.Run(ctx, l) })
	group.Go(func() error { return d.sessions(ctx, control.Fleet) })
	group.Go(func() error { return d.announce(ctx, control.Fleet, l.Addr(), ready) })
	return group.Wait()
}

// sessions keeps the agent connected to fl.
func (d *daemon) sessions(ctx context.Context, fl *fleet.Fleet) error {
	for ctx.Err() == nil {
		session, cancel := context.WithCancel(ctx)
		err := d.host.agent.Session(session, fl.Dial(session, d.host.agent))
		cancel()
		if ctx.Err() == nil {
			d.Logger.Warn("the agent's session ended; it connects again", "error", err)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// announce lets the CLI find this server once its own node is connected, and says that it is ready, until ctx ends.
func (d *daemon) announce(ctx context.Context, fl *fleet.Fleet, addr net.Addr, ready func(Running) error) error {
	local := client.Local{Addr: "http://" + addr.String(), DataDir: d.DataDir, PID: os.Getpid(), Started: d.started}
	if d.auth.Mode() == identity.ModeToken {
		local.TokenFile = TokenFile(d.DataDir)
	}
	if err := fl.WaitNode(ctx, d.host.node.ID); err != nil {
		return err
	}
	remove, err := client.Announce(local)
	if err != nil {
		return fmt.Errorf("announce the server: %w", err)
	}
	defer remove()
	if err := ready(Running{Local: local, Node: d.host.node}); err != nil {
		return fmt.Errorf("say that the server is ready: %w", err)
	}
	<-ctx.Done()
	return context.Cause(ctx)
}
