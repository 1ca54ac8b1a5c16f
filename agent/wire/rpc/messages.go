package rpc

import (
	"encoding/json"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

// Bounds of what is taken from the other side.
const (
	maxMessage  = 1 << 20   // bytes of one gRPC message, both ways
	maxPiece    = 128 << 10 // bytes of one part of a wire.Down
	maxDown     = 256 << 20 // bytes of one wire.Down, which only servers send
	maxUp       = 256 << 10 // bytes of reports in one message, as far as they can be divided
	maxReports  = 5_000     // in one message
	maxRemoved  = 5_000     // in one message
	maxSentence = 4 << 10   // bytes of a message in a status
	maxName     = 1 << 10   // bytes of an id or name
	maxServers  = 100
	maxChunk    = 32 << 10 // bytes of a stream in one message
	maxEntries  = 10_000_000
)

// fromAgent is one message of an agent on its session. One part is set, or none when its kind is not known here.
type fromAgent struct {
	Hello *hello
	Up    *up
	Beat  bool
}

// hello opens a session.
type hello struct {
	Release model.Release
	Gantry  string        // version of the agent's program
	Silence time.Duration // after which the agent takes the server for dead
	Node    model.Node
	Routes  bool // it wants the endpoint table
}

// up is a wire.Up after the hello.
type up struct {
	Seq     uint64 // the acknowledgement names it
	Reports []wire.Report
	Removed []model.VolumeID
}

// fromServer is one message of a server on a session. One part is set, or none when its kind is not known here.
type fromServer struct {
	Welcome *welcome
	Refusal *Refusal
	Piece   *piece
	Ack     *ack
	Beat    *beat
	Call    uint64 // open a stream for the call of this number; from 1
}

// welcome answers a hello that is admitted. What it said is durable when the acknowledgement of number 0 follows.
type welcome struct {
	Release model.Release
	Gantry  string
	Silence time.Duration // after which the server takes the agent for dead
	Cluster wire.Cluster
}

// piece is a part of an encoded wire.Down, in order. Pieces of different ones never mix.
type piece struct {
	Data []byte
	More bool
}

// beat is a sign of life.
type beat struct {
	Spread time.Duration // over which agents are to come back that lose this server at once; 0 for their own
}

// ack says that an up is durable, or why not.
type ack struct {
	Seq uint64
	Err string
}

func (m *fromAgent) encode() []byte {
	var e encoder
	switch {
	case m.Hello != nil:
		node, err := json.Marshal(&m.Hello.Node)
		if err != nil {
			panic(fmt.Sprintf("a node does not encode: %v", err)) // it holds nothing that could fail
		}
		e.message(1, func(e *encoder) {
			encodeRelease(e, m.Hello.Release)
			e.text(3, m.Hello.Gantry)
			e.bytes(4, node)
			e.uint(5, millis(m.Hello.Silence))
			e.bool(6, m.Hello.Routes)
		})
	case m.Up != nil:
		e.message(2, func(e *encoder) {
			e.uint(1, m.Up.Seq)
			for i := range m.Up.Reports {
				e.message(2, func(e *encoder) { encodeReport(e, &m.Up.Reports[i]) })
			}
			for _, id := range m.Up.Removed {
				e.element(3, string(id))
			}
		})
	case m.Beat:
		e.bytes(3, nil)
	}
	return e.b
}

func (m *fromAgent) decode(b []byte) error {
	d := &decoder{rest: b}
	for d.next() {
		switch d.field {
		case 1:
			m.Hello = decodeHello(d)
		case 2:
			m.Up = decodeUp(d)
		case 3:
			m.Beat = true
		}
	}
	return d.err
}

func decodeHello(outer *decoder) *hello {
	h, d := &hello{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1, 2:
			decodeRelease(d, &h.Release)
		case 3:
			h.Gantry = d.name()
		case 4:
			if err := json.Unmarshal(d.bytes(), &h.Node); err != nil && d.err == nil {
				d.err = fmt.Errorf("read the node: %w", err)
			}
		case 5:
			h.Silence = d.millis()
		case 6:
			h.Routes = d.bool()
		}
	}
	return h
}

