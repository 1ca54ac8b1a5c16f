package scheduler

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/engine"
	"github.com/gantry-os/gantry/state"
)

const (
	repeatLeast = time.Second      // between sentences of a class that differ in numbers only,
	repeatEach  = time.Millisecond // and so much more for each instance that waits
	mostSaid    = 100              // classes that are explained in one step: each looks at all nodes
)

// explainAll writes the sentences of what was tried, or is to be said anew, and still waits.
func (l *Loop) explainAll(ctx context.Context, tried []*queue) error {
	now := l.cfg.Now()
	list := slices.Clone(tried)
	for _, q := range l.queues {
		if !q.again.IsZero() && !q.again.After(now) && !slices.Contains(tried, q) {
			list = append(list, q)
		}
	}
	list = slices.DeleteFunc(list, func(q *queue) bool { return q.ids.Len() == 0 })
	slices.SortFunc(list, func(a, b *queue) int { return a.key.compare(b.key) })
	v := l.store.View()
	var words []word
	var events []model.Event
	for n, q := range list {
		if n >= mostSaid {
			q.again = now // by the next step, which comes at once
			continue
		}
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
		text := r.Text
		if t, ok := own[id]; ok {
			text = t
		}
		switch {
		case i == nil || i.Pending == text:
		case !all && i.Pending != "" && own[id] == "":
			q.again = due
		default:
			words = append(words, word{id, text})
			wrote = true
		}
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
	if first, ok := q.ids.GetAt(0); ok && own[first] != "" {
		text = own[first]
	}
	return words, &model.Event{
		Type: "instance.pending", App: q.key.app,
		Message: fmt.Sprintf("%s of version %d of %s cannot be placed: %s", who, q.key.version, q.key.app, text),
	}
}

func (l *Loop) reason(v state.View, q *queue) engine.Reason {
	e := l.pic.entry(v, q.key)
	if e == nil {
		return engine.Reason{Text: fmt.Sprintf("version %d of %s does not exist", q.key.version, q.key.app), Shape: "version"}
	}
	_, r := l.pic.engine.Explain(e.class)
	if e.volumes > 0 && r.Shape == "soon" {
		_, r = l.pic.engine.Explain(l.pic.withVolumes(e))
	}
	return r
}

// ownReasons returns the sentences of instances that wait for something else than the others of their class: for instances
// that have to end first, or for the node where their volumes are.
func (l *Loop) ownReasons(v state.View, q *queue) map[model.InstanceID]string {
	var out map[model.InstanceID]string
	add := func(id model.InstanceID, text string) {
		if out == nil {
			out = map[model.InstanceID]string{}
		}
		out[id] = text
	}
	e := l.pic.entry(v, q.key)
	if e == nil || e.volumes == 0 && len(l.kept) == 0 {
		return nil
	}
	q.ids.Scan(func(id model.InstanceID) bool {
		if k, ok := l.kept[id]; ok {
			add(id, k.words(v))
		} else if have := volumesAt(v, v.Instance(id), e.spec); len(have) > 0 {
			add(id, l.homeReason(v, e, have))
		}
		return true
	})
	return out
}

// homeReason says why an instance cannot go to where its volumes are.
func (l *Loop) homeReason(v state.View, e *entry, have []*model.PersistentVolume) string {
	if vol := removing(have); vol != nil {
		return fmt.Sprintf("its volume %s is being deleted", vol.Name)
	}
	name := string(have[0].Node)
	if n := v.Node(have[0].Node); n != nil {
		name = n.Name
	}
	why := l.pic.engine.ExplainOn(l.pic.missing(e, have), have[0].Node)
	if why.Text == "" {
		why.Text = "it will be placed in a moment"
	}
	return fmt.Sprintf("its volume %s is on %s: %s", have[0].Name, name, why.Text)
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
