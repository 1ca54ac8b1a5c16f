package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"github.com/gantry-os/gantry/model"
)

// taken is a port of an instance that something else on the node listens on.
type taken struct {
	why      string // empty for none
	assigned bool   // the scheduler chose the port: another instance would get another one
}

// portsTaken looks whether programs outside Gantry listen on the instance's ports. The scheduler knows only of its own.
func (p *pump) portsTaken() taken {
	spec := p.spec()
	p.mu.Lock()
	ports := p.rec.Assignment.Ports
	p.mu.Unlock()
	for i, e := range spec.Endpoints {
		if i >= len(ports) || e.Protocol == "udp" || p.a.cfg.PortFree(ports[i]) {
			continue
		}
		return taken{
			why:      fmt.Sprintf("port %d/tcp (endpoint %s) is taken on this node by a program that Gantry does not run", ports[i], e.Name),
			assigned: e.Port == 0,
		}
	}
	return taken{}
}

// portFree reports whether a program could listen on a TCP port of every address.
func portFree(port uint16) bool {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(int(port)))
	if err != nil {
		return !errors.Is(err, syscall.EADDRINUSE)
	}
	return l.Close() == nil
}

// yield gives up an attempt whose port is taken. With a port that the spec fixes it waits and tries again. With one that
// was assigned the instance ends, and the orchestrator makes another, which gets another port.
func (p *pump) yield(ctx context.Context, t taken) {
	if !t.assigned {
		p.end(ctx, t.why)
		return
	}
	if p.removeAll(ctx) {
		_ = p.letVolumesGo() // run tries again
		p.update(func(r *record) {
			r.Status.Phase, r.Status.Ready, r.Status.Message = model.PhaseStopped, false, t.why
		})
	}
}
