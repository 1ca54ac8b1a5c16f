package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/test/images"
)

// kill -9 at 200 random moments of Gantry, of its containerd or of both, during start-up too, amid scaling, updating,
// restarting and removing apps with and without images, loses no acknowledged write, never runs more instances than were
// asked for at any time since all was quiet, never runs one twice, and at the end all is as asked and nothing is left.
// GANTRY_KILLS sets the number of kills, GANTRY_SEED repeats a run's choices.
func TestKillAtRandomMoments(t *testing.T) {
	needRoot(t)
	kills := fromEnv(t, "GANTRY_KILLS", 200)
	seed := fromEnv(t, "GANTRY_SEED", uint64(time.Now().UnixNano()))
	t.Logf("GANTRY_SEED=%d", seed)
	c := start(t, "--keep-stopped=1s")
	mark := hash(c.dir, 4) + "-" + strconv.FormatUint(seed, 36)
	x := &chaos{cluster: c, rnd: rand.New(rand.NewPCG(seed, 1)), apps: []*chaosApp{
		{id: "/plain", mark: mark + "-plain", now: wish{gone: true}},
		{id: "/boxed", mark: mark + "-boxed", now: wish{gone: true}, image: pushed(t, "busybox", images.Busybox(t))},
	}}
	for _, a := range x.apps {
		a.now = wish{instances: 2}
		a.most = 2
		c.deploy(a.spec(a.now))
	}
	for round := 0; x.kills < kills; round++ {
		x.round = round
		x.step()
		if round%10 == 9 {
			x.settle()
		}
	}
	x.settle()
	for _, a := range x.apps {
		if !a.now.gone {
			if _, err := c.DeleteApp(testContext(t), a.id); err != nil {
				t.Fatal(err)
			}
			a.now = wish{gone: true}
		}
	}
	x.settle()
	for end := time.Now().Add(patience / 3); len(x.left()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left of removed apps:\n%s", strings.Join(x.left(), "\n"))
		}
	}
}

func fromEnv[T int | uint64](t *testing.T, name string, def T) T {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return T(n)
}

// chaos is a cluster whose parts are killed, and what was asked of it.
type chaos struct {
	*cluster
	rnd   *rand.Rand
	apps  []*chaosApp
	round int
	kills int
	trace []string // what was done lately
}

type chaosApp struct {
	id    model.AppID
	image string
	mark  string // in the environment of its processes
	now   wish
	most  int // instances asked for at any time since all was quiet
}

// wish is what a user last asked for of an app.
type wish struct {
	gone       bool
	instances  int
	generation int
}

func (a *chaosApp) spec(w wish) *model.Spec {
	spec := shell(a.id, "exec sleep 100000")
	c := &spec.Containers[0]
	c.Image, c.CPUs = a.image, 50
	c.Env = map[string]string{"CHAOS": a.mark, "GENERATION": strconv.Itoa(w.generation)}
	spec.Update = &model.Update{MinHealthy: "0", MaxSurge: "0"}
	spec.Stop = &model.Stop{Grace: model.Duration(2 * time.Second)}
	spec.Instances = &w.instances
	return spec
}

// step changes something while something is killed, brings Gantry up again and checks what must hold always.
func (x *chaos) step() {
	x.t.Helper()
	a := x.apps[x.rnd.IntN(len(x.apps))]
	next, what, write := x.change(a)
	victim := x.rnd.IntN(10)
	delay := time.Duration(x.rnd.IntN(300)) * time.Millisecond
	x.note("%s %s, kill %d after %v", what, a.id, victim, delay)
	a.most = max(a.most, next.instances)

	killed := make(chan struct{})
	go func() {
		defer close(killed)
		time.Sleep(delay) // the random moment
		if victim < 3 {
			x.killContainerd()
		}
		if victim > 0 {
			_ = x.cmd.Process.Kill()
		}
	}()
	err := write()
	<-killed
	x.kills++
	if victim == 0 { // Gantry goes on and starts its containerd again
		x.checkLaws()
		x.checkWish(a, next, err)
		return
	}
	_ = x.cmd.Wait()
	x.checkLaws()
	x.startUp()
	x.checkLaws()
	x.checkWish(a, next, err)
}

// startUp starts Gantry, sometimes after it was killed while it started.
func (x *chaos) startUp() {
	x.t.Helper()
	for x.rnd.IntN(3) == 0 {
		delay := time.Duration(x.rnd.IntN(150)) * time.Millisecond
		x.note("kill %v after start", delay)
		out := x.launch()
		time.Sleep(delay) // the random moment
		if x.rnd.IntN(4) == 0 {
			x.killContainerd()
		}
		x.kill()
		out.Close()
		x.kills++
	}
	x.up()
}

func (x *chaos) note(format string, args ...any) {
	x.trace = append(x.trace, fmt.Sprintf("%d: "+format, append([]any{x.round}, args...)...))
	x.trace = x.trace[max(0, len(x.trace)-30):]
}

func (x *chaos) fail(format string, args ...any) {
	x.t.Helper()
	x.t.Fatalf("%s\nlately:\n%s\n%s", fmt.Sprintf(format, args...), strings.Join(x.trace, "\n"), x.describe())
}

