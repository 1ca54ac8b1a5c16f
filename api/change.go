package api

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// change is one write to one app within a transaction. Its methods are run again when the transaction is.
type change struct {
	tx  *state.Tx
	now time.Time
	id  model.DeploymentID // for the deployment that it makes
}

// keyedID returns the deployment id of all writes that are sent under one idempotency key: a second write finds the
// deployment of the first.
func keyedID(key, method, path string) model.DeploymentID {
	sum := sha256.Sum256([]byte(key + "\x00" + method + "\x00" + path))
	text := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))
	return model.DeploymentID(text[:idLength])
}

// repeated returns the change that an earlier write made under the same key.
func (c *change) repeated() (client.Change, bool) {
	d := c.tx.Deployment(c.id)
	if d == nil {
		return client.Change{}, false
	}
	return client.Change{App: d.App, Version: d.To, Deployment: d.ID}, true
}

// live returns the app and its deployed version. It fails when there is none or it is being removed.
func (c *change) live(id model.AppID) (*model.App, *model.AppVersion, error) {
	app := c.tx.App(id)
	if app == nil {
		return nil, nil, noApp(c.tx.View, id)
	}
	if app.Removing {
		return nil, nil, conflict("app %s is being removed; wait until it is gone", id)
	}
	target := c.tx.Target(id)
	if target == nil {
		return nil, nil, fmt.Errorf("app %s has no version to deploy", id)
	}
	return app, target, nil
}

// create writes a new app.
func (c *change) create(spec *model.Spec) (client.Change, error) {
	if err := unmask(spec, nil); err != nil {
		return client.Change{}, err
	}
	v := &model.AppVersion{App: spec.ID, Version: c.next(spec.ID, 0), Created: c.now, Spec: spec}
	app := &model.App{ID: spec.ID, Created: c.now}
	return c.deploy(app, nil, v, model.DeployCreate, "created")
}

// put creates the app or gives it a new version, unless spec means what is deployed.
func (c *change) put(spec *model.Spec, ifMatch string) (client.Change, error) {
	app := c.tx.App(spec.ID)
	if err := matches(ifMatch, app); err != nil {
		return client.Change{}, err
	}
	if app == nil {
		return c.create(spec)
	}
	app, target, err := c.live(spec.ID)
	if err != nil {
		return client.Change{}, err
	}
	stored := []*model.Spec{target.Spec}
	if newest := c.tx.Version(app.ID, app.Version); newest != nil {
		stored = append(stored, newest.Spec)
	}
	if err := unmask(spec, stored); err != nil {
		return client.Change{}, err
	}
	if c.settled(app, target, spec) {
		return unchangedBy(app, target), nil
	}
	v := &model.AppVersion{Version: c.next(app.ID, app.Version), Restarts: target.Restarts, Spec: spec}
	return c.deploy(app, target, v, model.DeployUpdate, "updated")
}

// scale deploys the deployed spec with another count.
func (c *change) scale(id model.AppID, n int) (client.Change, error) {
	app, target, err := c.live(id)
	if err != nil {
		return client.Change{}, err
	}
	spec := target.Spec.Clone()
	spec.Instances = &n
	if errs := spec.Validate(); len(errs) > 0 { // an update policy may rule out a count
		return client.Change{}, invalid(errs)
	}
	if c.settled(app, target, spec) {
		return unchangedBy(app, target), nil
	}
	v := &model.AppVersion{
		Version: c.next(id, app.Version), Restarts: target.Restarts, Spec: spec,
		Note: fmt.Sprintf("scale from %d to %d", target.Spec.Count(), n),
	}
	return c.deploy(app, target, v, model.DeployScale, "scaled")
}

// restart deploys the deployed spec in such a way that no instance counts as current.
func (c *change) restart(id model.AppID) (client.Change, error) {
	app, target, err := c.live(id)
	if err != nil {
		return client.Change{}, err
	}
	restarts := target.Restarts
	for v := range c.tx.Versions(id) {
		restarts = max(restarts, v.Restarts) // instances of a later version may still run
	}
	v := &model.AppVersion{Version: c.next(id, app.Version), Restarts: restarts + 1, Spec: target.Spec.Clone(), Note: "restart"}
	return c.deploy(app, target, v, model.DeployRestart, "restarted")
}

// rollback deploys the spec of version n again, of the newest earlier one that ran something else when n is 0.
func (c *change) rollback(id model.AppID, n uint64) (client.Change, error) {
	app, target, err := c.live(id)
	if err != nil {
		return client.Change{}, err
	}
	old, err := c.earlier(target, n)
	if err != nil {
		return client.Change{}, err
	}
	if c.settled(app, target, old.Spec) {
		return unchangedBy(app, target), nil
	}
	v := &model.AppVersion{
		Version: c.next(id, app.Version), Restarts: target.Restarts, Spec: old.Spec.Clone(),
		Note: fmt.Sprintf("roll back to version %d", old.Version),
	}
	return c.deploy(app, target, v, model.DeployRollback, "rolledback")
}

