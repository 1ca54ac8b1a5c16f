package model

import "time"

// Instance is one copy of an app. The field comments name the room that writes each field.
type Instance struct {
	ID      InstanceID `json:"id"`
	App     AppID      `json:"app"`
	Version uint64     `json:"version"`           // orchestrator: the app version whose spec it runs; immutable
	Created time.Time  `json:"created"`           // orchestrator; immutable
	Desired Desired    `json:"desired"`           // orchestrator: run or stop; never back to run
	Why     string     `json:"why,omitempty"`     // orchestrator: why it is to stop
	Node    NodeID     `json:"node,omitempty"`    // scheduler: where it runs; immutable once set
	Ports   []uint16   `json:"ports,omitempty"`   // scheduler: one per endpoint of the spec, in order
	Pending string     `json:"pending,omitempty"` // scheduler: why it has no node yet
	Status  Status     `json:"status"`            // fleet: what the agent saw last

	Revision uint64 `json:"-"` // state: the store's revision of the last write
}

// Desired says what an instance should do.
type Desired string

// What the orchestrator can want of an instance.
const (
	Run  Desired = "run"
	Halt Desired = "stop"
)

// Status is the agent's word about an instance.
type Status struct {
	Attempt uint32       `json:"attempt,omitempty"` // how often it was started on its node, from 1
	Phase   Phase        `json:"phase"`
	Since   time.Time    `json:"since"`             // when Phase, Healthy or Ready last changed
	Started time.Time    `json:"started,omitzero"`  // when this attempt's programs ran
	Healthy Health       `json:"healthy,omitempty"` // of the liveness checks
	Ready   bool         `json:"ready,omitempty"`   // running, and all checks have passed
	Message string       `json:"message,omitempty"` // one sentence: what it waits for, or how it ended
	Tasks   []TaskStatus `json:"tasks,omitempty"`   // one per container that was started in this attempt
}

// TaskStatus is what is known of one container's program.
type TaskStatus struct {
	Name string `json:"name"`
	PID  int    `json:"pid,omitempty"`  // on its node; 0 before start
	Exit *Exit  `json:"exit,omitempty"` // how it ended, nil while it runs
}

// Exit is how a program ended.
type Exit struct {
	Code   int       `json:"code"`             // exit code; 128+n when signal n ended it
	Signal int       `json:"signal,omitempty"` // the signal that ended it, or 0
	OOM    bool      `json:"oom,omitempty"`    // the kernel ended it, or one of its children, at its memory limit
	Peak   Bytes     `json:"peak,omitempty"`   // most memory used, with OOM
	Limit  Bytes     `json:"limit,omitempty"`  // the limit, with OOM
	Lost   string    `json:"lost,omitempty"`   // why code and time are not known, such as a reboot
	At     time.Time `json:"at"`
}

// Health is the outcome of liveness checks.
type Health string

// Outcomes. An app without liveness checks stays at HealthUnknown.
const (
	HealthUnknown Health = ""
	Healthy       Health = "healthy"
	Unhealthy     Health = "unhealthy"
)

// Phase is where an instance stands in its life.
//
//	pending -> assigned -> preparing -> starting -> running -> stopping -> stopped
//	                           ^            |          |          |
//	                           |            v          v          v
//	                           +------- backoff <------+----------+
//
// Each phase may also be skipped, and every phase may go to stopping or stopped when the instance is to stop.
// An attempt only moves forward through preparing, starting, running, stopping, backoff; leaving backoff begins the
// next attempt. Stopped is the end.
type Phase string

// Phases, in order of life.
const (
	PhasePending   Phase = "pending"   // no node yet; Instance.Pending says why
	PhaseAssigned  Phase = "assigned"  // has a node, whose agent has not begun
	PhasePreparing Phase = "preparing" // the agent fetches artifacts and images
	PhaseStarting  Phase = "starting"  // the agent starts its programs
	PhaseRunning   Phase = "running"   // all its programs run
	PhaseStopping  Phase = "stopping"  // was asked to end
	PhaseBackoff   Phase = "backoff"   // ended or failed to start; waits before the next attempt
	PhaseStopped   Phase = "stopped"   // over; its logs are kept for a while
)

var phaseOrder = map[Phase]int{
	PhasePending: 0, PhaseAssigned: 1, PhasePreparing: 2, PhaseStarting: 3,
	PhaseRunning: 4, PhaseStopping: 5, PhaseBackoff: 6, PhaseStopped: 7,
}

// Valid reports whether p is a known phase.
func (p Phase) Valid() bool { _, ok := phaseOrder[p]; return ok }

// CanFollow reports whether an instance with status old may report status s next. Reports that arrive late or twice
// are told apart from news by it: within an attempt phases only move forward, a later attempt beats an earlier one,
// and nothing follows stopped.
func (s Status) CanFollow(old Status) bool {
	if !s.Phase.Valid() || old.Phase == PhaseStopped {
		return false
	}
	if s.Phase == PhaseStopped {
		return true
	}
	if s.Attempt != old.Attempt {
		return s.Attempt > old.Attempt
	}
	return phaseOrder[s.Phase] >= phaseOrder[old.Phase]
}

// Over reports whether the instance has ended for good.
func (i *Instance) Over() bool { return i.Status.Phase == PhaseStopped }

// Live reports whether the instance is wanted and not over: it counts against the number that was asked for.
func (i *Instance) Live() bool { return i.Desired == Run && !i.Over() }

// HealthySince returns since when the instance has been running and ready, and whether it is.
func (i *Instance) HealthySince() (time.Time, bool) {
	ok := i.Desired == Run && i.Status.Phase == PhaseRunning && i.Status.Ready && i.Status.Healthy != Unhealthy
	return i.Status.Since, ok
}

// Clone returns a copy of i that shares nothing which may be changed.
func (i *Instance) Clone() *Instance {
	out := *i
	out.Ports = append([]uint16(nil), i.Ports...)
	out.Status.Tasks = append([]TaskStatus(nil), i.Status.Tasks...)
	return &out
}
