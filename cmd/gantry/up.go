package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/daemon"
	"github.com/gantry-os/gantry/model"
)

// upFlags are the flags of gantry up that are not daemon.Options as they are.
type upFlags struct {
	detach   bool
	logLevel string
}

func (c *cli) upCommand() *cobra.Command {
	o, f := daemon.DefaultOptions(), upFlags{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a server and an agent on this machine",
		Long: `Start a server and an agent in one process and run apps on this machine, until a signal or gantry down.

A signal (Ctrl-C, SIGTERM) ends Gantry and leaves instances running; the next gantry up adopts them. gantry down ends
them too. With --ephemeral everything is temporary: nothing is left when it ends.

As root, programs get their own namespaces and cgroups, and images can be run. As an ordinary user programs run without
isolation, and images are refused.`,
		Example: `  gantry up
  gantry up --detach --data-dir /srv/gantry
  gantry up --ephemeral --http-addr 127.0.0.1:0
  gantry up --zone a --attribute rack=r1 --resource licenses=4 --resource 'lines={l1,l2}' --gpu id=0,model=T4,memory=16GiB`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.up(cmd.Context(), o, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.HTTPAddr, "http-addr", o.HTTPAddr, "address that the API listens on; port 0 takes a free one")
	flags.BoolVar(&o.Ephemeral, "ephemeral", false, "use a temporary data directory and leave nothing behind")
	flags.StringVar(&o.Auth, "auth", o.Auth, "token, or none on a loopback address")
	flags.Var((*durationFlag)(&o.KeepStopped), "keep-stopped", "how long records and logs of stopped instances are kept")
	hostFlags(flags, &o.HostOptions)
	levelFlag(flags, &f.logLevel)
	flags.BoolVarP(&f.detach, "detach", "d", false, "return when it is ready, and go on in the background")
	return cmd
}

// hostFlags are the flags of what runs instances on this machine.
func hostFlags(flags *pflag.FlagSet, o *daemon.HostOptions) {
	flags.StringSliceVar(&o.PlainHTTP, "plain-http", nil, "registry host:port to speak to without TLS, beside those on loopback (repeatable)")
	flags.Var((*bytesFlag)(&o.LogSize), "log-size", "size at which a log file of a container is rotated")
	flags.IntVar(&o.LogKeep, "log-keep", o.LogKeep, "rotated log files kept of each stream")
	flags.Var((*cpuFlag)(&o.NodeCPUs), "node-cpus", "cores that instances may reserve in all (default: what this machine has)")
	flags.Var((*bytesFlag)(&o.NodeMemory), "node-memory", "memory that instances may reserve in all (default: what this machine has, less a tenth)")
	flags.Var((*cpuFlag)(&o.Keep.CPUs), "reserve-cpus", "cores kept for the system, off what this machine has")
	flags.Var((*bytesFlag)(&o.Keep.Memory), "reserve-memory", "memory kept for the system, off what this machine has (default: a tenth)")
	flags.StringVar(&o.DNS.Listen, "dns-listen", o.DNS.Listen, "address:port at which this node answers names; auto is "+daemon.DNSAddr+" for root and off for others")
	flags.StringVar(&o.DNS.Zone, "dns-zone", o.DNS.Zone, "domain of the names of apps")
	flags.StringSliceVar(&o.DNS.Upstreams, "dns-upstream", nil, "address[:port], or domain=address[:port], that answers other names (repeatable; default: those of /etc/resolv.conf)")
	declareFlags(flags, &o.Node)
}

func levelFlag(flags *pflag.FlagSet, level *string) {
	flags.StringVar(level, "log-level", "warn", "least level of what Gantry logs about itself on stderr: debug, info, warn or error")
}

// logger logs about Gantry itself.
func (c *cli) logger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: write debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(c.err, &slog.HandlerOptions{Level: l})), nil
}

// up runs the server here, or in the background.
func (c *cli) up(ctx context.Context, o daemon.Options, f upFlags) error {
	if err := c.upOptions(&o, f); err != nil {
		return usageError{err}
	}
	if f.detach {
		return c.detach(ctx, o)
	}
	if o.Ephemeral {
		dir, err := os.MkdirTemp("", "gantry-")
		if err != nil {
			return fmt.Errorf("make a temporary data directory: %w", err)
		}
		o.DataDir = dir
	}
	// Whoever read what the server prints may go away, as in gantry up | head -1: that must not end it. The signal is caught
	// and not ignored, which programs would inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	out, done := c.readyOutput()
	return daemon.Run(ctx, o, func(r daemon.Running) error {
		c.sayReady(out, r)
		return done()
	})
}

// upOptions completes and checks the options before anything is started.
func (c *cli) upOptions(o *daemon.Options, f upFlags) error {
	var err error
	if o.Logger, err = c.logger(f.logLevel); err != nil {
		return err
	}
	switch {
	case o.Ephemeral && c.dataDir != "":
		return errors.New("--ephemeral takes no --data-dir: it makes its own, and removes it")
	case o.Ephemeral && f.detach:
		return errors.New("--ephemeral and --detach exclude each other")
	case o.Ephemeral:
		o.DataDir = os.TempDir()
	default:
		if o.DataDir, err = c.absDataDir(); err != nil {
			return err
		}
	}
	return o.Validate()
}

