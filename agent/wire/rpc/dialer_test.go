package rpc

import (
	"slices"
	"testing"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
)

// Where an agent goes next, and when, follows from what became of the last connection.
func TestRoute(t *testing.T) {
	busy := &Refusal{Reason: Busy, RetryAfter: 3 * time.Second}
	to := func(leader string) *Refusal {
		return &Refusal{Reason: NotLeader, Cluster: wire.Cluster{Leader: leader}, RetryAfter: 700 * time.Millisecond}
	}
	r := newRoute([]string{"a", "b"}, 2*time.Second, 15*time.Second)
	for _, c := range []struct {
		why         string
		refusal     *Refusal
		lived       time.Duration
		want        string
		least, most time.Duration
	}{
		{"a server that was fine dies: all its agents come at once", nil, time.Hour, "b", time.Second, 3 * time.Second},
		{"the other is busy: it says when", busy, 0, "a", 3 * time.Second, 3 * time.Second},
		{"a does not answer", nil, 0, "b", 125 * time.Millisecond, 250 * time.Millisecond},
		{"again: longer", nil, 0, "b", 250 * time.Millisecond, 500 * time.Millisecond},
		{"it names the leader", &Refusal{Reason: NotLeader, Cluster: wire.Cluster{Leader: "c"}}, 0, "c", 0, 250 * time.Millisecond},
		{"that names another, and when to go there", to("d"), 0, "d", 700 * time.Millisecond, 700 * time.Millisecond},
		{"and another", to("e"), 0, "e", 700 * time.Millisecond, 700 * time.Millisecond},
		{"they send it in circles", to("c"), 0, "b", 700 * time.Millisecond, 700 * time.Millisecond},
		{"no leader now", to(""), 0, "b", 700 * time.Millisecond, 700 * time.Millisecond},
		{"it can never work: seldom", &Refusal{Reason: WrongVersion}, 0, "b", 7 * time.Second, 15 * time.Second},
		{"a reason of a later version", &Refusal{Reason: 99, RetryAfter: time.Second}, 0, "a", time.Second, time.Second},
	} {
		from := "a"
		if c.want == "a" && c.refusal == nil {
			from = "b"
		}
		got, pause := r.next(from, c.refusal, c.lived)
		if got != c.want || pause < c.least || pause > c.most {
			t.Errorf("%s: to %s in %v, want %s in %v to %v", c.why, got, pause, c.want, c.least, c.most)
		}
	}
	for range 50 {
		if _, pause := r.next("a", nil, 0); pause > 15*time.Second {
			t.Fatalf("after many failures it waits %v", pause)
		}
	}
}

// An agent whose leader died is not sent to it again and again by servers that do not know yet.
func TestRouteToTheDead(t *testing.T) {
	r := newRoute([]string{"a", "b"}, 2*time.Second, 15*time.Second)
	at, pauses := "a", time.Duration(0)
	for range 6 {
		var why *Refusal
		if at == "b" {
			why = &Refusal{Reason: NotLeader, Cluster: wire.Cluster{Leader: "a"}}
		}
		next, pause := r.next(at, why, 0)
		at, pauses = next, pauses+pause
	}
	if pauses < 4*time.Second {
		t.Errorf("it tries six times within %v", pauses)
	}
}

// What servers tell comes before what was configured, and does not take its place.
func TestRouteLearns(t *testing.T) {
	r := newRoute([]string{"a"}, time.Second, time.Second)
	if !r.learn(wire.Cluster{Servers: []string{"b", "c"}, Leader: "b"}) || r.learn(wire.Cluster{Servers: []string{"b", "c"}}) {
		t.Error("it does not tell whether the servers have changed")
	}
	if r.learn(wire.Cluster{}) {
		t.Error("it has learned that there are no servers")
	}
	seen := map[string]bool{}
	for range 3 {
		seen[r.other("")] = true
	}
	for _, want := range []string{"a", "b", "c"} {
		if !seen[want] {
			t.Errorf("it never goes to %s", want)
		}
	}
	if got := r.other("b"); got == "b" {
		t.Error("it stays where it was")
	}
	if !slices.Equal(r.seeds, []string{"a"}) {
		t.Errorf("its configuration became %v", r.seeds)
	}
}
