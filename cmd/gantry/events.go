package main

import (
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// eventsCommand returns `gantry events`.
func (c *cli) eventsCommand() *cobra.Command {
	var follow bool
	var app string
	var tail int
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened, and follow what happens",
		Long:  "Show what happened in the cluster, oldest first, and with -f what happens. With --json every event is one line.",
		Example: `  gantry events -f
  gantry events --app web --tail 20`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var filter client.EventFilter
			if app != "" {
				id, err := appID(app)
				if err != nil {
					return err
				}
				filter.App = id
			}
			api, err := c.connect()
			if err != nil {
				return err
			}
			list, err := api.Events(cmd.Context(), filter)
			if err != nil {
				return err
			}
			if tail >= 0 {
				list = list[max(0, len(list)-tail):]
			}
			for i := range list {
				if err := c.printEvent(list[i]); err != nil {
					return err
				}
				filter.Since = list[i].Seq
			}
			if !follow {
				return nil
			}
			return api.FollowEvents(cmd.Context(), filter, c.printEvent)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new events until interrupted")
	cmd.Flags().StringVar(&app, "app", "", "only those of this `app`")
	cmd.Flags().IntVar(&tail, "tail", -1, "begin with this many (`N`) of the newest; -1 with all that are kept")
	c.completeFlag(cmd, "app")
	return cmd
}

func (c *cli) printEvent(e model.Event) error {
	if c.json {
		return c.printJSON(e, "")
	}
	c.printer().Event(&e)
	return nil
}
