// Package images makes OCI images for tests, and serves them from a registry in the test's own process.
//
// Static makes one from a Go program, Debian one from real Debian packages, and Busybox a small one that has a shell.
// Packages are downloaded once and kept in the user's cache directory.
package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Registry starts a registry on a loopback port, without TLS or credentials, and returns its host:port.
func Registry(t testing.TB) string {
	t.Helper()
	return serve(t, newRegistry())
}

// PrivateRegistry starts a registry that asks for a user name and password.
func PrivateRegistry(t testing.TB, username, password string) string {
	t.Helper()
	inner := newRegistry()
	return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != username || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
}

func newRegistry() http.Handler { return registry.New(registry.Logger(log.New(io.Discard, "", 0))) }

func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// Push stores an image in a registry under a name such as 127.0.0.1:5000/web:1, and returns its digest.
func Push(t testing.TB, img v1.Image, ref string) string {
	t.Helper()
	return push(t, img, ref, authn.Anonymous)
}

// PushAs is Push to a registry that asks for credentials.
func PushAs(t testing.TB, img v1.Image, ref, username, password string) string {
	t.Helper()
	return push(t, img, ref, &authn.Basic{Username: username, Password: password})
}

func push(t testing.TB, img v1.Image, ref string, auth authn.Authenticator) string {
	t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img, remote.WithAuth(auth)); err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// SaveTar writes an image as a Docker archive, as `docker save` does, and returns the file's path.
func SaveTar(t testing.TB, img v1.Image, ref string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	r, err := name.ParseReference(ref, name.WithDefaultRegistry("docker.io"))
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, r, img); err != nil {
		t.Fatalf("save %s: %v", ref, err)
	}
	return path
}

// With returns an image whose configuration was changed.
func With(t testing.TB, img v1.Image, change func(*v1.Config)) v1.Image {
	t.Helper()
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config := file.Config.DeepCopy()
	change(config)
	out, err := mutate.Config(img, *config)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// WithFiles returns an image with a further layer that holds these files, by absolute path.
func WithFiles(t testing.TB, img v1.Image, files map[string]string) v1.Image {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for path, text := range files {
		h := &tar.Header{Name: strings.TrimPrefix(path, "/"), Mode: 0o755, Size: int64(len(text)), ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return appendLayer(t, img, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}

// Static builds a Go program without cgo and returns an image that holds it as /app, its entrypoint. source is the
// directory of a main package of this module, or the text of a program that uses only the standard library.
func Static(t testing.TB, source string) v1.Image {
	t.Helper()
	out := filepath.Join(t.TempDir(), "app")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, ".")
	cmd.Dir = source
	if strings.Contains(source, "package main") {
		cmd.Dir = t.TempDir()
		files := map[string]string{"main.go": source, "go.mod": "module app\n\ngo 1.26\n"}
		for file, text := range files {
			if err := os.WriteFile(filepath.Join(cmd.Dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", cmd.Dir, err, text)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	img := WithFiles(t, base(t), map[string]string{"/app": string(text), "/etc/passwd": passwd, "/etc/group": group})
	return With(t, img, func(c *v1.Config) { c.Entrypoint = []string{"/app"} })
}

// base is an image for this machine's kind of processor without files.
func base(t testing.TB) v1.Image {
	t.Helper()
	file, err := empty.Image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", goarch
	file.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	img, err := mutate.ConfigFile(empty.Image, file)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func appendLayer(t testing.TB, img v1.Image, open tarball.Opener) v1.Image {
	t.Helper()
	layer, err := tarball.LayerFromOpener(open, tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithCompressedCaching)
	if err == nil {
		img, err = mutate.AppendLayers(img, layer)
	}
	if err != nil {
		t.Fatal(fmt.Errorf("add layer: %w", err))
	}
	return img
}
