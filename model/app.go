package model

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"
)

// App is the record of one app: which of its versions the user wants, and which deployment is bringing it there.
type App struct {
	ID         AppID        `json:"id"`
	Version    uint64       `json:"version"`            // api: the version the user wrote last; versions count from 1
	Created    time.Time    `json:"created"`            // api; immutable
	Removing   bool         `json:"removing,omitempty"` // api: the user removed it; it goes once its instances are over
	Deployment DeploymentID `json:"deployment"`         // api, or orchestrator on a roll back: the newest deployment
	Stable     uint64       `json:"stable,omitempty"`   // orchestrator: the last version that was healthy as a whole

	Revision uint64 `json:"-"` // state: the store's revision of the last write
}

// AppVersion is one version of an app, immutable once written.
type AppVersion struct {
	App      AppID     `json:"app"`
	Version  uint64    `json:"version"`
	Created  time.Time `json:"created"`
	Note     string    `json:"note,omitempty"`     // how it came to be, such as "roll back to version 2"
	Restarts uint64    `json:"restarts,omitempty"` // counts the user's restarts, each of which replaces all instances
	Spec     *Spec     `json:"spec"`               // as the user wrote it

	Revision uint64 `json:"-"`
}

// Template returns a digest of what an instance of v runs. Versions with the same template share instances:
// a change of count, labels, placement, spread, or the policies for updates and lost nodes replaces none. Neither does one of role or priority:
// those are the app's, and all its instances count under what its newest version says. Constraints, affinity and pool
// are what an instance was placed by, so a change of them replaces those that were placed by others.
func (v *AppVersion) Template() string {
	t := v.Spec.WithDefaults()
	t.Instances, t.Labels, t.Update, t.Unreachable, t.KillOrder = nil, nil, nil, nil, ""
	t.Role, t.Priority, t.Placement, t.Spread = "", nil, "", nil
	b, err := json.Marshal(struct {
		Spec     *Spec
		Restarts uint64
	}{t, v.Restarts})
	if err != nil {
		panic("model: a spec cannot be encoded: " + err.Error()) // its types admit no such value
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// Deployment is the way from one version of an app to another.
type Deployment struct {
	ID      DeploymentID    `json:"id" doc:"Id."`
	App     AppID           `json:"app" doc:"The app that it changes."`
	Kind    DeployKind      `json:"kind" enum:"create,update,scale,restart,rollback,remove" doc:"What the user did."`                                                                       // immutable
	From    uint64          `json:"from,omitempty" doc:"Version before; absent when there was none."`                                                                                       // immutable
	To      uint64          `json:"to" doc:"Version to reach."`                                                                                                                             // immutable
	Created time.Time       `json:"created" doc:"When it was made."`                                                                                                                        // immutable
	State   DeploymentState `json:"state" enum:"running,paused,succeeded,failed,rolledback,superseded,cancelled" doc:"Where it stands: running and paused alternate, the others are ends."` // orchestrator, but the api pauses, resumes and cancels
	Message string          `json:"message" doc:"One sentence: what it does or waits for, or how it ended."`                                                                                // orchestrator
	Done    int             `json:"done" doc:"Instances of the new version that are healthy."`                                                                                              // orchestrator
	Want    int             `json:"want" doc:"Instances that the new version asks for."`                                                                                                    // orchestrator
	Old     int             `json:"old,omitempty" doc:"Instances that run something else and are not over yet."`                                                                            // orchestrator
	Best    int             `json:"best,omitempty" doc:"The most instances that were healthy at once."`                                                                                     // orchestrator; past it is progress
	Moved   time.Time       `json:"moved,omitzero" doc:"When it last made progress."`                                                                                                       // orchestrator
	Ended   time.Time       `json:"ended,omitzero" doc:"When it ended."`                                                                                                                    // orchestrator

	Revision uint64 `json:"-"`
}

// DeployKind says what the user did.
type DeployKind string

// Kinds of deployments.
const (
	DeployCreate   DeployKind = "create"
	DeployUpdate   DeployKind = "update"
	DeployScale    DeployKind = "scale"
	DeployRestart  DeployKind = "restart"
	DeployRollback DeployKind = "rollback"
	DeployRemove   DeployKind = "remove"
)

// DeploymentState is where a deployment stands: running and paused alternate, the others are ends.
type DeploymentState string

// States of a deployment.
const (
	DeployRunning    DeploymentState = "running"
	DeployPaused     DeploymentState = "paused"
	DeploySucceeded  DeploymentState = "succeeded"
	DeployFailed     DeploymentState = "failed"     // made no progress within its deadline
	DeployRolledBack DeploymentState = "rolledback" // failed, and the last stable version was deployed again
	DeploySuperseded DeploymentState = "superseded" // a newer deployment of the app took over
	DeployCancelled  DeploymentState = "cancelled"  // a user stopped it and went back
)

// Over reports whether the deployment has ended.
func (s DeploymentState) Over() bool { return s != DeployRunning && s != DeployPaused }
