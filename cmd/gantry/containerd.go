package main

import (
	"github.com/spf13/cobra"

	"github.com/gantry-os/gantry/runtime/containerd/engine"
)

// containerdCommand is the child process that `gantry up` starts to run containers.
func containerdCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "containerd",
		Short:              "Run the container engine (started by gantry up)",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE:               func(_ *cobra.Command, args []string) error { return engine.Main(args) },
	}
}
