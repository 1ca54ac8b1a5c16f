package pki

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/gantry-os/gantry/model"
)

// TokenPrefix begins every join token, so that people and scanners recognise one.
const TokenPrefix = "gtk1."

const (
	tokenIDBytes     = 5
	tokenSecretBytes = 20
	tokenSaltBytes   = 16
	tokenMostRoots   = 4 // of which two are there at a time
)

var text = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Token lets a machine join a cluster. Its text is gtk1.ID.SECRET.ROOT, with one more ROOT for each root that the cluster
// trusts. Who joins sends nothing to a server whose certificate does not come from one of them.
type Token struct {
	ID     string
	Secret string
	Roots  []string // fingerprints
}

// NewToken draws a token from random.
func NewToken(random io.Reader, roots []string) (Token, error) {
	b := make([]byte, tokenIDBytes+tokenSecretBytes)
	if _, err := io.ReadFull(random, b); err != nil {
		return Token{}, fmt.Errorf("draw token: %w", err)
	}
	return Token{text.EncodeToString(b[:tokenIDBytes]), text.EncodeToString(b[tokenIDBytes:]), roots}, nil
}

// Text returns the token as ParseToken reads it. It is a secret.
func (t Token) Text() string {
	return TokenPrefix + strings.Join(append([]string{t.ID, t.Secret}, t.Roots...), ".")
}

// String and LogValue keep the secret out of logs.
func (t Token) String() string { return TokenPrefix + t.ID + "..." }

// LogValue is what logs show.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// ParseToken reads a token; white space around it is dropped.
func ParseToken(s string) (Token, error) {
	body, ok := strings.CutPrefix(strings.TrimSpace(s), TokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("this is not a join token: one begins with %s; make one with gantry token create", TokenPrefix)
	}
	parts := strings.Split(body, ".")
	if len(parts) < 3 || len(parts) > 2+tokenMostRoots {
		return Token{}, errors.New("the join token is not whole: it has an id, a secret and the fingerprint of the cluster's authority, with points between them")
	}
	t := Token{parts[0], parts[1], parts[2:]}
	if err := canonical(t.ID, tokenIDBytes); err != nil {
		return Token{}, fmt.Errorf("the id in the join token %w", err)
	}
	if err := canonical(t.Secret, tokenSecretBytes); err != nil {
		return Token{}, fmt.Errorf("the secret in the join token %w", err)
	}
	for _, r := range t.Roots {
		if err := canonical(r, sha256.Size); err != nil {
			return Token{}, fmt.Errorf("the fingerprint in the join token %w", err)
		}
	}
	return t, nil
}

// canonical refuses what is not the one way to write n bytes.
func canonical(s string, n int) error {
	if len(s) != text.EncodedLen(n) {
		return fmt.Errorf("has %d letters and digits, not %d", len(s), text.EncodedLen(n))
	}
	if b, err := text.DecodeString(s); err != nil || text.EncodeToString(b) != s {
		return errors.New("has a letter that does not belong there: copy the token again")
	}
	return nil
}

// Fingerprint returns the name of a root: the hash of its public key, which stays the same when it is signed anew.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return text.EncodeToString(sum[:])
}

// hashSecret returns what a server keeps of a secret. A token's secret is as random as a key, so one round is enough.
func hashSecret(salt []byte, secret string) []byte {
	sum := sha256.Sum256(slices.Concat(salt, []byte(secret)))
	return sum[:]
}

// opens reports whether t is the token that k was made of. It takes the same time wherever they differ.
func (t Token) opens(k *model.JoinToken) bool {
	return subtle.ConstantTimeCompare(k.Hash, hashSecret(k.Salt, t.Secret)) == 1
}
