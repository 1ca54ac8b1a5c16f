package main

import (
	"context"
	"strings"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/spf13/cobra"
)

// completeWait bounds how long a shell waits for the cluster when it completes a word.
const completeWait = time.Second

type completer = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective)

// complete makes a completer of what list fetches. A cluster that cannot be asked completes nothing.
func (c *cli) complete(cmd *cobra.Command, word string, list func(context.Context, *client.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeWait)
	defer cancel()
	api, err := c.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := list(ctx, api)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return withPrefix(all, word), cobra.ShellCompDirectiveNoFileComp
}

func withPrefix(all []string, word string) []string {
	var fit []string
	for _, s := range all {
		if strings.HasPrefix(s, word) {
			fit = append(fit, s)
		}
	}
	return fit
}

// completeApps completes app ids, with a leading slash where the user began with one.
func (c *cli) completeApps(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	return c.complete(cmd, word, func(ctx context.Context, api *client.Client) ([]string, error) {
		apps, err := api.Apps(ctx)
		return appNames(apps, word), err
	})
}

func appNames(apps []client.AppSummary, word string) []string {
	var names []string
	for _, a := range apps {
		name := string(a.ID)
		if !strings.HasPrefix(word, "/") {
			name = strings.TrimPrefix(name, "/")
		}
		names = append(names, name)
	}
	return names
}

// completeApp completes the first argument.
func (c *cli) completeApp(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return first(c.completeApps)(cmd, args, word)
}

// completeTarget completes the first argument as an app or an instance.
func (c *cli) completeTarget(all bool) completer {
	return first(func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return c.complete(cmd, word, func(ctx context.Context, api *client.Client) ([]string, error) {
			apps, err := api.Apps(ctx)
			if err != nil {
				return nil, err
			}
			names := appNames(apps, word)
			list, err := api.Instances(ctx, client.InstanceFilter{All: all})
			for _, i := range list {
				names = append(names, string(i.ID))
			}
			return names, err
		})
	})
}

// completeDeployment completes the first argument as a deployment that has not ended.
func (c *cli) completeDeployment(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return first(func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return c.complete(cmd, word, func(ctx context.Context, api *client.Client) ([]string, error) {
			list, err := api.Deployments(ctx, client.DeploymentFilter{Active: true})
			var ids []string
			for _, d := range list {
				ids = append(ids, string(d.ID), string(d.App))
			}
			return ids, err
		})
	})(cmd, args, word)
}

// completeNode completes the first argument as a node.
func (c *cli) completeNode(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return first(func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return c.complete(cmd, word, func(ctx context.Context, api *client.Client) ([]string, error) {
			list, err := api.Nodes(ctx)
			var ids []string
			for _, n := range list {
				ids = append(ids, string(n.ID), n.Name)
			}
			return ids, err
		})
	})(cmd, args, word)
}

// list makes a completer of what a call lists, for each argument.
func (c *cli) list(fetch func(context.Context, *client.Client) ([]string, error)) completer {
	return func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return c.complete(cmd, word, fetch)
	}
}

// names returns the name of each of a list.
func names[T any](list []T, name func(*T) string) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = name(&list[i])
	}
	return out
}

func (c *cli) completeRoles(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return c.list(func(ctx context.Context, api *client.Client) ([]string, error) {
		list, err := api.Roles(ctx)
		return names(list, func(r *client.RoleDetail) string { return string(r.ID) }), err
	})(cmd, args, word)
}

func (c *cli) completePools(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return c.list(func(ctx context.Context, api *client.Client) ([]string, error) {
		list, err := api.Pools(ctx)
		return names(list, func(p *client.PoolDetail) string { return p.Name }), err
	})(cmd, args, word)
}

func (c *cli) completeReservations(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return c.list(func(ctx context.Context, api *client.Client) ([]string, error) {
		list, err := api.Reservations(ctx)
		return names(list, func(r *client.ReservationDetail) string { return r.ID }), err
	})(cmd, args, word)
}

func (c *cli) completeVolumes(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return c.list(func(ctx context.Context, api *client.Client) ([]string, error) {
		list, err := api.Volumes(ctx, client.VolumeFilter{})
		return names(list, func(v *client.VolumeDetail) string { return string(v.ID) }), err
	})(cmd, args, word)
}

// completeNodes completes a flag's value as a node.
func (c *cli) completeNodes(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	return c.completeNode(cmd, nil, word)
}

func first(f completer) completer {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, word)
	}
}

// completeFlag completes the value of a flag as an app.
func (c *cli) completeFlag(cmd *cobra.Command, flag string) {
	registerCompletion(cmd, flag, c.completeApps)
}

// completeWords completes the value of a flag as one of some words.
func completeWords(cmd *cobra.Command, flag string, words ...string) {
	registerCompletion(cmd, flag, func(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return withPrefix(words, word), cobra.ShellCompDirectiveNoFileComp
	})
}

func registerCompletion(cmd *cobra.Command, flag string, f completer) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic("gantry: " + err.Error()) // the command has no such flag
	}
}
