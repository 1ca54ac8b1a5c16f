package show

import (
	"bytes"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

func funnel() *model.Funnel {
	return &model.Funnel{
		Nodes: 120, Reason: "2 nodes are cordoned; 30 nodes excluded by rack UNLIKE r1; 88 nodes lack memory: wants 64 GiB, most free is 60 GiB on node-b",
		Steps: []model.FunnelStep{
			{Filter: "state", Removed: 2, Left: 118, Why: "2 nodes are cordoned"},
			{Filter: "constraint rack UNLIKE r1", Removed: 30, Left: 88},
			{Filter: "memory", Removed: 87, Left: 1, Why: "wants 64 GiB, most free is 60 GiB on node-b"},
			{Filter: "ports", Removed: 1, Why: "8080/tcp is taken"},
		},
	}
}

func plan() *model.Plan {
	return &model.Plan{
		App: "/shop/db", Instances: 6, Kept: 1, Placed: 3, Waiting: 2, Funnel: *funnel(),
		Nodes: []model.PlanNode{
			{Node: "n-7f3k", Name: "rack1-a", Instances: 2, Free: model.Resources{CPUs: 500, Memory: model.GiB, GPUs: 250}},
			{Node: "n-8g4m", Name: "rack1-b", Instances: 1, Free: model.Resources{CPUs: 12_000, Memory: 40 * model.GiB, Disk: model.TiB}},
		},
		Preempted: []model.PlanVictim{{Instance: "etl-aaaa", App: "/batch/etl", Node: "n-7f3k", Priority: 10, Why: "lowest priority in the role"}},
	}
}

func roles() []client.RoleDetail {
	return []client.RoleDetail{
		{Role: model.Role{ID: "/"}, Share: 0.5, Dominant: "memory", Instances: 40, Apps: 1,
			Used: client.Amounts{Resources: model.Resources{CPUs: 20_500, Memory: 96 * model.GiB}}},
		{Role: model.Role{ID: "/analytics", Weight: 2, Weights: map[string]float64{"gpus": 3},
			Guarantee: model.Quota{CPUs: new(model.CPU(20_000)), Memory: new(64 * model.GiB)}, Limit: model.Quota{GPUs: new(model.GPU(4500)), Custom: map[string]model.Units{"licence": 2000}}},
			Share: 0.25, Dominant: "gpus", Instances: 3,
			Used: client.Amounts{Resources: model.Resources{CPUs: 2000, Memory: 4 * model.GiB, GPUs: 2500}, Custom: map[string]model.Units{"licence": 1000}}},
	}
}

// apart is a node with everything that a plain one does not have.
func apart() client.NodeDetail {
	n := node()
	n.ID, n.Name, n.Pool, n.Region, n.Zone = "n-8g4m", "rack2-b", "gpu", "north", "north-1"
	n.GPUs = []model.GPUDevice{{ID: "g0", Model: "T4"}, {ID: "g1", Model: "T4"}, {ID: "g2", Model: "A10"}}
	n.Capacity.GPUs, n.Used.GPUs = 3000, 1500
	n.Custom = map[string]model.Custom{"licence": {Amount: 4000}, "disks": {Items: []string{"sda", "sdb"}}}
	n.UsedCustom = map[string]model.Units{"licence": 1500}
	n.Availability, n.Why = client.NodeMaintenance, "until 2026-03-01T13:00:00Z: firmware"
	n.Settings = &model.NodeSettings{Windows: windows()}
	return n
}

func windows() []model.Maintenance {
	return []model.Maintenance{
		{Start: before(time.Hour), Duration: model.Duration(2 * time.Hour), Every: model.Duration(168 * time.Hour), Drain: true, Why: "firmware"},
		{Start: before(48 * time.Hour), Duration: model.Duration(90 * time.Minute)},
	}
}

func stateful() []client.Instance {
	list := instances()[:2]
	list[0].Slot, list[0].GPUs, list[0].Items = 1, []model.GPUShare{{ID: "g0", Share: 1000}, {ID: "g1", Share: 1000}}, map[string][]string{"disks": {"sda"}}
	list[1].Slot, list[1].GPUs = 2, []model.GPUShare{{ID: "g0", Share: 250}}
	list[1].Why = "it is to move to n-8g4m: then 4 GiB are free in one piece"
	return list
}

func persistent() []client.VolumeDetail {
	return []client.VolumeDetail{
		{PersistentVolume: model.PersistentVolume{ID: "/shop/web:1:data", Node: "n-7f3k", Size: 10 * model.GiB, Created: before(3 * time.Hour)}, NodeName: "rack1-a", Instance: "web-aaaa"},
		{PersistentVolume: model.PersistentVolume{ID: "/shop/web:2:data", Node: "n-gone", Size: model.GiB, Created: before(time.Hour), Removing: true}},
	}
}

// The pages on sharing and placement, as they look without a terminal, on a narrow one and with colours.
func TestGoldenPlacement(t *testing.T) {
	time.Local = time.UTC
	n, plainNode := apart(), node()
	detail := client.AppDetail{AppSummary: apps()[1], List: stateful(), Funnel: funnel(), Volumes: persistent(), Spec: &model.Spec{
		Role: "/shop", Priority: new(80), Constraints: []model.Constraint{{Attribute: "hostname", Operator: model.OpUnique}, {Attribute: "rack", Operator: model.OpUnlike, Value: "r1"}},
		Affinity: []model.Affinity{{App: "/shop/db", Over: "zone"}, {App: "/batch/*", Anti: true}}, Spread: []model.Spread{{Over: "zone"}},
	}}
	fits := plan()
	fits.Waiting, fits.Kept, fits.Preempted, fits.Instances, fits.Funnel = 0, 0, nil, 3, model.Funnel{Nodes: 3, Fit: 3, Spread: "evenly over zones, as the app says nothing itself: a has 2, b has 1"}
	for page, draw := range map[string]func(p *Printer){
		"plan": func(p *Printer) { p.Plan(plan()) },
		"funnel-limit": func(p *Printer) {
			p.Funnel(&model.Funnel{Nodes: 3, Fit: 3, Reason: "role /batch is at its limit: 2 of 2 CPUs are in use, one more takes 0.5"})
		},
		"plan-fits":    func(p *Printer) { p.Plan(fits) },
		"roles":        func(p *Printer) { p.Roles(roles()) },
		"node-apart":   func(p *Printer) { p.Node(&n, stateful()) },
		"nodes-apart":  func(p *Printer) { p.Nodes([]client.NodeDetail{plainNode, n}) },
		"status-waits": func(p *Printer) { p.Status(&Status{detail, nil, nil}) },
		"volumes":      func(p *Printer) { p.Volumes(persistent()) },
		"moves": func(p *Printer) {
			p.Moves([]model.Move{{Instance: "web-aaaa", App: "/shop/web", From: "n-7f3k", To: "n-8g4m", Gain: "4 GiB more are free in one piece on n-7f3k"}})
		},
		"pools": func(p *Printer) {
			p.Pools([]client.PoolDetail{
				{Pool: model.Pool{Name: "default"}, Nodes: 3, Ready: 2, Apps: 7, Capacity: model.Resources{CPUs: 12_000, Memory: 64 * model.GiB}, Used: model.Resources{CPUs: 3500, Memory: 9 * model.GiB}},
				{Pool: model.Pool{Name: "gpu", Placement: model.PolicySpread, Defragment: model.DefragmentPerform}, Nodes: 1, Ready: 1, Capacity: model.Resources{CPUs: 4000, Memory: 8 * model.GiB, GPUs: 3000}},
			})
		},
		"reservations": func(p *Printer) {
			p.Reservations([]client.ReservationDetail{{Reservation: model.Reservation{ID: "db-a", Role: "/db", Node: "n-7f3k", Created: before(time.Hour),
				Resources: model.Resources{CPUs: 1500, Memory: 4 * model.GiB, GPUs: 500}}, NodeName: "rack1-a"}})
		},
	} {
		for look, p := range map[string]Printer{"plain": {}, "narrow": {Width: 72}, "color": {Width: 140, Color: true}} {
			t.Run(page+"-"+look, func(t *testing.T) {
				var out bytes.Buffer
				p.W, p.Now = &out, now
				draw(&p)
				golden(t, page+"-"+look, out.Bytes())
			})
		}
	}
}
