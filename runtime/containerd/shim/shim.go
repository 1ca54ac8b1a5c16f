// Package shim is the body of gantry-oci-shim, the process that is the parent of an instance's containers. It outlives
// gantry and containerd, and keeps exit codes for them.
//
// It is containerd's shim for runc, whose task service it runs as it is, with another life around it:
//
//   - Programs that ended while containerd was down stay known. containerd, when it starts, ends every shim that reports
//     no process, exit code and all; this one goes on reporting the process that ended until its task is deleted.
//     It also answers without running runc, so that containerd starts in milliseconds beside hundreds of containers.
//   - It uses little: one processor's worth of the Go runtime, a small heap that is given back after each burst of work,
//     no timers while idle, no connection to containerd of its own. Events, which nobody reads here, are dropped.
//   - It ends by its last task being deleted, not by signals; or by itself when no task ever comes, or containerd was killed
//     between deleting the last one and ending the shim, or takes the shim for dead and has cleaned up after it.
package shim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	service "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// Main does what its arguments ask for: the calls by which containerd starts and cleans up after shims, which end soon,
// or else the shim itself.
func Main(args []string) error {
	runtime.GOMAXPROCS(1)
	for _, a := range args {
		if slices.Contains([]string{"start", "delete", "-v", "-version", "-info"}, a) {
			shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"))
			return nil
		}
	}
	return serve(args)
}

// listenFD is the socket that the starting process hands down.
const listenFD = 3

// serve answers containerd until the last task has been deleted.
func serve(args []string) error {
	debug.SetGCPercent(25)
	flags := flag.NewFlagSet("gantry-oci-shim", flag.ContinueOnError)
	ns := flags.String("namespace", "", "containerd's namespace")
	flags.String("id", "", "the first task")
	flags.String("address", "", "containerd's socket")
	flags.Bool("debug", false, "accepted for containerd's sake")
	unused := flags.Duration("unused", 15*time.Second, "how long to wait for the first task")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := openLog("shim.log"); err != nil {
		return err
	}
	if err := reaper.SetSubreaper(1); err != nil {
		return fmt.Errorf("become parent of orphans: %w", err)
	}
	// Caught and dropped, not ignored: programs would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)

	ctx, end := shutdown.WithShutdown(namespaces.WithNamespace(context.Background(), *ns))
	tasks, err := service.NewTaskService(ctx, silence{}, end)
	if err != nil {
		return fmt.Errorf("make task service: %w", err)
	}
	k := &keeper{TTRPCTaskService: tasks, init: map[string]uint32{}, end: end.Shutdown}
	go reap(k)
	k.look(*unused)
	return listen(ctx, end, k)
}

// listen serves the socket until the task service shuts down.
func listen(ctx context.Context, end shutdown.Service, k *keeper) error {
	f := os.NewFile(listenFD, "socket")
	l, err := net.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil { // children are not to have it
		return fmt.Errorf("take over socket: %w", err)
	}
	path := l.Addr().String()
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()),
		ttrpc.WithUnaryServerInterceptor(k.trim))
	if err != nil {
		return fmt.Errorf("make server: %w", err)
	}
	taskapi.RegisterTTRPCTaskService(server, k)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(context.WithoutCancel(ctx), l) }()
	select {
	case err = <-failed:
	case <-end.Done():
		// The caller that deleted the last task still gets its answer.
		closing, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = server.Shutdown(closing) // a connection that lingers is cut by the end of the process
	}
	if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	if err != nil && !errors.Is(err, ttrpc.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve %s: %w", path, err)
	}
	return nil
}

// openLog sends what the task service logs to a file in the first task's bundle.
func openLog(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	log.L.Logger.SetOutput(f)
	return log.SetLevel("error")
}

// reap collects every child that ends, for the task service to hear of.
func reap(k *keeper) {
	ended := make(chan os.Signal, 32)
	signal.Notify(ended, unix.SIGCHLD)
	for range ended {
		if err := reaper.Reap(); err != nil {
			log.L.WithError(err).Error("reap children")
		}
		k.look(abandoned)
	}
}

// silence takes events and drops them.
type silence struct{}

var _ shim.Publisher = silence{}
var _ events.Publisher = silence{}

func (silence) Publish(context.Context, string, events.Event) error { return nil }
func (silence) Close() error                                        { return nil }

// keeper is the task service, except that it does not let containerd forget tasks that have ended.
type keeper struct {
	taskapi.TTRPCTaskService

	mu   sync.Mutex
	init map[string]uint32 // process of each task
	busy int               // tasks being created
	idle *time.Timer       // gives memory back
	next *time.Timer       // looks whether the shim is of use; nil while there is no reason to
	end  func()
}

// abandoned is how long after its last task the shim waits for containerd to end it.
const abandoned = 5 * time.Second

// look has the shim end after a while if it is of no use then: it has no task, or those that it had are over and containerd
// has cleaned up after them. Whoever should have ended it may have been killed just before, or have taken it for dead. It looks
// again later while a task is being created.
func (k *keeper) look(after time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.next == nil {
		k.next = time.AfterFunc(after, func() { k.endUnused(after) })
	}
}

func (k *keeper) endUnused(after time.Duration) {
	k.mu.Lock()
	k.next = nil
	busy, over := k.busy > 0, k.allOver()
	useless := len(k.init) == 0 || over && bundleGone()
	k.mu.Unlock()
	switch {
	case busy, over && !useless: // what is over is cleaned up soon
		k.look(after)
	case useless:
		k.end()
	}
}

// allOver reports whether no task's own process runs.
func (k *keeper) allOver() bool {
	for _, pid := range k.init {
		if unix.Kill(int(pid), 0) == nil {
			return false
		}
	}
	return true
}

// bundleGone reports whether the directory that the shim works in, the bundle of its first task, was deleted.
func bundleGone() bool {
	var st unix.Stat_t
	return unix.Stat(".", &st) == nil && st.Nlink == 0
}

// Create notes the new task's process.
func (k *keeper) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	k.mu.Lock()
	k.busy++
	k.mu.Unlock()
	resp, err := k.TTRPCTaskService.Create(ctx, r)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.busy--
	if err == nil {
		k.init[r.ID] = resp.Pid
	}
	return resp, err
}

// Delete forgets a task, or a program that ran beside it.
func (k *keeper) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp, err := k.TTRPCTaskService.Delete(ctx, r)
	if err == nil && r.ExecID == "" {
		k.mu.Lock()
		delete(k.init, r.ID)
		k.mu.Unlock()
		k.look(abandoned)
	}
	return resp, err
}

// Pids returns the task's own process, also when it has ended. containerd asks when it starts, to find out which shims
// are of no use any more; Gantry never does.
func (k *keeper) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	k.mu.Lock()
	pid, ok := k.init[r.ID]
	k.mu.Unlock()
	if !ok {
		return k.TTRPCTaskService.Pids(ctx, r)
	}
	return &taskapi.PidsResponse{Processes: []*task.ProcessInfo{{Pid: pid}}}, nil
}

// trimAfter is how long the shim must have been idle before it gives memory back.
const trimAfter = 2 * time.Second

// trim gives memory back a while after the last call that used much of it.
func (k *keeper) trim(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.idle == nil {
			k.idle = time.AfterFunc(trimAfter, debug.FreeOSMemory)
		} else {
			k.idle.Reset(trimAfter)
		}
	}()
	return method(ctx, unmarshal)
}
