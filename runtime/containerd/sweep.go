package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// sweep removes what containerd, or gantry looking at the file system, was killed in the midst of and never asks for again:
// mounts by which they tried what the kernel can, bundles whose removal had begun, sockets of shims that are gone. No
// containerd may run meanwhile.
func (e *Engine) sweep() error {
	var errs []error
	for _, pattern := range []string{
		e.path("tmp/*"),
		e.path("root/*-check*"),
		e.path("root/io.containerd.snapshotter.v1.overlayfs/*-check*"),
		e.path("state/io.containerd.runtime.v2.task/*/.*"),
		e.path("root/io.containerd.runtime.v2.task/*/.*"),
	} {
		found, err := filepath.Glob(pattern)
		errs = append(errs, err)
		for _, dir := range found {
			errs = append(errs, removeMounted(dir))
		}
	}
	return errors.Join(append(errs, e.sweepSockets())...)
}

// removeMounted deletes a directory after unmounting what is mounted in it.
func removeMounted(dir string) error {
	if err := mount.UnmountRecursive(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return os.RemoveAll(dir)
}

// sweepSockets removes the sockets of shims that were killed.
func (e *Engine) sweepSockets() error {
	sockets, err := filepath.Glob(filepath.Join(e.run, "s", "*"))
	for _, s := range sockets {
		if listens(s) {
			continue
		}
		if rerr := os.Remove(s); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}