func (c *change) earlier(target *model.AppVersion, n uint64) (*model.AppVersion, error) {
	if n != 0 {
		if v := c.tx.Version(target.App, n); v != nil {
			return v, nil
		}
		var kept []string
		for v := range c.tx.Versions(target.App) {
			kept = append(kept, fmt.Sprint(v.Version))
		}
		return nil, notFound("app %s has no version %d; kept are %s", target.App, n, strings.Join(kept, ", "))
	}
	var best *model.AppVersion
	for v := range c.tx.Versions(target.App) {
		// Restarts are no other spec, so compare as if there had been none.
		same := (&model.AppVersion{Spec: v.Spec, Restarts: target.Restarts}).Template() == target.Template()
		if v.Version < target.Version && !same {
			best = v
		}
	}
	if best == nil {
		return nil, conflict("app %s has no earlier version that ran anything else; name one to go back to", target.App)
	}
	return best, nil
}

// remove marks the app; it goes once its instances are over.
func (c *change) remove(id model.AppID) (client.Change, error) {
	app := c.tx.App(id)
	if app == nil {
		return client.Change{}, noApp(c.tx.View, id)
	}
	if app.Removing {
		return client.Change{App: id, Version: app.Version, Deployment: app.Deployment}, nil
	}
	n := app.Version
	if target := c.tx.Target(id); target != nil {
		n = target.Version
	}
	c.supersede(id)
	next := *app
	next.Removing, next.Deployment = true, c.id
	c.tx.PutApp(&next)
	c.start(&model.Deployment{App: id, Kind: model.DeployRemove, From: n, To: n, Message: "stopping all instances"}, "removing",
		fmt.Sprintf("app %s is being removed", id))
	return client.Change{App: id, Version: n, Deployment: c.id}, nil
}

// deploy writes version v of app and the deployment that leads to it. target is nil for a new app.
func (c *change) deploy(app *model.App, target, v *model.AppVersion, kind model.DeployKind, verb string) (client.Change, error) {
	if err := c.roleExists(v, kind); err != nil {
		return client.Change{}, err
	}
	v.App, v.Created = app.ID, c.now
	c.supersede(app.ID)
	next := *app
	next.Version, next.Deployment = v.Version, c.id
	c.tx.PutApp(&next)
	c.tx.PutVersion(v)
	d := &model.Deployment{App: app.ID, Kind: kind, To: v.Version, Want: v.Spec.Count()}
	if target != nil {
		d.From = target.Version
	}
	said := strings.Replace(verb, "rolledback", "rolled back", 1)
	c.start(d, verb, fmt.Sprintf("app %s was %s: version %d", app.ID, said, v.Version))
	return client.Change{App: app.ID, Version: v.Version, Deployment: c.id}, nil
}

// roleExists refuses a version whose role is not there. What the user has just written is the user's mistake; an earlier
// version's role may have been deleted since.
func (c *change) roleExists(v *model.AppVersion, kind model.DeployKind) error {
	err := checkRole(c.tx.View, v.Spec)
	if err == nil || kind == model.DeployCreate || kind == model.DeployUpdate {
		return err
	}
	return conflict("the role of that version is missing: %s", missingRole(c.tx.View, roleOf(v.Spec)))
}

// start writes a new deployment and tells of what led to it.
func (c *change) start(d *model.Deployment, verb, message string) {
	d.ID, d.Created, d.Moved, d.State = c.id, c.now, c.now, model.DeployRunning
	c.tx.PutDeployment(d)
	c.tx.Emit(model.Event{Type: "app." + verb, App: d.App, Deployment: d.ID, Message: message})
	c.tx.Emit(model.Event{Type: "deployment.created", App: d.App, Deployment: d.ID,
		Message: fmt.Sprintf("deployment %s begins: %s %s", d.ID, d.Kind, d.App)})
}

// supersede ends the deployments of an app that have not ended.
func (c *change) supersede(id model.AppID) {
	for d := range c.tx.ActiveDeployments() {
		if d.App == id && d.ID != c.id {
			next := *d
			next.State, next.Ended = model.DeploySuperseded, c.now
			next.Message = fmt.Sprintf("deployment %s took over", c.id)
			c.tx.PutDeployment(&next)
		}
	}
}

// next returns the number of the next version, above any left over from an app of the same name.
func (c *change) next(id model.AppID, newest uint64) uint64 {
	for v := range c.tx.Versions(id) {
		newest = max(newest, v.Version)
	}
	return newest + 1
}

// settled reports whether spec means what is deployed, and its deployment has not failed: then a repeat is a new try.
func (c *change) settled(app *model.App, target *model.AppVersion, spec *model.Spec) bool {
	d := c.tx.Deployment(app.Deployment)
	return (d == nil || d.State != model.DeployFailed) && sameSpec(spec, target.Spec)
}

