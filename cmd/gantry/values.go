package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// amount is a flag that is read by one of the model's parsers.
type amount[T comparable] struct {
	p     *T
	parse func(string) (T, error)
	kind  string
}

func (a amount[T]) Set(s string) (err error) { *a.p, err = a.parse(s); return err }
func (a amount[T]) Type() string             { return a.kind }
func (a amount[T]) String() string {
	var zero T
	if a.p == nil || *a.p == zero {
		return ""
	}
	return fmt.Sprint(*a.p)
}

// containerFlags are the settings of a container that run and update share.
type containerFlags struct {
	set    *pflag.FlagSet
	values model.Container
	env    []string
	pull   string
}

func (f *containerFlags) add(cmd *cobra.Command) {
	f.set = cmd.Flags()
	f.set.Var(amount[model.CPU]{&f.values.CPUs, model.ParseCPU, "cores"}, "cpus", "cores for each instance, such as 0.5 or 250m (default 0.1)")
	f.set.Var(amount[model.Bytes]{&f.values.Memory, model.ParseBytes, "bytes"}, "memory", "memory for each instance, such as 256MiB (default 128MiB)")
	f.set.Var(amount[model.Bytes]{&f.values.Disk, model.ParseBytes, "bytes"}, "disk", "disk reserved for each instance, such as 1GiB")
	f.set.Var(amount[model.GPU]{&f.values.GPUs, model.ParseGPU, "devices"}, "gpus", "graphics processors for each instance: a whole number, or a share of one such as 0.25")
	f.set.StringArrayVarP(&f.env, "env", "e", nil, "environment variable as `KEY=VALUE`; a bare KEY takes the value it has here; repeatable")
	f.set.StringVarP(&f.values.User, "user", "u", "", "`user`, or user:group, to run as")
	f.set.StringVar(&f.values.Dir, "dir", "", "working `directory`")
	f.set.StringVar(&f.pull, "pull", "", "`when` to fetch the image: missing, always or never (default missing)")
}

// apply sets on c what was given on the command line, and leaves the rest.
func (f *containerFlags) apply(c *model.Container) error {
	for name, set := range map[string]func(){
		"cpus":   func() { c.CPUs = f.values.CPUs },
		"memory": func() { c.Memory = f.values.Memory },
		"disk":   func() { c.Disk = f.values.Disk },
		"gpus":   func() { c.GPUs = f.values.GPUs },
		"user":   func() { c.User = f.values.User },
		"dir":    func() { c.Dir = f.values.Dir },
		"pull":   func() { c.Pull = model.PullPolicy(f.pull) },
	} {
		if f.set.Changed(name) {
			set()
		}
	}
	env, err := pairs("env", f.env, os.LookupEnv)
	if err != nil {
		return err
	}
	c.Env = merged(c.Env, env)
	return nil
}

// pairs reads KEY=VALUE texts. lookup, when not nil, gives the value of a bare KEY.
func pairs(flag string, list []string, lookup func(string) (string, bool)) (map[string]string, error) {
	m := map[string]string{}
	for _, text := range list {
		k, v, ok := strings.Cut(text, "=")
		if !ok && lookup != nil {
			v, ok = lookup(k)
		}
		if !ok || k == "" {
			return nil, usageError{fmt.Errorf("--%s %q: write KEY=VALUE", flag, text)}
		}
		m[k] = v
	}
	return m, nil
}

// merged returns old with more on top, nil when both are empty.
func merged(old, more map[string]string) map[string]string {
	if len(more) == 0 {
		return old
	}
	out := maps.Clone(old)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, more)
	return out
}

// usesPort reports whether an argument mentions $PORT0.
func usesPort(args []string) bool {
	return slices.ContainsFunc(args, func(s string) bool {
		return strings.Contains(s, "$PORT0") || strings.Contains(s, "${PORT0}")
	})
}
