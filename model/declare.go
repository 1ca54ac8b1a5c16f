package model

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Declaration is what the operator of a node says of it, beside what its agent finds out. Its Add methods read one text
// each, strictly: what is said twice, or cannot be meant, is refused.
type Declaration struct {
	Pool       string
	Region     string
	Zone       string
	Attributes map[string]string
	Custom     map[string]Custom
	GPUs       []GPUDevice // in place of those that the agent finds
	NoGPUs     bool        // none of those that the agent finds
}

// Limits on what one node declares.
const (
	MaxDevices = int(MaxGPUs / 1000)
	MaxItems   = 4096 // of one custom resource
)

// declaredElsewhere says of names that are no custom resource what gives that amount.
var declaredElsewhere = map[string]string{
	"cpus": "--node-cpus", "cpu": "--node-cpus", "memory": "--node-memory", "mem": "--node-memory",
	"gpus": "--gpu", "gpu": "--gpu", "disk": "the size of the file system", "ports": "the range of the node",
}

// AddAttribute reads key=value.
func (d *Declaration) AddAttribute(text string) error {
	key, value, ok := strings.Cut(text, "=")
	if !ok || key == "" || value == "" {
		return fmt.Errorf("%q is not an attribute: write key=value, such as rack=r1", text)
	}
	var errs FieldErrors
	checkAttribute(&errs, "attribute", key)
	if errs != nil || strings.ContainsFunc(text, unicode.IsControl) || len(value) > MaxText {
		return fmt.Errorf("%q is not an attribute: a key has at most %d characters, without white space, and a value is one line", text, MaxSegment)
	}
	switch key {
	case AttrRegion, AttrZone:
		return fmt.Errorf("%q has a flag of its own: write --%s %s", key, key, value)
	case AttrHostname, "os", "arch", "kernel", "cgroup":
		return fmt.Errorf("%q is found out by the agent: declare another attribute", key)
	}
	if _, twice := d.Attributes[key]; twice {
		return fmt.Errorf("%q is declared twice", key)
	}
	if len(d.Attributes) == MaxList {
		return fmt.Errorf("at most %d attributes are allowed", MaxList)
	}
	if d.Attributes == nil {
		d.Attributes = map[string]string{}
	}
	d.Attributes[key] = value
	return nil
}

// AddResource reads a custom resource: name=amount, or name={a,b,c} for items that are told apart.
func (d *Declaration) AddResource(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok || value == "" {
		return fmt.Errorf("%q is not a resource: write name=amount, such as licenses=4, or 'name={a,b,c}'", text)
	}
	if name == "" || len(name) > MaxSegment || !plain(name, "-_.") {
		return fmt.Errorf("%q is not the name of a resource: letters, digits, '-', '_' and '.' are allowed, at most %d of them", name, MaxSegment)
	}
	if by := declaredElsewhere[name]; by != "" {
		return fmt.Errorf("%q is no custom resource: it is given by %s", name, by)
	}
	for other := range d.Custom {
		switch {
		case other == name:
			return fmt.Errorf("%q is declared twice", name)
		case Variable(other) == Variable(name):
			return fmt.Errorf("%q cannot be told from %q in the environment of programs, where both are %s", name, other, Variable(name))
		}
	}
	if len(d.Custom) == MaxList {
		return fmt.Errorf("at most %d resources are allowed", MaxList)
	}
	c, err := parseCustom(value)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if d.Custom == nil {
		d.Custom = map[string]Custom{}
	}
	d.Custom[name] = c
	return nil
}

func parseCustom(text string) (Custom, error) {
	list, isSet := strings.CutPrefix(text, "{")
	if !isSet {
		n, err := ParseUnits(text)
		switch {
		case err != nil:
			return Custom{}, fmt.Errorf("%w, or '{a,b,c}' for items", err)
		case n == 0:
			return Custom{}, errors.New("an amount of 0 is nothing to declare")
		}
		return Custom{Amount: n}, nil
	}
	list, closed := strings.CutSuffix(list, "}")
	if !closed {
		return Custom{}, fmt.Errorf("%q has no closing brace: write {a,b,c}", text)
	}
	items := strings.Split(list, ",")
	if len(items) > MaxItems {
		return Custom{}, fmt.Errorf("has %d items, at most %d are allowed", len(items), MaxItems)
	}
	seen := make(map[string]bool, len(items))
	for i, item := range items {
		item = strings.TrimSpace(item)
		switch {
		case item == "":
			return Custom{}, fmt.Errorf("item %d of %q is empty: write {a,b,c}", i+1, text)
		case len(item) > MaxSegment || !plain(item, "-_.:/"):
			return Custom{}, fmt.Errorf("%q is not an item: letters, digits and -_.:/ are allowed, at most %d of them", item, MaxSegment)
		case seen[item]:
			return Custom{}, fmt.Errorf("item %q is there twice", item)
		}
		seen[item] = true
		items[i] = item
	}
	return Custom{Items: items}, nil
}

