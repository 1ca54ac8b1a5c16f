package model

// Pool is how a named part of the nodes is used. A pool without a record has the defaults. Api writes it.
type Pool struct {
	Name       string     `json:"name" doc:"Name, as nodes and apps give it."`
	Placement  Policy     `json:"placement,omitempty" enum:"pack,spread,balanced" doc:"How nodes are chosen for apps that do not say. Default pack."`
	Spread     Spreading  `json:"spread,omitempty" enum:"zones,off" doc:"Whether apps that do not say how their instances lie to each other have them evenly over the zones of the pool's nodes. Default zones."`
	Defragment Defragment `json:"defragment,omitempty" enum:"off,propose,perform" doc:"Whether instances are moved so that free room comes in larger pieces. Default propose: gantry defrag shows what would be gained."`

	Revision uint64 `json:"-"`
}

// Spreading says how instances are spread by default.
type Spreading string

// How instances are spread by default.
const (
	SpreadZones Spreading = "zones"
	SpreadOff   Spreading = "off"
)

// Defragment says what the defragmenter may do.
type Defragment string

// What the defragmenter may do.
const (
	DefragmentOff     Defragment = "off"
	DefragmentPropose Defragment = "propose"
	DefragmentPerform Defragment = "perform"
)

// Validate returns everything that is wrong with p.
func (p *Pool) Validate() FieldErrors {
	var errs FieldErrors
	if err := checkName(p.Name); err != nil {
		errs.add("name", "%v", err)
	}
	oneOf(&errs, "placement", p.Placement, PolicyPack, PolicySpread, PolicyBalanced)
	oneOf(&errs, "spread", p.Spread, SpreadZones, SpreadOff)
	oneOf(&errs, "defragment", p.Defragment, DefragmentOff, DefragmentPropose, DefragmentPerform)
	return errs
}
