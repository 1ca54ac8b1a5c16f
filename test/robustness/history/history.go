// Package history holds what clients asked of a cluster and what they were told, and says where that is not what a single
// machine that never fails would have told them.
//
// Values are kept under keys. Every write writes a value that no other writes, so that a read says which write it saw.
package history

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// Kind is what a client asked.
type Kind string

// Kinds.
const (
	Write Kind = "write"
	Fresh Kind = "fresh" // a read that is to see all that was acknowledged before it was sent
	Stale Kind = "stale" // a read that may be as old as its answer says
)

// Result is what came of it.
type Result string

// Results. Of a write whose result is unknown, nobody can tell whether it was or will be carried out.
const (
	OK      Result = "ok"
	Refused Result = "refused" // for good: it is not and will not be carried out
	Unknown Result = "unknown"
)

// Op is one call. Times count from the start of the run.
type Op struct {
	Client int           `json:"client"`
	Server string        `json:"server"`
	Kind   Kind          `json:"kind"`
	Key    string        `json:"key"`
	Value  string        `json:"value"` // written or read; "" for what does not exist
	Result Result        `json:"result"`
	Lag    time.Duration `json:"lag,omitempty"` // how old the answer said it might be
	Call   time.Duration `json:"call"`
	Return time.Duration `json:"return"`
	Why    string        `json:"why,omitempty"` // why the result is not ok
}

// String returns the call as one line.
func (o *Op) String() string {
	s := fmt.Sprintf("%s to %s client %d: %s %s %q at %s: %s", o.Call.Round(time.Millisecond), o.Return.Round(time.Millisecond), o.Client,
		o.Kind, o.Key, o.Value, o.Server, o.Result)
	if o.Why != "" {
		s += " (" + o.Why + ")"
	}
	return s
}

// Log collects calls. It may be used from many goroutines.
type Log struct {
	mu  sync.Mutex
	ops []Op
}

// Add adds a call that is over.
func (l *Log) Add(o Op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ops = append(l.ops, o)
}

// Ops returns all calls, in the order in which they were made.
func (l *Log) Ops() []Op {
	l.mu.Lock()
	ops := slices.Clone(l.ops)
	l.mu.Unlock()
	slices.SortStableFunc(ops, func(a, b Op) int { return int(a.Call - b.Call) })
	return ops
}

// WriteTo writes all calls, a line of JSON each.
func (l *Log) WriteTo(w io.Writer) (int64, error) {
	count := &counter{w: w}
	out := bufio.NewWriter(count)
	enc := json.NewEncoder(out)
	for _, o := range l.Ops() {
		if err := enc.Encode(o); err != nil {
			return count.n, err
		}
	}
	err := out.Flush()
	return count.n, err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}
