package replay

import (
	"fmt"
	"math/bits"
	"slices"
	"strconv"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/scheduler/engine"
	"github.com/gantry-os/gantry/scheduler/policy"
)

// Engine is the Placer that Gantry runs: every kind of ask is an app, and its pods are instances.
type Engine struct {
	engine  *engine.Engine
	nodes   []policy.Node // as the engine has them, for Node
	rows    map[model.NodeID]int
	classes map[policy.Ask]*engine.Class
	placed  map[int]placed
	one     [1]model.InstanceID
	out     []engine.Placement
}

// NewEngine returns a placer onto nodes, which it copies.
func NewEngine(nodes []policy.Node, p policy.Policy) *Engine {
	e := &Engine{
		engine: engine.New(engine.Config{Policy: func(model.Policy) policy.Policy { return p }}),
		nodes:  slices.Clone(nodes), rows: map[model.NodeID]int{}, classes: map[policy.Ask]*engine.Class{}, placed: map[int]placed{},
	}
	var all engine.GPUWant // so that the engine numbers models as the caller does
	for m := range 63 {
		all.Models = append(all.Models, modelName(m))
	}
	e.engine.Drop(e.engine.Class(engine.Ask{GPUs: []engine.GPUWant{all}}))
	for i := range e.nodes {
		n := &e.nodes[i]
		n.GPUs = slices.Clone(n.GPUs)
		id := model.NodeID(fmt.Sprintf("n%06d", i))
		e.rows[id] = i
		set := engine.Node{ID: id, Name: string(id), Capacity: model.Resources{
			CPUs: model.CPU(n.Total.CPU), Memory: model.Bytes(n.Total.Memory), Disk: model.Bytes(n.Total.Disk), GPUs: model.GPU(len(n.GPUs)) * policy.Whole,
		}}
		for d, m := range n.Models {
			set.GPUs = append(set.GPUs, model.GPUDevice{ID: strconv.Itoa(d), Model: modelName(int(m))})
		}
		e.engine.SetNode(set)
	}
	return e
}

// modelName is how the engine knows the model with a number.
func modelName(n int) string { return "m" + strconv.Itoa(n) }

// Node returns node i as it is now.
func (e *Engine) Node(i int) *policy.Node { return &e.nodes[i] }

// Place puts an instance on the node of least cost.
func (e *Engine) Place(a policy.Ask, id int) (int, bool) {
	c := e.classes[a]
	if c == nil {
		c = e.engine.Class(e.askOf(a))
		e.classes[a] = c
	}
	e.engine.Learn(c, 1)
	e.one[0] = model.InstanceID(strconv.Itoa(id))
	e.out = e.engine.Place(c, e.one[:], e.out[:0])
	if len(e.out) == 0 {
		return 0, false
	}
	p := placed{ask: a, node: e.rows[e.out[0].Node]}
	for _, g := range e.out[0].GPUs {
		d, err := strconv.Atoi(g.ID)
		if err != nil {
			panic("replay: the engine gave a device that no node has: " + g.ID)
		}
		p.devices |= 1 << d
	}
	e.placed[id] = p
	e.nodes[p.node].Take(&p.ask, p.devices)
	return p.node, true
}

func (e *Engine) askOf(a policy.Ask) engine.Ask {
	ask := engine.Ask{App: model.AppID(fmt.Sprintf("/app-%d", len(e.classes))), Template: "1", Need: model.Resources{
		CPUs: model.CPU(a.CPU), Memory: model.Bytes(a.Memory), Disk: model.Bytes(a.Disk), GPUs: model.GPU(a.GPU),
	}}
	if a.GPU > 0 {
		want := engine.GPUWant{Amount: model.GPU(a.GPU)}
		for m := a.Models; m != 0; m &= m - 1 {
			want.Models = append(want.Models, modelName(bits.TrailingZeros64(m)))
		}
		ask.GPUs = []engine.GPUWant{want}
	}
	return ask
}

// End takes an instance away.
func (e *Engine) End(id int) {
	p := e.placed[id]
	delete(e.placed, id)
	e.nodes[p.node].Give(&p.ask, p.devices)
	e.engine.Release(model.InstanceID(strconv.Itoa(id)))
}
