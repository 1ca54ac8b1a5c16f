// Package runtime is the contract between the agent and what runs programs on a node.
//
// A task is one container of an instance: a program with its limits, files and logs. A Driver starts tasks in such a way
// that they outlive the process that started them, and finds them again. runtime/containerd runs OCI images,
// runtime/process runs programs of the node itself, and runtime/sim pretends to, for tests. runtime/conformance holds
// what every driver must do; read it for the fine print.
package runtime

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/gantry-os/gantry/model"
)

// Errors that drivers return, wrapped. Any other error may pass by itself, and the agent tries again with backoff.
var (
	// ErrInvalid says that the task can never start as it is: no such program, user or image.
	ErrInvalid = errors.New("cannot start")
	// ErrNotFound says that the driver knows no such task.
	ErrNotFound = errors.New("no such task")
	// ErrUnavailable says that the engine behind the driver does not answer now.
	ErrUnavailable = errors.New("the container engine does not answer")
)

// Driver starts and ends tasks. All methods may be called at once for different tasks, and by one caller at a time for
// the same task, except that Signal and Remove may be called during Wait.
type Driver interface {
	// Start runs a task and returns once its program executes. It is idempotent: when the same attempt of the task runs or
	// has ended already, its state is returned. When another attempt of it exists, Start fails; Remove it first. A failed
	// Start leaves nothing behind.
	Start(ctx context.Context, t Task) (State, error)
	// Wait blocks until the task has ended and returns how; it returns at once when that was long ago, even before this
	// process started.
	Wait(ctx context.Context, id TaskID) (model.Exit, error)
	// Signal sends a signal to the task's program. Signals to a task that has ended are ignored.
	Signal(ctx context.Context, id TaskID, signal int) error
	// Remove kills whatever of the task still runs, and frees all it holds but its logs and sandbox. Removing what does not
	// exist is no error.
	Remove(ctx context.Context, id TaskID) error
	// List returns every task the driver holds, whoever started it.
	List(ctx context.Context) ([]State, error)
}

// Execer is a driver that can run a further program beside a running task: same namespaces, cgroup and user.
type Execer interface {
	// Exec runs a program until it ends and returns its exit code. It ends the program when ctx ends.
	Exec(ctx context.Context, id TaskID, e Exec) (code int, err error)
}

// Meter is a driver that can tell what a task uses.
type Meter interface {
	// Usage returns CPU time and memory of a running task. CPUs and Disk are left to the caller.
	Usage(ctx context.Context, id TaskID) (model.Usage, error)
}

// Images is a driver that keeps OCI images.
type Images interface {
	// Pull makes the image present by its policy and returns the digest it resolved to. progress, which may be nil, is
	// called with sentences such as "pulling nginx: 12 MiB of 30 MiB".
	Pull(ctx context.Context, ref string, policy model.PullPolicy, auth *model.RegistryAuth, progress func(string)) (digest string, err error)
	// Import loads images from an OCI or Docker archive and returns their names.
	Import(ctx context.Context, archive io.Reader) (names []string, err error)
	// ListImages returns the images present on the node.
	ListImages(ctx context.Context) ([]Image, error)
}

// StopSignaler is a driver that knows which signal a task's image asks to be stopped with.
type StopSignaler interface {
	// StopSignal returns the number of that signal, or 0 when the image names none.
	StopSignal(ctx context.Context, id TaskID) (int, error)
}

// Image is an OCI image present on a node.
type Image struct {
	Name    string      `json:"name"`
	Digest  string      `json:"digest"`
	Size    model.Bytes `json:"size"`
	Created time.Time   `json:"created"`
}

// TaskID names a task on its node: the instance's id, '.', and the container's name. It is safe as a file name.
type TaskID string

// ID returns the id of a container's task.
func ID(instance model.InstanceID, container string) TaskID {
	return TaskID(string(instance) + "." + container)
}

// Task is what to run. All paths are absolute paths of the node.
type Task struct {
	ID      TaskID
	Attempt uint32 // counts the starts of the instance, from 1
	Image   string // empty for a program of the node

	// Command is program and arguments, with variables replaced already. With an image it replaces entrypoint and command;
	// when it is empty, the image's entrypoint runs with Args, or with the image's own command when Args is empty too.
	Command []string
	Args    []string
	Env     map[string]string // added to the image's, or to a minimal one (PATH, HOME, USER, LANG)
	User    string            // user[:group], by name or number; empty for the image's or the driver's own
	Dir     string            // empty for the image's, or the sandbox
	CPUs    model.CPU         // hard ceiling and, under contention, share
	Memory  model.Bytes       // hard limit, swap included

	// Sandbox is a directory of the instance that exists and stays. A container from an image sees it at
	// SandboxPath; a program of the node sees it where it is.
	Sandbox string
	Mounts  []Mount
	Devices []string // device nodes of the node that a container from an image gets; other programs see all
	Logs    LogFiles
}

// SandboxPath is where a container from an image finds its sandbox.
const SandboxPath = "/gantry/sandbox"

// Mount shows a directory of the node to a task.
type Mount struct {
	Source   string // exists
	Target   string // in the container; without an image, relative ones are below the sandbox
	ReadOnly bool
	Own      bool // the task's user becomes the owner of Source, unless somebody but the agent's user is
}

// LogFiles says where a task's output goes: to Dir/stdout and Dir/stderr, appended to. A file that reaches Size is
// renamed to stdout.1, older ones to stdout.2 and so on, of which Keep are kept. Dir exists. Nothing that a program wrote
// is lost or repeated while gantry or containerd restart.
type LogFiles struct {
	Dir  string
	Size model.Bytes
	Keep int
}

// State is a task as its driver knows it.
type State struct {
	ID      TaskID
	Attempt uint32
	PID     int         // of the program, in the node's pid namespace; 0 when it has ended
	Started time.Time   // when its program was executed
	Exit    *model.Exit // nil while it runs
}

// Exec is a further program for a running task.
type Exec struct {
	Command []string
	Env     map[string]string // added to the task's
	Dir     string            // empty for the task's
	TTY     bool              // give it a terminal: Stdout carries both streams
	Stdin   io.Reader         // nil for none
	Stdout  io.Writer
	Stderr  io.Writer
	Resize  <-chan Size // sizes of the terminal, the first before start; nil without TTY
}

// Size is a terminal's size in characters.
type Size struct {
	Columns uint16 `json:"columns"`
	Rows    uint16 `json:"rows"`
}
