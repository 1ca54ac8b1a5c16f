// Package logs reads the output of tasks as drivers write it: a file that grows, and older ones beside it named
// NAME.1, NAME.2 and so on, the newest first. A Reader begins anywhere in them, goes on across rotations without a gap
// or a repetition, and follows what is being written.
package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Options say what to read.
type Options struct {
	Path   string          // of the newest file; with Follow its directory exists
	Tail   int             // begin this many lines before the end; negative for the beginning of what is kept
	Follow bool            // go on at the end until Over
	Over   <-chan struct{} // closed when nothing more will be written
}

// poll is how often a follower looks although it was told of nothing: the kernel limits how many can be told, and drops
// notices when there are too many.
const poll = time.Second

// Reader is a stream of a log. Read and Close may be called at the same time; Close ends a waiting Read.
type Reader struct {
	opt   Options
	ctx   context.Context
	stop  context.CancelFunc
	watch *fsnotify.Watcher // nil when the kernel has none left

	left int64 // bytes to the end as it was when the log was opened; only without Follow, for Read alone

	mu    sync.Mutex // guards files against Close
	files []*os.File // to read, oldest first; the last is the newest known
}

// Open returns a reader that fails once ctx ends.
func Open(ctx context.Context, opt Options) (*Reader, error) {
	r := &Reader{opt: opt}
	r.ctx, r.stop = context.WithCancel(ctx)
	if opt.Follow {
		r.startWatch()
	}
	files, err := openAll(opt.Path)
	if err == nil && opt.Tail >= 0 {
		files, err = seekTail(files, opt.Tail)
	}
	r.files = files
	if err == nil && !opt.Follow {
		r.left, err = remaining(files)
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("open log: %w", err)
	}
	return r, nil
}

// remaining returns how many bytes there are from where files stand.
func remaining(files []*os.File) (int64, error) {
	var sum int64
	for _, f := range files {
		info, err := f.Stat()
		if err != nil {
			return 0, err
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return 0, err
		}
		sum += max(0, info.Size()-at)
	}
	return sum, nil
}

func (r *Reader) startWatch() {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return // polling alone does, only slower
	}
	if w.Add(filepath.Dir(r.opt.Path)) != nil {
		w.Close()
		return
	}
	r.watch = w
}

// Close ends the stream.
func (r *Reader) Close() error {
	r.stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.files {
		f.Close()
	}
	r.files = nil
	if r.watch != nil {
		return r.watch.Close()
	}
	return nil
}

// Read implements io.Reader. Without Follow it ends where the log ended when it was opened, or a program that writes faster
// than the reader reads would keep it for ever.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if !r.opt.Follow {
		return r.readOnce(p)
	}
	for {
		over := isClosed(r.opt.Over) // before reading: what is written until then is read
		n, err := r.readSome(p)
		if n > 0 || err != nil {
			return n, err
		}
		if over {
			return 0, io.EOF
		}
		if err := r.wait(); err != nil {
			return 0, err
		}
	}
}

// readOnce reads up to what is left.
func (r *Reader) readOnce(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.readSome(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if n == 0 && err == nil {
		err = io.EOF // the oldest file was removed before it was read
	}
	return n, err
}

// readSome reads what is there, across files. It returns 0 and no error at the end of the newest file.
func (r *Reader) readSome(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if err := context.Cause(r.ctx); err != nil {
			return 0, err
		}
		if len(r.files) > 0 {
			n, err := r.files[0].Read(p)
			if n > 0 || err != nil && err != io.EOF {
				return n, err
			}
		}
		moved, err := r.advance()
		if err != nil || !moved {
			return 0, err
		}
	}
}

// advance moves on to the next file, if there is one. A file that has a successor is written to no more, but its last
// bytes may have come after it was read to its end, so it is read once more before it is left.
func (r *Reader) advance() (bool, error) {
	if len(r.files) > 1 {
		r.files[0].Close()
		r.files = r.files[1:]
		return true, nil
	}
	var cur *os.File
	if len(r.files) == 1 {
		cur = r.files[0]
	}
	next, err := successor(r.opt.Path, cur)
	if err != nil || next == nil {
		return false, err
	}
	r.files = append(r.files, next)
	return true, nil
}

