package replay

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/gantry-os/gantry/scheduler/policy"
)

// Cluster is what a run places on.
type Cluster struct {
	nodes []policy.Node
	total sums
	byGPU bool // demand is counted in devices
}

// Load reads the files of a cluster and its workload; those whose names end in .gz are unpacked.
func Load(nodesFile, podsFile string) (*Cluster, []Pod, error) {
	var m Models
	var nodes []policy.Node
	var pods []Pod
	err := readFile(nodesFile, func(r io.Reader) (err error) {
		nodes, err = ReadNodes(nodesFile, r, &m)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	err = readFile(podsFile, func(r io.Reader) (err error) {
		pods, err = ReadPods(podsFile, r, &m)
		return err
	})
	return NewCluster(nodes, pods), pods, err
}

func readFile(name string, read func(io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if !strings.HasSuffix(name, ".gz") {
		return read(f)
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	return read(z)
}

// NewCluster returns a cluster for a workload. Demand is counted in devices when both have to do with them.
func NewCluster(nodes []policy.Node, pods []Pod) *Cluster {
	c := &Cluster{nodes: nodes}
	for i := range nodes {
		n := &nodes[i]
		c.total.cpu += n.Total.CPU
		c.total.memory += n.Total.Memory
		c.total.gpu += int64(len(n.GPUs)) * policy.Whole
	}
	c.byGPU = c.total.gpu > 0 && slices.ContainsFunc(pods, func(p Pod) bool { return p.Ask.GPU > 0 })
	return c
}

// Nodes returns the nodes. They are not to be changed.
func (c *Cluster) Nodes() []policy.Node { return c.nodes }

// GPUs returns how many devices there are.
func (c *Cluster) GPUs() int { return int(c.total.gpu / policy.Whole) }

// ByGPU reports whether demand is counted in devices; else it is in CPU or memory, whichever is scarcer.
func (c *Cluster) ByGPU() bool { return c.byGPU }

// WithoutGPUs returns a cluster and a workload as if there were no devices.
func (c *Cluster) WithoutGPUs(pods []Pod) (*Cluster, []Pod) {
	nodes, pods := slices.Clone(c.nodes), slices.Clone(pods)
	for i := range nodes {
		nodes[i].GPUs, nodes[i].Models = nil, nil
	}
	for i := range pods {
		pods[i].Ask.GPU, pods[i].Ask.Models = 0, 0
	}
	return NewCluster(nodes, pods), pods
}

// check refuses what no run comes to an end with.
func (c *Cluster) check(pods []Pod) error {
	var asked sums
	for i := range pods {
		asked.add(&pods[i].Ask, 1)
	}
	switch {
	case len(pods) == 0:
		return errors.New("the workload has no pods")
	case c.total.cpu == 0 || c.total.memory == 0:
		return errors.New("the nodes have no CPU or no memory")
	case c.share(&asked) == 0:
		return errors.New("the pods ask for nothing")
	}
	return nil
}

// share returns what s is of the cluster.
func (c *Cluster) share(s *sums) float64 {
	if c.byGPU {
		return part(s.gpu, c.total.gpu)
	}
	return max(part(s.cpu, c.total.cpu), part(s.memory, c.total.memory))
}

// sums are amounts of many.
type sums struct{ cpu, memory, gpu int64 }

func (s *sums) add(a *policy.Ask, sign int64) {
	s.cpu += sign * a.CPU
	s.memory += sign * a.Memory
	s.gpu += sign * int64(a.GPU)
}

func part(some, all int64) float64 {
	if all == 0 {
		return 0
	}
	return float64(some) / float64(all)
}
