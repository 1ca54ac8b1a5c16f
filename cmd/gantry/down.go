package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/spf13/cobra"
)

// downCommand returns `gantry down`.
func (c *cli) downCommand() *cobra.Command {
	var keep bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the server and all it runs",
		Long: `Stop the server and all instances, and wait until it has ended. Nothing is forgotten: gantry up starts all apps again.
With --keep-instances the instances go on without a server, and the next gantry up finds them running.`,
		Example: "  gantry down\n  gantry down --keep-instances",
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.down(cmd.Context(), client.Shutdown{KeepInstances: keep}, timeout)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-instances", false, "leave instances running for the next gantry up")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for its end (exit code 5)")
	return cmd
}

func (c *cli) down(ctx context.Context, how client.Shutdown, timeout time.Duration) error {
	api, err := c.connect()
	if err != nil {
		return err
	}
	info, err := api.Info(ctx)
	if err != nil {
		return err
	}
	gone := c.goneCheck(api, info)
	if err := api.Shutdown(ctx, how); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !gone(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), errTimeout) {
				return &exitError{exitTimeout, fmt.Errorf("the server (pid %d) still runs after %v", info.PID, timeout), ""}
			}
			return context.Cause(ctx)
		}
	}
	if c.json {
		return c.printJSON(info, "  ")
	}
	again := "gantry up"
	if info.DataDir != client.DefaultDataDir() {
		again += " --data-dir " + info.DataDir
	}
	c.say("Gantry is down; start it again with %s", again)
	return nil
}

// goneCheck returns how to see that the server has ended: its process is gone when it runs on this machine, else it
// answers no more.
func (c *cli) goneCheck(api *client.Client, info client.Info) func(context.Context) bool {
	u, err := url.Parse(api.Addr())
	if err == nil && isLoopback(u.Hostname()) {
		if start, ok := client.ProcessStart(info.PID); ok {
			return func(context.Context) bool {
				now, ok := client.ProcessStart(info.PID)
				return !ok || now != start
			}
		}
	}
	return func(ctx context.Context) bool {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return errors.Is(api.Healthy(ctx), client.ErrUnreachable)
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
