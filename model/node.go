package model

import "time"

// Node is a machine that runs instances. Its agent says what it has; fleet writes it down.
type Node struct {
	ID         NodeID            `json:"id"`
	Name       string            `json:"name"`                 // host name
	Addr       string            `json:"addr"`                 // where instances and their endpoints are reached
	State      NodeState         `json:"state"`                // fleet
	Seen       time.Time         `json:"seen"`                 // fleet: when the agent last connected
	Capacity   Resources         `json:"capacity"`             // what instances may take in all
	Ports      PortRange         `json:"ports"`                // from which assigned ports come
	OCI        Ability           `json:"oci"`                  // runs containers from images
	Isolated   Ability           `json:"isolated"`             // gives image-less programs namespaces and cgroups
	Attributes map[string]string `json:"attributes,omitempty"` // os, arch, kernel, cgroup version, ...
	Version    string            `json:"version"`              // of its agent

	Revision uint64 `json:"-"`
}

// Ability is something a node can do, or why it cannot.
type Ability struct {
	OK  bool   `json:"ok"`
	Why string `json:"why,omitempty"` // one sentence when not OK, else the engine and its version
}

// PortRange is an inclusive range of ports.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
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
	At      time.Time `json:"at"`
	CPUTime Duration  `json:"cpuTime"` // consumed since start
	CPUs    float64   `json:"cpus"`    // cores, over the last interval
	Memory  Bytes     `json:"memory"`  // working set: resident, less file cache that can be dropped
	Peak    Bytes     `json:"peak,omitempty"`
	Disk    Bytes     `json:"disk"` // of the sandbox and logs, or of the node's data file system
}

// Event is something that happened, for people to read. Events are kept in memory, a few thousand of the newest.
type Event struct {
	Seq        uint64       `json:"seq"` // counts up within one run of the server
	At         time.Time    `json:"at"`
	Type       string       `json:"type"` // what, as noun.verb: app.created, instance.running, deployment.failed, node.ready
	App        AppID        `json:"app,omitempty"`
	Instance   InstanceID   `json:"instance,omitempty"`
	Deployment DeploymentID `json:"deployment,omitempty"`
	Node       NodeID       `json:"node,omitempty"`
	Message    string       `json:"message"` // one sentence
}
