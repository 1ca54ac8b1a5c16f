package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/test/robustness/history"
)

const (
	registerClients = 4
	appClients      = 2
	registerPause   = 60 * time.Millisecond
	appPause        = 1500 * time.Millisecond
	probePause      = 100 * time.Millisecond
	keyCalls        = 60 // calls to one register before the next is used: the search for an order has to end
	probeCalls      = 6  // likewise of calls that do not wait for each other
)

// startClients lets clients work until ctx ends, and returns what waits for them.
func (r *run) startClients(ctx context.Context) (wait func()) {
	var all sync.WaitGroup
	var calls atomic.Uint64
	for n := range registerClients {
		rnd := rand.New(rand.NewPCG(r.Seed, uint64(100+n)))
		all.Go(func() {
			r.every(ctx, registerPause, func() { r.useRegister(ctx, rnd, n, calls.Add(1)/keyCalls) })
		})
	}
	for n := range appClients {
		rnd := rand.New(rand.NewPCG(r.Seed, uint64(200+n)))
		all.Go(func() {
			r.every(ctx, appPause, func() { r.useApp(ctx, rnd, registerClients+n) })
		})
	}
	all.Go(func() { // each call by itself: one that hangs is not to keep the next from being made
		var n uint64
		r.every(ctx, probePause, func() {
			n++
			at, key := r.servers[n%serverCount], n/probeCalls
			all.Go(func() { r.writeRegister(ctx, at, registerClients+appClients, fmt.Sprint("/probe", key), n) })
		})
	})
	return all.Wait
}

// every calls f with pauses until ctx ends, but not while the gate is closed.
func (r *run) every(ctx context.Context, pause time.Duration, f func()) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		r.gate.RLock()
		if ctx.Err() == nil {
			f()
		}
		r.gate.RUnlock()
	}
}

// useRegister writes or reads a role's weight, which costs the cluster nothing else.
func (r *run) useRegister(ctx context.Context, rnd *rand.Rand, who int, key uint64) {
	at, role := r.servers[rnd.IntN(serverCount)], fmt.Sprint("/key", key)
	switch rnd.IntN(4) {
	case 0, 1:
		r.writeRegister(ctx, at, who, role, nextValue.Add(1))
	case 2:
		r.readRegister(ctx, at, who, role, history.Fresh)
	case 3:
		r.readRegister(ctx, at, who, role, history.Stale)
	}
}

var nextValue atomic.Uint64

func (r *run) writeRegister(ctx context.Context, at *member, who int, role string, value uint64) {
	r.call(ctx, history.Op{Client: who, Server: at.Name, Kind: history.Write, Key: "role " + role, Value: fmt.Sprint(value)}, func(ctx context.Context, _ *history.Op) error {
		_, err := r.client(at).PutRole(ctx, &model.Role{ID: model.RoleID(role), Weight: float64(value)})
		return err
	})
}

func (r *run) readRegister(ctx context.Context, at *member, who int, role string, kind history.Kind) {
	r.call(ctx, history.Op{Client: who, Server: at.Name, Kind: kind, Key: "role " + role}, func(ctx context.Context, o *history.Op) error {
		got, err := r.reader(at, kind).Role(ctx, model.RoleID(role))
		if status(err) == http.StatusNotFound {
			return nil
		}
		if err == nil {
			o.Value = strconv.FormatFloat(got.Weight, 'f', -1, 64)
		}
		return err
	})
}

// reader returns a client of a server for reads of a kind.
func (r *run) reader(at *member, kind history.Kind) *client.Client {
	if kind == history.Fresh {
		return r.client(at).Fresh()
	}
	return r.client(at)
}

// useApp changes an app, looks at it, or asks where it would go.
func (r *run) useApp(ctx context.Context, rnd *rand.Rand, who int) {
	at, id := r.servers[rnd.IntN(serverCount)], apps[rnd.IntN(len(apps))]
	spec := r.spec(id, 1+rnd.IntN(agentCount), fmt.Sprint(nextValue.Add(1)), rnd.IntN(3))
	switch what := rnd.IntN(10); {
	case what < 5:
		r.call(ctx, history.Op{Client: who, Server: at.Name, Kind: history.Write, Key: "app " + string(id), Value: spec.Labels[valueLabel]},
			func(ctx context.Context, _ *history.Op) error { _, err := r.client(at).PutApp(ctx, spec); return err })
	case what < 7:
		r.readApp(ctx, at, who, id, history.Fresh)
	case what < 8:
		r.readApp(ctx, at, who, id, history.Stale)
	case what < 9:
		r.note(ctx, at, "restart", func(ctx context.Context) error { _, err := r.client(at).RestartApp(ctx, id); return err })
	default:
		r.note(ctx, at, "plan", func(ctx context.Context) error { _, err := r.client(at).Plan(ctx, spec); return err })
	}
}

// readApp reads what was last written into an app: the newest version, which need not be the deployed one.
func (r *run) readApp(ctx context.Context, at *member, who int, id model.AppID, kind history.Kind) {
	r.call(ctx, history.Op{Client: who, Server: at.Name, Kind: kind, Key: "app " + string(id)}, func(ctx context.Context, o *history.Op) error {
		versions, err := r.reader(at, kind).Versions(ctx, id)
		if err == nil && len(versions) == 0 {
			return errors.New("the app has no version")
		}
		if err == nil {
			o.Value = versions[0].Spec.Labels[valueLabel]
		}
		return err
	})
}

// call makes a call and notes what came of it.
func (r *run) call(ctx context.Context, o history.Op, f func(context.Context, *history.Op) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	o.Call = r.now()
	err := f(context.WithValue(ctx, lagKey{}, &o.Lag), &o)
	o.Return = r.now()
	switch code := status(err); {
	case err == nil:
		o.Result = history.OK
	case code >= 400 && code < 500, errors.Is(err, syscall.ECONNREFUSED): // who is not reached does nothing
		o.Result, o.Why = history.Refused, err.Error()
	default:
		o.Result, o.Why = history.Unknown, err.Error()
	}
	r.log.Add(o)
}

// note makes a call that reads and writes nothing of which the history knows.
func (r *run) note(ctx context.Context, at *member, what string, f func(context.Context) error) {
	o := history.Op{Client: -1, Server: at.Name, Kind: history.Kind(what), Key: what}
	r.call(ctx, o, func(ctx context.Context, _ *history.Op) error { return f(ctx) })
}

// status returns the HTTP status of a refusal, 0 for anything else.
func status(err error) int {
	var e *client.Error
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

// lastReads reads every register once more, at every server.
func (r *run) lastReads(ctx context.Context) {
	keys := map[string]bool{}
	for _, o := range r.log.Ops() {
		keys[o.Key] = true
	}
	for key := range keys {
		for _, s := range r.servers {
			var what, id string
			fmt.Sscan(key, &what, &id)
			switch what {
			case "role":
				r.readRegister(ctx, s, 0, id, history.Fresh)
			case "app":
				r.readApp(ctx, s, 0, model.AppID(id), history.Fresh)
			}
		}
	}
}
