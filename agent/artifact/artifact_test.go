package artifact

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/gantry-os/gantry/model"
)

// origin is a server whose one file can change, and which counts what it is asked.
type origin struct {
	*httptest.Server
	content  atomic.Pointer[string]
	full     atomic.Int32 // answers with content
	same     atomic.Int32 // answers 304
	partial  atomic.Int32 // answers 206
	cut      atomic.Int32 // answers still to be cut short
	fail     atomic.Int32 // answers still to be 503
	slowDown chan struct{}
}

func newOrigin(t *testing.T, content string) *origin {
	o := &origin{}
	o.content.Store(&content)
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	return o
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if o.slowDown != nil {
		<-o.slowDown
	}
	if o.fail.Add(-1) >= 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if r.URL.Path == "/missing" {
		http.NotFound(w, r)
		return
	}
	c := *o.content.Load()
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256([]byte(c))))
	rec := &statusWriter{ResponseWriter: w}
	if o.cut.Add(-1) >= 0 {
		rec.limit = len(c) / 2
	}
	http.ServeContent(rec, r, "", time.Time{}, strings.NewReader(c))
	switch rec.status {
	case http.StatusNotModified:
		o.same.Add(1)
	case http.StatusPartialContent:
		o.partial.Add(1)
	default:
		o.full.Add(1)
	}
	if rec.limit > 0 {
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

type statusWriter struct {
	http.ResponseWriter
	status int
	limit  int
}

func (s *statusWriter) WriteHeader(n int) { s.status = n; s.ResponseWriter.WriteHeader(n) }

func (s *statusWriter) Write(p []byte) (int, error) {
	if s.limit > 0 {
		p = p[:min(len(p), s.limit)]
		s.ResponseWriter.Write(p)
		return 0, io.ErrClosedPipe
	}
	return s.ResponseWriter.Write(p)
}

func newCache(t *testing.T, size model.Bytes) *Cache {
	c, err := New(Config{Dir: filepath.Join(t.TempDir(), "cache"), Size: size, Unpacked: model.MiB})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantFile(t *testing.T, content string, elem ...string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil || string(b) != content {
		t.Errorf("file %s has %.60q, %v, want %.60q", filepath.Join(elem...), b, err, content)
	}
}

func sha(s string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s))) }

func TestCacheAsksBeforeReuse(t *testing.T) {
	o, c, dir := newOrigin(t, "one"), newCache(t, 0), t.TempDir()
	a := model.Artifact{URI: o.URL + "/f.txt"}
	for range 2 {
		if err := c.Place(t.Context(), a, dir, nil); err != nil {
			t.Fatal(err)
		}
	}
	wantFile(t, "one", dir, "f.txt")
	if o.full.Load() != 1 || o.same.Load() != 1 {
		t.Errorf("%d fetches, %d not modified", o.full.Load(), o.same.Load())
	}
	two := "two"
	o.content.Store(&two)
	if err := c.Place(t.Context(), a, dir, nil); err != nil {
		t.Fatal(err)
	}
	wantFile(t, "two", dir, "f.txt")
	a.NoCache = true
	if err := c.Place(t.Context(), a, dir, nil); err != nil || o.full.Load() != 3 {
		t.Errorf("without the cache: %v, %d fetches", err, o.full.Load())
	}
	if entries, _ := os.ReadDir(filepath.Join(c.cfg.Dir, "tmp")); len(entries) != 0 {
		t.Errorf("left in tmp: %v", entries)
	}
}

