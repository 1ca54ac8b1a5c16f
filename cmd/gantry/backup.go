package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// backupCommand returns `gantry backup`.
func (c *cli) backupCommand() *cobra.Command {
	var stale bool
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Write a backup of all that the cluster keeps",
		Long: `Write a backup of all that the cluster keeps: apps, deployments, nodes, roles, and its authority. Work goes on meanwhile. The
backup is checked on its way, and FILE is there only once it is whole. Keep it as safe as a password.

gantry restore makes a new cluster of it, which adopts what still runs.`,
		Example: `  gantry backup gantry-2026-03-01.backup
  gantry backup --stale last.backup     # of a server that reaches no majority`,
		Args: args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			b, err := backup(cmd.Context(), api, args[0], stale)
			if err != nil {
				return err
			}
			return c.print(b, func(*show.Printer) {
				c.say("%s: %s, revision %d, sha256 %s", args[0], model.Bytes(b.Size).Human(), b.Revision, b.SHA256)
			})
		},
	}
	cmd.Flags().BoolVar(&stale, "stale", false, "take what this server knows, though it may not be the newest")
	return cmd
}

// backup writes to FILE.partial, which becomes FILE when it is whole and on the disk.
func backup(ctx context.Context, api *client.Client, file string, stale bool) (client.Backup, error) {
	partial := file + ".partial"
	f, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return client.Backup{}, fmt.Errorf("write backup: %w", err)
	}
	b, err := api.Backup(ctx, f, stale)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(partial, file)
	}
	if err != nil {
		_ = os.Remove(partial) // what is there is of no use
		return client.Backup{}, err
	}
	return b, nil
}
