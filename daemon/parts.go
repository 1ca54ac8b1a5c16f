package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	goruntime "runtime"
	"time"

	"github.com/gantry-os/gantry/agent"
	"github.com/gantry-os/gantry/api"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime/process"
)

// nodeAddr is where the instances of a node on its own are reached.
const nodeAddr = "127.0.0.1"

// openAgent finds out what this node can do and starts its agent, which adopts what runs already.
func (d *daemon) openAgent() error {
	node, err := agent.Detect(filepath.Join(d.DataDir, "agent"), nodeAddr, d.Keep)
	if err != nil {
		return fmt.Errorf("look at this node: %w", err)
	}
	node.Version = Version
	node.Capacity.CPUs = cmp.Or(d.NodeCPUs, node.Capacity.CPUs)
	node.Capacity.Memory = cmp.Or(d.NodeMemory, node.Capacity.Memory)
	d.Node.Apply(&node)
	node.Isolated = process.CanIsolate()
	node.OCI = d.engine.able
	node.VM = model.Ability{Why: "it has no runtime for virtual machines"}
	programs, err := process.New(process.Config{
		Shim:     filepath.Join(d.Bin, "gantry-shim"),
		StateDir: filepath.Join(d.DataDir, "process"),
		Cluster:  d.cluster(),
		Isolate:  node.Isolated.OK,
		Logger:   d.Logger.With("part", "process"),
	})
	if err != nil {
		return fmt.Errorf("open the runtime for programs: %w", err)
	}
	d.later(programs.Close)
	d.node = node
	d.agent, err = agent.New(agent.Config{
		Dir: filepath.Join(d.DataDir, "agent"), Node: node,
		OCI: d.engine.driver, Process: programs,
		Logger: d.Logger.With("part", "agent"), LogSize: d.LogSize, LogKeep: d.LogKeep,
	})
	if err != nil {
		return fmt.Errorf("open the agent: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.endAgent = func() { cancel(); d.agent.Wait() }
	d.later(func() error { d.endAgent(); return nil })
	return d.agent.Start(ctx)
}

// info describes this server to those who ask.
func (d *daemon) info() client.Info {
	return client.Info{Version: Version, Go: goruntime.Version(), Started: d.started, PID: os.Getpid(), DataDir: d.DataDir}
}

// serveHTTP serves until ctx ends, then lets requests under way finish for a moment.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	server := api.Server(h)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve the API: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		return errors.Join(err, server.Close(), <-ended)
	}
	<-ended
	return context.Cause(ctx)
}
