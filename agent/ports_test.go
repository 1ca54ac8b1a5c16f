package agent

import (
	"net"
	"strings"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// anyPort keeps tests apart from what listens on this machine.
func anyPort(uint16) bool { return true }

// A port is free unless somebody listens on it, on whichever address.
func TestPortFree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	if portFree(port) {
		t.Errorf("port %d counts as free while somebody listens on it", port)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if !portFree(port) {
		t.Errorf("port %d counts as taken after its listener ended", port)
	}
}

// A taken port is named with its endpoint; UDP ports cannot be tried so and count as free.
func TestPortsTaken(t *testing.T) {
	p := &pump{a: &Agent{cfg: Config{PortFree: func(port uint16) bool { return port != 7 }}}}
	p.rec.Assignment.Spec = &model.Spec{Endpoints: []model.Endpoint{{Name: "dns", Protocol: "udp", Port: 7}, {Name: "web"}}}
	p.rec.Assignment.Ports = []uint16{7, 8}
	if got := p.portsTaken(); got.why != "" {
		t.Errorf("taken: %q, want nothing", got.why)
	}
	p.rec.Assignment.Ports = []uint16{8, 7}
	if got := p.portsTaken(); !got.assigned || !strings.Contains(got.why, "port 7/tcp (endpoint web)") {
		t.Errorf("taken: %+v, want the assigned port 7 of web", got)
	}
}
