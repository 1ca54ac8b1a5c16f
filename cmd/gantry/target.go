package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// target is what logs and exec are about: one instance, or an app with its instances, newest first.
type target struct {
	app       model.AppID // empty for one instance
	instances []client.Instance
}

// find looks an argument up as an instance, and then as an app. A leading slash means an app.
func find(ctx context.Context, api *client.Client, arg string) (target, error) {
	var e *client.Error
	if !strings.Contains(arg, "/") {
		i, err := api.Instance(ctx, model.InstanceID(arg))
		if err == nil {
			return target{instances: []client.Instance{i}}, nil
		}
		if !errors.As(err, &e) || e.Status != http.StatusNotFound {
			return target{}, err
		}
	}
	id, err := appID(arg)
	if err != nil {
		return target{}, err
	}
	app, err := api.App(ctx, id)
	if errors.As(err, &e) && e.Status == http.StatusNotFound {
		return target{}, &exitError{exitNotFound, fmt.Errorf("there is no app or instance %s", arg), hintNotFound}
	}
	return target{app: id, instances: app.List}, err
}
