package etcd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/gantry-os/gantry/model"
)

// Instances are by far the most records, and the ones that change most. Their JSON takes some 400 bytes and 6 us to
// decode, this form some 145 bytes and 0.5 us (BenchmarkInstance). It is a row of fields: a tag, then the value. Tags
// ascend, and a field that has its zero value is left out; the id is in the key. Numbers are varints; texts and lists
// have their length before them; a time is seconds and nanoseconds since 1970.
//
// A new field of the model gets a new tag at the end, which records of before do not have. Tags are never used again.
const (
	tagApp = iota + 1
	tagVersion
	tagCreated
	tagDesired
	tagWhy
	tagNode
	tagPorts
	tagPending
	tagAttempt
	tagPhase
	tagSince
	tagStarted
	tagHealthy
	tagReady
	tagMessage
	tagTasks
	tagSlot
	tagReplaces
	tagGPUs
	tagItems
	tagEvict
	tagEvictWhy
	tagEvictTo
	tagEvictAt
	tagAway
)

// Tags within a task.
const (
	tagName = iota + 1
	tagPID
	tagExit // there was an exit; what follows says which
	tagCode
	tagSignal
	tagOOM
	tagPeak
	tagLimit
	tagLost
	tagAt
)

// writer appends fields.
type writer struct{ b []byte }

func (w *writer) uint(tag byte, v uint64) {
	if v != 0 {
		w.b = binary.AppendUvarint(append(w.b, tag), v)
	}
}

func (w *writer) int(tag byte, v int64) {
	if v != 0 {
		w.b = binary.AppendVarint(append(w.b, tag), v)
	}
}

func (w *writer) flag(tag byte, v bool) {
	if v {
		w.b = append(w.b, tag)
	}
}

func (w *writer) text(tag byte, v string) {
	if v != "" {
		w.b = append(binary.AppendUvarint(append(w.b, tag), uint64(len(v))), v...)
	}
}

func (w *writer) string(v string) { w.b = append(binary.AppendUvarint(w.b, uint64(len(v))), v...) }

func (w *writer) time(tag byte, t time.Time) {
	if !t.IsZero() {
		w.b = binary.AppendVarint(append(w.b, tag), t.Unix())
		w.b = binary.AppendUvarint(w.b, uint64(t.Nanosecond()))
	}
}

func appendInstance(b []byte, i *model.Instance) []byte {
	w := &writer{b}
	w.text(tagApp, string(i.App))
	w.uint(tagVersion, i.Version)
	w.time(tagCreated, i.Created)
	w.text(tagDesired, string(i.Desired))
	w.text(tagWhy, i.Why)
	w.text(tagNode, string(i.Node))
	if len(i.Ports) > 0 {
		w.uint(tagPorts, uint64(len(i.Ports)))
		for _, p := range i.Ports {
			w.b = binary.AppendUvarint(w.b, uint64(p))
		}
	}
	w.text(tagPending, i.Pending)
	s := &i.Status
	w.uint(tagAttempt, uint64(s.Attempt))
	w.text(tagPhase, string(s.Phase))
	w.time(tagSince, s.Since)
	w.time(tagStarted, s.Started)
	w.text(tagHealthy, string(s.Healthy))
	w.flag(tagReady, s.Ready)
	w.text(tagMessage, s.Message)
	w.uint(tagTasks, uint64(len(s.Tasks)))
	for n := range s.Tasks {
		task := appendTask(nil, &s.Tasks[n])
		w.b = append(binary.AppendUvarint(w.b, uint64(len(task))), task...)
	}
	w.placement(i)
	return w.b
}

func (w *writer) placement(i *model.Instance) {
	w.uint(tagSlot, uint64(i.Slot))
	w.text(tagReplaces, string(i.Replaces))
	w.uint(tagGPUs, uint64(len(i.GPUs)))
	for _, g := range i.GPUs {
		w.string(g.ID)
		w.b = binary.AppendVarint(w.b, int64(g.Share))
	}
	w.uint(tagItems, uint64(len(i.Items)))
	for _, name := range slices.Sorted(maps.Keys(i.Items)) {
		w.string(name)
		w.b = binary.AppendUvarint(w.b, uint64(len(i.Items[name])))
		for _, item := range i.Items[name] {
			w.string(item)
		}
	}
	if e := i.Evict; e != nil {
		w.b = append(w.b, tagEvict)
		w.string(string(e.Kind))
		w.text(tagEvictWhy, e.Why)
		w.text(tagEvictTo, string(e.To))
		w.time(tagEvictAt, e.At)
	}
	w.time(tagAway, i.Status.Away)
}

func appendTask(b []byte, t *model.TaskStatus) []byte {
	w := &writer{b}
	w.text(tagName, t.Name)
	w.int(tagPID, int64(t.PID))
	if e := t.Exit; e != nil {
		w.flag(tagExit, true)
		w.int(tagCode, int64(e.Code))
		w.int(tagSignal, int64(e.Signal))
		w.flag(tagOOM, e.OOM)
		w.int(tagPeak, int64(e.Peak))
		w.int(tagLimit, int64(e.Limit))
		w.text(tagLost, e.Lost)
		w.time(tagAt, e.At)
	}
	return w.b
}

// reader takes fields off b. After the first error it yields only zero values.
type reader struct {
	b    []byte
	last byte // tag before
	err  error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
	r.b = nil
}

// next returns the next tag, 0 at the end.
func (r *reader) next() byte {
	if len(r.b) == 0 {
		return 0
	}
	tag := r.b[0]
	if tag <= r.last {
		r.fail("tag %d follows tag %d", tag, r.last)
		return 0
	}
	r.b, r.last = r.b[1:], tag
	return tag
}

