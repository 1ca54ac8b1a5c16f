package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writer writes and rotates as a driver does.
type writer struct {
	t    *testing.T
	path string
	keep int
	f    *os.File
}

func newWriter(t *testing.T, keep int) *writer {
	w := &writer{t: t, path: filepath.Join(t.TempDir(), "stdout"), keep: keep}
	w.open()
	t.Cleanup(func() { w.f.Close() })
	return w
}

func (w *writer) open() {
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	w.f = f
}

func (w *writer) write(s string) {
	if _, err := w.f.WriteString(s); err != nil {
		w.t.Error(err)
	}
}

func (w *writer) rotate() {
	for n := w.keep - 1; n >= 1; n-- {
		os.Rename(fmt.Sprintf("%s.%d", w.path, n), fmt.Sprintf("%s.%d", w.path, n+1))
	}
	if err := os.Rename(w.path, w.path+".1"); err != nil {
		w.t.Error(err)
	}
	w.f.Close()
	w.open()
}

func TestTail(t *testing.T) {
	for _, tt := range []struct {
		parts []string // one file each, the oldest first
		tail  int
		want  string
	}{
		{[]string{"a\nb\nc\n"}, -1, "a\nb\nc\n"},
		{[]string{"a\nb\nc\n"}, 0, ""},
		{[]string{"a\nb\nc\n"}, 1, "c\n"},
		{[]string{"a\nb\nc"}, 1, "c"},
		{[]string{"a\nb\nc\n"}, 3, "a\nb\nc\n"},
		{[]string{"a\nb\nc\n"}, 9, "a\nb\nc\n"},
		{[]string{"a\nb\n", "c\nd\n"}, 2, "c\nd\n"},
		{[]string{"a\nb\n", "c\nd\n"}, 3, "b\nc\nd\n"},
		{[]string{"a\nb\n", "c\nd\n"}, -1, "a\nb\nc\nd\n"},
		{[]string{"a\nb\n", ""}, 1, "b\n"},
		{[]string{"a\nb\n", "", ""}, 2, "a\nb\n"},
		{[]string{"a\nbe", "gin\nc\n"}, 2, "begin\nc\n"},
		{[]string{"a\n", "b\n", "c\n", "d\n"}, 3, "b\nc\nd\n"},
		{[]string{"\n\n\n"}, 2, "\n\n"},
		{[]string{strings.Repeat("x", 200_000) + "\ny\n"}, 2, strings.Repeat("x", 200_000) + "\ny\n"},
		{[]string{""}, 5, ""},
	} {
		w := newWriter(t, 9)
		for i, p := range tt.parts {
			if i > 0 {
				w.rotate()
			}
			w.write(p)
		}
		r, err := Open(t.Context(), Options{Path: w.path, Tail: tt.tail})
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || string(got) != tt.want {
			t.Errorf("tail %d of %.40q is %.40q, %v, want %.40q", tt.tail, tt.parts, got, err, tt.want)
		}
	}
}

func TestNothingWritten(t *testing.T) {
	r, err := Open(t.Context(), Options{Path: filepath.Join(t.TempDir(), "gone", "stdout"), Tail: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); len(got) != 0 || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// TestFollowAcrossRotations has a writer rotate after every few lines while a reader follows: every line comes once, in
// order, until the log is over.
func TestFollowAcrossRotations(t *testing.T) {
	for _, lines := range []int{1, 3, 100} {
		total := 50 * lines
		t.Run(fmt.Sprint(lines), func(t *testing.T) {
			w := newWriter(t, 60)
			over := make(chan struct{})
			r, err := Open(t.Context(), Options{Path: w.path, Tail: -1, Follow: true, Over: over})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var want strings.Builder
			go func() {
				defer close(over)
				for i := range total {
					w.write(fmt.Sprintf("line %d\n", i))
					if i%lines == lines-1 {
						w.rotate()
					}
				}
			}()
			for i := range total {
				fmt.Fprintf(&want, "line %d\n", i)
			}
			got, err := io.ReadAll(r)
			if err != nil || string(got) != want.String() {
				t.Errorf("read %d bytes, %v, want %d", len(got), err, want.Len())
			}
		})
	}
}

func TestFollowStartsBeforeTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stdout")
	over := make(chan struct{})
	r, err := Open(t.Context(), Options{Path: path, Tail: 10, Follow: true, Over: over})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go os.WriteFile(path, []byte("hello\n"), 0o600)
	buf := make([]byte, 100)
	n, err := io.ReadAtLeast(r, buf, 6)
	if err != nil || string(buf[:n]) != "hello\n" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	close(over)
	if n, err := r.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d, %v", n, err)
	}
}

// TestSlowReaderSkipsWhatIsNoLongerKept must not stall when its file is gone and its successor too.
func TestSlowReaderSkipsWhatIsNoLongerKept(t *testing.T) {
	w := newWriter(t, 2)
	w.write("0\n")
	over := make(chan struct{})
	r, err := Open(t.Context(), Options{Path: w.path, Tail: -1, Follow: true, Over: over})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i := 1; i < 6; i++ {
		w.rotate()
		w.write(fmt.Sprintf("%d\n", i))
	}
	close(over)
	got, err := io.ReadAll(r)
	if err != nil || string(got) != "0\n3\n4\n5\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCloseAndContextEndAWaitingRead(t *testing.T) {
	w := newWriter(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	r1, err := Open(ctx, Options{Path: w.path, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r1.Close()
	r2, err := Open(t.Context(), Options{Path: w.path, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 2)
	for _, r := range []*Reader{r1, r2} {
		go func() {
			_, err := io.ReadAll(r)
			errs <- err
		}()
	}
	cancel()
	r2.Close()
	for range 2 {
		select {
		case err := <-errs:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a read goes on")
		}
	}
}

// Without Follow a reader ends where the log ended when it was opened, whatever is written meanwhile.
func TestReadingEndsThoughTheLogGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stdout")
	if err := os.WriteFile(path, []byte("one\ntwo\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), Options{Path: path, Tail: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("three\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "two\n" {
		t.Errorf("read %q, %v; want what was there at first", b, err)
	}
}
