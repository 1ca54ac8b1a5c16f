package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestTokenFileIsPrivateAndStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	first, err := LoadOrCreateToken(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, want 0600", info.Mode())
	}
	again, err := LoadOrCreateToken(path)
	if err != nil || again != first {
		t.Errorf("second load gave another token or %v", err)
	}
	if _, err := ParseToken(string(first)); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("directory holds %v, want only the token", left)
	}
}

// Two servers that start on one directory must agree.
func TestTokenFileRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	got := make([]Token, 16)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = LoadOrCreateToken(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, g := range got {
		if g != got[0] {
			t.Fatal("two tokens were returned")
		}
	}
}

func TestTokenFileRefused(t *testing.T) {
	dir := t.TempDir()
	good, err := NewToken(bytes.NewReader(make([]byte, tokenBytes)))
	if err != nil {
		t.Fatal(err)
	}
	file := func(name, content string, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{file("group", string(good), 0o640), "chmod 600"},
		{file("world", string(good), 0o604), "chmod 600"},
		{file("empty", "", 0o600), "not a token"},
		{file("short", TokenPrefix+"abc", 0o600), "not a token"},
		{file("bare", strings.TrimPrefix(string(good), TokenPrefix), 0o600), "not a token"},
		{dir, "is not a file"},
		{pipe, "is not a file"},
		{filepath.Join(dir, "no", "such", "dir"), "create token file"},
	} {
		if _, err := LoadOrCreateToken(c.path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", filepath.Base(c.path), err, c.want)
		}
	}
	if _, err := LoadToken(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestTokenIsNotLogged(t *testing.T) {
	var out bytes.Buffer
	tok := Token(TokenPrefix + "secret")
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "token", tok)
	if strings.Contains(out.String(), "secret") {
		t.Errorf("log shows the token: %s", out.String())
	}
}

func TestAuthenticateToken(t *testing.T) {
	tok, err := NewToken(bytes.NewReader(bytes.Repeat([]byte{7}, tokenBytes)))
	if err != nil {
		t.Fatal(err)
	}
	a := WithToken(tok)
	for _, c := range []struct {
		header string
		want   error
	}{
		{"Bearer " + string(tok), nil},
		{"bearer  " + string(tok), nil},
		{"", ErrNoToken},
		{"Bearer", ErrBadToken},
		{"Bearer " + string(tok[:len(tok)-1]), ErrBadToken},
		{"Bearer " + string(tok) + "a", ErrBadToken},
		{"Basic " + string(tok), errWrongForm},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", c.header)
		p, err := a.Authenticate(r)
		if !errors.Is(err, c.want) || err == nil && !p.May(Admin) {
			t.Errorf("%q: %+v, %v; want %v", c.header, p, err, c.want)
		}
	}
	if (Principal{}).May(Read) {
		t.Error("nobody may read")
	}
}

// Without a token, names of strangers must not be answered: a web page could point its own name at loopback.
func TestAuthenticateNoneWantsLocalHost(t *testing.T) {
	for host, ok := range map[string]bool{
		"localhost:7070": true, "LOCALHOST": true, "a.localhost:1": true, "127.0.0.1:7070": true, "127.9.9.9": true,
		"[::1]:7070": true, "[::ffff:127.0.0.1]:7070": true, "localhost.:7070": true,
		"evil.example:7070": false, "10.0.0.1:7070": false, "": false, "localhost.evil.example": false, "0.0.0.0:7070": false,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = host
		if _, err := WithoutToken().Authenticate(r); (err == nil) != ok {
			t.Errorf("%q: %v, want ok %v", host, err, ok)
		}
	}
}

func TestCheckListen(t *testing.T) {
	names := map[string][]string{
		"localhost": {"127.0.0.1", "::1"}, "mixed": {"127.0.0.1", "10.1.2.3"}, "outside": {"10.1.2.3"}, "empty": {},
		"mapped": {"::ffff:127.0.0.1"},
	}
	lookup := func(_ context.Context, name string) ([]string, error) {
		if a, ok := names[name]; ok {
			return a, nil
		}
		return nil, fmt.Errorf("no such host")
	}
	for addr, ok := range map[string]bool{
		"127.0.0.1:7070": true, "127.8.8.8:0": true, "[::1]:7070": true, "[::ffff:127.0.0.1]:7070": true,
		"localhost:7070": true, "mapped:1": true,
		":7070": false, "0.0.0.0:7070": false, "[::]:7070": false, "[::ffff:0.0.0.0]:1": false, "10.0.0.1:7070": false,
		"[fe80::1%eth0]:1": false, "[::ffff:10.0.0.1]:1": false, "mixed:7070": false, "outside:1": false, "empty:1": false,
		"unknown:1": false, "127.0.0.1": false, "127.0.0.1:http": false, "127.0.0.1:70000": false, "": false, "127.1:80": false,
	} {
		if err := checkListen(t.Context(), addr, ModeNone, lookup); (err == nil) != ok {
			t.Errorf("%q: %v, want ok %v", addr, err, ok)
		}
	}
	for addr, ok := range map[string]bool{"0.0.0.0:7070": true, ":7070": true, "unknown:1": true, "nonsense": false} {
		if err := CheckListen(addr, ModeToken); (err == nil) != ok {
			t.Errorf("with a token, %q: %v, want ok %v", addr, err, ok)
		}
	}
	if err := CheckListen("127.0.0.1:0", ModeNone); err != nil {
		t.Error(err)
	}
}

func TestParseMode(t *testing.T) {
	for s, ok := range map[string]bool{"token": true, "none": true, "": false, "None": false} {
		if _, err := ParseMode(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// A token that was replaced is refused from then on, in a process and in the file.
func TestReplaceToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	old, err := LoadOrCreateToken(path)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := LoadOrCreateToken(filepath.Join(t.TempDir(), "token"))
	if err != nil {
		t.Fatal(err)
	}
	a := WithToken(old)
	ask := func(tok Token) error {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", "Bearer "+string(tok))
		_, err := a.Authenticate(r)
		return err
	}
	over := a.Replaced()
	a.Replace(old)
	select {
	case <-over:
		t.Error("the same token counts as another")
	default:
	}
	a.Replace(fresh)
	<-over
	if ask(fresh) != nil || !errors.Is(ask(old), ErrBadToken) {
		t.Errorf("the new token: %v, the old one: %v", ask(fresh), ask(old))
	}
	if err := os.WriteFile(path+".new", []byte("left by one that died"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := ReplaceToken(path, fresh); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := LoadToken(path); err != nil || got != fresh {
		t.Errorf("the file holds another token (%v)", err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("directory holds %v, want only the token", left)
	}
	if err := ReplaceToken(filepath.Join(t.TempDir(), "none"), fresh); err != nil {
		t.Errorf("where there was none: %v", err)
	}
}
