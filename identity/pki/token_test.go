package pki

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func someToken(t testing.TB, roots int) Token {
	t.Helper()
	list := make([]string, roots)
	for i := range list {
		b := make([]byte, 32)
		rand.Read(b)
		list[i] = text.EncodeToString(b)
	}
	tok, err := NewToken(rand.Reader, list)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestTokenText(t *testing.T) {
	tok := someToken(t, 2)
	got, err := ParseToken("  " + tok.Text() + "\n")
	if err != nil || got.Text() != tok.Text() {
		t.Fatalf("%v became %v, %v", tok.Text(), got.Text(), err)
	}
	whole := someToken(t, 1).Text()
	for _, bad := range []string{
		"", "gtk1", "gtk1.", "gantry_abc", strings.ToUpper(whole), whole + ".", whole + "a", whole[:len(whole)-1], whole[1:],
		strings.Replace(whole, ".", "..", 1), strings.Replace(whole, "gtk1", "gtk2", 1), whole + strings.Repeat(whole[len(whole)-53:], 4),
		whole[:len(whole)-1] + "7", // bits past the end
		whole[:20] + "\x00" + whole[21:], whole[:20] + "\n" + whole[21:],
	} {
		if _, err := ParseToken(bad); err == nil {
			t.Errorf("%q was taken", bad)
		} else if len(bad) > 60 && strings.Contains(err.Error(), bad[20:40]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func TestTokenIsNotLogged(t *testing.T) {
	tok := someToken(t, 1)
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "token", tok)
	for _, out := range []string{b.String(), fmt.Sprint(tok), fmt.Sprintf("%v %s", &tok, tok)} {
		if strings.Contains(out, tok.Secret) || !strings.Contains(out, tok.ID) {
			t.Errorf("shown as %s", out)
		}
	}
}

// FuzzParseToken protects that there is one text for one token, and that no text makes it panic.
func FuzzParseToken(f *testing.F) {
	f.Add(someToken(f, 1).Text())
	f.Add(someToken(f, 4).Text())
	f.Add("gtk1.a.b.c")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err == nil && tok.Text() != strings.TrimSpace(s) {
			t.Errorf("%q is also %q", s, tok.Text())
		}
	})
}
