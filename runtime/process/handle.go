package process

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/runtime/lockfile"
)

// forwardSignal is the signal by which a shim is asked to pass on the signal that its value names: FORWARD in shim/common.h.
const forwardSignal = unix.Signal(34)

// handle is a process that cannot be mistaken for another: a pidfd in the poller of the Go runtime.
type handle struct {
	file *os.File
	conn syscall.RawConn
}

// newHandle takes over a pidfd.
func newHandle(pidfd int) (*handle, error) {
	if err := unix.SetNonblock(pidfd, true); err != nil { // which makes os.NewFile use the poller
		_ = unix.Close(pidfd)
		return nil, fmt.Errorf("set up pidfd: %w", err)
	}
	f := os.NewFile(uintptr(pidfd), "pidfd")
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("set up pidfd: %w", errors.Join(err, f.Close()))
	}
	return &handle{f, conn}, nil
}

// holder returns the process that holds the lock on a file, nil when none does.
func holder(path string) (*handle, error) {
	pid, pidfd, err := lockfile.Holder(path)
	if err != nil || pid == 0 {
		return nil, err
	}
	return newHandle(pidfd)
}

// wait blocks until the process has ended, and takes it off the process table if it is a child of this one.
func (h *handle) wait() error {
	err := h.conn.Read(func(fd uintptr) bool { return readable(fd) })
	if err != nil {
		return err
	}
	return h.conn.Control(func(fd uintptr) {
		// It fails for those that are not our children, or that were waited for by another handle.
		_ = unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOHANG, nil)
	})
}

// over reports whether the process has ended.
func (h *handle) over() (yes bool) {
	err := h.conn.Control(func(fd uintptr) { yes = readable(fd) })
	return yes || err != nil
}

func readable(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

// kill sends SIGKILL.
func (h *handle) kill() error { return h.send(unix.SIGKILL, nil) }

// siginfo is siginfo_t of a queued signal on 64-bit Linux.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	value                 int64
	_                     [96]byte
}

// queue sends a signal with a value.
func (h *handle) queue(s unix.Signal, value int) error {
	const queued = -1 // SI_QUEUE
	return h.send(s, &siginfo{
		signo: int32(s), code: queued, pid: int32(os.Getpid()), uid: uint32(os.Getuid()), value: int64(value),
	})
}

// send sends a signal; one to a process that has ended is ignored.
func (h *handle) send(s unix.Signal, info *siginfo) error {
	var err error
	cerr := h.conn.Control(func(fd uintptr) {
		err = unix.PidfdSendSignal(int(fd), s, (*unix.Siginfo)(unsafe.Pointer(info)), 0)
	})
	if cerr != nil || errors.Is(err, unix.ESRCH) { // a handle is closed when its process has ended
		return nil
	}
	return err
}

// pidfd calls f with the descriptor.
func (h *handle) pidfd(f func(fd uintptr) error) error {
	var err error
	return errors.Join(h.conn.Control(func(fd uintptr) { err = f(fd) }), err)
}

func (h *handle) close() { _ = h.file.Close() }
