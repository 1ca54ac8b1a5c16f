package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// cli is what all commands share: where they read and write, and the global flags.
type cli struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string
	now      func() time.Time
	term     terminal // of out
	errTerm  terminal // of err
	options  []client.Option

	addr, token, tokenFile, dataDir, caFile string
	json                                    bool
}

func newCLI(in io.Reader, out, err io.Writer) *cli {
	return &cli{in: in, out: out, err: err, getenv: os.Getenv, now: time.Now, term: terminalOf(out), errTerm: terminalOf(err)}
}

const about = `Gantry turns machines into one pool and keeps applications running on it: OCI images, or programs of the
machine itself.

  gantry up                                        start a cluster on this machine
  gantry run nginx                                 run an image
  gantry run -- python3 -m http.server '$PORT0'    or a program
  gantry ps                                        see what runs

Commands find a cluster on this machine by themselves. Environment: GANTRY_ADDR and GANTRY_TOKEN name another one,
GANTRY_CACERT the file with its roots when its address is https; NO_COLOR turns colours off. Flags go before the environment.

Exit codes: 0 done; 1 other failure; 2 wrong usage; 3 no such app, instance, ...; 4 refused, or the deployment failed or
was rolled back; 5 timed out while waiting; 6 no server answers; 7 an app that was planned does not fit; 130 interrupted. exec
exits with the program's own code.`

// Groups of commands in the help.
const (
	groupRun     = "run"
	groupLook    = "look"
	groupCluster = "cluster"
)

// root returns the tree of commands.
func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use: "gantry", Short: "A datacenter operating system in one binary", Long: about,
		SilenceErrors: true, SilenceUsage: true,
		Version: model.ThisRelease.Build(version),
		Args:    noSuchCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	root.SetVersionTemplate("gantry {{.Version}} (" + runtime.Version() + ")\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&c.addr, "addr", "", "`address` of the server, such as http://127.0.0.1:7070, or of several, with commas between them (env GANTRY_ADDR)")
	flags.StringVar(&c.token, "token", "", "`token` to show to the server (env GANTRY_TOKEN)")
	flags.StringVar(&c.tokenFile, "token-file", "", "`file` that holds the token")
	flags.StringVar(&c.caFile, "ca-file", "", "`file` with the roots of the cluster, for an https: address (env GANTRY_CACERT)")
	flags.StringVar(&c.dataDir, "data-dir", "", "the local cluster with this data `directory`, when several run here")
	flags.BoolVar(&c.json, "json", false, "print JSON for programs")
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run and change apps:"},
		&cobra.Group{ID: groupLook, Title: "See what goes on:"},
		&cobra.Group{ID: groupCluster, Title: "The cluster:"})
	c.add(root, groupRun, c.runCommand, c.planCommand, c.scaleCommand, c.updateCommand, c.rollbackCommand, c.restartCommand, c.rmCommand)
	c.add(root, groupLook, c.psCommand, c.statusCommand, c.logsCommand, c.execCommand, c.versionsCommand,
		c.deploymentsCommand, c.eventsCommand, c.topCommand)
	c.add(root, groupCluster, c.upCommand, c.downCommand, c.serverCommand, c.agentCommand, c.clusterCommand, c.tokenCommand, c.backupCommand, c.restoreCommand,
		c.configCommand, c.installCommand, c.nodesCommand, c.poolCommand, c.roleCommand, c.reservationCommand,
		c.volumeCommand, c.defragCommand, c.imageCommand, c.simulateCommand)
	c.add(root, "", c.versionCommand, containerdCommand)
	return root
}

func (c *cli) add(root *cobra.Command, group string, commands ...func() *cobra.Command) {
	for _, f := range commands {
		cmd := f()
		cmd.GroupID = group
		root.AddCommand(cmd)
	}
}

// run runs one command line and returns its exit code.
func (c *cli) run(ctx context.Context, args []string) int {
	root := c.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	c.report(cmd, err)
	return exitCode(err)
}

// connect returns a client of the cluster that flags, environment or this machine name, in this order.
func (c *cli) connect() (*client.Client, error) {
	addr, token, file := c.addr, c.token, c.tokenFile
	if addr == "" && c.dataDir == "" {
		addr = c.getenv("GANTRY_ADDR")
	}
	if token == "" && file == "" && c.dataDir == "" {
		token = c.getenv("GANTRY_TOKEN")
	}
	if addr == "" {
		local, err := client.FindLocal(c.dataDir)
		if err != nil {
			return nil, err
		}
		addr = local.Addr
		if token == "" && file == "" {
			file = local.TokenFile
		}
	}
	for _, one := range strings.Split(addr, ",") {
		if err := checkAddr(one); err != nil {
			return nil, usageError{err}
		}
	}
	if token == "" && file == "" {
		first, _, _ := strings.Cut(addr, ",")
		file = client.LocalTokenFile(first)
	}
	if token == "" && file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the token: %w", err)
		}
		token = strings.TrimSpace(string(b))
	}
	return c.client(addr, token)
}

// client returns a client of the server at addr, or of several with commas between them, which trusts the roots of its
// cluster if they were named.
func (c *cli) client(addrs, token string) (*client.Client, error) {
	list := strings.Split(addrs, ",")
	addr, options := list[0], slices.Clone(c.options)
	if file := cmp.Or(c.caFile, c.getenv("GANTRY_CACERT"), client.LocalCAFile(addr)); file != "" && strings.HasPrefix(addr, "https://") {
		trust, err := client.WithCAFile(file)
		if err != nil {
			return nil, err
		}
		options = append(options, trust)
	}
	return client.New(addr, token, append(options, client.WithOthers(list[1:]...))...), nil
}

// checkAddr refuses an address that no request can be sent to.
func checkAddr(addr string) error {
	if strings.TrimSpace(addr) != addr || addr == "" {
		return fmt.Errorf("the address %q: write host:port, or several with commas and no spaces between them", addr)
	}
	if scheme, _, ok := strings.Cut(addr, "://"); ok && scheme != "http" && scheme != "https" {
		return fmt.Errorf("the address %s begins neither with http:// nor with https://", addr)
	}
	return nil
}

// appID reads an app's id as people type it.
func appID(s string) (model.AppID, error) {
	id, err := model.ParseAppID(s)
	if err != nil {
		return "", usageError{err}
	}
	return id, nil
}
