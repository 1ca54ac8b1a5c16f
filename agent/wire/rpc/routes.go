package rpc

import (
	"math"
	"net/netip"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	endpoints "github.com/gantry-os/gantry/route" // a route is a way to a server here
)

// encodeRoutes encodes a change of the endpoint table.
func encodeRoutes(c *endpoints.Change) []byte {
	e := &encoder{b: make([]byte, 0, 16+128*len(c.Put)+24*len(c.Drop))}
	e.bool(1, c.Full)
	for _, entry := range c.Put {
		e.message(2, func(e *encoder) { encodeRoute(e, entry) })
	}
	for _, id := range c.Drop {
		e.element(3, string(id))
	}
	return e.b
}

func encodeRoute(e *encoder, r *endpoints.Entry) {
	e.text(1, string(r.ID))
	e.text(2, string(r.App))
	e.uint(3, uint64(r.Slot))
	e.text(4, string(r.Node))
	for _, a := range r.Addrs {
		e.bytes(5, a.AsSlice())
	}
	for _, p := range r.Ports {
		e.message(6, func(e *encoder) {
			e.text(1, p.Name)
			e.uint(2, uint64(p.Port))
			e.text(3, p.Proto)
		})
	}
	e.bool(7, r.Serving)
}

func decodeRoutes(outer *decoder) *wire.Routes {
	r, d := &wire.Routes{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			r.Full = d.bool()
		case 2:
			r.Put = add(d, r.Put, decodeRoute(d), maxEntries)
		case 3:
			r.Drop = add(d, r.Drop, model.InstanceID(d.name()), maxEntries)
		}
	}
	return r
}

func decodeRoute(outer *decoder) *endpoints.Entry {
	r, d := &endpoints.Entry{}, outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			r.ID = model.InstanceID(d.name())
		case 2:
			r.App = model.AppID(d.name())
		case 3:
			r.Slot = uint32(d.small(math.MaxUint32))
		case 4:
			r.Node = model.NodeID(d.name())
		case 5:
			if a, ok := netip.AddrFromSlice(d.bytes()); ok { // another kind of address is of a later version
				r.Addrs = add(d, r.Addrs, a, maxRouteAddrs)
			}
		case 6:
			r.Ports = add(d, r.Ports, decodePort(d), model.MaxEndpoints)
		case 7:
			r.Serving = d.bool()
		}
	}
	return r
}

func decodePort(outer *decoder) (p endpoints.Port) {
	d := outer.inner()
	defer func() { outer.done(d) }()
	for d.next() {
		switch d.field {
		case 1:
			p.Name = d.name()
		case 2:
			p.Port = uint16(d.small(math.MaxUint16))
		case 3:
			p.Proto = d.name()
		}
	}
	return p
}

// maxRouteAddrs is how many addresses one instance may have.
const maxRouteAddrs = 64