// absDataDir returns the data directory of a server or an agent.
func (c *cli) absDataDir() (string, error) {
	return filepath.Abs(cmp.Or(c.dataDir, client.DefaultDataDir()))
}

// readyEnv names the file descriptor on which a server in the background says that it is ready.
const readyEnv = "GANTRY_READY_FD"

// readyOutput returns where to say that the server is ready, and what to call after that.
func (c *cli) readyOutput() (io.Writer, func() error) {
	fd, err := strconv.Atoi(c.getenv(readyEnv))
	if err != nil {
		return c.out, func() error { return nil }
	}
	syscall.CloseOnExec(fd) // or the helpers would keep the starter waiting
	_ = os.Unsetenv(readyEnv)
	f := os.NewFile(uintptr(fd), readyEnv)
	return f, f.Close
}

// sayReady prints the line that says that the server takes requests, and what it cannot do here.
func (c *cli) sayReady(out io.Writer, r daemon.Running) {
	if c.json {
		fmt.Fprintf(out, `{"addr":%q,"tokenFile":%q,"dataDir":%q,"pid":%d}`+"\n", r.Addr, r.TokenFile, r.DataDir, r.PID)
		return
	}
	token := "no token needed"
	if r.TokenFile != "" {
		token = "token in " + r.TokenFile
	}
	fmt.Fprintf(out, "Gantry is ready at %s (%s).\n", r.Addr, token)
	fmt.Fprintln(out, "Next: gantry run -- COMMAND, gantry run IMAGE, gantry ps, gantry --help")
	if !r.Node.Isolated.OK {
		fmt.Fprintf(out, "Programs run without isolation here: %s\n", r.Node.Isolated.Why)
	}
	if !r.Node.OCI.OK {
		fmt.Fprintf(out, "Images cannot be run here: %s\n", r.Node.OCI.Why)
	}
}

// detach starts the server in the background and returns once it is ready, passing on what it says.
func (c *cli) detach(ctx context.Context, o daemon.Options) error {
	if l, err := client.FindLocal(o.DataDir); err == nil {
		fmt.Fprintf(c.out, "Gantry runs already at %s (process %d, data in %s).\n", l.Addr, l.PID, l.DataDir)
		return nil
	}
	log, err := openLog(filepath.Join(o.DataDir, "gantry.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	child := exec.Command(exe, withoutDetach(os.Args[1:])...)
	child.Stdout, child.Stderr, child.ExtraFiles = log, log, []*os.File{w}
	child.Env = append(os.Environ(), readyEnv+"=3")
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = child.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = child.Process.Signal(syscall.SIGTERM) })
	defer stop()
	said, err := io.ReadAll(r)
	if err == nil && len(said) == 0 {
		_ = child.Wait() // why it ended is in its log
		return fmt.Errorf("the server ended while starting (log: %s):\n%s", log.Name(), tail(log.Name(), before))
	}
	_, werr := c.out.Write(said)
	return errors.Join(err, werr)
}

// openLog opens the log of a server in the background. The one before it is kept when it has grown large.
func openLog(name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	if info, err := os.Stat(name); err == nil && info.Size() > 10<<20 {
		if err := os.Rename(name, name+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

func withoutDetach(args []string) []string {
	var out []string
	for _, a := range args {
		if a != "--detach" && a != "-d" && a != "--detach=true" {
			out = append(out, a)
		}
	}
	return out
}

// tail returns the last lines of a file, of those behind from.
func tail(name string, from int64) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil {
		from = max(from, info.Size()-2048)
	}
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return err.Error()
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(strings.TrimPrefix(string(b), "gantry: "))
}

// durationFlag, bytesFlag and cpuFlag read the model's quantities.
type (
	durationFlag model.Duration
	bytesFlag    model.Bytes
	cpuFlag      model.CPU
)

func (c *cpuFlag) String() string { return unlessZero(model.CPU(*c)) }
func (c *cpuFlag) Type() string   { return "cores" }
func (c *cpuFlag) Set(s string) (err error) {
	*(*model.CPU)(c), err = model.ParseCPU(s)
	return err
}

// unlessZero keeps pflag from printing a default where zero stands for "as detected".
func unlessZero[T interface {
	comparable
	fmt.Stringer
}](v T) string {
	var zero T
	if v == zero {
		return ""
	}
	return v.String()
}

func (d *durationFlag) String() string { return model.Duration(*d).String() }
func (d *durationFlag) Type() string   { return "duration" }
func (d *durationFlag) Set(s string) (err error) {
	*(*model.Duration)(d), err = model.ParseDuration(s)
	return err
}

func (b *bytesFlag) String() string { return unlessZero(model.Bytes(*b)) }
func (b *bytesFlag) Type() string   { return "bytes" }
func (b *bytesFlag) Set(s string) (err error) {
	*(*model.Bytes)(b), err = model.ParseBytes(s)
	return err
}
