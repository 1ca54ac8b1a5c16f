// Package memory is a state backend without durability, for tests and simulations.
package memory

import (
	"context"
	"sync"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// Open returns an empty DB with a Store of its own. now gives events their time.
func Open(now func() time.Time) *state.DB { return New().Open(now) }

// Store is what durable storage would be: several servers may open it, and open it again.
type Store struct {
	mu      sync.Mutex
	rev     uint64
	term    state.Term
	records map[state.Key]record
	open    []*state.DB
}

type record struct {
	rev uint64
	val any // never handed out: each DB gets copies
}

// New returns an empty store.
func New() *Store { return &Store{records: map[state.Key]record{}} }

// Open returns a DB that holds what the store has, as one more server of the same cluster. now gives events their time.
func (s *Store) Open(now func() time.Time) *state.DB {
	s.mu.Lock()
	defer s.mu.Unlock()
	db := state.New(s, now)
	ops := make([]state.Op, 0, len(s.records))
	for key, r := range s.records {
		ops = append(ops, state.Op{Key: key, Read: r.rev, Val: clone(r.val)})
	}
	db.Load(s.rev, ops)
	s.open = append(s.open, db)
	return db
}

// Commit implements state.Backend.
func (s *Store) Commit(term state.Term, _ uint64, ops []state.Op) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if term != 0 && term != s.term {
		return 0, state.ErrDeposed
	}
	for _, op := range ops {
		if s.records[op.Key].rev != op.Read {
			return s.rev, state.ErrConflict
		}
	}
	s.rev++
	for _, op := range ops {
		if op.Val == nil {
			delete(s.records, op.Key)
		} else {
			s.records[op.Key] = record{s.rev, clone(op.Val)}
		}
	}
	s.tell(ops)
	return s.rev, nil
}

// tell brings a transaction into every DB, in order. One that is alone knows its own writes.
func (s *Store) tell(ops []state.Op) {
	if len(s.open) < 2 {
		return
	}
	for _, db := range s.open {
		own := make([]state.Op, len(ops))
		for i, op := range ops {
			own[i] = state.Op{Key: op.Key, Read: op.Read, Val: clone(op.Val)}
		}
		db.Apply(s.rev, own)
	}
}

// Lead implements state.Backend.
func (s *Store) Lead(context.Context, string) (state.Term, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.term++
	return s.term, s.rev, nil
}

// clone copies a record as deep as a DB writes to it, which is its revision.
func clone(val any) any {
	switch v := val.(type) {
	case *model.App:
		return shallow(v)
	case *model.AppVersion:
		return shallow(v)
	case *model.Instance:
		return shallow(v)
	case *model.Deployment:
		return shallow(v)
	case *model.Node:
		return shallow(v)
	case *model.NodeSettings:
		return shallow(v)
	case *model.Role:
		return shallow(v)
	case *model.Pool:
		return shallow(v)
	case *model.Reservation:
		return shallow(v)
	case *model.PersistentVolume:
		return shallow(v)
	case *model.Cluster:
		return shallow(v)
	case *model.Machine:
		return shallow(v)
	case *model.JoinToken:
		return shallow(v)
	case *model.Revocation:
		return shallow(v)
	}
	return nil
}

func shallow[T any](v *T) *T {
	out := *v
	return &out
}
