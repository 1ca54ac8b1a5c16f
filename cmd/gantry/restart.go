package main

import (
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// restartCommand returns `gantry restart`.
func (c *cli) restartCommand() *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use:     "restart APP",
		Short:   "Replace all instances of an app by new ones",
		Long:    "Replace all instances of an app by new ones of the same version, step by step as its update policy says.",
		Example: "  gantry restart web",
		Args:    args(1, 1), ValidArgsFunction: c.completeApp,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.change(cmd.Context(), args[0], w, func(api *client.Client, id model.AppID) (client.Change, error) {
				return api.RestartApp(cmd.Context(), id)
			})
		},
	}
	w.flags(cmd)
	return cmd
}
