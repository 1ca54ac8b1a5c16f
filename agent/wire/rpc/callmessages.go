package rpc

import (
	"math"

	"github.com/gantry-os/gantry/runtime"
)

// fromCaller is one message of a server on the stream of a call. One part is set, or none when its kind is not known.
type fromCaller struct {
	Ask       *ask
	Input     []byte
	InputEnd  bool
	InputFail string // why there will be no more input, though it is not at its end
	Resize    *runtime.Size
}

// ask is the first message of a call.
type ask struct {
	Method string
	Args   []byte // JSON
}

// fromCallee is one message of an agent on the stream of a call. One part is set, or none when its kind is not known.
type fromCallee struct {
	Opened bool // the call works: output may follow
	Stdout []byte
	Stderr []byte
	Taken  uint64 // how many further messages of input may be sent
	End    *end
}

// end is the last message of a call.
type end struct {
	Code  int
	Kind  failure
	Error string // empty when it worked
}

func (m *fromCaller) encode() []byte {
	var e encoder
	switch {
	case m.Ask != nil:
		e.message(1, func(e *encoder) { e.text(1, m.Ask.Method); e.bytes(2, m.Ask.Args) })
	case m.Input != nil:
		e.bytes(2, m.Input)
	case m.InputEnd:
		e.bool(3, true)
	case m.InputFail != "":
		e.text(4, shorten(m.InputFail))
	case m.Resize != nil:
		e.message(5, func(e *encoder) { e.uint(1, uint64(m.Resize.Columns)); e.uint(2, uint64(m.Resize.Rows)) })
	}
	return e.b
}

func (m *fromCaller) decode(b []byte) error {
	d := &decoder{rest: b}
	for d.next() {
		switch d.field {
		case 1:
			m.Ask = decodeAsk(d)
		case 2:
			m.Input = d.bytes()
		case 3:
			m.InputEnd = d.bool()
		case 4:
			m.InputFail = d.text()
		case 5:
			m.Resize = decodeSize(d)
		}
	}
	return d.err
}

func decodeAsk(outer *decoder) *ask {
	a, d := &ask{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			a.Method = d.text()
		case 2:
			a.Args = d.bytes()
		}
	}
	return a
}

func decodeSize(outer *decoder) *runtime.Size {
	s, d := &runtime.Size{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			s.Columns = uint16(d.small(math.MaxUint16))
		case 2:
			s.Rows = uint16(d.small(math.MaxUint16))
		}
	}
	return s
}

func (m *fromCallee) encode() []byte {
	var e encoder
	switch {
	case m.Opened:
		e.bool(1, true)
	case m.Stdout != nil:
		e.bytes(2, m.Stdout)
	case m.Stderr != nil:
		e.bytes(3, m.Stderr)
	case m.Taken != 0:
		e.uint(4, m.Taken)
	case m.End != nil:
		e.message(5, func(e *encoder) {
			e.int(1, int64(m.End.Code))
			e.uint(2, uint64(m.End.Kind))
			e.text(3, shorten(m.End.Error))
		})
	}
	return e.b
}

func (m *fromCallee) decode(b []byte) error {
	d := &decoder{rest: b}
	for d.next() {
		switch d.field {
		case 1:
			m.Opened = d.bool()
		case 2:
			m.Stdout = d.bytes()
		case 3:
			m.Stderr = d.bytes()
		case 4:
			m.Taken = d.uint()
		case 5:
			m.End = decodeEnd(d)
		}
	}
	return d.err
}

func decodeEnd(outer *decoder) *end {
	x, d := &end{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			x.Code = int(d.int())
		case 2:
			x.Kind = failure(d.small(math.MaxUint8))
		case 3:
			x.Error = d.sentence()
		}
	}
	return x
}
