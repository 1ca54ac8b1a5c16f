package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// RolePath is the role in the path of a request.
type RolePath struct {
	Role string `path:"role" doc:"Id of the role as one segment: without the slash at its beginning, and with others written as %2F. A single - is the root." example:"analytics%2Fbatch"`
}

// rootSegment stands for the root: routers take an escaped slash alone for the end of a path.
const rootSegment = "-"

func (p *RolePath) parse() (model.RoleID, error) {
	if p.Role == rootSegment {
		return model.RootRole, nil
	}
	return model.ParseRoleID(p.Role)
}

func (p *RolePath) id() (model.RoleID, error) {
	id, err := p.parse()
	if err != nil {
		return "", notFound("no role can have this id: %v", err)
	}
	return id, nil
}

func roleOf(s *model.Spec) model.RoleID { return cmp.Or(s.Role, model.RootRole) }

func hasRole(v state.View, id model.RoleID) bool { return id == model.RootRole || v.Role(id) != nil }

func roleNames(v state.View) []string {
	var names []string
	for r := range v.Roles() {
		if r.ID != model.RootRole { // near to every short name
			names = append(names, string(r.ID))
		}
	}
	return names
}

func noRole(v state.View, id model.RoleID) error {
	return notFound("no role %s%s", id, didYouMean(string(id), roleNames(v)))
}

// checkRole refuses a spec that names a role which does not exist.
func checkRole(v state.View, s *model.Spec) error {
	if id := roleOf(s); !hasRole(v, id) {
		return invalid(model.FieldErrors{{Path: "role", Message: missingRole(v, id)}})
	}
	return nil
}

func missingRole(v state.View, id model.RoleID) string {
	near := didYouMean(string(id), roleNames(v))
	if near == "" {
		near = ";"
	}
	return fmt.Sprintf("there is no role %s%s gantry role set %s makes it", id, near, id)
}

// roleUse is what is taken in the name of a role and of those below it.
type roleUse struct {
	used            client.Amounts
	instances, apps int
}

// roleBook is all that is taken of the cluster, by role.
type roleBook struct {
	all amounts // of the nodes that are not gone
	use map[model.RoleID]*roleUse
}

func newRoleBook(v state.View) *roleBook {
	b := &roleBook{amounts{}, map[model.RoleID]*roleUse{}}
	for n := range v.Nodes() {
		if n.State == model.NodeGone {
			continue
		}
		b.all.add(resourceAmounts(capacityOf(n)))
		for name, c := range n.Custom {
			b.all[name] += int64(c.Total())
		}
	}
	roles := map[model.AppID]model.RoleID{}
	for a := range v.Apps() {
		if t := v.Target(a.ID); t != nil {
			roles[a.ID] = roleOf(t.Spec)
			b.of(roles[a.ID]).apps++
		}
	}
	sizes := newSizes(v)
	for i := range v.Instances() {
		if i.Node == "" || i.Over() {
			continue
		}
		z := sizes.of(i)
		for id := cmp.Or(roles[i.App], model.RootRole); id != ""; id = id.Parent() {
			u := b.of(id)
			u.instances++
			u.used.Resources = u.used.Add(z.Resources)
			addCustom(&u.used.Custom, z.custom)
		}
	}
	return b
}

func (b *roleBook) of(id model.RoleID) *roleUse {
	if b.use[id] == nil {
		b.use[id] = &roleUse{}
	}
	return b.use[id]
}

func (b *roleBook) describe(r *model.Role) client.RoleDetail {
	u := b.of(r.ID)
	out := client.RoleDetail{Role: *r, Used: u.used, Instances: u.instances, Apps: u.apps}
	out.Dominant, out.Share = dominant(flat(u.used), b.all)
	return out
}

// findRole finds a role; the root is there without a record.
func findRole(v state.View, id model.RoleID) *model.Role {
	if r := v.Role(id); r != nil || id != model.RootRole {
		return r
	}
	return &model.Role{ID: model.RootRole}
}

func (s *server) listRoles(context.Context, *none) (*reply[[]client.RoleDetail], error) {
	v := s.Store.View()
	book := newRoleBook(v)
	out := []client.RoleDetail{book.describe(findRole(v, model.RootRole))}
	for r := range v.Roles() {
		if r.ID != model.RootRole {
			out = append(out, book.describe(r))
		}
	}
	return answer(out)
}

func (s *server) getRole(_ context.Context, in *RolePath) (*reply[client.RoleDetail], error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	return s.answerRole(id)
}

