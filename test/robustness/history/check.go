package history

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// checkTimeout bounds the search for an order of the calls of one key.
const checkTimeout = 30 * time.Second

// Checked says what was looked at.
type Checked struct {
	Keys, Writes, Fresh, Stale int
	Violations                 []string
}

// Check holds ops against what clients are promised: the calls of each key have an order, in which each takes place between
// its call and its answer, such that every fresh read sees the write before it; and no other read is older than it says.
func Check(ops []Op) Checked {
	keys := map[string][]Op{}
	for _, o := range ops {
		keys[o.Key] = append(keys[o.Key], o)
	}
	c := Checked{Keys: len(keys)}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		c.key(key, keys[key])
	}
	return c
}

func (c *Checked) key(key string, ops []Op) {
	for i := range ops {
		switch o := &ops[i]; {
		case o.Kind == Write:
			c.Writes++
		case o.Result != OK:
		case o.Kind == Fresh:
			c.Fresh++
		case o.Kind == Stale:
			c.Stale++
			if why := tooOld(o, ops); why != "" {
				c.Violations = append(c.Violations, why)
			}
		}
	}
	switch porcupine.CheckOperationsTimeout(register, linear(ops), checkTimeout) {
	case porcupine.Illegal:
		c.Violations = append(c.Violations, fmt.Sprintf("the calls of %s have no order in which every fresh read sees the last write:\n%s", key, lines(ops)))
	case porcupine.Unknown:
		c.Violations = append(c.Violations, fmt.Sprintf("whether the calls of %s have an order was not found out within %v", key, checkTimeout))
	}
}

// register is a value that starts as "".
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		o := input.(*Op)
		if o.Kind == Write {
			return true, o.Value
		}
		return state == o.Value, state
	},
}

// linear returns the calls that have to have an order. A write of which nobody knows the result may come at any time after
// its call, or never: unless somebody saw it, never is as good as any other.
func linear(ops []Op) []porcupine.Operation {
	seen := map[string]bool{}
	for i := range ops {
		if ops[i].Kind == Fresh && ops[i].Result == OK {
			seen[ops[i].Value] = true
		}
	}
	var out []porcupine.Operation
	for i := range ops {
		o := &ops[i]
		end := int64(o.Return)
		switch {
		case o.Kind == Stale, o.Result == Refused, o.Kind == Fresh && o.Result == Unknown:
			continue
		case o.Result == Unknown && !seen[o.Value]:
			continue
		case o.Result == Unknown:
			end = math.MaxInt64
		}
		out = append(out, porcupine.Operation{ClientId: o.Client, Input: o, Call: int64(o.Call), Return: end})
	}
	return out
}

// tooOld returns what is wrong with what a read saw, "" for nothing: that nobody wrote it, or that it had been replaced
// longer ago than the answer said.
func tooOld(read *Op, ops []Op) string {
	saw := func(o *Op) bool { return o.Kind == Write && o.Value == read.Value }
	at := slices.IndexFunc(ops, func(o Op) bool { return saw(&o) })
	if at < 0 && read.Value != "" {
		return "nobody wrote what was read: " + read.String()
	}
	written := time.Duration(-1)
	if at >= 0 {
		w := &ops[at]
		if w.Result == Refused {
			return fmt.Sprintf("what was read had been refused: %s\n%s", read, w)
		}
		if w.Result == Unknown {
			return ""
		}
		written = w.Return
	}
	for i := range ops {
		w := &ops[i]
		if w.Kind == Write && w.Result == OK && w.Call > written && w.Return < read.Call-read.Lag {
			return fmt.Sprintf("what was read had been replaced before the %v of which the answer spoke: %s\n%s", read.Lag, read, w)
		}
	}
	return ""
}

func lines(ops []Op) string {
	var b strings.Builder
	for i := range ops {
		b.WriteString("  " + ops[i].String() + "\n")
	}
	return b.String()
}
