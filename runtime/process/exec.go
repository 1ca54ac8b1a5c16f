package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/runtime"
)

// Exec implements runtime.Execer. A further gantry-shim enters the task's namespaces and cgroup, and ends the program when
// ctx or the task does, or when Gantry is killed.
func (d *Driver) Exec(ctx context.Context, id runtime.TaskID, e runtime.Exec) (int, error) {
	t, err := d.find(id)
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	if t.ended() {
		return 0, fmt.Errorf("exec in %s: the task has ended: %w", id, runtime.ErrNotFound)
	}
	c, err := d.further(id, e)
	if err != nil {
		return 0, err
	}
	x := &execution{c: c, e: e}
	err = t.shim.pidfd(func(fd uintptr) error {
		own, err := syscall.Dup(int(fd)) // since the handle's is closed when the task ends
		syscall.CloseOnExec(own)
		x.task = os.NewFile(uintptr(own), "task")
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("exec in %s: the task has ended: %w", id, runtime.ErrNotFound)
	}
	defer x.task.Close()
	code, err := x.run(ctx, d.cfg.Shim)
	if err != nil && !errors.Is(err, runtime.ErrInvalid) {
		err = fmt.Errorf("exec in %s: %w", id, err)
	}
	return code, err
}

// further returns the task's configuration with the changes of e.
func (d *Driver) further(id runtime.TaskID, e runtime.Exec) (*config, error) {
	if len(e.Command) == 0 || e.Command[0] == "" {
		return nil, fmt.Errorf("%w: no program is named", runtime.ErrInvalid)
	}
	for _, text := range append([]string{e.Dir}, e.Command...) {
		if strings.ContainsRune(text, 0) {
			return nil, fmt.Errorf("%w: the command has a NUL byte: %q", runtime.ErrInvalid, text)
		}
	}
	if err := checkEnv(e.Env); err != nil {
		return nil, err
	}
	c, err := readConfig(filepath.Join(d.dir(id), "config"))
	if err != nil {
		return nil, fmt.Errorf("exec in %s: read the task: %w", id, err)
	}
	c.args, c.tty, c.binds = e.Command, e.TTY, nil
	maps.Copy(c.env, e.Env)
	if e.TTY && c.env["TERM"] == "" {
		c.env["TERM"] = "xterm"
	}
	if e.Dir != "" {
		c.dir = e.Dir
	}
	return c, nil
}

// execution is one program beside a task.
type execution struct {
	c    *config
	e    runtime.Exec
	task *os.File // pidfd of the task's shim

	cmd     *exec.Cmd
	control *os.File // whose end tells the helper to end the program
	status  *os.File
	mine    []*os.File // ends that belong to the helper
	copies  sync.WaitGroup
}

// run starts the helper and waits for it.
func (x *execution) run(ctx context.Context, shim string) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	x.cmd = exec.Command(shim, "exec")
	x.cmd.Env = []string{}
	x.cmd.Dir = "/"
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	finish, err := x.connect()
	if err == nil {
		err = x.cmd.Start()
	}
	for _, f := range x.mine {
		_ = f.Close()
	}
	if err != nil {
		return 0, errors.Join(err, finish())
	}
	stop := context.AfterFunc(ctx, func() { _ = x.control.Close() })
	defer stop()
	words, serr := readStatus(context.WithoutCancel(ctx), x.status)
	werr := x.cmd.Wait()
	err = finish()
	switch exit := (*exec.ExitError)(nil); {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case serr != nil:
		return 0, serr
	case words[0] != "started" && x.over():
		return 0, fmt.Errorf("the task has ended: %w", runtime.ErrNotFound)
	case words[0] != "started":
		return 0, failure(words, x.c)
	case errors.As(werr, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode(), nil
	case werr != nil && !errors.Is(werr, exec.ErrWaitDelay):
		return 0, werr
	}
	return 0, err
}

// over reports whether the task has ended.
func (x *execution) over() bool { return readable(x.task.Fd()) }

// connect gives the helper its descriptors. The function it returns ends what runs beside it.
func (x *execution) connect() (finish func() error, err error) {
	nothing := func() error { return nil }
	var status, control, config, configW *os.File
	if x.status, status, err = os.Pipe(); err != nil {
		return nothing, err
	}
	x.mine = append(x.mine, status)
	if control, x.control, err = os.Pipe(); err != nil {
		return x.status.Close, err
	}
	x.mine = append(x.mine, control)
	if config, configW, err = os.Pipe(); err != nil {
		return func() error { return errors.Join(x.status.Close(), x.control.Close()) }, err
	}
	x.mine = append(x.mine, config)
	x.cmd.ExtraFiles = []*os.File{status, control, x.task, config}
	x.copies.Go(func() { // a large environment does not fit into a pipe
		_, _ = configW.Write(x.c.encode()) // fails if the helper ends early, which it reports
		_ = configW.Close()
	})
	streams := x.plain
	if x.e.TTY {
		streams = x.terminal
	}
	end, err := streams()
	return func() error {
		_ = x.status.Close()  // closed before, in the usual case
		_ = x.control.Close() // as well
		x.copies.Wait()
		return end()
	}, err
}

// drain is how long output may still flow after the program has ended, from descendants of it that have not.
const drain = 5 * time.Second

// plain connects pipes.
func (x *execution) plain() (end func() error, err error) {
	x.cmd.Stdout, x.cmd.Stderr = x.e.Stdout, x.e.Stderr
	x.cmd.WaitDelay = drain
	nothing := func() error { return nil }
	if x.e.Stdin == nil {
		return nothing, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nothing, err
	}
	x.cmd.Stdin = r
	x.mine = append(x.mine, r)
	// Nobody waits for this copy: a reader that the caller forgot to end must not keep Exec from returning. It ends with
	// the reader.
	go func() {
		_, _ = io.Copy(w, x.e.Stdin) // the program may not read to the end
		_ = w.Close()
	}()
	return nothing, nil
}

// terminal connects a pseudo terminal.
func (x *execution) terminal() (end func() error, err error) {
	master, slave, err := openTerminal()
	if err != nil {
		return func() error { return nil }, fmt.Errorf("open terminal: %w", err)
	}
	if x.c.who != nil {
		err = slave.Chown(int(x.c.who.uid), int(x.c.who.gid))
	}
	x.mine = append(x.mine, slave)
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = slave, slave, slave
	stop := make(chan struct{})
	x.resizes(master, stop)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if x.e.Stdout != nil {
			_, _ = io.Copy(x.e.Stdout, master) // ends with EIO when the last program lets go of the terminal
		}
	}()
	if x.e.Stdin != nil {
		go func() { _, _ = io.Copy(master, x.e.Stdin) }() // as in plain
	}
	return func() error {
		close(stop)
		timer := time.NewTimer(drain)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
		}
		err := master.Close()
		<-done
		return err
	}, err
}

// openTerminal returns both ends of a pseudo terminal. Reads from the master end when it is closed, which is not so for the
// file that the pty package makes: it uses the descriptor in a way that takes it out of Go's poller.
func openTerminal() (master, slave *os.File, err error) {
	m, slave, err := pty.Open()
	if err != nil {
		return nil, nil, err
	}
	defer m.Close()
	fd, err := unix.FcntlInt(m.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, nil, errors.Join(err, slave.Close())
	}
	return os.NewFile(uintptr(fd), "terminal"), slave, nil
}

// resizes sets the terminal's size: at once if one waits, and then as they come.
func (x *execution) resizes(master *os.File, stop <-chan struct{}) {
	set := func(s runtime.Size) {
		conn, err := master.SyscallConn()
		if err != nil {
			return // it was closed
		}
		_ = conn.Control(func(fd uintptr) {
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Columns})
		})
	}
	select {
	case s, ok := <-x.e.Resize:
		if !ok {
			return
		}
		set(s)
	default:
	}
	go func() {
		for {
			select {
			case s, ok := <-x.e.Resize:
				if !ok {
					return
				}
				set(s)
			case <-stop:
				return
			}
		}
	}()
}
