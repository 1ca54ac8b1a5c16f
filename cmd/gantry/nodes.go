package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/spf13/cobra"
)

// nodesCommand returns `gantry nodes`.
func (c *cli) nodesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "nodes [NODE]", Aliases: []string{"node"},
		Short: "List nodes, show all about one, or take one out of use",
		Long: `List the nodes of the cluster with what is taken of them, or show all about one, by its id or name. Cordon, drain and
maintenance take a node out of use for a while, remove for good.`,
		Example: `  gantry nodes
  gantry nodes node-a
  gantry node drain node-a --why 'new disks'`,
		Args: args(0, 1), ValidArgsFunction: c.completeNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			list, err := api.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return c.listNodes(cmd.Context(), api, list)
			}
			i := slices.IndexFunc(list, func(n client.NodeDetail) bool { return string(n.ID) == args[0] || n.Name == args[0] })
			if i < 0 {
				return &exitError{exitNotFound, fmt.Errorf("there is no node %s", args[0]), "gantry nodes lists them"}
			}
			instances, err := api.Instances(cmd.Context(), client.InstanceFilter{Node: list[i].ID})
			if err != nil {
				return err
			}
			return c.print(list[i], func(p *show.Printer) { p.Node(&list[i], instances) })
		},
	}
	cmd.AddCommand(c.cordonCommand(), c.uncordonCommand(), c.drainCommand(), c.maintenanceCommand(), c.removeNodeCommand())
	return cmd
}

// listNodes prints nodes, below what is wrong with the cluster as a whole.
func (c *cli) listNodes(ctx context.Context, api *client.Client, list []client.NodeDetail) error {
	if c.json {
		return c.print(list, nil)
	}
	info, err := api.Info(ctx)
	if err != nil {
		return err
	}
	if info.Notice != "" {
		c.say("%s\n", info.Notice)
	}
	c.printer().Nodes(list)
	return nil
}
