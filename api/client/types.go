package client

import (
	"time"

	"github.com/gantry-os/gantry/model"
)

// Change is the answer to a write that changes an app.
type Change struct {
	App        model.AppID        `json:"app" doc:"The app."`
	Version    uint64             `json:"version" doc:"The app's version that the deployment leads to."`
	Deployment model.DeploymentID `json:"deployment" doc:"The deployment that carries out the change. When nothing had to change, the newest one of the app."`
	Unchanged  bool               `json:"unchanged,omitempty" doc:"The app was as asked already; no deployment was made."`
}

// AppSummary is an app in a list.
type AppSummary struct {
	ID         model.AppID       `json:"id" doc:"Id."`
	Version    uint64            `json:"version" doc:"The version that the user wrote last."`
	Target     uint64            `json:"target" doc:"The version that is deployed: another than version after a roll back."`
	Instances  int               `json:"instances" doc:"How many instances are asked for."`
	Running    int               `json:"running" doc:"How many wanted instances run."`
	Healthy    int               `json:"healthy" doc:"How many wanted instances run, are ready and fail no check."`
	Removing   bool              `json:"removing,omitempty" doc:"The user removed it; it goes once its instances are over."`
	Deployment *model.Deployment `json:"deployment,omitempty" doc:"The newest deployment."`
	Resources  model.Resources   `json:"resources" doc:"What one instance takes."`
	Labels     map[string]string `json:"labels,omitempty" doc:"Labels of the deployed version."`
	Created    time.Time         `json:"created" doc:"When it was made."`
	State      string            `json:"state" doc:"One word: running, deploying, degraded, paused, waiting, suspended or removing."`
	Why        string            `json:"why,omitempty" doc:"One sentence on what is not as asked, and why."`
}

// AppDetail is all there is to say of an app.
type AppDetail struct {
	AppSummary
	Revision uint64      `json:"revision" doc:"Revision of the app's record, for If-Match."`
	Spec     *model.Spec `json:"spec" doc:"The deployed version as the user wrote it."`
	List     []Instance  `json:"list" doc:"Instances, newest first, those that are over but kept included."`
	Stable   uint64      `json:"stable,omitempty" doc:"The last version that was healthy as a whole."`

	Funnel  *model.Funnel  `json:"funnel,omitempty" doc:"When instances wait for a node: how the nodes are narrowed down for one of them."`
	Volumes []VolumeDetail `json:"volumes,omitempty" doc:"Its persistent volumes."`
}

// Instance is an instance with what only the server can work out.
type Instance struct {
	model.Instance
	Addr      string         `json:"addr,omitempty" doc:"Address of its node."`
	Endpoints map[string]int `json:"endpoints,omitempty" doc:"Port of each endpoint."`
	Current   bool           `json:"current" doc:"It runs what the deployed version says."`
	State     string         `json:"state" doc:"One word for people: its phase, or unhealthy or not-ready while running."`
	Why       string         `json:"why,omitempty" doc:"One sentence: what it waits for, or how it ended."`
	Restarts  uint32         `json:"restarts,omitempty" doc:"How often it was started again."`
}

// Version is one kept version of an app.
type Version struct {
	Version  uint64      `json:"version" doc:"Number of the version, from 1."`
	Created  time.Time   `json:"created" doc:"When it was written."`
	Note     string      `json:"note,omitempty" doc:"How it came to be, when it was not written as it is."`
	Deployed bool        `json:"deployed" doc:"It is the one that is deployed."`
	Stable   bool        `json:"stable" doc:"It is the last one that was healthy as a whole."`
	Spec     *model.Spec `json:"spec" doc:"The spec, passwords masked."`
}

// Scale asks for a number of instances.
type Scale struct {
	Instances int `json:"instances" minimum:"0" maximum:"1000000" doc:"How many instances to keep running."`
}

// Rollback asks for an earlier version.
type Rollback struct {
	Version uint64 `json:"version,omitempty" doc:"The version to go back to. Default: the newest before the deployed one that was another spec."`
}

