package api

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// availability says in one word whether a node takes new work, and in a sentence why not.
func availability(n *model.Node, s *model.NodeSettings, now time.Time) (word, why string) {
	switch {
	case n.State != model.NodeReady && n.Refused != "":
		return string(n.State), n.Refused
	case n.State == model.NodeGone:
		return client.NodeGone, "its agent has not answered for very long" + since(n.Lost)
	case n.State == model.NodeUnreachable:
		return client.NodeUnreachable, "its agent does not answer" + since(n.Lost)
	case s != nil && s.Draining:
		return client.NodeDraining, drainWords(s)
	case s != nil && s.Cordoned:
		return client.NodeCordoned, s.Why
	case n.Unstable.After(now):
		return client.NodeUnstable, n.Unsteady()
	case s == nil:
		return client.NodeReady, ""
	}
	for _, w := range s.Windows {
		if inside, end := w.At(now); inside {
			return client.NodeMaintenance, "until " + end.UTC().Format(time.RFC3339) + colon(w.Why)
		}
	}
	return client.NodeReady, ""
}

// nodeWords says as a sentence how available a node is.
func nodeWords(name, word, why string) string {
	switch word {
	case client.NodeReady:
		return fmt.Sprintf("node %s takes new work", name)
	case client.NodeDraining:
		return fmt.Sprintf("node %s is being drained%s", name, colon(why))
	case client.NodeMaintenance:
		return fmt.Sprintf("node %s is under maintenance %s", name, why)
	}
	return fmt.Sprintf("node %s is %s%s", name, word, colon(why))
}

func colon(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

func drainWords(s *model.NodeSettings) string {
	if s.Deadline.IsZero() {
		return s.Why
	}
	return "what is left stops at " + s.Deadline.UTC().Format(time.RFC3339) + colon(s.Why)
}

func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return ", since " + t.UTC().Format(time.RFC3339)
}

type settingsInput struct {
	NodePath
	body
}

func (s *server) putSettings(ctx context.Context, in *settingsInput) (*reply[client.NodeDetail], error) {
	var ask model.NodeSettings
	if err := in.record(&ask, ask.Validate); err != nil {
		return nil, err
	}
	return s.changeSettings(ctx, in.ID, "settings", func(n *model.Node, old *model.NodeSettings) (model.NodeSettings, error) {
		if ask.ID != "" && ask.ID != n.ID && string(ask.ID) != n.Name {
			return ask, invalid(named(nil, "id", string(ask.ID), string(n.ID)))
		}
		next := ask
		next.ID = n.ID
		return next, nil
	})
}

func (s *server) cordonNode(ctx context.Context, in *settingsInput) (*reply[client.NodeDetail], error) {
	return s.shut(ctx, in, "cordoned", func(s *model.NodeSettings) { s.Cordoned = true })
}

// drainNode drains anew when it is done again: what the body leaves out stays, but for the deadline.
func (s *server) drainNode(ctx context.Context, in *settingsInput) (*reply[client.NodeDetail], error) {
	var ask client.Drain
	if err := in.read(&ask, true); err != nil {
		return nil, err
	}
	if ask.Deadline < 0 {
		return nil, invalid(model.FieldErrors{{Path: "deadline", Message: fmt.Sprintf("%v is less than 0s", ask.Deadline)}})
	}
	return s.changeSettings(ctx, in.ID, "draining", func(_ *model.Node, old *model.NodeSettings) (model.NodeSettings, error) {
		next := *old
		next.Draining, next.Deadline = true, time.Time{}
		if ask.Deadline > 0 {
			next.Deadline = s.Now().Add(ask.Deadline.Std()).UTC().Truncate(time.Second)
		}
		if ask.Why != "" {
			next.Why = ask.Why
		}
		return next, invalid(next.Validate())
	})
}

// shut closes a node to new work for a reason that may be given; without one the old reason stays.
func (s *server) shut(ctx context.Context, in *settingsInput, verb string, change func(*model.NodeSettings)) (*reply[client.NodeDetail], error) {
	var ask client.Because
	if err := in.read(&ask, true); err != nil {
		return nil, err
	}
	return s.changeSettings(ctx, in.ID, verb, func(_ *model.Node, old *model.NodeSettings) (model.NodeSettings, error) {
		next := *old
		change(&next)
		if ask.Why != "" {
			next.Why = ask.Why
		}
		return next, invalid(next.Validate())
	})
}

func (s *server) uncordonNode(ctx context.Context, in *NodePath) (*reply[client.NodeDetail], error) {
	return s.changeSettings(ctx, in.ID, "uncordoned", func(_ *model.Node, old *model.NodeSettings) (model.NodeSettings, error) {
		next := *old
		next.Cordoned, next.Draining, next.Deadline, next.Why = false, false, time.Time{}, ""
		return next, nil
	})
}

// changeSettings makes of the settings of a node what fn returns. fn gets empty ones where there are none, and must not
// change them.
func (s *server) changeSettings(ctx context.Context, node, verb string,
	fn func(*model.Node, *model.NodeSettings) (model.NodeSettings, error)) (*reply[client.NodeDetail], error) {
	var id model.NodeID
	err := s.update(ctx, func(tx *state.Tx) error {
		n, err := findNode(tx.View, model.NodeID(node))
		if err != nil {
			return err
		}
		id = n.ID
		old := tx.Settings(id)
		if old == nil {
			old = &model.NodeSettings{ID: id}
		}
		next, err := fn(n, old)
		if err != nil {
			return err
		}
		next.Revision = old.Revision
		empty := model.NodeSettings{ID: id, Revision: old.Revision}
		switch {
		case reflect.DeepEqual(*old, next):
			return nil
		case reflect.DeepEqual(next, empty):
			tx.DeleteSettings(id)
		default:
			tx.PutSettings(&next)
		}
		word, why := availability(n, &next, s.Now())
		tx.Emit(model.Event{Type: "node." + verb, Node: id, Message: nodeWords(n.Name, word, why)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.getNode(ctx, &NodePath{string(id)})
}
