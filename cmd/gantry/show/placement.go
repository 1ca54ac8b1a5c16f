package show

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// Plan writes whether an app would fit, and where.
func (p *Printer) Plan(pl *model.Plan) {
	fmt.Fprintln(p.W, p.Bold(string(pl.App))+gap+oneLine(planWords(pl)))
	if len(pl.Nodes) > 0 {
		p.section("Where")
		t := table{
			header: []string{"NODE", "NAME", "INSTANCES", "CPUS LEFT", "MEMORY LEFT", "DISK LEFT", "GPUS LEFT"},
			right:  columns(2, 3, 4, 5, 6), rigid: columns(0, 1),
		}
		gpus := slices.ContainsFunc(pl.Nodes, func(n model.PlanNode) bool { return n.Free.GPUs != 0 })
		for _, n := range pl.Nodes {
			left := ""
			if gpus {
				left = n.Free.GPUs.String()
			}
			t.add(string(n.Node), n.Name, strconv.Itoa(n.Instances), n.Free.CPUs.String(), n.Free.Memory.Human(), n.Free.Disk.Human(), left)
		}
		p.table(&t)
	}
	if len(pl.Preempted) > 0 {
		p.section("Would be ended to make room")
		t := table{header: []string{"INSTANCE", "APP", "NODE", "PRIORITY", "WHY"}, right: columns(3), rigid: columns(0)}
		for _, v := range pl.Preempted {
			t.add(string(v.Instance), string(v.App), string(v.Node), strconv.Itoa(v.Priority), v.Why)
		}
		p.table(&t)
	}
	if pl.Funnel.Nodes > 0 {
		what := "Nodes for the first instance"
		if pl.Waiting > 0 {
			what = "Nodes for the first instance that would wait"
		}
		p.section(what)
		p.Funnel(&pl.Funnel)
	}
}

// planWords says in one sentence what a plan comes to.
func planWords(pl *model.Plan) string {
	var parts []string
	if pl.Kept > 0 {
		parts = append(parts, fmt.Sprintf("%d would stay", pl.Kept))
	}
	parts = append(parts, fmt.Sprintf("%d would be placed", pl.Placed))
	if n := len(pl.Preempted); n > 0 {
		parts = append(parts, Count(n, "other")+" would be ended for that")
	}
	if pl.Waiting == 0 {
		return fmt.Sprintf("fits: of %s, %s", Count(pl.Instances, "instance"), strings.Join(parts, ", "))
	}
	text := fmt.Sprintf("does not fit: of %s, %s and %d would wait", Count(pl.Instances, "instance"), strings.Join(parts, ", "), pl.Waiting)
	if pl.Funnel.Nodes == 0 && pl.Funnel.Reason != "" { // else the funnel ends with it
		text += ": " + pl.Funnel.Reason
	}
	return text
}

// barWidth is the length of the bar for all nodes.
const barWidth = 20

// Funnel writes how the nodes were narrowed down, with bars on a terminal.
func (p *Printer) Funnel(f *model.Funnel) {
	t := table{header: []string{"FILTER", "REMOVED", "LEFT", "", "WHY"}, right: columns(1, 2), rigid: columns(3)}
	t.add("all nodes", "", strconv.Itoa(f.Nodes), p.bar(f.Nodes, f.Nodes), "")
	for _, s := range f.Steps {
		t.add(s.Filter, strconv.Itoa(s.Removed), strconv.Itoa(s.Left), p.bar(s.Left, f.Nodes), s.Why)
	}
	p.table(&t)
	can := fmt.Sprintf("%d of %s can take one more instance", f.Fit, Count(f.Nodes, "node"))
	switch {
	case f.Reason == "":
	case f.Fit == 0:
		can += ": " + f.Reason
	default: // not for want of nodes, such as at a role's limit
		can += ", but " + f.Reason
	}
	fmt.Fprintln(p.W, oneLine(can))
	if f.Spread != "" {
		fmt.Fprintln(p.W, oneLine("spread "+f.Spread))
	}
}

// bar draws n of all, at least a sliver of what is there.
func (p *Printer) bar(n, all int) string {
	if p.Width == 0 || all == 0 {
		return ""
	}
	width := n * barWidth / all
	if n > 0 {
		width = max(width, 1)
	}
	return strings.Repeat("█", width) + strings.Repeat("░", barWidth-width)
}

// Roles writes one line per role.
func (p *Printer) Roles(list []client.RoleDetail) {
	t := table{
		header: []string{"ROLE", "SHARE", "OF", "CPUS", "MEMORY", "DISK", "GPUS", "CUSTOM", "INSTANCES", "WEIGHT", "GUARANTEE", "LIMIT"},
		right:  columns(1, 3, 4, 5, 6, 8, 9), rigid: columns(0),
	}
	for i := range list {
		r := &list[i]
		gpus := ""
		if r.Used.GPUs > 0 {
			gpus = r.Used.GPUs.String()
		}
		t.add(string(r.ID), share(r.Share, 1), r.Dominant, r.Used.CPUs.String(), r.Used.Memory.Human(), r.Used.Disk.Human(), gpus,
			units(r.Used.Custom), strconv.Itoa(r.Instances), weight(&r.Role), quota(r.Guarantee), quota(r.Limit))
	}
	p.table(&t)
}

func weight(r *model.Role) string {
	parts := []string{strconv.FormatFloat(cmp.Or(r.Weight, 1), 'g', -1, 64)}
	for _, name := range slices.Sorted(maps.Keys(r.Weights)) {
		parts = append(parts, name+"="+strconv.FormatFloat(r.Weights[name], 'g', -1, 64))
	}
	return strings.Join(parts, " ")
}

