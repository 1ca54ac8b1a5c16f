package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/test/machines"
	"github.com/gantry-os/gantry/test/robustness/history"
)

const (
	serverCount = 3
	agentCount  = 5
	diskSize    = 768 << 20
	apiPort     = 7070

	callTimeout  = 10 * time.Second  // of a client
	startTimeout = 90 * time.Second  // until the cluster stands
	healTimeout  = 120 * time.Second // until all is as asked for, once all is well
	roundTime    = 30 * time.Second  // of faults between two looks at whether all becomes well
)

// run is one run.
type run struct {
	*options
	rnd     *rand.Rand // of the faults
	started time.Time

	lab     *machines.Lab
	servers []*member
	agents  []*member
	nodes   map[string]model.NodeID // by name of the machine
	census  *census
	keepers sync.WaitGroup

	transport *http.Transport
	token     string
	log       history.Log
	gate      sync.RWMutex // clients hold it to read while they call

	mu       sync.Mutex
	wrong    []string
	faults   map[string]int
	hits     []hit
	heals    []time.Duration
	clean    int                      // machines on which nothing was left
	powerOff map[string]time.Duration // when a machine's power last went
	calm     bool                     // no program may end but with its machine's power
}

// hit is a fault that took the leader away.
type hit struct {
	name string
	at   time.Duration
	out  []string // servers that cannot answer, or whose answers are not the cluster's
}

func (r *run) now() time.Duration { return time.Since(r.started) }

// say prints a line with the time.
func (r *run) say(format string, args ...any) {
	fmt.Printf("%7.1fs  %s\n", r.now().Seconds(), fmt.Sprintf(format, args...))
}

// violate notes that a promise was broken.
func (r *run) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.say("VIOLATION: %s", text)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrong = append(r.wrong, text)
}

// work does everything, in namespaces of its own, and returns the exit code.
func work(ctx context.Context, o *options) (int, error) {
	r := &run{
		options: o, rnd: rand.New(rand.NewPCG(o.Seed, 1)), started: time.Now(), nodes: map[string]model.NodeID{},
		faults: map[string]int{}, powerOff: map[string]time.Duration{},
	}
	fmt.Printf("robustness: seed %d, faults for %v, %d servers and %d agents\n", o.Seed, o.Duration, serverCount, agentCount)
	scratch, err := os.MkdirTemp("", "gantry-lab-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(scratch)
	if err := os.Chmod(scratch, 0o755); err != nil {
		return 0, err
	}
	if r.lab, err = machines.New(scratch); err != nil {
		return 0, err
	}
	defer r.lab.Close()
	if r.census, err = newCensus(filepath.Join(scratch, "census"), r.now, r.programEnded); err != nil {
		return 0, err
	}
	keep, stop := context.WithCancel(ctx)
	defer r.keepers.Wait()
	defer stop()
	err = r.live(ctx, keep)
	if kept := r.keepHistory(); err == nil {
		err = kept
	}
	if err != nil {
		return 1, err
	}
	return r.summary(), nil
}

// live is the run from the first server to the last.
func (r *run) live(ctx, keep context.Context) error {
	if err := r.build(ctx, keep); err != nil {
		return fmt.Errorf("build the cluster: %w", err)
	}
	if err := r.install(ctx); err != nil {
		return fmt.Errorf("install apps: %w", err)
	}
	if err := r.settleDown(ctx, "before any fault"); err != nil {
		return err
	}
	r.setCalm(true)
	clients, stop := context.WithCancel(ctx)
	defer stop()
	wait := r.startClients(clients)
	err := r.inject(ctx)
	stop()
	wait()
	if err != nil {
		return err
	}
	r.lastReads(ctx)
	r.setCalm(false)
	if err := r.remove(ctx); err != nil {
		return fmt.Errorf("remove everything: %w", err)
	}
	return r.shutDown()
}

func (r *run) setCalm(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calm = on
}

// calmApp is one that nobody changes, and whose instances are to stay whatever becomes of the control plane.
const calmApp = "/calm"

// programEnded holds the end of a program against what may end it.
func (r *run) programEnded(p *program) {
	r.mu.Lock()
	fine := !r.calm || p.App != calmApp || r.powerOff[p.Machine] > p.Started
	r.mu.Unlock()
	if !fine {
		r.violate("%s on %s ended, though its machine ran and nobody asked for it", p.Instance, p.Machine)
	}
}

// build makes the machines and starts the cluster on them.
func (r *run) build(ctx, keep context.Context) error {
	for i := range serverCount + agentCount {
		name := fmt.Sprint("s", i+1)
		if i >= serverCount {
			name = fmt.Sprint("a", i-serverCount+1)
		}
		m, err := r.newMember(name, i < serverCount)
		if err != nil {
			return err
		}
		r.keepers.Go(func() { m.run(keep) })
	}
	first := r.servers[0]
	first.up()
	r.say("%s makes the cluster", first.Name)
	if err := r.eventually(ctx, startTimeout, "the first server answers", func() error { return r.trust(ctx, first) }); err != nil {
		return err
	}
	for _, role := range []model.MachineRole{model.ServerMachine, model.AgentMachine} {
		any := 0
		token, err := r.client(first).CreateToken(ctx, client.NewToken{Role: role, Uses: &any})
		if err != nil {
			return err
		}
		for _, m := range slices.Concat(r.servers[1:], r.agents) {
			if m.server == (role == model.ServerMachine) {
				m.first = []string{"--join", fmt.Sprintf("%s:%d", first.Addr, apiPort), "--token", token.Token}
			}
		}
	}
	for _, m := range r.servers[1:] { // one after the other, as operators do
		m.up()
		r.say("%s joins", m.Name)
		if err := r.eventually(ctx, startTimeout, m.Name+" answers", func() error { _, err := r.client(m).Info(ctx); return err }); err != nil {
			return err
		}
	}
	r.say("%d agents join", len(r.agents))
	for _, m := range r.agents {
		m.up()
	}
	return r.eventually(ctx, startTimeout, "all nodes are ready", func() error { return r.allReady(ctx) })
}

func (r *run) newMember(name string, server bool) (*member, error) {
	machine, err := r.lab.Add(name, diskSize)
	if err != nil {
		return nil, err
	}
	out, err := os.Create(filepath.Join(r.Dir, name+".log"))
	if err != nil {
		return nil, err
	}
	m := &member{Machine: machine, server: server, bin: r.Bin, out: out, wrong: r.violate, wake: make(chan struct{}, 1)}
	if server {
		addr := fmt.Sprintf("%s:%d", m.Addr, apiPort)
		m.args = []string{"--name", name, "--listen", addr, "--advertise", addr, "--unreachable-after", "3s", "--calm", "4s", "--outage-share", "0.5"}
		r.servers = append(r.servers, m)
		return m, nil
	}
	m.args = []string{"--zone", "z" + name[1:]}
	r.agents = append(r.agents, m)
	return m, nil
}

// trust learns the cluster's roots and the administrator's token from a server.
func (r *run) trust(ctx context.Context, m *member) error {
	pem, err := os.ReadFile(filepath.Join(m.dataDir(), "identity", "ca.pem"))
	if err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(m.dataDir(), "admin.token"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return errors.New("the roots cannot be read")
	}
	r.token = strings.TrimSpace(string(token))
	r.transport = &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
		MaxIdleConnsPerHost: 32, IdleConnTimeout: 5 * time.Second, TLSHandshakeTimeout: 5 * time.Second,
	}
	_, err = r.client(m).Info(ctx)
	return err
}

