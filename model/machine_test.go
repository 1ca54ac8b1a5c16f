package model

import (
	"strings"
	"testing"
)

// The name of a machine must mean one thing in a certificate's URI, as a file and in a record's key.
func TestCheckMachineName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "node-1.example_x": true, "0B9d6b4e-7c3a-4f6e-9d2b-1a2b3c4d5e6f": true, strings.Repeat("a", MaxMachineName): true,
		"": false, ".": false, "..": false, "-a": false, "a/b": false, "a b": false, "a%2fb": false, "ä": false, "a\x00": false,
		strings.Repeat("a", MaxMachineName+1): false,
	} {
		if err := CheckMachineName(name); (err == nil) != ok {
			t.Errorf("%q: %v, want ok %v", name, err, ok)
		}
	}
}

func TestMachineID(t *testing.T) {
	id := MachineOf(AgentMachine, "n1")
	if role, name := id.Split(); id != "agent/n1" || role != AgentMachine || name != "n1" {
		t.Errorf("%q is %q and %q", id, role, name)
	}
	for s, ok := range map[string]bool{"server": true, "agent": true, "": false, "Agent": false} {
		if _, err := ParseMachineRole(s); (err == nil) != ok {
			t.Errorf("role %q: %v", s, err)
		}
	}
}

func TestSpent(t *testing.T) {
	for _, c := range []struct {
		token JoinToken
		want  bool
	}{{JoinToken{}, false}, {JoinToken{Used: 9}, false}, {JoinToken{Uses: 1}, false}, {JoinToken{Uses: 1, Used: 1}, true}, {JoinToken{Uses: 2, Used: 3}, true}} {
		if got := c.token.Spent(); got != c.want {
			t.Errorf("%+v: spent %v", c.token, got)
		}
	}
}
