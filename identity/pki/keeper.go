package pki

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// Keeper is the loop of every server that brings what the truth says of trust to where it takes effect: the authority to
// the server's disk, revocations to its connections, and a change of trust to its machine.
type Keeper struct {
	store     state.Store
	authority *Authority
	machines  []*Machine // in this process; the server's own first
	logger    *slog.Logger
	watch     *state.Watch
	admin     func(identity.Token) error // takes the administrator's token whenever it may be another; nil for nobody
	stepped   bool                       // the last change was seen through
}

// NewKeeper returns a loop over a server's own store. machines are those in this process.
func NewKeeper(store state.Store, a *Authority, logger *slog.Logger, machines ...*Machine) *Keeper {
	return &Keeper{store: store, authority: a, machines: machines, logger: logger}
}

// KeepAdmin has take told the administrator's token whenever it may be another, before Run is called. What take fails with is tried
// again.
func (k *Keeper) KeepAdmin(take func(identity.Token) error) { k.admin = take }

// Run works until ctx ends. It is called once.
func (k *Keeper) Run(ctx context.Context) error {
	_, k.watch = k.store.Watch()
	defer k.watch.Close()
	return state.Loop{Name: "trust", Now: time.Now, Logger: k.logger, Step: k.Step, Ready: k.watch.Ready}.Run(ctx)
}

// Step brings everything up to date.
func (k *Keeper) Step(context.Context) (time.Time, error) {
	v := k.store.View()
	if k.watch != nil {
		var changes state.Changes
		if v, changes = k.watch.Take(); k.stepped && !changes.Trust && !changes.Full {
			return time.Time{}, nil
		}
	}
	k.stepped = false
	var revoked []string
	for r := range v.Revocations() {
		revoked = append(revoked, model.RevocationKey(r.ID, r.Epoch))
	}
	for _, m := range k.machines {
		m.Revoke(revoked)
		if m.refuses(m.Peer()) != nil {
			m.Nudge() // it hears it when it checks in, and ends
		}
	}
	c := v.Cluster()
	if c == nil {
		return time.Time{}, nil
	}
	if err := k.authority.Update(c); err != nil {
		return time.Time{}, fmt.Errorf("keep the authority: %w", err)
	}
	if err := k.keepAdmin(); err != nil {
		return time.Time{}, fmt.Errorf("keep the administrator's token: %w", err)
	}
	for _, m := range k.machines {
		if m.Trust() < c.Trust {
			m.Nudge()
		}
	}
	k.stepped = true
	return time.Time{}, nil
}

func (k *Keeper) keepAdmin() error {
	if k.admin == nil {
		return nil
	}
	t, err := k.authority.AdminToken()
	if err != nil {
		return err
	}
	return k.admin(t)
}
