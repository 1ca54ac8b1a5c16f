package agent

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// bubble runs a test in fake time and ends the agent after it.
func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.end = func() {}
		defer func() { w.end() }()
		f(t, w)
	})
}

func TestLifeFromAssignmentToStop(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a := program("a-1")
		w.up(a)
		w.wait(time.Second)
		s := w.wantPhase("a-1", 1, model.PhaseRunning)
		if !s.Ready || s.Healthy != model.HealthUnknown || len(s.Tasks) != 1 || s.Tasks[0].PID == 0 || s.Started.IsZero() {
			t.Errorf("running without checks is %+v", s)
		}
		if w.srv.hello == nil || w.srv.hello.ID != "n1" {
			t.Errorf("hello is %+v", w.srv.hello)
		}
		w.send(wire.Down{Set: []wire.Assignment{stop(a)}})
		s = w.wantPhase("a-1", 1, model.PhaseStopped)
		if s.Message != "stopped: main was ended by signal 15 (SIGTERM)" || s.Ready || s.Tasks[0].Exit.Code != 143 {
			t.Errorf("stopped is %+v", s)
		}
		if got := w.srv.get("a-1"); !reflect.DeepEqual(got, s) {
			t.Errorf("the server has %+v, the agent %+v", got, s)
		}
		if held := w.proc.held(); len(held) != 0 {
			t.Errorf("tasks are left: %v", held)
		}
		if _, err := os.Stat(w.agent.store.sandbox("a-1")); !os.IsNotExist(err) {
			t.Errorf("the sandbox is left: %v", err)
		}
		if _, err := os.Stat(w.agent.store.logs("a-1", "main")); err != nil {
			t.Errorf("the logs are gone: %v", err)
		}
		w.send(wire.Down{Drop: []model.InstanceID{"a-1"}})
		if _, err := os.Stat(w.agent.store.path("a-1")); !os.IsNotExist(err) || w.agent.pump("a-1") != nil {
			t.Errorf("something is left after the drop: %v", err)
		}
	})
}

func TestBackoffGrowsIsBoundedAndResets(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up(program("a-1", func(s *model.Spec) {
			s.Restart = &model.Restart{Max: model.Duration(5 * time.Second), Reset: model.Duration(time.Minute)}
		}))
		attempt := uint32(1)
		for i, wait := range []time.Duration{1, 2, 4, 5, 5} {
			wait *= time.Second
			w.wait(100 * time.Millisecond)
			w.wantPhase("a-1", attempt, model.PhaseRunning)
			w.proc.exit("a-1.main", model.Exit{Code: 1})
			synctest.Wait()
			s := w.wantPhase("a-1", attempt, model.PhaseBackoff)
			attempt++
			if want := fmt.Sprintf("main exited with code 1; next start in %v (attempt %d)", wait, attempt); s.Message != want {
				t.Errorf("end %d says %q, want %q", i, s.Message, want)
			}
			if s.Ready || s.Tasks[0].Exit == nil || s.Tasks[0].Exit.Code != 1 {
				t.Errorf("in backoff: %+v", s)
			}
			w.wait(wait - 10*time.Millisecond)
			w.wantPhase("a-1", attempt-1, model.PhaseBackoff)
			w.wait(20 * time.Millisecond)
		}
		w.wait(2 * time.Minute)
		w.proc.exit("a-1.main", model.Exit{})
		synctest.Wait()
		if s := w.status("a-1"); s.Message != "main exited with code 0; next start in 1s (attempt 7)" {
			t.Errorf("after a long run: %q", s.Message)
		}
	})
}

func TestBackoffNumbers(t *testing.T) {
	r := (&model.Spec{}).WithDefaults().Restart
	for failures, want := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 8: 256 * time.Second, 9: 5 * time.Minute, 5000: 5 * time.Minute} {
		if got := backoff(r, failures); got != want {
			t.Errorf("after %d failures %v, want %v", failures, got, want)
		}
	}
}

