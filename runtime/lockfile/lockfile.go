// Package lockfile finds the process that holds a lock on a file. Helpers that outlive Gantry lock a file for as long as
// they live, so that a later Gantry finds them by it, without trusting a process number that was written down.
package lockfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Holder returns the process that holds the fcntl lock on a file, and a pidfd of it, which the caller closes; 0 when no
// process does, or there is no such file.
func Holder(path string) (pid, pidfd int, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for {
		pid, err := lockedBy(f)
		if err != nil || pid == 0 {
			return 0, 0, err
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue // it has just ended
		}
		if err != nil {
			return 0, 0, fmt.Errorf("open process %d: %w", pid, err)
		}
		// As it still holds the lock, the pidfd is of this process and not of a later one with its number.
		still, err := lockedBy(f)
		if err == nil && still == pid {
			return pid, fd, nil
		}
		_ = unix.Close(fd)
		if err != nil {
			return 0, 0, err
		}
	}
}

// lockedBy returns the process that holds the lock on a file, 0 for none.
func lockedBy(f *os.File) (int, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil {
		return 0, fmt.Errorf("look at lock: %w", err)
	}
	switch {
	case l.Type == unix.F_UNLCK:
		return 0, nil
	case l.Pid <= 0:
		return 0, errors.New("look at lock: a process of another pid namespace holds it")
	}
	return int(l.Pid), nil
}
