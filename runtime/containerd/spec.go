package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// groupAnnotation makes the containers with the same value share one shim.
const groupAnnotation = "io.containerd.runc.v2.group"

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// spec says what the container is: the image's configuration, the task's wishes, and the isolation that Docker gives by
// default, except that the network and host name are the node's.
func (d *Driver) spec(ctx context.Context, cli *client.Client, c *containers.Container, t runtime.Task, img *image) (*specs.Spec, error) {
	s, err := oci.GenerateSpec(ctx, cli, c)
	if err != nil {
		return nil, fmt.Errorf("make specification: %w", err)
	}
	if err := d.process(s.Process, t, img); err != nil {
		return nil, err
	}
	if err := setUser(ctx, cli, c, s, t, img); err != nil {
		return nil, err
	}
	if err := runtime.Give(t.Mounts, s.Process.User.UID, s.Process.User.GID); err != nil {
		return nil, err
	}
	instance, _, _ := strings.Cut(string(t.ID), ".")
	s.Annotations = map[string]string{groupAnnotation: fmt.Sprintf("%s.%d", instance, t.Attempt)}
	s.Mounts = append(baseMounts(s.Mounts, t.Memory), taskMounts(t)...)
	d.isolate(s, t)
	for _, path := range t.Devices {
		if err := oci.WithLinuxDevice(path, "rwm")(ctx, cli, c, s); err != nil {
			return nil, fmt.Errorf("give device %s: %w", path, err)
		}
	}
	return s, nil
}

// process sets what runs: program, environment and directory.
func (d *Driver) process(p *specs.Process, t runtime.Task, img *image) error {
	p.Args = arguments(t, img)
	if len(p.Args) == 0 || p.Args[0] == "" {
		return fmt.Errorf("%w: image %s has no program of its own; give a command", runtime.ErrInvalid, t.Image)
	}
	p.Env = environment(img.config.Env, t.Env)
	p.Cwd = firstOf(t.Dir, img.config.WorkingDir, runtime.SandboxPath)
	if !path.IsAbs(p.Cwd) {
		p.Cwd = path.Join(runtime.SandboxPath, p.Cwd)
	}
	p.NoNewPrivileges = false
	p.Rlimits = openFiles()
	return nil
}

// openFiles lets a program open as many files as servers commonly need, as far as Gantry itself may.
func openFiles() []specs.POSIXRlimit {
	const soft, hard = 1 << 16, 1 << 20
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		return nil
	}
	return []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: min(soft, own.Max), Hard: min(hard, own.Max)}}
}

func arguments(t runtime.Task, img *image) []string {
	switch {
	case len(t.Command) > 0:
		return t.Command
	case len(t.Args) > 0:
		return slices.Concat(img.config.Entrypoint, t.Args)
	}
	return slices.Concat(img.config.Entrypoint, img.config.Cmd)
}

// environment returns base with the variables of extra set, and with a PATH.
func environment(base []string, extra map[string]string) []string {
	var out []string
	hasPath := false
	for _, kv := range base {
		k, _, _ := strings.Cut(kv, "=")
		if _, ok := extra[k]; !ok {
			out = append(out, kv)
			hasPath = hasPath || k == "PATH"
		}
	}
	if _, ok := extra["PATH"]; !ok && !hasPath {
		out = append(out, defaultPath)
	}
	for _, k := range slices.Sorted(maps.Keys(extra)) {
		out = append(out, k+"="+extra[k])
	}
	return out
}

func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

// setUser looks the user up in the image's own /etc/passwd and /etc/group. Root needs no look.
func setUser(ctx context.Context, cli *client.Client, c *containers.Container, s *specs.Spec, t runtime.Task, img *image) error {
	user := firstOf(t.User, img.config.User)
	if slices.Contains([]string{"", "0", "root", "0:0", "root:root"}, user) {
		return nil
	}
	err := oci.WithUser(user)(ctx, cli, c, s)
	if err == nil && !strings.Contains(user, ":") {
		err = oci.WithAdditionalGIDs(user)(ctx, cli, c, s)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, oci.ErrNoUsersFound) || errors.Is(err, oci.ErrNoGroupsFound) || errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: image %s has no user or group %q", runtime.ErrInvalid, t.Image, user)
	case strings.Contains(err.Error(), "invalid USER value"):
		return fmt.Errorf("%w: %q is not a user: write user or user:group, by name or number", runtime.ErrInvalid, user)
	}
	return fmt.Errorf("look up user %q: %w", user, err)
}

// baseMounts returns what every container sees besides its image.
func baseMounts(defaults []specs.Mount, memory model.Bytes) []specs.Mount {
	var out []specs.Mount
	for _, m := range defaults {
		switch m.Destination {
		case "/run": // the image's own is not to be hidden
			continue
		case "/dev/shm": // counts against the memory limit, so that it may be large
			m.Options = []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", max(64*model.MiB, memory/2))}
		}
		out = append(out, m)
	}
	out = append(out, specs.Mount{
		Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
		Options: []string{"ro", "nosuid", "noexec", "nodev"},
	})
	for _, f := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if _, err := os.Stat(f); err == nil {
			out = append(out, bind(f, f, true))
		}
	}
	return out
}

// taskMounts returns the sandbox and the task's own mounts, those further up in the tree first.
func taskMounts(t runtime.Task) []specs.Mount {
	out := []specs.Mount{bind(t.Sandbox, runtime.SandboxPath, false)}
	for _, m := range t.Mounts {
		target := path.Clean(m.Target)
		if !path.IsAbs(target) {
			target = path.Join(runtime.SandboxPath, target)
		}
		out = append(out, bind(m.Source, target, m.ReadOnly))
	}
	slices.SortStableFunc(out, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return out
}

func bind(source, target string, readOnly bool) specs.Mount {
	mode := "rw"
	if readOnly {
		mode = "ro"
	}
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", mode}}
}

// isolate sets namespaces, limits and the filter of system calls.
func (d *Driver) isolate(s *specs.Spec, t runtime.Task) {
	l := s.Linux
	l.Namespaces = slices.DeleteFunc(l.Namespaces, func(n specs.LinuxNamespace) bool {
		return n.Type == specs.NetworkNamespace || n.Type == specs.UTSNamespace
	})
	if d.groups.Version() == 2 {
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	l.CgroupsPath = d.groups.Path(d.group(t.ID).Path())
	l.Resources.CPU = cpuShares(t.CPUs)
	l.Resources.Memory = d.memoryLimit(t.Memory)
	if d.tools.features().seccomp {
		l.Seccomp = seccomp.DefaultProfile(s)
	}
}

// cpuShares is a container's weight under contention. Its ceiling is set just before its program runs.
func cpuShares(c model.CPU) *specs.LinuxCPU {
	if c <= 0 {
		return nil
	}
	shares := uint64(min(max(int64(c)*1024/1000, 2), 262144))
	return &specs.LinuxCPU{Shares: &shares}
}

func (d *Driver) memoryLimit(m model.Bytes) *specs.LinuxMemory {
	if m <= 0 {
		return nil
	}
	limit := int64(m)
	out := &specs.LinuxMemory{Limit: &limit}
	if d.countsSwap() {
		out.Swap = &limit // memory and swap together, so none
	}
	return out
}

// countsSwap reports whether the kernel can limit swap. Version 1 may be built or booted without.
func (d *Driver) countsSwap() bool {
	if d.groups.Version() == 2 {
		return true
	}
	oom, _ := d.groups.Open("/").MemoryFiles()
	_, err := os.Stat(path.Join(path.Dir(oom), "memory.memsw.limit_in_bytes"))
	return err == nil
}