// client returns a client of a server. How old the answer to a read may be goes to the lagKey of its context.
func (r *run) client(m *member) *client.Client {
	return client.New(fmt.Sprintf("https://%s:%d", m.Addr, apiPort), r.token, client.WithHTTPClient(&http.Client{Transport: reader{r.transport}}))
}

// lagKey holds a *time.Duration.
type lagKey struct{}

type reader struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t reader) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(req)
	lag, _ := req.Context().Value(lagKey{}).(*time.Duration)
	if lag == nil || req.Method != http.MethodGet || err != nil {
		return resp, err
	}
	*lag, err = time.ParseDuration(resp.Header.Get("Gantry-Lag") + "ms")
	if err != nil && resp.StatusCode == http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("the answer does not say how old it is: %w", err)
	}
	return resp, nil
}

// eventually waits until ok returns nil.
func (r *run) eventually(ctx context.Context, timeout time.Duration, what string, ok func() error) error {
	var err error
	said := time.Now()
	for end := time.Now().Add(timeout); time.Now().Before(end); {
		if err = ok(); err == nil {
			return nil
		}
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			r.say("waiting: %v", err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("%s: not within %v: %w", what, timeout, err)
}

// allReady says which server does not know every node as ready, or itself as part of a cluster with a leader.
func (r *run) allReady(ctx context.Context) error {
	leader := ""
	for _, s := range r.servers {
		if err := r.readyBy(ctx, s, &leader); err != nil {
			return fmt.Errorf("by %s, %w", s.Name, err)
		}
	}
	return nil
}

// readyBy says what is not ready by a server's word. leader is who leads by the word of others, "" at first.
func (r *run) readyBy(ctx context.Context, s *member, leader *string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	at := r.client(s).Fresh()
	c, err := at.Cluster(ctx)
	if err != nil {
		return err
	}
	if c.Leader == "" || *leader != "" && c.Leader != *leader {
		return fmt.Errorf("the leader is %q, by another %q", c.Leader, *leader)
	}
	*leader = c.Leader
	for _, m := range c.Servers {
		if m.Learner || !m.Answers {
			return fmt.Errorf("%s does not take part", m.Name)
		}
	}
	nodes, err := at.Nodes(ctx)
	if err != nil {
		return err
	}
	if len(nodes) != len(r.agents) {
		return fmt.Errorf("%d nodes are known", len(nodes))
	}
	for _, n := range nodes {
		r.nodes[n.Name] = n.ID
		if n.State != model.NodeReady {
			return fmt.Errorf("%s is %s", n.Name, n.State)
		}
	}
	return nil
}

// leader returns the server that leads by the word of most, nil for none.
func (r *run) leader(ctx context.Context) *member {
	votes := map[string]int{}
	var mu sync.Mutex
	var wait sync.WaitGroup
	for _, s := range r.servers {
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if c, err := r.client(s).Cluster(ctx); err == nil && c.Leader != "" {
				mu.Lock()
				votes[c.Leader]++
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	for _, s := range r.servers {
		if votes[s.Name] > serverCount/2 {
			return s
		}
	}
	return nil
}

// shutDown ends everything the way operators do.
func (r *run) shutDown() error {
	r.say("everything is asked to end")
	for _, m := range slices.Concat(r.agents, r.servers) {
		if err := m.end(syscall.SIGTERM); err != nil {
			r.violate("%v", err)
		}
	}
	r.census.close()
	return nil
}
