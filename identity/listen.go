package identity

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// CheckListen refuses to listen on addr, a host:port, without authentication unless every address that it stands for is
// a loopback one. It also refuses what is no address.
func CheckListen(addr string, mode Mode) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return checkListen(ctx, addr, mode, net.DefaultResolver.LookupHost)
}

func checkListen(ctx context.Context, addr string, mode Mode, lookup func(context.Context, string) ([]string, error)) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("address %q: write host:port, such as 127.0.0.1:7070", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("address %q: the port is not a number from 0 to 65535", addr)
	}
	if mode != ModeNone {
		return nil
	}
	if host == "" {
		return notLoopback(addr, "means every address of this machine")
	}
	addrs := []string{host}
	if _, err := netip.ParseAddr(host); err != nil {
		if addrs, err = lookup(ctx, host); err != nil {
			return fmt.Errorf("address %q: look up name: %w", addr, err)
		}
	}
	for _, a := range addrs {
		if !loopback(a) {
			return notLoopback(addr, "stands for "+a)
		}
	}
	if len(addrs) == 0 {
		return notLoopback(addr, "stands for no address")
	}
	return nil
}

func notLoopback(addr, why string) error {
	return fmt.Errorf("address %q %s: without authentication only loopback addresses are allowed; use 127.0.0.1, or turn authentication on", addr, why)
}

// loopback reports whether s is a loopback address; ::ffff:127.0.0.1 is one, 0.0.0.0 is not.
func loopback(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Unmap().IsLoopback()
}
