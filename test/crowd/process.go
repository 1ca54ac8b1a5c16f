package crowd

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

// tick is the unit of processor time in /proc, on every architecture that Go runs on.
const tick = time.Second / 100

// processorTime returns what a server's process has used since it started.
func (s *Server) processorTime() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(text, []byte(") ")) // after the name, which may hold anything
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is %q", s.cmd.Process.Pid, text)
	}
	sum := time.Duration(0)
	for _, f := range fields[11:13] { // in user mode, and in the kernel
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// memory returns a server's resident set in MiB, now and at its most.
func (s *Server) memory() (now, most float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range bytes.Lines(text) {
		for name, to := range map[string]*float64{"VmRSS:": &now, "VmHWM:": &most} {
			if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
				var kib float64
				if _, err := fmt.Sscan(string(rest), &kib); err != nil {
					return 0, 0, err
				}
				*to = kib / 1024
			}
		}
	}
	return now, most, nil
}

// ownTime is what this process has used.
func ownTime() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}
