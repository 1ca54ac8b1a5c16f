package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gantry-os/gantry/model"
)

const (
	eventPing    = 15 * time.Second
	eventTimeout = time.Minute // for one batch of events to be sent
)

type eventQuery struct {
	Follow bool   `query:"follow" doc:"Go on with new events, as server-sent events."`
	Since  uint64 `query:"since" doc:"Only events with a greater seq."`
	App    string `query:"app" doc:"Only events of this app."`
	Last   string `header:"Last-Event-ID" doc:"As since, for clients that connect again."`
	Accept string `header:"Accept" doc:"text/event-stream asks for server-sent events."`
}

func (s *server) events(_ context.Context, in *eventQuery) (*huma.StreamResponse, error) {
	f := eventFilter{app: appFilter(in.App), since: in.Since}
	if n, err := strconv.ParseUint(in.Last, 10, 64); err == nil {
		f.since = max(f.since, n)
	}
	if in.Follow || strings.Contains(in.Accept, "text/event-stream") {
		return streamed(func(w http.ResponseWriter, r *http.Request) error { return s.follow(w, r, f) }), nil
	}
	return streamed(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", "application/json")
		return json.NewEncoder(w).Encode(f.pick(s.Store.View().Events()))
	}), nil
}

// eventFilter chooses events and remembers the last that was seen.
type eventFilter struct {
	app   model.AppID
	since uint64
}

// pick returns the events of list that are asked for and new, never nil.
func (f *eventFilter) pick(list []model.Event) []model.Event {
	if len(list) > 0 && list[len(list)-1].Seq < f.since {
		f.since = 0 // that number is from an earlier run of the server, which counted further
	}
	out := []model.Event{}
	for _, e := range list {
		if e.Seq <= f.since {
			continue
		}
		f.since = e.Seq
		if f.app == "" || e.App == f.app {
			out = append(out, e)
		}
	}
	return out
}

// follow sends events until the client goes away or the server shuts down.
func (s *server) follow(w http.ResponseWriter, r *http.Request, f eventFilter) error {
	ctx, cancel := s.streaming(w, r)
	defer cancel()
	view, watch := s.Store.Watch()
	defer watch.Close()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // asks proxies not to hold events back
	w.WriteHeader(http.StatusOK)
	if len(view.Events()) == 0 {
		f.since = 0 // a server that has just started
	}
	if err := sendEvents(w, f.pick(view.Events())); err != nil {
		return err
	}
	ping := time.NewTicker(eventPing)
	defer ping.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-ping.C:
			err = sendText(w, ": ping\n\n")
		case <-watch.Ready():
			if _, c := watch.Take(); len(c.Events) > 0 {
				err = sendEvents(w, f.pick(c.Events))
			}
		}
		if err != nil {
			return err
		}
	}
}

func sendEvents(w http.ResponseWriter, events []model.Event) error {
	var b strings.Builder
	for _, e := range events {
		data, err := json.Marshal(e)
		if err != nil {
			return fmt.Errorf("encode event: %w", err)
		}
		fmt.Fprintf(&b, "id: %d\nevent: %s\ndata: %s\n\n", e.Seq, oneLine(e.Type), data)
	}
	return sendText(w, b.String())
}

// oneLine keeps a field of an event from beginning another.
func oneLine(s string) string { return strings.NewReplacer("\n", " ", "\r", " ").Replace(s) }

func sendText(w http.ResponseWriter, text string) error {
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(eventTimeout)) // recorders in tests have none
	if _, err := io.WriteString(w, text); err != nil {
		return fmt.Errorf("send events: %w", err)
	}
	if err := rc.Flush(); err != nil {
		return fmt.Errorf("send events: %w", err)
	}
	return nil
}
