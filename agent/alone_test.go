package agent

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

// reconnect opens a session of the agent that is up. cut ends it, and the agent goes on.
func (w *world) reconnect(ctx context.Context, full ...wire.Assignment) (cut func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	w.srv.down <- wire.Down{Full: true, Set: full}
	go func() {
		defer close(ended)
		w.agent.Session(ctx, w.srv)
	}()
	w.wait(100 * time.Millisecond)
	return func() { cancel(); <-ended }
}

// An agent without a server keeps its instances, restarts those that end by their policy and goes on with checks. When it is
// back it tells how all of them are, with the attempts that there were, also when it was started anew meanwhile; and it
// stops what is over by the server's word, or not known there any more.
func TestAlone(t *testing.T) {
	for name, restarts := range map[string]bool{"same agent": false, "another agent": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				full := []wire.Assignment{program("calm-1"), program("crash-1"), program("lost-1"), program("over-1"), program("strange-1")}
				w.up()
				cut := w.reconnect(t.Context(), full...)
				w.wait(10 * time.Second)
				for _, a := range full {
					w.wantPhase(a.ID, 1, model.PhaseRunning)
				}
				cut()
				sent := w.srv.sends

				w.proc.exit("crash-1.main", model.Exit{Code: 3})
				w.wait(5 * time.Second)
				w.proc.exit("crash-1.main", model.Exit{Code: 4})
				w.wait(500 * time.Millisecond)
				w.wantPhase("crash-1", 2, model.PhaseBackoff)
				if restarts {
					w.end()
					w.proc.exit("lost-1.main", model.Exit{Code: 9})
					w.up() // still without a server
				} else {
					w.proc.exit("lost-1.main", model.Exit{Code: 9})
				}
				w.wait(time.Minute)
				w.wantPhase("calm-1", 1, model.PhaseRunning)
				w.wantPhase("crash-1", 3, model.PhaseRunning)
				w.wantPhase("lost-1", 2, model.PhaseRunning)
				w.wantPhase("over-1", 1, model.PhaseRunning)
				if w.srv.sends != sent {
					t.Fatal("it spoke without a session")
				}
				w.proc.exit("crash-1.main", model.Exit{Code: 5})
				w.wait(500 * time.Millisecond)

				over := full[3]
				over.Over = true
				cut = w.reconnect(t.Context(), full[0], full[1], full[2], over)
				defer cut()
				w.wait(200 * time.Millisecond)
				if s := w.srv.get("calm-1"); s.Phase != model.PhaseRunning || s.Attempt != 1 || !s.Ready {
					t.Errorf("calm-1 is told as %+v", s)
				}
				if s := w.srv.get("crash-1"); s.Phase != model.PhaseBackoff || s.Attempt != 3 || len(s.Tasks) != 1 || s.Tasks[0].Exit == nil || s.Tasks[0].Exit.Code != 5 {
					t.Errorf("crash-1 is told as %+v", s)
				}
				if s := w.srv.get("lost-1"); s.Phase != model.PhaseRunning || s.Attempt != 2 {
					t.Errorf("lost-1 is told as %+v", s)
				}
				w.wait(15 * time.Second)
				if held := w.proc.held(); !slices.Equal(held, []string{"calm-1.main", "crash-1.main", "lost-1.main"}) {
					t.Errorf("left run %v", held)
				}
				w.end()
			})
		})
	}
}
