package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gantry-os/gantry/test/machines"
)

// member is a server or an agent on its machine, kept running the way a service manager does.
type member struct {
	*machines.Machine
	server bool
	first  []string // arguments of the first start only: how it joins
	args   []string
	out    *os.File
	wrong  func(format string, args ...any)

	mu     sync.Mutex
	bin    string
	want   bool              // it is to run
	proc   *machines.Process // nil while it does not
	sick   bool              // it may end by itself: its disk is full
	paused bool
	wake   chan struct{}
}

func (m *member) dataDir() string { return filepath.Join(m.Disk(), "data") }

// run keeps the process running while that is wanted, until ctx ends.
func (m *member) run(ctx context.Context) {
	for {
		m.mu.Lock()
		want, proc := m.want && m.On(), m.proc
		m.mu.Unlock()
		if want && proc == nil {
			if err := m.launch(); err != nil {
				m.wrong("%v", err)
				return
			}
			continue
		}
		var over <-chan struct{}
		if proc != nil {
			over = proc.Over()
		}
		select {
		case <-over:
			m.bury(proc)
		case <-m.wake:
			continue
		case <-ctx.Done():
			return
		}
		select { // as service managers wait before they start it again
		case <-time.After(500 * time.Millisecond):
		case <-m.wake:
		case <-ctx.Done():
			return
		}
	}
}

func (m *member) launch() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	role := "agent"
	if m.server {
		role = "server"
	}
	args := append([]string{role, "--data-dir", m.dataDir(), "--log-level", "info"}, m.args...)
	args = append(args, m.first...)
	cmd := exec.Command(filepath.Join(m.bin, "gantry"), args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "GOTRACEBACK=all"}
	cmd.Stdout, cmd.Stderr = m.out, m.out
	proc, err := m.Start(cmd)
	if err != nil && !m.On() {
		return nil // the power went just now
	}
	if err != nil {
		return err
	}
	m.proc, m.first = proc, nil
	return nil
}

// bury notes that the process has ended, and whether that was expected.
func (m *member) bury(proc *machines.Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc != proc {
		return
	}
	m.proc, m.paused = nil, false
	fmt.Fprintf(m.out, "--- ended: %s\n", proc.State())
	if m.want && !m.sick && m.On() {
		m.wrong("gantry on %s ended by itself: %s", m.Name, proc.State())
	}
}

func (m *member) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// end ends the process by a signal and waits for that; it stays down until up.
func (m *member) end(s syscall.Signal) error {
	m.mu.Lock()
	m.want = false
	proc := m.proc
	m.mu.Unlock()
	if proc == nil {
		return nil
	}
	if err := proc.Signal(s); err != nil {
		return err
	}
	select {
	case <-proc.Over():
	case <-time.After(30 * time.Second):
		proc.Signal(syscall.SIGQUIT) // its stacks go to its log
		time.Sleep(time.Second)
		proc.Signal(syscall.SIGKILL)
		<-proc.Over()
		return fmt.Errorf("gantry on %s did not end within 30s of %v: its log has the stacks", m.Name, s)
	}
	m.bury(proc)
	if state := proc.State(); s == syscall.SIGTERM && state != "exit status 0" {
		return fmt.Errorf("gantry on %s ended with %s when it was asked to", m.Name, state)
	}
	return nil
}

// up starts the process, or what was started for it before.
func (m *member) up() {
	m.mu.Lock()
	m.want = true
	m.mu.Unlock()
	m.poke()
}

// pause stops the process in the midst of things, or lets it go on.
func (m *member) pause(on bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc == nil || m.paused == on {
		return nil
	}
	m.paused = on
	if on {
		return m.proc.Signal(syscall.SIGSTOP)
	}
	return m.proc.Signal(syscall.SIGCONT)
}

// engine returns the process id of the container engine, 0 for none.
func (m *member) engine() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc == nil {
		return 0
	}
	return m.proc.Child("containerd")
}

// groups returns the control groups of the member's instances that exist.
func (m *member) groups() ([]string, error) {
	var out []string
	sum := sha256.Sum256([]byte(m.dataDir()))
	parent := "/gantry/" + hex.EncodeToString(sum[:4]) // as the daemon names it
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return filepath.SkipDir // groups come and go meanwhile
		}
		if d.IsDir() && strings.HasSuffix(filepath.Dir(path), parent) {
			out = append(out, path)
		}
		return nil
	})
	return out, err
}

func (m *member) setSick(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sick = on
}
