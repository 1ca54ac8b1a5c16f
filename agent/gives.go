package agent

import (
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

// gpusOf returns what a container has of the instance's devices. They are dealt to the containers in their order, each as
// much as it asks for.
func gpusOf(asg *wire.Assignment, name string) []model.GPUShare {
	left := slices.Clone(asg.GPUs)
	for _, c := range asg.Spec.Containers {
		var own []model.GPUShare
		for need := c.GPUs; need > 0 && len(left) > 0; {
			take := min(need, left[0].Share)
			own = append(own, model.GPUShare{ID: left[0].ID, Share: take})
			need -= take
			if left[0].Share -= take; left[0].Share == 0 {
				left = left[1:]
			}
		}
		if c.Name == name {
			return own
		}
	}
	return nil
}

// itemsOf returns what a container has of the instance's items of one resource, dealt likewise.
func itemsOf(asg *wire.Assignment, name, resource string) []string {
	left := asg.Items[resource]
	for _, c := range asg.Spec.Containers {
		n := min(len(left), int((c.Custom[resource]+999)/1000))
		if c.Name == name {
			return left[:n]
		}
		left = left[n:]
	}
	return nil
}

func idsOf(shares []model.GPUShare) []string {
	var ids []string
	for _, s := range shares {
		ids = append(ids, s.ID)
	}
	return ids
}

// giveVariables adds to env what tells a container its slot, its devices and its custom resources.
func giveVariables(env map[string]string, asg *wire.Assignment, c *model.Container) {
	if asg.Slot > 0 {
		env["SLOT"] = strconv.FormatUint(uint64(asg.Slot), 10)
	}
	if gpus := gpusOf(asg, c.Name); len(gpus) > 0 {
		shares := make([]string, len(gpus))
		for i, g := range gpus {
			shares[i] = g.ID + "=" + g.Share.String()
		}
		ids := strings.Join(idsOf(gpus), ",")
		env["GANTRY_GPUS"] = strings.Join(shares, ",")
		env["NVIDIA_VISIBLE_DEVICES"], env["CUDA_VISIBLE_DEVICES"] = ids, ids
	}
	for name, amount := range c.Custom {
		value := amount.String()
		if _, isSet := asg.Items[name]; isSet {
			value = strings.Join(itemsOf(asg, c.Name, name), ",")
		}
		env["GANTRY_RESOURCE_"+model.Variable(name)] = value
	}
}
