package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// updateOptions are the flags of update.
type updateOptions struct {
	containerFlags
	image     string
	container string
	file      string
	unset     []string
	labels    []string
}

// updateCommand returns `gantry update`.
func (c *cli) updateCommand() *cobra.Command {
	var o updateOptions
	var w waiting
	cmd := &cobra.Command{
		Use:   "update APP [flags] [-- CMD ARGS...]",
		Short: "Change an app and roll the change out",
		Long: `Change an app and roll the change out, as its update policy says. Only what is named changes; a command after --
replaces the one there is. --file replaces the whole description.`,
		Example: `  gantry update web --image nginx:1.28
  gantry update web --env LEVEL=debug --memory 256MiB
  gantry update web --file web.yaml`,
		ValidArgsFunction: c.completeApp,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, program, err := splitDash(args, cmd.ArgsLenAtDash())
			if err != nil || target == "" {
				return usageError{errors.New("say which app to update, and put -- before a command")}
			}
			return c.change(cmd.Context(), target, w, func(api *client.Client, id model.AppID) (client.Change, error) {
				return c.update(cmd.Context(), api, id, &o, program)
			})
		},
	}
	o.add(cmd)
	f := cmd.Flags()
	f.StringVar(&o.image, "image", "", "`image` to run")
	f.StringVarP(&o.container, "container", "c", "", "`name` of the container to change (default the first)")
	f.StringArrayVar(&o.unset, "unset-env", nil, "environment variable to remove, by `KEY`; repeatable")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "label as `KEY=VALUE`; repeatable")
	f.StringVarP(&o.file, "file", "f", "", "take the app from this `file` instead")
	w.flags(cmd)
	return cmd
}

// update reads the app, changes it and writes it back; it begins again when someone else changed it in between.
func (c *cli) update(ctx context.Context, api *client.Client, id model.AppID, o *updateOptions, program []string) (client.Change, error) {
	for try := 0; ; try++ {
		app, err := api.App(ctx, id)
		if err != nil {
			return client.Change{}, err
		}
		spec, err := c.updated(app.Spec, o, program)
		if err != nil {
			return client.Change{}, err
		}
		ch, err := api.PutApp(ctx, spec, client.IfRevision(app.Revision))
		var e *client.Error
		if !errors.As(err, &e) || e.Status != http.StatusPreconditionFailed || try == 5 {
			return ch, err
		}
	}
}

// updated returns the app as it should be.
func (c *cli) updated(old *model.Spec, o *updateOptions, program []string) (*model.Spec, error) {
	if o.file != "" {
		docs, err := c.readSpecs(o.file)
		if err != nil {
			return nil, err
		}
		if len(docs) != 1 || docs[0].Spec.ID != old.ID {
			return nil, usageError{fmt.Errorf("%s does not describe %s alone; gantry run takes such files", o.file, old.ID)}
		}
		return docs[0].Spec, nil
	}
	s := old.Clone()
	i, err := containerIndex(s, o.container)
	if err != nil {
		return nil, err
	}
	k := &s.Containers[i]
	if o.image != "" {
		k.Image = o.image
	}
	if len(program) > 0 {
		k.Command, k.Args, k.Shell = program, nil, ""
	}
	for _, name := range o.unset {
		delete(k.Env, name)
	}
	if err := o.apply(k); err != nil {
		return nil, err
	}
	labels, err := pairs("label", o.labels, nil)
	s.Labels = merged(s.Labels, labels)
	return s, err
}

// containerIndex finds a container by name; the first when name is empty.
func containerIndex(s *model.Spec, name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	i := slices.IndexFunc(s.WithDefaults().Containers, func(k model.Container) bool { return k.Name == name })
	if i < 0 {
		return 0, &exitError{exitNotFound, fmt.Errorf("%s has no container %q", s.ID, name), ""}
	}
	return i, nil
}
