package rpc

import (
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// field is the number that a field has on the wire. Numbers are never used again for something else.
type field = protowire.Number

// encoder appends fields to a message. Zero values are left out.
type encoder struct{ b []byte }

func (e *encoder) uint(f field, v uint64) {
	if v != 0 {
		e.b = protowire.AppendVarint(protowire.AppendTag(e.b, f, protowire.VarintType), v)
	}
}

// int is for numbers that may be negative.
func (e *encoder) int(f field, v int64) { e.uint(f, protowire.EncodeZigZag(v)) }

func (e *encoder) bool(f field, v bool) {
	if v {
		e.uint(f, 1)
	}
}

func (e *encoder) text(f field, s string) {
	if s != "" {
		e.element(f, s)
	}
}

// element appends an entry of a list, empty ones too.
func (e *encoder) element(f field, s string) {
	e.b = protowire.AppendString(protowire.AppendTag(e.b, f, protowire.BytesType), s)
}

// bytes appends b even when it is empty: that it is there may be the message.
func (e *encoder) bytes(f field, b []byte) {
	e.b = protowire.AppendBytes(protowire.AppendTag(e.b, f, protowire.BytesType), b)
}

// time appends a moment in nanoseconds.
func (e *encoder) time(f field, t time.Time) {
	if !t.IsZero() {
		e.b = protowire.AppendFixed64(protowire.AppendTag(e.b, f, protowire.Fixed64Type), uint64(t.UnixNano()))
	}
}

// message appends what fill does, as one field, an empty one too.
func (e *encoder) message(f field, fill func(*encoder)) {
	e.b = protowire.AppendTag(e.b, f, protowire.BytesType)
	start := len(e.b)
	e.b = append(e.b, 0)
	fill(e)
	size := len(e.b) - start - 1
	if size < 0x80 {
		e.b[start] = byte(size)
		return
	}
	length := protowire.AppendVarint(nil, uint64(size))
	e.b = slices.Insert(e.b, start, length[1:]...)
	copy(e.b[start:], length)
}

var (
	errMalformed = errors.New("the message is malformed")
	errTooMany   = errors.New("the message holds too many entries")
)

// decoder walks over the fields of a message. It never fails on fields it does not know.
type decoder struct {
	rest []byte
	err  error

	field field // the one that next stopped at
	kind  protowire.Type
	num   uint64
	data  []byte
}

// next goes to the next field. It returns false at the end, and when the message is malformed.
func (d *decoder) next() bool {
	if d.err != nil || len(d.rest) == 0 {
		return false
	}
	f, kind, n := protowire.ConsumeTag(d.rest)
	if n < 0 {
		return d.fail()
	}
	d.rest, d.field, d.kind, d.num, d.data = d.rest[n:], f, kind, 0, nil
	switch kind {
	case protowire.VarintType:
		d.num, n = protowire.ConsumeVarint(d.rest)
	case protowire.Fixed64Type:
		d.num, n = protowire.ConsumeFixed64(d.rest)
	case protowire.BytesType:
		d.data, n = protowire.ConsumeBytes(d.rest)
	default:
		n = protowire.ConsumeFieldValue(f, kind, d.rest)
	}
	if n < 0 {
		return d.fail()
	}
	d.rest = d.rest[n:]
	return true
}

func (d *decoder) fail() bool {
	if d.err == nil {
		d.err = errMalformed
	}
	return false
}

func (d *decoder) want(kind protowire.Type) bool { return d.kind == kind || d.fail() }

func (d *decoder) uint() uint64 {
	d.want(protowire.VarintType)
	return d.num
}

// small reads a number of at most limit.
func (d *decoder) small(limit uint64) uint64 {
	n := d.uint()
	if n > limit {
		d.fail()
		return 0
	}
	return n
}

func (d *decoder) int() int64 { return protowire.DecodeZigZag(d.uint()) }

func (d *decoder) bool() bool { return d.uint() != 0 }

func (d *decoder) text() string {
	d.want(protowire.BytesType)
	return string(d.data)
}

// bytes returns a part of the message itself.
func (d *decoder) bytes() []byte {
	d.want(protowire.BytesType)
	return d.data
}

func (d *decoder) time() time.Time {
	if !d.want(protowire.Fixed64Type) {
		return time.Time{}
	}
	return time.Unix(0, int64(d.num)).UTC()
}

// inner returns a decoder of a message within this one.
func (d *decoder) inner() *decoder { return &decoder{rest: d.bytes()} }

// done takes over how an inner decoder failed.
func (d *decoder) done(inner *decoder) {
	if d.err == nil {
		d.err = inner.err
	}
}

// add appends to a list of at most limit entries.
func add[T any](d *decoder, list []T, v T, limit int) []T {
	if len(list) >= limit {
		if d.err == nil {
			d.err = errTooMany
		}
		return list
	}
	return append(list, v)
}
