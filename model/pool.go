package model

// Pool is how a named part of the nodes is used. A pool without a record has the defaults. Api writes it.
type Pool struct {
	Name       string     `json:"name" doc:"Name, as nodes and apps give it."`
	Placement  Policy     `json:"placement,omitempty" enum:"pack,spread,balanced" doc:"How nodes are chosen for apps that do not say. Default pack."`
	Defragment Defragment `json:"defragment,omitempty" enum:"off,propose,perform" doc:"Whether instances are moved so that free room comes in larger pieces. Default propose: gantry defrag shows what would be gained."`

	Revision uint64 `json:"-"`
}

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
	oneOf(&errs, "defragment", p.Defragment, DefragmentOff, DefragmentPropose, DefragmentPerform)
	return errs
}
