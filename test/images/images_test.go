package images

import (
	"archive/tar"
	"io"
	"os"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// files returns the headers of all files of an image by name.
func files(t *testing.T, img v1.Image) map[string]*tar.Header {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	out := map[string]*tar.Header{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = h
	}
}

// An image of packages must hold what they depend on, or programs in it would not start.
func TestDebianHasDependencies(t *testing.T) {
	have := files(t, Debian(t, "redis-server"))
	for _, f := range []string{"usr/bin/redis-server", "etc/passwd", "tmp"} {
		if have[f] == nil {
			t.Errorf("%s is missing", f)
		}
	}
	if have["lib/x86_64-linux-gnu/libc.so.6"] == nil && have["usr/lib/x86_64-linux-gnu/libc.so.6"] == nil && goarch == "amd64" {
		t.Error("libc is missing")
	}
	if h := have["var/lib/redis"]; h == nil || h.Uid != 101 {
		t.Errorf("/var/lib/redis: %+v", h)
	}
}

// The second image of the same packages must come from the cache and be the same.
func TestDebianIsCached(t *testing.T) {
	a, err := Busybox(t).Digest()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/usr/bin:/bin")
	if b, err := Busybox(t).Digest(); err != nil || a != b {
		t.Errorf("digests %v and %v, %v", a, b, err)
	}
}

// The registry must hand back what was pushed, and a private one only to those it knows.
func TestRegistries(t *testing.T) {
	img := Static(t, "package main\n\nfunc main() { println(\"hello\") }\n")
	ref := Registry(t) + "/hello:1"
	digest := Push(t, img, ref)
	if got := pull(t, ref, authn.Anonymous); got != digest {
		t.Errorf("pulled %s, pushed %s", got, digest)
	}
	ref = PrivateRegistry(t, "anna", "secret") + "/hello:1"
	PushAs(t, img, ref, "anna", "secret")
	if got := pull(t, ref, &authn.Basic{Username: "anna", Password: "secret"}); got != digest {
		t.Errorf("pulled %s, pushed %s", got, digest)
	}
	if got := pull(t, ref, authn.Anonymous); got != "" {
		t.Error("the private registry let a stranger in")
	}
	if info, err := os.Stat(SaveTar(t, img, "hello:1")); err != nil || info.Size() == 0 {
		t.Errorf("saved archive: %v, %v", info, err)
	}
}

// pull returns the digest of an image in a registry, or nothing when it is refused.
func pull(t *testing.T, ref string, auth authn.Authenticator) string {
	t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	d, err := remote.Head(r, remote.WithAuth(auth))
	if err != nil {
		return ""
	}
	return d.Digest.String()
}
