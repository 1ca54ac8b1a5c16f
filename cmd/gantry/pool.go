package main

import (
	"errors"
	"slices"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// poolCommand returns `gantry pool`.
func (c *cli) poolCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "pool", Aliases: []string{"pools"},
		Short: "Say how parts of the nodes are used",
		Long: `Say how pools are used. A pool is a part of the nodes: each node names one when it joins, and each app runs on one, named
with pool: in its file, or --pool. Both are in the pool default when they name none.`,
		Example: `  gantry pool ls
  gantry pool set gpu --placement pack --defragment perform
  gantry pool rm gpu`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.poolListCommand(), c.poolSetCommand(), c.poolRemoveCommand())
	return cmd
}

func (c *cli) poolListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List pools", Example: "  gantry pool ls", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			list, err := api.Pools(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(p *show.Printer) { p.Pools(list) })
		},
	}
}

func (c *cli) poolSetCommand() *cobra.Command {
	var placement, spread, defragment string
	cmd := &cobra.Command{
		Use: "set POOL", Short: "Say how a pool is used",
		Long: `Say how a pool is used; only what is named changes.

--placement is how nodes are chosen for apps that do not say: pack uses few nodes and keeps free room in shapes that are
asked for, spread uses the emptiest node, balanced keeps each node's resources used to the same degree.

--spread is whether apps that do not say how their instances lie to each other have them evenly over the zones of the pool's
nodes: zones, or off, which leaves it to --placement.

--defragment is whether instances are moved so that free room comes in larger pieces: off, propose (gantry defrag shows what
would be gained) or perform.`,
		Example: `  gantry pool set default --placement spread
  gantry pool set batch --spread off
  gantry pool set gpu --defragment perform`,
		Args: args(1, 1), ValidArgsFunction: first(c.completePools),
		RunE: func(cmd *cobra.Command, args []string) error {
			if placement == "" && spread == "" && defragment == "" {
				return usageError{errors.New("say what to set: --placement, --spread or --defragment")}
			}
			api, err := c.connect()
			if err != nil {
				return err
			}
			list, err := api.Pools(cmd.Context())
			if err != nil {
				return err
			}
			pool := model.Pool{Name: args[0]}
			if i := slices.IndexFunc(list, func(p client.PoolDetail) bool { return p.Name == args[0] }); i >= 0 {
				pool = list[i].Pool
			}
			if placement != "" {
				pool.Placement = model.Policy(placement)
			}
			if spread != "" {
				pool.Spread = model.Spreading(spread)
			}
			if defragment != "" {
				pool.Defragment = model.Defragment(defragment)
			}
			if errs := pool.Validate(); len(errs) > 0 {
				return usageError{errs}
			}
			now, err := api.PutPool(cmd.Context(), &pool)
			if err != nil {
				return err
			}
			return c.print(now, func(p *show.Printer) { p.Pools([]client.PoolDetail{now}) })
		},
	}
	cmd.Flags().StringVar(&placement, "placement", "", "`policy` for apps that name none: pack, spread or balanced (default pack)")
	cmd.Flags().StringVar(&spread, "spread", "", "`what` apps that do not say are spread over: zones or off (default zones)")
	cmd.Flags().StringVar(&defragment, "defragment", "", "`what` the defragmenter may do: off, propose or perform (default propose)")
	completeWords(cmd, "placement", string(model.PolicyPack), string(model.PolicySpread), string(model.PolicyBalanced))
	completeWords(cmd, "spread", string(model.SpreadZones), string(model.SpreadOff))
	completeWords(cmd, "defragment", string(model.DefragmentOff), string(model.DefragmentPropose), string(model.DefragmentPerform))
	return cmd
}

func (c *cli) poolRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm POOL...", Aliases: []string{"remove"}, Short: "Give pools the defaults back",
		Long:    "Give pools the defaults back. Nodes and apps stay in them: a pool is there as long as a node names it.",
		Example: "  gantry pool rm gpu",
		Args:    args(1, -1), ValidArgsFunction: c.completePools,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			return c.removeEach(args, "the record of pool", func(name string) (string, error) {
				return name, api.DeletePool(cmd.Context(), name)
			})
		},
	}
}
