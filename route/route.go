// Package route is the endpoint table: where each instance of the cluster is reached, and whether it serves. It is derived
// from what the servers know, sent to every node, and never stored with the truth; route/dns answers names from it.
//
// A Table never changes. With makes the next one, which shares all that stays the same, so that a change costs as much as
// itself and whoever reads a table holds it as long as needed, without a lock.
package route

import (
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gantry-os/gantry/model"
)

// Entry is one instance that has a node. What a Table holds is not changed any more.
type Entry struct {
	ID      model.InstanceID `json:"id"`
	App     model.AppID      `json:"app"`
	Slot    uint32           `json:"slot,omitempty"` // 0 for none
	Node    model.NodeID     `json:"node"`
	Addrs   []netip.Addr     `json:"addrs,omitempty"` // at which its ports are reached
	Ports   []Port           `json:"ports,omitempty"` // one for each endpoint, in the order of the app
	Serving bool             `json:"serving,omitempty"`
}

// Port is where an endpoint of an instance is reached.
type Port struct {
	Name  string `json:"name"`
	Port  uint16 `json:"port"`
	Proto string `json:"proto"` // tcp or udp
}

// Equal reports whether e and o say the same.
func (e *Entry) Equal(o *Entry) bool {
	return e.ID == o.ID && e.App == o.App && e.Slot == o.Slot && e.Node == o.Node && e.Serving == o.Serving &&
		slices.Equal(e.Addrs, o.Addrs) && slices.Equal(e.Ports, o.Ports)
}

// Change is what makes one table of another. What is put is not dropped.
type Change struct {
	Full bool // Put is all there is
	Put  []*Entry
	Drop []model.InstanceID
}

// Name returns what an app is called within the zone: its path, from the end. /shop/web is web.shop.
func Name(app model.AppID) string {
	parts := strings.Split(strings.Trim(string(app), "/"), "/")
	slices.Reverse(parts)
	return strings.Join(parts, ".")
}

// Host returns what an instance is called within the zone. Nothing else ever has the name.
func (e *Entry) Host() string { return string(e.ID) + "." + Name(e.App) + "." + model.NamesInstance }

// valid reports whether an entry can be called by name. What came over a network or from a disk may be anything.
func (e *Entry) valid() bool {
	for _, s := range []string{string(e.ID), string(e.App), string(e.Node)} {
		if s == "" || len(s) > 255 || !utf8.ValidString(s) {
			return false
		}
	}
	return e.App[0] == '/' && !slices.Contains(strings.Split(string(e.App[1:]), "/"), "")
}
