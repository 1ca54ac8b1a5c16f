package main

import (
	"github.com/gantry-os/gantry/api/client"
	"github.com/spf13/cobra"
)

// rmCommand returns `gantry rm`.
func (c *cli) rmCommand() *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use: "rm APP...", Aliases: []string{"remove"},
		Short:   "Stop apps and remove them",
		Long:    "Stop all instances of apps and remove them with their versions. Host-path and persistent volumes keep their content; gantry volume rm deletes the latter.",
		Example: "  gantry rm web shop/api",
		Args:    args(1, -1), ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			var changes []client.Change
			for _, arg := range args {
				id, err := appID(arg)
				if err != nil {
					return err
				}
				ch, err := api.DeleteApp(cmd.Context(), id)
				if err != nil {
					return aboutApp(id, err)
				}
				changes = append(changes, ch)
			}
			return c.awaitAll(cmd.Context(), api, w, changes)
		},
	}
	w.flags(cmd)
	return cmd
}
