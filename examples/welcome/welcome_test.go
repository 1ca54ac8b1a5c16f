package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The page names its instance, and what it is told about itself cannot break it.
func TestPage(t *testing.T) {
	env := map[string]string{"GANTRY_APP_ID": "/welcome", "GANTRY_INSTANCE_ID": "welcome-<b>", "PORT0": "31000"}
	h := handler(time.Now().Add(-90*time.Second), func(k string) string { return env[k] })
	for path, want := range map[string]string{"/healthz": "ok", "/": "welcome-&lt;b&gt;", "/nothere": "404"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d, %s", path, w.Code, w.Body)
		}
		if path == "/" && (!strings.Contains(w.Body.String(), "1m30s") || strings.Contains(w.Body.String(), "<b>")) {
			t.Errorf("page: %s", w.Body)
		}
	}
}

// It answers on its port until it is told to stop, and then ends without an error.
func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- serve(ctx, port) }()
	deadline := time.Now().Add(10 * time.Second)
	for {
		resp, err := http.Get("http://127.0.0.1:" + port + "/healthz")
		if err == nil {
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(b) != "ok\n" {
				t.Errorf("got %q", b)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
