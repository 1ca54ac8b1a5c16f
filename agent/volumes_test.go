package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// stateful is an instance of /app with a slot and a persistent volume, which it sees at /tmp.
func stateful(id model.InstanceID, slot uint32) wire.Assignment {
	a := program(id, func(s *model.Spec) {
		s.Volumes = []model.Volume{{Name: "data", Persistent: &model.Persistent{Size: model.GiB}}}
		s.Containers[0].Mounts = []model.Mount{{Volume: "data", Path: "/tmp"}}
	})
	a.Slot = slot
	return a
}

// source returns the directory that the newest task was given as its volume.
func (w *world) source() string {
	w.t.Helper()
	m := w.proc.starts[len(w.proc.starts)-1].Mounts
	if len(m) != 1 || m[0].Target != "/tmp" || !m[0].Own {
		w.t.Fatalf("mounts %+v", m)
	}
	return m[0].Source
}

func (w *world) put(file, text string) {
	w.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) want(file, text string) {
	w.t.Helper()
	if b, err := os.ReadFile(file); err != nil || string(b) != text {
		w.t.Errorf("%s has %q, %v; want %q", file, b, err, text)
	}
}

// The replacement of an instance finds what it left, across attempts and agents; other slots have their own.
func TestVolumeOutlivesItsInstance(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		first := stateful("db-a", 1)
		w.up(first)
		w.wait(time.Second)
		w.wantPhase("db-a", 1, model.PhaseRunning)
		dir := w.source()
		if want := filepath.Join(w.dir, "volumes", "%2Fapp:1:data", "data"); dir != want {
			t.Errorf("the volume is %s, want %s", dir, want)
		}
		w.put(filepath.Join(dir, "f"), "one")
		w.proc.exit("db-a.main", model.Exit{Code: 1})
		w.wait(2 * time.Second)
		w.wantPhase("db-a", 2, model.PhaseRunning)
		w.want(filepath.Join(w.source(), "f"), "one")
		w.send(wire.Down{Set: []wire.Assignment{stop(first)}})
		w.wantPhase("db-a", 2, model.PhaseStopped)
		w.send(wire.Down{Drop: []model.InstanceID{"db-a"}})
		w.want(filepath.Join(dir, "f"), "one")
		w.end()

		second, other := stateful("db-b", 1), stateful("db-c", 2)
		w.up(second)
		w.wait(time.Second)
		w.want(filepath.Join(w.source(), "f"), "one")
		w.send(wire.Down{Set: []wire.Assignment{other}})
		w.wait(time.Second)
		w.wantPhase("db-c", 1, model.PhaseRunning)
		if w.source() == dir {
			t.Errorf("two slots share %s", dir)
		}
		if info, err := os.Stat(filepath.Dir(filepath.Dir(dir))); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("users of the node get to volumes: %v, %v", info.Mode(), err)
		}
	})
}

// Two instances of a slot never use its volume at once, whatever the server says and whichever records are lost.
func TestVolumeHasOneHolder(t *testing.T) {
	for name, lose := range map[string]bool{"with the record": false, "with the record lost": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				first, second := stateful("db-a", 1), stateful("db-b", 1)
				w.up(first)
				w.wait(time.Second)
				w.proc.set(func() { w.proc.ignore[15] = true })
				w.end()
				if lose {
					if err := os.RemoveAll(filepath.Join(w.dir, "instances", "db-a")); err != nil {
						t.Fatal(err)
					}
				}
				w.srv.forgives = true
				w.up(first, second)
				w.wait(2 * time.Second)
				w.wantPhase("db-a", 1, model.PhaseRunning)
				s := w.wantPhase("db-b", 1, model.PhasePreparing)
				if want := "volume /app:1:data is still in use by db-a on this node; this instance waits for it"; s.Message != want {
					t.Errorf("it says %q, want %q", s.Message, want)
				}
				w.send(wire.Down{Set: []wire.Assignment{stop(first)}})
				w.wait(5 * time.Second) // it does not end by SIGTERM
				w.wantPhase("db-a", 1, model.PhaseStopping)
				w.wantPhase("db-b", 1, model.PhasePreparing)
				w.wait(6 * time.Second)
				w.wantPhase("db-a", 1, model.PhaseStopped)
				if s := w.wantPhase("db-b", 1, model.PhaseRunning); s.Message != "" {
					t.Errorf("it runs and says %q", s.Message)
				}
				if held := w.proc.held(); !slices.Equal(held, []string{"db-b.main"}) {
					t.Errorf("held are %v", held)
				}
			})
		})
	}
}

