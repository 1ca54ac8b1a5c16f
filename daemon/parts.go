package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	goruntime "runtime"
	"time"

	"github.com/gantry-os/gantry/api"
	"github.com/gantry-os/gantry/api/client"
)

// nodeAddr is where the instances of a node on its own are reached.
const nodeAddr = "127.0.0.1"

// info describes this server to those who ask.
func (d *daemon) info() client.Info {
	return client.Info{Version: Build(), Go: goruntime.Version(), Started: d.started, PID: os.Getpid(), DataDir: d.DataDir}
}

// serveHTTP serves until ctx ends, then lets requests under way finish for a moment.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	server := api.Server(h)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve the API: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		return errors.Join(err, server.Close(), <-ended)
	}
	<-ended
	return context.Cause(ctx)
}
