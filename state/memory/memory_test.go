package memory

import (
	"testing"
	"time"

	"github.com/gantry-os/gantry/state"
	"github.com/gantry-os/gantry/state/conformance"
)

type storage struct{ *Store }

func (s storage) Open(*testing.T) *state.DB { return s.Store.Open(time.Now) }

func (s storage) Reopen(*testing.T) *state.DB {
	s.mu.Lock()
	s.open = nil
	s.mu.Unlock()
	return s.Store.Open(time.Now)
}

func TestConformance(t *testing.T) {
	conformance.Run(t, func(*testing.T) conformance.Storage { return storage{New()} })
}