// What a lost instance held is free again once nothing of it runs, and not before.
func TestHolderIsUnknown(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up(stateful("db-a", 1))
		w.wait(time.Second)
		w.end()
		if err := os.RemoveAll(filepath.Join(w.dir, "instances", "db-a")); err != nil {
			t.Fatal(err)
		}
		w.proc.set(func() { w.proc.down = true })
		w.up(stateful("db-b", 1))
		w.wait(time.Minute)
		if w.proc.started() != 1 {
			t.Fatal("the second one started while the first one may run")
		}
		w.proc.set(func() { w.proc.down = false })
		w.wait(5 * time.Second)
		w.wantPhase("db-b", 1, model.PhaseRunning)
		if held := w.proc.held(); !slices.Equal(held, []string{"db-b.main"}) {
			t.Errorf("held are %v", held)
		}
	})
}

// A volume is deleted when the server says so and nobody holds it, and that is reported; nobody gets it meanwhile.
func TestVolumeIsDeleted(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a := stateful("db-a", 1)
		w.up(a)
		w.wait(time.Second)
		dir := w.source()
		w.put(filepath.Join(dir, "f"), "one")
		w.send(wire.Down{DropVolumes: []model.VolumeID{"/app:1:data", "/app:2:data", ".."}})
		w.want(filepath.Join(dir, "f"), "one")
		if !slices.Equal(w.srv.removed, []model.VolumeID{"/app:2:data"}) {
			t.Errorf("deleted are %v, want the one that never was", w.srv.removed)
		}
		w.send(wire.Down{Set: []wire.Assignment{stateful("db-b", 1)}})
		if s := w.wantPhase("db-b", 1, model.PhasePreparing); !strings.HasPrefix(s.Message, "volume /app:1:data is being deleted") {
			t.Errorf("it says %q", s.Message)
		}
		w.send(wire.Down{Set: []wire.Assignment{stop(a)}})
		w.wait(time.Second)
		if !slices.Equal(w.srv.removed, []model.VolumeID{"/app:2:data", "/app:1:data"}) {
			t.Errorf("deleted are %v", w.srv.removed)
		}
		w.wantPhase("db-b", 1, model.PhaseRunning)
		if entries, err := os.ReadDir(w.source()); err != nil || len(entries) > 0 {
			t.Errorf("the volume made anew has %v, %v", entries, err)
		}
	})
}

// Only what the server names is deleted: neither what it no longer wants deleted nor what it does not know.
func TestVolumesThatStay(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := stateful("db-a", 1), stateful("db-b", 2)
		w.up(a, b)
		w.wait(time.Second)
		w.send(wire.Down{DropVolumes: []model.VolumeID{"/app:1:data"}})
		w.end()
		w.kept = []model.VolumeID{"/app:1:data"} // the user thought better of it
		w.up(stop(a), stop(b))
		w.wait(time.Second)
		w.send(wire.Down{Full: true, Volumes: w.kept}) // and slot 2 is not known
		w.wait(time.Second)
		for _, name := range []string{"%2Fapp:1:data", "%2Fapp:2:data"} {
			if _, err := os.Stat(filepath.Join(w.dir, "volumes", name, "data")); err != nil {
				t.Error(err)
			}
		}
		if len(w.srv.removed) > 0 {
			t.Errorf("deleted are %v", w.srv.removed)
		}
	})
}

// A deletion that an earlier agent could not finish is finished by the next, as the server says it again.
func TestDeletionGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up(stateful("db-a", 1))
		w.wait(time.Second)
		w.end()
		w.dropped = []model.VolumeID{"/app:1:data"}
		w.up(stop(stateful("db-a", 1)))
		w.wait(time.Second)
		if !slices.Equal(w.srv.removed, w.dropped) {
			t.Errorf("deleted are %v", w.srv.removed)
		}
		if left, err := os.ReadDir(filepath.Join(w.dir, "volumes")); err != nil || len(left) > 0 {
			t.Errorf("left are %v, %v", left, err)
		}
	})
}

// When it cannot be read who holds a volume, nobody gets it, and everything else goes on.
func TestUnreadableHolder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a := stateful("db-a", 1)
		w.up(a)
		w.wait(time.Second)
		w.send(wire.Down{Set: []wire.Assignment{stop(a)}})
		w.end()
		w.put(filepath.Join(w.dir, "volumes", "%2Fapp:1:data", "volume.json"), "{")
		w.up(stateful("db-b", 1), stateful("db-c", 2))
		w.wait(100 * time.Millisecond)
		if s := w.wantPhase("db-b", 1, model.PhaseBackoff); !strings.Contains(s.Message, "who holds volume /app:1:data is not known") {
			t.Errorf("it says %q", s.Message)
		}
		w.wantPhase("db-c", 1, model.PhaseRunning)
	})
}

