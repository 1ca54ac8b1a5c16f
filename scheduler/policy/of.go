package policy

import "github.com/gantry-os/gantry/model"

// Of returns a new policy of the name that apps and pools give it: Pack unless they say otherwise.
func Of(name model.Policy) Policy {
	switch name {
	case model.PolicySpread:
		return Spread{}
	case model.PolicyBalanced:
		return Balanced{}
	}
	return NewPack()
}
