package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/spf13/cobra"
)

// logOptions are the flags of logs.
type logOptions struct {
	follow         bool
	tail           int
	stdout, stderr bool
	container      string
}

// logsCommand returns `gantry logs`.
func (c *cli) logsCommand() *cobra.Command {
	var o logOptions
	cmd := &cobra.Command{
		Use:   "logs APP|INSTANCE",
		Short: "Show what instances printed",
		Long: `Show what instances printed, those that are over and still kept included. With an app, lines of all its instances
carry the instance's id; -f goes on with new lines, and with new instances as they come. What a program wrote to its
standard error goes to the standard error here.`,
		Example: `  gantry logs -f web
  gantry logs --tail 100 web-k3v9q2xw`,
		Args: args(1, 1), ValidArgsFunction: c.completeTarget(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect()
			if err != nil {
				return err
			}
			t, err := find(cmd.Context(), api, args[0])
			if err != nil {
				return err
			}
			r := &logReader{cli: c, api: api, o: o, target: t, seen: map[model.InstanceID]bool{}}
			return r.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with new lines until interrupted, or until the instance is over")
	f.IntVar(&o.tail, "tail", -1, "begin with this many (`N`) of the last lines of each stream; -1 with all that are kept")
	f.BoolVar(&o.stdout, "stdout", false, "only the standard output")
	f.BoolVar(&o.stderr, "stderr", false, "only the standard error")
	f.StringVarP(&o.container, "container", "c", "", "only the container of this `name` (default all)")
	return cmd
}

// logReader prints the logs of a target.
type logReader struct {
	*cli
	api    *client.Client
	o      logOptions
	target target
	seen   map[model.InstanceID]bool

	mu      sync.Mutex // one line at a time
	readers sync.WaitGroup
}

func (r *logReader) run(ctx context.Context) error {
	if !r.o.follow {
		for i := len(r.target.instances) - 1; i >= 0; i-- { // oldest first
			if err := r.readAll(ctx, r.target.instances[i]); err != nil {
				return err
			}
		}
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if r.target.app == "" {
		r.follow(ctx, cancel, r.target.instances[0])
	} else if err := r.followApp(ctx, cancel); err != nil {
		cancel(err)
	}
	r.readers.Wait()
	return context.Cause(ctx)
}

// followApp follows every instance of the app, new ones as they come, until ctx ends or the app is gone.
func (r *logReader) followApp(ctx context.Context, cancel context.CancelCauseFunc) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for list := r.target.instances; ; {
		for i := len(list) - 1; i >= 0; i-- {
			if !r.seen[list[i].ID] {
				r.seen[list[i].ID] = true
				r.follow(ctx, cancel, list[i])
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		app, err := r.api.App(ctx, r.target.app)
		var e *client.Error
		switch {
		case err == nil:
			list = app.List
		case errors.As(err, &e) && e.Status == http.StatusNotFound:
			return nil // removed: the readers end with its instances
		case !errors.Is(err, client.ErrUnreachable) && ctx.Err() == nil:
			return err
		}
	}
}

// follow starts readers of all streams of an instance.
func (r *logReader) follow(ctx context.Context, cancel context.CancelCauseFunc, i client.Instance) {
	for _, s := range r.streams(i) {
		r.readers.Go(func() {
			if err := r.followStream(ctx, s); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
}

// followStream reads a stream to the end of its instance. One that has printed nothing yet is asked again. So is one that
// lost its server, but only for what comes after, which it says.
func (r *logReader) followStream(ctx context.Context, s logStream) error {
	tail := r.o.tail
	for {
		got, err := r.copy(ctx, s, tail)
		if got {
			tail = 0
		}
		over, err := r.settled(ctx, s, err)
		if over || err != nil {
			return err
		}
		if got {
			fmt.Fprintf(r.err, "gantry: lost the server; what %s prints until it is back is not shown here\n", s.instance)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// settled decides whether a stream that ended with err, or nil, is over.
func (r *logReader) settled(ctx context.Context, s logStream, err error) (bool, error) {
	var e *client.Error
	again := err == nil || errors.Is(err, client.ErrUnreachable) ||
		errors.As(err, &e) && (e.Status == http.StatusNotFound || e.Status == http.StatusConflict || e.Status >= 500)
	if !again {
		return false, err
	}
	i, lookErr := r.api.Instance(ctx, s.instance)
	switch {
	case lookErr == nil:
		return i.Over(), nil
	case errors.As(lookErr, &e) && e.Status == http.StatusNotFound:
		return true, nil
	case errors.Is(lookErr, client.ErrUnreachable):
		return false, nil
	}
	return false, lookErr
}

// readAll prints what an instance has printed so far. One without a log is passed over when it is one of many.
func (r *logReader) readAll(ctx context.Context, i client.Instance) error {
	for _, s := range r.streams(i) {
		_, err := r.copy(ctx, s, r.o.tail)
		var e *client.Error
		if err != nil && r.target.app != "" && errors.As(err, &e) && e.Status == http.StatusNotFound {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// logStream is one stream of one container.
type logStream struct {
	instance  model.InstanceID
	container string // empty for the first
	stream    string
	prefix    string // printed before each line
}

func (r *logReader) streams(i client.Instance) []logStream {
	containers := []string{r.o.container}
	if r.o.container == "" && len(i.Status.Tasks) > 0 {
		containers = nil
		for _, task := range i.Status.Tasks {
			containers = append(containers, task.Name)
		}
	}
	var out []logStream
	for _, name := range containers {
		prefix := ""
		if r.target.app != "" {
			prefix = string(i.ID)
		}
		if len(containers) > 1 {
			prefix += "/" + name
		}
		if prefix != "" {
			prefix += " | "
		}
		for _, stream := range r.o.streams() {
			out = append(out, logStream{i.ID, name, stream, prefix})
		}
	}
	return out
}

func (o *logOptions) streams() []string {
	switch {
	case o.stdout && !o.stderr:
		return []string{"stdout"}
	case o.stderr && !o.stdout:
		return []string{"stderr"}
	}
	return []string{"stdout", "stderr"}
}

// copy prints a stream line by line and reports whether it could be opened.
func (r *logReader) copy(ctx context.Context, s logStream, tail int) (opened bool, err error) {
	body, err := r.api.Logs(ctx, s.instance, client.LogOptions{
		Container: s.container, Stream: s.stream, Tail: tail, Follow: r.o.follow,
	})
	if err != nil {
		return false, err
	}
	defer body.Close()
	in := bufio.NewReaderSize(body, 64<<10)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			if werr := r.line(s, line); werr != nil {
				return true, werr
			}
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return true, fmt.Errorf("%w: %w", client.ErrUnreachable, err)
		}
	}
}

func (r *logReader) line(s logStream, line string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.json {
		return r.printJSON(logLine{s.instance, s.container, s.stream, line}, "")
	}
	w := r.out
	if s.stream == "stderr" {
		w = r.err
	}
	if _, err := io.WriteString(w, s.prefix+line); err != nil {
		return fmt.Errorf("print log: %w", err)
	}
	return nil
}

// logLine is one line of a log as JSON.
type logLine struct {
	Instance  model.InstanceID `json:"instance"`
	Container string           `json:"container,omitempty"`
	Stream    string           `json:"stream"`
	Line      string           `json:"line"`
}
