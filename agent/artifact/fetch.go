package artifact

import (
	"cmp"
	"context"
	"encoding/json"
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
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gantry-os/gantry/model"
)

const (
	tries      = 4                      // requests for one artifact before giving up
	retryAfter = 500 * time.Millisecond // grows with each try
	stall      = time.Minute            // without a byte, after which a transfer counts as broken
)

// note is what is known of an entry of the cache.
type note struct {
	URI      string `json:"uri"`
	ETag     string `json:"etag,omitempty"`
	Modified string `json:"modified,omitempty"` // as the server wrote it
	Checked  string `json:"checked,omitempty"`  // checksum that the content has
}

func newClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = stall
	t.DisableCompression = true // what a server sends is what the checksum is of
	t.IdleConnTimeout = 10 * time.Second
	return &http.Client{Transport: t}
}

// fetch makes the entry of key present and current, and returns its file.
func (c *Cache) fetch(ctx context.Context, key string, u *url.URL, checksum string, say func(string)) (string, error) {
	name := filepath.Join(c.cfg.Dir, key)
	old := readNote(name)
	if old != nil && checksum != "" && old.Checked == checksum {
		c.touch(name)
		return name, nil
	}
	d, err := c.download(ctx, u, checksum, old, say)
	if err != nil {
		return "", err
	}
	if d.unchanged {
		c.touch(name)
		return name, nil
	}
	if err := c.keep(d, name); err != nil {
		os.Remove(d.name)
		return "", fmt.Errorf("keep in cache: %w", err)
	}
	return name, c.evict(name)
}

// readNote returns the note of an entry, or nil when the entry is not whole.
func readNote(name string) *note {
	b, err := os.ReadFile(name + ".json")
	if err != nil {
		return nil
	}
	var n note
	if _, err := os.Stat(name); err != nil || json.Unmarshal(b, &n) != nil {
		return nil
	}
	return &n
}

func (c *Cache) touch(name string) {
	now := c.cfg.Now()
	os.Chtimes(name+".json", now, now) // only the order of eviction depends on it
}

// keep moves a download into the cache. The old note goes first, so that no note ever stands beside other content.
func (c *Cache) keep(d *download, name string) error {
	b, err := json.Marshal(d.note)
	if err != nil {
		return err
	}
	if err := os.Remove(name + ".json"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(d.name, name); err != nil {
		return err
	}
	tmp := d.name + ".json"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, name+".json"); err != nil {
		return err
	}
	c.touch(name)
	return nil
}

// evict removes the entries used longest ago until the cache has its size. The entry keep stays.
func (c *Cache) evict(keep string) error {
	entries, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return fmt.Errorf("read artifact cache: %w", err)
	}
	type entry struct {
		name string
		size int64
		used time.Time
	}
	var all []entry
	var total int64
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || e.IsDir() || strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		name := filepath.Join(c.cfg.Dir, e.Name())
		one := entry{name: name, size: info.Size()}
		if n, err := os.Stat(name + ".json"); err == nil {
			one.used = n.ModTime()
		}
		all = append(all, one)
		total += one.size
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.name, b.name)) })
	for _, e := range all {
		if total <= int64(c.cfg.Size) {
			break
		}
		if e.name == keep {
			continue
		}
		if err := errors.Join(removeFile(e.name+".json"), removeFile(e.name)); err != nil {
			return fmt.Errorf("shrink artifact cache: %w", err)
		}
		total -= e.size
	}
	return nil
}

