package state

import (
	"cmp"
	"iter"
	"slices"
	"strings"

	"github.com/gantry-os/gantry/model"
	"github.com/tidwall/btree"
)

// View is an immutable snapshot. Look-ups return nil for what does not exist; sequences are sorted by id. What they
// return must not be changed.
type View struct {
	t       *tables
	writing bool // it is a Tx's, which may write to t while a sequence is read
}

// Revision returns the revision of the last write in the view. Revisions only grow.
func (v View) Revision() uint64 { return v.t.rev }

// Stored returns the release whose records all servers can read. Who writes what a newer one has brought asks it first.
func (v View) Stored() model.Release { return v.t.stored }

// App returns an app.
func (v View) App(id model.AppID) *model.App { return get(v.t.apps, id) }

// Apps returns all apps.
func (v View) Apps() iter.Seq[*model.App] { return all(v, v.t.apps) }

// AppCount returns how many apps there are.
func (v View) AppCount() int { return v.t.apps.Len() }

// Version returns one version of an app.
func (v View) Version(app model.AppID, n uint64) *model.AppVersion {
	return get(v.t.versions, versionKey(app, n))
}

// Versions returns the kept versions of an app, oldest first.
func (v View) Versions(app model.AppID) iter.Seq[*model.AppVersion] {
	return below(v, v.t.versions, string(app))
}

// Target returns the version that the app's newest deployment leads to, nil when the app does not exist.
func (v View) Target(app model.AppID) *model.AppVersion {
	a := v.App(app)
	if a == nil {
		return nil
	}
	n := a.Version
	if d := v.Deployment(a.Deployment); d != nil {
		n = d.To
	}
	return v.Version(app, n)
}

// Instance returns an instance.
func (v View) Instance(id model.InstanceID) *model.Instance { return get(v.t.instances, id) }

// Instances returns all instances, those that are over included.
func (v View) Instances() iter.Seq[*model.Instance] { return all(v, v.t.instances) }

// InstanceCount returns how many instance records there are.
func (v View) InstanceCount() int { return v.t.instances.Len() }

// InstancesOf returns the instances of an app, those that are over included.
func (v View) InstancesOf(app model.AppID) iter.Seq[*model.Instance] {
	return members(v, v.t.byApp, app)
}

// InstancesOn returns the instances placed on a node, those that are over included.
func (v View) InstancesOn(node model.NodeID) iter.Seq[*model.Instance] {
	return members(v, v.t.byNode, node)
}

// UnwellOf returns the instances of an app that are neither over nor healthy, as Instance.HealthySince has it: those that
// are to stop included.
func (v View) UnwellOf(app model.AppID) iter.Seq[*model.Instance] {
	return func(yield func(*model.Instance) bool) {
		if g := get(v.t.byApp, app); g != nil {
			g.settled(v, g.unwell).Scan(func(_ model.InstanceID, i *model.Instance) bool { return yield(i) })
		}
	}
}

// HealthyCount returns how many instances of an app are healthy, as Instance.HealthySince has it.
func (v View) HealthyCount(app model.AppID) int {
	g := get(v.t.byApp, app)
	if g == nil {
		return 0
	}
	return g.all.Len() - g.unwell.Len() - g.over
}

// Pending returns the wanted instances that have no node.
func (v View) Pending() iter.Seq[*model.Instance] { return all(v, v.t.pending) }

// Deployment returns a deployment.
func (v View) Deployment(id model.DeploymentID) *model.Deployment { return get(v.t.deployments, id) }

// Deployments returns all kept deployments.
func (v View) Deployments() iter.Seq[*model.Deployment] { return all(v, v.t.deployments) }

// ActiveDeployments returns the deployments that have not ended.
func (v View) ActiveDeployments() iter.Seq[*model.Deployment] { return all(v, v.t.active) }

// Node returns a node.
func (v View) Node(id model.NodeID) *model.Node { return get(v.t.nodes, id) }

// Nodes returns all nodes.
func (v View) Nodes() iter.Seq[*model.Node] { return all(v, v.t.nodes) }

// Settings returns what operators want of a node, nil for nothing.
func (v View) Settings(id model.NodeID) *model.NodeSettings { return get(v.t.settings, id) }

