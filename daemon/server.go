package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/agent/wire/rpc"
	"github.com/gantry-os/gantry/api"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/fleet"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/identity/pki"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/etcd"
)

// A server listens on four ports in a row.
const (
	portAPI     = iota // for people and joining machines, with TLS
	portAgents         // for agents, with mutual TLS
	portPeers          // for the etcd members of other servers
	portServers        // for other servers, with mutual TLS
	portsInAll
)

// DefaultPort is the first of a server's ports.
const DefaultPort = 7070

// ServerOptions is what an operator can choose for a server of a cluster. Validate checks it; nothing changes it
// afterwards.
type ServerOptions struct {
	DataDir     string         // everything that the server keeps lies here
	Name        string         // of the server, its own in the cluster; by default the one it joined with, or the host's
	Listen      string         // IP:port of the API; the three ports after it are the server's, too
	Advertise   string         // host:port at which other machines reach Listen
	Join        string         // host:port of a server of the cluster to join; only read while DataDir has no cluster
	Token       string         // join token
	Etcd        etcd.External  // an etcd that others run, in place of a member in this process; no endpoints for a member
	KeepStopped model.Duration // how long the records and logs of stopped instances are kept
	Agent       bool           // this process is a node of the cluster, too
	Host        HostOptions    // of that node
	Bin         string         // directory of that node's helpers; by default that of the running binary
	Loss        fleet.Loss     // when nodes are lost, and what follows; the same on all servers, as any may lead
	Logger      *slog.Logger
}

// DefaultServerOptions returns what holds where the operator says nothing.
func DefaultServerOptions() ServerOptions {
	return ServerOptions{KeepStopped: DefaultOptions().KeepStopped, Loss: fleet.DefaultLoss()}
}

// external reports whether the truth is kept by an etcd that others run.
func (o *ServerOptions) external() bool { return len(o.Etcd.Endpoints) > 0 }

// Validate returns the first thing wrong with o, naming the flag.
func (o *ServerOptions) Validate() error {
	if o.DataDir == "" {
		return errors.New("--data-dir is empty")
	}
	if err := model.CheckMachineName(o.Name); o.Name != "" && err != nil {
		return fmt.Errorf("--name: %w", err)
	}
	host, port, err := splitPort(o.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	if net.ParseIP(host) == nil {
		return fmt.Errorf("--listen %q: write an address and no name, such as 10.0.0.1:7070 or 0.0.0.0:7070", o.Listen)
	}
	if port == 0 || port > 65535-portsInAll {
		return fmt.Errorf("--listen: port %d is outside 1 to %d: a server takes four in a row", port, 65535-portsInAll)
	}
	host, _, err = splitPort(o.Advertise)
	if err != nil {
		return fmt.Errorf("--advertise: %w", err)
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("--advertise %q: other machines cannot call that; write the address at which they reach this one", o.Advertise)
	}
	if (o.Join == "") != (o.Token == "") {
		return errors.New("--join and --token go together: gantry token create --role server makes a token")
	}
	if o.Join != "" {
		if _, _, err := splitPort(o.Join); err != nil {
			return fmt.Errorf("--join: %w", err)
		}
	}
	if o.Token != "" {
		if _, err := pki.ParseToken(o.Token); err != nil {
			return fmt.Errorf("--token: %w", err)
		}
	}
	if err := o.Loss.Validate(); err != nil {
		return err
	}
	if err := o.validateEtcd(); err != nil || !o.Agent {
		return err
	}
	return o.Host.validate()
}

func (o *ServerOptions) validateEtcd() error {
	if !o.external() {
		if e := o.Etcd; e.CA+e.Cert+e.Key+e.Prefix != "" {
			return errors.New("--etcd-endpoints is missing, without which the other flags of an external etcd mean nothing")
		}
		return nil
	}
	if err := o.Etcd.Validate(); err != nil {
		return fmt.Errorf("--%w", err)
	}
	for _, f := range [][2]string{{"--etcd-cacert", o.Etcd.CA}, {"--etcd-cert", o.Etcd.Cert}, {"--etcd-key", o.Etcd.Key}} {
		if f[1] == "" {
			continue
		}
		if _, err := os.ReadFile(f[1]); err != nil {
			return fmt.Errorf("%s: %w", f[0], err)
		}
	}
	return nil
}

func splitPort(addr string) (string, int, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return "", 0, fmt.Errorf("%q: write host:port, such as 10.0.0.1:%d", addr, DefaultPort)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%q: the port is not a number from 0 to 65535", addr)
	}
	return host, int(n), nil
}