func TestExitSentences(t *testing.T) {
	for want, e := range map[string]model.Exit{
		"main exited with code 3":                                        {Code: 3},
		"main was ended by signal 9 (SIGKILL)":                           {Code: 137, Signal: 9},
		"main was killed at its memory limit: limit 64MiB, peak 64MiB":   {Code: 137, Signal: 9, OOM: true, Limit: 64 * model.MiB, Peak: 64 * model.MiB},
		"main was killed at its memory limit: limit 64MiB, peak 63.5MiB": {OOM: true, Limit: 64 * model.MiB, Peak: 127 * model.MiB / 2},
		"main was lost: the node was started again":                      {Lost: "the node was started again"},
	} {
		if got := exitSentence("main", &e); got != want {
			t.Errorf("%+v is %q, want %q", e, got, want)
		}
	}
}

func TestOneEndStopsAllContainers(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.proc.ignore[15] = true // the sidecar takes its time
		w.up(program("a-1", func(s *model.Spec) {
			s.Containers = append(s.Containers, model.Container{Name: "side", Command: []string{"x"}})
			s.Stop = &model.Stop{Grace: model.Duration(3 * time.Second)}
		}))
		w.wait(time.Second)
		w.wantPhase("a-1", 1, model.PhaseRunning)
		w.proc.exit("a-1.main", model.Exit{Code: 137, Signal: 9, OOM: true, Limit: 64 * model.MiB, Peak: 64 * model.MiB})
		synctest.Wait()
		s := w.wantPhase("a-1", 1, model.PhaseStopping)
		if s.Message != "main was killed at its memory limit: limit 64MiB, peak 64MiB; stopping" {
			t.Errorf("message %q", s.Message)
		}
		w.wait(3 * time.Second)
		s = w.wantPhase("a-1", 1, model.PhaseBackoff)
		if s.Message != "main was killed at its memory limit: limit 64MiB, peak 64MiB; next start in 1s (attempt 2)" {
			t.Errorf("message %q", s.Message)
		}
		if !slices.Equal(w.proc.signals, []string{"a-1.side 15", "a-1.side 9"}) {
			t.Errorf("signals %v", w.proc.signals)
		}
		w.wait(2 * time.Second)
		w.wantPhase("a-1", 2, model.PhaseRunning)
		if held := w.proc.held(); len(held) != 2 {
			t.Errorf("tasks %v", held)
		}
	})
}

func TestStopSignalAndGrace(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spec  model.Stop
		image int // signal that the driver knows
		want  string
	}{
		{"spec", model.Stop{Signal: "SIGINT"}, 3, "a-1.main 2"},
		{"image", model.Stop{}, 3, "a-1.main 3"},
		{"default", model.Stop{}, 0, "a-1.main 15"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.proc.stopSig = tt.image
				a := program("a-1", func(s *model.Spec) { s.Stop = &tt.spec })
				w.up(a)
				w.wait(time.Second)
				w.send(wire.Down{Set: []wire.Assignment{stop(a)}})
				w.wantPhase("a-1", 1, model.PhaseStopped)
				if w.proc.signals[0] != tt.want {
					t.Errorf("signals %v, want %s", w.proc.signals, tt.want)
				}
			})
		})
	}
}

func TestStopInEveryPhase(t *testing.T) {
	image := func(s *model.Spec) { s.Containers[0] = model.Container{Image: "img"} }
	for _, tt := range []struct {
		phase model.Phase
		setup func(w *world)
		spec  func(*model.Spec)
	}{
		{model.PhasePreparing, func(w *world) { w.oci.pull = make(chan struct{}) }, image},
		{model.PhaseStarting, func(w *world) { w.oci.block = make(chan struct{}) }, image},
		{model.PhaseRunning, func(*world) {}, image},
		{model.PhaseBackoff, func(w *world) { w.oci.pullErr = runtime.ErrInvalid }, image},
	} {
		t.Run(string(tt.phase), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				tt.setup(w)
				a := program("a-1", tt.spec)
				w.up(a)
				w.wait(100 * time.Millisecond)
				w.wantPhase("a-1", 1, tt.phase)
				w.send(wire.Down{Set: []wire.Assignment{stop(a)}})
				w.wantPhase("a-1", 1, model.PhaseStopped)
				if got := w.srv.get("a-1").Phase; got != model.PhaseStopped {
					t.Errorf("the server knows of %s", got)
				}
				w.wait(time.Hour)
				if held := w.oci.held(); len(held) != 0 {
					t.Errorf("tasks are left: %v", held)
				}
			})
		})
	}
}

