package engine

import (
	"cmp"
	"maps"
	"reflect"
	"slices"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/policy"
)

// Node is what placing has to know of a node.
type Node struct {
	ID         model.NodeID
	Name       string
	Pool       string
	Shut       string // why it takes no new work, such as "unreachable" or "cordoned: new disks"; empty when it does
	Attributes map[string]string
	Region     string
	Zone       string
	Capacity   model.Resources
	GPUs       []model.GPUDevice
	Custom     map[string]model.Custom
	Ports      model.PortRange
	OCI, VM    model.Ability
}

// Placement is where one instance goes.
type Placement struct {
	ID    model.InstanceID
	Node  model.NodeID
	Ports []uint16            // one for each endpoint
	GPUs  []model.GPUShare    // nil for none
	Items map[string][]string // nil for none
}

// Config is what an Engine is made with. Zero fields take their defaults.
type Config struct {
	// Policy returns the policy of a name. Default: policy.Of.
	Policy func(model.Policy) policy.Policy
}

// Engine is the picture of a cluster. It belongs to one goroutine.
type Engine struct {
	cfg      Config
	policies map[poolPolicy]policy.Policy
	pools    map[string]model.Policy // those that differ from pack

	// Nodes, in columns. Rows stay; a node that is gone leaves its row marked so.
	rows   map[model.NodeID]int32
	info   []Node
	known  []bool
	free   []policy.Amounts // less what is reserved and not used yet; negative when a node shrank or waits for victims
	total  []policy.Amounts
	ports  []*nodePorts
	gpu    []devices
	custom []map[string]*stock
	kept   []policy.Amounts // for volumes and loans
	booked []*booking       // reservations; nil for none
	first  []int32          // newest hold, none for none
	sum    vector           // capacity of all known nodes
	sumGen uint64           // counts changes of sum, from 1

	log     []int32 // rows that changed, oldest first
	logBase uint64  // how many were dropped from the log's head

	models   map[string]uint8 // numbers of device models
	attrs    map[string]*attribute
	filters  map[model.Constraint]*filter
	tallies  map[tallyKey]*tally
	antis    []anti
	domains  map[string]map[string]int // nodes by pool and fault domain
	gathers  map[string]bool           // pools whose apps are not spread over fault domains
	ruleGen  uint64                    // counts changes of what rules are made from, beside classes
	tallyGen uint64                    // counts changes of tallies
	counts   uint64                    // counts changes of all tallies
	groups   map[groupKey]*group

	pages   []*[holdPage]hold
	made    int32 // holds, used or not
	spare   int32 // head of the list of unused holds
	index   map[model.InstanceID]int32
	volumes map[model.VolumeID]volume
	loans   map[string]loan
	claims  map[int32]int // by row: holds that wait; absent for none
	hunted  int32         // row where the next search for victims begins
	roles   *roles

	small   int // up to how many nodes every class has a field
	few     int // nodes for each instance, with fewer of which a class has a field
	fields  map[string]*field
	tree    tree
	tick    uint64   // counts uses of fields
	walks   uint64   // counts walks of the tree
	pass    uint64   // counts passes over the log
	passed  []uint64 // by row: the last one that met it
	scratch policy.Node
	key     []byte
	choice  []deviceTake
}

// none is the row, hold or value that there is not.
const none = int32(-1)

// New returns a picture without nodes.
func New(cfg Config) *Engine {
	if cfg.Policy == nil {
		cfg.Policy = policy.Of
	}
	return &Engine{
		cfg: cfg, policies: map[poolPolicy]policy.Policy{}, pools: map[string]model.Policy{},
		rows: map[model.NodeID]int32{}, sumGen: 1, models: map[string]uint8{}, attrs: map[string]*attribute{},
		filters: map[model.Constraint]*filter{}, tallies: map[tallyKey]*tally{}, groups: map[groupKey]*group{},
		spare: none, index: map[model.InstanceID]int32{}, volumes: map[model.VolumeID]volume{}, loans: map[string]loan{}, claims: map[int32]int{},
		domains: map[string]map[string]int{}, gathers: map[string]bool{}, roles: newRoles(), small: smallCluster, few: fewInstances, fields: map[string]*field{},
	}
}

