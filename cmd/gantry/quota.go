package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/model"
)

// noQuota stands for a quota that names nothing.
const noQuota = "none"

// parseQuota reads amounts such as cpus=20,memory=64GiB. Names beside cpus, memory, disk and gpus are those of custom
// resources.
func parseQuota(text string) (model.Quota, error) {
	var q model.Quota
	if strings.TrimSpace(text) == noQuota {
		return q, nil
	}
	seen := map[string]bool{}
	for part := range strings.SplitSeq(text, ",") {
		name, amount, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || name == "" || amount == "" {
			return q, fmt.Errorf("%q: write amounts such as cpus=20,memory=64GiB,gpus=2, or none", text)
		}
		if seen[name] {
			return q, fmt.Errorf("%q: %s is given twice", text, name)
		}
		seen[name] = true
		if err := setAmount(&q, name, amount); err != nil {
			return q, fmt.Errorf("%s: %w", name, err)
		}
	}
	return q, nil
}

func setAmount(q *model.Quota, name, amount string) (err error) {
	switch name {
	case model.ResCPUs:
		q.CPUs = new(model.CPU)
		*q.CPUs, err = model.ParseCPU(amount)
	case model.ResMemory:
		q.Memory = new(model.Bytes)
		*q.Memory, err = model.ParseBytes(amount)
	case model.ResDisk:
		q.Disk = new(model.Bytes)
		*q.Disk, err = model.ParseBytes(amount)
	case model.ResGPUs:
		q.GPUs = new(model.GPU)
		*q.GPUs, err = model.ParseGPU(amount)
	default:
		if q.Custom == nil {
			q.Custom = map[string]model.Units{}
		}
		q.Custom[name], err = model.ParseUnits(amount)
	}
	return err
}

// setWeights reads weights: a number for all resources, or RESOURCE=NUMBER for one.
func setWeights(r *model.Role, list []string) error {
	for _, text := range list {
		name, number, one := strings.Cut(text, "=")
		if !one {
			number = text
		}
		w, err := strconv.ParseFloat(number, 64)
		if err != nil || one && name == "" {
			return fmt.Errorf("--weight %q: write a number such as 2, or RESOURCE=NUMBER such as gpus=3", text)
		}
		if !one {
			r.Weight = w
			continue
		}
		if r.Weights == nil {
			r.Weights = map[string]float64{}
		}
		r.Weights[name] = w
	}
	return nil
}