// AddGPU reads a device, such as id=0,model=T4,memory=16GiB. Only the id is required.
func (d *Declaration) AddGPU(text string) error {
	var g GPUDevice
	seen := map[string]bool{}
	for part := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(part, "=")
		if !ok || value == "" {
			return fmt.Errorf("%q is not a device: write id=0, and if you like model=T4 and memory=16GiB, with commas between", text)
		}
		if seen[key] {
			return fmt.Errorf("%s is given twice in %q", key, text)
		}
		seen[key] = true
		if err := g.set(key, value); err != nil {
			return err
		}
	}
	switch {
	case g.ID == "":
		return fmt.Errorf("%q has no id: write id=0, or the device's UUID", text)
	case slices.ContainsFunc(d.GPUs, func(o GPUDevice) bool { return o.ID == g.ID }):
		return fmt.Errorf("device %q is declared twice", g.ID)
	case len(d.GPUs) == MaxDevices:
		return fmt.Errorf("at most %d devices are allowed", MaxDevices)
	}
	d.GPUs = append(d.GPUs, g)
	return nil
}

func (g *GPUDevice) set(key, value string) (err error) {
	switch key {
	case "id":
		if len(value) > MaxSegment || !plain(value, "-_.:") {
			return fmt.Errorf("%q is not the id of a device: letters, digits and -_.: are allowed, at most %d of them", value, MaxSegment)
		}
		g.ID = value
	case "model":
		if len(value) > MaxSegment || strings.ContainsFunc(value, unicode.IsControl) {
			return fmt.Errorf("%q is not the model of a device: write one line of at most %d bytes", value, MaxSegment)
		}
		g.Model = value
	case "memory":
		if g.Memory, err = ParseBytes(value); err == nil && (g.Memory == 0 || g.Memory > MaxBytes) {
			err = fmt.Errorf("%v of memory is outside 1B to %v", g.Memory, MaxBytes)
		}
	default:
		err = fmt.Errorf("%q is not known of a device: write id, model and memory", key)
	}
	return err
}

// Validate returns what is wrong with the fields that no Add method reads.
func (d *Declaration) Validate() FieldErrors {
	var errs FieldErrors
	if d.Pool != "" {
		if err := checkName(d.Pool); err != nil {
			errs.add("pool", "%v", err)
		}
	}
	for _, f := range []struct{ at, text string }{{"region", d.Region}, {"zone", d.Zone}} {
		if len(f.text) > MaxSegment || strings.ContainsFunc(f.text, unicode.IsControl) {
			errs.add(f.at, "%q is not a name: write one line of at most %d bytes", f.text, MaxSegment)
		}
	}
	if d.NoGPUs && len(d.GPUs) > 0 {
		errs.add("no-gpus", "contradicts --gpu: give one of them")
	}
	return errs
}

// Apply makes n what was declared. n holds what the agent found.
func (d *Declaration) Apply(n *Node) {
	n.Pool, n.Region, n.Zone, n.Custom = d.Pool, d.Region, d.Zone, d.Custom
	if n.Pool == "" {
		n.Pool = DefaultPool
	}
	for k, v := range d.Attributes {
		n.Attributes[k] = v
	}
	if len(d.GPUs) > 0 || d.NoGPUs {
		n.GPUs = d.GPUs
	}
	n.Capacity.GPUs = GPU(len(n.GPUs)) * 1000
}

// Variable returns the form that a name has in names of environment variables: upper case, and _ for all but letters and
// digits.
func Variable(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name)
}

// plain reports whether s has only ASCII letters, digits and the marks.
func plain(s, marks string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(marks, r)
	})
}
