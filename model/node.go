package model

import (
	"fmt"
	"time"
)

// Node is a machine that runs instances. Its agent says what it has; fleet writes it down.
type Node struct {
	ID         NodeID            `json:"id" doc:"Id."`
	Name       string            `json:"name" doc:"Host name."`
	Addr       string            `json:"addr" doc:"Address at which its instances are reached."`
	State      NodeState         `json:"state" enum:"ready,unreachable,gone" doc:"Whether its agent answers."`                             // fleet
	Seen       time.Time         `json:"seen" doc:"When its agent last connected."`                                                        // fleet
	Lost       time.Time         `json:"lost,omitzero" doc:"When its agent last stopped answering, for longer than a moment."`             // fleet
	Flaps      int               `json:"flaps,omitempty" doc:"How often it was lost and came back, each time within minutes of the last."` // fleet
	Unstable   time.Time         `json:"unstable,omitzero" doc:"Until when it takes no new work, since it came and went too often."`       // fleet
	Capacity   Resources         `json:"capacity" doc:"What instances may take in all."`
	Ports      PortRange         `json:"ports" doc:"From which ports are assigned."`
	OCI        Ability           `json:"oci" doc:"Whether it runs containers from images."`
	Isolated   Ability           `json:"isolated" doc:"Whether it gives programs without an image their own namespaces and cgroups."`
	Attributes map[string]string `json:"attributes,omitempty" doc:"Facts about it, such as os, arch and kernel, and what its operator declared."`
	Pool       string            `json:"pool,omitempty" doc:"Part of the nodes that it belongs to. Default default."`
	Region     string            `json:"region,omitempty" doc:"Where it is, at large."`
	Zone       string            `json:"zone,omitempty" doc:"Where it is: nodes of a zone fail together."`
	GPUs       []GPUDevice       `json:"gpus,omitempty" doc:"Its graphics processors."`
	Custom     map[string]Custom `json:"custom,omitempty" doc:"Custom resources that its operator declared, by name."`
	VM         Ability           `json:"vm,omitzero" doc:"Whether it runs containers in virtual machines of their own."`
	Version    string            `json:"version" doc:"Version of its agent."`
	Release    Release           `json:"release,omitzero" doc:"Minor version that this is of."`
	Refused    string            `json:"refused,omitempty" doc:"Why its agent is not let in."` // fleet

	Revision uint64 `json:"-"`
}

// GPUDevice is one graphics processor.
type GPUDevice struct {
	ID     string `json:"id" doc:"Id, unique on its node."`
	Model  string `json:"model,omitempty" doc:"Model, such as T4."`
	Memory Bytes  `json:"memory,omitempty" doc:"Memory of its own."`
}

// Custom is what a node has of a custom resource: an amount, or a set of items that are told apart.
type Custom struct {
	Amount Units    `json:"amount,omitempty" doc:"How much there is."`
	Items  []string `json:"items,omitempty" doc:"The items, when they are told apart."`
}

// Total returns how much there is.
func (c Custom) Total() Units { return c.Amount + Units(len(c.Items))*1000 }

// Attribute returns the value of an attribute, hostname, region and zone included, and whether n has it.
func (n *Node) Attribute(name string) (string, bool) {
	switch name {
	case AttrHostname:
		return n.Name, true
	case AttrRegion:
		if n.Region != "" {
			return n.Region, true
		}
	case AttrZone:
		if n.Zone != "" {
			return n.Zone, true
		}
	}
	v, ok := n.Attributes[name]
	return v, ok
}

// Unsteady says until when n takes no new work, and why, when it is unstable.
func (n *Node) Unsteady() string {
	return fmt.Sprintf("it takes no new work until %s, since it came and went %d times within minutes", n.Unstable.UTC().Format(time.TimeOnly+" MST"), n.Flaps)
}

// NodeSettings is what operators want of a node. A node without a record has none. Api writes it.
type NodeSettings struct {
	ID       NodeID        `json:"id" doc:"Id of the node."`
	Cordoned bool          `json:"cordoned,omitempty" doc:"It takes no new work."`
	Draining bool          `json:"draining,omitempty" doc:"It takes no new work, and its instances are moved away."`
	Deadline time.Time     `json:"deadline,omitzero" doc:"When draining, the time past which instances stop though the update policies of their apps would keep them, those with persistent volumes last."`
	Why      string        `json:"why,omitempty" doc:"Why, in the operator's words."`
	Windows  []Maintenance `json:"windows,omitempty" doc:"When it will be worked on."`

	Revision uint64 `json:"-"`
}

// Maintenance is a time in which a node takes no new work.
type Maintenance struct {
	Start    time.Time `json:"start" doc:"When it begins."`
	Duration Duration  `json:"duration" doc:"How long it takes."`
	Every    Duration  `json:"every,omitempty" doc:"After how long it begins again. Default: it is once."`
	Drain    bool      `json:"drain,omitempty" doc:"Move its instances away when it begins."`
	Why      string    `json:"why,omitempty" doc:"What is done, in the operator's words."`
}

// At returns whether now is within the window, and when that changes next; zero for never.
func (m Maintenance) At(now time.Time) (inside bool, next time.Time) {
	start := m.Start
	if now.Before(start) {
		return false, start
	}
	if m.Every > 0 {
		start = start.Add(now.Sub(start) / m.Every.Std() * m.Every.Std())
	}
	if end := start.Add(m.Duration.Std()); now.Before(end) {
		return true, end
	}
	if m.Every > 0 {
		return false, start.Add(m.Every.Std())
	}
	return false, time.Time{}
}

// Validate returns everything that is wrong with s.
func (s *NodeSettings) Validate() FieldErrors {
	var errs FieldErrors
	checkText(&errs, "why", s.Why)
	if !s.Deadline.IsZero() && !s.Draining {
		errs.add("deadline", "has no meaning unless the node is draining")
	}
	tooMany(&errs, "windows", len(s.Windows), MaxRules)
	for i, w := range s.Windows {
		at := fmt.Sprintf("windows[%d]", i)
		checkText(&errs, at+".why", w.Why)
		if w.Start.IsZero() {
			errs.add(at+".start", "is missing: write a time such as 2026-01-31T22:00:00Z")
		}
		if w.Duration <= 0 {
			errs.add(at+".duration", "is missing: write how long it takes, such as 2h")
		}
		if w.Every != 0 && w.Every < w.Duration {
			errs.add(at+".every", "%v is shorter than the window itself, %v", w.Every, w.Duration)
		}
	}
	return errs
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

// NodeState says whether a node's agent answers.
type NodeState string

// Node states.
const (
	NodeReady       NodeState = "ready"
	NodeUnreachable NodeState = "unreachable"
	NodeGone        NodeState = "gone" // unreachable for so long that nobody counts on it; it is welcome back
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
