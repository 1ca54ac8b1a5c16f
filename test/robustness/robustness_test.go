package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/test/robustness/history"
)

// build builds this program, which has to run without the libraries of the machine: it is in an image, too.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "robustness")
	cmd := exec.Command("go", "build", "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// A short run: make robustness takes as long, and any seed, as one likes.
func TestCluster(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: the machines of this test are made of namespaces, which needs root")
	}
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, build(t), "-bin", bin, "-seed", "7", "-duration", "40s").CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "violations: 0") {
		t.Errorf("%v", err)
	}
}

// Two programs in one slot at a time are noticed, and two one after the other are not.
func TestCensus(t *testing.T) {
	bin := build(t)
	socket := filepath.Join(t.TempDir(), "census")
	ended := make(chan *program, 10)
	c, err := newCensus(socket, func() time.Duration { return 0 }, func(p *program) { ended <- p })
	if err != nil {
		t.Fatal(err)
	}
	start := func(instance, slot string) *exec.Cmd {
		n := len(c.running()["/db"])
		cmd := exec.Command(bin, witnessArg, socket)
		cmd.Env = []string{"GANTRY_APP_ID=/db", "GANTRY_INSTANCE_ID=" + instance, "SLOT=" + slot}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for len(c.running()["/db"]) == n {
			time.Sleep(time.Millisecond)
		}
		return cmd
	}
	end := func(cmd *exec.Cmd) {
		cmd.Process.Kill()
		cmd.Wait()
	}
	wrong := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.wrong)
	}

	one, other := start("db-1", "1"), start("db-2", "2")
	end(one)
	again := start("db-3", "1") // as soon as the process before is over, whether the census has noticed or not
	if n := wrong(); n != 0 {
		t.Errorf("%d violations, though no two ran at once: %q", n, c.wrong)
	}
	twice := start("db-4", "2")
	for end := time.Now().Add(5 * time.Second); wrong() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := wrong(); n != 1 {
		t.Errorf("%d violations, though two ran in slot 2: %q", n, c.wrong)
	}
	for _, cmd := range []*exec.Cmd{other, again, twice} {
		end(cmd)
	}
	c.close()
	if len(ended) != 4 {
		t.Errorf("%d of 4 were seen to end", len(ended))
	}
	file := filepath.Join(t.TempDir(), "programs")
	if err := c.keep(file); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	var p program
	if err != nil || json.Unmarshal(b[:strings.IndexByte(string(b), '\n')], &p) != nil || p.Instance != "db-1" {
		t.Errorf("kept %s: %v", b, err)
	}
}

// The end of a program that nobody asked to end is noticed, unless its machine's power went.
func TestProgramEnded(t *testing.T) {
	r := &run{started: time.Now(), powerOff: map[string]time.Duration{"a1": 5}, calm: true}
	for _, c := range []struct {
		p     program
		wrong int
	}{
		{program{hello: hello{App: calmApp, Machine: "a1"}, Started: 3}, 0},
		{program{hello: hello{App: calmApp, Machine: "a1"}, Started: 6}, 1}, // after the power was back
		{program{hello: hello{App: calmApp, Machine: "a2"}, Started: 3}, 1},
		{program{hello: hello{App: "/db", Machine: "a2"}, Started: 3}, 0},
	} {
		r.wrong = nil
		r.programEnded(&c.p)
		if len(r.wrong) != c.wrong {
			t.Errorf("%+v: %q, want %d", c.p, r.wrong, c.wrong)
		}
	}
}

func TestRecovery(t *testing.T) {
	op := func(server string, result history.Result, call, ret time.Duration) history.Op {
		return history.Op{Server: server, Kind: history.Write, Result: result, Call: call, Return: ret}
	}
	again, under := recovery(hit{at: 10, out: []string{"s1"}}, []history.Op{
		op("s2", history.OK, 1, 2),
		op("s2", history.Unknown, 8, 17), // under way
		op("s1", history.Unknown, 9, 99), // at the server that was hit
		op("s2", history.OK, 11, 16),
		op("s3", history.OK, 12, 15), // the first to be taken
		op("s3", history.Unknown, 12, 13),
		op("s1", history.OK, 11, 12),
	})
	if again != 5 || under != 7 {
		t.Errorf("%d, %d", again, under)
	}
}

func TestFaultNames(t *testing.T) {
	if findFault("kill-leader") == nil || findFault("earthquake") != nil || !strings.Contains(faultNames(), "one-way") {
		t.Error(faultNames())
	}
}
