package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/runtime"
)

// failure turns a shim's report "error", step, errno, subject into an error. What the user can mend, and only the user, is
// runtime.ErrInvalid with a sentence.
func failure(words []string, c *config) error {
	step, subject := words[1], words[3]
	n, _ := strconv.Atoi(words[2])
	errno := unix.Errno(n)
	if why := invalid(step, errno, subject, c); why != "" {
		return fmt.Errorf("%w: %s", runtime.ErrInvalid, why)
	}
	if subject == "" {
		return fmt.Errorf("start program: %s: %w", step, errno)
	}
	return fmt.Errorf("start program: %s: %s: %w", step, subject, errno)
}

// invalid returns why a step can never succeed, empty when it may succeed later.
func invalid(step string, errno unix.Errno, subject string, c *config) string {
	switch errno {
	case unix.ENOMEM, unix.EAGAIN, unix.EMFILE, unix.ENFILE, unix.EIO, unix.EINTR, unix.ENOSPC:
		return ""
	}
	switch step {
	case "program":
		return badProgram(errno, subject, c)
	case "directory":
		return fmt.Sprintf("the working directory %q: %s", subject, reason(errno))
	case "source":
		return fmt.Sprintf("the volume's directory %q: %s", subject, reason(errno))
	case "target":
		if errno == unix.ELOOP || errno == unix.ENOTDIR {
			return fmt.Sprintf("the mount point %q is not a directory, or a symbolic link leads to it", subject)
		}
		return fmt.Sprintf("the mount point %q: %s", subject, reason(errno))
	case "mount":
		return fmt.Sprintf("a volume cannot be mounted at %q: %s", subject, reason(errno))
	case "user":
		return fmt.Sprintf("Gantry may not run programs as user %s: %s", subject, reason(errno))
	}
	return ""
}

func reason(errno unix.Errno) string {
	if errno == unix.ENOENT {
		return "it does not exist"
	}
	return errno.Error()
}

func badProgram(errno unix.Errno, program string, c *config) string {
	path := strings.ContainsRune(program, '/')
	switch {
	case errno == unix.ENOENT && !path:
		return fmt.Sprintf("program %q is not on the PATH (%s)", program, c.env["PATH"])
	case errno == unix.ENOENT && exists(c.dir, program):
		return fmt.Sprintf("program %q needs an interpreter or loader that does not exist", program)
	case errno == unix.ENOENT:
		return fmt.Sprintf("program %q does not exist", program)
	case errno == unix.EACCES:
		return fmt.Sprintf("program %q is not executable for the task's user", program)
	case errno == unix.ENOEXEC:
		return fmt.Sprintf("program %q is of a format that this machine does not run", program)
	case errno == unix.E2BIG:
		return fmt.Sprintf("the arguments and environment of program %q are too long", program)
	}
	return fmt.Sprintf("program %q: %s", program, errno)
}

func exists(dir, program string) bool {
	if !filepath.IsAbs(program) {
		program = filepath.Join(dir, program)
	}
	_, err := os.Lstat(program)
	return err == nil
}
