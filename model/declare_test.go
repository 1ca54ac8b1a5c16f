package model

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// What an operator declares becomes what the node is.
func TestDeclaration(t *testing.T) {
	d := Declaration{Region: "north", Zone: "a"}
	for _, add := range []error{
		d.AddAttribute("rack=r1"), d.AddAttribute("note=a = b, c"),
		d.AddResource("licenses=4"), d.AddResource("half=0.5"), d.AddResource("lines={l1, l2,l/3}"),
		d.AddGPU("id=0,model=T4,memory=16GiB"), d.AddGPU("id=GPU-1a"),
	} {
		if add != nil {
			t.Fatal(add)
		}
	}
	if errs := d.Validate(); errs != nil {
		t.Fatal(errs)
	}
	n := Node{Attributes: map[string]string{"os": "linux"}, GPUs: []GPUDevice{{ID: "found"}}}
	d.Apply(&n)
	want := Node{
		Pool: DefaultPool, Region: "north", Zone: "a",
		Attributes: map[string]string{"os": "linux", "rack": "r1", "note": "a = b, c"},
		Custom:     map[string]Custom{"licenses": {Amount: 4000}, "half": {Amount: 500}, "lines": {Items: []string{"l1", "l2", "l/3"}}},
		GPUs:       []GPUDevice{{ID: "0", Model: "T4", Memory: 16 * GiB}, {ID: "GPU-1a"}},
		Capacity:   Resources{GPUs: 2000},
	}
	if !reflect.DeepEqual(n, want) {
		t.Errorf("the node is\n%+v, want\n%+v", n, want)
	}
}

// The devices that an agent found count unless the operator declared others, or none.
func TestFoundDevices(t *testing.T) {
	found := []GPUDevice{{ID: "GPU-1"}}
	for want, d := range map[GPU]Declaration{1000: {}, 0: {NoGPUs: true}, 2000: {GPUs: []GPUDevice{{ID: "a"}, {ID: "b"}}}} {
		n := Node{GPUs: found}
		d.Apply(&n)
		if n.Capacity.GPUs != want || GPU(len(n.GPUs))*1000 != want {
			t.Errorf("%+v makes %+v with %v devices", d, n.GPUs, n.Capacity.GPUs)
		}
	}
}

// What cannot be meant is refused with what would be right.
func TestDeclarationsThatAreRefused(t *testing.T) {
	var d Declaration
	for _, add := range []error{d.AddAttribute("rack=r1"), d.AddResource("a-b=1"), d.AddGPU("id=0")} {
		if add != nil {
			t.Fatal(add)
		}
	}
	for _, tt := range []struct {
		add        func(string) error
		text, want string
	}{
		{d.AddAttribute, "rack", "write key=value"},
		{d.AddAttribute, "=r1", "write key=value"},
		{d.AddAttribute, "row=", "write key=value"},
		{d.AddAttribute, "rack=r2", `"rack" is declared twice`},
		{d.AddAttribute, "a b=1", "without white space"},
		{d.AddAttribute, "row=1\n2", "one line"},
		{d.AddAttribute, "zone=a", "write --zone a"},
		{d.AddAttribute, "os=plan9", "found out by the agent"},
		{d.AddResource, "licenses", "write name=amount"},
		{d.AddResource, "licenses=", "write name=amount"},
		{d.AddResource, "=4", "not the name of a resource"},
		{d.AddResource, "a b=4", "not the name of a resource"},
		{d.AddResource, "a-b=2", `"a-b" is declared twice`},
		{d.AddResource, "a_b=2", "both are A_B"},
		{d.AddResource, "cpus=2", "given by --node-cpus"},
		{d.AddResource, "x=many", "write 2 or 0.5, or '{a,b,c}' for items"},
		{d.AddResource, "x=-1", "outside 0"},
		{d.AddResource, "x=NaN", "not a number"},
		{d.AddResource, "x=0", "nothing to declare"},
		{d.AddResource, "x={a,b", "no closing brace"},
		{d.AddResource, "x={}", "item 1"},
		{d.AddResource, "x={a,,b}", "item 2"},
		{d.AddResource, "x={a,a}", `item "a" is there twice`},
		{d.AddResource, "x={a b}", "not an item"},
		{d.AddResource, "x={a}{b}", "not an item"},
		{d.AddGPU, "0", "write id=0"},
		{d.AddGPU, "", "write id=0"},
		{d.AddGPU, "model=T4", "has no id"},
		{d.AddGPU, "id=1,id=2", "id is given twice"},
		{d.AddGPU, "id=0,model=A10", `device "0" is declared twice`},
		{d.AddGPU, "id=1,memory=lots", "not an amount of bytes"},
		{d.AddGPU, "id=1,memory=0", "outside 1B"},
		{d.AddGPU, "id=1,cores=4", "write id, model and memory"},
		{d.AddGPU, "id=/dev/nvidia0", "not the id of a device"},
	} {
		if err := tt.add(tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want a refusal with %q", tt.text, err, tt.want)
		}
	}
	if len(d.Attributes) != 1 || len(d.Custom) != 1 || len(d.GPUs) != 1 {
		t.Errorf("what was refused left something: %+v", d)
	}
	bad := Declaration{Pool: "Not A Pool", Region: "a\nb", Zone: strings.Repeat("z", 64), NoGPUs: true, GPUs: d.GPUs}
	var paths []string
	for _, e := range bad.Validate() {
		paths = append(paths, e.Path)
	}
	if want := []string{"pool", "region", "zone", "no-gpus"}; !slices.Equal(paths, want) {
		t.Errorf("wrong are %v, want %v", paths, want)
	}
}

// Whatever is accepted is well formed, and a second time it is declared twice.
func FuzzDeclaration(f *testing.F) {
	for _, s := range []string{"licenses=4", "lines={a, b}", "x={", "id=0,model=T4,memory=16GiB", "rack=r1", "=", "x=1e300", "id=,,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var d Declaration
		for _, add := range []func(string) error{d.AddAttribute, d.AddResource, d.AddGPU} {
			if add(text) != nil {
				continue
			}
			if again := add(text); again == nil {
				t.Errorf("%q was accepted twice", text)
			}
		}
		for name, c := range d.Custom {
			items := slices.Sorted(slices.Values(c.Items))
			if c.Total() <= 0 || len(slices.Compact(items)) != len(c.Items) || slices.Contains(items, "") {
				t.Errorf("%q declares %q as %+v", text, name, c)
			}
			if !plain(Variable(name), "_") {
				t.Errorf("%q has the variable %q", name, Variable(name))
			}
		}
		for _, g := range d.GPUs {
			if g.ID == "" || g.Memory < 0 || strings.ContainsAny(g.ID, ", /") {
				t.Errorf("%q declares %+v", text, g)
			}
		}
		if len(d.Attributes) > 1 {
			t.Errorf("%q declares %v", text, d.Attributes)
		}
	})
}
