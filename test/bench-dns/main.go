// Command bench-dns measures how many questions Gantry's DNS server answers with one core, beside CoreDNS (its file plugin and
// nothing else) with the same records. Each server is a process with GOMAXPROCS=1, driven from the other cores; they take turns, and the
// median of their rounds counts. It prints a line each: name, value, unit, goal.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coredns/caddy"
	_ "github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/file"
	"github.com/miekg/dns"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/route"
	gantrydns "github.com/gantry-os/gantry/route/dns"
)

// What is served: as many apps, with as many instances each.
const (
	apps      = 1000
	instances = 10
)

const roleEnv = "BENCH_DNS_ROLE" // what a child serves

var kinds = []string{"A", "SRV", "NXDOMAIN"}

func main() {
	rounds := flag.Int("rounds", 5, "how often each is measured")
	length := flag.Duration("length", 2*time.Second, "of one measurement")
	flag.Parse()
	var err error
	if role := os.Getenv(roleEnv); role != "" {
		err = serve(role, flag.Arg(0))
	} else {
		err = run(*rounds, *length)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-dns:", err)
		os.Exit(1)
	}
}

func run(rounds int, length time.Duration) error {
	dir, err := os.MkdirTemp("", "bench-dns-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	zone := filepath.Join(dir, "gantry.zone")
	if err := os.WriteFile(zone, zoneFile(), 0o644); err != nil {
		return err
	}
	got := map[string][]float64{}
	for range rounds {
		for _, role := range []string{"gantry", "coredns"} {
			for _, kind := range kinds {
				n, err := measure(role, kind, zone, length)
				if err != nil {
					return fmt.Errorf("%s: %w", role, err)
				}
				got[role+kind] = append(got[role+kind], n)
			}
		}
	}
	for _, kind := range kinds {
		own, other := median(got["gantry"+kind]), median(got["coredns"+kind])
		fmt.Printf("dns-%s-gantry %.0f answers/core-second -\n", strings.ToLower(kind), own)
		fmt.Printf("dns-%s-coredns %.0f answers/core-second -\n", strings.ToLower(kind), other)
		fmt.Printf("dns-%s-ratio %.2f ratio >=1\n", strings.ToLower(kind), own/other)
	}
	return nil
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// measure returns how many questions a server answers in each second of processor time that it takes for them.
func measure(role, kind, zone string, length time.Duration) (float64, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	at, err := freeAddr()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, at)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, "GOMAXPROCS=1", "BENCH_DNS_ZONE="+zone)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if err := ready(at); err != nil {
		return 0, err
	}
	if _, err := load(at, kind, length/4); err != nil { // warm
		return 0, err
	}
	before, err := cpu(cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	n, err := load(at, kind, length)
	if err != nil {
		return 0, err
	}
	after, err := cpu(cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	return float64(n) / (after - before).Seconds(), nil
}

// cpu returns the processor time that a process has taken.
func cpu(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	var user, system int64
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		return 0, err
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}

// freeAddr returns an address with a port that is free for TCP and UDP.
func freeAddr() (string, error) {
	for range 20 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		at := pc.LocalAddr().String()
		l, err := net.Listen("tcp", at)
		pc.Close()
		if err == nil {
			return at, l.Close()
		}
	}
	return "", errors.New("no port is free for both UDP and TCP")
}

// ready waits until the server at an address answers rightly.
func ready(at string) error {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		m, err := dns.Exchange(query("A", 0), at)
		if err == nil && len(m.Answer) == instances {
			return nil
		}
	}
	return errors.New("it does not answer")
}

// query returns a question about an app.
func query(kind string, app int) *dns.Msg {
	m := new(dns.Msg)
	switch kind {
	case "A":
		m.SetQuestion(fmt.Sprintf("web%d.shop%d.gantry.", app, app%50), dns.TypeA)
	case "SRV":
		m.SetQuestion(fmt.Sprintf("_http._tcp.web%d.shop%d.gantry.", app, app%50), dns.TypeSRV)
	default:
		m.SetQuestion(fmt.Sprintf("no%d.shop%d.gantry.", app, app%50), dns.TypeA)
	}
	m.SetEdns0(1232, false)
	return m
}

