package api

import (
	"cmp"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// usageTimeout bounds how long one node may take to say what it uses.
const usageTimeout = 3 * time.Second

// NodePath is the node in the path of a request.
type NodePath struct {
	ID string `path:"id" maxLength:"100" doc:"Id or name of the node."`
}

func noNode(v state.View, id model.NodeID) error {
	var names []string
	for n := range v.Nodes() {
		names = append(names, string(n.ID), n.Name)
	}
	return notFound("no node %s%s", id, didYouMean(string(id), names))
}

// findNode finds a node by its id, or by its name when one node has it.
func findNode(v state.View, id model.NodeID) (*model.Node, error) {
	if n := v.Node(id); n != nil {
		return n, nil
	}
	var found []*model.Node
	for n := range v.Nodes() {
		if n.Name == string(id) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return nil, noNode(v, id)
	case 1:
		return found[0], nil
	}
	return nil, conflict("%d nodes have the name %s; give an id", len(found), id)
}

// nodeDetail adds up what is taken of a node.
func nodeDetail(n *model.Node, now time.Time, sizes *sizes) client.NodeDetail {
	out := client.NodeDetail{Node: *n, Settings: sizes.v.Settings(n.ID)}
	out.Used.Disk = keptByVolumes(sizes.v, n.ID)
	out.Capacity = capacityOf(n)
	out.Availability, out.Why = availability(n, out.Settings, now)
	for i := range sizes.v.InstancesOn(n.ID) {
		if i.Over() {
			continue
		}
		out.Instances++
		z := sizes.of(i)
		out.Used = out.Used.Add(z.Resources)
		addCustom(&out.UsedCustom, z.custom)
	}
	return out
}

func (s *server) listNodes(context.Context, *none) (*reply[[]client.NodeDetail], error) {
	v, now := s.Store.View(), s.Now()
	sizes := newSizes(v)
	out := []client.NodeDetail{}
	for n := range v.Nodes() {
		out = append(out, nodeDetail(n, now, sizes))
	}
	return answer(out)
}

func (s *server) getNode(_ context.Context, in *NodePath) (*reply[client.NodeDetail], error) {
	v := s.Store.View()
	n, err := findNode(v, model.NodeID(in.ID))
	if err != nil {
		return nil, err
	}
	return answer(nodeDetail(n, s.Now(), newSizes(v)))
}

func (s *server) getUsage(ctx context.Context, _ *none) (*reply[client.Usage], error) {
	v := s.Store.View()
	all, err := s.usage(ctx, v)
	if err != nil {
		return nil, err
	}
	out := client.Usage{Nodes: []client.NodeUsage{}, Instances: []client.InstanceUsage{}}
	sizes := newSizes(v)
	for id, u := range all {
		n := v.Node(id)
		out.Nodes = append(out.Nodes, client.NodeUsage{Node: id, Name: n.Name, Usage: u.Node, Capacity: n.Capacity})
		for iid, used := range u.Instances {
			if i := v.Instance(iid); i != nil {
				out.Instances = append(out.Instances, client.InstanceUsage{
					Instance: iid, App: i.App, Node: id, Usage: used, Limit: sizes.of(i).Resources,
				})
			}
		}
	}
	slices.SortFunc(out.Nodes, func(a, b client.NodeUsage) int { return cmp.Compare(a.Node, b.Node) })
	slices.SortFunc(out.Instances, func(a, b client.InstanceUsage) int { return cmp.Compare(a.Instance, b.Instance) })
	return answer(out)
}

// usage asks all connected nodes at once. It fails when there are some and none answers.
func (s *server) usage(ctx context.Context, v state.View) (map[model.NodeID]wire.Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	out := map[model.NodeID]wire.Usage{}
	for n := range v.Nodes() {
		agent, ok := s.Nodes(n.ID)
		if !ok {
			continue
		}
		wg.Go(func() {
			u, err := agent.Usage(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			out[n.ID] = u
		})
	}
	wg.Wait()
	if len(out) == 0 && len(errs) > 0 {
		return nil, unavailable("no node says what it uses: %v", errs[0])
	}
	return out, nil
}

// ImageQuery says whose images are meant.
type ImageQuery struct {
	Node string `query:"node" doc:"Id or name of the node. It may be left out when there is only one."`
}

// agentOf returns the agent of a node that a query names, or of the only one.
func (s *server) agentOf(id string) (wire.Node, error) {
	v := s.Store.View()
	n, err := onlyNode(v, id)
	if err != nil {
		return nil, err
	}
	if a, ok := s.Nodes(n.ID); ok {
		return a, nil
	}
	return nil, unavailable("node %s is not connected", n.Name)
}

func onlyNode(v state.View, id string) (*model.Node, error) {
	if id != "" {
		return findNode(v, model.NodeID(id))
	}
	var only *model.Node
	for n := range v.Nodes() {
		if only != nil {
			return nil, conflict("there are several nodes; name one with node=")
		}
		only = n
	}
	if only == nil {
		return nil, unavailable("no node has joined yet")
	}
	return only, nil
}

func (s *server) listImages(ctx context.Context, in *ImageQuery) (*reply[[]client.Image], error) {
	agent, err := s.agentOf(in.Node)
	if err != nil {
		return nil, err
	}
	images, err := agent.Images(ctx)
	if err != nil {
		return nil, nodeError(err)
	}
	out := []client.Image{}
	for _, i := range images {
		out = append(out, client.Image{Name: i.Name, Digest: i.Digest, Size: i.Size, Created: i.Created})
	}
	slices.SortFunc(out, func(a, b client.Image) int { return cmp.Compare(a.Name, b.Name) })
	return answer(out)
}

const archiveType = "application/x-tar"

// upload is the input of an image import: the connection itself, since archives do not fit into memory.
type upload struct {
	ImageQuery
	body
}

func (s *server) importImages(_ context.Context, in *upload) (*reply[client.Imported], error) {
	r, w := humago.Unwrap(in.ctx)
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != archiveType {
		return nil, problem(http.StatusUnsupportedMediaType, "the body's Content-Type is %q; send %s", r.Header.Get("Content-Type"), archiveType)
	}
	agent, err := s.agentOf(in.Node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.streaming(w, r)
	defer cancel()
	archive := &counted{r: http.MaxBytesReader(w, s.briskBody(w, r.Body), maxArchive)}
	names, err := agent.Import(ctx, archive)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(archive.err, &tooLarge):
		return nil, problem(http.StatusRequestEntityTooLarge, "the archive has more than 16 GiB")
	case archive.err != nil:
		return nil, badRequest("cannot read the archive: %v", archive.err)
	case err != nil:
		return nil, nodeError(err)
	}
	return answer(client.Imported{Images: append([]string{}, names...)})
}

// counted remembers how reading failed, which tells a client that went away from an engine that refuses the archive.
type counted struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

func (s *server) getInfo(context.Context, *none) (*reply[client.Info], error) {
	v, out := s.Store.View(), s.Info
	out.Apps, out.Count = v.AppCount(), v.InstanceCount()
	for range v.Nodes() {
		out.Nodes++
	}
	if o := v.Outage(); o != nil {
		out.Notice = o.Words() + "; gantry cluster resume-replacement goes on all the same"
	}
	return answer(out)
}

type shutdownInput struct{ body }

// accepted is the answer to what has none to give.
type accepted struct{}

func (s *server) shutdown(_ context.Context, in *shutdownInput) (*reply[accepted], error) {
	var ask client.Shutdown
	if err := in.read(&ask, true); err != nil {
		return nil, err
	}
	s.Shutdown(ask)
	return answer(accepted{})
}

func (s *server) healthz(context.Context, *none) (*huma.StreamResponse, error) {
	return text("text/plain; charset=utf-8", []byte("ok\n")), nil
}

func (s *server) getOpenAPI(context.Context, *none) (*huma.StreamResponse, error) {
	return text("application/json", s.openapi), nil
}

func text(contentType string, b []byte) *huma.StreamResponse {
	return streamed(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", contentType)
		_, err := w.Write(b)
		return err
	})
}
