package model

import "time"

// Node is a machine that runs instances. Its agent says what it has; fleet writes it down.
type Node struct {
	ID         NodeID            `json:"id" doc:"Id."`
	Name       string            `json:"name" doc:"Host name."`
	Addr       string            `json:"addr" doc:"Address at which its instances are reached."`
	State      NodeState         `json:"state" enum:"ready,unreachable" doc:"Whether it takes work."` // fleet
	Seen       time.Time         `json:"seen" doc:"When its agent last connected."`                   // fleet
	Capacity   Resources         `json:"capacity" doc:"What instances may take in all."`
	Ports      PortRange         `json:"ports" doc:"From which ports are assigned."`
	OCI        Ability           `json:"oci" doc:"Whether it runs containers from images."`
	Isolated   Ability           `json:"isolated" doc:"Whether it gives programs without an image their own namespaces and cgroups."`
	Attributes map[string]string `json:"attributes,omitempty" doc:"Facts about it, such as os, arch and kernel."`
	Version    string            `json:"version" doc:"Version of its agent."`

	Revision uint64 `json:"-"`
}

// Ability is something a node can do, or why it cannot.
type Ability struct {
	OK  bool   `json:"ok" doc:"Whether it can."`
	Why string `json:"why,omitempty" doc:"Why not; else what does it."`
}

// PortRange is an inclusive range of ports.
type PortRange struct {
	First uint16 `json:"first" doc:"First port."`
	Last  uint16 `json:"last" doc:"Last port."`
}

// NodeState says whether a node takes work.
type NodeState string

// Node states.
const (
	NodeReady       NodeState = "ready"
	NodeUnreachable NodeState = "unreachable"
)

// Usage is what a task, an instance or a node uses.
type Usage struct {
	At      time.Time `json:"at" doc:"When it was measured."`
	CPUTime Duration  `json:"cpuTime" doc:"Processor time since start."`
	CPUs    float64   `json:"cpus" doc:"Cores used over the last interval."`
	Memory  Bytes     `json:"memory" doc:"Working set: memory less file cache that can be dropped."`
	Peak    Bytes     `json:"peak,omitempty" doc:"The largest working set."`
	Disk    Bytes     `json:"disk" doc:"Disk of sandbox and logs, or of the file system that holds the data of the node."`
}

// Event is something that happened, for people to read. Events are kept in memory, a few thousand of the newest.
type Event struct {
	Seq        uint64       `json:"seq" doc:"Counts up within one run of the server."`
	At         time.Time    `json:"at" doc:"When it happened."`
	Type       string       `json:"type" doc:"What happened, as noun.verb, such as app.created."`
	App        AppID        `json:"app,omitempty" doc:"The app it is about."`
	Instance   InstanceID   `json:"instance,omitempty" doc:"The instance it is about."`
	Deployment DeploymentID `json:"deployment,omitempty" doc:"The deployment it is about."`
	Node       NodeID       `json:"node,omitempty" doc:"The node it is about."`
	Message    string       `json:"message" doc:"One sentence."`
}
