package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// closed returns an address at which nobody listens.
func closed(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return l.Addr().String()
}

// A call goes on to the next server when one is not there, with all that it carries, and later calls begin where one
// answered. A write that may have been carried out is not sent twice.
func TestSeveralServers(t *testing.T) {
	var calls atomic.Int32
	answer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		if b, err := io.ReadAll(r.Body); r.Method == http.MethodPut && (err != nil || !strings.Contains(string(b), "/team")) {
			t.Errorf("the body is %q, %v", b, err)
		}
		io.WriteString(w, `{"id": "/team"}`)
	}))
	defer answer.Close()
	var hung atomic.Int32
	hangUp := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		hung.Add(1)
		panic(http.ErrAbortHandler)
	}))
	defer hangUp.Close()
	ctx := t.Context()

	c := New(closed(t), "", WithOthers(answer.URL))
	if _, err := c.PutRole(ctx, &model.Role{ID: "/team"}); err != nil || calls.Load() != 1 {
		t.Errorf("%v, %d calls", err, calls.Load())
	}
	c = New(hangUp.URL, "", WithOthers(answer.URL))
	if _, err := c.PutRole(ctx, &model.Role{ID: "/team"}); !errors.Is(err, ErrUnreachable) || calls.Load() != 1 {
		t.Errorf("a write to a server that hangs up: %v, %d calls to the other", err, calls.Load())
	}
	before := hung.Load()
	for range 3 {
		if _, err := c.Role(ctx, "/team"); err != nil {
			t.Error(err)
		}
	}
	if hung.Load()-before != 1 || calls.Load() != 4 {
		t.Errorf("%d reads went to the server that hangs up, %d to the other", hung.Load()-before, calls.Load()-1)
	}

	c = New(closed(t), "", WithOthers(closed(t)))
	if _, err := c.Role(ctx, "/team"); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "none of 2 servers") {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.Role(ended, "/team"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
