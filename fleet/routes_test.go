package fleet_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/route"
	"github.com/gantry-os/gantry/state"
)

// reader is a node's table, as its session tells it.
type reader struct {
	r     *rig
	link  wire.Link
	table *route.Table
	got   []*wire.Routes
}

// follow connects a node that wants the endpoint table.
func (r *rig) follow(ctx context.Context, id model.NodeID, addr string) *reader {
	r.t.Helper()
	link := r.fleet.Dial(ctx, nil)
	if err := link.Send(r.t.Context(), wire.Up{Hello: &model.Node{ID: id, Name: string(id), Addr: addr}, WantRoutes: true}); err != nil {
		r.t.Fatal(err)
	}
	return &reader{r: r, link: link}
}

// until reads until the table is as ok has it.
func (n *reader) until(what string, ok func(*route.Table) bool) {
	n.r.t.Helper()
	ctx, cancel := context.WithTimeout(n.r.t.Context(), 20*time.Second)
	defer cancel()
	for n.table == nil || !ok(n.table) {
		d, err := n.link.Recv(ctx)
		if err != nil {
			n.r.t.Fatalf("%s: %v", what, err)
		}
		for _, c := range d.Routes {
			if n.table == nil {
				if !c.Full {
					n.r.t.Fatal("the first change is not the whole table")
				}
				n.table = &route.Table{}
			}
			n.table, n.got = n.table.With(c.Change), append(n.got, c)
		}
	}
}

// serve writes that an instance runs and is ready, or not.
func (r *rig) serve(id model.InstanceID, node model.NodeID, ready bool) {
	r.t.Helper()
	r.update(func(tx *state.Tx) {
		tx.PutInstance(&model.Instance{
			ID: id, App: "/shop/web", Version: 1, Desired: model.Run, Node: node, Slot: 3, Ports: []uint16{31000, 31001},
			Status: model.Status{Attempt: 1, Phase: model.PhaseRunning, Ready: ready},
		})
	})
}

func newRouteRig(t *testing.T) *rig {
	r := newRig(t)
	r.update(func(tx *state.Tx) {
		tx.PutVersion(&model.AppVersion{App: "/shop/web", Version: 1, Spec: &model.Spec{
			ID: "/shop/web", Containers: []model.Container{{Shell: "true"}},
			Endpoints: []model.Endpoint{{Name: "http"}, {Name: "stats", Protocol: "udp"}},
		}})
	})
	return r
}

func serving(t *route.Table, want ...model.InstanceID) bool {
	var got []model.InstanceID
	if a := t.App("web.shop"); a != nil {
		for _, e := range a.Serving {
			got = append(got, e.ID)
		}
	}
	return slices.Equal(got, want)
}

// A node that asks gets the whole table and then what changes, and one that does not ask gets nothing of it.
func TestRoutes(t *testing.T) {
	r := newRouteRig(t)
	r.serve("web-1", "a", true)
	a := r.follow(t.Context(), "a", "10.0.0.1")
	a.until("web-1 serves", func(t *route.Table) bool { return serving(t, "web-1") && len(t.Entry("web-1").Addrs) == 1 })
	want := &route.Entry{
		ID: "web-1", App: "/shop/web", Slot: 3, Node: "a", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Serving: true,
		Ports: []route.Port{{Name: "http", Port: 31000, Proto: "tcp"}, {Name: "stats", Port: 31001, Proto: "udp"}},
	}
	if got := a.table.Entry("web-1"); !got.Equal(want) {
		t.Errorf("got %+v, want %+v", got, want)
	}

	other, _ := r.join(t.Context(), "b")
	r.serve("web-2", "a", false)
	a.until("web-2 is there, and does not serve", func(t *route.Table) bool { return t.Entry("web-2") != nil && serving(t, "web-1") })
	r.serve("web-2", "a", true)
	a.until("web-2 serves", func(t *route.Table) bool { return serving(t, "web-1", "web-2") })
	r.update(func(tx *state.Tx) {
		i := tx.Instance("web-1").Clone()
		i.Desired = model.Halt
		tx.PutInstance(i)
	})
	a.until("web-1 is to stop", func(t *route.Table) bool { return serving(t, "web-2") && t.Entry("web-1") != nil })
	r.update(func(tx *state.Tx) { tx.DeleteInstance("web-1") })
	a.until("web-1 is gone", func(t *route.Table) bool { return t.Entry("web-1") == nil })

	moved := r.follow(t.Context(), "a", "10.0.0.9")
	moved.until("the address of its node is another", func(t *route.Table) bool {
		e := t.Entry("web-2")
		return e != nil && len(e.Addrs) == 1 && e.Addrs[0].String() == "10.0.0.9"
	})

	r.put("web-3", "b", model.PhaseAssigned) // tells b something
	if d := r.recv(other); len(d.Set) != 1 || len(d.Routes) != 0 {
		t.Errorf("who did not ask is told %+v", d)
	}
}

// All nodes are told by the same values, which are encoded once, and one that connects later ends with the same table.
func TestRoutesAreShared(t *testing.T) {
	r := newRouteRig(t)
	a, b := r.follow(t.Context(), "a", "10.0.0.1"), r.follow(t.Context(), "b", "10.0.0.2")
	r.serve("web-000", "a", true)
	for _, n := range []*reader{a, b} {
		n.until("the first serves", func(t *route.Table) bool { return serving(t, "web-000") })
	}
	for i := range 50 {
		r.serve(model.InstanceID(fmt.Sprintf("web-%03d", i)), "b", i%2 == 0)
	}
	done := func(t *route.Table) bool {
		e := t.Entry("web-049")
		return t.Len() == 50 && e != nil && e.Node == "b" && t.Entry("web-000").Node == "b"
	}
	a.until("all are known to a", done)
	b.until("all are known to b", done)
	if last := a.got[len(a.got)-1]; last.Full || last != b.got[len(b.got)-1] {
		t.Error("the last change is not one value for both")
	}
	if n := len(a.got); n > 40 {
		t.Errorf("50 changes in a row came in %d parts: they are not gathered", n)
	}
	late := r.follow(t.Context(), "c", "10.0.0.3")
	late.until("all are known to c", done)
	if !slices.EqualFunc(slices.Collect(late.table.All()), slices.Collect(a.table.All()), (*route.Entry).Equal) {
		t.Error("who came late has another table")
	}
}

// A node that does not read is told the whole table once it does, and not each change meanwhile.
func TestRoutesOfSlowNodes(t *testing.T) {
	r := newRouteRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow, quick := r.follow(ctx, "slow", "10.0.0.1"), r.follow(ctx, "quick", "10.0.0.2")
	for i := range 5 {
		r.serve("web-1", "slow", i%2 == 0)
		quick.until("it changes", func(t *route.Table) bool { return serving(t, "web-1") == (i%2 == 0) && t.Entry("web-1") != nil })
	}
	slow.until("it is as it is", func(t *route.Table) bool { return serving(t, "web-1") })
	if !slow.got[0].Full {
		t.Error("it does not begin with the whole table")
	}
}
