package state

import (
	"fmt"

	"github.com/gantry-os/gantry/model"
	"github.com/tidwall/btree"
)

// keptEvents bounds the ring of events.
const keptEvents = 4096

// tables is one immutable picture of all records. Cloning costs the same however many there are.
type tables struct {
	rev         uint64
	apps        *btree.Map[model.AppID, *model.App]
	versions    *btree.Map[string, *model.AppVersion] // by versionKey
	instances   *btree.Map[model.InstanceID, *model.Instance]
	byApp       *btree.Map[string, *model.Instance] // by app, NUL, instance
	byNode      *btree.Map[string, *model.Instance] // by node, NUL, instance
	pending     *btree.Map[model.InstanceID, *model.Instance]
	deployments *btree.Map[model.DeploymentID, *model.Deployment]
	active      *btree.Map[model.DeploymentID, *model.Deployment]
	nodes       *btree.Map[model.NodeID, *model.Node]
	settings    *btree.Map[model.NodeID, *model.NodeSettings]
	roles       *btree.Map[model.RoleID, *model.Role]
	pools       *btree.Map[string, *model.Pool]
	reserved    *btree.Map[string, *model.Reservation]
	volumes     *btree.Map[model.VolumeID, *model.PersistentVolume]
	volumesOn   *btree.Map[string, *model.PersistentVolume] // by node, NUL, volume
	events      []model.Event
}

func newTables() *tables {
	return &tables{
		apps:        &btree.Map[model.AppID, *model.App]{},
		versions:    &btree.Map[string, *model.AppVersion]{},
		instances:   &btree.Map[model.InstanceID, *model.Instance]{},
		byApp:       &btree.Map[string, *model.Instance]{},
		byNode:      &btree.Map[string, *model.Instance]{},
		pending:     &btree.Map[model.InstanceID, *model.Instance]{},
		deployments: &btree.Map[model.DeploymentID, *model.Deployment]{},
		active:      &btree.Map[model.DeploymentID, *model.Deployment]{},
		nodes:       &btree.Map[model.NodeID, *model.Node]{},
		settings:    &btree.Map[model.NodeID, *model.NodeSettings]{},
		roles:       &btree.Map[model.RoleID, *model.Role]{},
		pools:       &btree.Map[string, *model.Pool]{},
		reserved:    &btree.Map[string, *model.Reservation]{},
		volumes:     &btree.Map[model.VolumeID, *model.PersistentVolume]{},
		volumesOn:   &btree.Map[string, *model.PersistentVolume]{},
	}
}

func (t *tables) clone() *tables {
	return &tables{
		rev: t.rev, apps: t.apps.Copy(), versions: t.versions.Copy(), instances: t.instances.Copy(),
		byApp: t.byApp.Copy(), byNode: t.byNode.Copy(), pending: t.pending.Copy(),
		deployments: t.deployments.Copy(), active: t.active.Copy(), nodes: t.nodes.Copy(), events: t.events,
		settings: t.settings.Copy(), roles: t.roles.Copy(), pools: t.pools.Copy(), reserved: t.reserved.Copy(), volumes: t.volumes.Copy(),
		volumesOn: t.volumesOn.Copy(),
	}
}

func versionKey(app model.AppID, v uint64) string { return fmt.Sprintf("%s\x00%020d", app, v) }

func childKey(parent string, id model.InstanceID) string { return parent + "\x00" + string(id) }

// set puts val under key, or deletes the key when val is nil, and keeps the indexes true.
func (t *tables) set(key Key, val any) {
	switch key.Kind {
	case KindApp:
		put(t.apps, model.AppID(key.ID), val)
	case KindVersion:
		put(t.versions, key.ID, val)
	case KindInstance:
		t.setInstance(model.InstanceID(key.ID), val)
	case KindDeployment:
		id := model.DeploymentID(key.ID)
		put(t.deployments, id, val)
		if d, ok := val.(*model.Deployment); ok && !d.State.Over() {
			t.active.Set(id, d)
		} else {
			t.active.Delete(id)
		}
	case KindNode:
		put(t.nodes, model.NodeID(key.ID), val)
	case KindSettings:
		put(t.settings, model.NodeID(key.ID), val)
	case KindRole:
		put(t.roles, model.RoleID(key.ID), val)
	case KindPool:
		put(t.pools, key.ID, val)
	case KindReservation:
		put(t.reserved, key.ID, val)
	case KindVolume:
		t.setVolume(model.VolumeID(key.ID), val)
	}
}

func (t *tables) setVolume(id model.VolumeID, val any) {
	if old := get(t.volumes, id); old != nil {
		t.volumesOn.Delete(homeKey(old))
	}
	put(t.volumes, id, val)
	if v, ok := val.(*model.PersistentVolume); ok {
		t.volumesOn.Set(homeKey(v), v)
	}
}

func homeKey(v *model.PersistentVolume) string { return string(v.Node) + "\x00" + string(v.ID) }

func put[K ~string, V any](m *btree.Map[K, *V], key K, val any) {
	if v, ok := val.(*V); ok && v != nil {
		m.Set(key, v)
	} else {
		m.Delete(key)
	}
}

func (t *tables) setInstance(id model.InstanceID, val any) {
	old, _ := t.instances.Get(id)
	if old != nil {
		t.byApp.Delete(childKey(string(old.App), id))
		t.byNode.Delete(childKey(string(old.Node), id))
		t.pending.Delete(id)
	}
	put(t.instances, id, val)
	i, ok := val.(*model.Instance)
	if !ok {
		return
	}
	t.byApp.Set(childKey(string(i.App), id), i)
	if i.Node != "" {
		t.byNode.Set(childKey(string(i.Node), id), i)
	} else if i.Live() {
		t.pending.Set(id, i)
	}
}

func setRevision(val any, rev uint64) {
	switch v := val.(type) {
	case *model.App:
		v.Revision = rev
	case *model.AppVersion:
		v.Revision = rev
	case *model.Instance:
		v.Revision = rev
	case *model.Deployment:
		v.Revision = rev
	case *model.Node:
		v.Revision = rev
	case *model.NodeSettings:
		v.Revision = rev
	case *model.Role:
		v.Revision = rev
	case *model.Pool:
		v.Revision = rev
	case *model.Reservation:
		v.Revision = rev
	case *model.PersistentVolume:
		v.Revision = rev
	}
}

// appendRing returns a slice that ends with the newest keptEvents of ring and more, and may begin with older ones. What
// readers hold of ring stays as it is.
func appendRing(ring, more []model.Event) []model.Event {
	if len(ring)+len(more) <= cap(ring) {
		return append(ring, more...) // past what readers hold of the same array
	}
	more = more[max(0, len(more)-keptEvents):]
	keep := ring[max(0, len(ring)+len(more)-keptEvents):]
	out := make([]model.Event, 0, 2*keptEvents)
	return append(append(out, keep...), more...)
}
