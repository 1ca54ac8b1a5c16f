package process_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/runtime/process"
)

// What cannot start says why in words that help, and leaves nothing.
func TestCannotStart(t *testing.T) {
	for _, c := range []struct {
		name    string
		isolate bool // only there
		change  func(*testing.T, *runtime.Task)
		want    string
	}{
		{"program", false, func(_ *testing.T, k *runtime.Task) { k.Command = []string{"foo"} },
			`cannot start: program "foo" is not on the PATH (/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)`},
		{"own PATH", false, func(_ *testing.T, k *runtime.Task) {
			k.Command, k.Env = []string{"ls"}, map[string]string{"PATH": "/nowhere"}
		}, `cannot start: program "ls" is not on the PATH (/nowhere)`},
		{"path", false, func(_ *testing.T, k *runtime.Task) { k.Command = []string{"./foo"} },
			`cannot start: program "./foo" does not exist`},
		{"not executable", false, func(t *testing.T, k *runtime.Task) {
			k.Command = []string{"./f"}
			file(t, k.Sandbox, "f", 0o644)
		}, `cannot start: program "./f" is not executable for the task's user`},
		{"interpreter", false, func(t *testing.T, k *runtime.Task) {
			k.Command = []string{"./f"}
			file(t, k.Sandbox, "f", 0o755)
		}, `cannot start: program "./f" needs an interpreter or loader that does not exist`},
		{"directory", false, func(_ *testing.T, k *runtime.Task) { k.Dir = "/no/where" },
			`cannot start: the working directory "/no/where": it does not exist`},
		{"source", true, func(_ *testing.T, k *runtime.Task) {
			k.Mounts = []runtime.Mount{{Source: "/no/source", Target: "/mnt"}}
		}, `cannot start: the volume's directory "/no/source": it does not exist`},
		{"target", true, func(_ *testing.T, k *runtime.Task) {
			k.Mounts = []runtime.Mount{{Source: "/tmp", Target: "/no/target"}}
		}, `cannot start: the mount point "/no/target": it does not exist`},
		{"target above", false, func(_ *testing.T, k *runtime.Task) {
			k.Mounts = []runtime.Mount{{Source: "/tmp", Target: "../x"}}
		}, `cannot start: nothing can be mounted at "../x"`},
		{"target by link", true, func(t *testing.T, k *runtime.Task) {
			if err := os.Symlink("/etc", filepath.Join(k.Sandbox, "data")); err != nil {
				t.Fatal(err)
			}
			k.Mounts = []runtime.Mount{{Source: "/tmp", Target: "data"}}
		}, `cannot start: the mount point "data" is not a directory, or a symbolic link leads to it`},
		{"image", false, func(_ *testing.T, k *runtime.Task) { k.Image = "x" }, "cannot start: images are not run as plain processes"},
		{"no command", false, func(_ *testing.T, k *runtime.Task) { k.Command = nil }, "cannot start: a program of the node needs a command"},
		{"NUL", false, func(_ *testing.T, k *runtime.Task) { k.Command = []string{"a\x00b"} },
			`cannot start: the command or a path of it has a NUL byte: "a\x00b"`},
		{"variable", false, func(_ *testing.T, k *runtime.Task) { k.Env = map[string]string{"a=b": ""} },
			`cannot start: the environment variable "a=b" cannot be set`},
		{"id", false, func(_ *testing.T, k *runtime.Task) { k.ID = "../x" }, `cannot start: "../x" is not a task id`},
		{"long", false, func(_ *testing.T, k *runtime.Task) { k.Command = []string{"true", strings.Repeat("x", 200<<10)} },
			`cannot start: the arguments and environment of program "true" are too long`},
	} {
		t.Run(c.name, func(t *testing.T) {
			both(t, func(t *testing.T, isolate bool) {
				if c.isolate && !isolate {
					t.Skip("only with a mount namespace")
				}
				state := t.TempDir()
				d := open(t, state, isolate)
				task := shell(t, "exit 0")
				c.change(t, &task)
				_, err := d.Start(limited(t), task)
				if !errors.Is(err, runtime.ErrInvalid) || err.Error() != c.want {
					t.Errorf("Start returned %v\nwant %s", err, c.want)
				}
				if entries, err := os.ReadDir(state); err != nil || len(entries) != 0 {
					t.Errorf("the state directory holds %v, %v", entries, err)
				}
			})
		})
	}
}

