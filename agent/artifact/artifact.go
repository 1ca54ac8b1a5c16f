// Package artifact fetches files into sandboxes: over http and https through a cache that all instances of a node share,
// and from files of the node. It checks their sums and unpacks archives.
//
// What was fetched lies in the cache under the sum of its address and checksum, beside a note of what the server said of
// its version, with which the server is asked before it is used again. Content whose checksum the user gave is used
// without asking. Everything appears under its name only when it is complete, by rename.
package artifact

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/gantry-os/gantry/agent/flight"
	"github.com/gantry-os/gantry/model"
)

// ErrChecksum says that content is not what the user asked for.
var ErrChecksum = errors.New("wrong checksum")

// Config says how a Cache works.
type Config struct {
	Dir      string           // of the cache
	Size     model.Bytes      // to keep at most; 0 for 5GiB
	Unpacked model.Bytes      // most that one archive may unpack to; 0 for 16GiB
	Client   *http.Client     // nil for a default one
	Now      func() time.Time // nil for time.Now
}

// Cache fetches artifacts. Its methods may be called at once.
type Cache struct {
	cfg     Config
	fetches flight.Group[string]
	work    chan struct{} // bounds how many fetch or unpack at once
	sums    sums
}

// New returns a cache in cfg.Dir, and removes what an earlier process left unfinished there.
func New(cfg Config) (*Cache, error) {
	if cfg.Size == 0 {
		cfg.Size = 5 * model.GiB
	}
	if cfg.Unpacked == 0 {
		cfg.Unpacked = 16 * model.GiB
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Client == nil {
		cfg.Client = newClient()
	}
	if err := os.RemoveAll(filepath.Join(cfg.Dir, "tmp")); err != nil {
		return nil, fmt.Errorf("clean artifact cache: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "tmp"), 0o700); err != nil {
		return nil, fmt.Errorf("make artifact cache: %w", err)
	}
	return &Cache{cfg: cfg, work: make(chan struct{}, 8)}, nil
}

// Place puts an artifact into a sandbox: as one file, or unpacked. Files of the same name are replaced, others stay.
// progress, which may be nil, is called with sentences such as "fetching app.tgz: 12 MiB of 30 MiB".
func (c *Cache) Place(ctx context.Context, a model.Artifact, sandbox string, progress func(string)) error {
	u, err := url.Parse(a.URI)
	if err != nil {
		return fmt.Errorf("artifact %s: %w", a.URI, err)
	}
	f, err := c.open(ctx, u, a, progress)
	if err != nil {
		return fmt.Errorf("artifact %s: %w", u.Redacted(), err)
	}
	defer f.Close()
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer c.exit()
	if err := c.place(ctx, f, u, a, sandbox); err != nil {
		return fmt.Errorf("artifact %s: %w", u.Redacted(), err)
	}
	return nil
}

func (c *Cache) enter(ctx context.Context) error {
	select {
	case c.work <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *Cache) exit() { <-c.work }

// open returns the artifact's content, checked.
func (c *Cache) open(ctx context.Context, u *url.URL, a model.Artifact, progress func(string)) (*os.File, error) {
	if u.Scheme == "file" {
		return c.openFile(ctx, u.Path, a.Checksum)
	}
	if a.NoCache {
		return c.openOnce(ctx, u, a, progress)
	}
	key := cacheKey(a)
	for range 3 { // what was just fetched may be evicted before it is opened
		name, err := c.fetches.Do(ctx, key, progress, func(ctx context.Context, say func(string)) (string, error) {
			if err := c.enter(ctx); err != nil {
				return "", err
			}
			defer c.exit()
			return c.fetch(ctx, key, u, a.Checksum, say)
		})
		if err != nil {
			return nil, err
		}
		f, err := os.Open(name)
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return nil, errors.New("the artifact cache is too small for what is used at once")
}

func (c *Cache) openOnce(ctx context.Context, u *url.URL, a model.Artifact, progress func(string)) (*os.File, error) {
	if err := c.enter(ctx); err != nil {
		return nil, err
	}
	defer c.exit()
	if progress == nil {
		progress = func(string) {}
	}
	d, err := c.download(ctx, u, a.Checksum, nil, progress)
	if err != nil {
		return nil, err
	}
	defer os.Remove(d.name)
	return os.Open(d.name)
}

// openFile opens a file of the node. It is not copied into the cache; only its sum is remembered.
func (c *Cache) openFile(ctx context.Context, name, checksum string) (*os.File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err == nil {
		err = c.checkFile(ctx, f, info, checksum)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (c *Cache) checkFile(ctx context.Context, f *os.File, info fs.FileInfo, checksum string) error {
	if checksum == "" {
		return nil
	}
	if c.sums.known(f.Name(), info, checksum) {
		return nil
	}
	h, err := newHash(checksum)
	if err != nil {
		return err
	}
	if _, err := io.Copy(h, ctxReader{ctx, f}); err != nil {
		return err
	}
	if err := checkSum(h, checksum); err != nil {
		return err
	}
	c.sums.add(f.Name(), info, checksum)
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// place copies or unpacks into a directory beside the target and moves the result in place.
func (c *Cache) place(ctx context.Context, f *os.File, u *url.URL, a model.Artifact, sandbox string) error {
	root, err := os.OpenRoot(sandbox)
	if err != nil {
		return err
	}
	defer root.Close()
	tmp := ".gantry-" + randomName()
	if err := root.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	defer root.RemoveAll(tmp)
	inner, err := root.OpenRoot(tmp)
	if err != nil {
		return err
	}
	defer inner.Close()
	base := path.Base(path.Clean("/" + u.Path))
	extract := isArchive(base)
	if a.Extract != nil {
		extract = *a.Extract
	}
	if extract {
		if err := unpack(ctx, f, inner, c.cfg.Unpacked); err != nil {
			return err
		}
		return merge(root, inner, tmp, cleanTarget(a.Path, "."))
	}
	if base == "/" {
		base = "artifact"
	}
	if err := copyFile(ctx, f, inner, a.Executable); err != nil {
		return err
	}
	return move(root, tmp+"/file", cleanTarget(a.Path, base))
}

// cleanTarget returns a path below the sandbox, whatever p says.
func cleanTarget(p, def string) string {
	if p == "" {
		return def
	}
	if clean := strings.TrimPrefix(path.Clean("/"+p), "/"); clean != "" {
		return clean
	}
	return def
}

func copyFile(ctx context.Context, f *os.File, dir *os.Root, executable bool) error {
	out, err := dir.OpenFile("file", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, ctxReader{ctx, f}); err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if executable {
		mode = 0o755
	}
	if err := out.Chmod(mode); err != nil {
		return err
	}
	return out.Close()
}

// merge moves all that lies in inner, which is root's tmp, below target. Directories that exist are kept and merged.
func merge(root, inner *os.Root, tmp, target string) error {
	return fs.WalkDir(inner.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := path.Join(target, name)
		if d.IsDir() {
			return root.MkdirAll(to, 0o755)
		}
		return move(root, tmp+"/"+name, to)
	})
}

// move renames within root, in place of a file, link or directory of the new name.
func move(root *os.Root, from, to string) error {
	if dir := path.Dir(to); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if info, err := root.Lstat(to); err == nil && info.IsDir() {
		if err := root.RemoveAll(to); err != nil {
			return err
		}
	}
	return root.Rename(from, to)
}

func cacheKey(a model.Artifact) string {
	sum := sha256.Sum256([]byte(a.URI + "\x00" + a.Checksum))
	return hex.EncodeToString(sum[:16])
}

func randomName() string { return strings.ToLower(rand.Text()[:12]) }

// newHash returns the hash of a checksum written as "algorithm:hex".
func newHash(checksum string) (hash.Hash, error) {
	switch algo, _, _ := strings.Cut(checksum, ":"); algo {
	case "sha256":
		return sha256.New(), nil
	case "sha512":
		return sha512.New(), nil
	}
	return nil, fmt.Errorf("%w: %q begins with neither sha256: nor sha512: as it should", ErrChecksum, checksum)
}

func checkSum(h hash.Hash, checksum string) error {
	_, want, _ := strings.Cut(checksum, ":")
	if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, want) {
		return fmt.Errorf("%w: it has %s, and %s is asked for", ErrChecksum, got, strings.ToLower(want))
	}
	return nil
}
