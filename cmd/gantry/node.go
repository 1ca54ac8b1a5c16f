package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// shutCommand makes a command that closes a node to new work, or opens it.
func (c *cli) shutCommand(cmd *cobra.Command, said string, send func(ctx context.Context, api *client.Client, node model.NodeID) (client.NodeDetail, error)) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = args(1, 1), c.completeNode
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := c.connect()
		if err != nil {
			return err
		}
		n, err := send(cmd.Context(), api, model.NodeID(args[0]))
		if err != nil {
			return err
		}
		return c.print(n, func(*show.Printer) { c.say(said, n.Name, n.Availability) })
	}
	return cmd
}

func (c *cli) cordonCommand() *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use: "cordon NODE", Short: "Let a node take no new work",
		Long:    "Let a node take no new work. What runs on it goes on.",
		Example: "  gantry node cordon node-a --why 'new disks on Monday'",
	}
	cmd.Flags().StringVar(&why, "why", "", "`reason`, for other operators and for those who ask why an app waits")
	return c.shutCommand(cmd, "%[1]s takes no new work; gantry node uncordon %[1]s ends that",
		func(ctx context.Context, api *client.Client, node model.NodeID) (client.NodeDetail, error) {
			return api.CordonNode(ctx, node, why)
		})
}

func (c *cli) uncordonCommand() *cobra.Command {
	return c.shutCommand(&cobra.Command{
		Use: "uncordon NODE", Short: "Let a node take work again",
		Long:    "Let a node take work again, whether it was cordoned or drained. Maintenance windows stay.",
		Example: "  gantry node uncordon node-a",
	}, "%s is %s",
		func(ctx context.Context, api *client.Client, node model.NodeID) (client.NodeDetail, error) {
			return api.UncordonNode(ctx, node)
		})
}

// windowOptions are the flags of `gantry node maintenance`.
type windowOptions struct {
	start           string
	duration, every model.Duration
	drain, clear    bool
	why             string
}

func (c *cli) maintenanceCommand() *cobra.Command {
	var o windowOptions
	cmd := &cobra.Command{
		Use: "maintenance NODE", Short: "Say when a node will be worked on",
		Long: `Say when a node will be worked on: within the window it takes no new work, and with --drain its instances are moved away
when it begins. Each call adds a window; without flags those that are set are shown.`,
		Example: `  gantry node maintenance node-a --start '2026-01-31 22:00' --duration 2h --drain
  gantry node maintenance node-a --start 2026-01-31T22:00:00Z --duration 1h --every 168h --why firmware
  gantry node maintenance node-a --start now --duration 30m
  gantry node maintenance node-a --clear`,
		Args: args(1, 1), ValidArgsFunction: c.completeNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.maintenance(cmd, model.NodeID(args[0]), &o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.start, "start", "", "`time` at which it begins: 2026-01-31T22:00:00Z, '2026-01-31 22:00' in local time, now, or +2h from now")
	f.Var(amount[model.Duration]{&o.duration, model.ParseDuration, "duration"}, "duration", "how long it takes, such as 2h")
	f.Var(amount[model.Duration]{&o.every, model.ParseDuration, "duration"}, "every", "after how long it begins again, such as 168h for a week (default once)")
	f.BoolVar(&o.drain, "drain", false, "move the node's instances away when it begins")
	f.StringVar(&o.why, "why", "", "`what` is done")
	f.BoolVar(&o.clear, "clear", false, "forget all windows of the node")
	return cmd
}

func (c *cli) maintenance(cmd *cobra.Command, node model.NodeID, o *windowOptions) error {
	add := slices.ContainsFunc([]string{"start", "duration", "every", "drain", "why"}, cmd.Flags().Changed)
	if add && o.clear {
		return usageError{errors.New("--clear forgets all windows; it goes with no other flag")}
	}
	var window model.Maintenance
	if add {
		var err error
		if window, err = o.window(c.now()); err != nil {
			return usageError{err}
		}
	}
	api, err := c.connect()
	if err != nil {
		return err
	}
	n, err := api.Node(cmd.Context(), node)
	if err != nil {
		return err
	}
	next := model.NodeSettings{ID: n.ID}
	if n.Settings != nil {
		next = *n.Settings
	}
	switch {
	case o.clear:
		next.Windows = nil
	case add && !slices.ContainsFunc(next.Windows, func(w model.Maintenance) bool { return sameWindow(w, window) }):
		next.Windows = append(slices.Clone(next.Windows), window)
	}
	if o.clear || add {
		if errs := next.Validate(); len(errs) > 0 {
			return usageError{errs}
		}
		if n, err = api.PutNodeSettings(cmd.Context(), n.ID, &next); err != nil {
			return err
		}
	}
	return c.print(n, func(p *show.Printer) {
		if n.Settings == nil || len(n.Settings.Windows) == 0 {
			c.say("no maintenance of %s is planned", n.Name)
			return
		}
		p.Windows(n.Settings.Windows)
	})
}

func sameWindow(a, b model.Maintenance) bool {
	same := a.Start.Equal(b.Start)
	a.Start = b.Start
	return same && a == b
}

func (o *windowOptions) window(now time.Time) (model.Maintenance, error) {
	if o.start == "" || o.duration == 0 {
		return model.Maintenance{}, errors.New("a window needs --start and --duration")
	}
	start, err := parseTime(o.start, now)
	return model.Maintenance{Start: start, Duration: o.duration, Every: o.every, Drain: o.drain, Why: o.why}, err
}

// parseTime reads a time as people write it.
func parseTime(text string, now time.Time) (time.Time, error) {
	if text == "now" {
		return now.UTC().Truncate(time.Second), nil
	}
	if after, ok := strings.CutPrefix(text, "+"); ok {
		d, err := model.ParseDuration(after)
		return now.UTC().Truncate(time.Second).Add(d.Std()), err
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t.UTC(), nil
	}
	for _, layout := range []string{"2006-01-02 15:04", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02T15:04:05"} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("--start %q is no time: write 2026-01-31T22:00:00Z, '2026-01-31 22:00', now or +2h", text)
}