func file(t *testing.T, dir, name string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/no/interpreter\n"), mode); err != nil {
		t.Fatal(err)
	}
}

// Volumes appear below the sandbox at relative paths, whose directories are made, and only the task sees the mounts.
func TestRelativeMounts(t *testing.T) {
	both(t, func(t *testing.T, isolate bool) {
		d := open(t, t.TempDir(), isolate)
		volume := t.TempDir()
		task := shell(t, "echo kept >deep/er/data/file; pwd")
		task.Mounts = []runtime.Mount{{Source: volume, Target: "deep/er/data"}}
		start(t, d, task)
		if e, err := d.Wait(limited(t), task.ID); err != nil || e.Code != 0 {
			t.Fatalf("it ended as %+v, %v: %s", e, err, content(t, task.Logs.Dir, "stderr"))
		}
		if got := content(t, volume, "file"); got != "kept\n" {
			t.Errorf("the volume has %q", got)
		}
		if got := content(t, task.Logs.Dir, "stdout"); got != task.Sandbox+"\n" {
			t.Errorf("it ran in %q", got)
		}
		if mounts := content(t, "/proc/self/mounts"); strings.Contains(mounts, task.Sandbox) {
			t.Error("the mount is seen outside of the task")
		}
	})
}

func TestReadOnlyNeedsIsolation(t *testing.T) {
	d := open(t, t.TempDir(), false)
	task := shell(t, "exit 0")
	task.Mounts = []runtime.Mount{{Source: t.TempDir(), Target: "data", ReadOnly: true}}
	if _, err := d.Start(limited(t), task); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("Start returned %v", err)
	}
}

// A program sees the minimal environment and only its own processes, and has no descriptors but its three.
func TestSurroundings(t *testing.T) {
	d := open(t, t.TempDir(), true)
	task := shell(t, `echo "$PATH $HOME $USER $LANG"; echo $$; cd /proc; echo [0-9]*; echo self/fd/*; echo x >/dev/stdout`)
	task.User = "nobody"
	task.Dir = "/"
	start(t, d, task)
	if _, err := d.Wait(limited(t), task.ID); err != nil {
		t.Fatal(err)
	}
	want := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /nonexistent nobody C.UTF-8\n2\n1 2\n" +
		"self/fd/0 self/fd/1 self/fd/2 self/fd/3\nx\n" // 3 is the shell's own, to read the directory
	if got := content(t, task.Logs.Dir, "stdout"); got != want {
		t.Errorf("the program wrote %q, want %q; %s", got, want, content(t, task.Logs.Dir, "stderr"))
	}
}

// The size of a terminal follows.
func TestTerminalSize(t *testing.T) {
	both(t, func(t *testing.T, isolate bool) {
		d := open(t, t.TempDir(), isolate)
		task := shell(t, "sleep 1000")
		start(t, d, task)
		sizes := make(chan runtime.Size, 1)
		sizes <- runtime.Size{Columns: 100, Rows: 30}
		in, feed, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer feed.Close()
		defer in.Close()
		out := &watched{want: []string{"30 100"}, then: []func(){func() {
			sizes <- runtime.Size{Columns: 120, Rows: 40}
			_, _ = feed.WriteString("\n") // a failure shows as a program that never ends
		}}}
		code, err := d.Exec(limited(t), task.ID, runtime.Exec{
			Command: []string{"/bin/sh", "-c", `stty size; read x; while [ "$(stty size)" != "40 120" ]; do sleep 0.01; done; stty size; tty`},
			TTY:     true, Stdin: in, Stdout: out, Resize: sizes,
		})
		if err != nil || code != 0 || !strings.Contains(out.String(), "40 120\r\n/dev/pts/") {
			t.Errorf("Exec returned %d, %v; %q", code, err, out.String())
		}
	})
}

