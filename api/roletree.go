package api

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/gantry-os/gantry/model"
)

// roleTree is what a tree of roles has to agree on: below a role no more is guaranteed than the role itself is, and
// nothing may be guaranteed or allowed that a limit above forbids.
type roleTree struct {
	roles map[model.RoleID]*model.Role
	need  map[model.RoleID]amounts // guaranteed to a role: as it says, or else the sum of those below it
	below map[model.RoleID]amounts // guaranteed to the roles just below, together
}

func newRoleTree(roles []*model.Role) *roleTree {
	t := &roleTree{map[model.RoleID]*model.Role{}, map[model.RoleID]amounts{}, map[model.RoleID]amounts{}}
	sorted := slices.SortedFunc(slices.Values(roles), func(a, b *model.Role) int { return cmp.Compare(b.ID, a.ID) })
	for _, r := range sorted { // those below come first
		t.roles[r.ID] = r
		need := amounts{}
		need.add(t.below[r.ID])
		for name, n := range quotaAmounts(r.Guarantee) {
			need[name] = n
		}
		t.need[r.ID] = need
		if up := r.ID.Parent(); up != "" {
			if t.below[up] == nil {
				t.below[up] = amounts{}
			}
			t.below[up].add(need)
		}
	}
	return t
}

// check returns what is wrong with the tree on the way from the root to a role, as errors about that role's fields.
func (t *roleTree) check(id model.RoleID) model.FieldErrors {
	var errs model.FieldErrors
	t.checkGuarantee(&errs, id)
	t.checkLimit(&errs, id)
	return errs
}

func (t *roleTree) checkGuarantee(errs *model.FieldErrors, id model.RoleID) {
	own := quotaAmounts(t.roles[id].Guarantee)
	for _, name := range own.names() {
		if n := t.below[id][name]; n > own[name] {
			addError(errs, amountPath("guarantee", name), "%s is less than the %s that the roles below it are guaranteed",
				amountText(name, own[name]), amountText(name, n))
		}
	}
	for up := id.Parent(); up != ""; up = up.Parent() {
		r := t.roles[up]
		if r == nil {
			continue
		}
		guarantee, limit := quotaAmounts(r.Guarantee), quotaAmounts(r.Limit)
		for _, name := range t.need[id].names() {
			sum := amountText(name, t.below[up][name])
			if most, ok := guarantee[name]; ok && t.below[up][name] > most {
				addError(errs, amountPath("guarantee", name), "makes %s with what else is guaranteed below %s, which is guaranteed %s itself",
					sum, up, amountText(name, most))
			} else if most, ok := limit[name]; ok && t.below[up][name] > most {
				addError(errs, amountPath("guarantee", name), "makes %s with what else is guaranteed below %s, whose limit is %s",
					sum, up, amountText(name, most))
			}
		}
	}
}

func (t *roleTree) checkLimit(errs *model.FieldErrors, id model.RoleID) {
	own := quotaAmounts(t.roles[id].Limit)
	for _, name := range own.names() {
		at := amountPath("limit", name)
		if up, most, ok := t.limitAbove(id, name); ok && own[name] > most {
			addError(errs, at, "%s is more than the limit of %s, %s", amountText(name, own[name]), up, amountText(name, most))
		}
		if n := t.below[id][name]; n > own[name] {
			addError(errs, at, "%s is less than the %s that the roles below it are guaranteed", amountText(name, own[name]), amountText(name, n))
		}
		for _, r := range t.descendants(id) {
			if n, ok := quotaAmounts(r.Limit)[name]; ok && n > own[name] {
				addError(errs, at, "%s is less than the limit of %s, %s", amountText(name, own[name]), r.ID, amountText(name, n))
			}
		}
	}
}

// limitAbove returns the nearest role above id that limits a resource.
func (t *roleTree) limitAbove(id model.RoleID, name string) (up model.RoleID, most int64, ok bool) {
	for up = id.Parent(); up != ""; up = up.Parent() {
		if r := t.roles[up]; r != nil {
			if most, ok = quotaAmounts(r.Limit)[name]; ok {
				return up, most, true
			}
		}
	}
	return "", 0, false
}

// descendants returns the roles below id, in order.
func (t *roleTree) descendants(id model.RoleID) []*model.Role {
	var out []*model.Role
	for _, r := range t.roles {
		if r.ID != id && r.ID.Within(id) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *model.Role) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func addError(errs *model.FieldErrors, at, format string, args ...any) {
	*errs = append(*errs, model.FieldError{Path: at, Message: fmt.Sprintf(format, args...)})
}
