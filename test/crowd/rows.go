package crowd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/test/scale"
)

// Row is one figure.
type Row struct {
	Name string
	Unit string
	Goal float64 // at most
	Run  func(*Bench, context.Context) (float64, error)
}

// Rows is everything that is measured, in this order: each goes on from the cluster that the one before it left.
var Rows = []Row{
	{"reconnect_5000", "s", 15, (*Bench).reconnectHalf},
	{"steady_cpu", "cores", 1, (*Bench).steady},
	{"steady_cpu_servers", "cores", 1, (*Bench).steadyServers},
	{"leader_memory", "MiB", 1536, (*Bench).memory},
	{"leader_memory_most", "MiB", 1536, (*Bench).memoryMost},
	{"reconnect_10000", "s", 15, (*Bench).reconnectAll},
	{"reconnect_deposed", "leaders", 0, (*Bench).deposedRow},
	{"start_100k", "s", 5, (*Bench).startOne},
	{"start_100k_cluster", "s", 5, (*Bench).startCluster},
	{"adopt_100", "s", 1, (*Bench).adopt},
}

// Bench measures rows.
type Bench struct {
	Dir     string // for the servers; must be on a real disk
	Nodes   string // for the records of simulated machines; default within Dir
	Bin     string // directory of the built binary and its helpers
	Shrink  int    // divides all sizes; 1 for the real ones
	Steady  time.Duration
	Profile string // prefix of files for profiles of servers; empty for none
	Logger  *slog.Logger
	Note    func(format string, args ...any) // says more about a figure

	servers *Servers
	crowd   *Crowd
	each    int // instances of each agent
	apps    int

	used    map[string]time.Duration // in the steady state, by process
	deposed int                      // leaders, by anything but what was done to them
}

// Sizes of the whole.
const (
	agents   = 10_000
	perAgent = 10
	perApp   = 1000
	patience = 10 * time.Minute // for whatever has to happen
)

// sizeFor is a machine that holds n instances of scale.AppSpec, so that all agents have as many.
func sizeFor(n int) model.Resources {
	return model.Resources{CPUs: model.CPU(n * 500), Memory: model.Bytes(n) * 2 * model.GiB, Disk: model.TiB}
}

// Close ends what rows left running.
func (b *Bench) Close() error {
	var errs []error
	if b.crowd != nil {
		errs = append(errs, b.crowd.Close())
	}
	if b.servers != nil {
		errs = append(errs, b.servers.Close())
	}
	return errors.Join(errs...)
}

// grow makes the cluster as large as n agents with their instances, unless it is.
func (b *Bench) grow(ctx context.Context, n int) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if b.servers == nil {
		if b.servers, err = StartServers(ctx, b.Dir, 3, b.Profile); err != nil {
			return err
		}
		dir := b.Nodes
		if dir == "" {
			dir = filepath.Join(b.Dir, "nodes")
		}
		b.each = cmp.Or(b.each, perAgent)
		b.crowd = NewCrowd(dir, sizeFor(b.each), b.Logger)
	}
	if more := n - len(b.crowd.nodes); more > 0 {
		began := time.Now()
		if err := b.crowd.Grow(ctx, b.servers, more); err != nil {
			return err
		}
		if err := b.crowd.AwaitAll(ctx); err != nil {
			return err
		}
		b.Note("%d machines have joined after %.1f s", more, time.Since(began).Seconds())
	}
	return b.fill(ctx, n*b.each)
}

// fill has as many instances run.
func (b *Bench) fill(ctx context.Context, instances int) error {
	api, err := b.servers.Client()
	if err != nil {
		return err
	}
	began := time.Now()
	each := max(1, perApp/b.Shrink)
	for ; b.apps*each < instances; b.apps++ {
		id := model.AppID(fmt.Sprintf("/shop/service-%03d", b.apps))
		if err := b.put(ctx, api, scale.AppSpec(id, each)); err != nil {
			return err
		}
	}
	if err := b.awaitHealthy(ctx, b.apps*each); err != nil {
		return err
	}
	b.Note("%d instances run, the last of them after %.1f s", b.apps*each, time.Since(began).Seconds())
	return nil
}

// put makes an app. A busy store may not answer; the same is asked again then.
func (b *Bench) put(ctx context.Context, api *client.Client, spec *model.Spec) error {
	for {
		_, err := api.PutApp(ctx, spec)
		if err == nil {
			return nil
		}
		b.Note("%v; trying again", err)
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
	}
}

