// Package client speaks the native API of Gantry. Its methods mirror the endpoints one to one; types.go holds the values
// they carry. Errors from the server are *Error; when no server answers, errors.Is(err, ErrUnreachable) holds.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gantry-os/gantry/model"
)

// ErrUnreachable says that no server answered at the address, or that it hung up before it had answered.
var ErrUnreachable = errors.New("cannot reach the server")

// answerTimeout bounds a call that is no stream.
const answerTimeout = 60 * time.Second

// Client is a connection to one server. It is safe for concurrent use.
type Client struct {
	base  string // such as http://127.0.0.1:7070, without a slash at the end
	token string
	http  *http.Client
	poll  time.Duration // how often WaitDeployment looks by itself
	fresh bool          // reads wait until the server knows all that was acknowledged before
}

// Option changes how a Client works.
type Option func(*Client)

// WithHTTPClient makes calls through h, which must have no overall timeout: logs and events stream without end.
func WithHTTPClient(h *http.Client) Option { return func(c *Client) { c.http = h } }

// WithPoll sets how often WaitDeployment looks again when no event tells it to. Default 2s.
func WithPoll(d time.Duration) Option { return func(c *Client) { c.poll = d } }

// New returns a client of the server at addr, a host:port or an http: or https: address. token may be empty when the
// server asks for none. Nothing is sent yet.
func New(addr, token string, opts ...Option) *Client {
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	c := &Client{base: strings.TrimRight(addr, "/"), token: token, http: &http.Client{}, poll: 2 * time.Second}
	for _, o := range opts {
		o(c)
	}
	return c
}

// Addr returns the address of the server as a URL.
func (c *Client) Addr() string { return c.base }

// Fresh returns a client whose reads wait until the server knows all that was acknowledged before. A server that reaches no
// majority refuses them with status 503. Streams are not concerned.
func (c *Client) Fresh() *Client {
	fresh := *c
	fresh.fresh = true
	return &fresh
}

// WriteOption changes one write.
type WriteOption func(http.Header)

// IfRevision makes the write fail with status 412 unless the app still has this revision, as AppDetail gave it.
// Only PutApp and PutAppJSON heed it.
func IfRevision(rev uint64) WriteOption {
	return func(h http.Header) { h.Set("If-Match", strconv.Quote(strconv.FormatUint(rev, 10))) }
}

// IdempotencyKey makes a write that is sent again under the same key happen once. Every write gets a random key unless
// this sets one; give one to be safe against repeats from another process or after a crash.
func IdempotencyKey(key string) WriteOption {
	return func(h http.Header) { h.Set("Idempotency-Key", key) }
}

// Apps returns all apps, sorted by id.
func (c *Client) Apps(ctx context.Context) ([]AppSummary, error) {
	return get[[]AppSummary](ctx, c, "/v1/apps", nil)
}

// App returns one app in full.
func (c *Client) App(ctx context.Context, id model.AppID) (AppDetail, error) {
	return get[AppDetail](ctx, c, appPath(id), nil)
}

// CreateApp makes a new app; it fails with status 409 when spec.ID exists.
func (c *Client) CreateApp(ctx context.Context, spec *model.Spec, opts ...WriteOption) (Change, error) {
	return write[Change](ctx, c, http.MethodPost, "/v1/apps", spec, opts)
}

// PutApp makes the app be as spec says: it creates or updates it.
func (c *Client) PutApp(ctx context.Context, spec *model.Spec, opts ...WriteOption) (Change, error) {
	return write[Change](ctx, c, http.MethodPut, appPath(spec.ID), spec, opts)
}

// PutAppJSON is PutApp with a spec as JSON text. The server refuses fields it does not know, and says where they are.
func (c *Client) PutAppJSON(ctx context.Context, id model.AppID, spec []byte, opts ...WriteOption) (Change, error) {
	return write[Change](ctx, c, http.MethodPut, appPath(id), json.RawMessage(spec), opts)
}

// DeleteApp stops all instances of an app and forgets it. Deleting an app that is being removed returns the same change.
func (c *Client) DeleteApp(ctx context.Context, id model.AppID, opts ...WriteOption) (Change, error) {
	return write[Change](ctx, c, http.MethodDelete, appPath(id), nil, opts)
}