// watched calls functions when strings have been written to it.
type watched struct {
	all  []byte
	want []string
	then []func()
}

func (w *watched) Write(p []byte) (int, error) {
	w.all = append(w.all, p...)
	for len(w.want) > 0 && strings.Contains(w.String(), w.want[0]) {
		w.then[0]()
		w.want, w.then = w.want[1:], w.then[1:]
	}
	return len(p), nil
}

func (w *watched) String() string { return string(w.all) }

// An environment larger than a pipe reaches the programs of Start and Exec.
func TestLargeEnvironment(t *testing.T) {
	both(t, func(t *testing.T, isolate bool) {
		d := open(t, t.TempDir(), isolate)
		task := shell(t, "echo ${#A} ${#B}; sleep 1000")
		big := strings.Repeat("x", 100_000)
		task.Env = map[string]string{"A": big, "B": big}
		start(t, d, task)
		var out bytes.Buffer
		code, err := d.Exec(limited(t), task.ID, runtime.Exec{Command: []string{"/bin/sh", "-c", "echo ${#A} ${#B}"}, Stdout: &out})
		if err != nil || code != 0 || out.String() != "100000 100000\n" {
			t.Errorf("Exec returned %d, %v; %q", code, err, out.String())
		}
		eventually(t, "the task has written", func() bool { return content(t, task.Logs.Dir, "stdout") == "100000 100000\n" })
	})
}

// A full disk neither stops a program nor hides that output is missing.
func TestFullDisk(t *testing.T) {
	d := open(t, t.TempDir(), true)
	task := shell(t, `i=0; while [ $i -lt 3000 ]; do echo "line $i of many that do not fit into the log files"; i=$((i+1)); done
		echo >written; while [ ! -e go ]; do sleep 0.01; done; echo after; exit 8`)
	task.Logs.Size = 1 << 20
	if err := unix.Mount("tmpfs", task.Logs.Dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("cannot mount a tmpfs: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(task.Logs.Dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	filler := filepath.Join(task.Logs.Dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 32<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, d, task)
	eventually(t, "the program has written all", func() bool { return content(t, task.Sandbox, "written") != "" })
	if n := len(content(t, task.Logs.Dir, "stdout")); n > 40<<10 {
		t.Fatalf("the disk took %d bytes", n)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	file(t, task.Sandbox, "go", 0o644)
	if e, err := d.Wait(limited(t), task.ID); err != nil || e.Code != 8 {
		t.Fatalf("it ended as %+v, %v", e, err)
	}
	got := content(t, task.Logs.Dir, "stdout")
	if !strings.HasPrefix(got, "line 0 of many") || !strings.HasSuffix(got, "after\n") || !strings.Contains(got, "bytes of output could not be written to disk]\n") {
		t.Errorf("the log begins %q and ends %q", got[:min(len(got), 100)], got[max(len(got)-200, 0):])
	}
}

func TestNewRefuses(t *testing.T) {
	shim := filepath.Join(helpers, "gantry-shim")
	for _, c := range []process.Config{
		{Shim: "gantry-shim", StateDir: t.TempDir()},
		{Shim: shim, StateDir: "state"},
		{Shim: "/no/shim", StateDir: t.TempDir()},
		{Shim: shim, StateDir: t.TempDir(), Isolate: true, Cluster: "a/b"},
	} {
		if d, err := process.New(c); err == nil {
			t.Errorf("New(%+v) returned %v", c, d.Close())
		}
	}
}
