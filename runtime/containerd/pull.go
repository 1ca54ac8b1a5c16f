package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
)

// Pull makes an image present. Callers that ask for the same image at once share one download.
func (d *Driver) Pull(ctx context.Context, ref string, policy model.PullPolicy, auth *model.RegistryAuth, progress func(string)) (string, error) {
	name, err := normalize(ref)
	if err != nil {
		return "", fmt.Errorf("pull image: %w", err)
	}
	if policy != model.PullAlways {
		digest, err := d.present(ctx, name)
		if digest != "" || err != nil {
			return digest, err
		}
		if policy == model.PullNever {
			return "", fmt.Errorf("%w: image %s is not on this node, and its pull policy is never", runtime.ErrInvalid, ref)
		}
	}
	p := d.join(ctx, name, auth)
	defer d.leave(p)
	return p.wait(ctx, progress)
}

// present returns the digest of an image on this node, ready to run, or nothing.
func (d *Driver) present(ctx context.Context, name string) (string, error) {
	ctx, cli, err := d.client(ctx)
	if err != nil {
		return "", fmt.Errorf("look up image: %w", err)
	}
	img, err := d.image(ctx, cli, name)
	if errors.Is(err, runtime.ErrInvalid) || errdefs.IsNotFound(err) { // absent, or incomplete
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return img.record.Target.Digest.String(), d.unpack(ctx, cli, img)
}

// pull is a download under way.
type pull struct {
	key    string
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	users  int // guarded by Driver.mu

	total, got atomic.Int64 // bytes
	digest     string       // valid once done
	err        error
}

// join returns the download of an image with these credentials, and begins it if there is none.
func (d *Driver) join(ctx context.Context, name string, auth *model.RegistryAuth) *pull {
	key := name
	if auth != nil {
		key += "\x00" + auth.Username + "\x00" + auth.Password
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.pulls[key]
	if p == nil {
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		p = &pull{key: key, name: name, cancel: cancel, done: make(chan struct{})}
		d.pulls[key] = p
		go d.download(ctx, p, auth)
	}
	p.users++
	return p
}

// leave ends a download that nobody waits for.
func (d *Driver) leave(p *pull) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.users--; p.users == 0 {
		p.cancel()
		if d.pulls[p.key] == p {
			delete(d.pulls, p.key)
		}
	}
}

// progressInterval is the time between two sentences about a download.
const progressInterval = 500 * time.Millisecond

func (p *pull) wait(ctx context.Context, progress func(string)) (string, error) {
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	last := ""
	say := func() {
		if s := p.String(); progress != nil && s != last {
			progress(s)
			last = s
		}
	}
	say()
	for {
		select {
		case <-p.done:
			return p.digest, p.err
		case <-ctx.Done():
			return "", fmt.Errorf("pull image %s: %w", familiar(p.name), ctx.Err())
		case <-tick.C:
			say()
		}
	}
}

// String is the sentence that tells how far a download is.
func (p *pull) String() string {
	name, got, total := familiar(p.name), p.got.Load(), p.total.Load()
	switch {
	case total == 0:
		return fmt.Sprintf("pulling %s", name)
	case got < total:
		return fmt.Sprintf("pulling %s: %s of %s", name, model.Bytes(got).Human(), model.Bytes(total).Human())
	}
	return fmt.Sprintf("unpacking %s", name)
}

func (d *Driver) download(ctx context.Context, p *pull, auth *model.RegistryAuth) {
	defer close(p.done)
	ctx, cli, err := d.client(ctx)
	if err != nil {
		p.err = fmt.Errorf("pull image %s: %w", familiar(p.name), err)
		return
	}
	img, err := cli.Pull(ctx, p.name,
		client.WithResolver(&countingResolver{Resolver: d.resolver(auth), pull: p}),
		client.WithPullUnpack, client.WithPullSnapshotter(d.snapshotter),
		client.WithImageHandler(images.HandlerFunc(p.count)))
	if err != nil {
		p.err = fmt.Errorf("pull image %s: %w", familiar(p.name), d.refusal(ctx, p.name, err))
		return
	}
	p.digest = img.Target().Digest.String()
}

// count adds what a descriptor refers to to the size of the download.
func (p *pull) count(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if images.IsLayerType(desc.MediaType) {
		p.total.Add(desc.Size)
	}
	return nil, nil
}

// resolver speaks to registries: plainly on loopback and where configured, by TLS elsewhere.
func (d *Driver) resolver(auth *model.RegistryAuth) remotes.Resolver {
	creds := func(string) (string, string, error) { return "", "", nil }
	if auth != nil {
		creds = func(string) (string, string, error) { return auth.Username, auth.Password, nil }
	}
	web := &http.Client{Transport: docker.DefaultHTTPTransport(nil)}
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(
			docker.WithClient(web),
			docker.WithPlainHTTP(func(host string) (bool, error) { return d.plain(host), nil }),
			docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthClient(web), docker.WithAuthCreds(creds)))),
	})
}