// NodeDetail is a node with what is taken of it, and what operators want of it.
type NodeDetail struct {
	model.Node
	Used       model.Resources        `json:"used" doc:"Taken by instances that are not over, and by persistent volumes."`
	UsedCustom map[string]model.Units `json:"usedCustom,omitempty" doc:"Custom resources that instances have taken, by name."`
	Instances  int                    `json:"instances" doc:"Instances that are not over."`

	Availability string              `json:"availability" enum:"ready,cordoned,draining,maintenance,unstable,unreachable,gone" doc:"One word: whether it takes new work. Only a ready node does."`
	Why          string              `json:"why,omitempty" doc:"One sentence: why it takes no new work."`
	Settings     *model.NodeSettings `json:"settings,omitempty" doc:"What operators want of it."`
}

// Usage is what nodes and instances use now.
type Usage struct {
	Nodes     []NodeUsage     `json:"nodes" doc:"What nodes use."`
	Instances []InstanceUsage `json:"instances" doc:"What instances use."`
}

// NodeUsage is what one node uses, beside what it has.
type NodeUsage struct {
	Node     model.NodeID    `json:"node" doc:"Id of the node."`
	Name     string          `json:"name" doc:"Name of the node."`
	Usage    model.Usage     `json:"usage" doc:"What it uses."`
	Capacity model.Resources `json:"capacity" doc:"What instances may take of it."`
}

// InstanceUsage is what one instance uses, beside what it may.
type InstanceUsage struct {
	Instance model.InstanceID `json:"instance" doc:"Id of the instance."`
	App      model.AppID      `json:"app" doc:"Its app."`
	Node     model.NodeID     `json:"node" doc:"Id of its node."`
	Usage    model.Usage      `json:"usage" doc:"What it uses."`
	Limit    model.Resources  `json:"limit" doc:"What it may use."`
}

// Info describes the server that answers.
type Info struct {
	Version string    `json:"version" doc:"Version of the server."`
	Go      string    `json:"go" doc:"Version of Go that built it."`
	Started time.Time `json:"started" doc:"When it started."`
	PID     int       `json:"pid" doc:"Its process id."`
	DataDir string    `json:"dataDir" doc:"Directory with all it keeps."`
	Auth    string    `json:"auth" enum:"token,none" doc:"How it recognises callers."`
	Apps    int       `json:"apps" doc:"How many apps there are."`
	Nodes   int       `json:"nodes" doc:"How many nodes there are."`
	Count   int       `json:"instances" doc:"Instance records, those that are over included."`
	Notice  string    `json:"notice,omitempty" doc:"One sentence on what is wrong with the cluster as a whole."`
}

// Shutdown asks the server to end.
type Shutdown struct {
	KeepInstances bool `json:"keepInstances,omitempty" doc:"Leave instances running; the next start adopts them."`
}

// Image is an OCI image present on a node.
type Image struct {
	Name    string      `json:"name" doc:"Name, as containers write it."`
	Digest  string      `json:"digest" doc:"Digest of its manifest or index."`
	Size    model.Bytes `json:"size" doc:"Size of its layers, compressed."`
	Created time.Time   `json:"created" doc:"When it came to the node."`
}

// Size is a terminal's size in characters.
type Size struct {
	Columns uint16 `json:"columns" doc:"Characters in a line."`
	Rows    uint16 `json:"rows" doc:"Lines."`
}

// ExecEnd is how a program run by exec ended.
type ExecEnd struct {
	Code  int    `json:"code" doc:"Exit code of the program."`
	Error string `json:"error,omitempty" doc:"Why it could not be run to its end, in which case there is no code."`
}

// Imported lists the images that an archive held.
type Imported struct {
	Images []string `json:"images" doc:"Names of the images."`
}

// Problem is an error answer, as RFC 9457 lays it out.
type Problem struct {
	Status int            `json:"status"`
	Title  string         `json:"title"`
	Detail string         `json:"detail"`
	Errors []ProblemField `json:"errors,omitempty"`
}

// ProblemField is one thing wrong with a request.
type ProblemField struct {
	Location string `json:"location"` // such as body.containers[0].image
	Message  string `json:"message"`
	Value    any    `json:"value,omitempty"`
}