// quota writes what a quota names, as the flags of role set take it.
func quota(q model.Quota) string {
	var parts []string
	if q.CPUs != nil {
		parts = append(parts, "cpus="+q.CPUs.String())
	}
	if q.Memory != nil {
		parts = append(parts, "memory="+q.Memory.String())
	}
	if q.Disk != nil {
		parts = append(parts, "disk="+q.Disk.String())
	}
	if q.GPUs != nil {
		parts = append(parts, "gpus="+q.GPUs.String())
	}
	if custom := units(q.Custom); custom != "" {
		parts = append(parts, strings.ReplaceAll(custom, " ", ","))
	}
	return strings.Join(parts, ",")
}

// units writes amounts of custom resources as name=amount pairs in order.
func units(m map[string]model.Units) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, name+"="+m[name].String())
	}
	return strings.Join(parts, " ")
}

// Pools writes one line per pool.
func (p *Printer) Pools(list []client.PoolDetail) {
	t := table{
		header: []string{"POOL", "NODES", "READY", "APPS", "CPUS", "MEMORY", "DISK", "GPUS", "PLACEMENT", "SPREAD", "DEFRAGMENT"},
		right:  columns(1, 2, 3, 4, 5, 6, 7), rigid: columns(0),
	}
	for _, l := range list {
		t.add(l.Name, strconv.Itoa(l.Nodes), strconv.Itoa(l.Ready), strconv.Itoa(l.Apps),
			of(l.Used.CPUs.String(), l.Capacity.CPUs.String()), of(l.Used.Memory.Human(), l.Capacity.Memory.Human()),
			of(l.Used.Disk.Human(), l.Capacity.Disk.Human()), gpusOf(l.Used.GPUs, l.Capacity.GPUs),
			string(cmp.Or(l.Placement, model.PolicyPack)), string(cmp.Or(l.Spread, model.SpreadZones)), string(cmp.Or(l.Defragment, model.DefragmentPropose)))
	}
	p.table(&t)
}

// gpusOf writes devices in use beside all; nothing where there are none.
func gpusOf(used, all model.GPU) string {
	if used == 0 && all == 0 {
		return ""
	}
	return of(used.String(), all.String())
}

// Reservations writes one line per reservation.
func (p *Printer) Reservations(list []client.ReservationDetail) {
	t := table{header: []string{"RESERVATION", "ROLE", "NODE", "NAME", "KEEPS", "AGE"}, rigid: columns(0, 1)}
	for _, r := range list {
		t.add(r.ID, string(r.Role), string(r.Node), r.NodeName, kept(r.Resources), p.since(r.Created))
	}
	p.table(&t)
}

// kept writes the amounts that are there.
func kept(r model.Resources) string {
	var parts []string
	for _, a := range []struct {
		there bool
		text  string
	}{{r.CPUs > 0, r.CPUs.String() + " cpus"}, {r.Memory > 0, r.Memory.Human() + " memory"}, {r.Disk > 0, r.Disk.Human() + " disk"},
		{r.GPUs > 0, r.GPUs.String() + " gpus"}} {
		if a.there {
			parts = append(parts, a.text)
		}
	}
	return strings.Join(parts, ", ")
}

// Volumes writes one line per persistent volume.
func (p *Printer) Volumes(list []client.VolumeDetail) {
	t := table{
		header: []string{"VOLUME", "NODE", "NAME", "SIZE", "USED BY", "STATE", "AGE"},
		right:  columns(3), rigid: columns(0), states: columns(5),
	}
	for _, v := range list {
		state := ""
		if v.Removing {
			state = "removing"
		}
		t.add(string(v.ID), string(v.Node), v.NodeName, v.Size.Human(), string(v.Instance), state, p.since(v.Created))
	}
	p.table(&t)
}

// Moves writes one line per proposed move.
func (p *Printer) Moves(list []model.Move) {
	t := table{header: []string{"INSTANCE", "APP", "FROM", "TO", "GAIN"}, rigid: columns(0)}
	for _, m := range list {
		t.add(string(m.Instance), string(m.App), string(m.From), string(m.To), m.Gain)
	}
	p.table(&t)
}

// Windows writes one line per maintenance window.
func (p *Printer) Windows(list []model.Maintenance) {
	t := table{header: []string{"START", "DURATION", "EVERY", "NOW", "NEXT CHANGE", "INSTANCES", "WHY"}}
	for _, w := range list {
		inside, next := w.At(p.Now)
		now, change, moved, every := "no", "never", "stay", "once"
		if inside {
			now = "yes"
		}
		if !next.IsZero() {
			change = next.Local().Format(minute)
		}
		if w.Drain {
			moved = "move away"
		}
		if w.Every > 0 {
			every = length(w.Every)
		}
		t.add(w.Start.Local().Format(minute), length(w.Duration), every, now, change, moved, w.Why)
	}
	p.table(&t)
}

// minute is the form of times that are planned.
const minute = "2006-01-02 15:04 MST"

// length writes a duration without what is zero at its end: 2h, not 2h0m0s.
func length(d model.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// devices writes the graphics processors of an instance: ids, and the share of one that is not whole.
func devices(list []model.GPUShare) string {
	var parts []string
	for _, g := range list {
		text := g.ID
		if g.Share != 1000 {
			text += "×" + g.Share.String()
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, " ")
}

// models writes the graphics processors of a node by model, such as "2 T4".
func models(list []model.GPUDevice) string {
	count := map[string]int{}
	for _, g := range list {
		count[g.Model]++
	}
	var parts []string
	for _, m := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%d %s", count[m], m)))
	}
	return strings.Join(parts, ", ")
}
