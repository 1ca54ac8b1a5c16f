package rpc

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

// specsOut is what a session has told of specs, each of which goes over the wire once.
type specsOut struct {
	sent map[*model.Spec]uint64
	last uint64
	json func(*model.Spec) ([]byte, error) // encodes, perhaps from a cache
}

// maxSpecs is how many specs one session remembers before both sides forget them all.
const maxSpecs = 2000

// encodeDown encodes d, with the specs that the agent does not have yet.
func (s *specsOut) encodeDown(d *wire.Down) ([]byte, error) {
	e := encoder{b: make([]byte, 0, 64+72*len(d.Set))}
	if d.Full || len(s.sent) > maxSpecs || s.sent == nil {
		s.sent = map[*model.Spec]uint64{}
		e.bool(8, true)
	}
	for i := range d.Set {
		spec := d.Set[i].Spec
		if spec == nil || s.sent[spec] != 0 {
			continue
		}
		text, err := s.json(spec)
		if err != nil {
			return nil, fmt.Errorf("encode the spec of %s: %w", d.Set[i].App, err)
		}
		s.last++
		s.sent[spec] = s.last
		e.message(6, func(e *encoder) { e.uint(1, s.last); e.bytes(2, text) })
	}
	e.bool(1, d.Full)
	for i := range d.Set {
		e.message(2, func(e *encoder) { encodeAssignment(e, &d.Set[i], s.sent[d.Set[i].Spec]) })
	}
	for _, id := range d.Drop {
		e.element(3, string(id))
	}
	for _, id := range d.Volumes {
		e.element(4, string(id))
	}
	for _, id := range d.DropVolumes {
		e.element(5, string(id))
	}
	if d.Cluster != nil {
		e.message(7, func(e *encoder) { encodeCluster(e, d.Cluster) })
	}
	for _, r := range d.Routes {
		e.bytes(9, r.Encoded(encodeRoutes))
	}
	return e.b, nil
}

// specsIn is what a session has been told of specs.
type specsIn map[uint64]*model.Spec

// decodeDown decodes what encodeDown wrote.
func (s *specsIn) decodeDown(b []byte) (out wire.Down, err error) {
	d := &decoder{rest: b}
	for d.next() {
		switch d.field {
		case 1:
			out.Full = d.bool()
		case 2:
			out.Set = add(d, out.Set, s.decodeAssignment(d), maxEntries)
		case 3:
			out.Drop = add(d, out.Drop, model.InstanceID(d.text()), maxEntries)
		case 4:
			out.Volumes = add(d, out.Volumes, model.VolumeID(d.text()), maxEntries)
		case 5:
			out.DropVolumes = add(d, out.DropVolumes, model.VolumeID(d.text()), maxEntries)
		case 6:
			s.decodeSpec(d)
		case 7:
			c := decodeCluster(d)
			out.Cluster = &c
		case 8:
			*s = specsIn{}
		case 9:
			out.Routes = add(d, out.Routes, decodeRoutes(d), maxEntries)
		}
	}
	return out, d.err
}

func (s *specsIn) decodeSpec(outer *decoder) {
	d := outer.inner()
	defer func() { outer.done(d) }()
	var n uint64
	spec := &model.Spec{}
	for d.next() {
		switch d.field {
		case 1:
			n = d.uint()
		case 2:
			if err := json.Unmarshal(d.bytes(), spec); err != nil && d.err == nil {
				d.err = fmt.Errorf("read a spec: %w", err)
			}
		}
	}
	if *s == nil {
		*s = specsIn{}
	}
	(*s)[n] = spec
}

// encodeAssignment refers to the spec by its number in the session, from 1; 0 for none.
func encodeAssignment(e *encoder, a *wire.Assignment, spec uint64) {
	e.text(1, string(a.ID))
	e.text(2, string(a.App))
	e.uint(3, a.Version)
	e.text(4, string(a.Desired))
	e.bool(5, a.Over)
	e.uint(6, uint64(a.Attempt))
	for _, p := range a.Ports {
		e.uint(7, uint64(p)+1) // an endpoint without a port is an entry too
	}
	e.uint(8, uint64(a.Slot))
	for _, g := range a.GPUs {
		e.message(9, func(e *encoder) { e.text(1, g.ID); e.int(2, int64(g.Share)) })
	}
	for _, name := range slices.Sorted(maps.Keys(a.Items)) {
		e.message(10, func(e *encoder) {
			e.text(1, name)
			for _, item := range a.Items[name] {
				e.element(2, item)
			}
		})
	}
	e.uint(11, spec)
}

func (s *specsIn) decodeAssignment(outer *decoder) (a wire.Assignment) {
	d := outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			a.ID = model.InstanceID(d.text())
		case 2:
			a.App = model.AppID(d.text())
		case 3:
			a.Version = d.uint()
		case 4:
			a.Desired = model.Desired(d.text())
		case 5:
			a.Over = d.bool()
		case 6:
			a.Attempt = uint32(d.small(math.MaxUint32))
		case 7:
			a.Ports = add(d, a.Ports, uint16(max(1, d.small(math.MaxUint16+1))-1), maxEntries)
		case 8:
			a.Slot = uint32(d.small(math.MaxUint32))
		case 9:
			a.GPUs = add(d, a.GPUs, decodeGPU(d), maxEntries)
		case 10:
			decodeItems(d, &a)
		case 11:
			n := d.uint()
			if a.Spec = (*s)[n]; a.Spec == nil && n != 0 && d.err == nil {
				d.err = fmt.Errorf("%s refers to a spec that was not sent", a.ID)
			}
		}
	}
	return a
}

func decodeGPU(outer *decoder) (g model.GPUShare) {
	d := outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			g.ID = d.text()
		case 2:
			g.Share = model.GPU(d.int())
		}
	}
	return g
}

func decodeItems(outer *decoder, a *wire.Assignment) {
	d := outer.inner()
	defer func() { outer.done(d) }()
	var name string
	var items []string
	for d.next() {
		switch d.field {
		case 1:
			name = d.text()
		case 2:
			items = add(d, items, d.text(), maxEntries)
		}
	}
	if a.Items == nil {
		a.Items = map[string][]string{}
	}
	a.Items[name] = items
}
