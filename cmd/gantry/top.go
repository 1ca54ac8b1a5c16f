package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/spf13/cobra"
)

// topCommand returns `gantry top`.
func (c *cli) topCommand() *cobra.Command {
	var once bool
	var every time.Duration
	cmd := &cobra.Command{
		Use:     "top",
		Short:   "Show what nodes and instances use",
		Long:    "Show what nodes and instances use now, beside what they have and may. On a terminal it is refreshed until Ctrl-C.",
		Example: "  gantry top\n  gantry top -1",
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			if once || c.json || !c.term.is {
				u, err := api.Usage(cmd.Context())
				if err != nil {
					return err
				}
				return c.print(u, func(p *show.Printer) { p.Usage(&u) })
			}
			return c.topLive(cmd.Context(), api, max(every, 100*time.Millisecond))
		},
	}
	cmd.Flags().BoolVarP(&once, "once", "1", false, "print once and end; the default when the output is no terminal")
	cmd.Flags().DurationVar(&every, "interval", 2*time.Second, "time between refreshes")
	return cmd
}

// Control sequences of terminals.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // a second screen, without a cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	homeAndWipe = "\x1b[H\x1b[J"
)

// topLive redraws the screen until ctx ends, which is how it is meant to end.
func (c *cli) topLive(ctx context.Context, api *client.Client, every time.Duration) error {
	fmt.Fprint(c.out, enterScreen)
	defer fmt.Fprint(c.out, leaveScreen)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		u, err := api.Usage(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var page bytes.Buffer
		p := c.printer()
		p.W = &page
		p.Usage(&u)
		_, height := c.term.size()
		lines := strings.Split(strings.TrimRight(page.String(), "\n"), "\n")
		fmt.Fprint(c.out, homeAndWipe+strings.Join(lines[:min(len(lines), max(height, 1))], "\n"))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
