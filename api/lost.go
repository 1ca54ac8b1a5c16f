package api

import (
	"context"
	"fmt"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

type removeNodeInput struct {
	NodePath
	Force bool `query:"force" doc:"Give up what a node that does not answer may still run."`
}

// removeNode takes a node out. Only a node that does not answer can be removed with instances on it: of one that does,
// nobody has to guess whether they run.
func (s *server) removeNode(ctx context.Context, in *removeNodeInput) (*reply[client.RemovedNode], error) {
	var out client.RemovedNode
	err := s.update(ctx, func(tx *state.Tx) error {
		n, err := findNode(tx.View, model.NodeID(in.ID))
		if err != nil {
			return err
		}
		out = client.RemovedNode{ID: n.ID, Name: n.Name, Instances: []model.InstanceID{}, Volumes: []model.VolumeID{}}
		for i := range tx.InstancesOn(n.ID) {
			if !i.Over() {
				out.Instances = append(out.Instances, i.ID)
			}
		}
		for v := range tx.VolumesOn(n.ID) {
			out.Volumes = append(out.Volumes, v.ID)
		}
		if err := mayRemove(n, len(out.Instances), in.Force); err != nil {
			return err
		}
		for _, id := range out.Instances {
			giveUp(tx, id, n, s.Now())
		}
		tx.DeleteNode(n.ID)
		tx.DeleteSettings(n.ID)
		if s.Revoke != nil {
			s.Revoke(tx, model.MachineOf(model.AgentMachine, string(n.ID)), "its node was removed", s.Now())
		}
		tx.Emit(model.Event{Type: "node.removed", Node: n.ID, Message: removedWords(&out)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return answer(out)
}

func mayRemove(n *model.Node, left int, force bool) error {
	switch {
	case left == 0:
		return nil
	case n.State == model.NodeReady && force:
		return conflict("node %s answers, and %s not ended on it; drain it first: force is for machines that are dead", n.Name, instances(left))
	case n.State == model.NodeReady:
		return conflict("%s not ended on node %s; drain it first", instances(left), n.Name)
	case !force:
		return conflict("%s not ended on node %s, which does not answer; if the machine is dead, force gives them up", instances(left), n.Name)
	}
	return nil
}

// giveUp writes down that an instance is over, on the operator's word: there is no agent to say so.
func giveUp(tx *state.Tx, id model.InstanceID, n *model.Node, now time.Time) {
	i := tx.Instance(id).Clone()
	i.Status.Phase, i.Status.Since, i.Status.Ready = model.PhaseStopped, now, false
	i.Status.Message = fmt.Sprintf("its node %s was removed", n.Name)
	tx.PutInstance(i)
}

func removedWords(r *client.RemovedNode) string {
	text := fmt.Sprintf("node %s is removed", r.Name)
	if n := len(r.Instances); n == 1 {
		text += "; 1 instance that it ran is given up"
	} else if n > 1 {
		text += fmt.Sprintf("; %d instances that it ran are given up", n)
	}
	return text
}

// resumeReplacement ends an outage by hand.
func (s *server) resumeReplacement(ctx context.Context, _ *none) (*reply[client.Info], error) {
	err := s.update(ctx, func(tx *state.Tx) error {
		old := tx.Losses()
		if old == nil || old.Outage == nil {
			return conflict("instances on lost nodes are replaced as their apps say: there is no outage")
		}
		next := *old
		next.Outage, next.Resumed = nil, s.Now()
		tx.PutLosses(&next)
		tx.Emit(model.Event{Type: "cluster.resumed", Message: "instances on lost nodes are replaced again, since an operator says so"})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.getInfo(ctx, &none{})
}

// awayWords says of an instance whose node does not answer what becomes of it.
func awayWords(v state.View, i *model.Instance) string {
	name := string(i.Node)
	if n := v.Node(i.Node); n != nil {
		name = n.Name
	}
	text := fmt.Sprintf("its node %s has not answered since %s", name, i.Status.Away.UTC().Format(time.RFC3339))
	t := v.Target(i.App)
	if t == nil || i.Desired == model.Halt {
		return text
	}
	from := i.Status.Away
	if c := v.Losses(); c != nil && from.Before(c.Healed) {
		from = c.Healed
	}
	u, o := t.Spec.WithDefaults().Unreachable, v.Outage()
	replace := u.ReplaceAt(from)
	switch {
	case replace.IsZero() && i.Slot != 0:
		return text + "; it is not replaced, since its persistent volumes are there; if the machine is dead, remove the node"
	case replace.IsZero():
		return text + "; it is not replaced, since unreachable.never says so"
	case o != nil && !replace.Before(o.Noted):
		return text + "; " + o.Words()
	case i.Slot != 0:
		return text + "; it is given up for another, and its volumes with it, at " + replace.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("%s; it is replaced at %s and given up at %s", text, replace.UTC().Format(time.RFC3339), u.ExpungeAt(from).UTC().Format(time.RFC3339))
}

// unreachable is the state of an instance whose node does not answer.
const unreachable = "unreachable"

// whyAway joins why an instance is to stop, if it is, with what becomes of it on a lost node.
func whyAway(v state.View, i *model.Instance) string {
	if i.Desired == model.Halt {
		return sentence(i.Why, awayWords(v, i))
	}
	return awayWords(v, i)
}