// wait returns when the log may have grown.
func (r *Reader) wait() error {
	var events chan fsnotify.Event
	var lost chan error
	if r.watch != nil {
		events, lost = r.watch.Events, r.watch.Errors
	}
	timer := time.NewTimer(poll)
	defer timer.Stop()
	select {
	case <-events:
	case <-lost: // too many notices: look
	case <-timer.C:
	case <-r.opt.Over:
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
	return nil
}

// successor opens the file that follows cur, or the oldest one when cur is nil or no longer kept. It returns nil when cur
// is the newest. Rotation may go on meanwhile, so the answer counts only if it still holds after opening.
func successor(path string, cur *os.File) (*os.File, error) {
	for {
		name, err := successorName(path, cur)
		if err != nil || name == "" {
			return nil, err
		}
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		again, err := successorName(path, cur)
		if err == nil && again == name && sameFile(f, name) {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

func successorName(path string, cur *os.File) (string, error) {
	names, err := list(path)
	if err != nil {
		return "", err
	}
	for i, name := range names { // newest first
		if cur != nil && sameFile(cur, name) {
			if i == 0 {
				return "", nil
			}
			return names[i-1], nil
		}
	}
	if len(names) == 0 {
		return "", nil
	}
	return names[len(names)-1], nil
}

// list returns the names of the files that exist, newest first. There may be gaps while files are renamed.
func list(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	base := filepath.Base(path)
	numbers := map[int]bool{}
	top := -1
	for _, e := range entries {
		n := 0
		if rest, ok := strings.CutPrefix(e.Name(), base+"."); ok {
			if n, err = strconv.Atoi(rest); err != nil || n < 1 {
				continue
			}
		} else if e.Name() != base {
			continue
		}
		numbers[n] = true
		top = max(top, n)
	}
	var names []string
	for n := 0; n <= top && len(names) < len(numbers); n++ {
		switch {
		case !numbers[n]:
		case n == 0:
			names = append(names, path)
		default:
			names = append(names, path+"."+strconv.Itoa(n))
		}
	}
	return names, nil
}

// openAll opens all files, oldest first. It goes from the newest to the oldest, the way that files are renamed, so a
// rotation meanwhile can show a file twice but hide none.
func openAll(path string) ([]*os.File, error) {
	names, err := list(path)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for n := 0; n <= len(names)+1; n++ {
		name := path
		if n > 0 {
			name += "." + strconv.Itoa(n)
		}
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return files, err
		}
		if len(files) > 0 && same(files[0], f) {
			f.Close()
			continue
		}
		files = append([]*os.File{f}, files...)
	}
	return files, nil
}

// seekTail closes the files before the last n lines and places the first that remains at their beginning.
func seekTail(files []*os.File, n int) ([]*os.File, error) {
	newest := true
	for i := len(files) - 1; i >= 0; i-- {
		at, found, err := tailOffset(files[i], n, newest)
		if err != nil {
			return files, err
		}
		if at >= 0 {
			if _, err := files[i].Seek(at, io.SeekStart); err != nil {
				return files, err
			}
			for _, f := range files[:i] {
				f.Close()
			}
			return files[i:], nil
		}
		n -= found
		if info, err := files[i].Stat(); err != nil || info.Size() > 0 {
			newest = false
		}
	}
	return files, nil
}

// tailOffset returns where the last n lines of f begin, or -1 and the number of line ends that count when f has too few.
// At the end of the whole log a line end belongs to the last line and begins no other.
func tailOffset(f *os.File, n int, newest bool) (at int64, found int, err error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if err == nil && at < 0 {
			_, err = f.Seek(0, io.SeekStart)
		}
	}()
	if newest && n == 0 {
		return size, 0, nil
	}
	buf := make([]byte, 64<<10)
	for end := size; end > 0; {
		begin := max(0, end-int64(len(buf)))
		chunk := buf[:end-begin]
		if _, err := f.ReadAt(chunk, begin); err != nil && err != io.EOF {
			return 0, 0, err
		}
		for i := len(chunk) - 1; i >= 0; i-- {
			pos := begin + int64(i)
			if chunk[i] != '\n' || newest && pos == size-1 {
				continue
			}
			if found++; found == n {
				return pos + 1, found, nil
			}
		}
		end = begin
	}
	return -1, found, nil
}

func sameFile(f *os.File, name string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(name)
	return err == nil && os.SameFile(a, b)
}

func same(f, g *os.File) bool {
	a, err := f.Stat()
	b, err2 := g.Stat()
	return err == nil && err2 == nil && os.SameFile(a, b)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
