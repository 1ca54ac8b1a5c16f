// Package containerd runs tasks from OCI images, through a containerd of Gantry's own.
//
// An Engine keeps that containerd running: a child process of gantry, with root, state and sockets that no other
// containerd shares. The Driver speaks to it. Containers are held by shims, small processes that belong to neither: when
// gantry, containerd or both are killed, programs run on, write their logs and leave their exit codes to be found.
//
// One task is one container, one snapshot and one shim task, all named by the task's id. The container's labels hold
// what the driver must remember about it. Shims of the containers of one instance are one process.
//
// Read next: driver.go for the life of a task, engine.go for the child, spec.go for what a container sees.
package containerd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/opencontainers/go-digest"

	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/cgroup"
)

// namespace separates Gantry's objects within its containerd. There is only one, since the containerd is Gantry's own.
const namespace = "gantry"

// Config says where a driver keeps its things. It does not change after New.
type Config struct {
	// Dir is the engine's part of the data directory: images, snapshots, state. Required, absolute. It must be on a file
	// system that overlayfs can use; elsewhere layers are copied.
	Dir string
	// Bin is the directory of Gantry's helpers: runc, gantry-oci-shim, gantry-log. Required, absolute.
	Bin string
	// Cluster is part of the cgroup paths of tasks, /gantry/CLUSTER/TASK. Two drivers on one machine need different ones.
	// Required.
	Cluster string
	// Command starts containerd, followed by --config FILE. Default: this program with the argument "containerd".
	Command []string
	// Env is added to the environment of Command.
	Env []string
	// PlainHTTP lists registries, as host or host:port, that are spoken to without TLS. Loopback addresses always are.
	PlainHTTP []string
	// BootID names this boot of the machine. Default: the kernel's.
	BootID string
	// Log takes what happens to the engine. Default: slog.Default().
	Log *slog.Logger
}

// New returns a driver and checks that this node can run containers. Nothing runs before Run is called.
func New(c Config) (*Driver, error) {
	if !filepath.IsAbs(c.Dir) || !filepath.IsAbs(c.Bin) || c.Cluster == "" {
		return nil, fmt.Errorf("set up containerd: directory %q and helpers %q must be absolute, cluster %q not empty", c.Dir, c.Bin, c.Cluster)
	}
	if err := c.fill(); err != nil {
		return nil, fmt.Errorf("set up containerd: %w", err)
	}
	tools, err := findTools(c.Bin)
	if err != nil {
		return nil, fmt.Errorf("set up containerd: %w", err)
	}
	groups, err := cgroup.Find()
	if err != nil {
		return nil, fmt.Errorf("set up containerd: %w", err)
	}
	d := &Driver{
		config:      c,
		tools:       tools,
		groups:      groups,
		snapshotter: snapshotter(c.Dir),
		engine:      newEngine(c, tools),
		pulls:       map[string]*pull{},
		busy:        map[runtime.TaskID]operation{},
		images:      map[digest.Digest]*image{},
		wait:        unavailableAfter,
	}
	return d, nil
}

// unavailableAfter is how long methods wait for an engine that is down before they say so.
const unavailableAfter = 20 * time.Second

func (c *Config) fill() error {
	if len(c.Command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		c.Command = []string{self, "containerd"}
	}
	if c.BootID == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return err
		}
		c.BootID = strings.TrimSpace(string(id))
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// runDir returns where sockets go. Their paths must be short, which a data directory's need not be.
func (c *Config) runDir() string {
	sum := sha256.Sum256([]byte(filepath.Clean(c.Dir)))
	return filepath.Join("/run/gantry", hex.EncodeToString(sum[:6]))
}

// snapshotter returns overlayfs, or native where the file system of dir does not carry it.
func snapshotter(dir string) string {
	if err := overlayutils.Supported(filepath.Join(dir, "root")); err != nil {
		return "native"
	}
	return "overlayfs"
}
