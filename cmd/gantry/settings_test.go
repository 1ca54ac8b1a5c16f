package main

import (
	"bytes"
	"strings"
	"testing"
)

// Settings come from flags, then from the environment, then from the file; what is not known is refused with its line.
func TestSettings(t *testing.T) {
	c := &cli{getenv: func(string) string { return "" }, out: &bytes.Buffer{}, err: &bytes.Buffer{}}
	flags := c.agentCommand().Flags()
	values, err := parseSettings("f.yaml", []byte("zone: a\nattribute: [rack=r1, disk=ssd]\nlog-keep: 7\n"), flags)
	if err != nil || values["zone"][0] != "a" || len(values["attribute"]) != 2 || values["log-keep"][0] != "7" {
		t.Fatalf("%v, %v", values, err)
	}
	for text, want := range map[string]string{
		"zone: a\nzoen: b\n":    `f.yaml:2: there is no setting "zoen"`,
		"config: x\n":           `there is no setting "config"`,
		"zone: {a: b}\n":        "f.yaml:1: zone: write a value",
		"- a\n":                 "f.yaml",
		"zone: a\nzone: b\n":    "already defined",
		"attribute: [[a, b]]\n": "write a value",
	} {
		if _, err := parseSettings("f.yaml", []byte(text), flags); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte("zone: a\nattribute: [rack=r1]\n"))
	f.Add([]byte("listen: &a 1\nname: *a\n"))
	c := &cli{getenv: func(string) string { return "" }, out: &bytes.Buffer{}, err: &bytes.Buffer{}}
	flags := c.serverCommand().Flags()
	f.Fuzz(func(t *testing.T, b []byte) {
		if values, err := parseSettings("f", b, flags); err == nil {
			for name := range values {
				if flags.Lookup(name) == nil {
					t.Errorf("took %q", name)
				}
			}
		}
	})
}
