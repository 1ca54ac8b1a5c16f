package api

import (
	"maps"
	"slices"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// size is what an instance takes.
type size struct {
	model.Resources
	custom map[string]model.Units
}

// sizes works out sizes within one view. It remembers what instances of one version share.
type sizes struct {
	v     state.View
	known map[versionKey]size
}

func newSizes(v state.View) *sizes { return &sizes{v, map[versionKey]size{}} }

func (s *sizes) of(i *model.Instance) size {
	key := versionKey{i.App, i.Version}
	z, ok := s.known[key]
	if !ok {
		if ver := s.v.Version(i.App, i.Version); ver != nil {
			z = size{ver.Spec.Resources(), ver.Spec.Custom()}
		}
		s.known[key] = z
	}
	return z
}

func addCustom(sum *map[string]model.Units, more map[string]model.Units) {
	for name, n := range more {
		if *sum == nil {
			*sum = map[string]model.Units{}
		}
		(*sum)[name] += n
	}
}

// capacityOf returns what a node has, its graphics processors counted.
func capacityOf(n *model.Node) model.Resources {
	out := n.Capacity
	out.GPUs = max(out.GPUs, model.GPU(len(n.GPUs))*1000)
	return out
}

// amounts are quantities by the name of their resource, in the unit of its type. Only those that are there are in it.
type amounts map[string]int64

func quotaAmounts(q model.Quota) amounts {
	out := amounts{}
	if q.CPUs != nil {
		out[model.ResCPUs] = int64(*q.CPUs)
	}
	if q.Memory != nil {
		out[model.ResMemory] = int64(*q.Memory)
	}
	if q.Disk != nil {
		out[model.ResDisk] = int64(*q.Disk)
	}
	if q.GPUs != nil {
		out[model.ResGPUs] = int64(*q.GPUs)
	}
	for name, n := range q.Custom {
		out[name] = int64(n)
	}
	return out
}

func flat(a client.Amounts) amounts {
	out := resourceAmounts(a.Resources)
	for name, n := range a.Custom {
		out[name] = int64(n)
	}
	return out
}

func resourceAmounts(r model.Resources) amounts {
	return amounts{
		model.ResCPUs: int64(r.CPUs), model.ResMemory: int64(r.Memory), model.ResDisk: int64(r.Disk), model.ResGPUs: int64(r.GPUs),
	}
}

func (a amounts) add(o amounts) {
	for name, n := range o {
		a[name] += n
	}
}

func (a amounts) names() []string { return slices.Sorted(maps.Keys(a)) }

// amountText writes an amount for people.
func amountText(name string, n int64) string {
	switch name {
	case model.ResCPUs:
		return model.CPU(n).String()
	case model.ResMemory, model.ResDisk:
		return model.Bytes(n).Human()
	}
	return model.Units(n).String() // devices are in thousandths, too
}

// amountPath names the field of a quota that holds an amount.
func amountPath(field, name string) string {
	switch name {
	case model.ResCPUs, model.ResMemory, model.ResDisk, model.ResGPUs:
		return field + "." + name
	}
	return field + ".custom[\"" + name + "\"]"
}

// dominant returns the resource of which the largest part of all is used, and that part.
func dominant(used, all amounts) (name string, share float64) {
	for _, k := range used.names() {
		if part := float64(used[k]) / float64(all[k]); all[k] > 0 && part > share {
			name, share = k, part
		}
	}
	return name, share
}
