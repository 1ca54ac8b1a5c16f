package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/gantry-os/gantry/cmd/gantry/chart"
	"github.com/gantry-os/gantry/cmd/gantry/show"
	"github.com/gantry-os/gantry/scheduler/replay"
	"github.com/spf13/cobra"
)

const aboutSimulate = `Replay the workload of a recorded cluster on its nodes, or on others, and show how well they would be used. Nothing is
started, and no cluster is needed.

Both files are CSV with a header, also packed as .gz. Nodes: cpu_milli and memory_mib, and for devices gpu (how many) and
model. Workload: cpu_milli and memory_mib; for devices num_gpu, gpu_milli (of one device) and gpu_spec (models, joined
by |); creation_time and deletion_time in seconds. Other columns are skipped.

Methods:
  arrivals  pods come and end as recorded; those that fit nowhere wait. The table shows means over time.
  overload  pods come in random order and none ends, until 30% more is asked for than there is. The table shows the end.`

// simulation is what one command line asks for.
type simulation struct {
	nodes, workload string
	policies        []string
	method          string
	seed            uint64
	out             string
}

// simulated is what is printed with --json.
type simulated struct {
	Nodes  int            `json:"nodes"`
	GPUs   int            `json:"gpus"`
	Pods   int            `json:"pods"`
	Method string         `json:"method"`
	Seed   uint64         `json:"seed"`
	Runs   []simulatedRun `json:"runs"`
	byGPU  bool
}

type simulatedRun struct {
	Policy  string       `json:"policy"`
	Summary replay.Point `json:"summary"`
	*replay.Result
}

// simulateCommand returns `gantry simulate`.
func (c *cli) simulateCommand() *cobra.Command {
	var s simulation
	cmd := &cobra.Command{
		Use:   "simulate --nodes FILE --workload FILE",
		Short: "Replay a recorded cluster to plan capacity", Long: aboutSimulate,
		Example: "  gantry simulate --nodes nodes.csv --workload pods.csv\n" +
			"  gantry simulate --nodes nodes.csv --workload pods.csv.gz --method overload --policy pack,spread --out used.svg",
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.simulate(cmd.Context(), &s) },
	}
	flags := cmd.Flags()
	flags.StringVar(&s.nodes, "nodes", "", "`file` with the nodes")
	flags.StringVar(&s.workload, "workload", "", "`file` with the pods")
	flags.StringSliceVar(&s.policies, "policy", []string{"pack"}, "how nodes are chosen; several are compared: "+strings.Join(replay.Policies(), ", "))
	flags.StringVar(&s.method, "method", replay.MethodArrivals, replay.MethodArrivals+" or "+replay.MethodOverload)
	flags.Uint64Var(&s.seed, "seed", 0, "`number` that decides what is random")
	flags.StringVar(&s.out, "out", "", "draw a picture into this `file`, which ends in .svg")
	completeWords(cmd, "policy", replay.Policies()...)
	completeWords(cmd, "method", replay.MethodArrivals, replay.MethodOverload)
	return cmd
}

// check refuses command lines that make no sense.
func (s *simulation) check() error {
	switch {
	case s.nodes == "" || s.workload == "":
		return errors.New("say what to replay: --nodes nodes.csv --workload pods.csv")
	case s.method != replay.MethodArrivals && s.method != replay.MethodOverload:
		return fmt.Errorf("there is no method %q: choose %s or %s", s.method, replay.MethodArrivals, replay.MethodOverload)
	case s.out != "" && !strings.HasSuffix(s.out, ".svg"):
		return fmt.Errorf("the picture is in SVG: write --out %s.svg", s.out)
	case len(s.policies) == 0:
		return fmt.Errorf("say which policy: %s", strings.Join(replay.Policies(), ", "))
	}
	for _, name := range s.policies {
		if !slices.Contains(replay.Policies(), name) {
			return fmt.Errorf("there is no policy %q: choose from %s", name, strings.Join(replay.Policies(), ", "))
		}
	}
	return nil
}

func (c *cli) simulate(ctx context.Context, s *simulation) error {
	if err := s.check(); err != nil {
		return usageError{err}
	}
	cluster, pods, err := replay.Load(s.nodes, s.workload)
	if err != nil {
		return badList(err)
	}
	result := simulated{Nodes: len(cluster.Nodes()), GPUs: cluster.GPUs(), Pods: len(pods), Method: s.method, Seed: s.seed, byGPU: cluster.ByGPU()}
	bar := c.bar()
	for i, name := range s.policies {
		progress := func(done float64) { bar.show(name, (float64(i)+done)/float64(len(s.policies))) }
		r, err := replay.Simulate(ctx, name, cluster, pods, replay.Options{Method: s.method, Seed: s.seed, Progress: progress})
		if err != nil {
			bar.close()
			return badList(err)
		}
		run := simulatedRun{Policy: name, Summary: r.Last(), Result: r}
		if s.method == replay.MethodArrivals {
			run.Summary = r.Mean()
		}
		result.Runs = append(result.Runs, run)
	}
	bar.close()
	if s.out != "" {
		if err := os.WriteFile(s.out, result.picture().SVG(), 0o644); err != nil {
			return fmt.Errorf("draw the picture: %w", err)
		}
	}
	return c.print(&result, func(p *show.Printer) {
		p.Simulation(result.rows())
		if s.out != "" {
			fmt.Fprintf(p.W, "\nThe picture is in %s.\n", s.out)
		}
	})
}