func (s *server) answerRole(id model.RoleID) (*reply[client.RoleDetail], error) {
	v := s.Store.View()
	r := findRole(v, id)
	if r == nil {
		return nil, noRole(v, id)
	}
	return answer(newRoleBook(v).describe(r))
}

type roleInput struct {
	RolePath
	body
}

func (s *server) putRole(ctx context.Context, in *roleInput) (*reply[client.RoleDetail], error) {
	id, err := in.parse()
	if err != nil {
		return nil, problem(http.StatusUnprocessableEntity, "%v", err)
	}
	var ask model.Role
	if err := in.record(&ask, func() model.FieldErrors {
		ask.ID = cmp.Or(ask.ID, id)
		return named(ask.Validate(), "id", string(ask.ID), string(id))
	}); err != nil {
		return nil, err
	}
	err = s.update(ctx, func(tx *state.Tx) error {
		if err := invalid(checkInTree(tx.View, &ask)); err != nil {
			return err
		}
		old, next := tx.Role(id), ask // the transaction may run again
		if old != nil {
			next.Revision = old.Revision
		}
		if reflect.DeepEqual(old, &next) {
			return nil
		}
		tx.PutRole(&next)
		tx.Emit(model.Event{Type: "role.changed", Message: fmt.Sprintf("role %s was set", id)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.answerRole(id)
}

// checkInTree returns what is wrong with a role beside the others.
func checkInTree(v state.View, r *model.Role) model.FieldErrors {
	if r.ID == model.RootRole && len(quotaAmounts(r.Guarantee)) > 0 {
		return model.FieldErrors{{Path: "guarantee", Message: "has no meaning for /: it has the whole cluster"}}
	}
	if up := r.ID.Parent(); up != "" && !hasRole(v, up) {
		return model.FieldErrors{{Path: "id", Message: fmt.Sprintf("%s cannot be below a role that does not exist: %s", r.ID, missingRole(v, up))}}
	}
	all := []*model.Role{r}
	for o := range v.Roles() {
		if o.ID != r.ID {
			all = append(all, o)
		}
	}
	return newRoleTree(all).check(r.ID)
}

func (s *server) deleteRole(ctx context.Context, in *RolePath) (*reply[accepted], error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	err = s.update(ctx, func(tx *state.Tx) error {
		switch {
		case tx.Role(id) == nil && id == model.RootRole:
			return notFound("the role / has no limits or weights to delete; the role itself stays")
		case tx.Role(id) == nil:
			return noRole(tx.View, id)
		}
		if id != model.RootRole { // of the root only the settings go
			if users := roleUsers(tx.View, id); len(users) > 0 {
				return conflict("role %s is in use: %s", id, strings.Join(users, "; "))
			}
		}
		tx.DeleteRole(id)
		tx.Emit(model.Event{Type: "role.deleted", Message: fmt.Sprintf("role %s was deleted", id)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return answer(accepted{})
}

// roleUsers says what needs a role, so that it cannot go.
func roleUsers(v state.View, id model.RoleID) []string {
	var roles, apps, kept []string
	for r := range v.Roles() {
		if r.ID != id && r.ID.Within(id) {
			roles = append(roles, string(r.ID))
		}
	}
	for a := range v.Apps() {
		if appNamesRole(v, a, id) {
			apps = append(apps, string(a.ID))
		}
	}
	for r := range v.Reservations() {
		if r.Role == id {
			kept = append(kept, r.ID)
		}
	}
	var out []string
	for _, part := range []struct {
		list      []string
		one, many string
	}{{roles, "is below it", "are below it"}, {apps, "names it", "name it"}, {kept, "is reserved for it", "are reserved for it"}} {
		switch len(part.list) {
		case 0:
		case 1:
			out = append(out, part.list[0]+" "+part.one)
		default:
			out = append(out, brieflyListed(part.list)+" "+part.many)
		}
	}
	return out
}

// appNamesRole looks at the versions that are deployed, or may be without anyone asking. All instances of an app count under
// the deployed one's role.
func appNamesRole(v state.View, a *model.App, id model.RoleID) bool {
	check := []uint64{a.Version, a.Stable}
	if t := v.Target(a.ID); t != nil {
		check = append(check, t.Version)
	}
	return slices.ContainsFunc(check, func(n uint64) bool {
		ver := v.Version(a.ID, n)
		return ver != nil && roleOf(ver.Spec) == id
	})
}

// brieflyListed writes a list of which the end may be left out.
func brieflyListed(list []string) string {
	const most = 10
	if more := len(list) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), more)
	}
	return strings.Join(list, ", ")
}
