package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/engine"
	"github.com/gantry-os/gantry/state"
)

const (
	repeatLeast = time.Second      // between sentences of a class that differ in numbers only,
	repeatEach  = time.Millisecond // and so much more for each instance that waits
	mostLooked  = 250_000          // nodes that are looked at to explain classes in one step,
	leastSaid   = 4                // but so many classes are explained at least
)

// explainAll writes the sentences of what was tried, or is to be said anew, and still waits.
func (l *Loop) explainAll(ctx context.Context, tried []*queue) error {
	now := l.cfg.Now()
	list := slices.Clone(tried)
	known := make(map[*queue]bool, len(tried))
	for _, q := range tried {
		known[q] = true
	}
	for _, q := range l.queues {
		if !q.again.IsZero() && !q.again.After(now) && !known[q] {
			list = append(list, q)
		}
	}
	list = slices.DeleteFunc(list, func(q *queue) bool { return q.ids.Len() == 0 })
	slices.SortFunc(list, func(a, b *queue) int { return cmp.Or(cmp.Compare(a.heard, b.heard), a.key.compare(b.key)) })
	most := max(leastSaid, mostLooked/max(1, l.pic.engine.Nodes()))
	v := l.store.View()
	var words []word
	var events []model.Event
	for n, q := range list {
		if n >= most {
			q.again = now // by the next step, which comes at once, before those of this one
			continue
		}
		q.heard = l.steps
		var e *model.Event
		if words, e = l.say(words, v, q, now); e != nil {
			events = append(events, *e)
		}
	}
	for part := range slices.Chunk(words, chunk) {
		if err := l.write(ctx, part, events); err != nil {
			return fmt.Errorf("explain %d instances: %w", len(part), err)
		}
		events = nil
	}
	return nil
}

type word struct {
	id   model.InstanceID
	text string
}

// say adds what has to be written so that each instance of q has its sentence, and an event when the reason is another.
// When only numbers changed, those that have a sentence already wait a while for the new one.
func (l *Loop) say(words []word, v state.View, q *queue, now time.Time) ([]word, *model.Event) {
	r := l.reason(v, q)
	due := q.at.Add(repeatLeast + time.Duration(q.ids.Len())*repeatEach)
	news := r.Shape != q.said.Shape
	all := news || !due.After(now)
	q.again = time.Time{}
	wrote := false
	own := l.ownReasons(v, q)
	q.ids.Scan(func(id model.InstanceID) bool {
		i := v.Instance(id)
		why, alone := own[id]
		if !alone {
			why = r
		}
		known := !alone && !news || alone && q.own[id] == why.Shape
		switch {
		case i == nil || i.Pending == why.Text:
		case known && !all && i.Pending != "":
			q.again = due
			return true
		default:
			words = append(words, word{id, why.Text})
			wrote = true
		}
		q.remember(id, why.Shape, alone)
		return true
	})
	q.said.Shape = r.Shape
	if all && wrote {
		q.said, q.at = r, now
	}
	if !news || !wrote {
		return words, nil
	}
	who := "1 instance"
	if n := q.ids.Len(); n > 1 {
		who = fmt.Sprintf("%d instances", n)
	}
	text := r.Text
	if first, ok := q.ids.GetAt(0); ok && own[first].Text != "" {
		text = own[first].Text
	}
	return words, &model.Event{
		Type: "instance.pending", App: q.key.app,
		Message: fmt.Sprintf("%s of version %d of %s cannot be placed: %s", who, q.key.version, q.key.app, text),
	}
}

// remember notes the shape of an instance's reason, if it has one of its own.
func (q *queue) remember(id model.InstanceID, shape string, own bool) {
	switch {
	case !own:
		delete(q.own, id)
	case q.own == nil:
		q.own = map[model.InstanceID]string{}
		fallthrough
	default:
		q.own[id] = shape
	}
}

func (l *Loop) reason(v state.View, q *queue) engine.Reason {
	e := l.pic.entry(v, q.key)
	if e == nil {
		return engine.Reason{Text: fmt.Sprintf("version %d of %s does not exist", q.key.version, q.key.app), Shape: "version"}
	}
	c := e.class
	if e.volumes > 0 {
		c = l.pic.withVolumes(e)
	}
	_, r := l.pic.engine.Explain(c)
	return r
}

// ownReasons returns the reasons of instances that wait for something else than the others of their class: for instances
// that have to end first, or for the node where their volumes are, or where they are to move.
func (l *Loop) ownReasons(v state.View, q *queue) map[model.InstanceID]engine.Reason {
	e := l.pic.entry(v, q.key)
	if e == nil || e.volumes == 0 && len(l.kept) == 0 && l.pic.to.of[q.key.app] == 0 {
		return nil
	}
	out := map[model.InstanceID]engine.Reason{}
	q.ids.Scan(func(id model.InstanceID) bool {
		i := v.Instance(id)
		if k, ok := l.kept[id]; ok {
			text := k.words(v)
			out[id] = engine.Reason{Text: text, Shape: text}
		} else if have := volumesAt(v, i, e.spec); len(have) > 0 {
			out[id] = l.homeReason(v, e, have)
		} else if to := l.pic.heirTo(v, i); to != "" {
			out[id] = l.only(v, fmt.Sprintf("%s is to move to", i.Replaces), to, e.class)
		}
		return true
	})
	return out
}

// homeReason says why an instance cannot go to where its volumes are.
func (l *Loop) homeReason(v state.View, e *entry, have []*model.PersistentVolume) engine.Reason {
	if vol := removing(have); vol != nil {
		return engine.Reason{Text: fmt.Sprintf("its volume %s is being deleted", vol.Name), Shape: "removing"}
	}
	return l.only(v, fmt.Sprintf("its volume %s is on", have[0].Name), have[0].Node, l.pic.missing(e, have))
}

// theNode turns a sentence about nodes into one about a node that was named before.
var theNode = strings.NewReplacer("1 node ", "the node ")

// only says why an instance of c cannot go to the only node that it may go to.
func (l *Loop) only(v state.View, since string, node model.NodeID, c *engine.Class) engine.Reason {
	since += " " + nameOf(v, node)
	why := l.pic.engine.ExplainOn(c, node)
	switch n := v.Node(node); {
	case n == nil:
		why.Text = since + ", a node that is not known any more"
	case why.Text == "":
		why.Text = since + ", and it will be placed there in a moment"
	default:
		why.Text = since + ": " + theNode.Replace(why.Text)
	}
	why.Shape = since + ";" + why.Shape
	return why
}

func (l *Loop) write(ctx context.Context, words []word, events []model.Event) error {
	return l.store.Update(ctx, func(tx *state.Tx) error {
		for _, w := range words {
			i := tx.Instance(w.id)
			if i == nil || !i.Live() || i.Node != "" || i.Pending == w.text {
				continue
			}
			i = i.Clone()
			i.Pending = w.text
			tx.PutInstance(i)
		}
		for _, e := range events {
			tx.Emit(e)
		}
		return nil
	})
}
