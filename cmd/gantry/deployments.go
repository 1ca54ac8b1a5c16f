package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// deploymentsCommand returns `gantry deployments`.
func (c *cli) deploymentsCommand() *cobra.Command {
	var active bool
	cmd := &cobra.Command{
		Use: "deployments [APP]", Aliases: []string{"deployment"},
		Short: "List deployments, or pause, resume and cancel one",
		Long:  "List deployments, newest first. A deployment is the way from one version of an app to the next.",
		Example: `  gantry deployments
  gantry deployments web --active
  gantry deployment pause ID`,
		Args: args(0, 1), ValidArgsFunction: c.completeApp,
		RunE: func(cmd *cobra.Command, args []string) error {
			filter := client.DeploymentFilter{Active: active}
			if len(args) == 1 {
				id, err := appID(args[0])
				if err != nil {
					return err
				}
				filter.App = id
			}
			api, err := c.connect()
			if err != nil {
				return err
			}
			list, err := api.Deployments(cmd.Context(), filter)
			if err != nil {
				return err
			}
			return c.print(list, func(p *show.Printer) {
				if len(list) == 0 {
					c.say("no deployments")
					return
				}
				p.Deployments(list, filter.App == "")
			})
		},
	}
	cmd.Flags().BoolVar(&active, "active", false, "only those that have not ended")
	cmd.AddCommand(c.pauseCommand(), c.resumeCommand(), c.cancelCommand())
	return cmd
}

func (c *cli) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pause ID", Short: "Let a deployment take no further step",
		Long:    "Let a deployment take no further step until it is resumed. Instances that run go on running. ID may be /APP, for its newest.",
		Example: "  gantry deployment pause /web",
		Args:    args(1, 1), ValidArgsFunction: c.completeDeployment,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, id, err := c.deployment(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			d, err := api.PauseDeployment(cmd.Context(), id)
			if err != nil {
				return err
			}
			return c.print(d, func(*show.Printer) {
				c.say("%s: deployment %s is paused; gantry deployment resume %s lets it go on", d.App, d.ID, d.ID)
			})
		},
	}
}

func (c *cli) resumeCommand() *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use: "resume ID", Short: "Let a paused deployment go on",
		Long:    "Let a paused deployment go on, and wait for its end. ID may be /APP, for its newest.",
		Example: "  gantry deployment resume /web",
		Args:    args(1, 1), ValidArgsFunction: c.completeDeployment,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, id, err := c.deployment(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			d, err := api.ResumeDeployment(cmd.Context(), id)
			if err != nil {
				return err
			}
			return c.await(cmd.Context(), api, w, client.Change{App: d.App, Version: d.To, Deployment: d.ID})
		},
	}
	w.flags(cmd)
	return cmd
}

func (c *cli) cancelCommand() *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use: "cancel ID", Short: "Stop a deployment and go back",
		Long:    "Stop a deployment, go back to the last version that was healthy, and wait for that. ID may be /APP, for its newest.",
		Example: "  gantry deployment cancel /web",
		Args:    args(1, 1), ValidArgsFunction: c.completeDeployment,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, id, err := c.deployment(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			d, err := api.CancelDeployment(cmd.Context(), id)
			if err != nil {
				return err
			}
			app, err := api.App(cmd.Context(), d.App)
			if err != nil {
				return aboutApp(d.App, err)
			}
			back := app.Deployment
			if back == nil || back.ID == d.ID { // there was nothing to go back to
				return c.print(d, func(*show.Printer) { c.say("%s: deployment %s is cancelled", d.App, d.ID) })
			}
			if !w.not {
				c.say("%s: deployment %s is cancelled; %s leads back to version %d", d.App, d.ID, back.ID, back.To)
			}
			return c.await(cmd.Context(), api, w, client.Change{App: d.App, Version: back.To, Deployment: back.ID})
		},
	}
	w.flags(cmd)
	return cmd
}

// deployment finds the deployment that an argument names: by its id, or by its app as /APP.
func (c *cli) deployment(ctx context.Context, arg string) (*client.Client, model.DeploymentID, error) {
	api, err := c.connect()
	if err != nil || !strings.HasPrefix(arg, "/") {
		return api, model.DeploymentID(arg), err
	}
	id, err := appID(arg)
	if err != nil {
		return nil, "", err
	}
	app, err := api.App(ctx, id)
	if err != nil {
		return nil, "", aboutApp(id, err)
	}
	if app.Deployment == nil {
		return nil, "", &exitError{exitNotFound, fmt.Errorf("%s has no deployment", id), ""}
	}
	return api, app.Deployment.ID, nil
}
