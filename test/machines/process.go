package machines

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process on a machine, started by its Start.
type Process struct {
	PID     int // as this process sees it
	Started time.Time

	m     *Machine
	cmd   *exec.Cmd
	clock int64 // address of what is added to its clock, 0 when that is out of reach
	over  chan struct{}
	state string // how it ended
}

// Start starts cmd on the machine.
func (m *Machine) Start(cmd *exec.Cmd) (*Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := &Process{m: m, cmd: cmd, over: make(chan struct{})}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Ptrace = canSetClocks // it then stops before its first instruction
	err := m.within(func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		if !canSetClocks {
			return nil
		}
		var err error
		if p.clock, err = takeClock(m.lab.proc, cmd.Process.Pid, m.clock); err != nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", cmd.Path, m.Name, err)
	}
	p.PID, p.Started = cmd.Process.Pid, time.Now()
	m.procs[p] = true
	go func() {
		err := cmd.Wait()
		p.state = cmd.ProcessState.String()
		if cmd.ProcessState == nil {
			p.state = err.Error()
		}
		close(p.over)
	}()
	return p, nil
}

// Over is closed when the process has ended.
func (p *Process) Over() <-chan struct{} { return p.over }

// State says how a process ended.
func (p *Process) State() string {
	<-p.over
	return p.state
}

// Signal sends a signal. A process that has ended gets none.
func (p *Process) Signal(s syscall.Signal) error {
	select {
	case <-p.over:
		return nil
	default:
	}
	if err := p.cmd.Process.Signal(s); err != nil && err != os.ErrProcessDone {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// Child returns the process id of a child with a word in its command line, 0 for none.
func (p *Process) Child(word string) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.PID, p.PID))
	if err != nil {
		return 0
	}
	list := strings.Fields(string(b))
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID)) // children belong to the thread that started them
	for _, t := range tasks {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", p.PID, t.Name())); err == nil {
			list = append(list, strings.Fields(string(b))...)
		}
	}
	for _, c := range list {
		line, err := os.ReadFile("/proc/" + c + "/cmdline")
		var pid int
		if err == nil && strings.Contains(string(line), word) {
			if _, err := fmt.Sscan(c, &pid); err == nil {
				return pid
			}
		}
	}
	return 0
}

// Alive reports whether a process of this process's sight runs that started at a time, as StartOf returned it.
func Alive(pid int, start string) bool {
	now, err := StartOf(pid)
	return err == nil && now == start
}

// StartOf returns when a process started, in the kernel's words, and an error when there is none that runs.
func StartOf(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(string(b), ") ") // the name before may hold anything
	f := strings.Fields(rest)
	if !ok || len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return "", unix.ESRCH
	}
	return f[19], nil
}
