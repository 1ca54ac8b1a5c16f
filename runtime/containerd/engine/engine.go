// Package engine is the body of the containerd that gantry runs as a child: containerd's own server with only the
// plugins that the driver above it needs. It is a package of its own so that nothing but the child's command links it.
//
// CRI, NRI, transfer, image verification, tracing, metrics and every snapshotter but overlayfs and native are left out:
// they would cost memory and start-up time on every node and nothing here calls them.
package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/cmd/containerd/command"
	"golang.org/x/sys/unix"

	_ "github.com/containerd/containerd/api/types/runc/options"
	_ "github.com/containerd/containerd/v2/core/runtime/v2"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/gc"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/server/grpc"
	_ "github.com/containerd/containerd/v2/plugins/server/ttrpc"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/events"
	_ "github.com/containerd/containerd/v2/plugins/services/healthcheck"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/leases"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"
	_ "github.com/containerd/containerd/v2/plugins/services/version"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/native/plugin"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/overlay/plugin"
)

// Main runs containerd until it is told to end by SIGTERM. args are a file to hold locked meanwhile, and then containerd's
// command line after the program's name, such as --config FILE.
func Main(args []string) error {
	if len(args) == 0 {
		return errors.New("it is started by gantry up")
	}
	if err := lock(args[0]); err != nil {
		return err
	}
	return command.App().Run(context.Background(), append([]string{"containerd"}, args[1:]...))
}

// lock locks a file for the life of the process, which by that is found and of which by that there is only one. It must be the
// first thing done: gantry may have been killed right after it started this process.
func lock(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600) // never closed, which would unlock it
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	err = unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("another containerd holds %s", path)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return nil
}
