package machines

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Machine is one machine. Off, it has its disk only.
type Machine struct {
	Name string
	Addr net.IP // IPv4

	lab    *Lab
	number int

	mu    sync.Mutex
	init  *exec.Cmd // nil while it is off
	procs map[*Process]bool
	clock time.Duration // how far it is ahead
}

const cardName = "eth0"

// Boot starts the machine.
func (m *Machine) Boot() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init != nil {
		return fmt.Errorf("%s is on", m.Name)
	}
	boot := filepath.Join(m.lab.dir, m.Name+".boot")
	if err := os.WriteFile(boot, []byte(newUUID()+"\n"), 0o444); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", initArg, m.Name, m.Addr.String()+"/24", boot)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	if err := m.connect(cmd.Process.Pid, in, out); err != nil {
		return errors.Join(fmt.Errorf("boot %s: %w", m.Name, err), cmd.Process.Kill(), cmd.Wait())
	}
	m.init, m.procs = cmd, map[*Process]bool{}
	return m.fence()
}

// connect gives the machine its end of a cable, and waits until it has taken it.
func (m *Machine) connect(pid int, in io.WriteCloser, out io.Reader) error {
	cable := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: cardName, PeerNamespace: netlink.NsPid(pid)}
	cable.Name = fmt.Sprint("m", m.number)
	cable.MasterIndex = m.lab.bridge.Index
	if old, err := netlink.LinkByName(cable.Name); err == nil { // of the last boot, whose end the kernel has not cleared away yet
		if err := netlink.LinkDel(old); err != nil {
			return fmt.Errorf("take away the old cable: %w", err)
		}
	}
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("connect it: %w", err)
	}
	if err := netlink.LinkSetUp(cable); err != nil {
		return err
	}
	if _, err := io.WriteString(in, "connected\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "up\n" {
		return fmt.Errorf("it said %q: %w", line, err)
	}
	return nil
}

// Off takes the machine's power away: all of its processes are gone at once.
func (m *Machine) Off() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init == nil {
		return nil
	}
	err := m.init.Process.Kill()
	if _, werr := m.init.Process.Wait(); werr != nil { // returns when the last process in there is over
		err = errors.Join(err, werr)
	}
	for p := range m.procs {
		<-p.over
	}
	m.init = nil
	return err
}

// On reports whether the machine runs.
func (m *Machine) On() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.init != nil
}

// Mounts returns where something is mounted below a directory, as the machine sees it.
func (m *Machine) Mounts(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init == nil {
		return nil, nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", m.init.Process.Pid))
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			out = append(out, f[1])
		}
	}
	return out, nil
}

// Processes returns the processes that run on the machine but for its first, with their ids as this process sees them.
func (m *Machine) Processes() ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init == nil {
		return nil, nil
	}
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", m.init.Process.Pid)) // those that make namespaces of their own keep this one
	if err != nil {
		return nil, err
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, dir := range all {
		pid := filepath.Base(dir)
		ns, err := os.Readlink(dir + "/ns/net")
		if err != nil || ns != own || pid == fmt.Sprint(m.init.Process.Pid) {
			continue // it has ended, or is not one of them
		}
		if line, err := os.ReadFile(dir + "/cmdline"); err == nil {
			out = append(out, pid+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return out, nil
}

// within runs f on a thread that is in the machine.
func (m *Machine) within(f func() error) error {
	if m.init == nil {
		return fmt.Errorf("%s is off", m.Name)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends here, as it cannot come back
		done <- func() error {
			if err := enter(m.init.Process.Pid); err != nil {
				return fmt.Errorf("enter %s: %w", m.Name, err)
			}
			return f()
		}()
	}()
	return <-done
}

// enter moves the calling thread, and what it starts, into the namespaces of a process.
func enter(pid int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // a mount namespace wants a thread that shares no directory
		return err
	}
	kinds := []string{"net", "uts", "ipc", "pid", "mnt"} // mnt last: /proc is another one after it
	for _, kind := range kinds {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		if err != nil {
			return err
		}
		err = unix.Setns(int(f.Fd()), 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s namespace: %w", kind, err)
		}
	}
	return nil
}

// beInit is the first process of a machine. It sets the machine up and then buries those without parents.
func beInit(args []string) error {
	if len(args) != 3 || os.Getpid() != 1 {
		return errors.New("started by hand")
	}
	host, addr, boot := args[0], args[1], args[2]
	if err := unix.Sethostname([]byte(host)); err != nil {
		return err
	}
	if err := ownMounts(boot); err != nil {
		return err
	}
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	if err := up("lo", ""); err != nil {
		return err
	}
	if err := up(cardName, addr); err != nil {
		return err
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	fmt.Println("up")
	for range died {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}

// ownMounts gives the machine what no two share: processes, runtime files, and the id of the boot.
func ownMounts(boot string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	if err := unix.Mount("run", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	return unix.Mount(boot, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, "")
}

func newUUID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