// AllSettings returns the settings of all nodes that have any, also of nodes that do not exist.
func (v View) AllSettings() iter.Seq[*model.NodeSettings] { return all(v, v.t.settings) }

// Role returns a role.
func (v View) Role(id model.RoleID) *model.Role { return get(v.t.roles, id) }

// Roles returns all roles; a role comes before those below it.
func (v View) Roles() iter.Seq[*model.Role] { return all(v, v.t.roles) }

// Pool returns the record of a pool, nil when it has the defaults.
func (v View) Pool(name string) *model.Pool { return get(v.t.pools, name) }

// Pools returns the records of all pools that have one.
func (v View) Pools() iter.Seq[*model.Pool] { return all(v, v.t.pools) }

// Reservation returns a reservation.
func (v View) Reservation(id string) *model.Reservation { return get(v.t.reserved, id) }

// Reservations returns all reservations.
func (v View) Reservations() iter.Seq[*model.Reservation] { return all(v, v.t.reserved) }

// Volume returns a persistent volume.
func (v View) Volume(id model.VolumeID) *model.PersistentVolume { return get(v.t.volumes, id) }

// Volumes returns all persistent volumes.
func (v View) Volumes() iter.Seq[*model.PersistentVolume] { return all(v, v.t.volumes) }

// VolumesOf returns the persistent volumes of an app.
func (v View) VolumesOf(app model.AppID) iter.Seq[*model.PersistentVolume] {
	first := model.VolumeID(app) + ":"
	return func(yield func(*model.PersistentVolume) bool) {
		settled(v, v.t.volumes).Ascend(first, func(id model.VolumeID, val *model.PersistentVolume) bool {
			return strings.HasPrefix(string(id), string(first)) && yield(val)
		})
	}
}

// VolumesOn returns the persistent volumes of a node.
func (v View) VolumesOn(node model.NodeID) iter.Seq[*model.PersistentVolume] {
	return below(v, v.t.volumesOn, string(node))
}

// Losses returns what is known of losses of many nodes, nil for nothing.
func (v View) Losses() *model.Losses { return v.t.losses }

// Outage returns the loss of many nodes that goes on, nil for none.
func (v View) Outage() *model.Outage {
	if c := v.t.losses; c != nil {
		return c.Outage
	}
	return nil
}

// Cluster returns what all machines of the cluster trust, nil before its first server has said so.
func (v View) Cluster() *model.Cluster { return get(v.t.cluster, clusterKey.ID) }

// Machine returns a machine that joined.
func (v View) Machine(id model.MachineID) *model.Machine { return get(v.t.machines, id) }

// Machines returns all machines that joined, agents first.
func (v View) Machines() iter.Seq[*model.Machine] { return all(v, v.t.machines) }

// Token returns a join token.
func (v View) Token(id string) *model.JoinToken { return get(v.t.tokens, id) }

// Tokens returns all join tokens.
func (v View) Tokens() iter.Seq[*model.JoinToken] { return all(v, v.t.tokens) }

// Revocation returns the revocation under a model.RevocationKey.
func (v View) Revocation(key string) *model.Revocation { return get(v.t.revoked, key) }

// Revocations returns all revocations.
func (v View) Revocations() iter.Seq[*model.Revocation] { return all(v, v.t.revoked) }

// Events returns the newest events, oldest first.
func (v View) Events() []model.Event {
	n := len(v.t.events)
	return v.t.events[max(0, n-keptEvents):n:n]
}

// eventsAfter returns the newest events after one, oldest first.
func (v View) eventsAfter(seq uint64) []model.Event {
	all := v.Events()
	n, _ := slices.BinarySearchFunc(all, seq+1, func(e model.Event, seq uint64) int { return cmp.Compare(e.Seq, seq) })
	return all[n:]
}

func get[K ~string, V any](m *btree.Map[K, *V], key K) *V {
	val, _ := m.Get(key)
	return val
}

func all[K ~string, V any](v View, m *btree.Map[K, V]) iter.Seq[V] {
	return func(yield func(V) bool) {
		settled(v, m).Scan(func(_ K, val V) bool { return yield(val) })
	}
}

func members[K ~string](v View, groups *btree.Map[K, *group], key K) iter.Seq[*model.Instance] {
	return func(yield func(*model.Instance) bool) {
		if g := get(groups, key); g != nil {
			g.settled(v, g.all).Scan(func(_ model.InstanceID, i *model.Instance) bool { return yield(i) })
		}
	}
}

