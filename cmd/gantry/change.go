package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
)

// change sends a change of one app and waits for it.
func (c *cli) change(ctx context.Context, app string, w waiting,
	send func(api *client.Client, id model.AppID) (client.Change, error)) error {
	id, err := appID(app)
	if err != nil {
		return err
	}
	api, err := c.connect()
	if err != nil {
		return err
	}
	ch, err := send(api, id)
	if err != nil {
		return aboutApp(id, err)
	}
	if ch.Unchanged && !w.not {
		c.say("%s is as asked already (version %d)", ch.App, ch.Version)
	}
	return c.await(ctx, api, w, ch)
}

// aboutApp puts the app's id before an error of the server that does not name it.
func aboutApp(id model.AppID, err error) error {
	if strings.Contains(err.Error(), string(id)) {
		return err
	}
	var e *client.Error
	if errors.As(err, &e) && e.Status == http.StatusNotFound && e.Detail == "" {
		return &exitError{exitNotFound, fmt.Errorf("there is no app %s", id), hintNotFound}
	}
	return fmt.Errorf("%s: %w", id, err)
}

// where says at which addresses an app is reached, for the end of a sentence.
func (c *cli) where(ctx context.Context, api *client.Client, id model.AppID) string {
	list, err := api.Instances(ctx, client.InstanceFilter{App: id})
	if err != nil {
		return "" // the app runs all the same, and gantry ps will say where
	}
	if addrs := show.Addresses(list, 3); addrs != "" {
		return ", at " + addrs
	}
	return ""
}

// parseCount reads a number of instances.
func parseCount(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > model.MaxInstances {
		return 0, usageError{fmt.Errorf("%q is not a number of instances", s)}
	}
	return n, nil
}
