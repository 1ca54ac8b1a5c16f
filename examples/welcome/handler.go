package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// handler serves the page and /healthz. getenv tells what Gantry told the instance about itself.
func handler(started time.Time, getenv func(string) string) http.Handler {
	var requests atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		host, err := os.Hostname()
		if err != nil {
			host = "this machine"
		}
		v := view{
			App: getenv("GANTRY_APP_ID"), Instance: getenv("GANTRY_INSTANCE_ID"), Host: host, Port: getenv("PORT0"),
			Up: time.Since(started).Truncate(time.Second).String(), Requests: requests.Add(1),
		}
		var b bytes.Buffer
		if err := page.Execute(&b, v); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = b.WriteTo(w) // the visitor has gone
	})
	return mux
}
