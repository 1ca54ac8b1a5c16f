package api

import (
	"math/rand/v2"
	"testing"

	"github.com/gantry-os/gantry/model"
)

// Whatever is accepted, role after role, guarantees fit into what is guaranteed and allowed above them, and limits into
// limits. The check is written anew here, from the leaves up.
func TestRoleTreeStaysTrue(t *testing.T) {
	ids := []model.RoleID{"/", "/a", "/b", "/a/x", "/a/y", "/a/x/1", "/a/x/2", "/b/z"}
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		tree := map[model.RoleID]*model.Role{}
		accepted, refused := 0, 0
		for range 60 {
			next := &model.Role{ID: ids[r.IntN(len(ids))]}
			if r.IntN(2) == 0 && next.ID != "/" {
				next.Guarantee.CPUs = new(model.CPU(r.IntN(8)))
			}
			if r.IntN(3) == 0 {
				next.Limit.CPUs = new(model.CPU(4 + r.IntN(16)))
			}
			if up := next.ID.Parent(); up != "" && up != "/" && tree[up] == nil || len(next.Validate()) > 0 {
				continue
			}
			all := []*model.Role{next}
			for id, o := range tree {
				if id != next.ID {
					all = append(all, o)
				}
			}
			if len(newRoleTree(all).check(next.ID)) > 0 {
				refused++
				if holds(with(tree, next)) {
					t.Fatalf("seed %d: %+v is refused, but fits", seed, next)
				}
				continue
			}
			accepted++
			if tree = with(tree, next); !holds(tree) {
				t.Fatalf("seed %d: %+v is accepted, but does not fit", seed, next)
			}
		}
		if accepted == 0 || refused == 0 {
			t.Fatalf("seed %d: %d accepted, %d refused; this tests nothing", seed, accepted, refused)
		}
	}
}

func with(tree map[model.RoleID]*model.Role, r *model.Role) map[model.RoleID]*model.Role {
	out := map[model.RoleID]*model.Role{r.ID: r}
	for id, o := range tree {
		if id != r.ID {
			out[id] = o
		}
	}
	return out
}

// holds reports whether every role of a tree agrees with those above and below it.
func holds(tree map[model.RoleID]*model.Role) bool {
	for id, r := range tree {
		below := model.CPU(0)
		for child := range tree {
			if child.Parent() == id {
				below += needs(tree, child)
			}
		}
		if g := r.Guarantee.CPUs; g != nil && below > *g {
			return false
		}
		if l := r.Limit.CPUs; l != nil && max(below, needs(tree, id)) > *l {
			return false
		}
		for up := id.Parent(); up != "" && r.Limit.CPUs != nil; up = up.Parent() {
			if o := tree[up]; o != nil && o.Limit.CPUs != nil && *r.Limit.CPUs > *o.Limit.CPUs {
				return false
			}
		}
	}
	return true
}

func needs(tree map[model.RoleID]*model.Role, id model.RoleID) model.CPU {
	if g := tree[id].Guarantee.CPUs; g != nil {
		return *g
	}
	sum := model.CPU(0)
	for child := range tree {
		if child.Parent() == id {
			sum += needs(tree, child)
		}
	}
	return sum
}
