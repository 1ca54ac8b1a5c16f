package rpc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// The version of the protocol is the release of Gantry. Within a major version, a minor one adds fields and messages; what
// depends on the other side to know them asks for its release first.

func encodeRelease(e *encoder, r model.Release) {
	e.uint(1, uint64(r.Major))
	e.uint(2, uint64(r.Minor))
}

// decodeRelease reads the field that d stands at.
func decodeRelease(d *decoder, r *model.Release) {
	if n := uint32(d.small(math.MaxUint32)); d.field == 1 {
		r.Major = n
	} else {
		r.Minor = n
	}
}

// tooFar says why an agent and a server do not work together, and what to do.
func tooFar(node model.NodeID, agent, server party) string {
	older := "the server"
	if agent.release.Compare(server.release) < 0 {
		older = "the agent"
	}
	return fmt.Sprintf("the agent of node %s is Gantry %s and the server is Gantry %s: at most one minor version may lie between %s and %s; upgrade %s",
		node, agent.build, server.build, agent.release, server.release, older)
}

// party is one side of a session.
type party struct {
	release model.Release
	build   string
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
	RetryAfter time.Duration // before the next try, there or with the leader; 0 for the agent's own pace
}

// Error implements error.
func (r *Refusal) Error() string { return r.Message }

// notLeader is the answer of a server that does not lead.
func notLeader(c wire.Cluster, retry time.Duration) *Refusal {
	r := &Refusal{Reason: NotLeader, Message: "this server does not serve agents; no server leads now", Cluster: c, RetryAfter: retry}
	if c.Leader != "" {
		r.Message = "this server does not serve agents; the leader is " + c.Leader
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