// awaitHealthy returns once n instances run, by the word of a server.
func (b *Bench) awaitHealthy(ctx context.Context, n int) error {
	api, err := b.servers.Client()
	if err != nil {
		return err
	}
	for {
		sum, apps := 0, 0
		list, err := api.Apps(ctx)
		for _, a := range list {
			sum += a.Healthy
			apps++
		}
		if err == nil && sum == n {
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d of %d instances of %d apps run: %w", sum, n, apps, errors.Join(context.Cause(ctx), err))
		}
	}
}

// warmUp is how long a session has to live for its end to be taken for that of many at once, and more: what is left of the fill is
// written then.
const warmUp = 30 * time.Second

// rest makes the cluster as large as n agents, and lets it come to rest.
func (b *Bench) rest(ctx context.Context, n int) error {
	if err := b.grow(ctx, n); err != nil {
		return err
	}
	return wait(ctx, warmUp/time.Duration(b.Shrink))
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// reconnectHalf kills the leader of half the agents.
func (b *Bench) reconnectHalf(ctx context.Context) (float64, error) {
	return b.reconnect(ctx, agents/2)
}

// reconnectAll kills the leader of all of them.
func (b *Bench) reconnectAll(ctx context.Context) (float64, error) { return b.reconnect(ctx, agents) }

// reconnect kills the leader of n agents: seconds until another serves all of them.
func (b *Bench) reconnect(ctx context.Context, n int) (float64, error) {
	if err := b.rest(ctx, n/b.Shrink); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	leader, err := b.servers.Leader(ctx)
	if err != nil {
		return 0, err
	}
	deposed, err := b.servers.Deposed()
	if err != nil {
		return 0, err
	}
	ended, begun := b.crowd.Ended(), b.crowd.Begun()
	endProfile, err := b.servers.startProfile()
	if err != nil {
		return 0, err
	}
	before, err := b.times()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := b.servers.Kill(leader); err != nil {
		return 0, err
	}
	if err := b.awaitServed(ctx, ended, began); err != nil {
		return 0, err
	}
	took := time.Since(began)
	after, err := b.times()
	if err != nil {
		return 0, err
	}
	for name, t := range after {
		b.Note("%s used %.1f s of processor time", name, (t - before[name]).Seconds())
	}
	if err := endProfile(); err != nil {
		return 0, err
	}
	more, err := b.servers.Deposed()
	if err != nil {
		return 0, err
	}
	b.deposed += more - deposed
	b.Note("another leader serves %d agents, which made %d connections; %d sessions ended besides, %d leaders were deposed",
		len(b.crowd.nodes), b.crowd.Begun()-begun, b.crowd.Ended()-ended-len(b.crowd.nodes), more-deposed)
	if err := b.servers.Start(ctx, leader); err != nil {
		return 0, err
	}
	b.Note("server %s was ready %.1f s after it was started again", leader.Name, leader.took.Seconds())
	return took.Seconds(), b.check(ctx)
}

// awaitServed returns once every agent has lost its session, and has another.
func (b *Bench) awaitServed(ctx context.Context, ended int, began time.Time) error {
	all := len(b.crowd.nodes)
	if err := b.crowd.AwaitEnded(ctx, ended+all); err != nil {
		return err
	}
	for _, share := range []float64{0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1} {
		n := int(share * float64(all))
		if err := b.crowd.Await(ctx, n); err != nil {
			return err
		}
		b.Note("%d agents are served after %.1f s", n, time.Since(began).Seconds())
	}
	return nil
}

// check fails when anything has happened to an instance.
func (b *Bench) check(ctx context.Context) error {
	runs, err := b.crowd.settled(ctx)
	if want := b.apps * max(1, perApp/b.Shrink); err == nil && runs != want {
		err = fmt.Errorf("%d instances run instead of %d", runs, want)
	}
	return errors.Join(err, b.awaitHealthy(ctx, runs))
}

// steady is what all processes use while nothing happens.
func (b *Bench) steady(ctx context.Context) (float64, error) {
	if err := b.observe(ctx); err != nil {
		return 0, err
	}
	sum := time.Duration(0)
	for name, d := range b.used {
		sum += d
		b.Note("%s: %.3f cores", name, d.Seconds()/b.Steady.Seconds())
	}
	return sum.Seconds() / b.Steady.Seconds(), nil
}

// steadyServers is what the servers' part of it is.
func (b *Bench) steadyServers(ctx context.Context) (float64, error) {
	if err := b.observe(ctx); err != nil {
		return 0, err
	}
	sum := time.Duration(0)
	for name, d := range b.used {
		if name != crowdName {
			sum += d
		}
	}
	return sum.Seconds() / b.Steady.Seconds(), nil
}

const crowdName = "agents"

// observe measures what processes use in the steady state, unless that was done.
func (b *Bench) observe(ctx context.Context) error {
	if b.used != nil {
		return nil
	}
	if err := b.rest(ctx, agents/b.Shrink); err != nil {
		return err
	}
	endProfile, err := b.servers.startProfile()
	if err != nil {
		return err
	}
	before, err := b.times()
	if err != nil {
		return err
	}
	ended := b.crowd.Ended()
	if err := wait(ctx, b.Steady); err != nil {
		return err
	}
	after, err := b.times()
	if err != nil {
		return err
	}
	if n := b.crowd.Ended() - ended; n > 0 {
		return fmt.Errorf("%d sessions ended while nothing happened", n)
	}
	b.used = map[string]time.Duration{}
	for name, t := range after {
		b.used[name] = t - before[name]
	}
	return endProfile()
}

// times returns what each process has used.
func (b *Bench) times() (out map[string]time.Duration, err error) {
	out = map[string]time.Duration{}
	if out[crowdName], err = ownTime(); err != nil {
		return nil, err
	}
	for _, s := range b.servers.running() {
		if out[s.Name], err = s.processorTime(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// memory is what the leader holds in the steady state.
func (b *Bench) memory(ctx context.Context) (float64, error) {
	now, _, err := b.leaderMemory(ctx)
	return now, err
}

// memoryMost is the most that it held since it started, which was before all machines joined.
func (b *Bench) memoryMost(ctx context.Context) (float64, error) {
	_, most, err := b.leaderMemory(ctx)
	return most, err
}

func (b *Bench) leaderMemory(ctx context.Context) (now, most float64, err error) {
	if err := b.observe(ctx); err != nil {
		return 0, 0, err
	}
	leader, err := b.servers.Leader(ctx)
	if err != nil {
		return 0, 0, err
	}
	for _, s := range b.servers.running() {
		now, most, err := s.memory()
		if err != nil {
			return 0, 0, err
		}
		b.Note("%s: %.0f MiB, %.0f at most", s.Name, now, most)
	}
	return leader.memory()
}

// deposedRow is how many leaders were deposed by others while agents came to them.
func (b *Bench) deposedRow(context.Context) (float64, error) { return float64(b.deposed), nil }

// store has all instances stored. Where no row before has made all agents, fewer run them.
func (b *Bench) store(ctx context.Context) error {
	if b.crowd == nil {
		b.each = perAgent * 50
	}
	return b.grow(ctx, agents*perAgent/b.each/b.Shrink)
}

// startOne restarts a server that does not lead: seconds from its start until it has answered a read that knows all.
func (b *Bench) startOne(ctx context.Context) (float64, error) {
	if err := b.store(ctx); err != nil {
		return 0, err
	}
	leader, err := b.servers.Leader(ctx)
	if err != nil {
		return 0, err
	}
	for _, s := range b.servers.running() {
		if s != leader {
			return b.restart(ctx, s)
		}
	}
	return 0, errors.New("only one server runs")
}

// startCluster restarts all servers: seconds until each has answered a read that knows all.
func (b *Bench) startCluster(ctx context.Context) (float64, error) {
	if err := b.store(ctx); err != nil {
		return 0, err
	}
	ended := b.crowd.Ended()
	took, err := b.restart(ctx, b.servers.running()...)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := b.crowd.AwaitEnded(ctx, ended+len(b.crowd.nodes)); err != nil {
		return 0, err
	}
	return took, errors.Join(b.crowd.AwaitAll(ctx), b.check(ctx))
}

// restart kills servers and starts them again: seconds until each has answered a read that knows all.
func (b *Bench) restart(ctx context.Context, list ...*Server) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := b.servers.Kill(list...); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := b.servers.Start(ctx, list...); err != nil {
		return 0, err
	}
	for _, s := range list {
		b.Note("%s was ready after %.2f s", s.Name, s.took.Seconds())
		if apps, err := b.servers.knows(ctx, s); err != nil || apps != b.apps {
			return 0, errors.Join(err, fmt.Errorf("%s knows %d of %d apps", s.Name, apps, b.apps))
		}
	}
	return time.Since(began).Seconds(), nil
}