// load asks for a while, with some questions under way at any time, and returns how many were answered.
func load(at, kind string, length time.Duration) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	var questions [][]byte
	for app := range apps {
		b, err := query(kind, app).Pack()
		if err != nil {
			return 0, err
		}
		questions = append(questions, b)
	}
	var n atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for c := range 8 {
		wg.Go(func() {
			if err := client(ctx, at, kind, questions, c*131, &n); err != nil {
				failed.Store(&err)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return n.Load(), nil
}

// client has four questions under way at any time, and looks at what comes back.
func client(ctx context.Context, at, kind string, questions [][]byte, next int, n *atomic.Int64) error {
	conn, err := net.Dial("udp", at)
	if err != nil {
		return err
	}
	defer conn.Close()
	send := func() error {
		_, err := conn.Write(questions[next%len(questions)])
		next++
		return err
	}
	for range 4 {
		if err := send(); err != nil {
			return err
		}
	}
	code := byte(dns.RcodeSuccess)
	want := byte(instances)
	if kind == "NXDOMAIN" {
		code, want = dns.RcodeNameError, 0
	}
	buf := make([]byte, 4096)
	for ctx.Err() == nil {
		if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		size, err := conn.Read(buf)
		if err != nil {
			return err
		}
		if size < 12 || buf[3]&0xF != code || buf[7] != want {
			return fmt.Errorf("an answer of %d bytes has code %d and %d records, want code %d and %d", size, buf[3]&0xF, buf[7], code, want)
		}
		n.Add(1)
		if err := send(); err != nil {
			return err
		}
	}
	return nil
}

// serve answers questions at an address until it is killed.
func serve(role, at string) error {
	if role == "coredns" {
		corefile := fmt.Sprintf("gantry:%s {\n bind 127.0.0.1\n file %s\n}\n", at[strings.LastIndexByte(at, ':')+1:], os.Getenv("BENCH_DNS_ZONE"))
		instance, err := caddy.Start(caddy.CaddyfileInput{Contents: []byte(corefile), ServerTypeName: "dns"})
		if err != nil {
			return err
		}
		instance.Wait()
		return nil
	}
	t := table()
	s, err := gantrydns.New(netip.MustParseAddrPort(at), gantrydns.Config{Table: func() *route.Table { return t }})
	if err != nil {
		return err
	}
	return s.Run(context.Background())
}

func table() *route.Table {
	var c route.Change
	for e := range entries {
		c.Put = append(c.Put, e)
	}
	return (&route.Table{}).With(c)
}

func entries(yield func(*route.Entry) bool) {
	for a := range apps {
		for i := range instances {
			e := &route.Entry{
				ID:   model.InstanceID(fmt.Sprintf("web%d-k3v9q2%02d", a, i)),
				App:  model.AppID(fmt.Sprintf("/shop%d/web%d", a%50, a)),
				Node: "n", Serving: true,
				Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i), byte(a >> 8), byte(a)})},
				Ports: []route.Port{{Name: "http", Port: uint16(31000 + i), Proto: "tcp"}},
			}
			if !yield(e) {
				return
			}
		}
	}
}

// zoneFile is the same table for CoreDNS.
func zoneFile() []byte {
	var out strings.Builder
	out.WriteString("$ORIGIN gantry.\n@ 1 IN SOA gantry. hostmaster.gantry. 1 3600 600 86400 1\n@ 1 IN NS ns.gantry.\nns 1 IN A 127.0.0.1\n")
	for e := range entries {
		name := route.Name(e.App)
		fmt.Fprintf(&out, "%s 1 IN A %v\n%s 1 IN A %v\n", name, e.Addrs[0], e.Host(), e.Addrs[0])
		fmt.Fprintf(&out, "_http._tcp.%s 1 IN SRV 0 1 %d %s\n", name, e.Ports[0].Port, e.Host())
	}
	return []byte(out.String())
}
