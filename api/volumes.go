package api

import (
	"context"
	"fmt"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// volumePath is the persistent volume in the path of a request.
type volumePath struct {
	ID string `path:"id" maxLength:"400" doc:"Id of the volume as one segment: without the slash at its beginning, and with others written as %2F." example:"shop%2Fdb:1:data"`
}

func (p *volumePath) id() model.VolumeID {
	if p.ID != "" && p.ID[0] == '/' {
		return model.VolumeID(p.ID)
	}
	return model.VolumeID("/" + p.ID)
}

type volumeQuery struct {
	App  string `query:"app" doc:"Only those of this app."`
	Node string `query:"node" doc:"Only those on this node, by its id or name."`
}

func (s *server) listVolumes(_ context.Context, in *volumeQuery) (*reply[[]client.VolumeDetail], error) {
	v, app, node := s.Store.View(), appFilter(in.App), model.NodeID(in.Node)
	if node != "" {
		n, err := findNode(v, node)
		if err != nil && !hasVolumes(v, node) {
			return nil, err
		}
		if err == nil {
			node = n.ID
		}
	}
	list := v.Volumes()
	switch {
	case app != "":
		list = v.VolumesOf(app)
	case node != "":
		list = v.VolumesOn(node)
	}
	out := []client.VolumeDetail{}
	for vol := range list {
		if node == "" || vol.Node == node {
			out = append(out, describeVolume(v, vol))
		}
	}
	if app != "" && v.App(app) == nil && len(volumesOf(v, app)) == 0 {
		return nil, noApp(v, app)
	}
	return answer(out)
}

// hasVolumes reports whether a node that is gone has left volumes.
func hasVolumes(v state.View, id model.NodeID) bool {
	for range v.VolumesOn(id) {
		return true
	}
	return false
}

func describeVolume(v state.View, vol *model.PersistentVolume) client.VolumeDetail {
	out := client.VolumeDetail{PersistentVolume: *vol, Instance: userOf(v, vol)}
	if n := v.Node(vol.Node); n != nil {
		out.NodeName = n.Name
	}
	return out
}

func volumesOf(v state.View, app model.AppID) []client.VolumeDetail {
	var out []client.VolumeDetail
	for vol := range v.VolumesOf(app) {
		out = append(out, describeVolume(v, vol))
	}
	return out
}

// userOf returns the instance that has a volume, empty for none. One that waits for a node has none yet.
func userOf(v state.View, vol *model.PersistentVolume) model.InstanceID {
	for i := range v.InstancesOf(vol.App) {
		if i.Slot == vol.Slot && i.Node != "" && !i.Over() {
			return i.ID
		}
	}
	return ""
}

// keptByVolumes returns how much of a node's disk is kept for persistent volumes.
func keptByVolumes(v state.View, node model.NodeID) (kept model.Bytes) {
	for vol := range v.VolumesOn(node) {
		kept += vol.Size
	}
	return kept
}

// deleteVolume marks a volume; the record goes once its node has deleted the data, and at once when the node will never
// do so.
func (s *server) deleteVolume(ctx context.Context, in *volumePath) (*reply[client.VolumeDetail], error) {
	var out client.VolumeDetail
	err := s.update(ctx, func(tx *state.Tx) error {
		vol := tx.Volume(in.id())
		if vol == nil {
			var names []string
			for o := range tx.Volumes() {
				names = append(names, string(o.ID))
			}
			return notFound("no volume %s%s", in.id(), didYouMean(string(in.id()), names))
		}
		if user := userOf(tx.View, vol); user != "" {
			return conflict("volume %s is in use by instance %s; scale %s down or remove it first", vol.ID, user, vol.App)
		}
		next := *vol
		next.Removing = true
		out = describeVolume(tx.View, &next)
		switch n := tx.Node(vol.Node); {
		case n == nil || n.State == model.NodeGone:
			tx.DeleteVolume(vol.ID)
		case vol.Removing:
			return nil
		default:
			tx.PutVolume(&next)
		}
		tx.Emit(model.Event{Type: "volume.removing", App: vol.App, Node: vol.Node, Message: fmt.Sprintf("volume %s is being deleted", vol.ID)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return answer(out)
}
