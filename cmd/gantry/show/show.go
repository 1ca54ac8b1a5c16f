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

// shownAddresses bounds how many addresses one line holds; JSON has them all.
const shownAddresses = 3

// Apps writes the overview: one line per app. instances are those of all apps.
func (p *Printer) Apps(apps []client.AppSummary, instances []client.Instance) {
	byApp := map[model.AppID][]client.Instance{}
	for _, i := range instances {
		byApp[i.App] = append(byApp[i.App], i)
	}
	t := table{
		header: []string{"APP", "STATE", "HEALTHY", "VERSION", "AGE", "ADDRESS", "WHY"},
		states: columns(1), right: columns(2, 3), rigid: columns(0, 1),
	}
	for _, a := range apps {
		t.add(string(a.ID), a.State, fmt.Sprintf("%d/%d", a.Healthy, a.Instances), strconv.FormatUint(a.Target, 10),
			p.since(a.Created), Addresses(byApp[a.ID], shownAddresses), a.Why)
	}
	p.table(&t)
}

// Instances writes one line per instance. withApp adds the app's column.
func (p *Printer) Instances(list []client.Instance, withApp bool) {
	t := table{
		header: []string{"INSTANCE", "APP", "SLOT", "STATE", "VERSION", "NODE", "GPUS", "ITEMS", "ADDRESS", "AGE", "RESTARTS", "WHY"},
		states: columns(3), right: columns(2, 4, 10), rigid: columns(0, 3), spare: columns(5, 7),
	}
	for _, i := range list {
		app := ""
		if withApp {
			app = string(i.App)
		}
		slot := ""
		if i.Slot > 0 {
			slot = strconv.FormatUint(uint64(i.Slot), 10)
		}
		t.add(string(i.ID), app, slot, i.State, strconv.FormatUint(i.Version, 10), string(i.Node), devices(i.GPUs), items(i.Items), strings.Join(addresses(&i), " "),
			p.since(i.Created), strconv.FormatUint(uint64(i.Restarts), 10), i.Why)
	}
	p.table(&t)
}

// Versions writes one line per version.
func (p *Printer) Versions(list []client.Version) {
	t := table{
		header: []string{"VERSION", "AGE", "INSTANCES", "RUNS", "MARK", "NOTE"},
		right:  columns(0, 2), rigid: columns(0),
	}
	for _, v := range list {
		var marks []string
		if v.Deployed {
			marks = append(marks, "deployed")
		}
		if v.Stable {
			marks = append(marks, "stable")
		}
		count, runs := "", ""
		if v.Spec != nil {
			count, runs = strconv.Itoa(v.Spec.Count()), programs(v.Spec)
		}
		t.add(strconv.FormatUint(v.Version, 10), p.since(v.Created), count, runs, strings.Join(marks, ", "), v.Note)
	}
	p.table(&t)
}

// programs says in a few words what a spec runs.
func programs(s *model.Spec) string {
	var all []string
	for _, c := range s.Containers {
		switch {
		case c.Image != "":
			all = append(all, c.Image)
		case c.Shell != "":
			all = append(all, c.Shell)
		default:
			all = append(all, strings.Join(c.Command, " "))
		}
	}
	return strings.Join(all, ", ")
}

// Deployments writes one line per deployment. withApp adds the app's column.
func (p *Printer) Deployments(list []model.Deployment, withApp bool) {
	t := table{
		header: []string{"DEPLOYMENT", "APP", "CHANGE", "STATE", "DONE", "AGE", "MESSAGE"},
		states: columns(3), right: columns(4), rigid: columns(0, 3),
	}
	for i := range list {
		d, app := &list[i], ""
		if withApp {
			app = string(d.App)
		}
		t.add(string(d.ID), app, change(d), string(d.State), fmt.Sprintf("%d/%d", d.Done, d.Want), p.since(d.Created), d.Message)
	}
	p.table(&t)
}

// Nodes writes one line per node.
func (p *Printer) Nodes(list []client.NodeDetail) {
	t := table{
		header: []string{"NODE", "NAME", "STATE", "POOL", "ZONE", "ADDRESS", "INSTANCES", "CPUS", "MEMORY", "DISK", "GPUS", "IMAGES", "VERSION", "WHY"},
		states: columns(2), right: columns(6, 7, 8, 9, 10), rigid: columns(0, 2), spare: columns(4, 11, 12),
	}
	for _, n := range list {
		t.add(string(n.ID), n.Name, availability(&n), cmp.Or(n.Pool, model.DefaultPool), n.Zone, n.Addr, strconv.Itoa(n.Instances),
			of(n.Used.CPUs.String(), n.Capacity.CPUs.String()), of(n.Used.Memory.Human(), n.Capacity.Memory.Human()),
			of(n.Used.Disk.Human(), n.Capacity.Disk.Human()), gpusOf(n.Used.GPUs, n.Capacity.GPUs), yesNo(n.OCI.OK), n.Version, n.Why)
	}
	p.table(&t)
}

// availability is the state of a node, also from a server that does not say whether it takes new work.
func availability(n *client.NodeDetail) string { return cmp.Or(n.Availability, string(n.State)) }

func yesNo(ok bool) string {
	if ok {
		return "yes"
	}
	return "no"
}

