package main

import (
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// runOptions are the flags of run that make an app of an image or a program.
type runOptions struct {
	containerFlags
	name       string
	instances  int
	ports      []string
	volumes    []string
	labels     []string
	healthHTTP string

	constraints     []string
	role            string
	priority        int
	pool, placement string
}

// runOnlyFlags make no sense with a file.
var runOnlyFlags = []string{"name", "id", "instances", "port", "volume", "label", "health-http", "cpus", "memory", "disk",
	"gpus", "env", "user", "dir", "pull", "constraint", "role", "priority", "pool", "placement"}

func (o *runOptions) add(cmd *cobra.Command) {
	o.containerFlags.add(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.name, "name", "n", "", "`id` of the app, such as web or shop/web; an app that exists is updated")
	f.StringVar(&o.name, "id", "", "the same as --name, an `id`")
	f.IntVarP(&o.instances, "instances", "i", 1, "how many instances to keep running")
	f.StringArrayVarP(&o.ports, "port", "p", nil, "endpoint as `NAME[:PORT]`; without a port a free one is assigned; repeatable")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "directory of the machine as `HOST:PATH[:ro]`; repeatable")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "label as `KEY=VALUE`; repeatable")
	f.StringVar(&o.healthHTTP, "health-http", "", "check each instance by asking its first endpoint for this `path`")
	f.StringArrayVar(&o.constraints, "constraint", nil, "which nodes will do, as `'ATTRIBUTE OPERATOR [VALUE]'`, such as 'hostname UNIQUE'; repeatable")
	f.StringVar(&o.role, "role", "", "`role` whose share of the cluster it uses (default /)")
	f.IntVar(&o.priority, "priority", model.DefaultPriority, "from 0 to 100: within a role, higher goes first")
	f.StringVar(&o.pool, "pool", "", "`name` of the pool of nodes that it runs on (default default)")
	f.StringVar(&o.placement, "placement", "", "`how` nodes are chosen among those that fit: pack, spread or balanced (default the pool's)")
}

// completePlacement lets shells complete the flags that say where an app runs.
func (c *cli) completePlacement(cmd *cobra.Command) {
	registerCompletion(cmd, "role", c.completeRoles)
	registerCompletion(cmd, "pool", c.completePools)
	completeWords(cmd, "placement", string(model.PolicyPack), string(model.PolicySpread), string(model.PolicyBalanced))
}

// spec makes the app that runs program in image, either of which may be empty.
func (o *runOptions) spec(image string, program []string) (*model.Spec, error) {
	id, err := o.id(image, program)
	if err != nil {
		return nil, err
	}
	s := &model.Spec{ID: id, Containers: []model.Container{{Image: image, Command: program}}}
	if o.set.Changed("instances") {
		s.Instances = &o.instances
	}
	if err := o.apply(&s.Containers[0]); err != nil {
		return nil, err
	}
	labels, err := pairs("label", o.labels, nil)
	if err != nil {
		return nil, err
	}
	s.Labels = merged(nil, labels)
	if err := o.addVolumes(s); err != nil {
		return nil, err
	}
	if err := o.addEndpoints(s); err != nil {
		return nil, err
	}
	if err := o.addPlacement(s); err != nil {
		return nil, err
	}
	if errs := s.Validate(); len(errs) > 0 {
		return nil, usageError{errs}
	}
	return s, nil
}

// addPlacement says where the app may run, and in whose name.
func (o *runOptions) addPlacement(s *model.Spec) error {
	for _, text := range o.constraints {
		k, err := parseConstraint(text)
		if err != nil {
			return usageError{fmt.Errorf("--constraint %w", err)}
		}
		s.Constraints = append(s.Constraints, k)
	}
	if o.role != "" {
		id, err := model.ParseRoleID(o.role)
		if err != nil {
			return usageError{fmt.Errorf("--role: %w", err)}
		}
		s.Role = id
	}
	if o.set.Changed("priority") {
		s.Priority = &o.priority
	}
	s.Pool, s.Placement = o.pool, model.Policy(o.placement)
	return nil
}

func (o *runOptions) id(image string, program []string) (model.AppID, error) {
	if o.name != "" {
		return appID(o.name)
	}
	if image != "" {
		return appID(imageName(image))
	}
	return appID(asName(path.Base(program[0])))
}

// imageName takes the name of an app from an image reference: registry.example/acme/web-ui:1.2 becomes web-ui.
func imageName(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	base, _, _ := strings.Cut(path.Base(ref), ":")
	return asName(base)
}

// asName turns s into what an app may be called.
func asName(s string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, s)
	name = strings.Trim(name[:min(len(name), model.MaxSegment)], "-")
	if name == "" {
		return "app"
	}
	return name
}

// addEndpoints adds those of --port, or one named http when the program or the check needs one.
func (o *runOptions) addEndpoints(s *model.Spec) error {
	for _, text := range o.ports {
		name, port, fixed := strings.Cut(text, ":")
		e := model.Endpoint{Name: name}
		if fixed {
			n, err := strconv.Atoi(port)
			if err != nil || n < 1 || n > 65535 {
				return usageError{fmt.Errorf("--port %q: write NAME or NAME:PORT, with a port from 1 to 65535", text)}
			}
			e.Port = n
		} else if _, err := strconv.Atoi(name); err == nil {
			return usageError{fmt.Errorf("--port %q: an endpoint has a name: write http:%s", text, name)}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	if len(s.Endpoints) == 0 && (o.healthHTTP != "" || usesPort(s.Containers[0].Command)) {
		s.Endpoints = []model.Endpoint{{Name: "http"}}
	}
	if o.healthHTTP != "" {
		s.Health = []model.Check{{HTTP: &model.HTTPCheck{Endpoint: s.Endpoints[0].Name, Path: o.healthHTTP}}}
	}
	return nil
}

func (o *runOptions) addVolumes(s *model.Spec) error {
	for i, text := range o.volumes {
		parts := strings.Split(text, ":")
		if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" || len(parts) == 3 && parts[2] != "ro" {
			return usageError{fmt.Errorf("--volume %q: write HOST:PATH or HOST:PATH:ro", text)}
		}
		host, err := filepath.Abs(parts[0])
		if err != nil {
			return fmt.Errorf("find directory %s: %w", parts[0], err)
		}
		name := fmt.Sprintf("volume-%d", i)
		s.Volumes = append(s.Volumes, model.Volume{Name: name, HostPath: host})
		s.Containers[0].Mounts = append(s.Containers[0].Mounts,
			model.Mount{Volume: name, Path: parts[1], ReadOnly: len(parts) == 3})
	}
	return nil
}
