package main

import (
	"errors"
	"net/http"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// roleCommand returns `gantry role`.
func (c *cli) roleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "role", Aliases: []string{"roles"},
		Short: "Share the cluster between groups of users",
		Long: `Share the cluster between roles. Roles form a tree; / is the whole cluster. A role may have a guarantee, which it gets back
from others when it needs it, a limit, which it and the roles below it never pass, and a weight in what it competes for with
its siblings. An app names its role with role: in its file, or --role.`,
		Example: `  gantry role ls
  gantry role set /analytics --guarantee cpus=20,memory=64GiB --limit cpus=80 --weight 2
  gantry role rm /analytics/batch`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.roleListCommand(), c.roleSetCommand(), c.roleRemoveCommand())
	return cmd
}

func (c *cli) roleListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List roles and what is taken in their name",
		Long: `List roles and what is taken in their name and in that of the roles below them. The share is the dominant one: of the
resource that a role has most of, the part of the cluster that it takes.`,
		Example: "  gantry role ls", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			list, err := api.Roles(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(p *show.Printer) { p.Roles(list) })
		},
	}
}

// roleOptions are the flags of `gantry role set`.
type roleOptions struct {
	guarantee, limit string
	weights          []string
}

func (c *cli) roleSetCommand() *cobra.Command {
	var o roleOptions
	cmd := &cobra.Command{
		Use: "set ROLE", Short: "Make a role, or change one",
		Long: `Make a role, or change what is named of one that exists. Amounts are cpus, memory, disk, gpus and the names of custom
resources; none takes them all away.`,
		Example: `  gantry role set /analytics --guarantee cpus=20,memory=64GiB --limit cpus=80 --weight 2
  gantry role set /analytics/batch --weight gpus=3
  gantry role set /analytics --guarantee none`,
		Args: args(1, 1), ValidArgsFunction: first(c.completeRoles),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := model.ParseRoleID(args[0])
			if err != nil {
				return usageError{err}
			}
			return c.setRole(cmd, id, &o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.guarantee, "guarantee", "", "`amounts` that it gets back from others when it needs them, such as cpus=20,memory=64GiB")
	f.StringVar(&o.limit, "limit", "", "`amounts` that it and the roles below it take at most")
	f.StringArrayVar(&o.weights, "weight", nil, "its part of what siblings compete for: a `number`, or RESOURCE=NUMBER for one resource; repeatable (default 1)")
	return cmd
}

func (c *cli) setRole(cmd *cobra.Command, id model.RoleID, o *roleOptions) error {
	api, err := c.connect()
	if err != nil {
		return err
	}
	old, err := api.Role(cmd.Context(), id)
	var e *client.Error
	if err != nil && (!errors.As(err, &e) || e.Status != http.StatusNotFound) {
		return err
	}
	made := err != nil
	role := old.Role
	role.ID = id
	if err := o.apply(cmd, &role); err != nil {
		return usageError{err}
	}
	now, err := api.PutRole(cmd.Context(), &role)
	if err != nil {
		return err
	}
	return c.print(now, func(p *show.Printer) {
		if made {
			c.say("made role %s", id)
		}
		p.Roles([]client.RoleDetail{now})
	})
}

// apply changes what was named.
func (o *roleOptions) apply(cmd *cobra.Command, r *model.Role) (err error) {
	if cmd.Flags().Changed("guarantee") {
		if r.Guarantee, err = parseQuota(o.guarantee); err != nil {
			return err
		}
	}
	if cmd.Flags().Changed("limit") {
		if r.Limit, err = parseQuota(o.limit); err != nil {
			return err
		}
	}
	if err := setWeights(r, o.weights); err != nil {
		return err
	}
	if errs := r.Validate(); len(errs) > 0 {
		return errs
	}
	return nil
}

func (c *cli) roleRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm ROLE...", Aliases: []string{"remove"}, Short: "Delete roles",
		Long:    "Delete roles. A role that others are below, or that apps or reservations name, is kept, and what needs it is listed.",
		Example: "  gantry role rm /analytics/batch /analytics",
		Args:    args(1, -1), ValidArgsFunction: c.completeRoles,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			return c.removeEach(args, "role", func(arg string) (string, error) {
				id, err := model.ParseRoleID(arg)
				if err != nil {
					return "", usageError{err}
				}
				return string(id), api.DeleteRole(cmd.Context(), id)
			})
		},
	}
}

// removeEach deletes one after the other, up to the first that cannot be, and says so of each. remove returns the full
// name of what it deleted.
func (c *cli) removeEach(args []string, what string, remove func(arg string) (string, error)) error {
	gone := []string{}
	var failed error
	for _, arg := range args {
		name, err := remove(arg)
		if err != nil {
			failed = err
			break
		}
		gone = append(gone, name)
	}
	err := c.print(gone, func(*show.Printer) {
		for _, name := range gone {
			c.say("%s %s is gone", what, name)
		}
	})
	return errors.Join(failed, err)
}
