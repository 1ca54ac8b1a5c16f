package show

import (
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/lipgloss"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/muesli/termenv"
)

// palette paints whenever it is asked to: whether to paint is decided by Printer.Color.
var palette = func() *lipgloss.Renderer {
	r := lipgloss.NewRenderer(io.Discard)
	r.SetColorProfile(termenv.ANSI)
	return r
}()

// Age writes a length of time in its largest whole unit: 42s, 3m, 2h, 5d.
func Age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(max(d, 0).Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// since writes the age of t, nothing for the zero time.
func (p *Printer) since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return Age(p.Now.Sub(t))
}

// Count writes n with its noun: 1 instance, 3 instances.
func Count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// of writes used beside all, such as "0.5 / 2".
func of(used, all string) string { return used + " / " + all }

// cores writes a measured number of cores.
func cores(f float64) string { return strconv.FormatFloat(f, 'f', 2, 64) }

// share writes used as a percentage of all; nothing when there is no limit.
func share(used, all float64) string {
	if all <= 0 {
		return ""
	}
	return strconv.FormatFloat(100*used/all, 'f', 0, 64) + "%"
}

// labels writes a map as k=v pairs in order.
func labels(m map[string]string) string {
	pairs := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, k+"="+m[k])
	}
	return strings.Join(pairs, " ")
}

// resources writes what one instance takes.
func resources(r model.Resources) string {
	s := r.CPUs.String() + " cpus, " + r.Memory.Human() + " memory"
	if r.Disk > 0 {
		s += ", " + r.Disk.Human() + " disk"
	}
	if r.GPUs > 0 {
		s += ", " + r.GPUs.String() + " gpus"
	}
	return s
}

func byPort(endpoints map[string]int) []string {
	return slices.SortedFunc(maps.Keys(endpoints), func(a, b string) int {
		if d := endpoints[a] - endpoints[b]; d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
}

// addresses returns where each endpoint of an instance is reached, in order of ports: the bare address when there is one
// endpoint, else name=address.
func addresses(i *client.Instance) []string {
	if i.Addr == "" {
		return nil
	}
	var all []string
	for _, name := range byPort(i.Endpoints) {
		addr := net.JoinHostPort(i.Addr, strconv.Itoa(i.Endpoints[name]))
		if len(i.Endpoints) > 1 {
			addr = name + "=" + addr
		}
		all = append(all, addr)
	}
	return all
}

// Addresses writes where the endpoints of running instances are reached, at most most of them.
func Addresses(list []client.Instance, most int) string {
	var all []string
	for i := range list {
		if list[i].Status.Phase == model.PhaseRunning {
			all = append(all, addresses(&list[i])...)
		}
	}
	slices.Sort(all)
	if more := len(all) - most; more > 0 {
		all = append(all[:most:most], fmt.Sprintf("+%d", more))
	}
	return strings.Join(all, " ")
}

// change names a deployment's way: "update 1 to 2".
func change(d *model.Deployment) string {
	switch {
	case d.Kind == model.DeployRemove || d.From == d.To:
		return string(d.Kind)
	case d.From == 0:
		return fmt.Sprintf("%s %d", d.Kind, d.To)
	}
	return fmt.Sprintf("%s %d to %d", d.Kind, d.From, d.To)
}
