package main

import (
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/spf13/cobra"
)

// versionsCommand returns `gantry versions`.
func (c *cli) versionsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "versions APP",
		Short:   "List the kept versions of an app",
		Long:    "List the kept versions of an app, newest first. gantry rollback APP --to VERSION deploys one again.",
		Example: "  gantry versions web",
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
			list, err := api.Versions(cmd.Context(), id)
			if err != nil {
				return aboutApp(id, err)
			}
			return c.print(list, func(p *show.Printer) { p.Versions(list) })
		},
	}
}
