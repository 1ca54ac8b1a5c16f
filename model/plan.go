package model

// Funnel says how the nodes of a cluster were narrowed down to those that can take one more instance of an app.
type Funnel struct {
	Nodes  int          `json:"nodes" doc:"Nodes considered."`
	Steps  []FunnelStep `json:"steps" doc:"The filters, in order; a node counts where it first fails."`
	Fit    int          `json:"fit" doc:"Nodes that are left: they can take one more instance."`
	Reason string       `json:"reason,omitempty" doc:"When none is left: why, as one sentence with counts for each cause."`
	Spread string       `json:"spread,omitempty" doc:"How the app's instances are spread by default, and how many are where, as one sentence; none where that is not so."`
}

// FunnelStep is one filter.
type FunnelStep struct {
	Filter  string `json:"filter" doc:"Which: state, pool, runtime, constraint rack UNLIKE r1, memory, ports, ..."`
	Removed int    `json:"removed" doc:"Nodes that it removed."`
	Left    int    `json:"left" doc:"Nodes that are left after it."`
	Why     string `json:"why,omitempty" doc:"What they lack."`
}

// Plan answers whether an app would fit now, and where. Nothing was changed for it.
type Plan struct {
	App       AppID        `json:"app" doc:"The app."`
	Instances int          `json:"instances" doc:"Instances asked for."`
	Kept      int          `json:"kept,omitempty" doc:"Instances that run already and would stay."`
	Placed    int          `json:"placed" doc:"Further instances that would be placed."`
	Waiting   int          `json:"waiting" doc:"Instances that would wait."`
	Nodes     []PlanNode   `json:"nodes,omitempty" doc:"Where they would be placed, by node."`
	Preempted []PlanVictim `json:"preempted,omitempty" doc:"Instances that would be ended to make room."`
	Funnel    Funnel       `json:"funnel" doc:"How the nodes were narrowed down for the first one that waits, or else for the first one placed."`
}

// PlanNode is what a plan puts on one node.
type PlanNode struct {
	Node      NodeID    `json:"node" doc:"Id of the node."`
	Name      string    `json:"name" doc:"Host name of the node."`
	Instances int       `json:"instances" doc:"Instances that would be placed on it."`
	Free      Resources `json:"free" doc:"What would be free on it then."`
}

// PlanVictim is an instance that would be ended.
type PlanVictim struct {
	Instance InstanceID `json:"instance" doc:"Id of the instance."`
	App      AppID      `json:"app" doc:"Its app."`
	Node     NodeID     `json:"node" doc:"Its node."`
	Priority int        `json:"priority" doc:"Its app's priority."`
	Why      string     `json:"why" doc:"Why it would be the one."`
}

// Move is a proposal of the defragmenter.
type Move struct {
	Instance InstanceID `json:"instance" doc:"Id of the instance."`
	App      AppID      `json:"app" doc:"Its app."`
	From     NodeID     `json:"from" doc:"Node that it is on."`
	To       NodeID     `json:"to" doc:"Node that it would go to."`
	Gain     string     `json:"gain" doc:"What is gained, as a sentence."`
}
