package main

import (
	"strings"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// volumeCommand returns `gantry volume`.
func (c *cli) volumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "volume", Aliases: []string{"volumes"},
		Short: "List persistent volumes, or delete some",
		Long: `List persistent volumes, or delete some. They outlive the instances that use them, and apps that are removed: their data
is kept until it is deleted here.`,
		Example: `  gantry volume ls
  gantry volume rm /shop/db:2:data`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.volumeListCommand(), c.volumeRemoveCommand())
	return cmd
}

func (c *cli) volumeListCommand() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: "ls [APP]", Aliases: []string{"list"}, Short: "List persistent volumes",
		Example: `  gantry volume ls
  gantry volume ls shop/db --node node-a`,
		Args: args(0, 1), ValidArgsFunction: c.completeApp,
		RunE: func(cmd *cobra.Command, args []string) error {
			filter := client.VolumeFilter{Node: model.NodeID(node)}
			if len(args) == 1 {
				id, err := appID(args[0])
				if err != nil {
					return err
				}
				filter.App = id
			}
			api, err := c.connect()
			if err != nil {
				return err
			}
			list, err := api.Volumes(cmd.Context(), filter)
			if err != nil {
				return err
			}
			return c.print(list, func(p *show.Printer) {
				if len(list) == 0 {
					c.say("no persistent volumes")
					return
				}
				p.Volumes(list)
			})
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "only those on the node with this `id` or name")
	registerCompletion(cmd, "node", c.completeNodes)
	return cmd
}

func (c *cli) volumeRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm VOLUME...", Aliases: []string{"remove"}, Short: "Delete persistent volumes and their data",
		Long: `Delete persistent volumes and their data. A volume that an instance has is kept. The node deletes the data in the
background; of a node that is gone only the record is deleted, so that the instance can start anew elsewhere.`,
		Example: "  gantry volume rm /shop/db:2:data",
		Args:    args(1, -1), ValidArgsFunction: c.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			done := []client.VolumeDetail{}
			var failed error
			for _, arg := range args {
				v, err := api.DeleteVolume(cmd.Context(), model.VolumeID("/"+strings.TrimPrefix(arg, "/")))
				if err != nil {
					failed = err
					break
				}
				done = append(done, v)
			}
			if err := c.print(done, func(*show.Printer) {
				for _, v := range done {
					c.say("%s is being deleted", v.ID)
				}
			}); err != nil {
				return err
			}
			return failed
		},
	}
}
