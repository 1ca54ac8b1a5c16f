package main

import (
	"fmt"
	"io"
	"os"

	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// imageCommand returns `gantry image`.
func (c *cli) imageCommand() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: "image", Aliases: []string{"images"},
		Short: "List the images on a node, or load some from an archive",
		Long:  "List the OCI images that are present on a node, or load some from an archive, so that no registry is needed.",
		Example: `  gantry image ls
  gantry image load web.tar`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&node, "node", "", "`id` of the node; not needed when there is one only")
	cmd.AddCommand(c.imageListCommand(&node), c.imageLoadCommand(&node))
	return cmd
}

func (c *cli) imageListCommand(node *string) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the images on a node", Example: "  gantry image ls", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			list, err := api.Images(cmd.Context(), model.NodeID(*node))
			if err != nil {
				return err
			}
			return c.print(list, func(p *show.Printer) {
				if len(list) == 0 {
					c.say("no images; they come when an app needs them, or with gantry image load FILE.tar")
					return
				}
				p.Images(list)
			})
		},
	}
}

func (c *cli) imageLoadCommand(node *string) *cobra.Command {
	return &cobra.Command{
		Use: "load FILE.tar", Short: "Load images from an archive",
		Long:    "Load images from an archive in the OCI or Docker layout; - reads the standard input.",
		Example: "  docker save web:1 | gantry image load -",
		Args:    args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var in io.Reader = c.in
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("load images: %w", err)
				}
				defer f.Close()
				in = f
			}
			api, err := c.connect()
			if err != nil {
				return err
			}
			got, err := api.ImportImages(cmd.Context(), model.NodeID(*node), in)
			if err != nil {
				return fmt.Errorf("load %s: %w", args[0], err)
			}
			return c.print(got, func(*show.Printer) {
				for _, name := range got.Images {
					c.say("loaded %s", name)
				}
			})
		},
	}
}
