package fleet

import (
	"cmp"
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/route"
	"github.com/gantry-os/gantry/state"
)

// How changes of the endpoint table are gathered: for a moment, and longer the more nodes are told, so that what telling them
// costs is bounded.
const (
	gatherLeast = 100 * time.Millisecond
	gatherEach  = 20 * time.Microsecond // for each node
	gatherMost  = 400 * time.Millisecond
)

// Bounds of what is kept for nodes that connect, and for those that do not keep up.
const (
	maxSince   = 200 // changes since the full table
	maxWaiting = 400 // changes for one session, the full table's included
)

// routes derives the endpoint table and tells those sessions of it that asked. One change is one value for all of them.
type routes struct {
	mu       sync.Mutex
	sessions map[*session]struct{}
	table    *route.Table            // nil while nobody asks
	addrs    map[model.NodeID]string // of the nodes, as the table has them
	base     *wire.Routes            // all of a table; nil until somebody needs it
	since    []*wire.Routes          // what makes table of base
}

// follow keeps the table as the store has it, until ctx ends.
func (f *Fleet) follow(ctx context.Context) error {
	_, watch := f.store.Watch()
	defer watch.Close()
	gather := time.NewTimer(0)
	defer gather.Stop()
	for {
		select {
		case <-watch.Ready():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		gather.Reset(f.routes.pause())
		select {
		case <-gather.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		f.routes.take(watch.Take())
	}
}

func (r *routes) pause() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return min(gatherLeast+gatherEach*time.Duration(len(r.sessions)), gatherMost)
}

// join tells a session the whole table, and every change from now on.
func (r *routes) join(s *session, view state.View) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.table == nil {
		r.resetLocked(view)
	}
	r.sessions[s] = struct{}{}
	s.setRoutes(r.allLocked())
}

// take brings the table up to date with view, and tells it.
func (r *routes) take(view state.View, c state.Changes) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.sessions {
		if s.over() {
			delete(r.sessions, s)
		}
	}
	switch {
	case len(r.sessions) == 0:
		r.table, r.base, r.since = nil, nil, nil
	case c.Full:
		r.resetLocked(view)
		for s := range r.sessions {
			s.setRoutes(r.allLocked())
		}
	default:
		r.tellLocked(r.changeLocked(view, c))
	}
}

// resetLocked makes the table of a view alone.
func (r *routes) resetLocked(view state.View) {
	r.addrs = map[model.NodeID]string{}
	for n := range view.Nodes() {
		r.addrs[n.ID] = n.Addr
	}
	c := route.Change{Full: true}
	for i := range view.Instances() {
		if e := entryOf(view, i); e != nil {
			c.Put = append(c.Put, e)
		}
	}
	r.table, r.base, r.since = (&route.Table{}).With(c), nil, nil
}

// changeLocked returns what is not in the table as view has it, of what may have changed.
func (r *routes) changeLocked(view state.View, c state.Changes) route.Change {
	var out route.Change
	look := func(id model.InstanceID, i *model.Instance) {
		old := r.table.Entry(id)
		var e *route.Entry
		if i != nil {
			e = entryOf(view, i)
		}
		switch {
		case e == nil && old != nil:
			out.Drop = append(out.Drop, id)
		case e != nil && (old == nil || !e.Equal(old)):
			out.Put = append(out.Put, e)
		}
	}
	for id := range c.Instances {
		look(id, view.Instance(id))
	}
	for id := range c.Nodes {
		addr := ""
		if n := view.Node(id); n != nil {
			addr = n.Addr
		}
		if r.addrs[id] == addr {
			continue
		}
		r.addrs[id] = addr
		for i := range view.InstancesOn(id) {
			if _, ok := c.Instances[i.ID]; !ok {
				look(i.ID, i)
			}
		}
	}
	return out
}

// tellLocked makes the next table and tells all sessions.
func (r *routes) tellLocked(c route.Change) {
	if len(c.Put)+len(c.Drop) == 0 {
		return
	}
	r.table = r.table.With(c)
	news := &wire.Routes{Change: c}
	if r.base != nil {
		r.since = append(r.since, news)
		if r.staleLocked() {
			r.base, r.since = nil, nil
		}
	}
	var woken pace
	for s := range r.sessions {
		if !s.addRoutes(news) {
			s.setRoutes(r.allLocked())
		}
		woken.one()
	}
}

// staleLocked reports whether so much has changed since base that another is better.
func (r *routes) staleLocked() bool {
	n := 0
	for _, s := range r.since {
		n += len(s.Put) + len(s.Drop)
	}
	return len(r.since) > maxSince || n > len(r.base.Put)/2+maxSince
}

// allLocked returns what makes the whole table.
func (r *routes) allLocked() []*wire.Routes {
	if r.base == nil {
		r.base = &wire.Routes{Change: route.Change{Full: true, Put: make([]*route.Entry, 0, r.table.Len())}}
		for e := range r.table.All() {
			r.base.Put = append(r.base.Put, e)
		}
	}
	return append([]*wire.Routes{r.base}, r.since...)
}

// setRoutes has a session told the whole table, in place of what waits.
func (s *session) setRoutes(all []*wire.Routes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Routes = all
	s.wakeLocked()
}

// addRoutes has a session told a change, unless so many wait that the whole table is better. It reports whether.
func (s *session) addRoutes(r *wire.Routes) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.out.Routes) >= maxWaiting {
		return false
	}
	s.out.Routes = append(s.out.Routes, r)
	s.wakeLocked()
	return true
}

// entryOf returns where an instance is reached, nil when it is nowhere.
func entryOf(view state.View, i *model.Instance) *route.Entry {
	if i.Node == "" || i.Over() {
		return nil
	}
	e := &route.Entry{ID: i.ID, App: i.App, Slot: i.Slot, Node: i.Node}
	_, e.Serving = i.HealthySince()
	if n := view.Node(i.Node); n != nil {
		if a, err := netip.ParseAddr(n.Addr); err == nil { // agents say addresses
			e.Addrs = []netip.Addr{a.Unmap().WithZone("")}
		}
	}
	v := view.Version(i.App, i.Version)
	if v == nil {
		return e
	}
	for n, p := range v.Spec.Endpoints {
		if n < len(i.Ports) {
			e.Ports = append(e.Ports, route.Port{Name: p.Name, Port: i.Ports[n], Proto: cmp.Or(p.Protocol, "tcp")})
		}
	}
	return e
}
