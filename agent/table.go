package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gantry-os/gantry/route"
)

// How often the endpoint table is kept: soon after a change, and so rarely that it takes a twentieth of a core at most.
const (
	keepAfter = time.Second
	keepShare = 20
)

// table is the endpoint table as a server told it last. It is kept on disk, for the time after a start when no server is in
// reach; a crash loses the changes of the last second or so from there.
type table struct {
	file    string
	log     *slog.Logger
	cur     atomic.Pointer[route.Table] // nil while nothing was ever told
	changed chan struct{}               // has an element when the file is older
}

func newTable(file string, log *slog.Logger) *table {
	return &table{file: file, log: log, changed: make(chan struct{}, 1)}
}

// Table returns the newest endpoint table, nil while no server has ever told it. It is only there with Config.Routes.
func (a *Agent) Table() *route.Table { return a.table.cur.Load() }

// apply takes in what a server says.
func (t *table) apply(c route.Change) {
	cur := t.cur.Load()
	if cur == nil {
		cur = &route.Table{}
	}
	t.cur.Store(cur.With(c))
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// load reads what was kept.
func (t *table) load() {
	b, err := os.ReadFile(t.file)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var entries []*route.Entry
	if err == nil {
		err = json.Unmarshal(b, &entries)
	}
	if err != nil || slices.Contains(entries, nil) {
		t.log.Warn("the endpoints that were known last cannot be read; names are known again once a server tells them", "file", t.file, "error", err)
		return
	}
	t.cur.Store((&route.Table{}).With(route.Change{Full: true, Put: entries}))
}

// run keeps the table until ctx ends.
func (t *table) run(ctx context.Context) {
	failed := false
	for ctx.Err() == nil || len(t.changed) > 0 { // the last change is kept too
		select {
		case <-t.changed:
		case <-ctx.Done():
			continue
		}
		sleep(ctx, keepAfter)
		select {
		case <-t.changed: // it is in what is kept now
		default:
		}
		began := time.Now()
		if err := t.keep(); err != nil && !failed {
			t.log.Warn("the endpoints cannot be kept for a start without servers", "error", err)
			failed = true
		} else if err == nil {
			failed = false
		}
		sleep(ctx, keepShare*time.Since(began))
	}
}

// keep writes the table to its file.
func (t *table) keep() error {
	b, err := json.Marshal(slices.AppendSeq([]*route.Entry{}, t.cur.Load().All()))
	if err != nil {
		return fmt.Errorf("encode endpoints: %w", err)
	}
	if err := os.WriteFile(t.file+".new", b, 0o600); err != nil {
		return fmt.Errorf("keep endpoints: %w", err)
	}
	return os.Rename(t.file+".new", t.file)
}
