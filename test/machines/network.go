package machines

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Cut makes what one machine sends not arrive at another, or arrive again. Nobody is told: packets vanish.
func (l *Lab) Cut(from, to *Machine, cut bool) error {
	l.mu.Lock()
	if cut {
		l.cuts[[2]*Machine{from, to}] = true
	} else {
		delete(l.cuts, [2]*Machine{from, to})
	}
	l.mu.Unlock()
	to.mu.Lock()
	defer to.mu.Unlock()
	return to.fence()
}

// Split cuts every machine of one group off from every one of another, both ways, or joins them again.
func (l *Lab) Split(a, b []*Machine, cut bool) error {
	var errs []error
	for _, x := range a {
		for _, y := range b {
			errs = append(errs, l.Cut(x, y, cut), l.Cut(y, x, cut))
		}
	}
	return errors.Join(errs...)
}

// fence makes the machine deaf to those that it is cut off from.
func (m *Machine) fence() error {
	if m.init == nil {
		return nil // when it boots
	}
	m.lab.mu.Lock()
	var deaf []*Machine
	for c := range m.lab.cuts {
		if c[1] == m {
			deaf = append(deaf, c[0])
		}
	}
	m.lab.mu.Unlock()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", m.init.Process.Pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "cut"})
	conn.FlushTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Table: table, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	for _, from := range deaf {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}, // source address
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from.Addr},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	if err := conn.Flush(); err != nil { // as one: there is no moment without the old or the new rules
		return fmt.Errorf("cut %s off: %w", m.Name, err)
	}
	return nil
}
