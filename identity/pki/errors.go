package pki

import (
	"errors"
	"net/http"
)

// Errors of joining and checking in. They come wrapped in sentences that say what to do, and cross HTTP.
var (
	ErrBadRequest   = errors.New("the request cannot be read")
	ErrToken        = errors.New("the join token is not known here")
	ErrTokenExpired = errors.New("the join token has expired")
	ErrTokenSpent   = errors.New("the join token is used up")
	ErrTokenRole    = errors.New("the join token is for another role")
	ErrTaken        = errors.New("the name is taken")
	ErrBusy         = errors.New("that cannot be done now")
	ErrRevoked      = errors.New("the machine was removed from the cluster")
	ErrUnknown      = errors.New("the machine is not known here")
	ErrUntrusted    = errors.New("the certificate is not accepted")
	ErrUnavailable  = errors.New("the server cannot say now")
	ErrFingerprint  = errors.New("the server is not of the cluster that the join token is for")
	ErrClock        = errors.New("the clocks differ")
)

// wire is how errors look in HTTP.
var wire = []struct {
	err    error
	code   string
	status int
}{
	{ErrBadRequest, "bad-request", http.StatusBadRequest},
	{ErrToken, "token-unknown", http.StatusUnauthorized},
	{ErrTokenExpired, "token-expired", http.StatusUnauthorized},
	{ErrTokenSpent, "token-spent", http.StatusUnauthorized},
	{ErrTokenRole, "token-role", http.StatusForbidden},
	{ErrTaken, "name-taken", http.StatusConflict},
	{ErrBusy, "busy", http.StatusConflict},
	{ErrRevoked, "revoked", http.StatusForbidden},
	{ErrUnknown, "machine-unknown", http.StatusForbidden},
	{ErrClock, "clock", http.StatusForbidden},
	{ErrUntrusted, "untrusted", http.StatusForbidden},
	{ErrUnavailable, "unavailable", http.StatusServiceUnavailable},
}