func removeFile(name string) error {
	if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// download is a transfer, over as many requests as it takes.
type download struct {
	uri       *url.URL
	client    *http.Client
	checksum  string
	note      note
	name      string // of the file it is written to
	file      *os.File
	hash      hash.Hash // nil without a checksum
	size      int64     // written so far
	unchanged bool      // the server says that what old describes is current
	say       func(string)
}

// permanent is an error that another try does not help.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// download fetches u into a temporary file, unless the server says that old is current.
func (c *Cache) download(ctx context.Context, u *url.URL, checksum string, old *note, say func(string)) (*download, error) {
	d := &download{uri: u, client: c.cfg.Client, checksum: checksum, say: say}
	f, err := os.CreateTemp(filepath.Join(c.cfg.Dir, "tmp"), "*")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d.file, d.name = f, f.Name()
	if err := d.run(ctx, old); err != nil || d.unchanged {
		os.Remove(d.name)
		return d, err
	}
	return d, nil
}

func (d *download) run(ctx context.Context, old *note) error {
	if err := d.restart(); err != nil {
		return err
	}
	for try := 1; ; try++ {
		if cmp.Or(d.note.ETag, d.note.Modified) == "" { // what was received cannot be told from another version
			if err := d.restart(); err != nil {
				return err
			}
		}
		err := d.request(ctx, old)
		if err == nil {
			break
		}
		var p permanent
		if try == tries || ctx.Err() != nil || errors.As(err, &p) {
			return err
		}
		d.say(fmt.Sprintf("fetching %s: %v; trying again", d.label(), err))
		select {
		case <-time.After(time.Duration(try) * retryAfter):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if d.unchanged || d.hash == nil {
		return nil
	}
	d.note.Checked = d.checksum
	return checkSum(d.hash, d.checksum)
}

// restart forgets what was received.
func (d *download) restart() error {
	d.size, d.note, d.hash = 0, note{URI: d.uri.Redacted()}, nil
	if d.checksum != "" {
		h, err := newHash(d.checksum)
		if err != nil {
			return permanent{err}
		}
		d.hash = h
	}
	if err := d.file.Truncate(0); err != nil {
		return permanent{err}
	}
	_, err := d.file.Seek(0, io.SeekStart)
	return err
}

// request asks once for what is missing and takes in what comes.
func (d *download) request(ctx context.Context, old *note) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(2*stall, func() { cancel(fmt.Errorf("nothing came for %v", stall)) })
	defer watchdog.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.uri.String(), nil)
	if err != nil {
		return permanent{err}
	}
	d.condition(req, old)
	resp, err := d.client.Do(req)
	if err != nil {
		return errors.Join(plain(err), context.Cause(ctx))
	}
	defer resp.Body.Close()
	if err := d.judge(resp, old); err != nil || d.unchanged {
		return err
	}
	body := &meter{r: resp.Body, d: d, beat: func() { watchdog.Reset(stall) }, now: time.Now()}
	if resp.ContentLength >= 0 {
		body.total = d.size + resp.ContentLength
	}
	_, err = io.Copy(diskWriter{d.file}, body)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// diskWriter marks errors of the disk as such that another request does not help.
type diskWriter struct{ f *os.File }

func (w diskWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if err != nil {
		err = permanent{err}
	}
	return n, err
}

// plain takes the method and address off an error of the client; the caller names the address.
func plain(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// condition asks for the rest of what was begun, or for anything newer than old.
func (d *download) condition(req *http.Request, old *note) {
	switch {
	case d.size > 0:
		req.Header.Set("Range", "bytes="+strconv.FormatInt(d.size, 10)+"-")
		req.Header.Set("If-Range", cmp.Or(d.note.ETag, d.note.Modified))
	case old != nil:
		if old.ETag != "" {
			req.Header.Set("If-None-Match", old.ETag)
		} else if old.Modified != "" {
			req.Header.Set("If-Modified-Since", old.Modified)
		}
	}
}

// judge decides by the status what the body is.
func (d *download) judge(resp *http.Response, old *note) error {
	switch s := resp.StatusCode; {
	case s == http.StatusNotModified && old != nil:
		d.unchanged = true
		return nil
	case s == http.StatusPartialContent && d.size > 0 && startsAt(resp, d.size):
		return nil
	case s == http.StatusOK:
		if err := d.restart(); err != nil {
			return err
		}
		if tag := resp.Header.Get("ETag"); !strings.HasPrefix(tag, "W/") {
			d.note.ETag = tag
		}
		d.note.Modified = resp.Header.Get("Last-Modified")
		return nil
	case s >= 500 || s == http.StatusTooManyRequests || s == http.StatusRequestTimeout:
		return fmt.Errorf("the server answered %s", resp.Status)
	default:
		return permanent{fmt.Errorf("the server answered %s", resp.Status)}
	}
}

func startsAt(resp *http.Response, at int64) bool {
	return strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", at))
}

func (d *download) label() string {
	if base := path.Base(d.uri.Path); base != "." && base != "/" {
		return base
	}
	return d.uri.Host
}

// meter passes a body on, counts and sums it, and tells of progress about twice a second.
type meter struct {
	r     io.Reader
	d     *download
	beat  func()
	total int64 // 0 when not known
	now   time.Time
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if n > 0 {
		m.beat()
		m.d.size += int64(n)
		if m.d.hash != nil {
			m.d.hash.Write(p[:n])
		}
	}
	if now := time.Now(); now.Sub(m.now) > 500*time.Millisecond {
		m.now = now
		s := fmt.Sprintf("fetching %s: %s", m.d.label(), model.Bytes(m.d.size).Human())
		if m.total > 0 {
			s += " of " + model.Bytes(m.total).Human()
		}
		m.d.say(s)
	}
	return n, err
}

// sums remembers files of the node whose checksum was right, by what changes when a file is written.
type sums struct {
	mu   sync.Mutex
	seen map[string]struct{}
}

func sumKey(name string, info fs.FileInfo, checksum string) string {
	return fmt.Sprintf("%s\x00%d\x00%d\x00%s", name, info.Size(), info.ModTime().UnixNano(), checksum)
}

func (s *sums) known(name string, info fs.FileInfo, checksum string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.seen[sumKey(name, info, checksum)]
	return ok
}

func (s *sums) add(name string, info fs.FileInfo, checksum string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil || len(s.seen) > 1000 {
		s.seen = map[string]struct{}{}
	}
	s.seen[sumKey(name, info, checksum)] = struct{}{}
}
