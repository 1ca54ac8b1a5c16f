package engine

import (
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/policy"
)

// Node is what placing has to know of a node.
type Node struct {
	ID         model.NodeID
	Name       string
	Pool       string
	Shut       string // why it takes no new work, such as "unreachable" or "cordoned: new disks"; empty when it does
	Attributes map[string]string
	Capacity   model.Resources
	GPUs       []model.GPUDevice
	Custom     map[string]model.Custom
	Ports      model.PortRange
	OCI, VM    model.Ability
	Reserved   []Reserved
}

// Reserved is what a node keeps for a role and those below it.
type Reserved struct {
	ID        string
	Role      model.RoleID
	Resources model.Resources
}

// Placement is where one instance goes.
type Placement struct {
	ID    model.InstanceID
	Node  model.NodeID
	Ports []uint16            // one for each endpoint
	GPUs  []model.GPUShare    // nil for none
	Items map[string][]string // nil for none
}

// Config is what an Engine is made with. Zero fields take their defaults.
type Config struct {
	// Policy returns how nodes of a pool are chosen for apps that name no policy. Default policy pack for all.
	Policy func(pool string) policy.Policy
	// Seed decides between what is equally good. The same calls with the same seed give the same placements.
	Seed uint64
}
