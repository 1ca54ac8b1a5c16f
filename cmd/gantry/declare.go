package main

import (
	"github.com/spf13/pflag"

	"github.com/gantry-os/gantry/model"
)

// declareFlags adds the flags by which an operator says what a node is.
func declareFlags(flags *pflag.FlagSet, d *model.Declaration) {
	flags.StringVar(&d.Pool, "pool", "", "`name` of the part of the nodes that this one belongs to (default: default)")
	flags.StringVar(&d.Region, "region", "", "`name` of where this node is, at large")
	flags.StringVar(&d.Zone, "zone", "", "`name` of where this node is: nodes of a zone fail together")
	flags.Var(declared{d.AddAttribute, "key=value"}, "attribute", "fact about this node that constraints can name, such as rack=r1 (repeatable)")
	flags.Var(declared{d.AddResource, "resource"}, "resource", "custom resource: name=amount, or name={a,b,c} for items that are told apart (repeatable)")
	flags.Var(declared{d.AddGPU, "device"}, "gpu", "graphics processor, such as id=0,model=T4,memory=16GiB, in place of those that are found (repeatable)")
	flags.BoolVar(&d.NoGPUs, "no-gpus", false, "leave out the graphics processors that are found")
}

// declared is a flag that adds to a declaration each time it is given.
type declared struct {
	add  func(string) error
	kind string
}

func (d declared) Set(s string) error { return d.add(s) }
func (d declared) Type() string       { return d.kind }
func (d declared) String() string     { return "" }