// Ids longer than file names may be have names of their own.
func TestLongVolumeIDs(t *testing.T) {
	v := &volumes{dir: "/d"}
	app := model.AppID("/" + strings.Repeat("a/", 99))
	one, two := v.path(model.VolumeOf(app, 1, "data")), v.path(model.VolumeOf(app, 2, "data"))
	if one == two || len(filepath.Base(one)) > longestName || len(filepath.Base(two)) > longestName {
		t.Errorf("%s and %s", one, two)
	}
}

// Each container is told its slot, its share of the devices and its resources, and gets its devices' nodes.
func TestWhatAContainerIsGiven(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.gpus = fakeGPUs(t, "0", "1", "2")
		a := program("ml-1", func(s *model.Spec) {
			s.Containers = []model.Container{
				{Name: "train", Command: []string{"train", "--gpus=$CUDA_VISIBLE_DEVICES", "${SLOT}"}, GPUs: 2000,
					Custom: map[string]model.Units{"fast-lines": 1000, "licenses": 1500}},
				{Name: "serve", Image: "i", GPUs: 250, Custom: map[string]model.Units{"fast-lines": 2000}},
				{Name: "side", Image: "i"},
			}
		})
		a.Slot, a.Items = 3, map[string][]string{"fast-lines": {"l1", "l2", "l3"}}
		a.GPUs = []model.GPUShare{{ID: "GPU-0", Share: 1000}, {ID: "2", Share: 1000}, {ID: "GPU-1", Share: 250}}
		w.up(a)
		w.wait(time.Second)
		w.wantPhase("ml-1", 1, model.PhaseRunning)
		train, serve, side := w.proc.starts[0], w.oci.starts[0], w.oci.starts[1]
		if want := []string{"train", "--gpus=GPU-0,2", "3"}; !slices.Equal(train.Command, want) {
			t.Errorf("command %q, want %q", train.Command, want)
		}
		for _, tt := range []struct {
			task      runtime.Task
			key, want string
		}{
			{train, "GANTRY_GPUS", "GPU-0=1,2=1"},
			{train, "NVIDIA_VISIBLE_DEVICES", "GPU-0,2"},
			{train, "GANTRY_RESOURCE_FAST_LINES", "l1"},
			{train, "GANTRY_RESOURCE_LICENSES", "1.5"},
			{serve, "GANTRY_GPUS", "GPU-1=0.25"},
			{serve, "CUDA_VISIBLE_DEVICES", "GPU-1"},
			{serve, "GANTRY_RESOURCE_FAST_LINES", "l2,l3"},
			{side, "SLOT", "3"},
		} {
			if got := tt.task.Env[tt.key]; got != tt.want {
				t.Errorf("%s: %s is %q, want %q", tt.task.ID, tt.key, got, tt.want)
			}
		}
		if _, ok := side.Env["CUDA_VISIBLE_DEVICES"]; ok || side.Devices != nil || train.Devices != nil {
			t.Errorf("given without need: %v, %v", side.Devices, train.Devices)
		}
		if want := []string{filepath.Join(w.gpus.dev, "nvidia1"), filepath.Join(w.gpus.dev, "nvidiactl")}; !slices.Equal(serve.Devices, want) {
			t.Errorf("devices %v, want %v", serve.Devices, want)
		}
		w.end()
		w.up() // the record has it all
		w.wait(time.Second)
		w.oci.exit("ml-1.serve", model.Exit{})
		w.wait(3 * time.Second)
		if again := w.proc.starts[1]; again.Env["GANTRY_GPUS"] != "GPU-0=1,2=1" || again.Env["SLOT"] != "3" {
			t.Errorf("after the agent came back: %v", again.Env)
		}
	})
}

// An app that asks for a virtual machine does not run without one.
func TestNoVirtualMachines(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.node.VM.Why = "it has no runtime for them"
		w.up(program("a-1", func(s *model.Spec) { s.Isolation = model.IsolationVM }))
		w.wait(100 * time.Millisecond)
		s := w.wantPhase("a-1", 1, model.PhaseBackoff)
		if want := "this node runs no virtual machines: it has no runtime for them"; !strings.Contains(s.Message, want) {
			t.Errorf("it says %q, want %q", s.Message, want)
		}
	})
}
