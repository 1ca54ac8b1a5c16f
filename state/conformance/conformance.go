// Package conformance holds what every state backend must do. Each backend's test runs it.
package conformance

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// Storage is where a backend keeps its records. All DBs that a test opens on it end with the test.
type Storage interface {
	// Open returns a DB of one more server on the same storage.
	Open(t *testing.T) *state.DB
	// Reopen ends all servers and returns a DB of the first one that comes back.
	Reopen(t *testing.T) *state.DB
}

// Run runs the suite. fresh returns an empty storage.
func Run(t *testing.T, fresh func(t *testing.T) Storage) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Storage)
	}{
		{"Atomic", testAtomic},
		{"CallbackError", testCallbackError},
		{"CallbackPanic", testCallbackPanic},
		{"ReadYourWrites", testReadYourWrites},
		{"LoopAndWrite", testLoopAndWrite},
		{"ViewsStay", testViewsStay},
		{"AnyOperations", testAnyOperations},
		{"Trust", testTrust},
		{"WatchLosesNothing", testWatchLosesNothing},
		{"WatchFull", testWatchFull},
		{"EventsFollowWrites", testEventsFollowWrites},
		{"EventsBounded", testEventsBounded},
		{"Fencing", testFencing},
		{"FencingUnderLoad", testFencingUnderLoad},
		{"LeaderSeesAll", testLeaderSeesAll},
		{"ConcurrentUpdates", testConcurrentUpdates},
		{"ConflictingServers", testConflictingServers},
		{"Cancel", testCancel},
		{"Reopen", testReopen},
		{"Stop", testStop},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, fresh(t)) })
	}
}

// patience bounds waiting for what must come.
const patience = 30 * time.Second

// epoch is when the records of tests were made.
var epoch = time.Date(2026, 5, 9, 7, 29, 33, 123456789, time.UTC)

func update(t *testing.T, s state.Store, fn func(*state.Tx)) {
	t.Helper()
	err := s.Update(t.Context(), func(tx *state.Tx) error { fn(tx); return nil })
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
}

// await waits until the newest view of s is as cond asks.
func await(t *testing.T, s state.Store, what string, cond func(state.View) bool) {
	t.Helper()
	v, w := s.Watch()
	defer w.Close()
	late := time.After(patience)
	for !cond(v) {
		select {
		case <-w.Ready():
			v, _ = w.Take()
		case <-late:
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}

// dump writes all that v has, through every look-up and sequence, so that two views with the same records and
// revisions give the same text.
func dump(v state.View) string {
	var b strings.Builder
	line := func(kind string, val any, rev uint64) {
		text, err := json.Marshal(val)
		fmt.Fprintf(&b, "%s %s %d %v\n", kind, text, rev, err)
	}
	for a := range v.Apps() {
		line("app", a, a.Revision)
		for ver := range v.Versions(a.ID) {
			line("version", ver, ver.Revision)
		}
		for i := range v.InstancesOf(a.ID) {
			fmt.Fprintf(&b, "of %s %s\n", a.ID, i.ID)
		}
	}
	for i := range v.Instances() {
		line("instance", i, i.Revision)
	}
	for i := range v.Pending() {
		fmt.Fprintf(&b, "pending %s\n", i.ID)
	}
	for d := range v.Deployments() {
		line("deployment", d, d.Revision)
	}
	for d := range v.ActiveDeployments() {
		fmt.Fprintf(&b, "active %s\n", d.ID)
	}
	if c := v.Cluster(); c != nil {
		line("cluster", c, c.Revision)
	}
	for m := range v.Machines() {
		line("machine", m, m.Revision)
	}
	for k := range v.Tokens() {
		line("token", k, k.Revision)
	}
	for r := range v.Revocations() {
		line("revocation", r, r.Revision)
	}
	for n := range v.Nodes() {
		line("node", n, n.Revision)
		for i := range v.InstancesOn(n.ID) {
			fmt.Fprintf(&b, "on %s %s\n", n.ID, i.ID)
		}
	}
	return b.String()
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		if i >= len(g) || i >= len(w) || g[i] != w[i] {
			t.Errorf("%s: line %d differs:\n got %q\nwant %q", what, i, tail(g, i), tail(w, i))
			return
		}
	}
}

func tail(lines []string, i int) []string { return lines[min(i, len(lines)):min(i+2, len(lines))] }

func app(id string, version uint64) *model.App {
	return &model.App{ID: model.AppID(id), Version: version, Created: epoch}
}

func instance(id, app, node string) *model.Instance {
	i := &model.Instance{
		ID: model.InstanceID(id), App: model.AppID(app), Version: 1, Created: epoch, Desired: model.Run,
		Node: model.NodeID(node), Status: model.Status{Phase: model.PhasePending, Since: epoch},
	}
	if node != "" {
		i.Status.Phase = model.PhaseAssigned
	}
	return i
}

func ids[T any](seq func(func(T) bool), id func(T) string) []string {
	var out []string
	for v := range seq {
		out = append(out, id(v))
	}
	slices.Sort(out)
	return out
}

func instanceID(i *model.Instance) string { return string(i.ID) }

// increment adds one to the counter that an app's version is.
func increment(tx *state.Tx, id model.AppID) uint64 {
	next := app(string(id), 1)
	if a := tx.App(id); a != nil {
		next.Version = a.Version + 1
	}
	tx.PutApp(next)
	return next.Version
}
