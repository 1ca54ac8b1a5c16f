package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// drainEvery is how often a drain is looked at.
const drainEvery = 500 * time.Millisecond

// drainCommand returns `gantry node drain`.
func (c *cli) drainCommand() *cobra.Command {
	var ask client.Drain
	var noWait bool
	cmd := &cobra.Command{
		Use: "drain NODE", Short: "Move the instances of a node away",
		Long: `Let a node take no new work, and move its instances to others, as the update policies of their apps allow. It waits until the
node is empty and says what it waits for; the drain goes on when it is interrupted. Instances with persistent volumes stay, since
their data does. Past the deadline whatever is left stops, those last; their volumes stay on the node, and they wait for it.`,
		Example: `  gantry node drain node-a --why 'goes back to the maker'
  gantry node drain node-a --deadline 10m
  gantry node drain node-a --no-wait`,
		Args: args(1, 1), ValidArgsFunction: c.completeNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			n, err := api.DrainNode(cmd.Context(), model.NodeID(args[0]), ask)
			if err != nil {
				return err
			}
			if noWait {
				return c.print(n, func(*show.Printer) {
					c.say("%[1]s is being drained; gantry nodes %[1]s shows what is left on it, gantry node uncordon %[1]s ends that", n.Name)
				})
			}
			return c.awaitDrain(cmd.Context(), api, n.ID)
		},
	}
	f := cmd.Flags()
	f.StringVar(&ask.Why, "why", "", "`reason`, for other operators and for those who ask why an instance moves")
	f.Var(amount[model.Duration]{&ask.Deadline, model.ParseDuration, "duration"}, "deadline", "after how long whatever is left stops, such as 10m (default never)")
	f.BoolVar(&noWait, "no-wait", false, "return at once")
	return cmd
}

// awaitDrain waits until a node is empty, or will not become so, and says each new sentence on what it waits for.
func (c *cli) awaitDrain(ctx context.Context, api *client.Client, id model.NodeID) error {
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	said := ""
	for {
		n, left, err := drained(ctx, api, id)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return c.print(n, func(*show.Printer) {
				c.say("%[1]s is empty; gantry node uncordon %[1]s lets it take work again, gantry node remove %[1]s takes it out of the cluster", n.Name)
			})
		}
		if err := stuck(&n, left); err != nil {
			return err
		}
		if text := drainWords(&n, left); text != said && !c.json {
			c.say("%s", text)
			said = text
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &exitError{exitInterrupted, fmt.Errorf("%s: stopped waiting for the drain", n.Name), "it goes on; look again with gantry nodes " + n.Name}
		}
	}
}

// drained returns a node and what is left on it.
func drained(ctx context.Context, api *client.Client, id model.NodeID) (client.NodeDetail, []client.Instance, error) {
	n, err := api.Node(ctx, id)
	if err != nil {
		return n, nil, err
	}
	list, err := api.Instances(ctx, client.InstanceFilter{Node: id})
	return n, slices.DeleteFunc(list, func(i client.Instance) bool { return i.Over() }), err
}

// stuck says why a node will not become empty by itself.
func stuck(n *client.NodeDetail, left []client.Instance) error {
	s := n.Settings
	if s == nil || !s.Draining {
		return &exitError{exitRefused, fmt.Errorf("%s: the drain was ended with %s left", n.Name, instanceCount(len(left))), ""}
	}
	stays := func(i client.Instance) bool { return i.Slot != 0 && i.Desired == model.Run }
	if s.Deadline.IsZero() && !slices.ContainsFunc(left, func(i client.Instance) bool { return !stays(i) }) {
		return &exitError{exitRefused,
			fmt.Errorf("%s: %s with persistent volumes, which stay: %s", n.Name, instanceCount(len(left)), idList(left)),
			"gantry node drain with --deadline stops them, too; their volumes stay on the node"}
	}
	if n.State != model.NodeReady {
		return &exitError{exitRefused, fmt.Errorf("%s: its agent does not answer, so nobody knows of %s", n.Name, instanceCount(len(left))),
			"if the machine is dead, gantry node remove --force gives them up"}
	}
	return nil
}

// drainWords says how many are left, and what the first of those that say it wait for.
func drainWords(n *client.NodeDetail, left []client.Instance) string {
	text := fmt.Sprintf("%s: %s left", n.Name, instanceCount(len(left)))
	if d := n.Settings.Deadline; !d.IsZero() {
		text += " until " + d.Local().Format(time.TimeOnly)
	}
	slices.SortFunc(left, func(a, b client.Instance) int { return int(a.Slot) - int(b.Slot) })
	for _, i := range left {
		switch {
		case i.Desired == model.Halt:
			return text + "; " + string(i.ID) + " is ending"
		case i.Why != "":
			return text + "; " + string(i.ID) + ": " + i.Why
		}
	}
	return text
}

func instanceCount(n int) string {
	if n == 1 {
		return "1 instance"
	}
	return fmt.Sprintf("%d instances", n)
}

func idList(list []client.Instance) string {
	text := string(list[0].ID)
	if len(list) > 1 {
		text += fmt.Sprintf(" and %d more", len(list)-1)
	}
	return text
}

// removeNodeCommand returns `gantry node remove`.
func (c *cli) removeNodeCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "remove NODE", Short: "Take a node out of the cluster",
		Long: `Take a node out of the cluster, once nothing runs on it. Of a machine that is dead, --force gives up what it ran, those with
persistent volumes included, so that others take their place. Its volumes stay on record until they are deleted: until then the
instances that have them wait. An agent that still runs there joins anew; what was given up stops then.`,
		Example: `  gantry node drain node-a && gantry node remove node-a
  gantry node remove node-a --force`,
		Args: args(1, 1), ValidArgsFunction: c.completeNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			r, err := api.RemoveNode(cmd.Context(), model.NodeID(args[0]), force)
			if err != nil {
				return removeRefused(args[0], err)
			}
			return c.print(r, func(*show.Printer) { c.sayRemoved(&r) })
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "the machine is dead: give up what it ran")
	return cmd
}

func removeRefused(node string, err error) error {
	var refused *client.Error
	if !errors.As(err, &refused) || refused.Status != 409 {
		return err
	}
	return &exitError{exitRefused, err, fmt.Sprintf("gantry node drain %s empties it; if the machine is dead, --force gives up what it ran", node)}
}

func (c *cli) sayRemoved(r *client.RemovedNode) {
	c.say("%s is removed", r.Name)
	if n := len(r.Instances); n > 0 {
		c.say("%s that it ran: given up, and replaced as their apps say", instanceCount(n))
	}
	for _, v := range r.Volumes {
		c.say("volume %[1]s was on it; gantry volume rm %[1]s lets its slot begin elsewhere with an empty one", v)
	}
}
