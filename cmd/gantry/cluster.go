package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/spf13/cobra"
)

// clusterCommand returns `gantry cluster`.
func (c *cli) clusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cluster", Short: "Look after the cluster as a whole", Args: noSuchCommand,
		Example: `  gantry cluster status
  gantry cluster members
  gantry cluster remove server-c
  gantry cluster rotate-ca`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.clusterStatusCommand(), c.membersCommand(), c.promoteCommand(), c.removeServerCommand(), c.rotateCommand(), c.rotateAdminCommand(), c.resumeReplacementCommand())
	return cmd
}

func (c *cli) clusterStatusCommand() *cobra.Command {
	return c.showCluster(&cobra.Command{
		Use: "status", Short: "Show the servers, the store and what is wrong with them", Example: "  gantry cluster status",
	}, func(got *client.Cluster) (any, func(*show.Printer)) {
		return got, func(p *show.Printer) { p.Cluster(got) }
	})
}

func (c *cli) membersCommand() *cobra.Command {
	return c.showCluster(&cobra.Command{
		Use: "members", Short: "List the servers", Example: "  gantry cluster members",
	}, func(got *client.Cluster) (any, func(*show.Printer)) {
		return got.Servers, func(p *show.Printer) { p.Servers(got.Servers) }
	})
}

func (c *cli) showCluster(cmd *cobra.Command, show func(*client.Cluster) (any, func(*show.Printer))) *cobra.Command {
	cmd.Args = args(0, 0)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, err := c.connect()
		if err != nil {
			return err
		}
		got, err := api.Cluster(cmd.Context())
		if err != nil {
			return err
		}
		return c.print(show(&got))
	}
	return cmd
}

func (c *cli) promoteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "promote SERVER", Short: "Give a server its vote",
		Long:    "Give a server that has joined its vote. Servers do that for themselves once they have caught up.",
		Example: "  gantry cluster promote server-c",
		Args:    args(1, 1), ValidArgsFunction: first(c.completeServers),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			got, err := api.PromoteServer(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(got, func(*show.Printer) { c.say("server %s votes", args[0]) })
		},
	}
}

// handOverWait is how long a server that leads may take to be rid of that, so that it can be removed.
const handOverWait = 15 * time.Second

func (c *cli) removeServerCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove SERVER", Aliases: []string{"rm"}, Short: "Take a server out of the cluster",
		Long: `Take a server out of the cluster, dead or alive. It is refused when those that would be left could not go on. The server's
certificates are revoked: to come back it has to join anew, with an empty data directory.`,
		Example: "  gantry cluster remove server-c",
		Args:    args(1, 1), ValidArgsFunction: first(c.completeServers),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			gone, err := removeServer(cmd.Context(), api, args[0])
			if err != nil {
				return err
			}
			return c.print(gone, func(*show.Printer) { c.say("server %s is removed", gone.Name) })
		},
	}
}

// removeServer asks again while leadership is handed over.
func removeServer(ctx context.Context, api *client.Client, name string) (client.RemovedServer, error) {
	end := time.Now().Add(handOverWait)
	for {
		gone, err := api.RemoveServer(ctx, name)
		var refused *client.Error
		if !errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable || time.Now().After(end) {
			return gone, err
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return gone, context.Cause(ctx)
		}
	}
}

func (c *cli) rotateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rotate-ca", Short: "Replace the cluster's authority",
		Long: `Replace the cluster's authority without cutting any machine off: a new root is made, all machines come to trust it, all get
certificates of it, and the old root goes. gantry cluster status tells how it goes and what it waits for.`,
		Example: "  gantry cluster rotate-ca",
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			r, err := api.RotateCA(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(r, func(*show.Printer) { c.say("the rotation has begun; gantry cluster status tells how it goes") })
		},
	}
}

func (c *cli) rotateAdminCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rotate-admin", Short: "Replace the administrator's token",
		Long: `Replace the administrator's token and print the new one. Each server also puts it into the file admin.token of its data directory,
where the CLI of its machine finds it. All servers refuse the old one within seconds.`,
		Example: "  gantry cluster rotate-admin",
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			t, err := api.RotateAdmin(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(t, func(*show.Printer) {
				c.say("%s", t.Token)
				fmt.Fprintln(c.err, "who has the old one needs this one; servers keep it in admin.token of their data directories")
			})
		},
	}
}

// completeServers completes the names of servers.
func (c *cli) completeServers(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	return c.complete(cmd, word, func(ctx context.Context, api *client.Client) ([]string, error) {
		got, err := api.Cluster(ctx)
		var names []string
		for _, s := range got.Servers {
			names = append(names, s.Name)
		}
		return names, err
	})
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
