package model

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestPattern protects that a regular expression has to match the whole value, whatever it is made of.
func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern, value string
		want           bool
	}{
		{"r1", "r1", true}, {"r1", "r10", false}, {"r1", "xr1", false},
		{"r1|r2", "r2", true}, {"r1|r2", "r1x", false}, {"r.*", "rack\n", false}, {"(?s)r.*", "rack\n", true},
		{"", "", true}, {"", "x", false}, {"^r1$", "r1", true}, {"^r1$", "r1\n", false},
	} {
		p, err := Constraint{Operator: OpLike, Value: c.pattern}.Pattern()
		if err != nil {
			t.Fatal(err)
		}
		if got := p.MatchString(c.value); got != c.want {
			t.Errorf("%q matches %q: %t", c.pattern, c.value, got)
		}
	}
	for _, bad := range []string{"(", "a)(b", "(?=x)", "[z-a]", strings.Repeat("a", 1025)} {
		if _, err := (Constraint{Value: bad}).Pattern(); err == nil {
			t.Errorf("%.20q compiles", bad)
		}
	}
}

// TestPlacementRefused protects that each wrong rule is told by its field.
func TestPlacementRefused(t *testing.T) {
	p := func(n int) *int { return &n }
	for _, c := range []struct {
		damage        func(*Spec)
		path, message string
	}{
		{func(s *Spec) { s.Pool = "No" }, "pool", "lower-case"},
		{func(s *Spec) { s.Role = "/a/B" }, "role", "lower-case"},
		{func(s *Spec) { s.Priority = p(101) }, "priority", "outside 0 to 100"},
		{func(s *Spec) { s.Placement = "random" }, "placement", "not one of"},
		{func(s *Spec) { s.Constraints = make([]Constraint, 33) }, "constraints", "at most 32"},
		{func(s *Spec) { s.Constraints = []Constraint{{Operator: OpUnique}} }, "constraints[0].attribute", "is missing"},
		{func(s *Spec) { s.Constraints = []Constraint{{Attribute: "a b", Operator: OpUnique}} }, "constraints[0].attribute", "not the name"},
		{func(s *Spec) { s.Constraints = []Constraint{{Attribute: "rack"}} }, "constraints[0].operator", "is missing"},
		{func(s *Spec) { s.Constraints = []Constraint{{"rack", "like", "x"}} }, "constraints[0].operator", "not one of"},
		{func(s *Spec) { s.Constraints = []Constraint{{"rack", OpUnique, "x"}} }, "constraints[0].value", "takes no value"},
		{func(s *Spec) { s.Constraints = []Constraint{{"rack", OpLike, ""}} }, "constraints[0].value", "needs a regular expression"},
		{func(s *Spec) { s.Constraints = []Constraint{{"rack", OpUnlike, "("}} }, "constraints[0].value", "not a regular expression"},
		{func(s *Spec) { s.Constraints = []Constraint{{"rack", OpIs, ""}} }, "constraints[0].value", "needs the value"},
		{func(s *Spec) { s.Constraints = []Constraint{{"rack", OpMaxPer, ""}} }, "constraints[0].value", "not a number"},
		{func(s *Spec) { s.Constraints = []Constraint{{"rack", OpGroupBy, "0"}} }, "constraints[0].value", "not a number"},
		{func(s *Spec) { s.Affinity = []Affinity{{}} }, "affinity[0].app", "is empty"},
		{func(s *Spec) { s.Affinity = []Affinity{{App: "/a", Weight: 101}} }, "affinity[0].weight", "outside 1 to 100"},
		{func(s *Spec) { s.Spread = []Spread{{}} }, "spread[0].over", "is missing"},
		{func(s *Spec) { s.Spread = []Spread{{Over: "zone", Targets: map[string]int{"a": 60, "b": 50}}} }, "spread[0].targets", "110%"},
		{func(s *Spec) { s.Containers[0].GPUs = 1500 }, "containers[0].gpus", "neither a number of whole devices"},
		{func(s *Spec) { s.Containers[0].GPUs = -1 }, "containers[0].gpus", "outside"},
		{func(s *Spec) { s.Containers[0].GPUModels = []string{"T4"} }, "containers[0].gpuModels", "without gpus"},
		{func(s *Spec) { s.Containers[0].Custom = map[string]Units{"fpga": 0} }, `containers[0].custom["fpga"]`, "not more than 0"},
		{func(s *Spec) { s.Volumes[0].Persistent = &Persistent{Size: GiB} }, "volumes[0]", "exactly one"},
		{func(s *Spec) { s.Volumes[0] = Volume{Name: s.Volumes[0].Name, Persistent: &Persistent{Size: 1}} }, "volumes[0].persistent.size", "outside 1MiB"},
	} {
		s := valid()
		c.damage(s)
		found := false
		errs := s.Validate()
		for _, e := range errs {
			found = found || e.Path == c.path && strings.Contains(e.Message, c.message)
		}
		if !found {
			t.Errorf("%v, want %s: %s", errs, c.path, c.message)
		}
	}
	s := valid()
	s.Constraints = []Constraint{{"rack", OpGroupBy, ""}, {"zone", OpGroupBy, "3"}, {"rack", OpCluster, ""}, {"rack", OpMaxPer, "2"}, {"x", OpUnlike, "a|b"}}
	s.Affinity = []Affinity{{App: "/db"}, {App: "/shop/*", Anti: true, Over: "zone", Weight: 3}, {App: "/*"}}
	s.Spread = []Spread{{Over: "zone", Targets: map[string]int{"a": 60, "b": 40}}}
	s.Containers[0].GPUs, s.Containers[0].GPUModels = 250, []string{"T4"}
	if errs := s.Validate(); errs != nil {
		t.Error(errs)
	}
}

