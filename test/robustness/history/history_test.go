package history

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func op(kind Kind, value string, result Result, call, ret time.Duration) Op {
	return Op{Kind: kind, Key: "k", Value: value, Result: result, Call: call, Return: ret}
}

// A history is taken when there is an order, and refused when there is none: a lost write, a read of the past, a value out
// of nowhere, and an answer that says no to what was done.
func TestCheck(t *testing.T) {
	stale := func(value string, lag, call, ret time.Duration) Op {
		o := op(Stale, value, OK, call, ret)
		o.Lag = lag
		return o
	}
	for name, c := range map[string]struct {
		ops []Op
		bad int
	}{
		"in turn":                      {[]Op{op(Write, "a", OK, 1, 2), op(Fresh, "a", OK, 3, 4)}, 0},
		"before the first write":       {[]Op{op(Fresh, "", OK, 0, 1), op(Write, "a", OK, 2, 3)}, 0},
		"either, while being written":  {[]Op{op(Write, "a", OK, 1, 9), op(Fresh, "", OK, 2, 3), op(Fresh, "a", OK, 4, 5)}, 0},
		"back to before":               {[]Op{op(Write, "a", OK, 1, 9), op(Fresh, "a", OK, 2, 3), op(Fresh, "", OK, 4, 5)}, 1},
		"a lost write":                 {[]Op{op(Write, "a", OK, 1, 2), op(Fresh, "", OK, 3, 4)}, 1},
		"an older value":               {[]Op{op(Write, "a", OK, 1, 2), op(Write, "b", OK, 3, 4), op(Fresh, "a", OK, 5, 6)}, 1},
		"unknown and done late":        {[]Op{op(Write, "a", Unknown, 1, 2), op(Fresh, "", OK, 3, 4), op(Fresh, "a", OK, 5, 6)}, 0},
		"unknown and never done":       {[]Op{op(Write, "a", Unknown, 1, 2), op(Fresh, "", OK, 3, 4)}, 0},
		"unknown, done, and undone":    {[]Op{op(Write, "a", Unknown, 1, 2), op(Fresh, "a", OK, 3, 4), op(Fresh, "", OK, 5, 6)}, 1},
		"refused and done":             {[]Op{op(Write, "a", Refused, 1, 2), op(Fresh, "a", OK, 3, 4)}, 1},
		"out of nowhere":               {[]Op{op(Fresh, "z", OK, 3, 4)}, 1},
		"a read without an answer":     {[]Op{op(Write, "a", OK, 1, 2), op(Fresh, "", Unknown, 3, 4)}, 0},
		"as old as it says":            {[]Op{op(Write, "a", OK, 1, 2), op(Write, "b", OK, 3, 10), stale("a", 5, 12, 13)}, 0},
		"older than it says":           {[]Op{op(Write, "a", OK, 1, 2), op(Write, "b", OK, 3, 4), stale("a", 5, 12, 13)}, 1},
		"nothing, older than it says":  {[]Op{op(Write, "a", OK, 1, 2), stale("", 5, 12, 13)}, 1},
		"stale, out of nowhere":        {[]Op{stale("z", 5, 12, 13)}, 1},
		"stale, and refused":           {[]Op{op(Write, "a", Refused, 1, 2), stale("a", 5, 12, 13)}, 1},
		"stale, of unknown result":     {[]Op{op(Write, "a", Unknown, 1, 2), op(Write, "b", OK, 3, 4), stale("a", 5, 12, 13)}, 0},
		"stale, written side by side":  {[]Op{op(Write, "a", OK, 1, 4), op(Write, "b", OK, 3, 5), stale("a", 0, 12, 13)}, 0},
		"two that nobody knows, in it": {[]Op{op(Write, "a", Unknown, 1, 2), op(Write, "b", Unknown, 1, 2), op(Fresh, "b", OK, 3, 4), op(Fresh, "a", OK, 5, 6)}, 0},
	} {
		if got := Check(c.ops); len(got.Violations) != c.bad {
			t.Errorf("%s: %d violations, want %d: %s", name, len(got.Violations), c.bad, strings.Join(got.Violations, "\n"))
		}
	}
}

// Keys do not speak of each other.
func TestKeys(t *testing.T) {
	a, b := op(Write, "a", OK, 1, 2), op(Fresh, "", OK, 3, 4)
	b.Key = "other"
	if got := Check([]Op{a, b}); len(got.Violations) != 0 || got.Keys != 2 || got.Writes != 1 || got.Fresh != 1 {
		t.Errorf("%+v", got)
	}
}

func TestLog(t *testing.T) {
	var l Log
	l.Add(op(Write, "b", OK, 2, 3))
	l.Add(op(Write, "a", OK, 1, 4))
	var b bytes.Buffer
	n, err := l.WriteTo(&b)
	if err != nil || n != int64(b.Len()) || strings.Count(b.String(), "\n") != 2 || l.Ops()[0].Value != "a" {
		t.Errorf("%d, %v: %s", n, err, b.String())
	}
}