func unchangedBy(app *model.App, target *model.AppVersion) client.Change {
	return client.Change{App: app.ID, Version: target.Version, Deployment: app.Deployment, Unchanged: true}
}

// sameSpec compares what specs mean, defaults filled in.
func sameSpec(a, b *model.Spec) bool {
	x, errX := json.Marshal(a.WithDefaults())
	y, errY := json.Marshal(b.WithDefaults())
	return errX == nil && errY == nil && string(x) == string(y)
}

// pause, resume and cancel change a deployment that has not ended.
func (c *change) pause(id model.DeploymentID) error {
	d, err := c.active(id)
	if err != nil || d.State == model.DeployPaused {
		return err
	}
	if d.Kind == model.DeployRemove {
		return conflict("deployment %s removes its app, which cannot be paused", id)
	}
	next := *d
	next.State, next.Message = model.DeployPaused, "paused"
	return c.turn(&next, "paused")
}

func (c *change) resume(id model.DeploymentID) error {
	d, err := c.active(id)
	if err != nil || d.State == model.DeployRunning {
		return err
	}
	next := *d
	next.State, next.Message = model.DeployRunning, "resumed"
	next.Moved = c.now // the time it was paused is not held against it
	return c.turn(&next, "resumed")
}

func (c *change) turn(d *model.Deployment, verb string) error {
	c.tx.PutDeployment(d)
	c.tx.Emit(model.Event{Type: "deployment." + verb, App: d.App, Deployment: d.ID,
		Message: fmt.Sprintf("deployment %s of %s was %s", d.ID, d.App, verb)})
	return nil
}

// cancel ends a deployment and starts another that goes back to the last version that was healthy as a whole.
func (c *change) cancel(id model.DeploymentID) error {
	d, err := c.active(id)
	if err != nil {
		return err
	}
	if d.Kind == model.DeployRemove {
		return conflict("deployment %s removes its app, which cannot be undone", id)
	}
	app := c.tx.App(d.App)
	if app == nil {
		return conflict("deployment %s has no app any more", id)
	}
	if app.Stable == 0 || app.Stable == d.To || c.tx.Version(app.ID, app.Stable) == nil {
		return conflict("there is no other version of %s that was healthy as a whole to go back to; roll back to one by name, or remove the app", app.ID)
	}
	old := *d
	old.State, old.Ended = model.DeployCancelled, c.now
	old.Message = fmt.Sprintf("cancelled; going back to version %d", app.Stable)
	if err := c.turn(&old, "cancelled"); err != nil {
		return err
	}
	next := *app
	next.Deployment = c.id
	c.tx.PutApp(&next)
	back := &model.Deployment{App: app.ID, Kind: model.DeployRollback, From: d.To, To: app.Stable}
	back.Want = c.tx.Version(app.ID, app.Stable).Spec.Count()
	c.start(back, "rolledback", fmt.Sprintf("app %s goes back to version %d", app.ID, app.Stable))
	return nil
}

func (c *change) active(id model.DeploymentID) (*model.Deployment, error) {
	d := c.tx.Deployment(id)
	if d == nil {
		return nil, noDeployment(id)
	}
	if d.State.Over() {
		return nil, conflict("deployment %s has ended: %s", id, d.State)
	}
	return d, nil
}

// passwordMask stands for a password in answers.
const passwordMask = "********"

// masked returns s without its passwords; s itself when it has none.
func masked(s *model.Spec) *model.Spec {
	secret := func(c model.Container) bool { return c.Auth != nil && c.Auth.Password != "" }
	if !slices.ContainsFunc(s.Containers, secret) {
		return s
	}
	out := s.Clone()
	for i := range out.Containers {
		if secret(out.Containers[i]) {
			out.Containers[i].Auth.Password = passwordMask
		}
	}
	return out
}

// unmask puts passwords back where spec has the mask, from the same container and user of the first of stored that has
// one.
func unmask(spec *model.Spec, stored []*model.Spec) error {
	var errs model.FieldErrors
	for i := range spec.Containers {
		a := spec.Containers[i].Auth
		if a == nil || a.Password != passwordMask {
			continue
		}
		pass, ok := storedPassword(spec, i, stored)
		if !ok {
			errs = append(errs, model.FieldError{Path: fmt.Sprintf("containers[%d].auth.password", i),
				Message: "is the mask that answers show, and no password is stored for this container and user; write the password"})
			continue
		}
		a.Password = pass
	}
	return invalid(errs)
}

func storedPassword(spec *model.Spec, i int, stored []*model.Spec) (string, bool) {
	for _, s := range stored {
		for j, c := range s.Containers {
			if containerName(s, j) == containerName(spec, i) && c.Auth != nil && c.Auth.Username == spec.Containers[i].Auth.Username {
				return c.Auth.Password, true
			}
		}
	}
	return "", false
}

func containerName(s *model.Spec, i int) string {
	if i == 0 && s.Containers[i].Name == "" {
		return model.DefaultContainer
	}
	return s.Containers[i].Name
}
