package model

import (
	"fmt"
	"time"
)

// VolumeID names a persistent volume: the app's id, the slot of the instance, and the volume's name in the spec, such as
// /shop/db:1:data.
type VolumeID string

// VolumeOf returns the id of a persistent volume.
func VolumeOf(app AppID, slot uint32, name string) VolumeID {
	return VolumeID(fmt.Sprintf("%s:%d:%s", app, slot, name))
}

// PersistentVolume is a directory on one node that outlives the instances which use it. Its node is where the instances
// of its slot have to run. Scheduler makes it with the first placement; it is deleted when a user says so.
type PersistentVolume struct {
	ID       VolumeID  `json:"id" doc:"Id."`
	App      AppID     `json:"app" doc:"App that it belongs to."`                                     // immutable
	Slot     uint32    `json:"slot" doc:"Slot of the instances that use it, from 1."`                 // immutable
	Name     string    `json:"name" doc:"Name of the volume in the app's spec."`                      // immutable
	Node     NodeID    `json:"node" doc:"Node that it is on."`                                        // immutable
	Size     Bytes     `json:"size" doc:"Disk that is kept for it on its node."`                      // immutable
	Created  time.Time `json:"created" doc:"When it was made."`                                       // immutable
	Removing bool      `json:"removing,omitempty" doc:"A user deleted it; its node is yet to do so."` // api

	Revision uint64 `json:"-"`
}

// Persistent is a volume that outlives its instances.
type Persistent struct {
	Size Bytes `json:"size" doc:"Disk that is kept for it on its node."`
}

// Stateful reports whether instances of s have slots: a stable identity and volumes that wait for them.
func (s *Spec) Stateful() bool {
	for i := range s.Volumes {
		if s.Volumes[i].Persistent != nil {
			return true
		}
	}
	return false
}
