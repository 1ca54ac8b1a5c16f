package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// execOptions are the flags of exec.
type execOptions struct {
	stdin, tty     bool
	container, dir string
}

// execCommand returns `gantry exec`.
func (c *cli) execCommand() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "exec [flags] INSTANCE|APP -- CMD ARGS...",
		Short: "Run a program inside an instance",
		Long: `Run a program inside a running instance: same files, processes, network and limits. Of an app the newest running
instance is taken. The exit code is that of the program.`,
		Example: `  gantry exec -it web-k3v9q2xw -- sh
  gantry exec web -- cat /etc/hostname`,
		ValidArgsFunction: c.completeTarget(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			where, program, err := splitExec(args, cmd.ArgsLenAtDash())
			if err != nil {
				return err
			}
			code, err := c.exec(cmd.Context(), &o, where, program)
			if err != nil || code == 0 {
				return err
			}
			return &exitError{code: code}
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.stdin, "stdin", "i", false, "pass the standard input on")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the program a terminal")
	f.StringVarP(&o.container, "container", "c", "", "`name` of the container to run it in (default the first)")
	f.StringVar(&o.dir, "dir", "", "working `directory` (default the container's)")
	return cmd
}

// splitExec parts the instance from the command; the -- between them may be left out.
func splitExec(args []string, dash int) (where string, program []string, err error) {
	if dash > 1 || dash == 0 || len(args) < 2 {
		return "", nil, usageError{fmt.Errorf("write gantry exec INSTANCE -- CMD ARGS")}
	}
	if args[1] == "--" { // what stands behind the first argument is not read as flags
		args = slices.Delete(slices.Clone(args), 1, 2)
	}
	if len(args) < 2 {
		return "", nil, usageError{fmt.Errorf("say which program to run: gantry exec %s -- sh", args[0])}
	}
	return args[0], args[1:], nil
}

func (c *cli) exec(ctx context.Context, o *execOptions, where string, program []string) (int, error) {
	api, err := c.connect()
	if err != nil {
		return 0, err
	}
	id, err := runningInstance(ctx, api, where)
	if err != nil {
		return 0, err
	}
	opt := client.ExecOptions{Container: o.container, Command: program, Dir: o.dir, TTY: o.tty, Stdout: c.out, Stderr: c.err}
	if o.stdin {
		opt.Stdin = c.in
	}
	if o.tty {
		leave, err := c.enterTerminal(ctx, &opt)
		if err != nil {
			return 0, err
		}
		defer leave()
	}
	return api.Exec(ctx, id, opt)
}

func runningInstance(ctx context.Context, api *client.Client, where string) (model.InstanceID, error) {
	t, err := find(ctx, api, where)
	if err != nil {
		return "", err
	}
	if t.app == "" {
		return t.instances[0].ID, nil // the server says when it does not run
	}
	for _, i := range t.instances {
		if i.Status.Phase == model.PhaseRunning {
			return i.ID, nil
		}
	}
	return "", &exitError{exitRefused, fmt.Errorf("%s has no running instance", t.app), fmt.Sprintf("gantry status %s says why", t.app)}
}

// enterTerminal hands the terminal over to the program: keys go to it unread, and it learns the terminal's size.
func (c *cli) enterTerminal(ctx context.Context, o *client.ExecOptions) (leave func(), err error) {
	leave = func() {}
	if c.term.size == nil {
		return leave, nil // no terminal here: the program gets one of its own all the same
	}
	size := func() client.Size {
		w, h := c.term.size()
		return client.Size{Columns: uint16(w), Rows: uint16(h)}
	}
	o.Size = size()
	if f, ok := c.in.(*os.File); ok && o.Stdin != nil && term.IsTerminal(int(f.Fd())) {
		old, err := term.MakeRaw(int(f.Fd()))
		if err != nil {
			return nil, fmt.Errorf("prepare the terminal: %w", err)
		}
		leave = func() { term.Restore(int(f.Fd()), old) }
	}
	sizes := make(chan client.Size)
	o.Resize = sizes
	go followSize(ctx, sizes, size)
	return leave, nil
}

// followSize sends the terminal's size whenever it changes, until ctx ends with the process.
func followSize(ctx context.Context, sizes chan<- client.Size, size func() client.Size) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	defer signal.Stop(changed)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			select {
			case sizes <- size():
			case <-ctx.Done():
				return
			}
		}
	}
}