// beside returns the address some ports after addr, which was checked.
func beside(addr string, ports int) string {
	host, port, err := splitPort(addr)
	if err != nil {
		return addr
	}
	return net.JoinHostPort(host, strconv.Itoa(port+ports))
}

// server is one run of a server of a cluster.
type server struct {
	ServerOptions
	undo
	started time.Time

	authority *pki.Authority
	machine   *pki.Machine
	registrar *pki.Registrar
	auth      *identity.Authenticator
	fresh     bool // this server got its identity just now
	store     *etcd.Store
	agents    *rpc.Server
	loops     atomic.Pointer[loops]    // while this server leads
	members   atomic.Pointer[[]string] // addresses of the APIs of all servers
	end       context.CancelCauseFunc
}

// RunServer runs a server of a cluster, calls ready once it takes requests, and works until ctx ends, a user asks it to
// end, or a part fails. With o.Agent it is a node as well, and calls node once the node's instances are in its hands; ready is
// then called whenever the server takes requests again.
func RunServer(ctx context.Context, o ServerOptions, ready func(client.Local) error, node func(model.Node) error) (err error) {
	if err := o.Validate(); err != nil {
		return err
	}
	Tune()
	perm := fs.FileMode(0o700)
	if o.Agent {
		perm = nodeDir
	}
	lock, err := claim(o.DataDir, perm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if o.Agent {
		return runBoth(ctx, o, ready, node)
	}
	return (&server{ServerOptions: o}).run(ctx, ready)
}

// claim takes a data directory, which is made with perm if there is none.
func claim(dir string, perm fs.FileMode) (*etcd.Lock, error) {
	if err := os.MkdirAll(dir, perm); err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	return etcd.LockDir(dir)
}

// run is one run of a server, whose data directory is taken.
func (s *server) run(ctx context.Context, ready func(client.Local) error) (err error) {
	s.started = time.Now()
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx); err != nil {
		return err
	}
	asked, end := context.WithCancelCause(ctx)
	defer end(nil)
	s.end = end
	err = s.serve(asked, ready)
	if asked.Err() != nil && (errors.Is(err, errAsked) || errors.Is(err, context.Canceled)) {
		err = nil
	}
	return err
}