// ScaleApp sets how many instances to keep running.
func (c *Client) ScaleApp(ctx context.Context, id model.AppID, instances int, opts ...WriteOption) (Change, error) {
	return write[Change](ctx, c, http.MethodPost, appPath(id)+"/scale", Scale{Instances: instances}, opts)
}

// RestartApp replaces every instance by a new one, by the app's update policy.
func (c *Client) RestartApp(ctx context.Context, id model.AppID, opts ...WriteOption) (Change, error) {
	return write[Change](ctx, c, http.MethodPost, appPath(id)+"/restart", nil, opts)
}

// RollbackApp deploys an earlier version again; version 0 means the newest earlier one that ran something else.
func (c *Client) RollbackApp(ctx context.Context, id model.AppID, version uint64, opts ...WriteOption) (Change, error) {
	return write[Change](ctx, c, http.MethodPost, appPath(id)+"/rollback", Rollback{Version: version}, opts)
}

// Versions returns the kept versions of an app, newest first.
func (c *Client) Versions(ctx context.Context, id model.AppID) ([]Version, error) {
	return get[[]Version](ctx, c, appPath(id)+"/versions", nil)
}

// InstanceFilter chooses instances. The zero value means all that are not over.
type InstanceFilter struct {
	App  model.AppID  // of this app only
	Node model.NodeID // on this node only
	All  bool         // those that are over but kept, too
}

// Instances returns instances, newest first.
func (c *Client) Instances(ctx context.Context, f InstanceFilter) ([]Instance, error) {
	q := url.Values{}
	set(q, "app", string(f.App))
	set(q, "node", string(f.Node))
	setBool(q, "all", f.All)
	return get[[]Instance](ctx, c, "/v1/instances", q)
}

// Instance returns one instance.
func (c *Client) Instance(ctx context.Context, id model.InstanceID) (Instance, error) {
	return get[Instance](ctx, c, instancePath(id), nil)
}

// DeploymentFilter chooses deployments. The zero value means all that are kept.
type DeploymentFilter struct {
	App    model.AppID
	Active bool // only those that have not ended
}

// Deployments returns deployments, newest first.
func (c *Client) Deployments(ctx context.Context, f DeploymentFilter) ([]model.Deployment, error) {
	q := url.Values{}
	set(q, "app", string(f.App))
	setBool(q, "active", f.Active)
	return get[[]model.Deployment](ctx, c, "/v1/deployments", q)
}

// Deployment returns one deployment.
func (c *Client) Deployment(ctx context.Context, id model.DeploymentID) (model.Deployment, error) {
	return get[model.Deployment](ctx, c, deploymentPath(id), nil)
}

// PauseDeployment makes a deployment take no further step until it is resumed.
func (c *Client) PauseDeployment(ctx context.Context, id model.DeploymentID) (model.Deployment, error) {
	return write[model.Deployment](ctx, c, http.MethodPost, deploymentPath(id)+"/pause", nil, nil)
}

// ResumeDeployment lets a paused deployment go on.
func (c *Client) ResumeDeployment(ctx context.Context, id model.DeploymentID) (model.Deployment, error) {
	return write[model.Deployment](ctx, c, http.MethodPost, deploymentPath(id)+"/resume", nil, nil)
}

// CancelDeployment ends a deployment and starts another that goes back to the last version that was healthy. It returns
// the cancelled one; the app's newest deployment is the way back.
func (c *Client) CancelDeployment(ctx context.Context, id model.DeploymentID) (model.Deployment, error) {
	return write[model.Deployment](ctx, c, http.MethodPost, deploymentPath(id)+"/cancel", nil, nil)
}

// Nodes returns all nodes.
func (c *Client) Nodes(ctx context.Context) ([]NodeDetail, error) {
	return get[[]NodeDetail](ctx, c, "/v1/nodes", nil)
}

// Node returns one node.
func (c *Client) Node(ctx context.Context, id model.NodeID) (NodeDetail, error) {
	return get[NodeDetail](ctx, c, nodePath(id), nil)
}

// Usage returns what nodes and instances use now.
func (c *Client) Usage(ctx context.Context) (Usage, error) {
	return get[Usage](ctx, c, "/v1/usage", nil)
}

