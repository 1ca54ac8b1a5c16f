package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"sync"
	"time"

	"github.com/gantry-os/gantry/agent/artifact"
	"github.com/gantry-os/gantry/agent/flight"
	"github.com/gantry-os/gantry/agent/health"
	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// Config says what an agent has to work with.
type Config struct {
	Dir       string           // required: the agent's data directory
	Node      model.Node       // required: what the node has; see Detect
	OCI       runtime.Driver   // runs images; nil when the node cannot, and Node.OCI.Why says why
	Process   runtime.Driver   // runs programs of the node; nil when the node cannot
	Now       func() time.Time // default time.Now
	Logger    *slog.Logger     // default slog.Default
	LogSize   model.Bytes      // of a log file before it is rotated; default 10MiB
	LogKeep   int              // rotated log files kept; default 4
	CacheSize model.Bytes      // of artifacts kept; default 5GiB
	Starts    int              // instances that may start at once; default twice the cores
	Flush     time.Duration    // least time between reports while there are many; default 20ms

	gpus gpuDriver // default hostGPUs

	// PortFree tells whether no program that the agent does not know of listens on a TCP port. Default: try it.
	PortFree func(port uint16) bool

	Routes bool   // keep the endpoint table, which Table returns
	Resolv string // file that containers and isolated programs see as /etc/resolv.conf; empty for the node's own
}

// Agent runs instances on one node. It implements wire.Node.
type Agent struct {
	cfg       Config
	log       *slog.Logger
	store     *store
	oci       *inventory
	process   *inventory
	artifacts *artifact.Cache
	pulls     flight.Group[string]
	prober    *health.Prober
	reports   *reports
	usage     *sampler
	volumes   *volumes
	table     *table

	starts  chan struct{}      // bounds starts
	hands   chan struct{}      // bounds other calls of drivers
	fetches chan struct{}      // bounds pulls of different images
	probes  chan health.Permit // bounds command checks

	ctx context.Context // set by Start; pumps live as long
	wg  sync.WaitGroup

	mu     sync.Mutex // guards what follows
	pumps  map[model.InstanceID]*pump
	spoken bool                      // the server has said what this node runs
	broken map[model.InstanceID]bool // instances without a readable record; their tasks are spared until the server has spoken
}

// New returns an agent on cfg.Dir, which is made when it does not exist. Nothing runs before Start.
func New(cfg Config) (*Agent, error) {
	cfg.fill()
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("make agent directory: %w", err)
	}
	st, err := newStore(filepath.Join(cfg.Dir, "instances"))
	if err != nil {
		return nil, err
	}
	cache, err := artifact.New(artifact.Config{Dir: filepath.Join(cfg.Dir, "artifacts"), Size: cfg.CacheSize, Now: cfg.Now})
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, log: cfg.Logger, store: st, artifacts: cache,
		oci: newInventory(cfg.OCI), process: newInventory(cfg.Process),
		prober: health.NewProber(), reports: newReports(),
		starts: make(chan struct{}, cfg.Starts), hands: make(chan struct{}, 2*cfg.Starts),
		fetches: make(chan struct{}, 4), probes: make(chan health.Permit, cfg.Starts),
		pumps: map[model.InstanceID]*pump{}, broken: map[model.InstanceID]bool{},
	}
	a.usage = newSampler(a)
	a.table = newTable(filepath.Join(cfg.Dir, "routes.json"), cfg.Logger)
	mode := os.FileMode(0o700) // isolated programs see volumes as mounts
	if !cfg.Node.Isolated.OK {
		mode = 0o711
	}
	a.volumes, err = openVolumes(filepath.Join(cfg.Dir, "volumes"), mode, cfg.Logger, a.reports.addRemoved)
	return a, err
}

func (c *Config) fill() {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.LogSize = cmp.Or(c.LogSize, 10*model.MiB)
	c.LogKeep = cmp.Or(c.LogKeep, 4)
	c.Starts = cmp.Or(c.Starts, 2*goruntime.NumCPU())
	c.Flush = cmp.Or(c.Flush, 20*time.Millisecond)
	if c.PortFree == nil {
		c.PortFree = portFree
	}
	c.gpus = cmp.Or(c.gpus, hostGPUs)
	c.Node.Addr = cmp.Or(c.Node.Addr, "127.0.0.1")
}

// Start reads the records and begins to pump every instance they know, adopting what runs. It returns at once; the pumps end
// with ctx, and leave all tasks running. Wait waits for them.
func (a *Agent) Start(ctx context.Context) error {
	a.ctx = ctx
	records, broken, err := a.store.load()
	if err != nil {
		return err
	}
	a.mu.Lock()
	for _, id := range broken {
		a.log.Warn("an instance's record cannot be read; its tasks are left as they are until a server tells", "instance", id)
		a.broken[id] = true
	}
	for _, rec := range records {
		a.startPump(rec)
	}
	for _, id := range a.volumes.held() {
		if a.pumps[id] == nil {
			a.log.Warn("an instance without a record holds a volume; it keeps it until a server tells", "instance", id)
			a.broken[id] = true
		}
	}
	a.mu.Unlock()
	a.wg.Go(func() { a.volumes.run(ctx) })
	if a.cfg.Routes {
		a.table.load()
		a.wg.Go(func() { a.table.run(ctx) })
	}
	for _, v := range []*inventory{a.oci, a.process} {
		a.wg.Go(func() { v.run(ctx, a.spares, a.log) })
	}
	return nil
}

