package main

import (
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/spf13/cobra"
)

// clusterCommand returns `gantry cluster`.
func (c *cli) clusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cluster", Short: "Look after the cluster as a whole", Args: noSuchCommand,
		Example: "  gantry cluster resume-replacement",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.resumeReplacementCommand())
	return cmd
}

func (c *cli) resumeReplacementCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resume-replacement", Short: "Replace instances on lost nodes though many nodes are lost",
		Long: `When many nodes are lost at once, Gantry replaces nothing that they ran until most of them are back: more likely the network or
the power failed than each of them. This goes on all the same, with what the nodes that are left can take.`,
		Example: "  gantry cluster resume-replacement",
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			info, err := api.ResumeReplacement(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(info, func(*show.Printer) { c.say("instances on lost nodes are replaced again, as their apps say") })
		},
	}
}
