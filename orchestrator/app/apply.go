package app

import (
	"cmp"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"strings"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// manyEvents is how many instances of one plan get an event each.
const manyEvents = 50

// RandomID returns prefix, '-' and 8 random characters of a-z and 2-7.
func RandomID(prefix string) string {
	var b [5]byte
	rand.Read(b[:])
	return prefix + "-" + strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// trim cuts d down to at most room instance records and reports whether it did. Any part of a plan's instances keeps
// the ceiling and the floor.
func (d *Decisions) trim(room int) bool {
	if d.size() <= room {
		return false
	}
	d.Expunge = d.Expunge[:min(len(d.Expunge), room)]
	room -= len(d.Expunge)
	d.Stop = d.Stop[:min(len(d.Stop), room)]
	room -= len(d.Stop)
	create := make([]Create, 0, len(d.Create))
	for _, c := range d.Create {
		c.Count = min(c.Count, room)
		room -= c.Count
		create = append(create, c)
	}
	d.Create = create
	d.Stay = d.Stay[:min(len(d.Stay), room)]
	room -= len(d.Stay)
	d.Forget = d.Forget[:min(len(d.Forget), room)]
	return true
}

// apply writes d, which was planned on s.
func (l *Loop) apply(tx *state.Tx, s Snapshot, d *Decisions, now time.Time) {
	for _, e := range d.Events {
		tx.Emit(e)
	}
	expunge(tx, d.Expunge, now)
	l.stop(tx, s.ID, d.Stop, now)
	for _, c := range d.Create {
		l.create(tx, s.ID, c, now)
	}
	stay(tx, d.Stay)
	for _, id := range d.Forget {
		tx.DeleteInstance(id)
	}
	for _, n := range d.ForgetVersions {
		tx.DeleteVersion(s.ID, n)
	}
	for _, id := range d.ForgetDeployments {
		tx.DeleteDeployment(id)
	}
	for _, dep := range d.Deployments {
		own := *dep
		tx.PutDeployment(&own)
	}
	l.applyApp(tx, s, d)
}

func (l *Loop) applyApp(tx *state.Tx, s Snapshot, d *Decisions) {
	if d.Remove {
		tx.DeleteApp(s.ID)
		return
	}
	if d.App == nil {
		return
	}
	a := *d.App
	if d.Rollback != nil {
		dep := *d.Rollback
		dep.ID = model.DeploymentID(l.fresh("d", func(id string) bool { return tx.Deployment(model.DeploymentID(id)) != nil }))
		tx.PutDeployment(&dep)
		a.Deployment = dep.ID
	}
	tx.PutApp(&a)
}

// stop tells instances to end. What no node has begun is over at once: nobody else would say so.
func (l *Loop) stop(tx *state.Tx, app model.AppID, stops []Stop, now time.Time) {
	for n, st := range stops {
		i := tx.Instance(st.ID)
		if i == nil {
			continue
		}
		lost := i.Over()
		i = i.Clone()
		i.Desired, i.Why = model.Halt, st.Why
		if !lost && i.Node == "" {
			i.Pending = ""
			i.Status = model.Status{Phase: model.PhaseStopped, Since: now, Message: "it was stopped before it had a node"}
		}
		tx.PutInstance(i)
		if n < manyEvents {
			tx.Emit(stopEvent(i, st, lost))
		}
	}
	if rest := len(stops) - manyEvents; rest > 0 {
		tx.Emit(model.Event{Type: "instance.stopping", App: app, Message: fmt.Sprintf("%s more stop", count(rest, "instance"))})
	}
}

func stopEvent(i *model.Instance, st Stop, lost bool) model.Event {
	e := model.Event{
		Type: cmp.Or(st.Event, "instance.stopping"), App: i.App, Instance: i.ID, Node: i.Node,
		Message: string(i.ID) + " stops: " + st.Why,
	}
	if lost {
		e.Type, e.Message = "instance.lost", string(i.ID)+" is replaced: "+i.Why
	}
	return e
}

// expunge gives up instances, with the volumes of those that have any: their data is where nobody gets at it, and their
// replacements begin elsewhere.
func expunge(tx *state.Tx, list []Expunge, now time.Time) {
	for _, x := range list {
		i := tx.Instance(x.ID)
		if i == nil || i.Over() || i.Status.Away.IsZero() { // its node is back
			continue
		}
		i = i.Clone()
		i.Desired, i.Why = model.Halt, x.Why
		i.Status.Phase, i.Status.Since, i.Status.Ready, i.Status.Message = model.PhaseStopped, now, false, x.Why
		tx.PutInstance(i)
		tx.Emit(model.Event{Type: "instance.expunged", App: i.App, Instance: i.ID, Node: i.Node,
			Message: fmt.Sprintf("%s is given up: %s", i.ID, x.Why)})
		if i.Slot != 0 {
			abandon(tx, i)
		}
	}
}

// abandon forgets the volumes of an instance, which stay on its node.
func abandon(tx *state.Tx, i *model.Instance) {
	for v := range tx.VolumesOf(i.App) {
		if v.Slot != i.Slot || v.Node != i.Node {
			continue
		}
		tx.DeleteVolume(v.ID)
		tx.Emit(model.Event{Type: "volume.abandoned", App: i.App, Instance: i.ID, Node: v.Node,
			Message: fmt.Sprintf("volume %s is given up with what it holds, as unreachable.abandonVolumes says", v.ID)})
	}
}

// stay writes down what instances wait for that have to leave their nodes.
func stay(tx *state.Tx, stays []Stay) {
	for _, st := range stays {
		if i := tx.Instance(st.ID); i != nil && i.Live() {
			i = i.Clone()
			i.Why = st.Why
			tx.PutInstance(i)
		}
	}
}

func (l *Loop) create(tx *state.Tx, app model.AppID, c Create, now time.Time) {
	for n := range c.Count {
		id := l.fresh(app.Name(), func(id string) bool { return tx.Instance(model.InstanceID(id)) != nil })
		i := &model.Instance{
			ID: model.InstanceID(id), App: app, Version: c.Version, Created: now, Desired: model.Run,
			Status: model.Status{Phase: model.PhasePending, Since: now},
		}
		if len(c.Slots) > 0 {
			i.Slot = c.Slots[n]
		}
		if n < len(c.Replaces) {
			i.Replaces = c.Replaces[n]
		}
		tx.PutInstance(i)
		if n < manyEvents {
			emitCreated(tx, i)
		}
	}
	if rest := c.Count - manyEvents; rest > 0 {
		tx.Emit(model.Event{
			Type: "instance.created", App: app,
			Message: fmt.Sprintf("%s more of version %d are created", count(rest, "instance"), c.Version),
		})
	}
}

// emitCreated tells of a new instance, and of the one that it takes over from.
func emitCreated(tx *state.Tx, i *model.Instance) {
	if old := tx.Instance(i.Replaces); old != nil && old.Live() && old.Evict != nil {
		tx.Emit(model.Event{
			Type: "instance.moving", App: i.App, Instance: old.ID, Node: old.Node,
			Message: fmt.Sprintf("%s moves, once %s has taken over from it%s", old.ID, i.ID, colon(old.Evict.Why)),
		})
	}
	tx.Emit(model.Event{Type: "instance.created", App: i.App, Instance: i.ID, Message: createdWords(tx, i)})
}

func createdWords(tx *state.Tx, i *model.Instance) string {
	if old := tx.Instance(i.Replaces); old != nil && !old.Status.Away.IsZero() {
		return fmt.Sprintf("%s of version %d is created in place of %s, whose node does not answer", i.ID, i.Version, old.ID)
	}
	if i.Slot != 0 {
		return fmt.Sprintf("%s of version %d is created in slot %d", i.ID, i.Version, i.Slot)
	}
	return fmt.Sprintf("%s of version %d is created", i.ID, i.Version)
}

// fresh draws ids until one is not taken.
func (l *Loop) fresh(prefix string, taken func(string) bool) string {
	id := l.cfg.NewID(prefix)
	for taken(id) {
		id = l.cfg.NewID(prefix)
	}
	return id
}
