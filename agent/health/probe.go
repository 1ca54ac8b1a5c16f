package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"

	"github.com/gantry-os/gantry/model"
)

func (c *Check) kind() string {
	if c.Readiness {
		return "readiness check"
	}
	return "health check"
}

// Name describes the check in a few words, such as "http /healthz".
func (c *Check) Name() string {
	switch {
	case c.HTTP != nil:
		return c.HTTP.Scheme + " " + c.HTTP.Path
	case c.TCP != nil:
		return "tcp " + c.TCP.Endpoint
	case c.Command != nil:
		name := strings.Join(c.Command.Command, " ")
		if len(name) > 60 {
			name = name[:60] + "..."
		}
		return "command " + name
	}
	return "without a probe"
}

// Prober makes probes over the network. One serves a whole node.
type Prober struct {
	client *http.Client
	dialer net.Dialer
}

// NewProber returns a Prober. Connections are not kept, since a check is to see whether new ones are accepted.
func NewProber() *Prober {
	p := &Prober{}
	p.client = &http.Client{
		Transport: &http.Transport{
			DialContext:       p.dialer.DialContext,
			DisableKeepAlives: true,
			// A check asks whether the program answers; who it is was settled by where it connects to.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return p
}

// HTTP returns a probe that asks for a page and passes on a status from 200 to 399.
func (p *Prober) HTTP(scheme, host string, port uint16, path string) Probe {
	url := scheme + "://" + net.JoinHostPort(host, strconv.Itoa(int(port))) + path
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		req.Header.Set("User-Agent", "gantry-health")
		resp, err := p.client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		io.CopyN(io.Discard, resp.Body, 64<<10) // lets a small answer end in peace; the status is known already
		if resp.StatusCode < 200 || resp.StatusCode > 399 {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return nil
	}
}

// TCP returns a probe that passes when a connection opens.
func (p *Prober) TCP(host string, port uint16) Probe {
	addr := net.JoinHostPort(host, strconv.Itoa(int(port)))
	return func(ctx context.Context) error {
		conn, err := p.dialer.DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// reason puts an error of a probe into a few words.
func reason(err error, c *model.Check) string {
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case err == nil:
		return "unknown"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("no answer within %v", c.Timeout)
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed without an answer"
	}
	return err.Error()
}