// Wait returns when everything that Start began has ended, after the end of its context.
func (a *Agent) Wait() { a.wg.Wait() }

// spares reports whether tasks of an instance that a driver holds are to be left to a pump. Those which no record knows
// are left until the server has said what this node runs: the record may be what was lost.
func (a *Agent) spares(id model.InstanceID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.spoken && a.pumps[id] == nil {
		a.broken[id] = true
	}
	return a.pumps[id] != nil || a.broken[id]
}

// startPump needs a.mu.
func (a *Agent) startPump(rec record) *pump {
	p := newPump(a, rec)
	a.pumps[p.id] = p
	a.wg.Go(func() { p.run(a.ctx) })
	return p
}

// pump returns the pump of an instance, or nil.
func (a *Agent) pump(id model.InstanceID) *pump {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pumps[id]
}

// all returns all pumps.
func (a *Agent) all() []*pump {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*pump, 0, len(a.pumps))
	for _, p := range a.pumps {
		out = append(out, p)
	}
	return out
}

// forget is a pump's last act after everything of its instance is gone.
func (a *Agent) forget(id model.InstanceID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pumps, id)
}

// apply carries out a message of the server.
func (a *Agent) apply(d wire.Down) {
	if d.Full {
		a.reports.forgetRemoved() // the server says anew what it waits for
		a.findStrangers(slices.Concat(d.Volumes, d.DropVolumes))
	}
	a.volumes.drop(d.DropVolumes, d.Full)
	for _, r := range d.Routes {
		a.table.apply(r.Change)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if d.Full {
		a.spoken = true
		a.dropOthers(d.Set)
	}
	for _, s := range d.Set {
		a.assign(s)
	}
	for _, id := range d.Drop {
		if p := a.pumps[id]; p != nil {
			p.drop()
		}
	}
}

// findStrangers says which volumes of this node the server does not know. They are left as they are: data is deleted only when
// a user asks for it.
func (a *Agent) findStrangers(known []model.VolumeID) {
	dirs, err := a.volumes.strangers(known)
	if err != nil {
		a.log.Warn("the volumes of this node cannot be listed", "error", err)
	}
	for _, dir := range dirs {
		a.log.Warn("the server does not know a volume of this node; it is left as it is", "directory", dir)
	}
}

// dropOthers drops every instance that is not in set.
func (a *Agent) dropOthers(set []wire.Assignment) {
	keep, runs := make(map[model.InstanceID]bool, len(set)), make(map[model.InstanceID]bool, len(set))
	for _, s := range set {
		keep[s.ID], runs[s.ID] = true, !s.Over
	}
	for id, p := range a.pumps {
		if !keep[id] {
			p.drop()
		}
	}
	for id := range a.broken {
		delete(a.broken, id)
		if runs[id] {
			continue
		}
		// A pump without a wish clears up, and keeps the logs of what the server still knows.
		p := a.startPump(record{Assignment: wire.Assignment{ID: id, Desired: model.Halt, Over: keep[id], Spec: &model.Spec{}}})
		if !keep[id] {
			p.drop()
		}
	}
}

func (a *Agent) assign(s wire.Assignment) {
	if p := a.pumps[s.ID]; p != nil {
		p.assign(s)
		return
	}
	if s.Over || s.Spec == nil {
		return // nothing of it is left here
	}
	a.startPump(record{Assignment: s, Status: model.Status{Attempt: s.Attempt, Phase: model.PhaseAssigned, Since: a.cfg.Now()}})
}

// driver returns what runs a container, or the sentence why nothing does.
func (a *Agent) driver(c *model.Container) (runtime.Driver, error) {
	v, why := a.inventory(c), a.cfg.Node.Isolated.Why
	if c.Image != "" {
		why = a.cfg.Node.OCI.Why
	}
	if v.driver != nil {
		return v.driver, nil
	}
	kind := "programs of the node"
	if c.Image != "" {
		kind = "images"
	}
	return nil, fmt.Errorf("%w: this node runs no %s: %s", runtime.ErrInvalid, kind, cmp.Or(why, "it was started without"))
}

func (a *Agent) inventory(c *model.Container) *inventory {
	if c.Image != "" {
		return a.oci
	}
	return a.process
}

// enter takes a place in a gate. leave gives it back.
func enter(ctx context.Context, gate chan struct{}) error {
	select {
	case gate <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func leave(gate chan struct{}) { <-gate }

// sleep waits for d, or less when ctx ends, and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
