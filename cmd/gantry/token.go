package main

import (
	"fmt"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// tokenCommand returns `gantry token`.
func (c *cli) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Aliases: []string{"tokens"}, Short: "Let machines join the cluster",
		Long: `Make and delete join tokens. A machine that shows one becomes an agent or a server of the cluster. A token holds the fingerprint
of the cluster's authority, so that a machine joins this cluster and no other.`,
		Example: `  gantry token create --role agent
  gantry token ls
  gantry token rm TOKEN-ID`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.tokenCreateCommand(), c.tokenListCommand(), c.tokenRemoveCommand())
	return cmd
}

func (c *cli) tokenCreateCommand() *cobra.Command {
	var role string
	ttl, uses := model.Duration(time.Hour), 1
	cmd := &cobra.Command{
		Use: "create", Short: "Make a join token and print it",
		Long: "Make a join token and print it. It is not shown again: only a hash of it is kept.",
		Example: `  gantry token create --role agent --ttl 1h
  gantry token create --role server --ttl 10m
  gantry token create --role agent --uses 0 --ttl 24h > token     # for any number of machines`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			asked, err := model.ParseMachineRole(role)
			if err != nil {
				return usageError{fmt.Errorf("--role: %w", err)}
			}
			api, err := c.connect()
			if err != nil {
				return err
			}
			t, err := api.CreateToken(cmd.Context(), client.NewToken{Role: asked, TTL: ttl, Uses: &uses})
			if err != nil {
				return err
			}
			return c.print(t, func(*show.Printer) {
				c.say("%s", t.Token)
				at := append(t.Servers, "HOST:PORT")[0]
				fmt.Fprintf(c.err, "good until %s for %s; on the machine that joins:\n  gantry %s --join %s --token ...\n",
					t.Expires.UTC().Format(time.RFC3339), show.Uses(t.Uses), t.Role, at)
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", string(model.AgentMachine), "what may join with it: agent or server")
	cmd.Flags().Var((*durationFlag)(&ttl), "ttl", "how long it can be used")
	cmd.Flags().IntVar(&uses, "uses", uses, "how many machines may join with it, 0 for any number")
	completeWords(cmd, "role", string(model.AgentMachine), string(model.ServerMachine))
	return cmd
}

func (c *cli) tokenListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List join tokens", Example: "  gantry token ls", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			list, err := api.Tokens(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(p *show.Printer) {
				if len(list) == 0 {
					c.say("no join tokens; gantry token create makes one")
					return
				}
				p.Tokens(list)
			})
		},
	}
}

func (c *cli) tokenRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm ID...", Aliases: []string{"remove"}, Short: "Make join tokens useless",
		Long:    "Make join tokens useless. Machines that joined with them stay.",
		Example: "  gantry token rm 3f9a0c11",
		Args:    args(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			return c.removeEach(args, "token", func(id string) (string, error) { return id, api.DeleteToken(cmd.Context(), id) })
		},
	}
}