func decodeUp(outer *decoder) *up {
	u, d := &up{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			u.Seq = d.uint()
		case 2:
			u.Reports = add(d, u.Reports, decodeReport(d), maxReports)
		case 3:
			u.Removed = add(d, u.Removed, model.VolumeID(d.name()), maxRemoved)
		}
	}
	return u
}

func encodeReport(e *encoder, r *wire.Report) {
	e.text(1, string(r.ID))
	e.message(2, func(e *encoder) {
		s := &r.Status
		e.uint(1, uint64(s.Attempt))
		e.text(2, string(s.Phase))
		e.time(3, s.Since)
		e.time(4, s.Started)
		e.text(5, string(s.Healthy))
		e.bool(6, s.Ready)
		e.text(7, shorten(s.Message))
		for i := range s.Tasks {
			e.message(8, func(e *encoder) { encodeTask(e, &s.Tasks[i]) })
		}
	})
}

func encodeTask(e *encoder, t *model.TaskStatus) {
	e.text(1, t.Name)
	e.int(2, int64(t.PID))
	if x := t.Exit; x != nil {
		e.message(3, func(e *encoder) {
			e.int(1, int64(x.Code))
			e.int(2, int64(x.Signal))
			e.bool(3, x.OOM)
			e.int(4, int64(x.Peak))
			e.int(5, int64(x.Limit))
			e.text(6, shorten(x.Lost))
			e.time(7, x.At)
		})
	}
}

func decodeReport(outer *decoder) (r wire.Report) {
	d := outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			r.ID = model.InstanceID(d.name())
		case 2:
			r.Status = decodeStatus(d)
		}
	}
	return r
}

func decodeStatus(outer *decoder) (s model.Status) {
	d := outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			s.Attempt = uint32(d.small(math.MaxUint32))
		case 2:
			s.Phase = known(d, model.PhaseRunning, model.PhasePreparing, model.PhaseStarting, model.PhaseStopping, model.PhaseStopped,
				model.PhaseBackoff, model.PhaseAssigned, model.PhasePending)
		case 3:
			s.Since = d.time()
		case 4:
			s.Started = d.time()
		case 5:
			s.Healthy = known(d, model.Healthy, model.Unhealthy)
		case 6:
			s.Ready = d.bool()
		case 7:
			s.Message = d.sentence()
		case 8:
			s.Tasks = add(d, s.Tasks, decodeTask(d), model.MaxContainers)
		}
	}
	return s
}

func decodeTask(outer *decoder) (t model.TaskStatus) {
	d := outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			t.Name = d.name()
		case 2:
			t.PID = int(d.int())
		case 3:
			t.Exit = decodeExit(d)
		}
	}
	return t
}

func decodeExit(outer *decoder) *model.Exit {
	x, d := &model.Exit{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			x.Code = int(d.int())
		case 2:
			x.Signal = int(d.int())
		case 3:
			x.OOM = d.bool()
		case 4:
			x.Peak = model.Bytes(d.int())
		case 5:
			x.Limit = model.Bytes(d.int())
		case 6:
			x.Lost = d.sentence()
		case 7:
			x.At = d.time()
		}
	}
	return x
}