// badList gives an error that lies in what a file says its exit code.
func badList(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) || errors.Is(err, context.Canceled) {
		return err
	}
	return &exitError{exitRefused, err, "gantry simulate --help says how the files look"}
}

func (s *simulated) rows() []show.SimulationRow {
	var rows []show.SimulationRow
	for _, r := range s.Runs {
		row := show.SimulationRow{
			Policy: r.Policy, CPU: r.Summary.CPU, Memory: r.Summary.Memory, Fragmented: r.Summary.Fragmented,
			Asked: r.Asked, Placed: r.Placed, Waited: r.Waited, Waiting: r.Waiting, Waits: s.Method == replay.MethodArrivals,
		}
		if s.byGPU {
			row.GPU, row.GPUs = r.Summary.GPU, s.GPUs
		}
		rows = append(rows, row)
	}
	return rows
}

// picture draws what is allocated and what is fragmented, a line per policy.
func (s *simulated) picture() *chart.Picture {
	what, value := "CPU", func(p replay.Point) float64 { return p.CPU }
	subtitle := fmt.Sprintf("%d nodes, %d pods in the list, method %s, seed %d", s.Nodes, s.Pods, s.Method, s.Seed)
	if s.byGPU {
		what, value = "GPU", func(p replay.Point) float64 { return p.GPU }
		subtitle = fmt.Sprintf("%d nodes with %d GPUs, %d pods in the list, method %s, seed %d", s.Nodes, s.GPUs, s.Pods, s.Method, s.Seed)
	}
	x, unit := s.axis()
	allocated := chart.Panel{Title: "Allocated " + what, Y: "% of capacity", Unit: " %"}
	fragmented := chart.Panel{Title: "Fragmented " + what + ": free, and too little for the average pod", Y: "% of capacity", Unit: " %"}
	for _, r := range s.Runs {
		a, f := chart.Line{Name: r.Policy, Note: value(r.Summary)}, chart.Line{Name: r.Policy, Note: r.Summary.Fragmented}
		for _, p := range r.Points {
			if s.Method == replay.MethodOverload && p.At < shownDemand {
				continue
			}
			a.Points = append(a.Points, chart.Point{X: p.At / unit, Y: value(p)})
			f.Points = append(f.Points, chart.Point{X: p.At / unit, Y: p.Fragmented})
		}
		allocated.Lines, fragmented.Lines = append(allocated.Lines, a), append(fragmented.Lines, f)
	}
	if s.Method == replay.MethodOverload {
		allocated.Top = 100
		allocated.Lines = append(allocated.Lines, chart.Line{Name: "all that is asked for", Aid: true, Points: []chart.Point{{X: shownDemand, Y: shownDemand}, {X: 100, Y: 100}}})
	}
	return &chart.Picture{Title: "How well the cluster is used", Subtitle: subtitle, X: x, Panels: []chart.Panel{allocated, fragmented}}
}

// shownDemand is the demand, in percent of capacity, from which on an overloaded cluster is drawn: before, all fits.
const shownDemand = 50

// axis returns the name of the horizontal axis, and what its unit is in the unit of points.
func (s *simulated) axis() (name string, unit float64) {
	if s.Method == replay.MethodOverload {
		return "demand, in % of capacity", 1
	}
	long := 0.0
	for _, r := range s.Runs {
		long = max(long, r.Last().At)
	}
	switch span := time.Duration(long) * time.Second; {
	case span > 3*24*time.Hour:
		return "days since the first pod", (24 * time.Hour).Seconds()
	case span > 3*time.Hour:
		return "hours since the first pod", time.Hour.Seconds()
	}
	return "seconds since the first pod", 1
}

// bar shows how far a long computation is: a line that is redrawn on a terminal, nothing elsewhere.
type bar struct {
	w    io.Writer
	term terminal
	last string
}

func (c *cli) bar() *bar {
	if c.json || !c.term.is {
		return &bar{}
	}
	return &bar{w: c.out, term: c.term}
}

const barCells = 30

func (b *bar) show(what string, done float64) {
	if b.w == nil {
		return
	}
	full := int(min(max(done, 0), 1) * barCells)
	width, _ := b.term.size()
	line := fmt.Sprintf("%s%s %3d%%  %s", strings.Repeat("█", full), strings.Repeat("░", barCells-full), int(done*100), what)
	if line = ansi.Truncate(line, max(width-1, 1), "…"); line != b.last {
		fmt.Fprint(b.w, clearLine+line)
		b.last = line
	}
}

// close removes the line.
func (b *bar) close() {
	if b.w != nil {
		fmt.Fprint(b.w, clearLine)
	}
}
