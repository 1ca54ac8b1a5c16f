package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// waiting is how a command that changes something waits for it.
type waiting struct {
	not     bool
	timeout time.Duration
}

var errTimeout = errors.New("timed out")

func (w *waiting) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.not, "no-wait", false, "print the deployment's id and return at once")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 10*time.Minute, "how long to wait; the deployment goes on after that (exit code 5)")
}

// await shows a change until its deployment is over. With --json it prints the deployment at its end, or with
// --no-wait the change.
func (c *cli) await(ctx context.Context, api *client.Client, w waiting, ch client.Change) error {
	if w.not {
		if c.json {
			return c.printJSON(ch, "  ")
		}
		c.say("%s", ch.Deployment)
		return nil
	}
	d, err := c.watch(ctx, api, w, ch)
	if err != nil {
		return err
	}
	if c.json {
		if err := c.printJSON(d, "  "); err != nil {
			return err
		}
	}
	return c.conclude(ctx, api, ch, d)
}

// watch waits until the deployment is over, and shows its progress.
func (c *cli) watch(ctx context.Context, api *client.Client, w waiting, ch client.Change) (model.Deployment, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, w.timeout, errTimeout)
	defer cancel()
	p := c.progress()
	var last model.Deployment
	d, err := api.WaitDeployment(ctx, ch.Deployment, func(d model.Deployment) { last = d; p.show(d) })
	p.close()
	var e *client.Error
	switch {
	case err == nil:
		return d, nil
	case errors.Is(context.Cause(ctx), errTimeout):
		return d, timedOut(ctx, api, w, ch, last)
	case ctx.Err() != nil:
		return d, &exitError{exitInterrupted, fmt.Errorf("%s: stopped waiting for deployment %s", ch.App, ch.Deployment), goesOn(ch)}
	case errors.As(err, &e) && e.Status == http.StatusNotFound && last.Kind == model.DeployRemove:
		last.State = model.DeploySucceeded // it went with its app
		return last, nil
	}
	return d, fmt.Errorf("wait for deployment %s: %w", ch.Deployment, err)
}

// timedOut says what the deployment still waits for, as the app tells it now.
func timedOut(ctx context.Context, api *client.Client, w waiting, ch client.Change, last model.Deployment) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	why := last.Message
	if app, err := api.App(ctx, ch.App); err == nil && app.Why != "" {
		why = app.Why
	}
	text := fmt.Sprintf("%s: deployment %s is not done after %v", ch.App, ch.Deployment, w.timeout)
	if why != "" {
		text += ": " + why
	}
	return &exitError{exitTimeout, errors.New(text), goesOn(ch)}
}

func goesOn(ch client.Change) string {
	return fmt.Sprintf("it goes on; look again with gantry status %s", ch.App)
}

// conclude says how a deployment ended; anything but success is an error.
func (c *cli) conclude(ctx context.Context, api *client.Client, ch client.Change, d model.Deployment) error {
	if d.State != model.DeploySucceeded {
		return &exitError{exitRefused, fmt.Errorf("%s: deployment %s %s", ch.App, d.ID, ending(d)),
			fmt.Sprintf("gantry status %s shows what happened, gantry logs %s what it printed", ch.App, ch.App)}
	}
	if c.json {
		return nil
	}
	switch {
	case d.Kind == model.DeployRemove:
		c.say("%s is gone", ch.App)
	case d.Want == 0:
		c.say("%s is suspended: no instance is asked for", ch.App)
	default:
		c.say("%s is running: %d of %d healthy, version %d%s", ch.App, d.Done, d.Want, d.To, c.where(ctx, api, ch.App))
	}
	return nil
}

func ending(d model.Deployment) string {
	text := map[model.DeploymentState]string{
		model.DeployFailed: "failed", model.DeployRolledBack: "failed and was rolled back",
		model.DeploySuperseded: "was superseded by a newer one", model.DeployCancelled: "was cancelled",
	}[d.State]
	if d.Message != "" {
		text += ": " + d.Message
	}
	return text
}