// policyOf returns the policy of a name in a pool. Each pool has its own: what is asked for differs between pools.
func (e *Engine) policyOf(pool string, name model.Policy) policy.Policy {
	key := poolPolicy{pool, name}
	p := e.policies[key]
	if p == nil {
		p = e.cfg.Policy(name)
		e.policies[key] = p
	}
	return p
}

type poolPolicy struct {
	pool string
	name model.Policy
}

// SetPool says how nodes of a pool are chosen for apps that name no policy. Classes keep what held when they were made.
func (e *Engine) SetPool(name string, p model.Policy) {
	if p == "" {
		delete(e.pools, name)
		return
	}
	e.pools[name] = p
}

// row returns a node's row, which it makes when there is none.
func (e *Engine) row(id model.NodeID) int32 {
	if r, ok := e.rows[id]; ok {
		return r
	}
	r := int32(len(e.info))
	e.rows[id] = r
	e.info = append(e.info, Node{ID: id, Name: string(id)})
	e.known = append(e.known, false)
	e.free, e.total = append(e.free, policy.Amounts{}), append(e.total, policy.Amounts{})
	e.kept, e.booked = append(e.kept, policy.Amounts{}), append(e.booked, nil)
	e.ports, e.gpu, e.custom = append(e.ports, &nodePorts{}), append(e.gpu, devices{}), append(e.custom, nil)
	e.first, e.passed = append(e.first, none), append(e.passed, 0)
	for _, a := range e.attrs {
		a.value = append(a.value, none)
	}
	return r
}

// SetNode takes over what a node is, and reports whether anything about placement changed. What it holds stays. Of more
// than policy.MaxDevices graphics processors only the first are used.
func (e *Engine) SetNode(n Node) bool {
	r := e.row(n.ID)
	n.Name = cmp.Or(n.Name, string(n.ID))
	n.Pool = cmp.Or(n.Pool, model.DefaultPool)
	n.GPUs = n.GPUs[:min(len(n.GPUs), policy.MaxDevices)]
	if e.known[r] && sameNode(&e.info[r], &n) {
		return false
	}
	if e.known[r] {
		e.sum = e.sum.sub(e.capacity(r))
		e.countDomain(r, -1)
	}
	e.sumGen++
	e.info[r], e.known[r] = n, true
	e.countDomain(r, 1)
	e.total[r] = amounts(n.Capacity)
	e.ports[r].reach(n.Ports)
	e.describe(r)
	e.equip(r)
	e.refresh(r)
	e.sum = e.sum.add(e.capacity(r))
	return true
}

// RemoveNode forgets a node, but not what it holds. It reports whether there was one.
func (e *Engine) RemoveNode(id model.NodeID) bool {
	r, ok := e.rows[id]
	if !ok || !e.known[r] {
		return false
	}
	e.sum = e.sum.sub(e.capacity(r))
	e.sumGen++
	e.countDomain(r, -1)
	e.known[r] = false
	e.info[r] = Node{ID: id, Name: e.info[r].Name}
	e.total[r] = policy.Amounts{}
	e.ports[r].reach(model.PortRange{})
	e.describe(r)
	e.equip(r)
	e.refresh(r)
	return true
}

func sameNode(a, b *Node) bool {
	return a.Name == b.Name && a.Pool == b.Pool && a.Shut == b.Shut && a.Region == b.Region && a.Zone == b.Zone &&
		a.Capacity == b.Capacity && a.Ports == b.Ports && a.OCI == b.OCI && a.VM == b.VM &&
		maps.Equal(a.Attributes, b.Attributes) && slices.Equal(a.GPUs, b.GPUs) && reflect.DeepEqual(a.Custom, b.Custom)
}

