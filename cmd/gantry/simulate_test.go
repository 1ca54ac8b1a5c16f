package main

import (
	"encoding/json"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	simulatedNodes = "cpu_milli,memory_mib,gpu,model\n16000,65536,2,T4\n16000,65536,2,T4\n32000,65536,0,\n"
	simulatedPods  = "cpu_milli,memory_mib,num_gpu,gpu_milli,creation_time,deletion_time\n" +
		"4000,8192,1,1000,0,100\n4000,8192,1,500,10,100\n4000,8192,1,500,20,100\n8000,8192,2,1000,30,100\n2000,4096,0,0,40,100\n8000,8192,2,1000,50,120\n"
)

func TestSimulate(t *testing.T) {
	nodes, pods := write(t, "nodes.csv", simulatedNodes), write(t, "pods.csv", simulatedPods)
	simulate := func(more ...string) result {
		return gantry(t, nil, "", append([]string{"simulate", "--nodes", nodes, "--workload", pods}, more...)...)
	}
	// Of four devices 1, 1.5, 2, 4 and 4 are used for 10 s each.
	simulate("--policy", "bestfit").want(t, 0, ""+
		"POLICY      GPU  FREE GPUS     CPU  MEMORY  FRAGMENTED  ASKED  PLACED  WAITED  STILL WAIT\n"+
		"bestfit  62.66%        1.5  20.68%  12.11%       3.49%      6       5       1           1\n")

	picture := filepath.Join(t.TempDir(), "used.svg")
	r := simulate("--method", "overload", "--policy", "spread,bestfit", "--policy", "random", "--seed", "7", "--out", picture)
	if r.code != 0 || strings.Count(r.out, "\n") != 6 || strings.Contains(r.out, "WAITED") || !strings.Contains(r.out, "The picture is in "+picture) {
		t.Errorf("got %+v", r)
	}
	b, err := os.ReadFile(picture)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"spread", "bestfit", "random", "Allocated GPU", "Fragmented GPU", "3 nodes with 4 GPUs", "seed 7", "demand, in % of capacity"} {
		if !strings.Contains(string(b), text) {
			t.Errorf("the picture lacks %q", text)
		}
	}
	for d := xml.NewDecoder(strings.NewReader(string(b))); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSimulateJSON(t *testing.T) {
	nodes, pods := write(t, "nodes.csv", simulatedNodes), write(t, "pods.csv", simulatedPods)
	r := gantry(t, nil, "", "simulate", "--nodes", nodes, "--workload", pods, "--json", "--policy", "balanced", "--method", "overload")
	var got simulated
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.code != 0 {
		t.Fatalf("%v, %+v", err, r)
	}
	if got.Nodes != 3 || got.GPUs != 4 || got.Pods != 6 || got.Method != "overload" || len(got.Runs) != 1 || got.Runs[0].Policy != "balanced" ||
		got.Runs[0].Summary != got.Runs[0].Last() || got.Runs[0].Placed == 0 || got.Runs[0].Asked < got.Runs[0].Placed {
		t.Errorf("got %+v", got)
	}
}

func TestSimulateRefuses(t *testing.T) {
	nodes, pods := write(t, "nodes.csv", simulatedNodes), write(t, "pods.csv", simulatedPods)
	bad, untimed := write(t, "bad.csv", "cpu_milli,memory_mib\n1,lots\n"), write(t, "untimed.csv", "cpu_milli,memory_mib\n1,1\n")
	for _, c := range []struct {
		args string
		code int
		errs []string
	}{
		{"", 2, []string{"--nodes nodes.csv --workload pods.csv", "gantry simulate --help"}},
		{"--nodes " + nodes, 2, []string{"--workload"}},
		{"--nodes " + nodes + " --workload " + pods + " --policy best", 2, []string{`no policy "best"`, "pack, spread"}},
		{"--nodes " + nodes + " --workload " + pods + " --method all", 2, []string{`no method "all"`}},
		{"--nodes " + nodes + " --workload " + pods + " --out a.png", 2, []string{"SVG", "a.png.svg"}},
		{"--nodes " + nodes + " --workload " + pods + " more", 2, []string{`"more" is too much`}},
		{"--nodes /nowhere.csv --workload " + pods, 1, []string{"/nowhere.csv", "no such file"}},
		{"--nodes " + nodes + " --workload " + bad, 4, []string{bad + ":2: column memory_mib", "gantry simulate --help"}},
		{"--nodes " + nodes + " --workload " + untimed, 4, []string{"creation_time", "overload"}},
		{"--nodes " + nodes + " --workload " + pods + " --out /nowhere/a.svg", 1, []string{"draw the picture"}},
	} {
		gantry(t, nil, "", append([]string{"simulate"}, strings.Fields(c.args)...)...).want(t, c.code, "", c.errs...)
	}
}

// On a terminal a bar shows how far it is, and is gone at the end.
func TestSimulateOnTerminal(t *testing.T) {
	nodes, pods := write(t, "nodes.csv", simulatedNodes), write(t, "pods.csv", simulatedPods)
	t.Setenv("TERM", "xterm")
	code, out := onTerminal(t, newFake(t), "simulate", "--nodes", nodes, "--workload", pods, "--policy", "pack,spread")
	if code != 0 || !strings.Contains(out, "███") || !strings.Contains(out, "100%  spread") {
		t.Errorf("code %d, %q", code, out)
	}
	if last := out[strings.LastIndex(out, clearLine):]; strings.Contains(last, "█") || !strings.Contains(last, "POLICY") {
		t.Errorf("the bar stays: %q", last)
	}
}

func TestSimulateCompletes(t *testing.T) {
	if r := gantry(t, nil, "", "__complete", "simulate", "--policy", "b"); !strings.Contains(r.out, "balanced") || !strings.Contains(r.out, "bestfit") {
		t.Errorf("got %+v", r)
	}
}
