// Package policy says which of the nodes that fit is the best for one more instance. It is arithmetic on one node at a
// time: who fits at all, and which nodes are asked about, is decided elsewhere.
package policy

// Amounts are what is free on, or asked of, a node.
type Amounts struct {
	CPU    int64 // thousandths of a core
	Memory int64 // bytes
	Disk   int64 // bytes
}

// Node is one node as it is before an instance is placed. Policies must not keep or change it.
type Node struct {
	Free, Total Amounts
	GPUs        []int32 // what is free of each device, in thousandths
	Models      []uint8 // model of each device, as a number below 64
}

// Ask is what one instance needs.
type Ask struct {
	Amounts
	GPU    int32  // thousandths: below 1000 a share of one device, else whole devices
	Models uint64 // bit set of the models that will do, 0 for any
}

// Accepts reports whether a device of model m will do.
func (a *Ask) Accepts(m uint8) bool { return a.Models == 0 || a.Models&(1<<m) != 0 }

// Policy chooses among nodes.
type Policy interface {
	// Name is the policy's name in commands and figures.
	Name() string
	// Cost returns how bad it is to place a on n, which fits; the node with the least cost is taken, and of equal ones the
	// first. For a share of a device it also returns which device, as an index into n.GPUs; -1 leaves the choice to the
	// caller. It is called for very many nodes and allocates nothing.
	Cost(n *Node, a *Ask) (cost float64, device int)
}

// Learner is a policy that depends on what is asked for.
type Learner interface {
	// Learn takes note that count instances of a were asked for.
	Learn(a *Ask, count int)
	// Epoch changes when costs from before do not compare with costs from now on.
	Epoch() uint64
}
