package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gantry-os/gantry/model"
)

// LogOptions says which output to read.
type LogOptions struct {
	Container string // empty for the first
	Stream    string // stdout, the default, or stderr
	Tail      int    // begin this many lines before the end; negative for the beginning of what is kept
	Follow    bool   // go on until the instance is over
}

// Logs returns the output of one container of an instance. It streams: what was written is there to read at once. The
// caller closes it.
func (c *Client) Logs(ctx context.Context, id model.InstanceID, o LogOptions) (io.ReadCloser, error) {
	q := url.Values{}
	set(q, "container", o.Container)
	set(q, "stream", o.Stream)
	q.Set("tail", strconv.Itoa(o.Tail))
	setBool(q, "follow", o.Follow)
	req, err := c.request(ctx, http.MethodGet, instancePath(id)+"/logs", q, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.send(req)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// EventFilter chooses events. The zero value means all that are kept.
type EventFilter struct {
	App   model.AppID
	Since uint64 // only those with a greater Seq
}

// Events returns the kept events, oldest first.
func (c *Client) Events(ctx context.Context, f EventFilter) ([]model.Event, error) {
	return get[[]model.Event](ctx, c, "/v1/events", f.query())
}

func (f EventFilter) query() url.Values {
	q := url.Values{}
	set(q, "app", string(f.App))
	if f.Since > 0 {
		q.Set("since", strconv.FormatUint(f.Since, 10))
	}
	return q
}

// FollowEvents calls fn with the kept events and then with each new one as it happens, until ctx ends or fn fails, whose
// error it returns. When the connection breaks it connects again and goes on where it was, after a wait that grows to
// 5s; it gives up only on an answer that refuses it. Events that happened while a server was down are lost, as is their
// numbering.
func (c *Client) FollowEvents(ctx context.Context, f EventFilter, fn func(model.Event) error) error {
	wait := 100 * time.Millisecond
	for {
		n, err := c.followOnce(ctx, &f, fn)
		var stop *stopError
		var refused *Error
		switch {
		case errors.As(err, &stop):
			return stop.err
		case errors.As(err, &refused) && refused.Status != http.StatusServiceUnavailable:
			return err
		}
		if n > 0 {
			wait = 100 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// stopError marks an error of the caller's function.
type stopError struct{ err error }

func (e *stopError) Error() string { return e.err.Error() }

// followOnce reads one connection to its end and returns how many messages came.
func (c *Client) followOnce(ctx context.Context, f *EventFilter, fn func(model.Event) error) (int, error) {
	q := f.query()
	q.Set("follow", "true")
	req, err := c.request(ctx, http.MethodGet, "/v1/events", q, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept", "text/event-stream")
	if f.Since > 0 {
		req.Header.Set("Last-Event-ID", strconv.FormatUint(f.Since, 10))
	}
	resp, err := c.send(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n := 0
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data:")
		if !ok {
			continue // event and id repeat what data says; comments keep the connection alive
		}
		var e model.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return n, fmt.Errorf("decode event: %w", err)
		}
		n++
		f.Since = e.Seq
		if err := fn(e); err != nil {
			return n, &stopError{err}
		}
	}
	return n, lines.Err()
}
