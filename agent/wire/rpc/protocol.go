package rpc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/runtime"
)

// Version is a version of the protocol. Within a major version, a minor one adds fields and messages; what depends on the
// other side to know them asks for its version first. A minor version of Gantry adds at most one to Minor, so that what
// lies one minor version of Gantry apart still works together.
type Version struct{ Major, Minor uint32 }

// Current is the version that this program speaks.
var Current = Version{Major: 1, Minor: 0}

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Accepts reports whether v works with other: within one minor version, both ways.
func (v Version) Accepts(other Version) bool {
	return v.Major == other.Major && max(v.Minor, other.Minor)-min(v.Minor, other.Minor) <= 1
}

func (v Version) encode(e *encoder) {
	e.uint(1, uint64(v.Major))
	e.uint(2, uint64(v.Minor))
}

// decode reads the field that d stands at.
func (v *Version) decode(d *decoder) {
	if n := uint32(d.small(math.MaxUint32)); d.field == 1 {
		v.Major = n
	} else {
		v.Minor = n
	}
}

// Reason is why a server refuses a session. Its numbers are on the wire.
type Reason uint8

// Reasons. Agents treat those that they do not know like Busy.
const (
	Busy          Reason = 1 // too many agents connect at once
	NotLeader     Reason = 2 // another server serves agents, or none does yet
	WrongVersion  Reason = 3 // the versions of agent and server are too far apart
	WrongIdentity Reason = 4 // the certificate is not that of the node, or no longer good
	BadHello      Reason = 5 // the first message makes no sense
)

// Refusal is a server's answer to an agent that it does not serve. It is an error.
type Refusal struct {
	Reason     Reason
	Message    string
	Cluster    wire.Cluster  // where to go instead
	RetryAfter time.Duration // 0 for the agent's own pace
}

// Error implements error.
func (r *Refusal) Error() string { return r.Message }

// notLeader is the answer of a server that does not lead.
func notLeader(c wire.Cluster, retry time.Duration) *Refusal {
	r := &Refusal{Reason: NotLeader, Message: "this server does not serve agents; no server leads now", Cluster: c, RetryAfter: retry}
	if c.Leader != "" {
		r.Message, r.RetryAfter = "this server does not serve agents; the leader is "+c.Leader, 0
	}
	return r
}

// failure says which error a call ended with. Its numbers are on the wire.
type failure uint8

const (
	failed            failure = 0
	failedNotFound    failure = 1
	failedInvalid     failure = 2
	failedUnavailable failure = 3
	failedCanceled    failure = 4
	failedDeadline    failure = 5
)

// failures are the errors that keep their identity over the wire.
var failures = map[failure]error{
	failedNotFound: runtime.ErrNotFound, failedInvalid: runtime.ErrInvalid, failedUnavailable: runtime.ErrUnavailable,
	failedCanceled: context.Canceled, failedDeadline: context.DeadlineExceeded,
}

// failureOf returns the kind of err.
func failureOf(err error) failure {
	for kind, known := range failures {
		if errors.Is(err, known) {
			return kind
		}
	}
	return failed
}

// remoteError is an error of the other side.
type remoteError struct {
	text string
	is   error // nil for none that both know
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }

// err returns the error that the call ended with.
func (x *end) err() error {
	if x.Error == "" && x.Kind == failed {
		return nil
	}
	return &remoteError{x.Error, failures[x.Kind]}
}
