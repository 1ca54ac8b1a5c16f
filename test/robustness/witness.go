package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-os/gantry/test/machines"
)

const witnessArg = "witness"

// hello is what a program says of itself when it starts.
type hello struct {
	App      string `json:"app"`
	Instance string `json:"instance"`
	Slot     string `json:"slot,omitempty"`
	Machine  string `json:"machine"`
}

// witness is the program that instances run: it tells the census that it is there, by a connection that ends with it,
// answers health checks, and ends when asked to.
func witness(socket string) {
	conn, err := net.Dial("unix", socket)
	if err == nil {
		err = json.NewEncoder(conn).Encode(hello{
			os.Getenv("GANTRY_APP_ID"), os.Getenv("GANTRY_INSTANCE_ID"), os.Getenv("SLOT"), os.Getenv("GANTRY_NODE_NAME"),
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "witness:", err)
		os.Exit(1)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	if port := os.Getenv("PORT0"); port != "" {
		go func() {
			fmt.Fprintln(os.Stderr, http.ListenAndServe(":"+port, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
			os.Exit(1)
		}()
	}
	<-end
}

// program is one that runs or ran.
type program struct {
	hello
	PID     int           `json:"pid"`
	Started time.Duration `json:"started"`
	Ended   time.Duration `json:"ended,omitempty"`

	start string // of the process, which tells it from a later one with the same id
}

// key is what no two programs may share at a time.
func (p *program) keys() []string {
	keys := []string{"instance " + p.Instance}
	if p.Slot != "" {
		keys = append(keys, "slot "+p.Slot+" of "+p.App)
	}
	return keys
}

// census knows at any time which programs run, by their own word.
type census struct {
	l     net.Listener
	clock func() time.Duration
	ended func(*program) // told of every end

	mu    sync.Mutex
	live  map[*program]bool
	all   []*program
	wrong []string
	conns sync.WaitGroup
}

func newCensus(socket string, clock func() time.Duration, ended func(*program)) (*census, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o777); err != nil {
		return nil, err
	}
	c := &census{l: l, clock: clock, ended: ended, live: map[*program]bool{}}
	c.conns.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				c.violate("the census cannot hear programs: %v", err)
				return
			}
			c.conns.Go(func() { c.follow(conn.(*net.UnixConn)) })
		}
	})
	return c, nil
}

// follow follows the life of one program.
func (c *census) follow(conn *net.UnixConn) {
	defer conn.Close()
	p := &program{}
	if err := json.NewDecoder(conn).Decode(&p.hello); err != nil {
		return // it died before it had said who it was, and did nothing
	}
	var err error
	if p.PID, err = peer(conn); err == nil {
		p.start, err = machines.StartOf(p.PID)
	}
	if err != nil {
		return // likewise
	}
	c.add(p)
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		c.violate("the census lost sight of %s: %v", p.Instance, err)
	}
	c.mu.Lock()
	p.Ended = c.clock()
	delete(c.live, p)
	c.mu.Unlock()
	c.ended(p)
}

// add notes a program that has started. Of those before it that have not been seen to end, none may run.
func (c *census) add(p *program) {
	c.mu.Lock()
	p.Started = c.clock()
	var others []*program
	for o := range c.live {
		for _, k := range p.keys() {
			for _, ok := range o.keys() {
				if k == ok {
					others = append(others, o)
				}
			}
		}
	}
	c.live[p] = true
	c.all = append(c.all, p)
	c.mu.Unlock()
	for _, o := range others {
		if machines.Alive(o.PID, o.start) && machines.Alive(p.PID, p.start) {
			c.violate("two run at once: %s %s slot %q on %s (process %d, since %v) and %s on %s (process %d, since %v)",
				o.App, o.Instance, o.Slot, o.Machine, o.PID, o.Started, p.Instance, p.Machine, p.PID, p.Started)
		}
	}
}

func (c *census) violate(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = append(c.wrong, fmt.Sprintf(format, args...))
}

// running returns the instances of each app whose programs run.
func (c *census) running() map[string]map[string]*program {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]map[string]*program{}
	for p := range c.live {
		if out[p.App] == nil {
			out[p.App] = map[string]*program{}
		}
		out[p.App][p.Instance] = p
	}
	return out
}

// close ends the census. Programs should have ended.
func (c *census) close() {
	c.l.Close()
	c.conns.Wait()
}

// peer returns the process at the other end, as this one sees it.
func peer(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if cerr != nil {
		return 0, cerr
	}
	return int(cred.Pid), nil
}

// keep writes what ran to a file, a line of JSON each.
func (c *census) keep(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	enc := json.NewEncoder(f)
	for _, p := range c.all {
		if err := enc.Encode(p); err != nil {
			return err
		}
	}
	return nil
}
