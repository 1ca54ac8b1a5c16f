package model

import "time"

// Eviction is the scheduler's wish that an instance leaves its node. The orchestrator fulfils it: it ends a preempted
// instance at once, and starts a replacement of a moved or drained one first, where the app's update policy lets it.
type Eviction struct {
	Kind EvictKind `json:"kind" enum:"preempt,move,drain" doc:"Why it has to leave."`
	Why  string    `json:"why" doc:"The reason, as a sentence."`
	To   NodeID    `json:"to,omitempty" doc:"Where it is meant to go."`
	At   time.Time `json:"at" doc:"When it was decided."`
}

// EvictKind is why an instance has to leave.
type EvictKind string

// Kinds of evictions.
const (
	EvictPreempt EvictKind = "preempt" // its place is needed by more important work
	EvictMove    EvictKind = "move"    // the pool is used better when it is elsewhere
	EvictDrain   EvictKind = "drain"   // its node is to be empty
)
