package crowd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/daemon"
	"github.com/gantry-os/gantry/model"
)

// serverEnv holds, in a process that is to be a server, how.
const serverEnv = "GANTRY_CROWD_SERVER"

// startTime bounds how long a server may take to be ready.
const startTime = 2 * time.Minute

// start says what a process is to serve.
type start struct {
	Name, Dir, Addr string
	Join, Token     string // empty for one that is a member already, and for the first
	Profile         string // where SIGUSR1 writes profiles: a processor profile from one signal to the next, then the heap
}

// BeServer makes this process a server of a cluster if Servers started it as one, and does not return then. A program that
// uses Servers calls it first.
func BeServer() {
	text := os.Getenv(serverEnv)
	if text == "" {
		return
	}
	if err := serve([]byte(text)); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(text []byte) error {
	var s start
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	if s.Profile != "" {
		go profileOnSignal(s.Profile)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	o := daemon.DefaultServerOptions()
	o.DataDir, o.Name, o.Listen, o.Advertise, o.Join, o.Token = s.Dir, s.Name, s.Addr, s.Addr, s.Join, s.Token
	o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return daemon.RunServer(ctx, o, func(client.Local) error {
		_, err := fmt.Println(readyLine)
		return err
	}, nil)
}

const readyLine = "ready"

// profileOnSignal never returns.
func profileOnSignal(prefix string) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	for {
		<-asked
		if err := profile(prefix, asked); err != nil {
			fmt.Fprintln(os.Stderr, "server: profile:", err)
		}
	}
}

// profile writes what is done until the next signal, and what is held then.
func profile(prefix string, end <-chan os.Signal) error {
	cpu, err := os.Create(prefix + "cpu.prof")
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return err
	}
	<-end
	pprof.StopCPUProfile()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fmt.Fprintf(os.Stderr, "memory: heap in use %d MiB, collected next at %d MiB, returned to the system %d MiB; stacks %d MiB; in all %d MiB\n",
		m.HeapInuse>>20, m.NextGC>>20, m.HeapReleased>>20, m.StackInuse>>20, m.Sys>>20)
	errs := []error{cpu.Close()}
	for _, kind := range []string{"heap", "goroutine"} {
		f, err := os.Create(prefix + kind + ".prof")
		if err != nil {
			return err
		}
		errs = append(errs, pprof.Lookup(kind).WriteTo(f, 0), f.Close())
	}
	return errors.Join(errs...)
}

// Servers are the servers of one cluster, each a process of its own on this machine.
type Servers struct {
	dir     string
	profile string
	list    []*Server
}

// Server is one of them.
type Server struct {
	Name, Addr string

	dir  string
	log  string // file with what it says
	cmd  *exec.Cmd
	took time.Duration // from its last start until it was ready
}

// StartServers makes a cluster of n servers below dir, which is to be on a real disk. With a profile prefix, Profile works.
func StartServers(ctx context.Context, dir string, n int, profile string) (_ *Servers, err error) {
	all := &Servers{dir: dir, profile: profile}
	defer func() {
		if err != nil {
			err = errors.Join(err, all.Close())
		}
	}()
	token := ""
	for i := range n {
		s := &Server{Name: fmt.Sprintf("s%d", i+1)}
		s.dir, s.log = filepath.Join(dir, s.Name), filepath.Join(dir, s.Name+".log")
		if s.Addr, err = all.freeAddr(); err != nil {
			return nil, err
		}
		all.list = append(all.list, s)
		join := ""
		if i > 0 {
			join = all.list[0].Addr
		}
		if err := all.start(ctx, s, join, token); err != nil {
			return nil, err
		}
		if i == 0 && n > 1 {
			if token, err = all.Token(ctx, model.ServerMachine, n-1); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// freeAddr returns an address whose port and the three after it are free, below what systems give to outgoing connections.
func (a *Servers) freeAddr() (string, error) {
	first := 12_000 + os.Getpid()%7_000
	for p := first; p < first+1000; p += 4 {
		if a.taken(p) {
			continue
		}
		return "127.0.0.1:" + strconv.Itoa(p), nil
	}
	return "", errors.New("no four free ports in a row")
}

func (a *Servers) taken(port int) bool {
	for _, s := range a.list {
		if s.Addr == "127.0.0.1:"+strconv.Itoa(port) {
			return true
		}
	}
	for i := range 4 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+i))
		if err != nil {
			return true
		}
		l.Close()
	}
	return false
}

// Close ends all servers.
func (a *Servers) Close() error {
	var errs []error
	for _, s := range a.list {
		if s.cmd != nil {
			errs = append(errs, s.end(syscall.SIGTERM))
		}
	}
	return errors.Join(errs...)
}

// Start starts servers that have ended, side by side, and returns once all are ready.
func (a *Servers) Start(ctx context.Context, list ...*Server) error {
	started := make(chan error)
	for _, s := range list {
		go func() { started <- a.start(ctx, s, "", "") }()
	}
	var errs []error
	for range list {
		errs = append(errs, <-started)
	}
	return errors.Join(errs...)
}

