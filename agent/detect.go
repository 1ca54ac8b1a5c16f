package agent

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/model"
)

// Detect returns what this machine is and has: id, name, capacity, ports, devices and attributes. dir is the agent's data
// directory, where the id is kept; addr is where instances are reached; keep is held back for the system. What the node can
// run and its version are left to the caller.
func Detect(dir, addr string, keep model.Resources) (model.Node, error) {
	id, err := nodeID(dir)
	if err != nil {
		return model.Node{}, err
	}
	name, err := os.Hostname()
	if err != nil {
		return model.Node{}, fmt.Errorf("read host name: %w", err)
	}
	capacity, err := detectCapacity(dir, keep)
	if err != nil {
		return model.Node{}, err
	}
	ephemeral, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		ephemeral = []byte("32768 60999") // the kernel's default
	}
	gpus := hostGPUs.found()
	capacity.GPUs = model.GPU(len(gpus)) * 1000
	return model.Node{
		ID: id, Name: name, Addr: addr, Capacity: capacity, Ports: portsBeside(string(ephemeral)), GPUs: gpus,
		Attributes: map[string]string{
			"os": goruntime.GOOS, "arch": goruntime.GOARCH, "kernel": kernelRelease(), "cgroup": cgroupVersion(), "hostname": name,
		},
	}, nil
}

// nodeID returns the id in dir, which is made on first use.
func nodeID(dir string) (model.NodeID, error) {
	name := filepath.Join(dir, "node-id")
	b, err := os.ReadFile(name)
	if id := strings.TrimSpace(string(b)); err == nil && id != "" {
		return model.NodeID(id), nil
	}
	if err != nil && !isNotExist(err) {
		return "", fmt.Errorf("read node id: %w", err)
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", fmt.Errorf("make agent directory: %w", err)
	}
	id := "node-" + strings.ToLower(rand.Text()[:10])
	if err := writeFile(name, []byte(id+"\n"), true); err != nil {
		return "", fmt.Errorf("write node id: %w", err)
	}
	return model.NodeID(id), nil
}

// detectCapacity returns what instances may take in all: the cores this process may use and memory, less what is kept for
// the system and Gantry, and what is free on the data directory's file system.
func detectCapacity(dir string, keep model.Resources) (model.Resources, error) {
	mem, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return model.Resources{}, fmt.Errorf("read memory size: %w", err)
	}
	total := memInfo(mem, "MemTotal")
	if total == 0 {
		return model.Resources{}, errors.New("read memory size: /proc/meminfo has no MemTotal")
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return model.Resources{}, fmt.Errorf("read disk size: %w", err)
	}
	cpus := model.CPU(goruntime.NumCPU()) * 1000
	switch {
	case keep.CPUs >= cpus:
		return model.Resources{}, fmt.Errorf("nothing is left for instances: %v of %v cores are kept for the system", keep.CPUs, cpus)
	case keep.Memory >= total:
		return model.Resources{}, fmt.Errorf("nothing is left for instances: %v of %v of memory are kept for the system", keep.Memory, total.Human())
	}
	return model.Resources{
		CPUs:   cpus - keep.CPUs,
		Memory: usableMemory(total, keep.Memory),
		Disk:   model.Bytes(st.Bavail * uint64(st.Bsize)),
	}, nil
}

// usableMemory holds back keep, or when that is 0 a tenth, or 256 MiB if that is more.
func usableMemory(total, keep model.Bytes) model.Bytes {
	usable := total - cmp.Or(keep, max(total/10, 256*model.MiB))
	return max(0, usable/model.MiB*model.MiB)
}

// portsBeside returns a range for assigned ports that the kernel does not take ports of outgoing connections from, given
// the text of ip_local_port_range: 20000 to 32767 where it can, else the wider side of the kernel's range.
func portsBeside(ephemeral string) model.PortRange {
	var low, high int
	if n, _ := fmt.Sscan(ephemeral, &low, &high); n != 2 || low < 1 || high > 65535 || low > high {
		low, high = 32768, 60999
	}
	const first, last, least = 20000, 32767, 1000
	switch {
	case high < first || low > last:
		return model.PortRange{First: first, Last: last}
	case low-first >= least:
		return model.PortRange{First: first, Last: uint16(low - 1)}
	case last-high >= least:
		return model.PortRange{First: uint16(high + 1), Last: last}
	case low-10000 >= least:
		return model.PortRange{First: 10000, Last: uint16(low - 1)}
	case 65535-high >= least:
		return model.PortRange{First: uint16(high + 1), Last: 65535}
	}
	return model.PortRange{First: first, Last: last} // the kernel takes nearly all: collisions show as failed starts
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// cgroupVersion returns v2 when the unified hierarchy is mounted, else v1.
func cgroupVersion() string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "v2"
	}
	return "v1"
}
