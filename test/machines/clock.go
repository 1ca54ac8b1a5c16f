package machines

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// There is one wall clock for all namespaces. A process asks for it through a function that the kernel maps into it (vDSO),
// and each process has a copy of its own once it is written to. So before a process runs, that function is replaced by one
// that asks the kernel and adds an offset which is stored behind it, where it can be changed at any time. What the process
// starts has the clock of all again.

const canSetClocks = runtime.GOARCH == "amd64"

// fakeClock is clock_gettime(clock in edi, result in rsi) for amd64.
var fakeClock = []byte{
	0xb8, 0xe4, 0, 0, 0, // mov eax, 228 (clock_gettime)
	0x0f, 0x05, // syscall
	0x85, 0xff, // test edi, edi (CLOCK_REALTIME)
	0x75, 0x0a, // jne to the last instruction
	0x48, 0x8b, 0x0d, 14, 0, 0, 0, // mov rcx, [rip+14]
	0x48, 0x01, 0x0e, // add [rsi], rcx (seconds)
	0xc3,                         // ret
	0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // up to where the offset is
}

const offsetAt = 32 // from the function's start, which is aligned to 16

// takeClock replaces the clock of a process that this thread traces and that has stopped at its start, and lets it run. It
// returns where the offset is.
func takeClock(proc *os.Root, pid int, ahead time.Duration) (int64, error) {
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil || !status.Stopped() {
		return 0, fmt.Errorf("wait for process %d to stop: %v: %w", pid, status, err)
	}
	at, err := findClock(proc, pid)
	if err != nil {
		return 0, err
	}
	code := append(bytes.Clone(fakeClock), binary.LittleEndian.AppendUint64(nil, uint64(ahead/time.Second))...)
	if err := poke(proc, pid, at, code); err != nil {
		return 0, err
	}
	return at + offsetAt, unix.PtraceDetach(pid)
}

// findClock returns the address of the clock function of a process.
func findClock(proc *os.Root, pid int) (int64, error) {
	maps, err := proc.ReadFile(fmt.Sprint(pid, "/maps"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		if !strings.Contains(line, "[vdso]") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			return 0, err
		}
		image := make([]byte, to-from)
		if err := peek(proc, pid, from, image); err != nil {
			return 0, err
		}
		at, err := clockIn(image)
		return from + at, err
	}
	return 0, errors.New("the process has no vDSO")
}

// clockIn returns where in the kernel's functions the clock is.
func clockIn(image []byte) (int64, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, fmt.Errorf("read the vDSO: %w", err)
	}
	syms, err := f.DynamicSymbols()
	if err != nil {
		return 0, fmt.Errorf("read the vDSO: %w", err)
	}
	for _, s := range syms {
		if s.Name == "__vdso_clock_gettime" {
			if s.Size < offsetAt+8 || s.Value%8 != 0 {
				return 0, fmt.Errorf("the kernel's clock function has %d bytes at %#x: another cannot take its place", s.Size, s.Value)
			}
			return int64(s.Value), nil
		}
	}
	return 0, errors.New("the kernel gives no clock function")
}

func peek(proc *os.Root, pid int, at int64, b []byte) error {
	f, err := proc.Open(fmt.Sprint(pid, "/mem"))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(b, at)
	return err
}

func poke(proc *os.Root, pid int, at int64, b []byte) error {
	f, err := proc.OpenFile(fmt.Sprint(pid, "/mem"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(b, at)
	return err
}

// SetClock makes the machine's wall clock differ from the true one by whole seconds, for all processes that Start has
// started or will start there.
func (m *Machine) SetClock(ahead time.Duration) error {
	if !canSetClocks {
		return fmt.Errorf("clocks cannot be set on %s", runtime.GOARCH)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock = ahead
	var errs []error
	for p := range m.procs {
		select {
		case <-p.over:
			delete(m.procs, p)
			continue
		default:
		}
		if err := poke(m.lab.proc, p.PID, p.clock, binary.LittleEndian.AppendUint64(nil, uint64(ahead/time.Second))); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("set the clock of process %d on %s: %w", p.PID, m.Name, err))
		}
	}
	return errors.Join(errs...)
}
