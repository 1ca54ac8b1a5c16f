package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/gantry-os/gantry/agent"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/containerd"
	"github.com/gantry-os/gantry/runtime/process"
)

// HostOptions is what an operator can choose for the part of Gantry that runs instances on this machine.
type HostOptions struct {
	PlainHTTP  []string        // registries spoken to without TLS, beside those on loopback
	LogSize    model.Bytes     // size at which a log file of a container is rotated
	LogKeep    int             // rotated log files kept per stream
	NodeCPUs   model.CPU       // what instances may take of this node; 0 for what it has
	NodeMemory model.Bytes     // likewise
	Keep       model.Resources // what of this node's cores and memory is kept for the system; no memory for a tenth
	Node       model.Declaration
	DNS        DNSOptions
}

func (o *HostOptions) validate() error {
	if o.LogSize < 64*model.KiB {
		return fmt.Errorf("--log-size %v is less than 64KiB", o.LogSize)
	}
	if o.LogKeep < 1 || o.LogKeep > 1000 {
		return fmt.Errorf("--log-keep %d is outside 1 to 1000", o.LogKeep)
	}
	if o.NodeCPUs != 0 && o.Keep.CPUs != 0 {
		return errors.New("--reserve-cpus takes off what the machine has: it has no meaning with --node-cpus")
	}
	if o.NodeMemory != 0 && o.Keep.Memory != 0 {
		return errors.New("--reserve-memory takes off what the machine has: it has no meaning with --node-memory")
	}
	if errs := o.Node.Validate(); errs != nil {
		return fmt.Errorf("--%s: %s", errs[0].Path, errs[0].Message)
	}
	return o.DNS.validate()
}

// host is this machine as a node: its container engine and its agent.
type host struct {
	HostOptions
	dataDir, bin, cluster string
	addr                  string // at which its instances are reached
	logger                *slog.Logger
	later                 func(func() error) // registers what undoes a step

	able   model.Ability  // to run images
	images runtime.Driver // nil unless able
	agent  *agent.Agent
	node   model.Node

	endAgent func() // ends the agent's pumps and waits for that; instances run on
}

// openEngine starts the container engine, where there can be one. It does not wait for it: the driver's calls do.
func (h *host) openEngine() error {
	h.able = containerd.Available(h.bin)
	if !h.able.OK {
		return nil
	}
	driver, err := containerd.New(containerd.Config{
		Dir:       filepath.Join(h.dataDir, "containerd"),
		Bin:       h.bin,
		Cluster:   h.cluster,
		PlainHTTP: h.PlainHTTP,
		Log:       h.logger.With("part", "containerd"),
	})
	if err != nil {
		return err
	}
	h.images = driver
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- driver.Run(ctx) }()
	h.later(func() error {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	})
	return nil
}

// detect finds out what this node has.
func (h *host) detect() (err error) {
	if h.node, err = agent.Detect(filepath.Join(h.dataDir, "agent"), h.addr, h.Keep); err != nil {
		return fmt.Errorf("look at this node: %w", err)
	}
	return nil
}

// openAgent finds out what this node can do and starts its agent, which adopts what runs already.
func (h *host) openAgent() error {
	if err := h.detect(); err != nil {
		return err
	}
	node := &h.node
	node.Version, node.Release = Build(), model.ThisRelease
	node.Capacity.CPUs = cmp.Or(h.NodeCPUs, node.Capacity.CPUs)
	node.Capacity.Memory = cmp.Or(h.NodeMemory, node.Capacity.Memory)
	h.Node.Apply(node)
	node.Isolated = process.CanIsolate()
	node.OCI = h.able
	node.VM = model.Ability{Why: "it has no runtime for virtual machines"}
	programs, err := process.New(process.Config{
		Shim:     filepath.Join(h.bin, "gantry-shim"),
		StateDir: filepath.Join(h.dataDir, "process"),
		Cluster:  h.cluster,
		Isolate:  node.Isolated.OK,
		Logger:   h.logger.With("part", "process"),
	})
	if err != nil {
		return fmt.Errorf("open the runtime for programs: %w", err)
	}
	h.later(programs.Close)
	names, resolv := h.openDNS()
	h.agent, err = agent.New(agent.Config{
		Dir: filepath.Join(h.dataDir, "agent"), Node: *node,
		OCI: h.images, Process: programs,
		Logger: h.logger.With("part", "agent"), LogSize: h.LogSize, LogKeep: h.LogKeep,
		Routes: names != nil, Resolv: resolv,
	})
	if err != nil {
		return fmt.Errorf("open the agent: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.endAgent = func() { cancel(); h.agent.Wait() }
	h.later(func() error { h.endAgent(); return nil })
	if err := h.agent.Start(ctx); err != nil {
		return err
	}
	if names != nil {
		h.serveDNS(names)
	}
	return nil
}
