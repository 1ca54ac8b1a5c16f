package identity

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
)

// Access is how much a route asks for and a principal is granted. Each level holds all below it.
type Access int

// Levels of access.
const (
	Public Access = iota // anyone, without authentication
	Read                 // look at everything but secrets
	Write                // change apps and deployments, and run programs in their instances
	Admin                // run the cluster itself
)

var accessNames = [...]string{"public", "read", "write", "admin"}

func (a Access) String() string { return accessNames[a] }

// Principal is someone who was recognised.
type Principal struct {
	Name    string // for logs and events
	Granted Access
}

// May reports whether p may use what asks for a.
func (p Principal) May(a Access) bool { return a <= p.Granted }

// Errors of Authenticate.
var (
	ErrNoToken    = errors.New("this needs a token: send Authorization: Bearer TOKEN")
	ErrBadToken   = errors.New("the token is not valid here")
	ErrNotLocal   = errors.New("without authentication only local names are answered: use localhost or a loopback address")
	errWrongForm  = errors.New("the Authorization header has another form than Bearer TOKEN")
	administrator = Principal{Name: "admin", Granted: Admin}
)

// Mode is how a server recognises its callers.
type Mode string

// Modes.
const (
	ModeToken Mode = "token" // the administrator's token
	ModeNone  Mode = "none"  // everyone who reaches the server is the administrator
)

// ParseMode reads a Mode.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case ModeToken, ModeNone:
		return m, nil
	}
	return "", fmt.Errorf("authentication mode %q is not known: write token or none", s)
}

// Authenticator recognises who sends a request.
type Authenticator struct {
	mode Mode
	cur  atomic.Pointer[wanted] // with ModeToken
}

// wanted is the token that an Authenticator wants for a while.
type wanted struct {
	hash Hash
	over chan struct{} // closed when it is another
}

// WithToken returns an Authenticator that wants token t.
func WithToken(t Token) *Authenticator {
	a := &Authenticator{mode: ModeToken}
	a.Replace(t)
	return a
}

// Replace has a, which wants a token, want t from now on, and no other. One goroutine at a time may call it.
func (a *Authenticator) Replace(t Token) {
	old := a.cur.Load()
	if old != nil && old.hash == t.Hash() {
		return
	}
	a.cur.Store(&wanted{t.Hash(), make(chan struct{})})
	if old != nil {
		close(old.over)
	}
}

// Replaced returns what is closed once the token that a wants now is replaced; nil, which never is, when it wants none.
func (a *Authenticator) Replaced() <-chan struct{} {
	if a.mode != ModeToken {
		return nil
	}
	return a.cur.Load().over
}

// WithoutToken returns an Authenticator that lets everyone in. CheckListen keeps it to loopback.
func WithoutToken() *Authenticator { return &Authenticator{mode: ModeNone} }

// Mode returns how a recognises callers.
func (a *Authenticator) Mode() Mode { return a.mode }

// Authenticate returns who sends r, or an error that says what is missing.
func (a *Authenticator) Authenticate(r *http.Request) (Principal, error) {
	if a.mode == ModeNone {
		// A web page can make the browser of a local user ask a name of the page's own that resolves to loopback.
		if !localHost(r.Host) {
			return Principal{}, ErrNotLocal
		}
		return administrator, nil
	}
	header := r.Header.Get("Authorization")
	if header == "" {
		return Principal{}, ErrNoToken
	}
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return Principal{}, errWrongForm
	}
	if !a.cur.Load().hash.Verify(strings.TrimSpace(token)) {
		return Principal{}, ErrBadToken
	}
	return administrator, nil
}

func localHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || loopback(host)
}
