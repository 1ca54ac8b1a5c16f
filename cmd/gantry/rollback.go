package main

import (
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// rollbackCommand returns `gantry rollback`.
func (c *cli) rollbackCommand() *cobra.Command {
	var w waiting
	var to uint64
	cmd := &cobra.Command{
		Use:   "rollback APP",
		Short: "Deploy an earlier version of an app again",
		Long:  "Deploy an earlier version of an app again: the newest earlier one that ran something else, or the one of --to.",
		Example: `  gantry rollback web
  gantry rollback web --to 3`,
		Args: args(1, 1), ValidArgsFunction: c.completeApp,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.change(cmd.Context(), args[0], w, func(api *client.Client, id model.AppID) (client.Change, error) {
				return api.RollbackApp(cmd.Context(), id, to)
			})
		},
	}
	cmd.Flags().Uint64Var(&to, "to", 0, "the `version` to go back to; gantry versions APP lists them")
	w.flags(cmd)
	return cmd
}
