package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/specfile"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

const aboutRun = `Run an app and keep it running.

FILE describes one or several apps in YAML or JSON (ending in .yaml, .yml or .json; - reads the standard input).
Apps that exist are updated. Paths of file: artifacts and host-path volumes may be relative to the file.

IMAGE is anything else: an OCI image. A command after -- replaces the image's own.

With only a command after --, a program of the machine itself is run. $PORT0 in its arguments becomes the port that
the instance should listen on (put it in single quotes); an endpoint named http is then added unless --port names some.

Without --name the app is named after the image or program, and must not exist yet.`

// runCommand returns `gantry run`.
func (c *cli) runCommand() *cobra.Command {
	var o runOptions
	var w waiting
	cmd := &cobra.Command{
		Use:   "run FILE | [flags] IMAGE [-- CMD ARGS...] | [flags] -- CMD ARGS...",
		Short: "Run apps from a file, an image or a program",
		Long:  aboutRun,
		Example: `  gantry run app.yaml
  gantry run --name web --port http:8080 --instances 2 nginx:1.27
  gantry run --cpus 0.2 -- python3 -m http.server '$PORT0'
  gantry run --instances 3 --constraint 'hostname UNIQUE' --constraint 'zone GROUP_BY' redis:7`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runApp(cmd, &o, w, args)
		},
	}
	o.add(cmd)
	w.flags(cmd)
	c.completePlacement(cmd)
	return cmd
}

func (c *cli) runApp(cmd *cobra.Command, o *runOptions, w waiting, args []string) error {
	target, program, err := splitDash(args, cmd.ArgsLenAtDash())
	if err != nil {
		return err
	}
	if isFile(target) {
		return c.runFile(cmd, target, program, w)
	}
	spec, err := o.spec(target, program)
	if err != nil {
		return err
	}
	api, err := c.connect()
	if err != nil {
		return err
	}
	var ch client.Change
	if o.name == "" {
		ch, err = api.CreateApp(cmd.Context(), spec)
		err = nameTaken(spec.ID, err)
	} else {
		ch, err = api.PutApp(cmd.Context(), spec)
	}
	if err != nil {
		return err
	}
	c.sayChange(w, ch)
	return c.await(cmd.Context(), api, w, ch)
}

// splitDash parts what stands before -- from the command after it. dash is how many arguments stand before, -1 without.
func splitDash(args []string, dash int) (target string, program []string, err error) {
	if dash >= 0 {
		args, program = args[:dash], args[dash:]
	}
	switch {
	case len(args) > 1:
		return "", nil, usageError{fmt.Errorf("%q is too much: put -- before a command and its arguments", args[1])}
	case len(args) == 0 && len(program) == 0:
		return "", nil, usageError{errors.New("say what to run: a file, an image, or -- and a command")}
	case len(args) == 1 && args[0] == "":
		return "", nil, usageError{errors.New("the name of the file or image is empty")}
	case len(args) == 1:
		target = args[0]
	}
	return target, program, nil
}

// isFile tells a file from an image: by its ending, or because it is there.
func isFile(s string) bool {
	if s == "-" || slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(s)) {
		return true
	}
	info, err := os.Stat(s)
	return err == nil && info.Mode().IsRegular()
}

// nameTaken explains that a name which was not chosen by the user is in use.
func nameTaken(id model.AppID, err error) error {
	var e *client.Error
	if errors.As(err, &e) && e.Status == http.StatusConflict {
		return &exitError{exitRefused, fmt.Errorf("there is an app %s already", id),
			fmt.Sprintf("give the new app another --name, or replace that one with --name %s", strings.TrimPrefix(string(id), "/"))}
	}
	return err
}

func (c *cli) sayChange(w waiting, ch client.Change) {
	switch {
	case w.not:
	case ch.Unchanged:
		c.say("%s is as asked already (version %d)", ch.App, ch.Version)
	case ch.Version == 1:
		c.say("created %s", ch.App)
	default:
		c.say("updated %s to version %d", ch.App, ch.Version)
	}
}

// runFile sends every app of a file, and then waits for all of them.
func (c *cli) runFile(cmd *cobra.Command, name string, program []string, w waiting) error {
	docs, err := c.fileSpecs(cmd, name, program)
	if err != nil {
		return err
	}
	api, err := c.connect()
	if err != nil {
		return err
	}
	var changes []client.Change
	for i := range docs {
		ch, err := api.PutApp(cmd.Context(), docs[i].Spec)
		if err != nil {
			return inFile(&docs[i], err)
		}
		c.sayChange(w, ch)
		changes = append(changes, ch)
	}
	return c.awaitAll(cmd.Context(), api, w, changes)
}

// fileSpecs reads the apps of a file that is given in place of an image, which takes neither a command nor the flags that
// make an app.
func (c *cli) fileSpecs(cmd *cobra.Command, name string, program []string) ([]specfile.Doc, error) {
	if len(program) > 0 {
		return nil, usageError{errors.New("a file takes no command: write it in the file")}
	}
	for _, flag := range runOnlyFlags {
		if cmd.Flags().Changed(flag) {
			return nil, usageError{fmt.Errorf("--%s is for images and programs: write it in the file", flag)}
		}
	}
	return c.readSpecs(name)
}

// awaitAll waits for one change after the other, whatever becomes of each. It returns the last error, and prints those
// before it.
func (c *cli) awaitAll(ctx context.Context, api *client.Client, w waiting, changes []client.Change) error {
	var last error
	for _, ch := range changes {
		err := c.await(ctx, api, w, ch)
		if err == nil {
			continue
		}
		if last != nil {
			fmt.Fprintf(c.err, "gantry: %v\n", last)
		}
		if last = err; ctx.Err() != nil {
			break
		}
	}
	return last
}

// readSpecs reads the apps of a file, or of the standard input when it is named -.
func (c *cli) readSpecs(name string) ([]specfile.Doc, error) {
	var in io.Reader = c.in
	shown, dir := "standard input", "."
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in, shown, dir = f, name, filepath.Dir(name)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find directory of %s: %w", name, err)
	}
	return specfile.Read(in, shown, dir)
}

// inFile shows the field errors of a refused spec at their lines of the file.
func inFile(doc *specfile.Doc, err error) error {
	var e *client.Error
	if !errors.As(err, &e) || len(e.Fields) == 0 {
		return fmt.Errorf("%s: %w", doc.Spec.ID, err)
	}
	var errs specfile.Errors
	for _, f := range e.Fields {
		errs = append(errs, doc.At(strings.TrimPrefix(strings.TrimPrefix(f.Location, "body"), "."), f.Message))
	}
	return errs
}
