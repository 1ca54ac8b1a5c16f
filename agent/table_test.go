package agent

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-os/gantry/route"
	"github.com/gantry-os/gantry/runtime"
)

// What a server told is known again after a start without one, the last change before the end included.
func TestTableIsKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "routes.json")
	first := newTable(file, slog.Default())
	first.load()
	if first.cur.Load() != nil {
		t.Fatal("a table is known that nobody told")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); first.run(ctx) }()
	first.apply(route.Change{Full: true, Put: []*route.Entry{{ID: "web-1", App: "/web", Node: "n", Serving: true}}})
	first.apply(route.Change{Put: []*route.Entry{{ID: "web-2", App: "/web", Node: "n"}}})
	cancel()
	<-done
	second := newTable(file, slog.Default())
	second.load()
	got := second.cur.Load()
	if got == nil || got.Len() != 2 || !got.Entry("web-1").Serving || got.Entry("web-2") == nil {
		t.Errorf("after a start %v is known", got)
	}
}

// A file that cannot be read is as none, and is said.
func TestTableIsDamaged(t *testing.T) {
	for _, text := range []string{"", "{", "[null]", `[{"id":1}]`, `[{"id":"a","addrs":["x"]}]`} {
		file := filepath.Join(t.TempDir(), "routes.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		tb := newTable(file, slog.New(slog.NewTextHandler(&log, nil)))
		tb.load()
		if tb.cur.Load() != nil || !strings.Contains(log.String(), file) {
			t.Errorf("of %q %v is known, and said %q", text, tb.cur.Load(), log.String())
		}
	}
}

// A user's own resolv.conf, or a volume over /etc, is left to see.
func TestCovered(t *testing.T) {
	for target, want := range map[string]bool{"/etc/resolv.conf": true, "/etc/": true, "/etc/resolv": false, "/data": false, "etc": false} {
		if covered([]runtime.Mount{{Target: target}}, resolvConf) != want {
			t.Errorf("a mount at %s covers it: %v", target, !want)
		}
	}
}