// TestSelector protects which apps an affinity speaks of.
func TestSelector(t *testing.T) {
	for text, want := range map[string][2]string{
		"/db": {"/db", ""}, "db": {"/db", ""}, "/shop/*": {"", "/shop"}, "shop/web/*": {"", "/shop/web"}, "/*": {"", "/"},
	} {
		app, group, err := Affinity{App: text}.ParseSelector()
		if err != nil || string(app) != want[0] || group != want[1] {
			t.Errorf("%s: %q, %q, %v", text, app, group, err)
		}
	}
	for _, bad := range []string{"", "/", "*", "/shop*", "/A/*"} {
		if _, _, err := (Affinity{App: bad}).ParseSelector(); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestMilli protects amounts of devices and of custom resources: they read back what they write.
func TestMilli(t *testing.T) {
	for text, want := range map[string]GPU{"0": 0, "0.25": 250, "2": 2000, `"0.5"`: 500, "0.001": 1} {
		var g GPU
		if err := json.Unmarshal([]byte(text), &g); err != nil || g != want {
			t.Errorf("%s: %d, %v", text, g, err)
		}
		var u Units
		if err := json.Unmarshal([]byte(text), &u); err != nil || u != Units(want) {
			t.Errorf("%s: %d, %v", text, u, err)
		}
		if back, err := ParseGPU(g.String()); err != nil || back != g {
			t.Errorf("%v reads back as %v, %v", g, back, err)
		}
	}
	for _, bad := range []string{"-1", "0.0001", `"x"`, "null", "true", "1e300", `"NaN"`, `""`} {
		if err := json.Unmarshal([]byte(bad), new(GPU)); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
	if (GPU(1500)).Whole() || !(GPU(2000)).Whole() {
		t.Error("whole devices are told wrongly")
	}
}

// TestMaintenance protects when a window is open, and when that changes.
func TestMaintenance(t *testing.T) {
	at := func(h int) time.Time { return time.Date(2030, 1, 1, h, 0, 0, 0, time.UTC) }
	hours := func(n int) Duration { return Duration(time.Duration(n) * time.Hour) }
	once := Maintenance{Start: at(10), Duration: hours(2)}
	again := Maintenance{Start: at(10), Duration: hours(2), Every: hours(24)}
	for _, c := range []struct {
		w      Maintenance
		now    time.Time
		inside bool
		next   time.Time
	}{
		{once, at(9), false, at(10)}, {once, at(10), true, at(12)}, {once, at(11), true, at(12)}, {once, at(12), false, time.Time{}},
		{again, at(9), false, at(10)}, {again, at(12), false, at(34)}, {again, at(34), true, at(36)}, {again, at(24*30 + 11), true, at(24*30 + 12)},
	} {
		inside, next := c.w.At(c.now)
		if inside != c.inside || !next.Equal(c.next) {
			t.Errorf("at %v: %t until %v, want %t until %v", c.now, inside, next, c.inside, c.next)
		}
	}
	bad := &NodeSettings{Windows: []Maintenance{{}, {Start: at(1), Duration: hours(2), Every: hours(1)}}}
	if got := bad.Validate().Error(); !strings.Contains(got, "windows[0].start") || !strings.Contains(got, "windows[0].duration") ||
		!strings.Contains(got, "windows[1].every") {
		t.Error(got)
	}
}

// TestAttribute protects the attributes that every node has, and that a declared one stands in where a node has none.
func TestAttribute(t *testing.T) {
	n := &Node{Name: "a", Zone: "z1", Attributes: map[string]string{"hostname": "other", "zone": "other", "region": "declared", "rack": ""}}
	for name, want := range map[string]string{"hostname": "a", "zone": "z1", "region": "declared", "rack": ""} {
		if got, ok := n.Attribute(name); !ok || got != want {
			t.Errorf("%s is %q, %t", name, got, ok)
		}
	}
	if _, ok := n.Attribute("disk"); ok {
		t.Error("it has an attribute that nobody declared")
	}
}

// TestRoleID protects the tree of roles.
func TestRoleID(t *testing.T) {
	if id, err := ParseRoleID("a/b/"); err != nil || id != "/a/b" || id.Parent() != "/a" || RoleID("/a").Parent() != RootRole || RootRole.Parent() != "" {
		t.Errorf("%q, %v", id, err)
	}
	for r, in := range map[RoleID]bool{"/a": true, "/a/b": true, "/ab": false, "/": false} {
		if r.Within("/a") != in || !r.Within(RootRole) {
			t.Errorf("%s is within /a: %t", r, !in)
		}
	}
	for _, bad := range []string{"", "/A", "/a//.."} {
		if id, err := ParseRoleID(bad); err == nil && id != RootRole {
			t.Errorf("%q is taken as %q", bad, id)
		}
	}
}

// FuzzConstraint protects that no rule makes validation panic, and that what is valid can be evaluated.
func FuzzConstraint(f *testing.F) {
	for _, op := range []Operator{OpUnique, OpCluster, OpGroupBy, OpMaxPer, OpLike, OpUnlike, OpIs, ""} {
		f.Add("rack", string(op), "r[0-9]+|2")
	}
	f.Fuzz(func(t *testing.T, attribute, op, value string) {
		c := Constraint{attribute, Operator(op), value}
		var errs FieldErrors
		c.validate(&errs, "c")
		if errs != nil {
			return
		}
		switch c.Operator {
		case OpLike, OpUnlike:
			if _, err := c.Pattern(); err != nil {
				t.Fatal(err)
			}
		case OpGroupBy, OpMaxPer:
			if n, err := c.Number(); err != nil || n < 0 {
				t.Fatal(n, err)
			}
		}
	})
}

// FuzzRoleID protects that what is taken as a role's id is one: clean, below the root, and read again as the same.
func FuzzRoleID(f *testing.F) {
	for _, s := range []string{"/", "a", "/a/b", "/a/../b", "a//b/", "/A", "\x00", "/a/.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseRoleID(s)
		if err != nil {
			return
		}
		if again, err := ParseRoleID(string(id)); err != nil || again != id {
			t.Fatalf("%q is taken as %q, which is read as %q (%v)", s, id, again, err)
		}
		steps := 0
		for up := id; up != RootRole; up = up.Parent() {
			if steps++; steps > MaxAppID || !id.Within(up) || !up.Within(up.Parent()) {
				t.Fatalf("%q does not lead to the root by %q", id, up)
			}
		}
	})
}

// FuzzSelector protects that what is taken as the apps of an affinity is one app or a group, never both or nothing.
func FuzzSelector(f *testing.F) {
	for _, s := range []string{"/a", "a/b", "/*", "/a/*", "*", "/a/*/b", "/a/**", "", "/../*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		app, group, err := Affinity{App: s}.ParseSelector()
		if err == nil && (app == "") == (group == "") {
			t.Fatalf("%q selects app %q and group %q", s, app, group)
		}
		if group != "" && group != "/" {
			if id, err := ParseAppID(group); err != nil || string(id) != group {
				t.Fatalf("%q selects group %q, which is none: %v", s, group, err)
			}
		}
	})
}

// FuzzAmounts protects that devices and units are never negative or too many, and are read again as they are written.
func FuzzAmounts(f *testing.F) {
	for _, s := range []string{"2", "0.25", "1e3", "-0", "NaN", "0x1p-2", "0.0004", "1000000000000"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if g, err := ParseGPU(s); err == nil {
			if g < 0 || g > maxMilli {
				t.Errorf("ParseGPU(%q) = %d", s, g)
			}
			roundTrip(t, g, ParseGPU)
		}
		if u, err := ParseUnits(s); err == nil {
			if u < 0 || u > maxMilli {
				t.Errorf("ParseUnits(%q) = %d", s, u)
			}
			roundTrip(t, u, ParseUnits)
		}
	})
}
