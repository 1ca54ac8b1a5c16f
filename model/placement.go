package model

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// Attributes that every node has. Others are what its operator declares.
const (
	AttrHostname = "hostname" // Node.Name
	AttrRegion   = "region"   // Node.Region, when it has one
	AttrZone     = "zone"     // Node.Zone, when it has one
)

// DefaultPool is the pool of nodes and apps that name none.
const DefaultPool = "default"

// Priorities of apps.
const (
	DefaultPriority = 50
	MaxPriority     = 100
)

// Operator is what a Constraint asks of an attribute. The meanings are Marathon's.
type Operator string

// Operators. Those that count look at the instances of the same app that run the same template.
const (
	OpUnique  Operator = "UNIQUE"   // no two instances on nodes with the same value
	OpCluster Operator = "CLUSTER"  // all instances on nodes with the same value; with a value, that one
	OpGroupBy Operator = "GROUP_BY" // instances spread evenly over the values; with a number, over at least so many values
	OpMaxPer  Operator = "MAX_PER"  // at most so many instances on nodes with the same value
	OpLike    Operator = "LIKE"     // the value matches the regular expression as a whole
	OpUnlike  Operator = "UNLIKE"   // the value does not match, or the node has none
	OpIs      Operator = "IS"       // the value is this one
)

// Constraint says which nodes may take an instance. A node without the attribute satisfies only UNLIKE.
type Constraint struct {
	Attribute string   `json:"attribute" doc:"Attribute of nodes: hostname, region, zone, or any that their operator declares."`
	Operator  Operator `json:"operator" enum:"UNIQUE,CLUSTER,GROUP_BY,MAX_PER,LIKE,UNLIKE,IS" doc:"UNIQUE: no two instances on nodes with the same value. CLUSTER: all on nodes with the same value, or with this one. GROUP_BY: evenly over the values, of which at least so many. MAX_PER: at most so many on nodes with the same value. LIKE, UNLIKE: the value does, or does not, match a regular expression as a whole. IS: the value is this one."`
	Value     string   `json:"value,omitempty" doc:"What the operator compares with. Required for LIKE, UNLIKE, IS and MAX_PER; optional for CLUSTER and GROUP_BY."`
}

// Affinity draws instances to, or keeps them away from, where instances of an app are.
type Affinity struct {
	App    string `json:"app" doc:"Id of the app, which may be the same one, or /group/* for all apps of a group."`
	Over   string `json:"over,omitempty" doc:"Attribute of nodes: those with the same value are one place. Default hostname."`
	Anti   bool   `json:"anti,omitempty" doc:"Keep away from those instances, instead of joining them. A required one also keeps them away from these."`
	Weight int    `json:"weight,omitempty" doc:"From 1 to 100: how strongly it is preferred. Absent: required."`
}

// Spread distributes instances over the values of an attribute, as well as it can.
type Spread struct {
	Over    string         `json:"over" doc:"Attribute of nodes, such as zone."`
	Weight  int            `json:"weight,omitempty" doc:"From 1 to 100: how strongly it is preferred over packing. Default 50."`
	Targets map[string]int `json:"targets,omitempty" doc:"Percent of the instances for a value. Values that are not named share the rest evenly."`
}

// Policy is how nodes are chosen among those that fit.
type Policy string

// Policies.
const (
	PolicyPack     Policy = "pack"     // use few nodes, and keep free room in shapes that are asked for
	PolicySpread   Policy = "spread"   // use the emptiest node
	PolicyBalanced Policy = "balanced" // keep each node's resources used to the same degree
)

// GPU is an amount of graphics processors in thousandths of one device. Users write 2, or 0.25 for a share of one.
type GPU int64

func (g GPU) String() string { return strconv.FormatFloat(float64(g)/1000, 'f', -1, 64) }

// Whole reports whether g is a number of whole devices.
func (g GPU) Whole() bool { return g%1000 == 0 }

// MarshalJSON writes a number of devices.
func (g GPU) MarshalJSON() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalJSON reads a number of devices, or a string that holds one.
func (g *GPU) UnmarshalJSON(b []byte) error {
	n, err := milli(b, "devices")
	*g = GPU(n)
	return err
}

// Units is an amount of a custom resource in thousandths. Users write a plain number.
type Units int64

func (u Units) String() string { return strconv.FormatFloat(float64(u)/1000, 'f', -1, 64) }

// MarshalJSON writes a number.
func (u Units) MarshalJSON() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalJSON reads a number, or a string that holds one.
func (u *Units) UnmarshalJSON(b []byte) error {
	n, err := milli(b, "units")
	*u = Units(n)
	return err
}

// ParseUnits reads a number, such as "2" or "0.5".
func ParseUnits(s string) (Units, error) {
	n, err := parseMilli(s, "units")
	return Units(n), err
}

// ParseGPU reads a number of devices, such as "2" or "0.25".
func ParseGPU(s string) (GPU, error) {
	n, err := parseMilli(s, "devices")
	return GPU(n), err
}

func milli(b []byte, of string) (int64, error) {
	s, err := scalar(b)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", of, err)
	}
	return parseMilli(s, of)
}

const maxMilli = 1e15 // thousandths: sums over a cluster must not overflow

func parseMilli(s, of string) (int64, error) {
	f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, fmt.Errorf("%q is not a number of %s: write 2 or 0.5", s, of)
	}
	n := math.Round(f * 1000)
	switch {
	case f < 0 || n > maxMilli:
		return 0, fmt.Errorf("%q %s is outside 0 to %g", s, of, maxMilli/1000)
	case f > 0 && n == 0:
		return 0, fmt.Errorf("%q %s is less than 0.001", s, of)
	}
	return int64(n), nil
}

