package show

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
)

// Status is all that the status of an app shows.
type Status struct {
	App      client.AppDetail `json:"app"`
	Versions []client.Version `json:"versions"`
	Events   []model.Event    `json:"events"` // the app's newest, oldest first
}

// Status writes all about one app.
func (p *Printer) Status(s *Status) {
	a := &s.App
	p.title(string(a.ID), a.State)
	p.facts([][2]string{
		{"why", a.Why},
		{"instances", fmt.Sprintf("%d asked for, %d running, %d healthy", a.Instances, a.Running, a.Healthy)},
		{"version", version(a)},
		{"address", Addresses(a.List, 8)},
		{"each takes", resources(a.Resources)},
		{"placed by", placement(a.Spec)},
		{"labels", labels(a.Labels)},
		{"created", ago(p.since(a.Created))},
	})
	if a.Deployment != nil {
		p.section("Deployment")
		d := *a.Deployment
		if d.Message == a.Why {
			d.Message = "" // said above
		}
		p.Deployments([]model.Deployment{d}, false)
	}
	if a.Funnel != nil {
		p.section("Nodes for the instances that wait")
		p.Funnel(a.Funnel)
	}
	p.section("Instances")
	p.Instances(a.List, false)
	if len(a.Volumes) > 0 {
		p.section("Volumes")
		p.Volumes(a.Volumes)
	}
	if len(s.Versions) > 0 {
		p.section("Versions")
		p.Versions(s.Versions)
	}
	if len(s.Events) > 0 {
		p.section("Events")
		for _, e := range s.Events {
			e.App = "" // all are of this one
			if e.Instance != "" {
				e.Node = ""
			}
			p.Event(&e)
		}
	}
}

// placement says what an app asks of where it runs, as far as it differs from the defaults.
func placement(s *model.Spec) string {
	if s == nil {
		return ""
	}
	var parts []string
	add := func(name, text string) {
		if text != "" {
			parts = append(parts, name+" "+text)
		}
	}
	add("role", string(s.Role))
	if s.Priority != nil {
		add("priority", strconv.Itoa(*s.Priority))
	}
	add("pool", s.Pool)
	add("policy", string(s.Placement))
	for _, k := range s.Constraints {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%s %s %s", k.Attribute, k.Operator, k.Value)))
	}
	for _, f := range s.Affinity {
		word := "near"
		if f.Anti {
			word = "away from"
		}
		add(word, f.App+" over "+f.Place())
	}
	for _, d := range s.Spread {
		add("spread over", d.Over)
	}
	return strings.Join(parts, ", ")
}

// version says which version is deployed and how it stands to the others.
func version(a *client.AppDetail) string {
	v := strconv.FormatUint(a.Target, 10)
	if a.Target != a.Version {
		v += fmt.Sprintf(" (version %d, the newest, is not deployed)", a.Version)
	}
	if a.Stable != 0 && a.Stable != a.Target {
		v += fmt.Sprintf("; %d was the last that was healthy as a whole", a.Stable)
	}
	return v
}