// plain reports whether a registry is spoken to without TLS.
func (d *Driver) plain(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if slices.Contains(d.config.PlainHTTP, host) || slices.Contains(d.config.PlainHTTP, name) || name == "localhost" {
		return true
	}
	ip := net.ParseIP(trimBrackets(name))
	return ip != nil && ip.IsLoopback()
}

func trimBrackets(s string) string {
	if len(s) > 1 && s[0] == '[' && s[len(s)-1] == ']' {
		return s[1 : len(s)-1]
	}
	return s
}

// refusal tells what can never work from what may work later.
func (d *Driver) refusal(ctx context.Context, name string, err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	hasStatus := errors.As(err, &status)
	switch {
	case ctx.Err() != nil:
		return err
	case errors.Is(err, docker.ErrInvalidAuthorization), hasStatus && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden):
		return fmt.Errorf("%w: its registry refused the credentials, or wants some", runtime.ErrInvalid)
	case errdefs.IsNotFound(err), hasStatus && status.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: its registry has no image of this name", runtime.ErrInvalid)
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		host, _, _ := strings.Cut(name, "/")
		return fmt.Errorf("%w: its registry speaks no TLS, which is only allowed on loopback and to those that gantry up is given by --plain-http %s", runtime.ErrInvalid, host)
	}
	var netErr *net.OpError
	if errors.As(err, &netErr) { // the registry's connection, not the engine's
		return unreachable(err)
	}
	return d.failure(ctx, err)
}

// countingResolver counts the bytes of layers that come in.
type countingResolver struct {
	remotes.Resolver
	pull *pull
}

func (r *countingResolver) Fetcher(ctx context.Context, ref string) (remotes.Fetcher, error) {
	f, err := r.Resolver.Fetcher(ctx, ref)
	if err != nil {
		return nil, err
	}
	return remotes.FetcherFunc(func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		body, err := f.Fetch(ctx, desc)
		if err != nil || !images.IsLayerType(desc.MediaType) {
			return body, err
		}
		return &countingReader{body: body, got: &r.pull.got}, nil
	}), nil
}

// countingReader keeps the body's Seek, by which an interrupted download goes on where it was.
type countingReader struct {
	body io.ReadCloser
	got  *atomic.Int64
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	r.got.Add(int64(n))
	return n, err
}

func (r *countingReader) Seek(offset int64, whence int) (int64, error) {
	s, ok := r.body.(io.Seeker)
	if !ok {
		return 0, errors.New("the registry's answer cannot be resumed")
	}
	return s.Seek(offset, whence)
}

func (r *countingReader) Close() error { return r.body.Close() }

// unreachable says which registry did not answer and why, without the path of calls that found out.
func unreachable(err error) error {
	var lookup *net.DNSError
	if errors.As(err, &lookup) {
		return fmt.Errorf("registry %s cannot be reached: its name has no address", lookup.Name)
	}
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Addr != nil {
		return fmt.Errorf("registry %s cannot be reached: %w", dial.Addr, dial.Err)
	}
	return fmt.Errorf("its registry cannot be reached: %w", err)
}
