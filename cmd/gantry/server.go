package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/daemon"
	"github.com/gantry-os/gantry/model"
)

func (c *cli) serverCommand() *cobra.Command {
	cmd, _ := c.serverParts()
	return cmd
}

// serverParts returns the command, and what says whether its settings are right.
func (c *cli) serverParts() (*cobra.Command, func() error) {
	opts := daemon.DefaultServerOptions()
	o, level := &opts, new(string)
	o.Host = daemon.DefaultHost()
	node := pflag.NewFlagSet("", pflag.ContinueOnError)
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run a server of a cluster",
		Long: `Run a server of a cluster of several machines: it keeps the truth, decides, and answers the API. Nodes are agents.

With --agent the machine is a node as well, in the same process and data directory; flags that describe a node go with it. Its
instances do not depend on the server in the process: the node is connected to whichever server leads.

The first server makes the cluster and its certificate authority. Further ones join it with a token; three or five of
them go on when one or two are lost. A server listens on four ports in a row: the API, agents, and two for other servers.

The truth is kept by an etcd in the servers themselves, or by one that you run, which --etcd-endpoints names; all servers name the
same one. It has to be run with --max-txn-ops=20002 --max-request-bytes=10485760.

Settings may also stand in a file in YAML, under the names of the flags (--config). Flags win over environment variables
such as GANTRY_SERVER_ADVERTISE, and those over the file. gantry config check says whether a file is right.`,
		Example: `  gantry server --advertise 10.0.0.1:7070
  gantry server --advertise 10.0.0.2:7070 --join 10.0.0.1:7070 --token-file token
  gantry server --advertise 10.0.0.3:7070 --join 10.0.0.1:7070 --token-file token --agent --zone c
  gantry server --etcd-endpoints https://10.0.0.7:2379,https://10.0.0.8:2379 --etcd-cacert ca.pem --etcd-cert gantry.pem --etcd-key gantry-key.pem
  gantry server --config /etc/gantry/server.yaml`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := settings(cmd.Flags(), "GANTRY_SERVER_", c.getenv); err != nil {
				return usageError{err}
			}
			if err := onlyOfNodes(node, o.Agent); err != nil {
				return usageError{err}
			}
			return c.server(cmd.Context(), *o, *level)
		},
	}
	flags := cmd.Flags()
	flags.String("config", "", "file with settings, in YAML")
	flags.StringVar(&o.Name, "name", "", "name of the server, its own in the cluster (default: the one it joined with, at first the host name)")
	flags.StringVar(&o.Listen, "listen", "0.0.0.0:"+strconv.Itoa(daemon.DefaultPort), "address that the API listens on; the three ports after it are taken, too")
	flags.StringVar(&o.Advertise, "advertise", "", "host:port at which other machines reach the API (default: the only address of this machine)")
	flags.StringVar(&o.Join, "join", "", "host:port of a server of the cluster to join")
	flags.StringVar(&o.Token, "token", "", "join token, which gantry token create --role server makes")
	flags.StringSliceVar(&o.Etcd.Endpoints, "etcd-endpoints", nil, "https://host:port of the members of an etcd that you run, in place of one in the servers (repeatable)")
	flags.StringVar(&o.Etcd.CA, "etcd-cacert", "", "`file` with the roots of that etcd, in PEM (default: those of the system)")
	flags.StringVar(&o.Etcd.Cert, "etcd-cert", "", "`file` with the certificate to show that etcd, in PEM")
	flags.StringVar(&o.Etcd.Key, "etcd-key", "", "`file` with the key of that certificate, in PEM")
	flags.StringVar(&o.Etcd.Prefix, "etcd-prefix", "", "what begins all keys in that etcd, such as /a, for several clusters on one etcd")
	flags.Var((*durationFlag)(&o.KeepStopped), "keep-stopped", "how long records and logs of stopped instances are kept")
	lossFlags(flags, o)
	levelFlag(flags, level)
	flags.BoolVar(&o.Agent, "agent", false, "make this machine a node, too")
	hostFlags(node, &o.Host)
	flags.AddFlagSet(node)
	return cmd, func() error {
		own := *o
		return errors.Join(onlyOfNodes(node, o.Agent), c.serverOptions(&own, *level))
	}
}

// onlyOfNodes refuses flags that describe a node where there is none.
func onlyOfNodes(flags *pflag.FlagSet, node bool) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed && !node && err == nil {
			err = fmt.Errorf("--%s describes a node, and without --agent this machine is none", f.Name)
		}
	})
	return err
}

// lossFlags adds those that say when nodes are lost. Servers are to agree on them: whichever leads goes by its own.
func lossFlags(flags *pflag.FlagSet, o *daemon.ServerOptions) {
	l := &o.Loss
	flags.DurationVar(&l.Grace, "unreachable-after", l.Grace, "how long a node may not be heard of before it counts as lost")
	flags.DurationVar(&l.Gone, "gone-after", l.Gone, "how long a node may be lost before it is listed as gone")
	flags.DurationVar(&l.Calm, "calm", l.Calm, "how long a node that comes and goes takes no new work, doubled each further time")
	flags.Float64Var(&l.OutageShare, "outage-share", l.OutageShare, "nothing is replaced when more than this share of the nodes are lost at once")
}

