package model

import (
	"fmt"
	"math"
	"path"
	"strings"
	"time"
)

// RoleID names a role by its path in the tree of roles, such as "/analytics/batch". "/" is the whole cluster, and the
// role of apps that name none.
type RoleID string

// RootRole holds all others.
const RootRole RoleID = "/"

// ParseRoleID cleans and checks the id of a role: "analytics/batch" means "/analytics/batch".
func ParseRoleID(s string) (RoleID, error) {
	if s == "" {
		return "", fmt.Errorf("role is empty: write a path such as /analytics/batch")
	}
	clean := path.Clean("/" + s)
	if len(clean) > MaxAppID {
		return "", fmt.Errorf("role has %d bytes, at most %d are allowed", len(clean), MaxAppID)
	}
	if clean == "/" {
		return RootRole, nil
	}
	for seg := range strings.SplitSeq(clean[1:], "/") {
		if err := checkName(seg); err != nil {
			return "", fmt.Errorf("role %q: %w", s, err)
		}
	}
	return RoleID(clean), nil
}

// Parent returns the role above, "" for the root.
func (r RoleID) Parent() RoleID {
	if r == RootRole {
		return ""
	}
	return RoleID(path.Dir(string(r)))
}

// Within reports whether r is o or below it.
func (r RoleID) Within(o RoleID) bool {
	return r == o || o == RootRole || strings.HasPrefix(string(r), string(o)+"/")
}

// Role is a share of the cluster. Api writes it.
type Role struct {
	ID        RoleID             `json:"id" doc:"Path of the role, such as /analytics/batch. A role's parent must exist."`
	Guarantee Quota              `json:"guarantee,omitzero" doc:"What it gets back from others, by ending their work, when it needs it. What it does not need, others use."`
	Limit     Quota              `json:"limit,omitzero" doc:"What it and the roles below it may take at most. Absent amounts are not limited."`
	Weight    float64            `json:"weight,omitempty" doc:"Its part of what its siblings compete for. Default 1."`
	Weights   map[string]float64 `json:"weights,omitempty" doc:"A weight for one resource (cpus, memory, disk, gpus or a custom one), instead of weight."`

	Revision uint64 `json:"-"`
}

// Quota is an amount of some resources. What is absent is not meant.
type Quota struct {
	CPUs   *CPU             `json:"cpus,omitempty" doc:"Cores."`
	Memory *Bytes           `json:"memory,omitempty" doc:"Memory."`
	Disk   *Bytes           `json:"disk,omitempty" doc:"Disk."`
	GPUs   *GPU             `json:"gpus,omitempty" doc:"Devices."`
	Custom map[string]Units `json:"custom,omitempty" doc:"Custom resources, by name."`
}

// Resource names of weights, beside those of custom resources.
const (
	ResCPUs   = "cpus"
	ResMemory = "memory"
	ResDisk   = "disk"
	ResGPUs   = "gpus"
)

// Validate returns everything that is wrong with r as a record of its own; whether its parent exists and its numbers
// agree with its parent's is for those who know the tree.
func (r *Role) Validate() FieldErrors {
	var errs FieldErrors
	checkRole(&errs, "id", r.ID)
	checkShare(&errs, "weight", r.Weight)
	tooMany(&errs, "weights", len(r.Weights), MaxList)
	for k, w := range r.Weights {
		checkAttribute(&errs, "weights", k)
		checkShare(&errs, "weights."+k, w)
	}
	r.Guarantee.validate(&errs, "guarantee")
	r.Limit.validate(&errs, "limit")
	below(&errs, "cpus", r.Guarantee.CPUs, r.Limit.CPUs)
	below(&errs, "memory", r.Guarantee.Memory, r.Limit.Memory)
	below(&errs, "disk", r.Guarantee.Disk, r.Limit.Disk)
	below(&errs, "gpus", r.Guarantee.GPUs, r.Limit.GPUs)
	for k, g := range r.Guarantee.Custom {
		if most, ok := r.Limit.Custom[k]; ok {
			below(&errs, k, &g, &most)
		}
	}
	return errs
}

// checkRole refuses what is no role's id, and what is one only when it is cleaned: nobody who compares ids cleans them.
func checkRole(errs *FieldErrors, at string, r RoleID) {
	if id, err := ParseRoleID(string(r)); err != nil {
		errs.add(at, "%v", err)
	} else if id != r {
		errs.add(at, "write it as %q", id)
	}
}

func checkShare(errs *FieldErrors, at string, w float64) {
	if !(w == 0 || w >= 0.001 && w <= 1e6) || math.IsNaN(w) {
		errs.add(at, "%g is outside 0.001 to 1000000", w)
	}
}

func (q Quota) validate(errs *FieldErrors, at string) {
	if q.CPUs != nil && *q.CPUs < 0 {
		errs.add(at+".cpus", "is negative")
	}
	if q.Memory != nil && *q.Memory < 0 {
		errs.add(at+".memory", "is negative")
	}
	if q.Disk != nil && *q.Disk < 0 {
		errs.add(at+".disk", "is negative")
	}
	tooMany(errs, at+".custom", len(q.Custom), MaxCustom)
	for k := range q.Custom {
		checkAttribute(errs, at+".custom", k)
	}
}

func below[T ~int64](errs *FieldErrors, name string, least, most *T) {
	if least != nil && most != nil && *least > *most {
		errs.add("guarantee."+name, "is more than limit.%s", name)
	}
}

// Reservation keeps resources of one node for a role and the roles below it. Api writes it.
type Reservation struct {
	ID        string    `json:"id" doc:"Name of the reservation, unique in the cluster."`
	Role      RoleID    `json:"role" doc:"Role that it is for."`
	Node      NodeID    `json:"node" doc:"Node that it is on."`
	Resources Resources `json:"resources" doc:"What it keeps free for the role."`
	Created   time.Time `json:"created,omitzero" doc:"When it was made."`

	Revision uint64 `json:"-"`
}

// Validate returns everything that is wrong with r as a record of its own.
func (r *Reservation) Validate() FieldErrors {
	var errs FieldErrors
	if err := checkName(r.ID); err != nil {
		errs.add("id", "%v", err)
	}
	checkRole(&errs, "role", r.Role)
	if r.Node == "" {
		errs.add("node", "is missing")
	}
	if z := r.Resources; z.CPUs < 0 || z.Memory < 0 || z.Disk < 0 || z.GPUs < 0 {
		errs.add("resources", "an amount is negative")
	} else if z == (Resources{}) {
		errs.add("resources", "is empty: give cpus, memory, disk or gpus")
	}
	return errs
}