// change returns a change of an app, what it is called, and what asks for it.
func (x *chaos) change(a *chaosApp) (next wish, what string, write func() error) {
	next = a.now
	ctx := testContext(x.t)
	put := func() error { _, err := x.PutApp(ctx, a.spec(next)); return err }
	switch n := x.rnd.IntN(10); {
	case a.now.gone:
		next = wish{instances: x.rnd.IntN(5), generation: a.now.generation + 1}
		return next, fmt.Sprintf("create %d", next.instances), put
	case n < 4:
		next.instances = x.rnd.IntN(6)
		return next, fmt.Sprintf("scale to %d", next.instances), func() error {
			_, err := x.ScaleApp(ctx, a.id, next.instances)
			return err
		}
	case n < 7:
		next.generation++
		return next, "update", put
	case n < 8:
		return next, "restart", func() error { _, err := x.RestartApp(ctx, a.id); return err }
	}
	next.gone, next.instances = true, 0
	return next, "remove", func() error { _, err := x.DeleteApp(ctx, a.id); return err }
}

// checkWish fails the test when an acknowledged change was lost, or what is asked for is neither old nor new.
func (x *chaos) checkWish(a *chaosApp, next wish, failure error) {
	x.t.Helper()
	got := x.asked(a)
	if got == next {
		a.now = next
		return
	}
	if failure == nil || got != a.now {
		x.fail("%s: asked for was %+v and then %+v (answer: %v), but now is %+v", a.id, a.now, next, failure, got)
	}
}

// asked returns what Gantry takes to be asked for.
func (x *chaos) asked(a *chaosApp) wish {
	x.t.Helper()
	app, err := x.App(testContext(x.t), a.id)
	var refused *client.Error
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound || err == nil && app.Removing {
		return wish{gone: true, generation: a.now.generation}
	}
	if err != nil {
		x.fail("%s cannot be read: %v", a.id, err)
	}
	generation, err := strconv.Atoi(app.Spec.Containers[0].Env["GENERATION"])
	if err != nil {
		x.t.Fatal(err)
	}
	return wish{instances: app.Instances, generation: generation}
}

// checkLaws fails the test when an app has too many processes, or an instance more than one.
func (x *chaos) checkLaws() {
	x.t.Helper()
	for _, a := range x.apps {
		found := marked(x.t, a.mark)
		if len(found) > a.most {
			x.fail("%s: %d processes run, at most %d were asked for: %v", a.id, len(found), a.most, found)
		}
		ids := map[string]int{}
		for pid, env := range found {
			if ids[env["GANTRY_INSTANCE_ID"]]++; ids[env["GANTRY_INSTANCE_ID"]] > 1 {
				x.fail("%s runs twice, also as process %d", env["GANTRY_INSTANCE_ID"], pid)
			}
		}
	}
}

// settle waits until all is as asked.
func (x *chaos) settle() {
	x.t.Helper()
	for _, a := range x.apps {
		x.until(fmt.Sprintf("%d instances of generation %d of %s to run; lately:\n%s", a.now.instances, a.now.generation, a.id,
			strings.Join(x.trace, "\n")), func() bool {
			x.checkLaws()
			found := marked(x.t, a.mark)
			for _, env := range found {
				if env["GENERATION"] != strconv.Itoa(a.now.generation) {
					return false
				}
			}
			return len(found) == a.now.instances && (a.now.gone || len(x.running(a.id)) == a.now.instances)
		})
	}
	for _, a := range x.apps {
		if got := x.asked(a); got != a.now {
			x.fail("%s: asked for is %+v, want %+v", a.id, got, a.now)
		}
		a.most = a.now.instances
	}
}

// killContainerd kills every containerd of the cluster, if there is one yet.
func (x *chaos) killContainerd() {
	for pid, cmdline := range x.processes() {
		if strings.Contains(cmdline, "gantry containerd ") {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
		}
	}
}

// left returns what is there of any instance: directories, cgroups, mounts and processes.
func (x *chaos) left() []string {
	x.t.Helper()
	_, found := x.cgroups()
	for _, pattern := range []string{
		"process/*", "process/.*", "agent/instances/*", "containerd/state/io.containerd.runtime.v2.task/*/*",
		"containerd/root/io.containerd.runtime.v2.task/*/*",
	} {
		dirs, err := filepath.Glob(filepath.Join(x.dir, pattern))
		if err != nil {
			x.t.Fatal(err)
		}
		found = append(found, dirs...)
	}
	for _, pattern := range []string{"/s/*", "/r/*/*"} {
		sockets, err := filepath.Glob(x.sockets() + pattern)
		if err != nil {
			x.t.Fatal(err)
		}
		found = append(found, sockets...)
	}
	for pid, cmdline := range x.processes() {
		if !strings.Contains(cmdline, "gantry up ") && !strings.Contains(cmdline, "gantry containerd ") {
			found = append(found, fmt.Sprintf("process %d: %s", pid, cmdline))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		x.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, x.dir) {
			found = append(found, "mount "+line)
		}
	}
	slices.Sort(found)
	return found
}

// marked returns the environments of the processes that have the mark in it, by pid.
func marked(t testing.TB, mark string) map[int]map[string]string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]map[string]string{}
	for _, file := range files {
		environ, _ := os.ReadFile(file) // gone when it just ended
		if !bytes.Contains(environ, []byte("CHAOS="+mark+"\x00")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		env := map[string]string{}
		for pair := range strings.SplitSeq(string(environ), "\x00") {
			k, v, _ := strings.Cut(pair, "=")
			env[k] = v
		}
		found[pid] = env
	}
	return found
}
