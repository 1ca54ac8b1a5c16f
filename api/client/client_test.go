package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
)

// The text of an error is what people see of it, so it must hold every sentence the server sent.
func TestErrorText(t *testing.T) {
	for _, c := range []struct {
		status      int
		contentType string
		body, want  string
	}{
		{422, "application/problem+json", `{"status":422,"title":"Unprocessable Entity","detail":"the request has 2 invalid fields","errors":[{"location":"body.containers[0].image","message":"has white space"},{"location":"body","message":"is odd"},{"location":"query.all","message":"no"}]}`,
			"the request has 2 invalid fields\n  containers[0].image: has white space\n  is odd\n  query.all: no"},
		{404, "application/problem+json", `{"status":404,"title":"Not Found","detail":"no app /x"}`, "no app /x"},
		{502, "text/plain", "bad gateway\n", "bad gateway"},
		{502, "text/html", strings.Repeat("<p>", 1000), "Bad Gateway"},
		{599, "", "", "the server answered with status 599"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", c.contentType)
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.body)
		}))
		_, err := New(srv.URL, "").Apps(t.Context())
		srv.Close()
		var e *Error
		if !errors.As(err, &e) || e.Status != c.status || e.Error() != c.want {
			t.Errorf("got %q, want %q", err, c.want)
		}
		if errors.Is(err, ErrUnreachable) {
			t.Errorf("%d counts as unreachable", c.status)
		}
	}
}

func TestRequests(t *testing.T) {
	var got *http.Request
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		_, _ = io.WriteString(w, "{}")
	}))
	defer srv.Close()
	c := New(strings.TrimPrefix(srv.URL, "http://")+"/", "secret")
	if c.Addr() != srv.URL {
		t.Errorf("address is %s, want %s", c.Addr(), srv.URL)
	}
	if _, err := c.App(t.Context(), "/shop/web"); err != nil {
		t.Fatal(err)
	}
	if got.URL.EscapedPath() != "/v1/apps/shop%2Fweb" || got.Header.Get("Authorization") != "Bearer secret" || got.Header.Get("Idempotency-Key") != "" {
		t.Errorf("asked for %s with %v", got.URL.EscapedPath(), got.Header)
	}
	if _, err := c.PutApp(t.Context(), &model.Spec{ID: "/a"}, IfRevision(7)); err != nil {
		t.Fatal(err)
	}
	first := got.Header.Get("Idempotency-Key")
	if got.Header.Get("If-Match") != `"7"` || got.Header.Get("Content-Type") != "application/json" || first == "" {
		t.Errorf("wrote with %v", got.Header)
	}
	if _, err := c.RestartApp(t.Context(), "/a"); err != nil || got.Header.Get("Idempotency-Key") == first || got.ContentLength != 0 {
		t.Errorf("%v, two writes with one key", err)
	}
	if _, err := c.RestartApp(t.Context(), "/a", IdempotencyKey("mine")); err != nil || got.Header.Get("Idempotency-Key") != "mine" {
		t.Errorf("%v, wrote with key %s", err, got.Header.Get("Idempotency-Key"))
	}
	if _, err := New(srv.URL, "").Info(t.Context()); err != nil || got.Header.Get("Authorization") != "" {
		t.Errorf("%v, without a token %v", err, got.Header)
	}
}

// While a server is away, waiting goes on; when the caller's time is up, it says what was the matter.
func TestWaitSurvivesTheServersAbsence(t *testing.T) {
	answers := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "events") {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		answers++
		switch answers {
		case 1:
			panic(http.ErrAbortHandler)
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 3:
			_, _ = io.WriteString(w, `{"id":"d","app":"/a","state":"running"}`)
		default:
			_, _ = io.WriteString(w, `{"id":"d","app":"/a","state":"succeeded"}`)
		}
	}))
	defer srv.Close()
	c := New(srv.URL, "", WithPoll(time.Millisecond))
	d, err := c.WaitDeployment(t.Context(), "d", nil)
	if err != nil || d.State != model.DeploySucceeded {
		t.Errorf("%+v, %v", d, err)
	}
	srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := c.WaitDeployment(ctx, "d", nil); !errors.Is(err, ErrUnreachable) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("given up: %v", err)
	}
}

// A fresh client asks so of every read, beside what else it asks, and the one that it was made from does not.
func TestFresh(t *testing.T) {
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RequestURI())
		io.WriteString(w, "[]")
	}))
	defer s.Close()
	c := New(s.URL, "")
	for _, c := range []*Client{c.Fresh(), c} {
		if _, err := c.Apps(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Instances(t.Context(), InstanceFilter{App: "/web"}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"/v1/apps?fresh=true", "/v1/instances?app=%2Fweb&fresh=true", "/v1/apps", "/v1/instances?app=%2Fweb"}
	if !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
}