// below yields what has a key of parent, NUL and anything.
func below[V any](v View, m *btree.Map[string, V], parent string) iter.Seq[V] {
	prefix := parent + "\x00"
	return func(yield func(V) bool) {
		settled(v, m).Ascend(prefix, func(key string, val V) bool {
			return len(key) > len(prefix) && key[:len(prefix)] == prefix && yield(val)
		})
	}
}

// settled returns what of m stays as it is during a loop over it, so that the loop may write. Published trees never
// change, and Copy must not be called on them here: it marks the tree it copies, which others read.
func settled[K ~string, V any](v View, m *btree.Map[K, V]) *btree.Map[K, V] {
	if v.writing {
		return m.Copy()
	}
	return m
}

// Tx is a View that sees its own writes, and takes them. A loop over one of its sequences may write; it goes on over the
// records as they were when it began.
type Tx struct {
	View
	writes map[Key]int // position in ops
	ops    []Op
	events []model.Event
	err    error // of the first write that was refused
}

func newTx(t *tables) *Tx { return &Tx{View: View{t: t, writing: true}, writes: map[Key]int{}} }

// take makes the writes and events of o, which began where tx ends, part of tx.
func (tx *Tx) take(o *Tx) {
	if o == tx {
		return
	}
	tx.t = o.t
	if len(tx.ops) == 0 {
		tx.ops, tx.writes = o.ops, o.writes
	} else {
		for _, op := range o.ops {
			tx.record(op)
		}
	}
	tx.events = append(tx.events, o.events...)
}

// durable returns what the store has to be told: not the deletion of what it does not have.
func (tx *Tx) durable() []Op {
	return slices.DeleteFunc(tx.ops, func(op Op) bool { return op.Read == 0 && op.Val == nil })
}

// PutApp writes a; the transaction owns it from then on, as with every Put.
func (tx *Tx) PutApp(a *model.App) { tx.put(a) }

// DeleteApp deletes the record of an app, not its versions or instances.
func (tx *Tx) DeleteApp(id model.AppID) { tx.write(Key{KindApp, string(id)}, nil) }

// PutVersion writes v.
func (tx *Tx) PutVersion(v *model.AppVersion) { tx.put(v) }

// DeleteVersion deletes one version of an app.
func (tx *Tx) DeleteVersion(app model.AppID, n uint64) {
	tx.write(Key{KindVersion, versionKey(app, n)}, nil)
}

// PutInstance writes i.
func (tx *Tx) PutInstance(i *model.Instance) { tx.put(i) }

// DeleteInstance deletes an instance.
func (tx *Tx) DeleteInstance(id model.InstanceID) { tx.write(Key{KindInstance, string(id)}, nil) }

// PutDeployment writes d.
func (tx *Tx) PutDeployment(d *model.Deployment) { tx.put(d) }

// DeleteDeployment deletes a deployment.
func (tx *Tx) DeleteDeployment(id model.DeploymentID) {
	tx.write(Key{KindDeployment, string(id)}, nil)
}

// PutNode writes n.
func (tx *Tx) PutNode(n *model.Node) { tx.put(n) }

// DeleteNode deletes a node.
func (tx *Tx) DeleteNode(id model.NodeID) { tx.write(Key{KindNode, string(id)}, nil) }

// PutSettings writes s.
func (tx *Tx) PutSettings(s *model.NodeSettings) { tx.put(s) }

// DeleteSettings deletes a node's settings.
func (tx *Tx) DeleteSettings(id model.NodeID) { tx.write(Key{KindSettings, string(id)}, nil) }

// PutRole writes r.
func (tx *Tx) PutRole(r *model.Role) { tx.put(r) }

// DeleteRole deletes a role.
func (tx *Tx) DeleteRole(id model.RoleID) { tx.write(Key{KindRole, string(id)}, nil) }

// PutPool writes p.
func (tx *Tx) PutPool(p *model.Pool) { tx.put(p) }

// DeletePool deletes the record of a pool.
func (tx *Tx) DeletePool(name string) { tx.write(Key{KindPool, name}, nil) }

// PutReservation writes r.
func (tx *Tx) PutReservation(r *model.Reservation) { tx.put(r) }

