package main

import (
	"cmp"
	"slices"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/spf13/cobra"
)

// psCommand returns `gantry ps`.
func (c *cli) psCommand() *cobra.Command {
	var instances, all bool
	cmd := &cobra.Command{
		Use:   "ps [APP]",
		Short: "List apps, or the instances of an app",
		Long: `List all apps: their state, how many instances are healthy of those asked for, where they are reached, and why
something is not as asked. With an app, or -i, list instances.`,
		Example: `  gantry ps
  gantry ps web
  gantry ps -i -a`,
		Args: args(0, 1), ValidArgsFunction: c.completeApp,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			if len(args) == 0 && !instances && !all {
				return c.listApps(cmd, api)
			}
			filter := client.InstanceFilter{All: all}
			if len(args) == 1 {
				if filter.App, err = appID(args[0]); err != nil {
					return err
				}
			}
			return c.listInstances(cmd, api, filter)
		},
	}
	cmd.Flags().BoolVarP(&instances, "instances", "i", false, "list instances instead of apps")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list instances, those that are over and still kept included")
	return cmd
}

func (c *cli) listApps(cmd *cobra.Command, api *client.Client) error {
	apps, err := api.Apps(cmd.Context())
	if err != nil {
		return err
	}
	var list []client.Instance
	if !c.json && len(apps) > 0 {
		if list, err = api.Instances(cmd.Context(), client.InstanceFilter{}); err != nil {
			return err
		}
	}
	return c.print(apps, func(p *show.Printer) {
		if len(apps) == 0 {
			c.say("no apps yet; run one with gantry run IMAGE, or see gantry run --help")
			return
		}
		p.Apps(apps, list)
	})
}

func (c *cli) listInstances(cmd *cobra.Command, api *client.Client, filter client.InstanceFilter) error {
	if filter.App != "" { // to tell an app without instances from one that does not exist
		if _, err := api.App(cmd.Context(), filter.App); err != nil {
			return aboutApp(filter.App, err)
		}
	}
	list, err := api.Instances(cmd.Context(), filter)
	if err != nil {
		return err
	}
	slices.SortStableFunc(list, func(a, b client.Instance) int { return cmp.Compare(a.App, b.App) })
	return c.print(list, func(p *show.Printer) {
		if len(list) == 0 {
			c.say("no instances")
			return
		}
		p.Instances(list, filter.App == "")
	})
}
