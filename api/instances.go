package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// InstancePath is the instance in the path of a request.
type InstancePath struct {
	ID string `path:"id" maxLength:"100" doc:"Id of the instance."`
}

type instanceQuery struct {
	App  string `query:"app" doc:"Only those of this app."`
	Node string `query:"node" doc:"Only those on this node."`
	All  bool   `query:"all" doc:"Those that are over but kept, too."`
}

func (s *server) listInstances(_ context.Context, in *instanceQuery) (*reply[[]client.Instance], error) {
	v := s.Store.View()
	list, app, node := v.Instances(), appFilter(in.App), model.NodeID(in.Node)
	switch {
	case app != "" && v.App(app) == nil && !hasInstances(v, app):
		return nil, noApp(v, app)
	case node != "" && v.Node(node) == nil:
		return nil, noNode(v, node)
	case app != "":
		list = v.InstancesOf(app)
	case node != "":
		list = v.InstancesOn(node)
	}
	var out []*model.Instance
	for i := range list {
		if (in.All || !i.Over()) && (app == "" || i.App == app) && (node == "" || i.Node == node) {
			out = append(out, i)
		}
	}
	return answer(newWords(v).list(out))
}

// hasInstances reports whether an app that is gone has left instances.
func hasInstances(v state.View, id model.AppID) bool {
	for range v.InstancesOf(id) {
		return true
	}
	return false
}

func (s *server) getInstance(_ context.Context, in *InstancePath) (*reply[client.Instance], error) {
	v := s.Store.View()
	i, err := findInstance(v, in)
	if err != nil {
		return nil, err
	}
	return answer(newWords(v).describe(i))
}

func findInstance(v state.View, in *InstancePath) (*model.Instance, error) {
	if i := v.Instance(model.InstanceID(in.ID)); i != nil {
		return i, nil
	}
	var names []string
	for i := range v.Instances() {
		// Random suffixes are near to nothing; only the same beginning is worth a look.
		if len(in.ID) > 3 && strings.HasPrefix(string(i.ID), in.ID[:3]) && len(names) < 1000 {
			names = append(names, string(i.ID))
		}
	}
	return nil, notFound("no instance %s%s", in.ID, didYouMean(in.ID, names))
}

// place returns the agent of an instance's node.
func (s *server) place(v state.View, i *model.Instance) (wire.Node, error) {
	if i.Node == "" {
		return nil, conflict("instance %s has no node yet: %s", i.ID, whyInstance(v, i))
	}
	if n, ok := s.Nodes(i.Node); ok {
		return n, nil
	}
	name := string(i.Node)
	if n := v.Node(i.Node); n != nil {
		name = n.Name
	}
	return nil, unavailable("node %s, where instance %s is, is not connected", name, i.ID)
}

// checkContainer refuses a container that the instance's spec does not have. An empty name is the first.
func checkContainer(v state.View, i *model.Instance, name string) error {
	ver := v.Version(i.App, i.Version)
	if name == "" || ver == nil {
		return nil
	}
	var names []string
	for k := range ver.Spec.Containers {
		names = append(names, containerName(ver.Spec, k))
	}
	if slices.Contains(names, name) {
		return nil
	}
	return notFound("instance %s has no container %s; it has %s", i.ID, name, strings.Join(names, ", "))
}

type logQuery struct {
	InstancePath
	Container string `query:"container" doc:"Name of the container. Default: the first."`
	Stream    string `query:"stream" enum:"stdout,stderr" default:"stdout" doc:"Which output."`
	Tail      int    `query:"tail" default:"-1" doc:"Begin this many lines before the end; -1 for the beginning of what is kept."`
	Follow    bool   `query:"follow" doc:"Go on until the instance is over."`
}

func (s *server) readLogs(ctx context.Context, in *logQuery) (*huma.StreamResponse, error) {
	v := s.Store.View()
	i, err := findInstance(v, &in.InstancePath)
	if err != nil {
		return nil, err
	}
	if err := checkContainer(v, i, in.Container); err != nil {
		return nil, err
	}
	node, err := s.place(v, i)
	if err != nil {
		return nil, err
	}
	ask := wire.LogRequest{Instance: i.ID, Container: in.Container, Stream: in.Stream, Tail: in.Tail, Follow: in.Follow}
	return streamed(func(w http.ResponseWriter, r *http.Request) error {
		ctx, cancel := s.streaming(w, r)
		defer cancel()
		logs, err := node.Logs(ctx, ask)
		if err != nil {
			return nodeError(err)
		}
		stop := context.AfterFunc(ctx, func() { _ = logs.Close() }) // wakes a reader that does not watch ctx
		defer func() {
			if stop() {
				_ = logs.Close()
			}
		}()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		return s.copyFlushed(w, logs)
	}), nil
}

// streamed answers with a function that has the connection to itself. Until fn has written, its error is answered as a
// problem; later it cuts the connection, so that the client does not take the answer for complete.
func streamed(fn func(http.ResponseWriter, *http.Request) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(ctx huma.Context) {
		r, w := humago.Unwrap(ctx)
		err := fn(w, r)
		if err == nil {
			return
		}
		if rec, ok := w.(*recorder); ok && rec.status != 0 {
			panic(http.ErrAbortHandler)
		}
		writeProblem(w, storeError(err))
	}}
}

// copyFlushed sends what comes as it comes.
func (s *server) copyFlushed(w http.ResponseWriter, from io.Reader) error {
	w = s.brisk(w)
	rc := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	if err := rc.Flush(); err != nil {
		return fmt.Errorf("send logs: %w", err)
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return fmt.Errorf("send logs: %w", werr)
			}
			if werr := rc.Flush(); werr != nil {
				return fmt.Errorf("send logs: %w", werr)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read logs: %w", err)
		}
	}
}
