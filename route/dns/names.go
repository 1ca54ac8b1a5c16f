package dns

import (
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/route"
)

// How things are called, within the zone gantry:
//
//	web.shop.gantry                          the instances of /shop/web that serve
//	web.shop.all.gantry                      all of them
//	2.db.slot.gantry                         the instance of /db with slot 2, serving or not
//	web-k3v9q2xw.web.shop.instance.gantry    one instance, serving or not
//	_http._tcp.<each of these>               its endpoint http: the same addresses, and ports by SRV
//
// No two of them can be the same name: apps are in no group all, slot or instance (model.NamesKept), and have no underscore.
// All but the last kind are host names by the rules, which many programs hold names to.

// names is what a name of the zone means.
type names struct {
	some     []*route.Entry // several instances, or
	one      *route.Entry   // one
	endpoint string         // only this endpoint, when not empty
	proto    string
}

// entries returns the instances meant, those that have the endpoint if there is one, in an order of their own.
func (n *names) entries() []*route.Entry {
	list := n.some
	if n.one != nil {
		list = []*route.Entry{n.one}
	}
	list = shuffled(list)
	if n.endpoint != "" {
		list = slices.DeleteFunc(slices.Clone(list), func(e *route.Entry) bool { return !n.in(e) })
	}
	return list
}

// asks reports whether a port is one that is meant.
func (n *names) asks(p *route.Port) bool {
	return n.endpoint == "" || p.Name == n.endpoint && p.Proto == n.proto
}

// in reports whether an instance has the endpoint.
func (n *names) in(e *route.Entry) bool {
	return slices.ContainsFunc(e.Ports, func(p route.Port) bool { return n.asks(&p) })
}

// lookup returns what a name means, in lower case and without the zone, and whether there is such a name or one below it.
func lookup(t *route.Table, name string) (names, bool) {
	var n names
	rest := name
	var service bool
	if strings.HasPrefix(rest, "_") {
		service = true
		label, after, _ := strings.Cut(rest, ".")
		if label == "_tcp" || label == "_udp" {
			n.proto = label[1:] // nothing by itself; endpoints are below
		} else {
			n.endpoint = label[1:]
			n.proto, after, _ = strings.Cut(after, ".")
			if n.proto != "_tcp" && n.proto != "_udp" || n.endpoint == "" {
				return names{}, false
			}
			n.proto = n.proto[1:]
		}
		rest = after
	}
	all, ok := n.instances(t, rest)
	if !ok || service && all == nil {
		return names{}, false
	}
	if !service {
		return n, true
	}
	if n.endpoint == "" {
		proto := n.proto
		has := func(e *route.Entry) bool {
			return slices.ContainsFunc(e.Ports, func(p route.Port) bool { return p.Proto == proto })
		}
		return names{}, slices.ContainsFunc(all, has)
	}
	return n, slices.ContainsFunc(all, n.in)
}

// instances finds the instances that a name without an endpoint means. It returns all those that bear on whether the name
// exists, and whether it does.
func (n *names) instances(t *route.Table, name string) ([]*route.Entry, bool) {
	rest, tree := name, ""
	if i := strings.LastIndexByte(name, '.'); true {
		switch last := name[i+1:]; last {
		case model.NamesAll, model.NamesSlot, model.NamesInstance:
			tree, rest = last, name[:max(i, 0)]
		}
	}
	if tree != "" && rest == "" {
		return nil, true
	}
	if tree == model.NamesSlot || tree == model.NamesInstance {
		if head, app, ok := strings.Cut(rest, "."); ok {
			if e := single(t.App(app), tree, head); e != nil {
				n.one = e
				return []*route.Entry{e}, true
			}
		}
		return nil, t.App(rest) != nil || t.Group(rest)
	}
	a := t.App(rest)
	if a == nil {
		return nil, t.Group(rest)
	}
	n.some = a.Serving
	if tree == model.NamesAll {
		n.some = a.All
	}
	return a.All, true
}

// single returns the instance of an app that has a slot or an id, or nil.
func single(a *route.App, tree, label string) *route.Entry {
	if a == nil {
		return nil
	}
	if tree == model.NamesInstance {
		return a.Instance(label)
	}
	n, err := strconv.ParseUint(label, 10, 32)
	if err != nil || label[0] == '0' || label[0] == '+' {
		return nil
	}
	return a.Slot(uint32(n))
}
