// Package health probes running instances and says whether they are healthy and ready.
//
// A Monitor belongs to one attempt of one instance. It keeps a timer per check and no goroutine while nothing is being
// probed, so thousands of instances cost little. What a probe's outcome means is decided by track, which is pure: see
// track.go. How to probe is in probe.go.
package health

import (
	"fmt"
	"time"

	"github.com/gantry-os/gantry/model"
)

// firstInterval is the longest wait between probes until a check has passed once, so that a fresh instance is known to be
// ready soon; quickInterval is where that wait begins, within the grace.
const (
	firstInterval = time.Second
	quickInterval = 100 * time.Millisecond
)

// track is what is known of one check.
type track struct {
	grace    time.Duration
	interval time.Duration
	limit    int // consecutive failures after which the check fails

	passed   bool // once at least
	failures int  // consecutive ones that count
	tries    int
	last     error
}

func newTrack(c *model.Check, passed bool) track {
	return track{grace: c.Grace.Std(), interval: c.Interval.Std(), limit: max(1, c.Failures), passed: passed}
}

// note takes in the outcome of a probe that began when the instance was age old. Failures within the grace do not count
// until the check has passed once.
func (t *track) note(err error, age time.Duration) {
	t.tries++
	t.last = err
	switch {
	case err == nil:
		t.passed, t.failures = true, 0
	case t.passed || age >= t.grace:
		t.failures = min(t.failures+1, t.limit)
	}
}

// ok reports whether the check passes: it did once, and has not failed since.
func (t *track) ok() bool { return t.passed && !t.failed() }

// failed reports whether the check has failed.
func (t *track) failed() bool { return t.failures >= t.limit }

// delay returns the time to the next probe of an instance that is age old.
func (t *track) delay(age time.Duration) time.Duration {
	if t.passed {
		return t.interval
	}
	wait := firstInterval
	if age < t.grace && t.tries < 4 {
		wait = quickInterval << t.tries
	}
	return min(wait, t.interval)
}

// Result is the sum of all checks of an instance.
type Result struct {
	Healthy model.Health
	Ready   bool
	Failed  string // a sentence once a liveness check has failed, else empty
	Waits   string // a sentence on the first check that keeps it from being ready, once it was tried, else empty
}

// sum returns the result of all checks. Without any, the instance is ready and its health unknown.
func sum(checks []Check, tracks []track) Result {
	r := Result{Ready: true}
	live, passed := 0, 0
	for i := range checks {
		t := &tracks[i]
		if !t.ok() && t.last != nil && r.Waits == "" {
			r.Waits = fmt.Sprintf("%s %s does not pass: %s", checks[i].kind(), checks[i].Name(), reason(t.last, &checks[i].Check))
		}
		if checks[i].Readiness {
			r.Ready = r.Ready && t.ok()
			continue
		}
		live++
		if t.passed {
			passed++
		}
		if t.failed() && r.Failed == "" {
			r.Failed = fmt.Sprintf("health check %s failed %s: %s", checks[i].Name(), times(t.failures), reason(t.last, &checks[i].Check))
		}
	}
	switch {
	case r.Failed != "":
		r.Healthy = model.Unhealthy
	case live > 0 && passed == live:
		r.Healthy = model.Healthy
	}
	r.Ready = r.Ready && passed == live && r.Failed == ""
	return r
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