func TestStopBeforeStart(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up(stop(program("a-1")))
		w.wait(time.Second)
		if s := w.wantPhase("a-1", 0, model.PhaseStopped); s.Message != "stopped before it was started" {
			t.Errorf("message %q", s.Message)
		}
		if w.proc.started() != 0 {
			t.Error("it was started")
		}
		over := stop(program("b-1"))
		over.Over = true
		w.send(wire.Down{Set: []wire.Assignment{over}})
		if w.agent.pump("b-1") != nil {
			t.Error("an instance that is over and unknown here was taken in")
		}
	})
}

func TestInvalidBacksOffAndUnavailableDoesNotCount(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.proc.startErr["main"] = fmt.Errorf("%w: no program sleep", runtime.ErrInvalid)
		w.up(program("a-1"))
		w.wait(100 * time.Millisecond)
		s := w.wantPhase("a-1", 1, model.PhaseBackoff)
		if s.Message != "main: cannot start: no program sleep; next start in 1s (attempt 2)" {
			t.Errorf("message %q", s.Message)
		}
		w.proc.set(func() { w.proc.startErr["main"], w.proc.down = nil, true })
		w.wait(time.Minute)
		s = w.wantPhase("a-1", 2, model.PhaseStarting)
		if s.Message != unavailable {
			t.Errorf("message %q", s.Message)
		}
		w.proc.set(func() { w.proc.down = false })
		w.wait(2 * time.Second)
		if s := w.wantPhase("a-1", 2, model.PhaseRunning); s.Message != "" {
			t.Errorf("message %q", s.Message)
		}
	})
}

func TestFailedSecondContainerEndsTheFirst(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.proc.startErr["side"] = errors.New("boom")
		w.up(program("a-1", func(s *model.Spec) {
			s.Containers = append(s.Containers, model.Container{Name: "side", Command: []string{"x"}})
		}))
		w.wait(100 * time.Millisecond)
		if s := w.wantPhase("a-1", 1, model.PhaseBackoff); !strings.HasPrefix(s.Message, "side: boom; next start") {
			t.Errorf("message %q", s.Message)
		}
		if held := w.proc.held(); len(held) != 0 {
			t.Errorf("tasks are left: %v", held)
		}
	})
}

func TestNoDriverSaysWhy(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.node.OCI.Why = "it is not root"
		a, err := New(Config{Dir: w.dir, Node: w.node, Process: w.proc, PortFree: anyPort})
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.driver(&model.Container{Image: "x"})
		if err == nil || err.Error() != "cannot start: this node runs no images: it is not root" {
			t.Errorf("error %v", err)
		}
	})
}

func TestAdoption(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up(program("a-1"), program("b-1"), program("c-1"))
		w.wait(10 * time.Second)
		pid := w.status("a-1").Tasks[0].PID
		started := w.status("a-1").Started
		w.end()
		if held := w.proc.held(); len(held) != 3 {
			t.Fatalf("the end of the agent ended tasks: %v", held)
		}
		w.proc.exit("b-1.main", model.Exit{Code: 7})
		w.proc.set(func() { delete(w.proc.tasks, "c-1.main") }) // as after a reboot
		w.proc.Start(t.Context(), runtime.Task{ID: "orphan-1.main", Attempt: 1})
		w.up() // without a server
		w.wait(100 * time.Millisecond)
		s := w.wantPhase("a-1", 1, model.PhaseRunning)
		if s.Tasks[0].PID != pid || !s.Started.Equal(started) || !s.Ready {
			t.Errorf("adopted as %+v", s)
		}
		if s := w.wantPhase("b-1", 1, model.PhaseBackoff); !strings.HasPrefix(s.Message, "main exited with code 7; next start in 1s") {
			t.Errorf("message %q", s.Message)
		}
		w.wantPhase("c-1", 2, model.PhaseRunning)
		if !slices.Contains(w.proc.held(), "orphan-1.main") {
			t.Error("a task without a record was removed before the server had said that it is not wanted")
		}
		if n := w.proc.started(); n != 5 {
			t.Errorf("%d programs were run, want 3, the orphan and the lost one again", n)
		}
		w.end()
		w.up(program("a-1"), program("b-1"), program("c-1"))
		w.wait(100 * time.Millisecond)
		if slices.Contains(w.proc.held(), "orphan-1.main") {
			t.Error("the orphan is left")
		}
	})
}

func TestRebootStartsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up(program("a-1"))
		w.wait(10 * time.Second)
		w.end()
		w.proc.exit("a-1.main", model.Exit{Lost: "the node was started again"})
		w.up()
		s := w.wantPhase("a-1", 2, model.PhaseRunning)
		if held := w.proc.held(); len(held) != 1 || s.Tasks[0].Exit != nil {
			t.Errorf("%v %+v", held, s)
		}
	})
}

// TestLostRecord protects running programs from the loss of their agent's memory.
func TestLostRecord(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a := program("a-1")
		w.up(a, program("b-1"))
		w.wait(time.Second)
		w.end()
		for _, id := range []model.InstanceID{"a-1", "b-1"} {
			if err := os.WriteFile(w.agent.store.path(id, "instance.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		w.srv.forgives = true
		w.up()
		w.wait(time.Second)
		if held := w.proc.held(); len(held) != 2 {
			t.Fatalf("tasks %v", held)
		}
		w.end()
		w.up(a) // b-1 is wanted no more
		w.wait(time.Second)
		w.wantPhase("a-1", 1, model.PhaseRunning)
		if held := w.proc.held(); !slices.Equal(held, []string{"a-1.main"}) {
			t.Errorf("tasks %v", held)
		}
		if w.proc.started() != 2 {
			t.Error("a program was run again")
		}
	})
}

// An agent that lost a record goes on from the attempt that the server knows of: its reports of lower ones would count as
// old news.
func TestLostRecordGoesOnFromTheServersAttempt(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := program("a-1"), program("b-1")
		a.Attempt, b.Attempt = 5, 5
		w.srv.forgives = true
		w.proc.Start(t.Context(), runtime.Task{ID: "b-1.main", Attempt: 5})
		w.up(a, b)
		w.wait(time.Second)
		w.wantPhase("a-1", 6, model.PhaseRunning)
		w.wantPhase("b-1", 5, model.PhaseRunning)
		if n := w.proc.started(); n != 2 {
			t.Errorf("%d programs were run, want that of b-1 once and a-1", n)
		}
	})
}

// An instance that the server knows to be over is cleared away when its record was lost, and its logs stay.
func TestLostRecordOfWhatIsOver(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a := program("a-1")
		w.up(a)
		w.wait(time.Second)
		w.end()
		st := w.agent.store
		if err := os.WriteFile(st.path("a-1", "instance.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		a.Desired, a.Over = model.Halt, true
		w.up(a)
		w.wait(time.Second)
		if held := w.proc.held(); len(held) > 0 {
			t.Errorf("tasks %v", held)
		}
		if _, err := os.Stat(st.path("a-1", "logs")); err != nil {
			t.Error(err)
		}
		w.send(wire.Down{Drop: []model.InstanceID{"a-1"}})
		w.wait(time.Second)
		if _, err := os.Stat(st.path("a-1")); !os.IsNotExist(err) {
			t.Errorf("its directory is left: %v", err)
		}
	})
}

// Times that an earlier agent noted mean nothing once the node's clock was set back: a wait is never longer than the spec
// allows.
func TestClockSetBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := program("a-1"), program("b-1")
		w.proc.startErr["main"] = errors.New("boom")
		w.up(a)
		w.wantPhase("a-1", 1, model.PhaseBackoff)
		w.proc.set(func() { delete(w.proc.startErr, "main"); w.proc.ignore[15] = true })
		w.send(wire.Down{Set: []wire.Assignment{b}})
		w.wait(10 * time.Millisecond)
		b.Desired = model.Halt
		w.send(wire.Down{Set: []wire.Assignment{b}})
		w.wantPhase("b-1", 1, model.PhaseStopping)
		w.end()
		for _, id := range []model.InstanceID{"a-1", "b-1"} {
			records, _, err := w.agent.store.load()
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range records {
				if r.Assignment.ID == id {
					r.Next, r.Kill = r.Next.AddDate(1, 0, 0), r.Kill.AddDate(1, 0, 0)
					if err := w.agent.store.save(&r, false); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		w.up(a, b)
		w.wait(time.Hour)
		if s := w.status("a-1"); s.Phase != model.PhaseRunning {
			t.Errorf("the start that was to follow did not: %+v", s)
		}
		if s := w.status("b-1"); s.Phase != model.PhaseStopped {
			t.Errorf("the program that ignores SIGTERM was not killed: %+v", s)
		}
	})
}

