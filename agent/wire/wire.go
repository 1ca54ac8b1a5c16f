// Package wire is what a server and an agent say to each other. The messages are plain values: where both share a process,
// a Link is a pair of channels, and agent/wire/rpc carries them over a network.
//
// The agent opens with Hello. The server answers with one Down that has Full set and holds every assignment of the node,
// those that are to stop and those that are over included; later Downs are deltas. The agent sends a Report for every
// change it makes to an instance, and for every instance after connecting. It may forget an instance, and delete its
// logs, once its assignment was dropped.
//
// Persistent volumes outlive instances. The agent makes one when an instance first needs it, and deletes one only when it is
// told to by DropVolumes; it does so once no instance holds it, and then reports it in RemovedVolumes. The server repeats
// what is still to be deleted whenever the agent connects.
//
// An agent that asks for the endpoint table gets all of it soon after it has connected, and every change of it later.
package wire

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/route"
	"github.com/gantry-os/gantry/runtime"
)

// Down is a message from the server to an agent.
type Down struct {
	Full        bool               // Set holds all assignments: drop every other
	Set         []Assignment       // new or changed
	Drop        []model.InstanceID // no longer known
	Volumes     []model.VolumeID   // with Full: all that the node is to keep
	DropVolumes []model.VolumeID   // to be deleted with what they hold; with Full: all that are
	Cluster     *Cluster           // where the servers are, when that has changed; whoever carries the message says so
	Routes      []*Routes          // changes of the endpoint table, oldest first, for agents that asked for it; the first is Full
}

// Routes is a change of the endpoint table, which all nodes are told of alike. It is not changed once it is made.
type Routes struct {
	route.Change

	once    sync.Once
	encoded []byte
}

// Encoded returns what encode makes of r. It is called once, and the bytes are shared by all who send r.
func (r *Routes) Encoded(encode func(*route.Change) []byte) []byte {
	r.once.Do(func() { r.encoded = encode(&r.Change) })
	return r.encoded
}

// Cluster is where agents find the servers.
type Cluster struct {
	Servers []string // addresses of all
	Leader  string   // address of the one that serves agents; empty while there is none
}

// Assignment is all an agent needs to run one instance, whatever becomes of the server.
type Assignment struct {
	ID      model.InstanceID `json:"id"`
	App     model.AppID      `json:"app"`
	Version uint64           `json:"version"`
	Desired model.Desired    `json:"desired"`
	Over    bool             `json:"over,omitempty"`    // the server knows it has ended: only its logs are kept
	Attempt uint32           `json:"attempt,omitempty"` // the newest that the server knew of when it sent this; an agent that lost its records goes on from there
	Ports   []uint16         `json:"ports,omitempty"`
	Spec    *model.Spec      `json:"spec"` // with defaults filled in

	Slot  uint32              `json:"slot,omitempty"`
	GPUs  []model.GPUShare    `json:"gpus,omitempty"`
	Items map[string][]string `json:"items,omitempty"`
}

// Up is a message from an agent to the server.
type Up struct {
	Hello          *model.Node // once, first: what the node has; State, Seen and Revision are the server's
	WantRoutes     bool        // with Hello: send the endpoint table. Older servers do not know of it
	Reports        []Report
	RemovedVolumes []model.VolumeID // deleted: nothing of them is left
}

// Report is the newest status of one instance.
type Report struct {
	ID     model.InstanceID
	Status model.Status
}

// Link is the agent's end of a session.
type Link interface {
	// Recv waits for the next message. It fails when the session has ended.
	Recv(ctx context.Context) (Down, error)
	// Send delivers u; when it returns nil, the server has it durably.
	Send(ctx context.Context, u Up) error
}

// Node is what a server asks of an agent on behalf of a user.
type Node interface {
	// Logs returns a stream of an instance's log. It fails with runtime.ErrNotFound when the node has none.
	Logs(ctx context.Context, r LogRequest) (io.ReadCloser, error)
	// Exec runs a program in an instance's container until it ends, and returns its exit code. container may be empty for
	// the first.
	Exec(ctx context.Context, id model.InstanceID, container string, e runtime.Exec) (int, error)
	// Import loads images from an archive and returns their names.
	Import(ctx context.Context, archive io.Reader) ([]string, error)
	// Images returns the images present on the node.
	Images(ctx context.Context) ([]runtime.Image, error)
	// Usage returns what the node and its running instances use, at most a few seconds old.
	Usage(ctx context.Context) (Usage, error)
}

// LogRequest asks for output of one container.
type LogRequest struct {
	Instance  model.InstanceID
	Container string // empty for the first
	Stream    string // stdout or stderr
	Tail      int    // begin this many lines before the end; negative for the beginning of what is kept
	Follow    bool   // go on until the instance is over or the caller stops reading
}

// Usage is what a node and its instances use.
type Usage struct {
	Node      model.Usage
	Instances map[model.InstanceID]model.Usage
	Interval  time.Duration // over which CPUs were measured
}
