package main

import (
	"context"
	"runtime"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// version is what source gantry was built of, set by the linker.
var version = "dev"

// versionCommand returns `gantry version`.
func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program, and of the server when one answers",
		Example: "  gantry version",
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version string        `json:"version"`
				Release model.Release `json:"release"`
				Go      string        `json:"go"`
				Server  *client.Info  `json:"server,omitempty"`
			}{model.ThisRelease.Build(version), model.ThisRelease, runtime.Version(), c.serverInfo(cmd.Context())}
			return c.print(v, func(*show.Printer) {
				c.say("gantry %s (%s)", v.Version, v.Go)
				if v.Server != nil {
					c.say("server %s (%s), started %s ago, data in %s", v.Server.Version, v.Server.Go,
						show.Age(c.now().Sub(v.Server.Started)), v.Server.DataDir)
				}
			})
		},
	}
}

// serverInfo returns nil when no server answers quickly: there need not be one.
func (c *cli) serverInfo(ctx context.Context) *client.Info {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	api, err := c.connect()
	if err != nil {
		return nil
	}
	info, err := api.Info(ctx)
	if err != nil {
		return nil
	}
	return &info
}
