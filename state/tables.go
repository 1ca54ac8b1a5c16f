package state

import (
	"strconv"

	"github.com/gantry-os/gantry/model"
	"github.com/tidwall/btree"
)

// keptEvents bounds the ring of events.
const keptEvents = 4096

// tables is one picture of all records, immutable once it was published or cloned. Cloning costs the same however many
// records there are.
type tables struct {
	rev         uint64
	owner       *owner // of the groups that may be changed in place
	apps        *btree.Map[model.AppID, *model.App]
	versions    *btree.Map[string, *model.AppVersion] // by versionKey
	instances   *btree.Map[model.InstanceID, *model.Instance]
	byApp       *btree.Map[model.AppID, *group]
	byNode      *btree.Map[model.NodeID, *group]
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
	losses      *model.Losses                               // nil for nothing
	cluster     *btree.Map[string, *model.Cluster]
	machines    *btree.Map[model.MachineID, *model.Machine]
	tokens      *btree.Map[string, *model.JoinToken]
	revoked     *btree.Map[string, *model.Revocation]
	events      []model.Event
	stored      model.Release // whose records may be written
	shape       shape         // of stored, nil while that is as new as this program
}

// degree of the trees of instances: a write copies the node of the tree that it lands in, half as much as by default.
const degree = 16

func newTables() *tables {
	return &tables{
		owner:       new(owner),
		stored:      model.ThisRelease,
		apps:        &btree.Map[model.AppID, *model.App]{},
		versions:    &btree.Map[string, *model.AppVersion]{},
		instances:   btree.NewMap[model.InstanceID, *model.Instance](degree),
		byApp:       &btree.Map[model.AppID, *group]{},
		byNode:      &btree.Map[model.NodeID, *group]{},
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
		cluster:     &btree.Map[string, *model.Cluster]{},
		machines:    &btree.Map[model.MachineID, *model.Machine]{},
		tokens:      &btree.Map[string, *model.JoinToken]{},
		revoked:     &btree.Map[string, *model.Revocation]{},
	}
}

// clone returns a copy of t, which must not be changed any more.
func (t *tables) clone() *tables {
	return &tables{
		rev: t.rev, owner: new(owner), apps: fork(t.apps), versions: fork(t.versions), instances: fork(t.instances),
		byApp: fork(t.byApp), byNode: fork(t.byNode), pending: fork(t.pending),
		deployments: fork(t.deployments), active: fork(t.active), nodes: fork(t.nodes), events: t.events,
		settings: fork(t.settings), roles: fork(t.roles), pools: fork(t.pools), reserved: fork(t.reserved), volumes: fork(t.volumes),
		volumesOn: fork(t.volumesOn), losses: t.losses, cluster: fork(t.cluster), machines: fork(t.machines), tokens: fork(t.tokens), revoked: fork(t.revoked),
		stored: t.stored, shape: t.shape,
	}
}

// follow takes over from t0, which t is to take the place of, what comes by no revision.
func (t *tables) follow(t0 *tables) { t.events, t.stored, t.shape = t0.events, t0.stored, t0.shape }

// fork returns a copy of a tree that nobody changes any more. Others may read it meanwhile, or fork it: unlike Copy of the
// tree itself, it writes nothing there.
func fork[K ~string, V any](m *btree.Map[K, V]) *btree.Map[K, V] {
	own := *m
	return own.Copy()
}

// versionKey sorts by app, then by number.
func versionKey(app model.AppID, v uint64) string {
	const digits = 20
	b := make([]byte, 0, len(app)+1+digits)
	b = append(append(b, app...), 0)
	for n := len(strconv.AppendUint(b, v, 10)) - len(b); n < digits; n++ {
		b = append(b, '0')
	}
	return string(strconv.AppendUint(b, v, 10))
}

// set puts val under key, or deletes the key when val is nil, and keeps the indexes true. It returns the revision of what
// was there, 0 for nothing.
func (t *tables) set(key Key, val any) uint64 {
	if key.Kind == KindInstance {
		return t.setInstance(model.InstanceID(key.ID), val)
	}
	was := t.revision(key)
	switch key.Kind {
	case KindApp:
		put(t.apps, model.AppID(key.ID), val)
	case KindVersion:
		put(t.versions, key.ID, val)
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
	case KindLosses:
		t.losses, _ = val.(*model.Losses)
	case KindCluster:
		put(t.cluster, key.ID, val)
	case KindMachine:
		put(t.machines, model.MachineID(key.ID), val)
	case KindToken:
		put(t.tokens, key.ID, val)
	case KindRevocation:
		put(t.revoked, key.ID, val)
	}
	return was
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

func (t *tables) setInstance(id model.InstanceID, val any) uint64 {
	i, _ := val.(*model.Instance)
	var old *model.Instance
	if i != nil {
		old, _ = t.instances.Set(id, i)
	} else if old, _ = t.instances.Delete(id); old == nil {
		return 0
	}
	regroup(t.byApp, t.owner, appOf, old, i)
	regroup(t.byNode, t.owner, nodeOf, old, i)
	if waits(i) {
		t.pending.Set(id, i)
	} else if waits(old) {
		t.pending.Delete(id)
	}
	if old == nil {
		return 0
	}
	return old.Revision
}

func waits(i *model.Instance) bool { return i != nil && i.Node == "" && i.Live() }

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
	case *model.Losses:
		v.Revision = rev
	case *model.Cluster:
		v.Revision = rev
	case *model.Machine:
		v.Revision = rev
	case *model.JoinToken:
		v.Revision = rev
	case *model.Revocation:
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