// Images returns the images present on a node; an empty node means the only one.
func (c *Client) Images(ctx context.Context, node model.NodeID) ([]Image, error) {
	q := url.Values{}
	set(q, "node", string(node))
	return get[[]Image](ctx, c, "/v1/images", q)
}

// ImportImages loads images from an OCI or Docker archive into a node; an empty node means the only one.
func (c *Client) ImportImages(ctx context.Context, node model.NodeID, archive io.Reader) (Imported, error) {
	q := url.Values{}
	set(q, "node", string(node))
	var out Imported
	req, err := c.request(ctx, http.MethodPost, "/v1/images", q, archive)
	if err != nil {
		return out, err
	}
	req.Header.Set("Content-Type", "application/x-tar")
	return out, c.decode(req, &out)
}

// Info describes the server.
func (c *Client) Info(ctx context.Context) (Info, error) { return get[Info](ctx, c, "/v1/info", nil) }

// Shutdown asks the server to end. It returns when the server has agreed, which is before it has ended.
func (c *Client) Shutdown(ctx context.Context, s Shutdown) error {
	_, err := write[struct{}](ctx, c, http.MethodPost, "/v1/shutdown", s, nil)
	return err
}

// OpenAPI returns the description of the API, as JSON.
func (c *Client) OpenAPI(ctx context.Context) ([]byte, error) { return c.text(ctx, "/v1/openapi.json") }

// Metrics returns the server's metrics in the text form of Prometheus.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) { return c.text(ctx, "/metrics") }

// Healthy returns nil when the server answers. It needs no token.
func (c *Client) Healthy(ctx context.Context) error {
	_, err := c.text(ctx, "/healthz")
	return err
}

func appPath(id model.AppID) string {
	return "/v1/apps/" + url.PathEscape(strings.TrimPrefix(string(id), "/"))
}

func instancePath(id model.InstanceID) string { return "/v1/instances/" + url.PathEscape(string(id)) }

func deploymentPath(id model.DeploymentID) string {
	return "/v1/deployments/" + url.PathEscape(string(id))
}

func set(q url.Values, key, val string) {
	if val != "" {
		q.Set(key, val)
	}
}

func setBool(q url.Values, key string, val bool) {
	if val {
		q.Set(key, "true")
	}
}

func get[T any](ctx context.Context, c *Client, path string, q url.Values) (T, error) {
	var out T
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if c.fresh {
		q = maps.Clone(q)
		if q == nil {
			q = url.Values{}
		}
		q.Set("fresh", "true")
	}
	req, err := c.request(ctx, http.MethodGet, path, q, nil)
	if err != nil {
		return out, err
	}
	return out, c.decode(req, &out)
}

// write sends body, nil for none, under an idempotency key: net/http then sends it again by itself when a kept-alive
// connection turns out to be dead.
func write[T any](ctx context.Context, c *Client, method, path string, body any, opts []WriteOption) (T, error) {
	var out T
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return out, fmt.Errorf("encode request: %w", err)
		}
		r = bytes.NewReader(b)
	}
	req, err := c.request(ctx, method, path, nil, r)
	if err != nil {
		return out, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Idempotency-Key", rand.Text())
	for _, o := range opts {
		o(req.Header)
	}
	return out, c.decode(req, &out)
}

func (c *Client) text(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	req, err := c.request(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.send(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, c.lost(ctx, err)
	}
	return b, nil
}

func (c *Client) request(ctx context.Context, method, path string, q url.Values, body io.Reader) (*http.Request, error) {
	addr := c.base + path
	if len(q) > 0 {
		addr += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, addr, body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	return req, nil
}

// send returns the answer when its status is 2xx, else the server's error.
func (c *Client) send(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.lost(req.Context(), err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, readError(resp)
}

func (c *Client) decode(req *http.Request, out any) error {
	resp, err := c.send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return c.lost(req.Context(), err)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("decode answer of %s: %w", req.URL.Path, err)
	}
	return nil
}

// lost tells a call that the caller ended from one that the network did.
func (c *Client) lost(ctx context.Context, err error) error {
	if ctx.Err() == context.Canceled {
		return context.Cause(ctx)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // its text repeats the address
	}
	if bad := tlsError(c.base, err); bad != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, bad)
	}
	return fmt.Errorf("%w at %s: %w", ErrUnreachable, c.base, err)
}