// TestCrashAtEveryStep ends the agent after each of its writes in turn, with no warning to the driver, and looks that the
// next agent comes to the same end without running two attempts at once.
func TestCrashAtEveryStep(t *testing.T) {
	steps := []func(w *world, a wire.Assignment){
		func(w *world, a wire.Assignment) { w.up(a) },
		func(w *world, a wire.Assignment) { w.wait(time.Second) },
		func(w *world, a wire.Assignment) { w.proc.exit("a-1.main", model.Exit{Code: 1}) },
		func(w *world, a wire.Assignment) { w.wait(500 * time.Millisecond) },
		func(w *world, a wire.Assignment) { w.wait(2 * time.Second) },
		func(w *world, a wire.Assignment) { w.srv.down <- wire.Down{Set: []wire.Assignment{stop(a)}} },
		func(w *world, a wire.Assignment) { w.wait(20 * time.Second) },
	}
	for crash := range steps {
		t.Run(fmt.Sprint(crash), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.proc.ignore[15] = true
				a := program("a-1", func(s *model.Spec) {
					s.Containers = append(s.Containers, model.Container{Name: "side", Command: []string{"x"}})
					s.Stop = &model.Stop{Grace: model.Duration(100 * time.Millisecond)}
				})
				for i, step := range steps {
					step(w, a)
					if i == crash {
						w.end()
						if i < 5 {
							w.up(a)
						} else {
							w.up(stop(a))
						}
					}
				}
				w.wait(30 * time.Second)
				s := w.wantPhase("a-1", 2, model.PhaseStopped)
				if len(s.Tasks) != 2 || s.Tasks[0].Exit == nil {
					t.Errorf("tasks %+v", s.Tasks)
				}
				if held := w.proc.held(); len(held) != 0 {
					t.Errorf("tasks are left: %v", held)
				}
				if n := w.proc.started(); n != 4 {
					t.Errorf("%d programs were run, want 4", n)
				}
			})
		})
	}
}

// TestCrashWhileStarting has the first container running when the agent ends.
func TestCrashWhileStarting(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.oci.block = make(chan struct{})
		w.up(program("a-1", func(s *model.Spec) {
			s.Containers = append(s.Containers, model.Container{Name: "side", Image: "img"})
		}))
		w.wait(time.Second)
		w.wantPhase("a-1", 1, model.PhaseStarting)
		pid := w.proc.tasks["a-1.main"].state.PID
		w.end()
		w.oci.set(func() { w.oci.block = nil })
		w.up()
		w.wait(time.Second)
		if s := w.wantPhase("a-1", 1, model.PhaseRunning); s.Tasks[0].PID != pid || len(s.Tasks) != 2 {
			t.Errorf("tasks %+v", s.Tasks)
		}
	})
}

func TestStopRecordedMeansNoStart(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.proc.ignore[15] = true
		a := program("a-1")
		w.up(a)
		w.wait(time.Second)
		w.send(wire.Down{Set: []wire.Assignment{stop(a)}})
		w.wantPhase("a-1", 1, model.PhaseStopping)
		w.end()
		w.up() // no server: the record alone must know
		w.wait(time.Minute)
		w.wantPhase("a-1", 1, model.PhaseStopped)
		w.end()
		w.up(a) // a late word of an old server
		w.wait(time.Minute)
		w.wantPhase("a-1", 1, model.PhaseStopped)
		if w.proc.started() != 1 {
			t.Error("it was started again")
		}
	})
}

