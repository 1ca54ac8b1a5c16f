package model

import (
	"fmt"
	"time"
)

// LossesID is the id of the only Losses.
const LossesID = "losses"

// Losses is what is known of losses of many nodes. It has no record while there is nothing.
type Losses struct {
	Outage  *Outage   `json:"outage,omitempty" doc:"Many nodes are lost: instances on lost nodes are not replaced."`                                         // fleet; the api ends it on an operator's word
	Healed  time.Time `json:"healed,omitzero" doc:"When an outage last ended by itself: for instances on nodes that are still lost, time counts from then."` // fleet
	Resumed time.Time `json:"resumed,omitzero" doc:"When an operator last ended an outage."`                                                                 // api

	Revision uint64 `json:"-"`
}

// Outage is the loss of many nodes at once: more likely a fault of the network or of power than of each of them, so that
// replacing what they ran would only load those that are left.
type Outage struct {
	Since time.Time `json:"since" doc:"When the first of the nodes was lost."`
	Noted time.Time `json:"noted" doc:"When so many were lost that replacement paused."`
	Lost  int       `json:"lost" doc:"Nodes lost when it was noted."`
	Nodes int       `json:"nodes" doc:"Nodes of the cluster at that time, without those that are gone."`
}

// Words says that replacement rests, and why.
func (o *Outage) Words() string {
	return fmt.Sprintf("instances on lost nodes are not replaced for now: %d of %d nodes were lost within minutes, since %s",
		o.Lost, o.Nodes, o.Since.UTC().Format(time.TimeOnly+" MST"))
}