// server runs a server here.
func (c *cli) server(ctx context.Context, o daemon.ServerOptions, level string) error {
	if err := c.serverOptions(&o, level); err != nil {
		return usageError{err}
	}
	return c.untilSignal(ctx, func(ctx context.Context) error {
		return daemon.RunServer(ctx, o, func(l client.Local) error {
			fmt.Fprintf(c.out, "Server is ready at %s (token in %s).\n", l.Addr, l.TokenFile)
			fmt.Fprintln(c.out, "Next: gantry token create --role agent, then on each machine: gantry agent --join "+o.Advertise+" --token TOKEN")
			return nil
		}, c.sayNode)
	})
}

func (c *cli) sayNode(n model.Node) error {
	fmt.Fprintf(c.out, "Agent of node %s (%s) is ready.\n", n.ID, n.Name)
	return nil
}

func (c *cli) serverOptions(o *daemon.ServerOptions, level string) (err error) {
	if o.Token, err = c.joinToken(o.Token); err != nil {
		return err
	}
	if o.Logger, err = c.logger(level); err != nil {
		return err
	}
	if o.DataDir, err = c.absDataDir(); err != nil {
		return err
	}
	if o.Advertise == "" {
		if o.Advertise, err = onlyAddress(o.Listen); err != nil {
			return err
		}
	}
	return o.Validate()
}

func (c *cli) restoreCommand() *cobra.Command {
	opts := daemon.DefaultServerOptions()
	o := &opts
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a server of a backup",
		Long: `Make a server of a backup: the first of a new cluster that goes on from there. Start it with gantry server after that,
and let others join it. Agents find it if it has an address that they know, and what still runs is adopted. Servers of the
old cluster are not to be started again.

The data directory has to hold the directory identity of one of the old servers, by which agents know it, and no store.`,
		Example: "  mv /var/lib/gantry/etcd /var/lib/gantry/etcd.old\n  gantry restore gantry-2026-03-01.backup --advertise 10.0.0.1:7070",
		Args:    args(1, 1),
		RunE:    func(_ *cobra.Command, a []string) error { return c.restore(*o, a[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Listen, "listen", "0.0.0.0:"+strconv.Itoa(daemon.DefaultPort), "as of gantry server")
	flags.StringVar(&o.Advertise, "advertise", "", "as of gantry server")
	return cmd
}

func (c *cli) restore(o daemon.ServerOptions, file string) error {
	if err := c.serverOptions(&o, "warn"); err != nil {
		return usageError{err}
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := daemon.RestoreServer(o, f)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s now holds revision %d, as of %s.\nNext: gantry server --advertise %s\n",
		o.DataDir, b.Revision, b.Created.UTC().Format(time.RFC3339), o.Advertise)
	return nil
}

// onlyAddress returns where a machine with one address is reached.
func onlyAddress(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("--listen %q: write host:port", listen)
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return listen, nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	var found []string
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			found = append(found, n.IP.String())
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("--advertise is missing: write the address at which other machines reach this one, of %v", found)
	}
	return net.JoinHostPort(found[0], port), nil
}

// untilSignal runs a long-lived command.
func (c *cli) untilSignal(ctx context.Context, run func(context.Context) error) error {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // whoever read the output may go away, see up
	err := run(ctx)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *cli) agentCommand() *cobra.Command {
	cmd, _ := c.agentParts()
	return cmd
}

// agentParts returns the command, and what says whether its settings are right.
func (c *cli) agentParts() (*cobra.Command, func() error) {
	o := &daemon.AgentOptions{HostOptions: daemon.DefaultHost()}
	level := new(string)
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Make this machine a node of a cluster",
		Long: `Make this machine a node of a cluster: it runs instances that servers give it, and goes on with them when no server is
in reach. Its end leaves instances running; the next start adopts them.

With --join and a token it joins once; later it knows its cluster by itself. --token-file keeps the token out of the list of
processes.`,
		Example: `  gantry agent --join 10.0.0.1:7070 --token-file token
  gantry agent --zone a --attribute rack=r1`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := settings(cmd.Flags(), "GANTRY_AGENT_", c.getenv); err != nil {
				return usageError{err}
			}
			return c.agent(cmd.Context(), *o, *level)
		},
	}
	flags := cmd.Flags()
	flags.String("config", "", "file with settings, in YAML")
	flags.StringVar(&o.Join, "join", "", "host:port of a server of the cluster to join")
	flags.StringVar(&o.Token, "token", "", "join token, which gantry token create --role agent makes")
	flags.StringVar(&o.Advertise, "advertise", "", "address at which its instances are reached (default: the one by which it reaches servers)")
	hostFlags(flags, &o.HostOptions)
	levelFlag(flags, level)
	return cmd, func() error { own := *o; return c.agentOptions(&own, *level) }
}

// agent runs a node here.
func (c *cli) agent(ctx context.Context, o daemon.AgentOptions, level string) (err error) {
	if err := c.agentOptions(&o, level); err != nil {
		return usageError{err}
	}
	return c.untilSignal(ctx, func(ctx context.Context) error {
		return daemon.RunAgent(ctx, o, c.sayNode)
	})
}

func (c *cli) agentOptions(o *daemon.AgentOptions, level string) (err error) {
	if o.Logger, err = c.logger(level); err != nil {
		return err
	}
	if o.DataDir, err = c.absDataDir(); err != nil {
		return err
	}
	if o.Token, err = c.joinToken(o.Token); err != nil {
		return err
	}
	return o.Validate()
}

// joinToken returns the token to join with. One in a file does not show in the list of processes.
func (c *cli) joinToken(token string) (string, error) {
	if token != "" || c.tokenFile == "" {
		return token, nil
	}
	b, err := os.ReadFile(c.tokenFile)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