func TestChecksums(t *testing.T) {
	o, c, dir := newOrigin(t, "content"), newCache(t, 0), t.TempDir()
	good := model.Artifact{URI: o.URL + "/f", Checksum: strings.ToUpper(sha("content")[7:])}
	good.Checksum = "sha256:" + good.Checksum
	for range 2 {
		if err := c.Place(t.Context(), good, dir, nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := o.full.Load() + o.same.Load(); n != 1 {
		t.Errorf("checked content was asked for %d times", n)
	}
	bad := model.Artifact{URI: o.URL + "/bad", Checksum: sha("other")}
	err := c.Place(t.Context(), bad, dir, nil)
	if !errors.Is(err, ErrChecksum) || !strings.Contains(err.Error(), sha("content")[7:]) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bad")); err == nil {
		t.Error("wrong content was placed")
	}
	long := model.Artifact{URI: o.URL + "/long", Checksum: fmt.Sprintf("sha512:%x", sha512.Sum512([]byte("content")))}
	if err := c.Place(t.Context(), long, dir, nil); err != nil {
		t.Error(err)
	}
}

func TestBrokenTransferIsResumed(t *testing.T) {
	content := strings.Repeat("0123456789", 10_000)
	o, c, dir := newOrigin(t, content), newCache(t, 0), t.TempDir()
	o.fail.Store(1)
	o.cut.Store(1)
	a := model.Artifact{URI: o.URL + "/f", Checksum: sha(content)}
	if err := c.Place(t.Context(), a, dir, nil); err != nil {
		t.Fatal(err)
	}
	wantFile(t, content, dir, "f")
	if o.partial.Load() != 1 {
		t.Errorf("%d resumed", o.partial.Load())
	}
}

func TestNotFoundFailsAtOnce(t *testing.T) {
	o, c := newOrigin(t, ""), newCache(t, 0)
	begin := time.Now()
	err := c.Place(t.Context(), model.Artifact{URI: o.URL + "/missing"}, t.TempDir(), nil)
	if err == nil || !strings.Contains(err.Error(), "404") || time.Since(begin) > retryAfter {
		t.Errorf("error %v after %v", err, time.Since(begin))
	}
}

func TestFetchesAreMerged(t *testing.T) {
	o, c := newOrigin(t, "x"), newCache(t, 0)
	o.slowDown = make(chan struct{})
	var wg sync.WaitGroup
	for range 20 {
		dir := t.TempDir()
		wg.Go(func() {
			if err := c.Place(t.Context(), model.Artifact{URI: o.URL + "/f", Checksum: sha("x")}, dir, nil); err != nil {
				t.Error(err)
			}
		})
	}
	close(o.slowDown)
	wg.Wait()
	if o.full.Load() != 1 {
		t.Errorf("%d fetches", o.full.Load())
	}
}

func TestCancelEndsAFetch(t *testing.T) {
	o, c := newOrigin(t, "x"), newCache(t, 0)
	o.slowDown = make(chan struct{})
	defer close(o.slowDown)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := c.Place(ctx, model.Artifact{URI: o.URL + "/f"}, t.TempDir(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestEvictionTakesTheLeastUsed(t *testing.T) {
	o, c, dir := newOrigin(t, strings.Repeat("x", 400)), newCache(t, 1000), t.TempDir()
	now := time.Now()
	c.cfg.Now = func() time.Time { now = now.Add(time.Second); return now }
	sum := sha(*o.content.Load())
	for _, name := range []string{"a", "b", "a", "c", "a", "b"} {
		if err := c.Place(t.Context(), model.Artifact{URI: o.URL + "/" + name, Checksum: sum}, dir, nil); err != nil {
			t.Fatal(err)
		}
	}
	if o.full.Load() != 4 { // a, b, c, and b again
		t.Errorf("%d fetches", o.full.Load())
	}
}

func TestFilesOfTheNode(t *testing.T) {
	c, src, dir := newCache(t, 0), t.TempDir(), t.TempDir()
	name := filepath.Join(src, "tool")
	os.WriteFile(name, []byte("#!/bin/sh\n"), 0o600)
	a := model.Artifact{URI: "file://" + name, Executable: true, Path: "bin/run", Checksum: sha("#!/bin/sh\n")}
	for range 2 {
		if err := c.Place(t.Context(), a, dir, nil); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "bin/run")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
	os.WriteFile(name, []byte("something else"), 0o600)
	if err := c.Place(t.Context(), a, dir, nil); !errors.Is(err, ErrChecksum) {
		t.Errorf("after a change: %v", err)
	}
	if err := c.Place(t.Context(), model.Artifact{URI: "file://" + src}, dir, nil); err == nil {
		t.Error("a directory was taken")
	}
	if err := c.Place(t.Context(), model.Artifact{URI: "file:///no/such"}, dir, nil); !os.IsNotExist(errors.Unwrap(err)) {
		t.Errorf("error %v", err)
	}
}

type entry struct {
	name, body, link string
	kind             byte
	mode             int64
}

func makeTar(entries ...entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Size: int64(len(e.body))}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		w.WriteHeader(h)
		io.WriteString(w, e.body)
	}
	w.Close()
	return b.Bytes()
}

func compressed(t testing.TB, b []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	var out bytes.Buffer
	w, err := open(&out)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func makeZip(entries ...entry) []byte {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name}
		if e.link != "" {
			h.SetMode(os.ModeSymlink | 0o777)
			e.body = e.link
		} else {
			h.SetMode(os.FileMode(e.mode))
		}
		f, _ := w.CreateHeader(h)
		io.WriteString(f, e.body)
	}
	w.Close()
	return b.Bytes()
}

func TestUnpackFormats(t *testing.T) {
	files := []entry{{name: "app/run", body: "hi", mode: 0o4755}, {name: "app/link", link: "run", kind: tar.TypeSymlink}}
	plain := makeTar(append(files, entry{name: "app/hard", link: "app/run", kind: tar.TypeLink})...)
	archives := map[string][]byte{
		"a.tar":     plain,
		"a.tgz":     compressed(t, plain, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }),
		"a.tar.xz":  compressed(t, plain, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }),
		"a.tar.zst": compressed(t, plain, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
		"a.zip":     makeZip(files...),
	}
	if bz, err := exec.LookPath("bzip2"); err == nil {
		cmd := exec.Command(bz, "-c")
		cmd.Stdin = bytes.NewReader(plain)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		archives["a.tar.bz2"] = out
	}
	for name, b := range archives {
		t.Run(name, func(t *testing.T) {
			c, src, dir := newCache(t, 0), t.TempDir(), t.TempDir()
			os.WriteFile(filepath.Join(src, name), b, 0o600)
			os.MkdirAll(filepath.Join(dir, "app"), 0o755)
			os.WriteFile(filepath.Join(dir, "app/own"), []byte("kept"), 0o600)
			for range 2 {
				if err := c.Place(t.Context(), model.Artifact{URI: "file://" + filepath.Join(src, name)}, dir, nil); err != nil {
					t.Fatal(err)
				}
			}
			wantFile(t, "hi", dir, "app/run")
			wantFile(t, "hi", dir, "app/link")
			wantFile(t, "kept", dir, "app/own")
			if info, _ := os.Stat(filepath.Join(dir, "app/run")); info.Mode() != 0o755 {
				t.Errorf("mode %v", info.Mode())
			}
			entries, _ := os.ReadDir(dir)
			if len(entries) != 1 {
				t.Errorf("left behind: %v", entries)
			}
			no := false
			if err := c.Place(t.Context(), model.Artifact{URI: "file://" + filepath.Join(src, name), Extract: &no, Path: "raw/x"}, dir, nil); err != nil {
				t.Fatal(err)
			}
			wantFile(t, string(b), dir, "raw/x")
		})
	}
}

