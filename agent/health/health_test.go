package health

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-os/gantry/model"
)

func check(readiness bool, probe Probe) Check {
	return Check{Check: model.Check{
		TCP: &model.TCPCheck{Endpoint: "web"}, Grace: model.Duration(10 * time.Second), Interval: model.Duration(5 * time.Second),
		Timeout: model.Duration(3 * time.Second), Failures: 3,
	}, Readiness: readiness, Probe: probe}
}

func TestTrack(t *testing.T) {
	bad := errors.New("bad")
	type step struct {
		err    error
		age    time.Duration
		ok     bool
		failed bool
	}
	for name, steps := range map[string][]step{
		"grace covers failures before the first pass": {{bad, 0, false, false}, {bad, 9 * time.Second, false, false}, {bad, 9 * time.Second, false, false}, {nil, 9 * time.Second, true, false}},
		"after grace they count":                      {{bad, 10 * time.Second, false, false}, {bad, 11 * time.Second, false, false}, {bad, 12 * time.Second, false, true}},
		"after a pass grace is over":                  {{nil, 0, true, false}, {bad, 1, true, false}, {bad, 2, true, false}, {bad, 3, false, true}},
		"only consecutive failures count":             {{nil, 0, true, false}, {bad, 1, true, false}, {bad, 2, true, false}, {nil, 3, true, false}, {bad, 4, true, false}, {bad, 5, true, false}},
		"a failed check recovers":                     {{nil, 0, true, false}, {bad, 1, true, false}, {bad, 2, true, false}, {bad, 3, false, true}, {nil, 4, true, false}},
	} {
		c := check(false, nil)
		tr := newTrack(&c.Check, false)
		for i, s := range steps {
			tr.note(s.err, s.age)
			if tr.ok() != s.ok || tr.failed() != s.failed {
				t.Errorf("%s: step %d: ok %v failed %v, want %v %v", name, i, tr.ok(), tr.failed(), s.ok, s.failed)
			}
		}
	}
}

func TestDelays(t *testing.T) {
	c := check(false, nil)
	tr := newTrack(&c.Check, false)
	var got []time.Duration
	for range 6 {
		tr.note(errors.New("not yet"), 0)
		got = append(got, tr.delay(0))
	}
	for i, want := range []time.Duration{200, 400, 800, 1000, 1000, 1000} {
		if got[i] != want*time.Millisecond {
			t.Errorf("wait %d is %v, want %v", i, got[i], want*time.Millisecond)
		}
	}
	tr.note(nil, 0)
	if d := tr.delay(0); d != 5*time.Second {
		t.Errorf("after a pass %v", d)
	}
	short := newTrack(&model.Check{Interval: model.Duration(100 * time.Millisecond)}, false)
	if d := short.delay(time.Minute); d != 100*time.Millisecond {
		t.Errorf("a short interval became %v", d)
	}
}

// run starts a monitor in fake time and keeps its newest result.
func run(t *testing.T, checks []Check, f func(latest func() Result)) {
	synctest.Test(t, func(t *testing.T) {
		m := Start(t.Context(), checks, time.Now(), time.Now)
		defer m.Stop()
		var last Result
		f(func() Result {
			synctest.Wait()
			select {
			case last = <-m.Results():
			default:
			}
			return last
		})
	})
}

func TestNoChecksIsReadyAtOnce(t *testing.T) {
	run(t, nil, func(latest func() Result) {
		if r := latest(); !r.Ready || r.Healthy != model.HealthUnknown {
			t.Errorf("%+v", r)
		}
	})
}

func TestLivenessAndReadinessAreApart(t *testing.T) {
	var alive, ready atomic.Bool
	probe := func(b *atomic.Bool) Probe {
		return func(context.Context) error {
			if !b.Load() {
				return errors.New("no")
			}
			return nil
		}
	}
	run(t, []Check{check(false, probe(&alive)), check(true, probe(&ready))}, func(latest func() Result) {
		if r := latest(); r.Ready || r.Healthy != model.HealthUnknown {
			t.Errorf("at first %+v", r)
		}
		alive.Store(true)
		time.Sleep(2 * time.Second)
		if r := latest(); r.Ready || r.Healthy != model.Healthy {
			t.Errorf("alive only: %+v", r)
		}
		ready.Store(true)
		time.Sleep(2 * time.Second)
		if r := latest(); !r.Ready {
			t.Errorf("both: %+v", r)
		}
		ready.Store(false)
		time.Sleep(30 * time.Second)
		if r := latest(); r.Ready || r.Failed != "" || r.Healthy != model.Healthy {
			t.Errorf("failing readiness: %+v", r)
		}
		ready.Store(true)
		time.Sleep(6 * time.Second)
		if r := latest(); !r.Ready {
			t.Errorf("ready again: %+v", r)
		}
		alive.Store(false)
		time.Sleep(16 * time.Second)
		if r := latest(); r.Ready || r.Healthy != model.Unhealthy || r.Failed != "health check tcp web failed 3 times: no" {
			t.Errorf("dead: %+v", r)
		}
	})
}

