package scale

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
)

// TestSmall protects the whole path from a request to RUNNING and back on many nodes: all that was asked for runs, each
// instance once and where its record says, no node is ever given more than it has or one port twice, and all ends that is to.
func TestSmall(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := Start(ctx, Config{Dir: t.TempDir(), Nodes: 50, Size: nodeSize, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	census := NewCensus(c.Store.DB)
	defer census.Close()
	await := func(n int) {
		t.Helper()
		if err := census.Await(ctx, n); err != nil {
			t.Fatalf("%d of %d run: %v; faults: %v", len(census.Running), n, err, errors.Join(c.Faults()...))
		}
		check(t, c, census)
	}
	if _, err := c.Client.CreateApp(ctx, AppSpec("/web", 500)); err != nil {
		t.Fatal(err)
	}
	await(500)
	if _, err := c.Client.CreateApp(ctx, AppSpec("/api", 1000)); err != nil {
		t.Fatal(err)
	}
	await(1500)
	if _, err := c.Client.ScaleApp(ctx, "/api", 200); err != nil {
		t.Fatal(err)
	}
	await(700)
	if _, err := c.Client.ScaleApp(ctx, "/web", 1300); err != nil {
		t.Fatal(err)
	}
	await(1500)
	if _, err := c.Client.DeleteApp(ctx, "/web"); err != nil {
		t.Fatal(err)
	}
	await(200)
}

// check compares what nodes run with what the records say.
func check(t *testing.T, c *Cluster, census *Census) {
	t.Helper()
	if err := errors.Join(c.Faults()...); err != nil {
		t.Fatal(err)
	}
	view := c.Store.View()
	runs := map[model.InstanceID]model.NodeID{}
	for _, n := range c.Nodes {
		for _, id := range n.Running() {
			if other, ok := runs[id]; ok {
				t.Errorf("%s runs on %s and on %s", id, other, n.ID)
			}
			runs[id] = n.ID
		}
	}
	for id := range census.Running {
		if i := view.Instance(id); i != nil && runs[id] != i.Node {
			t.Errorf("%s should run on %s and runs on %q", id, i.Node, runs[id])
		}
	}
}