func TestUnpackRefuses(t *testing.T) {
	big := strings.Repeat("x", 2<<20)
	for name, b := range map[string][]byte{
		"parent":           makeTar(entry{name: "../evil", body: "x"}),
		"hidden parent":    makeTar(entry{name: "a/../../evil", body: "x"}),
		"absolute":         makeTar(entry{name: "/evil", body: "x"}),
		"link out":         makeTar(entry{name: "l", link: "../..", kind: tar.TypeSymlink}),
		"absolute link":    makeTar(entry{name: "l", link: "/etc", kind: tar.TypeSymlink}),
		"chain of links":   makeTar(entry{name: "a/b/c", link: "..", kind: tar.TypeSymlink}, entry{name: "d", link: "a/b/c/../../..", kind: tar.TypeSymlink}, entry{name: "d/evil", body: "x"}),
		"hard link out":    makeTar(entry{name: "l", link: "../../etc/passwd", kind: tar.TypeLink}),
		"hard link to dir": makeTar(entry{name: "d", kind: tar.TypeDir}, entry{name: "l", link: "d", kind: tar.TypeLink}),
		"device":           makeTar(entry{name: "null", kind: tar.TypeChar}),
		"fifo":             makeTar(entry{name: "pipe", kind: tar.TypeFifo}),
		"too big":          makeTar(entry{name: "big", body: big}),
		"bomb":             compressed(t, makeTar(entry{name: "big", body: big}), func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }),
		"torn":             makeTar(entry{name: "f", body: big[:4096]})[:1024],
		"zip parent":       makeZip(entry{name: "../evil", body: "x", mode: 0o644}),
		"zip link out":     makeZip(entry{name: "l", link: "../../etc"}),
		"noise":            []byte(strings.Repeat("noise", 1000)),
	} {
		t.Run(name, func(t *testing.T) {
			c, src := newCache(t, 0), t.TempDir()
			outer := t.TempDir()
			dir := filepath.Join(outer, "a", "sandbox")
			os.MkdirAll(dir, 0o755)
			archive := filepath.Join(src, "x.tar")
			os.WriteFile(archive, b, 0o600)
			err := c.Place(t.Context(), model.Artifact{URI: "file://" + archive}, dir, nil)
			if !errors.Is(err, ErrArchive) {
				t.Errorf("error %v", err)
			}
			entries, _ := os.ReadDir(dir)
			above, _ := os.ReadDir(outer)
			if len(entries) != 0 || len(above) != 1 {
				t.Errorf("left behind: %v %v", entries, above)
			}
		})
	}
}