// GPUShare is what an instance has of one device.
type GPUShare struct {
	ID    string `json:"id" doc:"Id of the device on its node."`
	Share GPU    `json:"share" doc:"1 for the whole device, less for a share of it."`
}

// Pattern compiles the regular expression of LIKE or UNLIKE, which has to match as a whole.
func (c Constraint) Pattern() (*regexp.Regexp, error) {
	if len(c.Value) > 1024 {
		return nil, errors.New("has more than 1024 bytes")
	}
	if _, err := regexp.Compile(c.Value); err != nil { // alone, so that no bracket of ours closes one of theirs
		return nil, fmt.Errorf("%q is not a regular expression of RE2's syntax: %w", c.Value, err)
	}
	return regexp.Compile(`\A(?:` + c.Value + `)\z`)
}

// Number returns the number that GROUP_BY or MAX_PER compares with; 0 when GROUP_BY has none.
func (c Constraint) Number() (int, error) {
	if c.Value == "" && c.Operator == OpGroupBy {
		return 0, nil
	}
	n, err := strconv.Atoi(c.Value)
	if err != nil || n < 1 || n > MaxInstances {
		return 0, fmt.Errorf("%q is not a number from 1 to %d", c.Value, MaxInstances)
	}
	return n, nil
}

func (c Constraint) validate(errs *FieldErrors, at string) {
	checkAttribute(errs, at+".attribute", c.Attribute)
	checkText(errs, at+".value", c.Value)
	if c.Operator == "" {
		errs.add(at+".operator", "is missing: write UNIQUE, CLUSTER, GROUP_BY, MAX_PER, LIKE, UNLIKE or IS")
		return
	}
	oneOf(errs, at+".operator", c.Operator, OpUnique, OpCluster, OpGroupBy, OpMaxPer, OpLike, OpUnlike, OpIs)
	var err error
	switch c.Operator {
	case OpUnique:
		if c.Value != "" {
			err = errors.New("UNIQUE takes no value")
		}
	case OpGroupBy, OpMaxPer:
		_, err = c.Number()
	case OpLike, OpUnlike:
		if _, err = c.Pattern(); err == nil && c.Value == "" {
			err = fmt.Errorf("is missing: %s needs a regular expression", c.Operator)
		}
	case OpIs:
		if c.Value == "" {
			err = errors.New("is missing: IS needs the value")
		}
	case OpCluster:
	}
	if err != nil {
		errs.add(at+".value", "%v", err)
	}
}

// ParseSelector returns the app of an affinity, or the group below which all apps are meant.
func (a Affinity) ParseSelector() (app AppID, group string, err error) {
	if g, ok := strings.CutSuffix(a.App, "/*"); ok {
		if g == "" {
			return "", "/", nil
		}
		id, err := ParseAppID(g)
		return "", string(id), err
	}
	app, err = ParseAppID(a.App)
	return app, "", err
}

// Place returns the attribute whose values are places, default included.
func (a Affinity) Place() string { return cmp.Or(a.Over, AttrHostname) }

func (s *Spec) validatePlacement(errs *FieldErrors) {
	if s.Pool != "" {
		if err := checkName(s.Pool); err != nil {
			errs.add("pool", "%v", err)
		}
	}
	if s.Role != "" {
		checkRole(errs, "role", s.Role)
	}
	if s.Priority != nil && (*s.Priority < 0 || *s.Priority > MaxPriority) {
		errs.add("priority", "%d is outside 0 to %d", *s.Priority, MaxPriority)
	}
	oneOf(errs, "placement", s.Placement, PolicyPack, PolicySpread, PolicyBalanced)
	tooMany(errs, "constraints", len(s.Constraints), MaxRules)
	for i, c := range s.Constraints {
		c.validate(errs, fmt.Sprintf("constraints[%d]", i))
	}
	tooMany(errs, "affinity", len(s.Affinity), MaxRules)
	for i, a := range s.Affinity {
		at := fmt.Sprintf("affinity[%d]", i)
		if _, _, err := a.ParseSelector(); err != nil {
			errs.add(at+".app", "%v", err)
		}
		checkAttribute(errs, at+".over", a.Place())
		checkWeight(errs, at+".weight", a.Weight)
	}
	tooMany(errs, "spread", len(s.Spread), MaxRules)
	for i, p := range s.Spread {
		p.validate(errs, fmt.Sprintf("spread[%d]", i))
	}
}

func (p Spread) validate(errs *FieldErrors, at string) {
	checkAttribute(errs, at+".over", p.Over)
	checkWeight(errs, at+".weight", p.Weight)
	tooMany(errs, at+".targets", len(p.Targets), MaxList)
	sum := 0
	for k, n := range p.Targets {
		checkText(errs, at+".targets", k)
		if n < 0 || n > 100 {
			errs.add(at+".targets", "%d for %q is outside 0 to 100", n, k)
		}
		sum += n
	}
	if sum > 100 {
		errs.add(at+".targets", "sum up to %d%%, at most 100%% are there", sum)
	}
}

func checkAttribute(errs *FieldErrors, at, name string) {
	switch {
	case name == "":
		errs.add(at, "is missing: write hostname, region, zone or an attribute that nodes declare")
	case len(name) > MaxSegment || strings.ContainsAny(name, " \t\r\n=\x00"):
		errs.add(at, "%q is not the name of an attribute", name)
	}
}

func checkWeight(errs *FieldErrors, at string, n int) {
	if n < 0 || n > 100 {
		errs.add(at, "%d is outside 1 to 100", n)
	}
}

func tooMany(errs *FieldErrors, at string, n, most int) {
	if n > most {
		errs.add(at, "has %d entries, at most %d are allowed", n, most)
	}
}
