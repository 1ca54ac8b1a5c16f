package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/specfile"
	"github.com/spf13/cobra"
)

// Exit codes, as the help of gantry lists them.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4
	exitTimeout     = 5
	exitUnreachable = 6
	exitDoesNotFit  = 7 // plan: some instances would wait
	exitInterrupted = 130
)

// usageError is a command line that makes no sense.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitError is an error that knows its exit code, and what to do next.
type exitError struct {
	code int
	err  error // nil prints nothing: all was said
	hint string
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// exitCode is the one table from errors to exit codes.
func exitCode(err error) int {
	var exit *exitError
	var usage usageError
	var refused *client.Error
	var bad specfile.Errors
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &usage), errors.Is(err, client.ErrSeveralLocal):
		return exitUsage
	case errors.As(err, &refused):
		return statusCode(refused.Status)
	case errors.As(err, &bad):
		return exitRefused
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, client.ErrUnreachable), errors.Is(err, client.ErrNoLocal):
		return exitUnreachable
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	}
	return exitFailure
}

func statusCode(status int) int {
	switch {
	case status == http.StatusNotFound:
		return exitNotFound
	case status >= 400 && status < 500:
		return exitRefused
	case status == http.StatusBadGateway, status == http.StatusServiceUnavailable, status == http.StatusGatewayTimeout:
		return exitUnreachable
	}
	return exitFailure
}

// report prints an error, and on a second line what to do next.
func (c *cli) report(cmd *cobra.Command, err error) {
	var exit *exitError
	if errors.As(err, &exit) && exit.err == nil {
		return
	}
	if errors.Is(err, context.Canceled) && exit == nil {
		return // the user knows
	}
	fmt.Fprintf(c.err, "gantry: %v\n", err)
	if hint := hintFor(cmd, err); hint != "" {
		fmt.Fprintf(c.err, "  %s\n", hint)
	}
}

func hintFor(cmd *cobra.Command, err error) string {
	var exit *exitError
	var usage usageError
	var refused *client.Error
	switch {
	case errors.As(err, &exit):
		return exit.hint
	case errors.As(err, &usage):
		return fmt.Sprintf("see %s --help", cmd.CommandPath())
	case errors.As(err, &refused):
		return refusedHint(refused)
	case errors.Is(err, client.ErrOtherCluster):
		return "give the roots of the server's cluster with --ca-file or GANTRY_CACERT; each server keeps them in its data directory"
	case errors.Is(err, client.ErrUnreachable):
		return "start a cluster here with gantry up, or say where one is with --addr or GANTRY_ADDR"
	}
	return ""
}

func refusedHint(e *client.Error) string {
	switch {
	case e.Status == http.StatusUnauthorized:
		return "give the cluster's token with --token-file, --token or GANTRY_TOKEN"
	case e.Status == http.StatusNotFound && listedBy(e) != "":
		return listedBy(e) + " lists them"
	case e.Status == http.StatusNotFound && !strings.HasPrefix(e.Error(), "app "): // there is the app, but not all of it
		return hintNotFound
	}
	return ""
}

// listedBy returns the command that lists what was not found, empty for apps and instances.
func listedBy(e *client.Error) string {
	for what, command := range map[string]string{
		"deployment": "gantry deployments", "node": "gantry nodes", "role": "gantry role ls", "pool": "gantry pool ls",
		"reservation": "gantry reservation ls", "volume": "gantry volume ls",
		"token": "gantry token ls", "server": "gantry cluster members",
	} {
		if strings.HasPrefix(e.Error(), "no "+what+" ") {
			return command
		}
	}
	return ""
}

const hintNotFound = "gantry ps lists the apps, gantry ps -i their instances"

// args checks the number of arguments; most < 0 sets no limit.
func args(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		_, want, _ := strings.Cut(cmd.Use, " ")
		switch {
		case len(args) < least:
			return usageError{fmt.Errorf("something is missing: write %s %s", cmd.CommandPath(), want)}
		case most == 0 && len(args) > 0:
			return usageError{fmt.Errorf("%q is too much: %s takes no arguments", args[0], cmd.CommandPath())}
		case most >= 0 && len(args) > most:
			return usageError{fmt.Errorf("%q is too much: write %s %s", args[most], cmd.CommandPath(), want)}
		}
		return nil
	}
}

// noSuchCommand is for commands that only hold others.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("there is no command %q", cmd.CommandPath()+" "+args[0])
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		text += "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return usageError{errors.New(text)}
}