// TestSandboxLinksAreNotFollowed has a program prepare a trap for the next attempt's artifacts.
func TestSandboxLinksAreNotFollowed(t *testing.T) {
	c, src, dir, victim := newCache(t, 0), t.TempDir(), t.TempDir(), t.TempDir()
	os.Symlink(victim, filepath.Join(dir, "app"))
	archive := filepath.Join(src, "x.tar")
	os.WriteFile(archive, makeTar(entry{name: "app/evil", body: "x"}), 0o600)
	if err := c.Place(t.Context(), model.Artifact{URI: "file://" + archive}, dir, nil); err == nil {
		t.Error("the link was followed")
	}
	if entries, _ := os.ReadDir(victim); len(entries) != 0 {
		t.Errorf("written outside: %v", entries)
	}
}

// FuzzUnpack looks that no archive makes anything outside its directory, or more than is allowed.
func FuzzUnpack(f *testing.F) {
	plain := makeTar(entry{name: "a/b", body: "x"}, entry{name: "a/l", link: "b", kind: tar.TypeSymlink})
	f.Add(plain)
	f.Add(makeTar(entry{name: "../evil", body: "x"}))
	f.Add(makeZip(entry{name: "a/b", body: "x", mode: 0o644}, entry{name: "l", link: "a"}))
	f.Add(compressed(f, plain, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }))
	f.Add(compressed(f, plain, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }))
	f.Add(compressed(f, plain, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "in")
		os.Mkdir(dir, 0o755)
		archive := filepath.Join(t.TempDir(), "x")
		os.WriteFile(archive, b, 0o600)
		in, err := os.Open(archive)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		unpack(t.Context(), in, root, 64*model.KiB)
		if above, _ := os.ReadDir(outer); len(above) != 1 {
			t.Fatalf("made outside: %v", above)
		}
		var sum int64
		filepath.WalkDir(dir, func(name string, _ os.DirEntry, _ error) error {
			info, err := os.Lstat(name)
			if err != nil {
				return nil
			}
			switch {
			case info.Mode().IsRegular():
				sum += info.Size()
			case !info.IsDir() && info.Mode().Type() != os.ModeSymlink:
				t.Errorf("%s is a %v", name, info.Mode())
			}
			return nil
		})
		if sum > 1<<20 {
			t.Errorf("%d bytes were unpacked", sum)
		}
	})
}
