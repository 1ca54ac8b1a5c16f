package pki

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gantry-os/gantry/model"
)

// Paths of the doors.
const (
	JoinPath  = "/v1/join"
	RenewPath = "/v1/renew"
)

const (
	maxBody     = 64 << 10
	callTimeout = 30 * time.Second
	joinTries   = 3
)

// Handler answers POST /v1/join and POST /v1/renew, which authenticate by what they are sent.
func (r *Registrar) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+JoinPath, serve(r.Join))
	mux.HandleFunc("POST "+RenewPath, serve(r.CheckIn))
	return mux
}

func serve[I, O any](fn func(context.Context, I) (*O, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if req.TLS == nil {
			refuse(w, fmt.Errorf("%w: it did not come by TLS", ErrBadRequest))
			return
		}
		if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(callTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			refuse(w, err)
			return
		}
		b, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxBody))
		if err != nil {
			refuse(w, fmt.Errorf("%w: %w", ErrBadRequest, err))
			return
		}
		var in I
		if err := whole(b, &in); err != nil {
			refuse(w, fmt.Errorf("%w: %w", ErrBadRequest, err))
			return
		}
		out, err := fn(req.Context(), in)
		if err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		json.NewEncoder(w).Encode(out)
	}
}

// problem is an error in HTTP.
type problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

func refuse(w http.ResponseWriter, err error) {
	p := problem{Status: http.StatusInternalServerError, Code: "internal", Detail: err.Error()}
	for _, e := range wire {
		if errors.Is(err, e.err) {
			p.Status, p.Code = e.status, e.code
			break
		}
	}
	p.Title = http.StatusText(p.Status)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p)
}

// said is an error that a server sent: its sentence, and its kind.
type said struct {
	detail string
	kind   error
}

func (e said) Error() string { return e.detail }
func (e said) Unwrap() error { return e.kind }

// post sends in as JSON and reads the answer.
func post[O any](ctx context.Context, c *http.Client, to string, in any) (*O, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return nil, plain(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, answerError(resp.StatusCode, b)
	}
	out := new(O)
	if err := json.Unmarshal(b, out); err != nil { // not strictly: a newer server may say more
		return nil, fmt.Errorf("read the server's answer: %w", err)
	}
	return out, nil
}

// plain drops what the HTTP client puts before an error: the caller names the address.
func plain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func answerError(status int, body []byte) error {
	var p problem
	if json.Unmarshal(body, &p) != nil || p.Detail == "" {
		return fmt.Errorf("the server answers %d %s: is it one of Gantry's?", status, http.StatusText(status))
	}
	for _, e := range wire {
		if p.Code == e.code {
			return said{p.Detail, e.err}
		}
	}
	return errors.New(p.Detail)
}

func client(cfg *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: cfg, TLSHandshakeTimeout: 10 * time.Second, DisableKeepAlives: true, ForceAttemptHTTP2: false,
		DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
	}}
}

// Client is the Door by which machines check in over HTTP, with the first server that answers.
type Client struct {
	machine *Machine
	http    *http.Client
	addrs   func() []string
}

// NewClient returns the door of m. addrs says where servers are; nil is for what the cluster last said.
func NewClient(m *Machine, addrs func() []string) *Client {
	if addrs == nil {
		addrs = m.Servers
	}
	return &Client{m, client(m.ClientTLS()), addrs}
}

// CheckIn implements Door.
func (c *Client) CheckIn(ctx context.Context, in CheckIn) (*Standing, error) {
	err := fmt.Errorf("%w: no server is known", ErrUnavailable)
	for _, addr := range c.addrs() {
		var st *Standing
		if st, err = post[Standing](ctx, c.http, "https://"+addr+RenewPath, in); err == nil {
			return st, nil
		}
		var s said
		if errors.As(err, &s) && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrUnknown) {
			return nil, err // another server would say the same
		}
	}
	return nil, fmt.Errorf("check in: %w", err)
}

// JoinOptions say who joins where.
type JoinOptions struct {
	Addr  string // host:port of a server
	Token Token
	Role  model.MachineRole
	Name  string   // of an agent: its node's id
	Hosts []string // of a server: its addresses and host names
	Dir   string   // where the identity is kept; a server's Authority, too
	MachineOptions
}

