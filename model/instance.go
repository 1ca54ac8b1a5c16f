package model

import (
	"slices"
	"time"
)

// Instance is one copy of an app. The field comments name the room that writes each field.
type Instance struct {
	ID      InstanceID `json:"id" doc:"Id: the last part of the id of the app, and a random suffix."`
	App     AppID      `json:"app" doc:"The app that it is a copy of."`
	Version uint64     `json:"version" doc:"The version of the app that it was made for."`                                    // orchestrator; immutable
	Created time.Time  `json:"created" doc:"When it was asked for."`                                                          // orchestrator; immutable
	Desired Desired    `json:"desired" enum:"run,stop" doc:"What it should do."`                                              // orchestrator; never back to run
	Why     string     `json:"why,omitempty" doc:"Why it is to stop; or, while it has to leave its node, what it waits for."` // orchestrator
	Node    NodeID     `json:"node,omitempty" doc:"Id of the node that it is on."`                                            // scheduler; immutable once set
	Ports   []uint16   `json:"ports,omitempty" doc:"One port for each endpoint of the app, in their order."`                  // scheduler
	Pending string     `json:"pending,omitempty" doc:"Why it has no node yet."`                                               // scheduler

	Slot     uint32              `json:"slot,omitempty" doc:"Stable identity of an instance with persistent volumes, from 1."` // orchestrator; immutable
	Replaces InstanceID          `json:"replaces,omitempty" doc:"The instance that it takes over from."`                       // orchestrator; immutable
	GPUs     []GPUShare          `json:"gpus,omitempty" doc:"The devices that it has."`                                        // scheduler; immutable once set
	Items    map[string][]string `json:"items,omitempty" doc:"The items that it has of custom resources that are sets."`       // scheduler; immutable once set
	Evict    *Eviction           `json:"evict,omitempty" doc:"Why it has to leave its node."`                                  // scheduler

	Status Status `json:"status" doc:"What its node says of it."` // fleet

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
	Attempt uint32       `json:"attempt,omitempty" doc:"How often it was started, from 1."`
	Phase   Phase        `json:"phase" enum:"pending,assigned,preparing,starting,running,stopping,backoff,stopped" doc:"Where it stands in its life."`
	Since   time.Time    `json:"since" doc:"When phase, health or readiness last changed."`
	Started time.Time    `json:"started,omitzero" doc:"When the programs of this attempt ran."`
	Healthy Health       `json:"healthy,omitempty" enum:"healthy,unhealthy" doc:"Outcome of the liveness checks; absent without any."`
	Ready   bool         `json:"ready,omitempty" doc:"It runs, and all checks have passed."`
	Message string       `json:"message,omitempty" doc:"One sentence: what it waits for, or how it ended."`
	Tasks   []TaskStatus `json:"tasks,omitempty" doc:"One for each container that was started in this attempt."`
	Away    time.Time    `json:"away,omitzero" doc:"Since when its node does not answer: what the status says was true before."` // fleet, on its own word
}

// TaskStatus is what is known of one container's program.
type TaskStatus struct {
	Name string `json:"name" doc:"Name of the container."`
	PID  int    `json:"pid,omitempty" doc:"Process id on its node."`
	Exit *Exit  `json:"exit,omitempty" doc:"How it ended; absent while it runs."`
}

// Exit is how a program ended.
type Exit struct {
	Code   int       `json:"code" doc:"Exit code; 128 and the number of the signal when one ended it."`
	Signal int       `json:"signal,omitempty" doc:"Number of the signal that ended it."`
	OOM    bool      `json:"oom,omitempty" doc:"It was ended at its memory limit."`
	Peak   Bytes     `json:"peak,omitempty" doc:"The most memory it used, when ended at its limit."`
	Limit  Bytes     `json:"limit,omitempty" doc:"Its memory limit, when ended at it."`
	Lost   string    `json:"lost,omitempty" doc:"Why code and time are not known."`
	At     time.Time `json:"at" doc:"When it ended."`
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

// Equal reports whether s says the same as other.
func (s Status) Equal(other Status) bool {
	return s.Attempt == other.Attempt && s.Phase == other.Phase && s.Healthy == other.Healthy && s.Ready == other.Ready && s.Message == other.Message &&
		s.Since.Equal(other.Since) && s.Started.Equal(other.Started) && s.Away.Equal(other.Away) && slices.EqualFunc(s.Tasks, other.Tasks, TaskStatus.equal)
}

func (t TaskStatus) equal(other TaskStatus) bool {
	if t.Name != other.Name || t.PID != other.PID || (t.Exit == nil) != (other.Exit == nil) {
		return false
	}
	if t.Exit == nil {
		return true
	}
	was, is := *t.Exit, *other.Exit
	at := was.At.Equal(is.At)
	was.At, is.At = time.Time{}, time.Time{}
	return at && was == is
}

// Over reports whether the instance has ended for good.
func (i *Instance) Over() bool { return i.Status.Phase == PhaseStopped }

// Live reports whether the instance is wanted and not over: it counts against the number that was asked for.
func (i *Instance) Live() bool { return i.Desired == Run && !i.Over() }

// HealthySince returns since when the instance has been running and ready, and whether it is. One whose node does not
// answer is not.
func (i *Instance) HealthySince() (time.Time, bool) {
	s := &i.Status
	ok := i.Desired == Run && s.Phase == PhaseRunning && s.Ready && s.Healthy != Unhealthy && s.Away.IsZero()
	return i.Status.Since, ok
}

// Clone returns a copy of i that shares nothing which may be changed.
func (i *Instance) Clone() *Instance {
	out := *i
	out.Ports = append([]uint16(nil), i.Ports...)
	out.GPUs = append([]GPUShare(nil), i.GPUs...)
	if i.Items != nil {
		out.Items = make(map[string][]string, len(i.Items))
		for name, list := range i.Items {
			out.Items[name] = append([]string(nil), list...)
		}
	}
	out.Evict = clonePtr(i.Evict)
	out.Status.Tasks = append([]TaskStatus(nil), i.Status.Tasks...)
	for n := range out.Status.Tasks {
		out.Status.Tasks[n].Exit = clonePtr(out.Status.Tasks[n].Exit)
	}
	return &out
}