// open finds or makes this server's identity, and opens the store.
func (s *server) open(ctx context.Context) error {
	if err := s.openIdentity(ctx); err != nil {
		return err
	}
	token, err := s.authority.AdminToken()
	if err != nil {
		return err
	}
	s.auth = identity.WithToken(token)
	if s.fresh { // a token that is there already is another cluster's
		if err := identity.KeepToken(TokenFile(s.DataDir), token); err != nil {
			return err
		}
	}
	if err := s.openStore(ctx); err != nil {
		return err
	}
	cfg := pki.RegistrarConfig{Store: s.store.DB, Authority: s.authority, Servers: s.servers}
	if s.external() {
		cfg.Addr = s.Advertise // members of the store would tell it
	}
	s.registrar = pki.NewRegistrar(cfg)
	if err := s.registrar.Settle(ctx, s.machine); err != nil {
		return fmt.Errorf("settle the identity of this server: %w", err)
	}
	if err := s.catchUp(); err != nil {
		return fmt.Errorf("keep the administrator's token: %w", err)
	}
	if err := os.Remove(s.foundingFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// catchUp takes the administrator's token that the truth has: it may have been replaced while this server was down.
func (s *server) catchUp() error {
	if err := s.authority.Update(s.store.View().Cluster()); err != nil {
		return err
	}
	token, err := s.authority.AdminToken()
	if err != nil {
		return err
	}
	return s.keepAdmin(token)
}

// keepAdmin has the administrator's token be t from now on.
func (s *server) keepAdmin(t identity.Token) error {
	s.auth.Replace(t)
	return identity.ReplaceToken(TokenFile(s.DataDir), t)
}

// foundingFile is there while this server makes a cluster: until then its store may be empty, and never again.
func (s *server) foundingFile() string { return filepath.Join(s.DataDir, "founding") }

// openIdentity finds out which cluster this server belongs to. Without any it joins one, or makes one.
func (s *server) openIdentity(ctx context.Context) (err error) {
	dir := filepath.Join(s.DataDir, "identity")
	host, _, err := splitPort(s.Advertise)
	if err != nil {
		return err
	}
	o := pki.MachineOptions{Logger: s.Logger.With("part", "identity"), Hosts: []string{host}}
	s.machine, err = pki.OpenMachine(dir, o)
	switch {
	case err == nil:
		name := s.machine.Peer().Name
		if s.Name != "" && s.Name != name {
			return fmt.Errorf("--name %q: this server joined its cluster as %q; leave --name out", s.Name, name)
		}
		s.Name = name
		s.authority, err = pki.OpenAuthority(dir)
		if err != nil {
			return fmt.Errorf("open the cluster's authority: %w", err)
		}
		// After a long time off the certificate has expired, and no member would talk to this one. It may also be at another address.
		if err := s.machine.CheckIn(ctx, pki.Self{Authority: s.authority}); err != nil {
			return fmt.Errorf("renew this server's certificate: %w", err)
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open this server's identity: %w", err)
	}
	s.fresh = true
	if s.Name == "" {
		if s.Name, err = os.Hostname(); err != nil {
			return err
		}
		if err := model.CheckMachineName(s.Name); err != nil {
			return fmt.Errorf("give --name: %w", err)
		}
	}
	if err := s.lookAhead(ctx); err != nil {
		return err
	}
	if s.Join == "" {
		if err := os.WriteFile(s.foundingFile(), nil, 0o600); err != nil {
			return err
		}
		s.authority, s.machine, err = pki.Found(dir, s.Name, []string{host}, o)
		return err
	}
	token, err := pki.ParseToken(s.Token)
	if err != nil {
		return err
	}
	s.machine, err = pki.Join(ctx, pki.JoinOptions{
		Addr: s.Join, Token: token, Role: model.ServerMachine, Name: s.Name, Hosts: []string{host}, Dir: dir, MachineOptions: o,
	})
	if err != nil {
		return fmt.Errorf("join the cluster at %s: %w", s.Join, err)
	}
	s.authority, err = pki.OpenAuthority(dir)
	return err
}

// lookAhead makes sure that the external etcd is the one that is meant, before this server founds or joins a cluster.
func (s *server) lookAhead(ctx context.Context) error {
	if !s.external() {
		return nil
	}
	store, err := etcd.Open(ctx, s.externalStore())
	if err != nil {
		return fmt.Errorf("--etcd-endpoints: %w", err)
	}
	c := store.View().Cluster()
	if err := store.Close(); err != nil {
		return fmt.Errorf("--etcd-endpoints: %w", err)
	}
	switch {
	case c != nil && s.Join == "":
		return fmt.Errorf("--etcd-endpoints: that etcd holds cluster %s already: join it with --join HOST:PORT and a token of gantry token create --role server, "+
			"or choose another --etcd-prefix for a cluster of its own", c.ID)
	case c == nil && s.Join != "":
		return fmt.Errorf("--etcd-endpoints: that etcd holds no cluster: all servers of the one at %s use the same etcd and --etcd-prefix", s.Join)
	}
	return nil
}

func (s *server) externalStore() etcd.Config {
	return etcd.Config{Dir: s.DataDir, Name: s.Name, External: &s.Etcd, Logger: s.Logger.With("part", "etcd"), Build: Build()}
}

// openStore opens the truth. One that is empty is this cluster's only while that is made: agents would end what they run
// because nothing is known of it.
func (s *server) openStore(ctx context.Context) (err error) {
	cfg := s.externalStore()
	if !s.external() {
		if cfg, err = s.memberStore(ctx); err != nil {
			return err
		}
	}
	if s.store, err = etcd.Open(ctx, cfg); err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	s.later(s.store.Close)
	if s.store.View().Cluster() == nil && !exists(s.foundingFile()) {
		return fmt.Errorf("this server is of cluster %s, and the store holds nothing of it: restore it, or give the etcd and --etcd-prefix that hold it",
			s.authority.Cluster().ID)
	}
	return s.checkAgents()
}

// memberStore returns what this server's own member is opened with, once the other servers know of it.
func (s *server) memberStore(ctx context.Context) (_ etcd.Config, err error) {
	own, roots := s.machine.Files()
	cfg := etcd.Config{
		Dir: filepath.Join(s.DataDir, "etcd"), Name: s.Name, Addr: s.Advertise, Logger: s.Logger.With("part", "etcd"), Build: Build(),
		Peer: s.peer(own, roots, s.machine.Peer().Cluster),
	}
	cfg.Peer.Guard = func(l net.Listener) net.Listener {
		return tls.NewListener(s.machine.Listener(l), s.machine.ServerTLS(model.ServerMachine))
	}
	empty := !exists(filepath.Join(cfg.Dir, "member", "wal"))
	if empty && s.Join == "" && !exists(s.foundingFile()) {
		return cfg, fmt.Errorf("%s has the identity of server %s and no store: mount it if it lies on another disk, restore a backup with gantry restore, "+
			"let the server join again with --join and --token, or give --etcd-endpoints if an etcd that others run holds it", s.DataDir, s.Name)
	}
	if empty && s.Join != "" {
		if cfg.Join, err = s.askIn(ctx, cfg.Peer.Advertise); err != nil {
			return cfg, fmt.Errorf("become a member of the cluster at %s: %w", s.Join, err)
		}
	}
	return cfg, nil
}

// checkAgents refuses to leave agents behind that this server could not serve.
func (s *server) checkAgents() error {
	var older []string
	for n := range s.store.View().Nodes() {
		if n.State == model.NodeReady && n.Release.Compare(model.ThisRelease) < 0 && !model.ThisRelease.Accepts(n.Release) {
			older = append(older, fmt.Sprintf("%s (%s)", n.Name, n.Version))
		}
	}
	const named = 5
	switch more := len(older) - named; {
	case len(older) == 0:
		return nil
	case more > 0:
		older = append(older[:named], fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("%w: server %s is Gantry %v, and agents are more than one minor version older: upgrade those first: %s",
		etcd.ErrRelease, s.Name, model.ThisRelease, strings.Join(older, ", "))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// serve runs all parts until one fails or the end is asked for.
func (s *server) serve(ctx context.Context, ready func(client.Local) error) (err error) {
	s.agents, err = rpc.NewServer(rpc.Config{
		TLS: s.machine.ServerTLS(model.AgentMachine), Identify: agentOf, Gantry: Build(), Logger: s.Logger.With("part", "agents"),
	})
	if err != nil {
		return err
	}
	handler, err := s.handler()
	if err != nil {
		return err
	}
	var listeners [portsInAll]net.Listener
	for _, port := range []int{portAPI, portAgents, portServers} {
		addr := beside(s.Listen, port)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("--listen: %w", listenError(addr, err))
		}
		listeners[port] = s.machine.Listener(l)
		s.later(func() error { l.Close(); return nil }) // those who serve have closed it, as a rule
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.runStore(ctx) })
	group.Go(func() error { return boundMemory(ctx) })
	group.Go(func() error { return s.machine.Run(ctx, pki.Self{Registrar: s.registrar, Authority: s.authority}) })
	group.Go(func() error {
		k := pki.NewKeeper(s.store.DB, s.authority, s.Logger.With("part", "identity"), s.machine)
		k.KeepAdmin(s.keepAdmin)
		return k.Run(ctx)
	})
	group.Go(func() error { return s.agents.Run(ctx, listeners[portAgents]) })
	group.Go(func() error { return s.watchMembers(ctx) })
	group.Go(func() error { return s.lead(ctx) })
	group.Go(func() error {
		return serveHTTP(ctx, tls.NewListener(listeners[portAPI], s.machine.ServerTLS()), handler)
	})
	group.Go(func() error {
		return serveHTTP(ctx, tls.NewListener(listeners[portServers], s.machine.ServerTLS(model.ServerMachine)), s.serversHandler())
	})
	group.Go(func() error { return s.announce(ctx, ready) })
	return group.Wait()
}

// runStore ends with the store. A server that was removed is to say so.
func (s *server) runStore(ctx context.Context) error {
	if err := s.store.Run(ctx); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// agentOf returns whose node's certificate a connection shows.
func agentOf(cs tls.ConnectionState) (model.NodeID, error) {
	p, err := pki.PeerOf(cs)
	if err != nil {
		return "", err
	}
	if p.Role != model.AgentMachine {
		return "", fmt.Errorf("%s is no agent", p)
	}
	return model.NodeID(p.Name), nil
}

// lead runs the leader's loops whenever this server leads, until ctx ends.
func (s *server) lead(ctx context.Context) error {
	for {
		leader, lost, err := s.store.Campaign(ctx, s.Name, s.Advertise)
		if err != nil {
			return err
		}
		err = s.leadOnce(ctx, leader, lost)
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), s.resign(leader))
		}
		if err != nil && !errors.Is(err, state.ErrDeposed) && !errors.Is(err, errLost) {
			return err
		}
		s.Logger.Warn("this server leads no longer", "why", err)
	}
}

var errLost = errors.New("another server leads, or none can")

func (s *server) leadOnce(ctx context.Context, leader *state.Leader, lost <-chan struct{}) error {
	l := newLoops(leader, s.Loss, s.KeepStopped, s.Logger)
	s.loops.Store(l)
	defer s.loops.Store(nil)
	s.tellAgents()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.run(ctx) })
	group.Go(func() error { return s.agents.Lead(ctx, l.fleet) })
	group.Go(func() error { return pki.NewWarden(leader, time.Now, 0, s.Logger.With("part", "identity")).Run(ctx) })
	group.Go(func() error {
		select {
		case <-lost:
			return errLost
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	return group.Wait()
}

// resign lets another server lead at once.
func (s *server) resign(leader *state.Leader) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := s.store.Resign(ctx, leader); err != nil && ctx.Err() == nil {
		s.Logger.Info("leadership could not be handed over", "error", err) // the others find out by themselves
	}
	return nil
}

// watchMembers keeps the addresses of servers, and who leads, known to agents.
func (s *server) watchMembers(ctx context.Context) error {
	const often, seldom = 250 * time.Millisecond, 20
	tick := time.NewTicker(often)
	defer tick.Stop()
	known := ""
	for n := 0; ; n++ {
		if n%seldom == 0 {
			s.readMembers(ctx)
		}
		_, leader, _ := s.store.Leader()
		if now := fmt.Sprint(s.servers(), leader); now != known {
			known = now
			s.tellAgents()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *server) readMembers(ctx context.Context) {
	if s.external() {
		var addrs []string
		for m := range s.store.View().Machines() {
			if m.Addr != "" {
				addrs = append(addrs, m.Addr)
			}
		}
		s.members.Store(&addrs)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	list, err := s.store.Members(ctx)
	if err != nil {
		return // the others are still where they were
	}
	var addrs []string
	for _, m := range list {
		if m.Addr != "" && !m.Learner {
			addrs = append(addrs, m.Addr)
		}
	}
	s.members.Store(&addrs)
}

// servers returns where the APIs of all servers are reached.
func (s *server) servers() []string {
	if list := s.members.Load(); list != nil && len(*list) > 0 {
		return *list
	}
	return []string{s.Advertise}
}

func (s *server) tellAgents() {
	c := wire.Cluster{}
	for _, addr := range s.servers() {
		c.Servers = append(c.Servers, beside(addr, portAgents))
	}
	if _, addr, ok := s.store.Leader(); ok {
		c.Leader = beside(addr, portAgents)
	}
	s.agents.SetCluster(c)
}

// announce lets the CLI of this machine find the server, and says that it is ready, until ctx ends.
func (s *server) announce(ctx context.Context, ready func(client.Local) error) error {
	_, roots := s.machine.Files()
	local := client.Local{
		Addr: "https://" + s.Advertise, TokenFile: TokenFile(s.DataDir), CAFile: roots, DataDir: s.DataDir, PID: os.Getpid(), Started: s.started,
	}
	remove, err := client.Announce(local)
	if err != nil {
		return fmt.Errorf("announce the server: %w", err)
	}
	defer remove()
	if err := ready(local); err != nil {
		return fmt.Errorf("say that the server is ready: %w", err)
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// leader returns where the server that leads answers, and whether that is this one.
func (s *server) leader() (addr string, self bool) {
	_, addr, _ = s.store.Leader()
	return addr, s.loops.Load() != nil
}

// handler is what people and joining machines find.
func (s *server) handler() (http.Handler, error) {
	h, err := newHandler(api.Config{
		Store: s.store.DB, Auth: s.auth, Nodes: s.node, Placer: s, Logger: s.Logger.With("part", "api"),
		Info:     client.Info{Version: Build(), Go: goruntime.Version(), Started: s.started, PID: os.Getpid(), DataDir: s.DataDir},
		Shutdown: func(client.Shutdown) { s.end(errAsked) },
		Revoke:   pki.RevokeIn,
		Servers:  newOps(s.store, s.registrar, s.authority, s.Name, s.servers, s.answers),
		Leader:   s.leader,
		Forward:  &http.Transport{TLSClientConfig: s.machine.ClientTLS(), MaxIdleConnsPerHost: 16},
	})
	if err != nil {
		return nil, err
	}
	door := s.registrar.Handler()
	mux := http.NewServeMux()
	mux.Handle(pki.JoinPath, door)
	mux.Handle(pki.RenewPath, door)
	mux.Handle("/", h)
	return mux, nil
}
