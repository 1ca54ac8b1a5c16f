// Package identity says who may do what. Today a cluster has one principal, the administrator, who shows a token; or
// none is asked for, which works on loopback only. Authenticator turns a request into a Principal, and a Principal
// carries the Access it was granted, which a door compares with what each of its routes asks for. Machines recognise
// each other by certificates: see identity/pki.
package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// TokenPrefix begins every token, so that people and scanners recognise one.
const TokenPrefix = "gantry_"

const tokenBytes = 32

var tokenText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Token is a secret that opens the API: TokenPrefix and 32 random bytes in lower-case base32.
type Token string

// Hash is what a server keeps of a token to recognise it.
type Hash [sha256.Size]byte

// NewToken draws a token from random, which is crypto/rand.Reader outside of tests.
func NewToken(random io.Reader) (Token, error) {
	b := make([]byte, tokenBytes)
	if _, err := io.ReadFull(random, b); err != nil {
		return "", fmt.Errorf("draw token: %w", err)
	}
	return Token(TokenPrefix + tokenText.EncodeToString(b)), nil
}

// ParseToken checks the form of a token; white space around it is dropped.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	body, ok := strings.CutPrefix(s, TokenPrefix)
	b, err := tokenText.DecodeString(body)
	if !ok || err != nil || len(b) != tokenBytes {
		return "", fmt.Errorf("this is not a token: one is %s followed by %d letters and digits", TokenPrefix, tokenText.EncodedLen(tokenBytes))
	}
	return Token(s), nil
}

// Hash returns the token's hash.
func (t Token) Hash() Hash { return sha256.Sum256([]byte(t)) }

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(TokenPrefix + "...") }

// Verify reports whether text is the token that h was made of. It takes the same time wherever they differ.
func (h Hash) Verify(text string) bool {
	sum := sha256.Sum256([]byte(text))
	return subtle.ConstantTimeCompare(h[:], sum[:]) == 1
}

// LoadOrCreateToken returns the token in the file at path. When there is no file it makes one, with mode 0600 and
// complete from the first moment it can be seen; of several processes that try, all return the same token. A file that
// other users can read is refused.
func LoadOrCreateToken(path string) (Token, error) {
	t, err := LoadToken(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return t, err
	}
	t, err = NewToken(rand.Reader)
	if err != nil {
		return "", err
	}
	err = createFile(path, []byte(t+"\n"))
	if errors.Is(err, fs.ErrExist) {
		return LoadToken(path)
	}
	if err != nil {
		return "", fmt.Errorf("create token file: %w", err)
	}
	return t, nil
}

// ReplaceToken makes the file at path hold t, whatever token it held. Who reads it sees the old one or the new.
func ReplaceToken(path string, t Token) (err error) {
	if have, err := LoadToken(path); err == nil && have == t {
		return nil
	}
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := createFile(tmp, []byte(t+"\n")); err != nil {
		return fmt.Errorf("replace token file: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("replace token file: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// KeepToken makes the file at path hold t, as LoadOrCreateToken does. It fails when it holds another.
func KeepToken(path string, t Token) error {
	err := createFile(path, []byte(t+"\n"))
	if errors.Is(err, fs.ErrExist) {
		have, err := LoadToken(path)
		if err == nil && have != t {
			err = fmt.Errorf("token file %s holds another cluster's token: move it away", path)
		}
		return err
	}
	return err
}

// LoadToken returns the token in the file at path; errors.Is(err, fs.ErrNotExist) holds when there is none.
func LoadToken(path string) (Token, error) {
	// Without O_NONBLOCK, opening a named pipe would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", fmt.Errorf("open token file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("inspect token file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a file", path)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return "", fmt.Errorf("token file %s is open to other users (mode %04o): run chmod 600 %s", path, perm, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 1024))
	if err != nil {
		return "", fmt.Errorf("read token file: %w", err)
	}
	t, err := ParseToken(string(b))
	if err != nil {
		return "", fmt.Errorf("read token file %s: %w", path, err)
	}
	return t, nil
}

// createFile makes a new file whose content is on disk before its name exists. It fails with fs.ErrExist when path does.
func createFile(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".token-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tmp.Close(), os.Remove(tmp.Name())) }()
	if _, err := tmp.Write(content); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
