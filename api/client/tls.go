package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
)

// ErrOtherCluster says that a server's certificate was not signed by the roots that the client trusts.
var ErrOtherCluster = errors.New("the server is not of the cluster whose roots are trusted here")

// WithCAFile makes calls to https: addresses trust the roots in a PEM file, and no others. The file is read now.
func WithCAFile(file string) (Option, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the cluster's roots: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the cluster's roots: %s has no certificate in PEM", file)
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	return WithHTTPClient(&http.Client{Transport: t}), nil
}

// tlsError says in plain words why a server's certificate is not accepted, nil when that is not what err is about.
func tlsError(base string, err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("%w: at %s: %w", ErrOtherCluster, base, err)
	case errors.As(err, &name):
		return fmt.Errorf("the server at %s does not go by that name: its certificate is for %v", base, names(name.Certificate))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the certificate of the server at %s has expired, or the clocks differ: %w", base, err)
	}
	return nil
}

func names(c *x509.Certificate) []string {
	out := append([]string{}, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		out = append(out, ip.String())
	}
	return out
}
