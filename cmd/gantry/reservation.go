package main

import (
	"errors"
	"slices"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// reservationCommand returns `gantry reservation`.
func (c *cli) reservationCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "reservation", Aliases: []string{"reservations"},
		Short: "Keep parts of nodes for roles",
		Long:  "Keep a part of a node for a role and the roles below it. Others do not get it, even while it is not used.",
		Example: `  gantry reservation ls
  gantry reservation set db-a --role /db --node node-a --cpus 8 --memory 32GiB
  gantry reservation rm db-a`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.reservationListCommand(), c.reservationSetCommand(), c.reservationRemoveCommand())
	return cmd
}

func (c *cli) reservationListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List reservations", Example: "  gantry reservation ls", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			list, err := api.Reservations(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(p *show.Printer) {
				if len(list) == 0 {
					c.say("no reservations; gantry reservation set --help says how to make one")
					return
				}
				p.Reservations(list)
			})
		},
	}
}

func (c *cli) reservationSetCommand() *cobra.Command {
	var ask model.Reservation
	var role, node string
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Make a reservation, or change one",
		Long:    "Make a reservation, or change what is named of one that exists. A node has to have what all reservations on it keep.",
		Example: "  gantry reservation set db-a --role /db --node node-a --cpus 8 --memory 32GiB",
		Args:    args(1, 1), ValidArgsFunction: first(c.completeReservations),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			list, err := api.Reservations(cmd.Context())
			if err != nil {
				return err
			}
			next := model.Reservation{ID: args[0]}
			if i := slices.IndexFunc(list, func(r client.ReservationDetail) bool { return r.ID == args[0] }); i >= 0 {
				next = list[i].Reservation
			}
			for flag, set := range map[string]func(){
				"role": func() { next.Role = model.RoleID(role) }, "node": func() { next.Node = model.NodeID(node) },
				"cpus": func() { next.Resources.CPUs = ask.Resources.CPUs }, "memory": func() { next.Resources.Memory = ask.Resources.Memory },
				"disk": func() { next.Resources.Disk = ask.Resources.Disk }, "gpus": func() { next.Resources.GPUs = ask.Resources.GPUs },
			} {
				if cmd.Flags().Changed(flag) {
					set()
				}
			}
			switch {
			case next.Role == "" || next.Node == "":
				return usageError{errors.New("a new reservation needs --role and --node")}
			case next.Resources == model.Resources{}:
				return usageError{errors.New("say what to keep: --cpus, --memory, --disk or --gpus")}
			}
			now, err := api.PutReservation(cmd.Context(), &next)
			if err != nil {
				return err
			}
			return c.print(now, func(p *show.Printer) { p.Reservations([]client.ReservationDetail{now}) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "", "`role` that it is for, and those below it")
	f.StringVar(&node, "node", "", "`id` or name of the node")
	f.Var(amount[model.CPU]{&ask.Resources.CPUs, model.ParseCPU, "cores"}, "cpus", "cores to keep")
	f.Var(amount[model.Bytes]{&ask.Resources.Memory, model.ParseBytes, "bytes"}, "memory", "memory to keep")
	f.Var(amount[model.Bytes]{&ask.Resources.Disk, model.ParseBytes, "bytes"}, "disk", "disk to keep")
	f.Var(amount[model.GPU]{&ask.Resources.GPUs, model.ParseGPU, "devices"}, "gpus", "graphics processors to keep")
	registerCompletion(cmd, "role", c.completeRoles)
	registerCompletion(cmd, "node", c.completeNodes)
	return cmd
}

func (c *cli) reservationRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Give what was reserved back to all",
		Long:    "Give what was reserved back to all. Nothing that runs is stopped.",
		Example: "  gantry reservation rm db-a",
		Args:    args(1, -1), ValidArgsFunction: c.completeReservations,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			return c.removeEach(args, "reservation", func(name string) (string, error) {
				return name, api.DeleteReservation(cmd.Context(), name)
			})
		},
	}
}
