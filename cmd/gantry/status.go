package main

import (
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/spf13/cobra"
)

// shownEvents is how many events of an app its status shows.
const shownEvents = 10

// statusCommand returns `gantry status`.
func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "status APP",
		Short:   "Show all about one app",
		Long:    "Show all about one app: its deployment, instances, versions and newest events, and why something is not as asked.",
		Example: "  gantry status web",
		Args:    args(1, 1), ValidArgsFunction: c.completeApp,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := appID(args[0])
			if err != nil {
				return err
			}
			api, err := c.connect()
			if err != nil {
				return err
			}
			var s show.Status
			if s.App, err = api.App(cmd.Context(), id); err != nil {
				return aboutApp(id, err)
			}
			if s.Versions, err = api.Versions(cmd.Context(), id); err != nil {
				return aboutApp(id, err)
			}
			if s.Events, err = api.Events(cmd.Context(), client.EventFilter{App: id}); err != nil {
				return err
			}
			s.Events = s.Events[max(0, len(s.Events)-shownEvents):]
			return c.print(s, func(p *show.Printer) { p.Status(&s) })
		},
	}
}
