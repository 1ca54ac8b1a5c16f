package main

import (
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// scaleCommand returns `gantry scale`.
func (c *cli) scaleCommand() *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use:     "scale APP N",
		Short:   "Set how many instances of an app run",
		Long:    "Set how many instances of an app run. 0 suspends it: the app stays, and scaling up starts it again.",
		Example: "  gantry scale web 5",
		Args:    args(2, 2), ValidArgsFunction: c.completeApp,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := parseCount(args[1])
			if err != nil {
				return err
			}
			return c.change(cmd.Context(), args[0], w, func(api *client.Client, id model.AppID) (client.Change, error) {
				return api.ScaleApp(cmd.Context(), id, n)
			})
		},
	}
	w.flags(cmd)
	return cmd
}