func (r *reader) uint(most uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > most {
		r.fail("tag %d has no number from 0 to %d", r.last, most)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail("tag %d has no number", r.last)
		return 0
	}
	r.b = r.b[n:]
	return v
}

// bytes takes a length and that many bytes.
func (r *reader) bytes() []byte {
	n := r.uint(uint64(len(r.b)))
	if n > uint64(len(r.b)) {
		r.fail("tag %d is cut off", r.last)
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) text() string { return string(r.bytes()) }

func (r *reader) time() time.Time {
	sec := r.int()
	nsec := r.uint(999_999_999)
	if r.err != nil {
		return time.Time{}
	}
	return time.Unix(sec, int64(nsec)).UTC()
}

var errUnknownTag = errors.New("a field is not known; a newer Gantry may have written it")

func decodeInstance(id model.InstanceID, b []byte) (*model.Instance, error) {
	r := &reader{b: b}
	i := &model.Instance{ID: id}
	s := &i.Status
	var e model.Eviction
	for tag := r.next(); tag != 0; tag = r.next() {
		switch tag {
		case tagApp:
			i.App = model.AppID(r.text())
		case tagVersion:
			i.Version = r.uint(math.MaxUint64)
		case tagCreated:
			i.Created = r.time()
		case tagDesired:
			i.Desired = known[model.Desired](r.bytes(), model.Run, model.Halt)
		case tagWhy:
			i.Why = r.text()
		case tagNode:
			i.Node = model.NodeID(r.text())
		case tagPorts:
			i.Ports = r.ports()
		case tagPending:
			i.Pending = r.text()
		case tagAttempt:
			s.Attempt = uint32(r.uint(math.MaxUint32))
		case tagPhase:
			s.Phase = known(r.bytes(), model.PhaseRunning, model.PhaseStopped, model.PhasePending, model.PhaseBackoff)
		case tagSince:
			s.Since = r.time()
		case tagStarted:
			s.Started = r.time()
		case tagHealthy:
			s.Healthy = known(r.bytes(), model.Healthy, model.Unhealthy)
		case tagReady:
			s.Ready = true
		case tagMessage:
			s.Message = r.text()
		case tagTasks:
			s.Tasks = r.tasks()
		case tagSlot:
			i.Slot = uint32(r.uint(math.MaxUint32))
		case tagReplaces:
			i.Replaces = model.InstanceID(r.text())
		case tagGPUs:
			i.GPUs = r.gpus()
		case tagItems:
			i.Items = r.items()
		case tagEvict:
			e.Kind = known(r.bytes(), model.EvictPreempt, model.EvictMove, model.EvictDrain)
			i.Evict = &e
		case tagEvictWhy:
			e.Why = r.text()
		case tagEvictTo:
			e.To = model.NodeID(r.text())
		case tagEvictAt:
			e.At = r.time()
		case tagAway:
			s.Away = r.time()
		default:
			return nil, errUnknownTag
		}
	}
	if i.Evict == nil && e != (model.Eviction{}) {
		return nil, errors.New("it says how it was evicted, but not that it was")
	}
	if r.err != nil {
		return nil, r.err
	}
	return i, nil
}

// known returns b as one of the common values, or else as a text of its own, which takes memory.
func known[T ~string](b []byte, common ...T) T {
	for _, v := range common {
		if string(b) == string(v) {
			return v
		}
	}
	return T(b)
}

func (r *reader) ports() []uint16 {
	n := r.uint(uint64(len(r.b)))
	out := make([]uint16, 0, n)
	for range n {
		out = append(out, uint16(r.uint(math.MaxUint16)))
	}
	return out
}

func (r *reader) gpus() []model.GPUShare {
	n := r.uint(uint64(len(r.b)))
	out := make([]model.GPUShare, 0, n)
	for range n {
		out = append(out, model.GPUShare{ID: r.text(), Share: model.GPU(r.int())})
	}
	return out
}

func (r *reader) items() map[string][]string {
	out := map[string][]string{}
	for range r.uint(uint64(len(r.b))) {
		name := r.text()
		list := make([]string, 0, r.uint(uint64(len(r.b))))
		for range cap(list) {
			list = append(list, r.text())
		}
		out[name] = list
	}
	return out
}

func (r *reader) tasks() []model.TaskStatus {
	n := r.uint(uint64(len(r.b)))
	var out []model.TaskStatus
	for range n {
		t, err := decodeTask(r.bytes())
		if r.err != nil || err != nil {
			r.fail("task %d: %w", len(out), err)
			return nil
		}
		out = append(out, t)
	}
	return out
}

func decodeTask(b []byte) (t model.TaskStatus, err error) {
	r := &reader{b: b}
	var e model.Exit
	for tag := r.next(); tag != 0; tag = r.next() {
		if tag > tagExit && t.Exit == nil {
			return t, errors.New("it says how it ended, but not that it did")
		}
		switch tag {
		case tagName:
			t.Name = r.text()
		case tagPID:
			t.PID = int(r.int())
		case tagExit:
			t.Exit = &e
		case tagCode:
			e.Code = int(r.int())
		case tagSignal:
			e.Signal = int(r.int())
		case tagOOM:
			e.OOM = true
		case tagPeak:
			e.Peak = model.Bytes(r.int())
		case tagLimit:
			e.Limit = model.Bytes(r.int())
		case tagLost:
			e.Lost = r.text()
		case tagAt:
			e.At = r.time()
		default:
			return t, errUnknownTag
		}
	}
	return t, r.err
}
