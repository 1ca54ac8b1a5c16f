package main

import (
	"cmp"
	"strings"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// defragCommand returns `gantry defrag`.
func (c *cli) defragCommand() *cobra.Command {
	var pool string
	cmd := &cobra.Command{
		Use: "defrag", Short: "Show which moves would leave free room in larger pieces",
		Long: `Show which instances could be moved so that free room comes in larger pieces, and what each move gains. Nothing is moved by
this command: a pool whose moves Gantry may make by itself is set so with gantry pool set POOL --defragment perform. Moves keep
to the update policies of apps.`,
		Example: `  gantry defrag
  gantry defrag --pool gpu`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			moves, err := api.Moves(cmd.Context(), pool)
			if err != nil {
				return err
			}
			if c.json {
				return c.print(moves, nil)
			}
			pools, err := api.Pools(cmd.Context())
			if err != nil {
				return err
			}
			c.sayMoves(moves, pools, pool)
			return nil
		},
	}
	cmd.Flags().StringVar(&pool, "pool", "", "only moves within the pool with this `name`")
	registerCompletion(cmd, "pool", c.completePools)
	return cmd
}

// sayMoves prints proposals, and which pools have what done about them.
func (c *cli) sayMoves(moves []model.Move, pools []client.PoolDetail, only string) {
	by := map[model.Defragment][]string{}
	for _, p := range pools {
		if only == "" || only == p.Name {
			mode := cmp.Or(p.Defragment, model.DefragmentPropose)
			by[mode] = append(by[mode], p.Name)
		}
	}
	if len(moves) == 0 {
		c.say("no moves are proposed: none would leave free room in larger pieces")
	} else {
		c.printer().Moves(moves)
	}
	for _, line := range []struct {
		mode model.Defragment
		text string
	}{
		{model.DefragmentPropose, "only proposed in %s; gantry pool set POOL --defragment perform lets Gantry make such moves"},
		{model.DefragmentPerform, "made by Gantry itself in %s, one after the other"},
		{model.DefragmentOff, "not looked for in %s; gantry pool set POOL --defragment propose changes that"},
	} {
		if names := by[line.mode]; len(names) > 0 && (len(moves) > 0 || line.mode == model.DefragmentOff) {
			c.say("Moves are "+line.text, strings.Join(names, ", "))
		}
	}
}