func (m *fromServer) encode() []byte {
	var e encoder
	switch {
	case m.Welcome != nil:
		e.message(1, func(e *encoder) {
			encodeRelease(e, m.Welcome.Release)
			e.text(3, m.Welcome.Gantry)
			e.uint(4, millis(m.Welcome.Silence))
			e.message(5, func(e *encoder) { encodeCluster(e, &m.Welcome.Cluster) })
		})
	case m.Refusal != nil:
		e.message(2, func(e *encoder) {
			e.uint(1, uint64(m.Refusal.Reason))
			e.text(2, m.Refusal.Message)
			e.message(3, func(e *encoder) { encodeCluster(e, &m.Refusal.Cluster) })
			e.uint(4, millis(m.Refusal.RetryAfter))
		})
	case m.Piece != nil:
		e.b = make([]byte, 0, len(m.Piece.Data)+16)
		e.message(3, func(e *encoder) {
			e.bytes(1, m.Piece.Data)
			e.bool(2, m.Piece.More)
		})
	case m.Ack != nil:
		e.message(4, func(e *encoder) {
			e.uint(1, m.Ack.Seq)
			e.text(2, shorten(m.Ack.Err))
		})
	case m.Beat != nil:
		e.message(5, func(e *encoder) { e.uint(1, millis(m.Beat.Spread)) })
	case m.Call != 0:
		e.uint(6, m.Call)
	}
	return e.b
}

func (m *fromServer) decode(b []byte) error {
	d := &decoder{rest: b}
	for d.next() {
		switch d.field {
		case 1:
			m.Welcome = decodeWelcome(d)
		case 2:
			m.Refusal = decodeRefusal(d)
		case 3:
			m.Piece = decodePiece(d)
		case 4:
			m.Ack = decodeAck(d)
		case 5:
			m.Beat = decodeBeat(d)
		case 6:
			m.Call = d.uint()
		}
	}
	return d.err
}

func decodeBeat(outer *decoder) *beat {
	b, d := &beat{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		if d.field == 1 {
			b.Spread = d.millis()
		}
	}
	return b
}

func decodeWelcome(outer *decoder) *welcome {
	w, d := &welcome{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1, 2:
			decodeRelease(d, &w.Release)
		case 3:
			w.Gantry = d.text()
		case 4:
			w.Silence = d.millis()
		case 5:
			w.Cluster = decodeCluster(d)
		}
	}
	return w
}

func decodeRefusal(outer *decoder) *Refusal {
	r, d := &Refusal{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			r.Reason = Reason(d.small(math.MaxUint8))
		case 2:
			r.Message = d.text()
		case 3:
			r.Cluster = decodeCluster(d)
		case 4:
			r.RetryAfter = d.millis()
		}
	}
	return r
}

func decodePiece(outer *decoder) *piece {
	p, d := &piece{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			p.Data = d.bytes()
		case 2:
			p.More = d.bool()
		}
	}
	return p
}

func decodeAck(outer *decoder) *ack {
	a, d := &ack{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			a.Seq = d.uint()
		case 2:
			a.Err = d.text()
		}
	}
	return a
}

func encodeCluster(e *encoder, c *wire.Cluster) {
	for _, s := range c.Servers {
		e.element(1, s)
	}
	e.text(2, c.Leader)
}

func decodeCluster(outer *decoder) (c wire.Cluster) {
	d := outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			c.Servers = add(d, c.Servers, d.name(), maxServers)
		case 2:
			c.Leader = d.name()
		}
	}
	return c
}

// known returns which of all the field says, and the zero value when it says something that this version does not know.
func known[T ~string](d *decoder, all ...T) T {
	b := d.bytes()
	for _, v := range all {
		if string(b) == string(v) {
			return v
		}
	}
	return ""
}

// name reads an id or a name.
func (d *decoder) name() string {
	if len(d.bytes()) > maxName {
		d.fail()
	}
	return d.text()
}

// sentence reads text for people.
func (d *decoder) sentence() string { return shorten(d.text()) }

// shorten cuts text for people to what a message may carry.
func shorten(s string) string {
	if len(s) <= maxSentence {
		return s
	}
	s = s[:maxSentence-3]
	for len(s) > 0 {
		if r, n := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || n != 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return s + "..."
}

func millis(d time.Duration) uint64 { return uint64(max(0, d.Milliseconds())) }

func (d *decoder) millis() time.Duration {
	return time.Duration(d.small(uint64(math.MaxInt64/time.Millisecond))) * time.Millisecond
}