// Node writes all about one node and the instances on it.
func (p *Printer) Node(n *client.NodeDetail, instances []client.Instance) {
	p.title(string(n.ID), availability(n))
	p.facts([][2]string{
		{"name", n.Name},
		{"why", n.Why},
		{"pool", cmp.Or(n.Pool, model.DefaultPool)},
		{"region", n.Region},
		{"zone", n.Zone},
		{"address", n.Addr},
		{"version", n.Version},
		{"seen", ago(p.since(n.Seen))},
		{"images", ability(n.OCI)},
		{"isolation", ability(n.Isolated)},
		{"cpus", of(n.Used.CPUs.String(), n.Capacity.CPUs.String()) + " reserved"},
		{"memory", of(n.Used.Memory.Human(), n.Capacity.Memory.Human()) + " reserved"},
		{"disk", of(n.Used.Disk.Human(), n.Capacity.Disk.Human()) + " reserved"},
		{"gpus", nodeGPUs(n)},
		{"custom", nodeCustom(n)},
		{"ports", fmt.Sprintf("%d to %d are assigned", n.Ports.First, n.Ports.Last)},
		{"attributes", labels(n.Attributes)},
	})
	if n.Settings != nil && len(n.Settings.Windows) > 0 {
		p.section("Maintenance")
		p.Windows(n.Settings.Windows)
	}
	p.section("Instances")
	p.Instances(instances, true)
}

func nodeGPUs(n *client.NodeDetail) string {
	if len(n.GPUs) == 0 {
		return ""
	}
	return fmt.Sprintf("%s reserved (%s)", gpusOf(n.Used.GPUs, n.Capacity.GPUs), models(n.GPUs))
}

// nodeCustom writes custom resources in use beside all.
func nodeCustom(n *client.NodeDetail) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(n.Custom)) {
		parts = append(parts, fmt.Sprintf("%s %s", name, of(n.UsedCustom[name].String(), n.Custom[name].Total().String())))
	}
	return strings.Join(parts, ", ")
}

// items writes the items that an instance has of custom resources.
func items(m map[string][]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, name+"="+strings.Join(m[name], ","))
	}
	return strings.Join(parts, " ")
}

func ability(a model.Ability) string {
	s := yesNo(a.OK)
	if a.Why != "" {
		s += ": " + a.Why
	}
	return s
}

func ago(age string) string {
	if age == "" {
		return ""
	}
	return age + " ago"
}

// Images writes one line per image.
func (p *Printer) Images(list []client.Image) {
	t := table{header: []string{"IMAGE", "DIGEST", "SIZE", "AGE"}, right: columns(2), rigid: columns(0)}
	for _, i := range list {
		digest := i.Digest
		if algo, hex, ok := strings.Cut(digest, ":"); ok && len(hex) > 12 {
			digest = algo + ":" + hex[:12]
		}
		t.add(i.Name, digest, i.Size.Human(), p.since(i.Created))
	}
	p.table(&t)
}

// Usage writes what nodes and instances use, beside what they have and may.
func (p *Printer) Usage(u *client.Usage) {
	t := table{header: []string{"NODE", "CPUS", "", "MEMORY", "", "DISK"}, right: columns(1, 2, 3, 4, 5), rigid: columns(0)}
	for _, n := range u.Nodes {
		t.add(n.Name, of(cores(n.Usage.CPUs), n.Capacity.CPUs.String()), share(n.Usage.CPUs, n.Capacity.CPUs.Cores()),
			of(n.Usage.Memory.Human(), n.Capacity.Memory.Human()), share(float64(n.Usage.Memory), float64(n.Capacity.Memory)),
			of(n.Usage.Disk.Human(), n.Capacity.Disk.Human()))
	}
	p.table(&t)
	fmt.Fprintln(p.W)
	t = table{header: []string{"INSTANCE", "APP", "CPUS", "", "MEMORY", "", "DISK"}, right: columns(2, 3, 4, 5, 6), rigid: columns(0)}
	for _, i := range u.Instances {
		t.add(string(i.Instance), string(i.App), of(cores(i.Usage.CPUs), i.Limit.CPUs.String()),
			share(i.Usage.CPUs, i.Limit.CPUs.Cores()), of(i.Usage.Memory.Human(), i.Limit.Memory.Human()),
			share(float64(i.Usage.Memory), float64(i.Limit.Memory)), i.Usage.Disk.Human())
	}
	p.table(&t)
}

// Event writes one event as a line.
func (p *Printer) Event(e *model.Event) {
	line := p.faint(e.At.Local().Format("15:04:05")) + gap + fmt.Sprintf("%-20s", e.Type) + gap
	for _, id := range []string{string(e.App), string(e.Instance), string(e.Node)} {
		if id != "" && !strings.Contains(e.Message, id) {
			line += id + ": "
			break
		}
	}
	fmt.Fprintln(p.W, line+oneLine(e.Message))
}

// title writes what a page is about, and its state.
func (p *Printer) title(name, state string) { fmt.Fprintln(p.W, p.Bold(name)+gap+p.State(state)) }

// facts writes names beside values; those without a value are left out.
func (p *Printer) facts(pairs [][2]string) {
	width := 0
	for _, f := range pairs {
		width = max(width, len(f[0]))
	}
	for _, f := range pairs {
		if f[1] != "" {
			fmt.Fprintf(p.W, "  %s  %s\n", p.faint(fmt.Sprintf("%-*s", width, f[0])), oneLine(f[1]))
		}
	}
}

func (p *Printer) section(name string) { fmt.Fprintf(p.W, "\n%s\n", p.Bold(name)) }