// DeleteReservation deletes a reservation.
func (tx *Tx) DeleteReservation(id string) { tx.write(Key{KindReservation, id}, nil) }

// PutVolume writes v.
func (tx *Tx) PutVolume(v *model.PersistentVolume) { tx.put(v) }

// DeleteVolume deletes a persistent volume.
func (tx *Tx) DeleteVolume(id model.VolumeID) { tx.write(Key{KindVolume, string(id)}, nil) }

// PutLosses writes c.
func (tx *Tx) PutLosses(c *model.Losses) { tx.put(c) }

// PutCluster writes c.
func (tx *Tx) PutCluster(c *model.Cluster) { tx.put(c) }

// PutMachine writes m.
func (tx *Tx) PutMachine(m *model.Machine) { tx.put(m) }

// DeleteMachine deletes a machine.
func (tx *Tx) DeleteMachine(id model.MachineID) { tx.write(Key{KindMachine, string(id)}, nil) }

// PutToken writes t.
func (tx *Tx) PutToken(t *model.JoinToken) { tx.put(t) }

// DeleteToken deletes a join token.
func (tx *Tx) DeleteToken(id string) { tx.write(Key{KindToken, id}, nil) }

// PutRevocation writes r.
func (tx *Tx) PutRevocation(r *model.Revocation) { tx.put(r) }

// DeleteRevocation deletes the revocation under a model.RevocationKey.
func (tx *Tx) DeleteRevocation(key string) { tx.write(Key{KindRevocation, key}, nil) }

// Emit publishes an event once the transaction is durable. Seq and At are filled in then.
func (tx *Tx) Emit(e model.Event) { tx.events = append(tx.events, e) }

func (tx *Tx) put(val any) {
	key, _ := KeyOf(val)
	if s := tx.t.shape; s != nil {
		var err error
		if val, err = s.fit(tx.t.stored, key.Kind, val); err != nil {
			tx.err = cmp.Or(tx.err, err)
			return
		}
	}
	tx.write(key, val)
}

func (tx *Tx) write(key Key, val any) {
	tx.record(Op{Key: key, Read: tx.t.set(key, val), Val: val})
}

// record adds op to the writes, in place of an earlier one to the same key, which alone knows what is durable.
func (tx *Tx) record(op Op) {
	if i, ok := tx.writes[op.Key]; ok {
		tx.ops[i].Val = op.Val
		return
	}
	tx.writes[op.Key] = len(tx.ops)
	tx.ops = append(tx.ops, op)
}

// revision returns the revision of a record of any kind but instances, 0 when it does not exist.
func (t *tables) revision(key Key) uint64 {
	switch key.Kind {
	case KindApp:
		if v := get(t.apps, model.AppID(key.ID)); v != nil {
			return v.Revision
		}
	case KindVersion:
		if v := get(t.versions, key.ID); v != nil {
			return v.Revision
		}
	case KindDeployment:
		if v := get(t.deployments, model.DeploymentID(key.ID)); v != nil {
			return v.Revision
		}
	case KindNode:
		if v := get(t.nodes, model.NodeID(key.ID)); v != nil {
			return v.Revision
		}
	case KindSettings:
		if v := get(t.settings, model.NodeID(key.ID)); v != nil {
			return v.Revision
		}
	case KindRole:
		if v := get(t.roles, model.RoleID(key.ID)); v != nil {
			return v.Revision
		}
	case KindPool:
		if v := get(t.pools, key.ID); v != nil {
			return v.Revision
		}
	case KindReservation:
		if v := get(t.reserved, key.ID); v != nil {
			return v.Revision
		}
	case KindVolume:
		if v := get(t.volumes, model.VolumeID(key.ID)); v != nil {
			return v.Revision
		}
	case KindLosses:
		if t.losses != nil {
			return t.losses.Revision
		}
	case KindCluster:
		if v := get(t.cluster, key.ID); v != nil {
			return v.Revision
		}
	case KindMachine:
		if v := get(t.machines, model.MachineID(key.ID)); v != nil {
			return v.Revision
		}
	case KindToken:
		if v := get(t.tokens, key.ID); v != nil {
			return v.Revision
		}
	case KindRevocation:
		if v := get(t.revoked, key.ID); v != nil {
			return v.Revision
		}
	}
	return 0
}