// start starts a server and returns once it is ready.
func (a *Servers) start(ctx context.Context, s *Server, join, token string) error {
	how := start{Name: s.Name, Dir: s.dir, Addr: s.Addr, Join: join, Token: token}
	if a.profile != "" {
		how.Profile = a.profile + s.Name + "."
	}
	text, err := json.Marshal(how)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serverEnv+"="+string(text))
	cmd.Stderr = log
	began := time.Now()
	if err := launch(ctx, cmd, readyLine); err != nil {
		said, _ := os.ReadFile(s.log)
		return fmt.Errorf("start server %s: %w\n%s", s.Name, err, bytes.TrimSpace(said))
	}
	s.cmd, s.took = cmd, time.Since(began)
	return nil
}

// launch starts a process and returns once it has printed a line with want in it.
func launch(ctx context.Context, cmd *exec.Cmd, want string) error {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line := make(chan string, 1)
	go func() {
		in := bufio.NewReader(out)
		text, _ := in.ReadString('\n')
		line <- text
		_, _ = in.WriteTo(nowhere{}) // it ends with the process
	}()
	err = nil
	select {
	case text := <-line:
		if strings.Contains(text, want) {
			return nil
		}
		err = fmt.Errorf("it printed %q instead of %q", text, want)
	case <-time.After(startTime):
		err = fmt.Errorf("it is not ready after %v", startTime)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return errors.Join(err, cmd.Process.Kill(), ignoreExit(cmd.Wait()))
}

type nowhere struct{}

// Write implements io.Writer.
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }

// ignoreExit drops that a process ended with a code or by a signal.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// end ends a server by a signal.
func (s *Server) end(sig syscall.Signal) error {
	cmd := s.cmd
	s.cmd = nil
	return errors.Join(cmd.Process.Signal(sig), ignoreExit(cmd.Wait()))
}

// Kill ends servers as a fault would.
func (a *Servers) Kill(list ...*Server) error {
	var errs []error
	for _, s := range list {
		errs = append(errs, s.end(syscall.SIGKILL))
	}
	return errors.Join(errs...)
}

// client returns a client of one server.
func (a *Servers) client(s *Server) (*client.Client, error) {
	trust, err := client.WithCAFile(filepath.Join(s.dir, "identity", "ca.pem"))
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Join(s.dir, "admin.token"))
	if err != nil {
		return nil, err
	}
	return client.New("https://"+s.Addr, strings.TrimSpace(string(token)), trust), nil
}

// knows waits until a server answers a read that has all that was acknowledged before, and returns how many apps it lists.
func (a *Servers) knows(ctx context.Context, s *Server) (apps int, err error) {
	c, err := a.client(s)
	if err != nil {
		return 0, err
	}
	for {
		list, err := c.Fresh().Apps(ctx)
		if err == nil {
			return len(list), nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return 0, errors.Join(context.Cause(ctx), err)
		}
	}
}

// running returns the servers that have not ended.
func (a *Servers) running() []*Server {
	var out []*Server
	for _, s := range a.list {
		if s.cmd != nil {
			out = append(out, s)
		}
	}
	return out
}

// Client returns a client of a server that runs.
func (a *Servers) Client() (*client.Client, error) {
	list := a.running()
	if len(list) == 0 {
		return nil, errors.New("no server runs")
	}
	return a.client(list[0])
}

// Token makes a join token.
func (a *Servers) Token(ctx context.Context, role model.MachineRole, uses int) (string, error) {
	c, err := a.Client()
	if err != nil {
		return "", err
	}
	t, err := c.CreateToken(ctx, client.NewToken{Role: role, Uses: &uses})
	return t.Token, err
}

// Leader waits until a server leads, by the word of one that runs, and returns it.
func (a *Servers) Leader(ctx context.Context) (*Server, error) {
	c, err := a.Client()
	if err != nil {
		return nil, err
	}
	for {
		said, err := c.Cluster(ctx)
		for _, s := range a.running() {
			if err == nil && s.Name == said.Leader {
				return s, nil
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), err)
		}
	}
}

// Deposed returns how often servers have led no longer by their own word, since the cluster was made.
func (a *Servers) Deposed() (int, error) {
	n := 0
	for _, s := range a.list {
		said, err := os.ReadFile(s.log)
		if err != nil {
			return 0, err
		}
		n += bytes.Count(said, []byte("this server leads no longer"))
	}
	return n, nil
}

// startProfile begins to profile all servers that run and this process. What it returns ends that.
func (a *Servers) startProfile() (end func() error, err error) {
	if a.profile == "" {
		return func() error { return nil }, nil
	}
	signal := func() error {
		var errs []error
		for _, s := range a.running() {
			errs = append(errs, s.cmd.Process.Signal(syscall.SIGUSR1))
		}
		return errors.Join(errs...)
	}
	enough, ended := make(chan os.Signal, 1), make(chan error, 1)
	go func() { ended <- profile(a.profile+"agents.", enough) }()
	return func() error {
		enough <- syscall.SIGUSR1
		return errors.Join(signal(), <-ended)
	}, signal()
}
