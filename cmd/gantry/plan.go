package main

import (
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/cmd/gantry/specfile"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

const aboutPlan = `Say whether an app would fit now, on which nodes, what would be ended to make room for it, and how the nodes were
narrowed down. Nothing is changed.

It takes what gantry run takes: a file, an image, or -- and a command, with the same flags. Of an app that exists, instances
that would stay where they are count as placed. Each app of a file is planned as if it came alone.

Exit codes: 0 all instances would be placed; 7 some would wait; others as for all commands. --json prints a list with one
plan for each app.`

// planCommand returns `gantry plan`.
func (c *cli) planCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "plan FILE | [flags] IMAGE [-- CMD ARGS...] | [flags] -- CMD ARGS...",
		Short: "Say whether an app would fit, and where",
		Long:  aboutPlan,
		Example: `  gantry plan app.yaml
  gantry plan --instances 20 --memory 4GiB --constraint 'rack GROUP_BY' nginx:1.27
  gantry plan app.yaml --json`,
		RunE: func(cmd *cobra.Command, args []string) error { return c.plan(cmd, &o, args) },
	}
	o.add(cmd)
	c.completePlacement(cmd)
	return cmd
}

func (c *cli) plan(cmd *cobra.Command, o *runOptions, args []string) error {
	target, program, err := splitDash(args, cmd.ArgsLenAtDash())
	if err != nil {
		return err
	}
	var docs []specfile.Doc
	if isFile(target) {
		docs, err = c.fileSpecs(cmd, target, program)
	} else {
		docs = make([]specfile.Doc, 1)
		docs[0].Spec, err = o.spec(target, program)
	}
	if err != nil {
		return err
	}
	api, err := c.connect()
	if err != nil {
		return err
	}
	plans, waits := []model.Plan{}, 0
	for i := range docs {
		p, err := api.Plan(cmd.Context(), docs[i].Spec)
		if err != nil {
			return inFile(&docs[i], err)
		}
		plans = append(plans, p)
		waits += p.Waiting
	}
	err = c.print(plans, func(p *show.Printer) {
		for i := range plans {
			if i > 0 {
				c.say("")
			}
			p.Plan(&plans[i])
		}
	})
	if err == nil && waits > 0 {
		return &exitError{exitDoesNotFit, nil, ""}
	}
	return err
}