func TestProbeIsEndedAtItsTimeoutAndByStop(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	run(t, []Check{check(false, hang)}, func(latest func() Result) {
		time.Sleep(30 * time.Second)
		if r := latest(); !strings.Contains(r.Failed, "no answer within 3s") {
			t.Errorf("%+v", r)
		}
	})
}

func TestPassedBeforeStaysReady(t *testing.T) {
	c := check(false, func(context.Context) error { return nil })
	c.Passed = true
	run(t, []Check{c}, func(latest func() Result) {
		if r := latest(); !r.Ready || r.Healthy != model.Healthy {
			t.Errorf("%+v", r)
		}
	})
}

func TestGateBoundsProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan Permit, 1)
		var busy, most atomic.Int32
		var checks []Check
		for range 5 {
			c := check(false, func(context.Context) error {
				most.Store(max(most.Load(), busy.Add(1)))
				time.Sleep(time.Second)
				busy.Add(-1)
				return nil
			})
			c.Gate = gate
			checks = append(checks, c)
		}
		m := Start(t.Context(), checks, time.Now(), time.Now)
		defer m.Stop()
		<-m.Results()
		if r := <-m.Results(); r.Healthy != model.Healthy {
			t.Errorf("%+v", r)
		}
		if most.Load() != 1 {
			t.Errorf("%d at once", most.Load())
		}
	})
}

func TestProbesOverTheNetwork(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/bad", http.StatusFound)
		case "/bad":
			w.WriteHeader(http.StatusInternalServerError)
		case "/cut":
			panic(http.ErrAbortHandler)
		case "/slow":
			<-r.Context().Done()
		}
	})
	plain, secure := httptest.NewServer(h), httptest.NewTLSServer(h)
	defer plain.Close()
	defer secure.Close()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deadPort := uint16(dead.Addr().(*net.TCPAddr).Port)
	dead.Close()
	p := NewProber()
	for name, tt := range map[string]struct {
		probe Probe
		want  string // of reason; empty for a pass
	}{
		"ok":       {p.HTTP("http", "127.0.0.1", portOf(t, plain.URL), "/"), ""},
		"redirect": {p.HTTP("http", "127.0.0.1", portOf(t, plain.URL), "/moved"), ""},
		"https":    {p.HTTP("https", "127.0.0.1", portOf(t, secure.URL), "/"), ""},
		"500":      {p.HTTP("http", "127.0.0.1", portOf(t, plain.URL), "/bad"), "status 500"},
		"cut":      {p.HTTP("http", "127.0.0.1", portOf(t, plain.URL), "/cut"), "the connection was closed without an answer"},
		"slow":     {p.HTTP("http", "127.0.0.1", portOf(t, plain.URL), "/slow"), "no answer within 200ms"},
		"refused":  {p.HTTP("http", "127.0.0.1", deadPort, "/"), "connection refused"},
		"tcp":      {p.TCP("127.0.0.1", portOf(t, plain.URL)), ""},
		"tcp dead": {p.TCP("127.0.0.1", deadPort), "connection refused"},
	} {
		c := model.Check{Timeout: model.Duration(200 * time.Millisecond)}
		limit := 5 * time.Second // only the slow one may run into its timeout on a busy machine
		if name == "slow" {
			limit = c.Timeout.Std()
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err := tt.probe(ctx)
		cancel()
		if err == nil && tt.want == "" {
			continue
		}
		if got := reason(err, &c); err == nil || got != tt.want {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func portOf(t *testing.T, raw string) uint16 {
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return uint16(n)
}

// An instance that runs but is not ready must say which check keeps it so, and how.
func TestWaitsNameTheCheck(t *testing.T) {
	checks := []Check{
		{Check: model.Check{TCP: &model.TCPCheck{Endpoint: "http"}, Failures: 9}},
		{Check: model.Check{Command: &model.CommandCheck{Command: []string{"ready"}}, Failures: 9}, Readiness: true},
	}
	tracks := []track{newTrack(&checks[0].Check, false), newTrack(&checks[1].Check, false)}
	if r := sum(checks, tracks); r.Waits != "" || r.Ready {
		t.Errorf("before any probe: %+v", r)
	}
	tracks[0].note(nil, 0)
	tracks[1].note(errors.New("exit code 1"), 0)
	if r := sum(checks, tracks); r.Waits != "readiness check command ready does not pass: exit code 1" || r.Ready {
		t.Errorf("after a failed probe: %+v", r)
	}
	tracks[1].note(nil, 0)
	if r := sum(checks, tracks); r.Waits != "" || !r.Ready {
		t.Errorf("after all passed: %+v", r)
	}
}