// Join makes this machine part of a cluster. It sends nothing before the server has shown that it is of the cluster that
// the token is for.
func Join(ctx context.Context, o JoinOptions) (*Machine, error) {
	if err := model.CheckMachineName(o.Name); err != nil {
		return nil, err
	}
	if _, _, err := net.SplitHostPort(o.Addr); err != nil {
		return nil, fmt.Errorf("address %q: write host:port", o.Addr)
	}
	m := newMachine(o.Dir, o.MachineOptions)
	key, csr, err := newCSR(o.Role, o.Hosts)
	if err != nil {
		return nil, err
	}
	in := JoinRequest{Token: o.Token.Text(), Role: o.Role, Name: o.Name, CSR: csr}
	out, err := askToJoin(ctx, o.Addr, client(pinned(o.Token, o.Addr, m.now)), in)
	if err != nil {
		return nil, fmt.Errorf("join %s: %w", o.Addr, err)
	}
	if apart := m.now().Sub(out.Now); apart > skew || apart < -skew {
		m.logger.Warn("this machine's clock is not that of the server: set both", "ahead", apart.Round(time.Second)) // what it has is good nevertheless
	}
	if err := keepAdmission(m, o, out); err != nil {
		return nil, fmt.Errorf("join %s: %w", o.Addr, err)
	}
	if err := m.begin(out.Standing, key, o.Hosts); err != nil {
		return nil, fmt.Errorf("join %s: %w", o.Addr, err)
	}
	return m, nil
}

// askToJoin asks again when no answer came: with the same key, it is the same machine that asks.
func askToJoin(ctx context.Context, addr string, c *http.Client, in JoinRequest) (*Admission, error) {
	for try := 1; ; try++ {
		out, err := post[Admission](ctx, c, "https://"+addr+JoinPath, in)
		var s said
		sure := errors.As(err, &s) && !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrFingerprint) || errors.Is(err, ErrUntrusted) || errors.Is(err, ErrClock)
		if err == nil || sure || try == joinTries {
			return out, err
		}
		select {
		case <-time.After(time.Duration(try) * 500 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// keepAdmission checks what was sent and keeps a server's authority.
func keepAdmission(m *Machine, o JoinOptions, out *Admission) error {
	t, err := newTrust(out.Cluster, out.Trust, out.Roots)
	if err != nil {
		return err
	}
	chain, err := parseChain(out.Chain)
	if err != nil {
		return err
	}
	peer, err := t.verify(chain, m.now(), o.Role)
	if err != nil {
		return err
	}
	if peer.Name != o.Name {
		return fmt.Errorf("%w: the server certified %s", ErrUntrusted, peer)
	}
	if o.Role != model.ServerMachine {
		return nil
	}
	a, err := newAuthority(authorityPath(o.Dir), sealed{out.Record, out.Seal})
	if err != nil {
		return fmt.Errorf("read the authority that the server handed over: %w", err)
	}
	return writePrivate(a.path, sealed{out.Record, out.Seal})
}

// pinned is the configuration of a connection to a server of the cluster that a token is for. Nothing else is known of it yet.
func pinned(token Token, addr string, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verifyPinned(cs.PeerCertificates, token, addr, now())
		},
	}
}

func verifyPinned(chain []*x509.Certificate, token Token, addr string, now time.Time) error {
	t := &trust{pool: x509.NewCertPool()}
	for _, c := range chain[1:] {
		if slices.Contains(token.Roots, Fingerprint(c)) {
			t.pool.AddCert(c)
			t.roots = append(t.roots, c)
		}
	}
	if len(t.roots) == 0 {
		return fmt.Errorf("%w: what answers at %s shows another authority than %s..., which the token names. Check the address; if the cluster's "+
			"authority was rotated since the token was made, make a new one", ErrFingerprint, addr, strings.Join(short(token.Roots), "... or "))
	}
	p, err := peerIn(chain[0])
	if err != nil {
		return err
	}
	t.cluster = p.Cluster // the root is the cluster's
	_, err = t.verify(chain, now, model.ServerMachine)
	return err
}

func short(fingerprints []string) []string {
	out := make([]string, len(fingerprints))
	for i, f := range fingerprints {
		out[i] = f[:8]
	}
	return out
}
