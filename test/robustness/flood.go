package main

import (
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

const floodConns = 400 // to each port of a server

// flood opens many connections to all ports of a server, on which nothing, half of something, or noise is said.
func flood(ctx context.Context, r *run, rnd *rand.Rand) (string, func() error, error) {
	m := pick(rnd, r.servers)
	ctx, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	var errs []error
	var mu sync.Mutex
	for n := range floodConns * 4 {
		addr := fmt.Sprintf("%s:%d", m.Addr, apiPort+n%4)
		all.Go(func() {
			if err := pester(ctx, addr, n/4%4); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	return m.Name, func() error {
		stop()
		all.Wait()
		return errors.Join(errs...)
	}, nil
}

// pester keeps a connection busy in one of four ways until ctx ends. What the server does about it is the server's right.
func pester(ctx context.Context, addr string, how int) error {
	d := net.Dialer{Timeout: 2 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil // it may be down, for another fault
	}
	defer conn.Close()
	end := context.AfterFunc(ctx, func() { conn.Close() })
	defer end()
	noise := make([]byte, 16<<10)
	if _, err := crand.Read(noise); err != nil {
		return err
	}
	switch how {
	case 0: // says nothing
	case 1: // says what is no protocol
		_, err = conn.Write(noise)
	case 2: // says half of a greeting
		_, err = conn.Write([]byte{22, 3, 1, 2, 0, 1})
	case 3: // says who it is, and then a request without end
		secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}) // whoever it is
		if err = secure.HandshakeContext(ctx); err == nil {
			_, err = secure.Write([]byte("GET /v1/apps HTTP/1.1\r\nHost: x\r\n"))
			for err == nil {
				if !pause(ctx, 200*time.Millisecond) {
					return nil
				}
				_, err = secure.Write([]byte("X-More: more\r\n"))
			}
		}
	}
	if err != nil {
		return nil // it was shown the door
	}
	<-ctx.Done()
	return nil
}
