package crowd

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	BeServer()
	os.Exit(m.Run())
}

// A crowd of agents gets its instances from a cluster of three servers, goes over to another leader when theirs is killed, and is
// served again after all servers were; each of its instances is started once, and no other. This is the bench, small.
func TestSmall(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	b := &Bench{Dir: t.TempDir(), Shrink: 200, Steady: 100 * time.Millisecond, Logger: slog.New(slog.DiscardHandler), Note: t.Logf}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, row := range Rows {
		if row.Name == "adopt_100" { // needs the built binary; test/cluster has it
			continue
		}
		value, err := row.Run(b, ctx)
		if err != nil {
			t.Fatalf("%s: %v", row.Name, err)
		}
		t.Logf("%s %g %s", row.Name, value, row.Unit)
		switch row.Name {
		case "leader_memory", "reconnect_5000", "start_100k":
			if value <= 0 {
				t.Errorf("%s is %g", row.Name, value)
			}
		}
	}
	if n := len(b.crowd.nodes); n != agents/200 || b.crowd.Served() != n {
		t.Errorf("%d of %d agents are served", b.crowd.Served(), n)
	}
	runs, err := b.crowd.settled(ctx)
	if err != nil || runs != agents/200*perAgent {
		t.Errorf("%d instances run: %v", runs, err)
	}
}
