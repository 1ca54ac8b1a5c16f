// Package machines makes machines out of namespaces, so that a test has several on one: each with an address, a host name, a
// disk of its own, processes that see each other only, and a clock. They are joined by a bridge; connections between any
// two can be cut, one way or both; power can go; a disk can fill up; a clock can jump.
//
// All of it lives in the namespaces of one process (Enter), and ends with that: nothing is left behind but control groups,
// which know no such bounds. Needs root.
package machines

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// initArg is the first argument of the process that is a machine's first.
const initArg = "machine-init"

// Main is to be called before anything else in a program that uses this package: it runs what the package starts this
// very program for, and then does not return.
func Main() {
	if len(os.Args) > 1 && os.Args[1] == initArg {
		fmt.Fprintln(os.Stderr, "machine:", beInit(os.Args[2:]))
		os.Exit(1)
	}
}

// Enter runs this program again, with args, in namespaces of its own, and returns its exit code once everything in there
// has ended. Signals that end a program reach it.
func Enter(args []string, env ...string) (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("machines are made of namespaces, which needs root")
	}
	runtime.LockOSThread() // the child dies with the thread that started it
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Lab is all machines, and the network between them. Its methods, and those of its machines, may be called from many
// goroutines.
type Lab struct {
	dir    string
	bridge *netlink.Bridge
	proc   *os.Root // of the lab: machines have others

	mu       sync.Mutex
	machines []*Machine
	cuts     map[[2]*Machine]bool // from, to
}

// prefix is that of all addresses. The network is the lab's own.
const prefix = "10.77.0."

// New makes a network without machines. The process must have been started by Enter. Files are kept under dir.
func New(dir string) (*Lab, error) {
	if os.Getpid() != 1 {
		return nil, errors.New("this process is not in namespaces of its own: start it with Enter")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("take leave of the machine's mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return nil, fmt.Errorf("mount /proc: %w", err)
	}
	proc, err := os.OpenRoot("/proc")
	if err != nil {
		return nil, err
	}
	l := &Lab{dir: dir, proc: proc, cuts: map[[2]*Machine]bool{}, bridge: &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}}
	l.bridge.Name = "lab"
	if err := netlink.LinkAdd(l.bridge); err != nil {
		return nil, fmt.Errorf("make a bridge: %w", err)
	}
	if err := up("lo", ""); err != nil {
		return nil, err
	}
	return l, up(l.bridge.Name, prefix+"1/24")
}

// up gives an interface an address, "" for none, and brings it up.
func up(name, addr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if addr != "" {
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("give %s the address %s: %w", name, addr, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// Add makes a machine with a disk of so many bytes, and boots it.
func (l *Lab) Add(name string, disk int64) (*Machine, error) {
	l.mu.Lock()
	m := &Machine{Name: name, lab: l, Addr: net.ParseIP(fmt.Sprint(prefix, 10+len(l.machines))).To4(), number: len(l.machines)}
	l.machines = append(l.machines, m)
	l.mu.Unlock()
	if err := os.MkdirAll(m.Disk(), 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("disk", m.Disk(), "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", disk)); err != nil {
		return nil, fmt.Errorf("make a disk for %s: %w", name, err)
	}
	return m, m.Boot()
}

// Close ends all machines, and what was on their disks.
func (l *Lab) Close() error {
	var errs []error
	for _, m := range l.machines {
		errs = append(errs, m.Off(), unix.Unmount(m.Disk(), 0))
	}
	return errors.Join(errs...)
}

// Disk returns the directory that stays when the machine is off.
func (m *Machine) Disk() string { return filepath.Join(m.lab.dir, m.Name) }
