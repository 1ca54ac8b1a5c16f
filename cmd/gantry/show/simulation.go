package show

import (
	"fmt"
	"strconv"
)

// SimulationRow is what came of a simulation with one policy. Shares are in percent of the cluster.
type SimulationRow struct {
	Policy                  string
	GPU                     float64
	GPUs                    int // of the cluster; 0 leaves out the columns about them
	CPU, Memory, Fragmented float64
	Asked, Placed           int
	Waited, Waiting         int
	Waits                   bool // pods wait when they fit nowhere
}

// Simulation writes one line per policy.
func (p *Printer) Simulation(rows []SimulationRow) {
	t := table{
		header: []string{"POLICY", "GPU", "FREE GPUS", "CPU", "MEMORY", "FRAGMENTED", "ASKED", "PLACED", "WAITED", "STILL WAIT"},
		right:  columns(1, 2, 3, 4, 5, 6, 7, 8, 9), rigid: columns(0, 1), spare: columns(5, 6),
	}
	for _, r := range rows {
		gpu, free, waited, waiting := "", "", "", ""
		if r.GPUs > 0 {
			gpu, free = percent(r.GPU), fmt.Sprintf("%.1f", float64(r.GPUs)*(1-r.GPU/100))
		}
		if r.Waits {
			waited, waiting = strconv.Itoa(r.Waited), strconv.Itoa(r.Waiting)
		}
		t.add(r.Policy, gpu, free, percent(r.CPU), percent(r.Memory), percent(r.Fragmented), strconv.Itoa(r.Asked), strconv.Itoa(r.Placed), waited, waiting)
	}
	p.table(&t)
}

func percent(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) + "%" }