func TestOneDriverWaitsOthersGoOn(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		img := program("img-1", func(s *model.Spec) { s.Containers[0] = model.Container{Image: "img"} })
		w.up(img, program("a-1"))
		w.wait(time.Second)
		w.end()
		w.oci.set(func() { w.oci.down = true })
		w.up(img, program("a-1"), program("b-1"))
		w.wait(10 * time.Second)
		w.wantPhase("b-1", 1, model.PhaseRunning)
		if s := w.wantPhase("img-1", 1, model.PhaseRunning); s.Message != unavailable {
			t.Errorf("message %q", s.Message)
		}
		w.oci.set(func() { w.oci.down = false })
		w.wait(3 * time.Second)
		if s := w.wantPhase("img-1", 1, model.PhaseRunning); s.Message != "" {
			t.Errorf("message %q", s.Message)
		}
		w.oci.exit("img-1.main", model.Exit{Code: 1})
		synctest.Wait()
		w.wantPhase("img-1", 1, model.PhaseBackoff)
	})
}

func TestFullSetDropsTheRest(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up(program("a-1"), program("b-1"))
		w.wait(time.Second)
		w.send(wire.Down{Full: true, Set: []wire.Assignment{program("b-1")}})
		if w.agent.pump("a-1") != nil || !slices.Equal(w.proc.held(), []string{"b-1.main"}) {
			t.Errorf("tasks %v", w.proc.held())
		}
	})
}

func TestManyStartsAreBoundedAndReportsBatched(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var all []wire.Assignment
		for i := range 300 {
			all = append(all, program(model.InstanceID(fmt.Sprintf("i-%d", i))))
		}
		w.up(all...)
		w.wait(5 * time.Second)
		for _, a := range all {
			if w.srv.get(a.ID).Phase != model.PhaseRunning {
				t.Fatalf("%s is %s", a.ID, w.srv.get(a.ID).Phase)
			}
		}
		if w.proc.mostBusy > 4 {
			t.Errorf("%d started at once, 4 are allowed", w.proc.mostBusy)
		}
		if w.srv.sends > 60 {
			t.Errorf("300 instances took %d messages", w.srv.sends)
		}
	})
}

func TestPullIsSharedAndTold(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.oci.pull = make(chan struct{})
		image := func(s *model.Spec) { s.Containers[0] = model.Container{Image: "img"} }
		w.up(program("a-1", image), program("b-1", image))
		w.wait(time.Second)
		for _, id := range []model.InstanceID{"a-1", "b-1"} {
			if s := w.wantPhase(id, 1, model.PhasePreparing); s.Message != "pulling img" {
				t.Errorf("%s says %q", id, s.Message)
			}
		}
		close(w.oci.pull)
		w.wait(time.Second)
		w.wantPhase("a-1", 1, model.PhaseRunning)
		if w.oci.pulls != 1 {
			t.Errorf("%d pulls", w.oci.pulls)
		}
	})
}

func TestFailedCheckRestarts(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up(program("a-1", func(s *model.Spec) {
			s.Health = []model.Check{{Command: &model.CommandCheck{Command: []string{"true"}}}}
		}))
		w.wait(time.Second)
		if s := w.wantPhase("a-1", 1, model.PhaseRunning); s.Healthy != model.Healthy || !s.Ready {
			t.Fatalf("status %+v", s)
		}
		b := program("b-1", func(s *model.Spec) {
			s.Health = []model.Check{{Command: &model.CommandCheck{Command: []string{"true"}}}}
		})
		w.send(wire.Down{Set: []wire.Assignment{b}, Drop: []model.InstanceID{"a-1"}})
		w.wait(time.Second)
		w.end()
		w.up()
		if s := w.wantPhase("b-1", 1, model.PhaseRunning); s.Healthy != model.Healthy || !s.Ready {
			t.Errorf("adopted as %+v", s)
		}
		w.proc.set(func() { w.proc.execCode = 2 })
		w.wait(25 * time.Second)
		found := false
		for _, s := range w.proc.signals {
			found = found || s == "b-1.main 15"
		}
		if !found {
			t.Fatalf("signals %v", w.proc.signals)
		}
		if s := w.status("b-1"); s.Attempt < 2 {
			t.Errorf("status %+v", s)
		}
	})
}
