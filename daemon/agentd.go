package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-os/gantry/agent/wire/rpc"
	"github.com/gantry-os/gantry/identity/pki"
	"github.com/gantry-os/gantry/model"
)

// AgentOptions is what an operator can choose for a node of a cluster. Validate checks it; nothing changes it afterwards.
type AgentOptions struct {
	DataDir   string // everything that the agent keeps lies here
	Join      string // host:port of a server; only read while DataDir has no identity
	Token     string // join token
	Advertise string // address at which its instances are reached; by default the one that servers see
	HostOptions
	Bin    string // directory of the helpers; by default that of the running binary
	Logger *slog.Logger
}

// Validate returns the first thing wrong with o, naming the flag.
func (o *AgentOptions) Validate() error {
	if o.DataDir == "" {
		return errors.New("--data-dir is empty")
	}
	if (o.Join == "") != (o.Token == "") {
		return errors.New("--join and --token go together: gantry token create --role agent makes a token")
	}
	if o.Join != "" {
		if _, _, err := splitPort(o.Join); err != nil {
			return fmt.Errorf("--join: %w", err)
		}
		if _, err := pki.ParseToken(o.Token); err != nil {
			return fmt.Errorf("--token: %w", err)
		}
	}
	if o.Advertise != "" && net.ParseIP(o.Advertise) == nil {
		return fmt.Errorf("--advertise %q is not an IP address", o.Advertise)
	}
	return o.HostOptions.validate()
}

// agentd is one run of an agent.
type agentd struct {
	AgentOptions
	undo
	machine  *pki.Machine
	host     *host
	identity string                                    // directory
	invite   func(ctx context.Context) (string, error) // gives a join token, where there is none from the operator
}

// nodeDir is the mode of the data directory of a node: programs get to their sandboxes through it.
const nodeDir = 0o711

// RunAgent runs a node of a cluster, calls ready once its instances are in its hands, and works until ctx ends or a part
// fails. Instances are left running.
func RunAgent(ctx context.Context, o AgentOptions, ready func(model.Node) error) (err error) {
	if err := o.Validate(); err != nil {
		return err
	}
	if o.Bin == "" {
		if o.Bin, err = helpers(); err != nil {
			return fmt.Errorf("find the helpers: %w", err)
		}
	}
	Tune()
	lock, err := claim(o.DataDir, nodeDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	d := &agentd{AgentOptions: o, identity: filepath.Join(o.DataDir, "identity")}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.open(ctx); err != nil {
		return err
	}
	if err := ready(d.host.node); err != nil {
		return fmt.Errorf("say that the agent is ready: %w", err)
	}
	return d.serve(ctx)
}

// open finds or gets the node's identity, and starts what runs instances.
func (d *agentd) open(ctx context.Context) (err error) {
	if err := letThrough(d.DataDir); err != nil {
		return err
	}
	d.host = &host{
		HostOptions: d.HostOptions, dataDir: d.DataDir, bin: d.Bin, cluster: clusterOf(d.DataDir), logger: d.Logger, later: d.later,
	}
	if err := d.openIdentity(ctx); err != nil {
		return err
	}
	if d.host.addr, err = d.address(); err != nil {
		return err
	}
	if err := d.host.openEngine(); err != nil {
		return err
	}
	return d.host.openAgent()
}

// openIdentity finds out which cluster this node belongs to. Without any it joins one.
func (d *agentd) openIdentity(ctx context.Context) (err error) {
	o := pki.MachineOptions{Logger: d.Logger.With("part", "identity")}
	d.machine, err = pki.OpenMachine(d.identity, o)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open this node's identity: %w", err)
	case d.Join == "":
		return fmt.Errorf("this node is in no cluster yet: give --join HOST:PORT and --token TOKEN, which gantry token create --role agent makes")
	}
	if err := d.host.detect(); err != nil { // the node's id is its name in the cluster
		return err
	}
	if d.invite != nil {
		if d.Token, err = d.invite(ctx); err != nil {
			return err
		}
	}
	token, err := pki.ParseToken(d.Token)
	if err != nil {
		return err
	}
	d.machine, err = pki.Join(ctx, pki.JoinOptions{
		Addr: d.Join, Token: token, Role: model.AgentMachine, Name: string(d.host.node.ID), Dir: d.identity, MachineOptions: o,
	})
	if err != nil {
		return fmt.Errorf("join the cluster at %s: %w", d.Join, err)
	}
	return nil
}

// seeds returns the addresses of servers to begin with: those that were learned last, those that came with the identity,
// and the one to join.
func (d *agentd) seeds() []string {
	var out []string
	if b, err := os.ReadFile(d.serversFile()); err == nil {
		if err := json.Unmarshal(b, &out); err != nil {
			d.Logger.Warn("the list of servers cannot be read; others are asked", "file", d.serversFile(), "error", err)
		}
	}
	for _, addr := range append(d.machine.Servers(), d.Join) {
		if addr != "" {
			out = append(out, beside(addr, portAgents))
		}
	}
	return out
}

func (d *agentd) serversFile() string { return filepath.Join(d.DataDir, "servers.json") }

// learned keeps where servers are for the next start.
func (d *agentd) learned(servers []string) {
	b, err := json.Marshal(servers)
	if err == nil {
		err = os.WriteFile(d.serversFile()+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(d.serversFile()+".new", d.serversFile())
	}
	if err != nil {
		d.Logger.Warn("the list of servers cannot be kept", "error", err)
	}
}

// address returns where this node's instances are reached: the address by which it reaches servers.
func (d *agentd) address() (string, error) {
	if d.Advertise != "" {
		return d.Advertise, nil
	}
	var errs []error
	for _, addr := range d.seeds() {
		c, err := net.Dial("udp", addr) // sends nothing: it only finds a way
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defer c.Close()
		host, _, err := net.SplitHostPort(c.LocalAddr().String())
		return host, err
	}
	return "", fmt.Errorf("no way to a server: give --advertise ADDRESS: %w", errors.Join(errs...))
}

// serve keeps the agent connected to the leader, and its identity fresh.
func (d *agentd) serve(ctx context.Context) error {
	dialer, err := rpc.NewDialer(rpc.DialerConfig{
		Servers: d.seeds(), TLS: d.machine.ClientTLS(), Gantry: Build(), Logger: d.Logger.With("part", "session"), Learned: d.learned,
	})
	if err != nil {
		return err
	}
	door := pki.NewClient(d.machine, d.doors)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.machine.Run(ctx, door) })
	group.Go(func() error { return dialer.Run(ctx, d.host.agent) })
	err = group.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// doors returns where certificates are renewed.
func (d *agentd) doors() []string {
	var out []string
	for _, addr := range d.seeds() {
		out = append(out, beside(addr, -portAgents))
	}
	return out
}