func amounts(r model.Resources) policy.Amounts {
	return policy.Amounts{CPU: int64(r.CPUs), Memory: int64(r.Memory), Disk: int64(r.Disk)}
}

func resources(a policy.Amounts) model.Resources {
	return model.Resources{CPUs: model.CPU(a.CPU), Memory: model.Bytes(a.Memory), Disk: model.Bytes(a.Disk)}
}

func plus(a, b policy.Amounts) policy.Amounts {
	return policy.Amounts{CPU: a.CPU + b.CPU, Memory: a.Memory + b.Memory, Disk: a.Disk + b.Disk}
}

func minus(a, b policy.Amounts) policy.Amounts {
	return policy.Amounts{CPU: a.CPU - b.CPU, Memory: a.Memory - b.Memory, Disk: a.Disk - b.Disk}
}

// within reports whether a is at most b in every kind.
func within(a, b policy.Amounts) bool {
	return a.CPU <= b.CPU && a.Memory <= b.Memory && a.Disk <= b.Disk
}

// capacity returns a row's part of what the cluster has.
func (e *Engine) capacity(r int32) vector {
	n := &e.info[r]
	v := vector{cpus: e.total[r].CPU, memory: e.total[r].Memory, disk: e.total[r].Disk, gpus: 1000 * int64(len(n.GPUs))}
	for name, c := range n.Custom {
		v.addCustom(name, int64(c.Total()))
	}
	return v
}

// refresh makes a row's free amounts what capacity, holds and reservations leave, and notes that it changed.
func (e *Engine) refresh(r int32) {
	e.recompute(r)
	e.touch(r)
}

// recompute is refresh without the note.
func (e *Engine) recompute(r int32) {
	f := minus(e.total[r], e.kept[r])
	for h := e.first[r]; h != none; h = e.at(h).next {
		if x := e.at(h); !x.lifted {
			f = minus(f, x.class.need)
		}
	}
	if b := e.booked[r]; b != nil {
		f = minus(f, e.spoken(r, b))
	}
	e.free[r] = f
}

// touch notes that a row changed.
func (e *Engine) touch(r int32) {
	e.log = append(e.log, r)
	if len(e.log) > 4*len(e.info)+1<<16 { // fields that are further behind are built anew anyway
		half := len(e.log) / 2
		e.logBase += uint64(half)
		e.log = append(e.log[:0], e.log[half:]...)
	}
}

// now returns the position of the log's end.
func (e *Engine) now() uint64 { return e.logBase + uint64(len(e.log)) }

// since returns the rows that changed after a position, some more than once, and whether they are few enough to look at
// one by one.
func (e *Engine) since(at uint64) ([]int32, bool) {
	if at < e.logBase || e.now()-at > uint64(len(e.info)/2+64) {
		return nil, false
	}
	return e.log[at-e.logBase:], true
}

// Nodes returns how many nodes are known.
func (e *Engine) Nodes() int {
	n := 0
	for _, k := range e.known {
		if k {
			n++
		}
	}
	return n
}

// Free returns what a node has free: what is reserved for a role and not used by it is not free.
func (e *Engine) Free(id model.NodeID) model.Resources {
	r, ok := e.rows[id]
	if !ok {
		return model.Resources{}
	}
	out := resources(e.free[r])
	for _, f := range e.gpu[r].free {
		out.GPUs += model.GPU(f)
	}
	return out
}

// FreeLater returns what a node will have free once all that was asked to leave has left.
func (e *Engine) FreeLater(id model.NodeID) model.Resources {
	r, ok := e.rows[id]
	if !ok {
		return model.Resources{}
	}
	out := e.Free(id)
	for _, owed := range e.gpu[r].owed {
		out.GPUs -= model.GPU(owed)
	}
	for h := e.first[r]; h != none; h = e.at(h).next {
		if c := e.at(h).class; e.at(h).leaving {
			out = out.Add(resources(c.need))
			out.GPUs += model.GPU(c.vector.gpus)
		}
	}
	return out
}
