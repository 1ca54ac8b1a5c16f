package api

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

type none struct{}

// reply is an answer with a body.
type reply[T any] struct{ Body T }

func answer[T any](v T) (*reply[T], error) { return &reply[T]{v}, nil }

// AppPath is the app in the path of a request. Like the other parts of inputs it is exported because huma looks into
// exported fields only.
type AppPath struct {
	App string `path:"app" doc:"Id of the app as one segment: without the slash at its beginning, and with others written as %2F." example:"shop%2Fweb"`
}

func (p *AppPath) id() (model.AppID, error) {
	id, err := model.ParseAppID(p.App)
	if err != nil {
		return "", notFound("no app can have this id: %v", err)
	}
	return id, nil
}

// noApp says that there is no such app, and names one that was perhaps meant.
func noApp(v state.View, id model.AppID) error {
	var names []string
	for a := range v.Apps() {
		names = append(names, string(a.ID))
	}
	return notFound("no app %s%s", id, didYouMean(string(id), names))
}

func (s *server) listApps(context.Context, *none) (*reply[[]client.AppSummary], error) {
	v := s.Store.View()
	out := make([]client.AppSummary, 0, v.AppCount())
	for a := range v.Apps() {
		out = append(out, summarize(v, a))
	}
	return answer(out)
}

// detail is an app's answer, with the revision that a later PUT can insist on.
type detail struct {
	ETag string `header:"ETag" doc:"The app's revision in quotes, for If-Match."`
	Body client.AppDetail
}

func (s *server) getApp(ctx context.Context, in *AppPath) (*detail, error) {
	v := s.Store.View()
	a, err := findApp(v, in)
	if err != nil {
		return nil, err
	}
	d := client.AppDetail{AppSummary: summarize(v, a), Revision: a.Revision, Stable: a.Stable, List: describeApp(v, a.ID)}
	if t := v.Target(a.ID); t != nil {
		d.Spec = masked(t.Spec)
	}
	d.Funnel, d.Volumes = s.funnelIfWaiting(ctx, v, a.ID), volumesOf(v, a.ID)
	return &detail{ETag: strconv.Quote(strconv.FormatUint(a.Revision, 10)), Body: d}, nil
}

func findApp(v state.View, in *AppPath) (*model.App, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	if a := v.App(id); a != nil {
		return a, nil
	}
	return nil, noApp(v, id)
}

func (s *server) listVersions(_ context.Context, in *AppPath) (*reply[[]client.Version], error) {
	v := s.Store.View()
	a, err := findApp(v, in)
	if err != nil {
		return nil, err
	}
	target := v.Target(a.ID)
	out := []client.Version{}
	for ver := range v.Versions(a.ID) {
		out = append(out, client.Version{
			Version: ver.Version, Created: ver.Created, Note: ver.Note, Spec: masked(ver.Spec),
			Deployed: target != nil && ver.Version == target.Version, Stable: ver.Version == a.Stable,
		})
	}
	slices.Reverse(out)
	return answer(out)
}

// Keyed is the header of writes that may be sent twice.
type Keyed struct {
	Key string `header:"Idempotency-Key" maxLength:"255" doc:"Any text that is used for one write only. The same write under the same key is done once and answered the same way, as long as its deployment is kept."`
}

// changed is the answer to a write: 202 when there is something to carry out, 200 when not.
type changed struct {
	Status int
	Body   client.Change
}

// change runs fn as one transaction, unless that was done under the same key before.
func (s *server) change(ctx context.Context, k Keyed, method, path string, fn func(*change) (client.Change, error)) (*changed, error) {
	id := model.DeploymentID(s.NewID())
	if k.Key != "" {
		id = keyedID(k.Key, method, path)
	}
	var out client.Change
	err := s.update(ctx, func(tx *state.Tx) (err error) {
		c := &change{tx: tx, now: s.Now(), id: id}
		var done bool
		if out, done = c.repeated(); done {
			return nil
		}
		out, err = fn(c)
		return err
	})
	if err != nil {
		return nil, err
	}
	status := http.StatusAccepted
	if out.Unchanged {
		status = http.StatusOK
	}
	return &changed{status, out}, nil
}

type createInput struct {
	Keyed
	body
}

func (s *server) createApp(ctx context.Context, in *createInput) (*changed, error) {
	spec, err := in.spec("")
	if err != nil {
		return nil, err
	}
	return s.change(ctx, in.Keyed, http.MethodPost, appRoute(spec.ID), func(c *change) (client.Change, error) {
		if a := c.tx.App(spec.ID); a != nil {
			_, _, err := c.live(spec.ID)
			if err == nil {
				err = conflict("app %s exists; PUT it to update it", spec.ID)
			}
			return client.Change{}, err
		}
		return c.create(spec.Clone()) // the transaction may run again
	})
}

type putInput struct {
	AppPath
	Keyed
	body
	IfMatch string `header:"If-Match" doc:"Refuse with 412 unless the app has this revision, as its ETag gave it; * stands for any."`
}

func (s *server) putApp(ctx context.Context, in *putInput) (*changed, error) {
	id, err := model.ParseAppID(in.App)
	if err != nil {
		return nil, problem(http.StatusUnprocessableEntity, "%v", err)
	}
	spec, err := in.spec(id)
	if err != nil {
		return nil, err
	}
	return s.change(ctx, in.Keyed, http.MethodPut, appRoute(id), func(c *change) (client.Change, error) {
		return c.put(spec.Clone(), in.IfMatch)
	})
}

// spec reads a spec and checks it. id, when given, is the one in the path: the body may leave it out.
func (b *body) spec(id model.AppID) (*model.Spec, error) {
	data, err := b.bytes()
	if err != nil {
		return nil, err
	}
	return readSpec(data, id)
}

func readSpec(data []byte, id model.AppID) (*model.Spec, error) {
	spec := &model.Spec{}
	errs, err := decodeFields(data, spec)
	if err != nil {
		return nil, err
	}
	if spec.ID == "" {
		spec.ID = id
	}
	wrong := spec.Validate()
	if id != "" {
		wrong = named(wrong, "id", string(spec.ID), string(id))
	}
	return spec, invalid(joined(errs, wrong))
}

// within reports whether path is parent or lies below it.
func within(path, parent string) bool {
	rest, ok := strings.CutPrefix(path, parent)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[' || parent == "")
}

func appRoute(id model.AppID) string { return "/v1/apps" + string(id) }

// matches checks an If-Match header against an app, nil when there is none.
func matches(ifMatch string, a *model.App) error {
	if ifMatch == "" {
		return nil
	}
	if a == nil {
		return problem(http.StatusPreconditionFailed, "If-Match names revision %s, but the app does not exist", ifMatch)
	}
	current := strconv.Quote(strconv.FormatUint(a.Revision, 10))
	for tag := range strings.SplitSeq(ifMatch, ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || tag == current || strconv.Quote(tag) == current {
			return nil
		}
	}
	return problem(http.StatusPreconditionFailed, "the app has revision %s, not %s: it was changed since; read it again", current, ifMatch)
}

// appWrite is the input of writes without a body.
type appWrite struct {
	AppPath
	Keyed
}

func (s *server) deleteApp(ctx context.Context, in *appWrite) (*changed, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	return s.change(ctx, in.Keyed, http.MethodDelete, appRoute(id), func(c *change) (client.Change, error) { return c.remove(id) })
}

func (s *server) restartApp(ctx context.Context, in *appWrite) (*changed, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	return s.change(ctx, in.Keyed, http.MethodPost, appRoute(id)+"/restart", func(c *change) (client.Change, error) { return c.restart(id) })
}

// appBody is the input of writes with a body.
type appBody struct {
	AppPath
	Keyed
	body
}

func (s *server) scaleApp(ctx context.Context, in *appBody) (*changed, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	var ask struct {
		Instances *int `json:"instances"`
	}
	if err := in.read(&ask, false); err != nil {
		return nil, err
	}
	if err := checkScale(ask.Instances); err != nil {
		return nil, err
	}
	return s.change(ctx, in.Keyed, http.MethodPost, appRoute(id)+"/scale", func(c *change) (client.Change, error) { return c.scale(id, *ask.Instances) })
}

func checkScale(n *int) error {
	message := ""
	switch {
	case n == nil:
		message = "is required"
	case *n < 0 || *n > model.MaxInstances:
		message = strconv.Itoa(*n) + " is outside 0 to " + strconv.Itoa(model.MaxInstances)
	default:
		return nil
	}
	return invalid(model.FieldErrors{{Path: "instances", Message: message}})
}

func (s *server) rollbackApp(ctx context.Context, in *appBody) (*changed, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	var ask client.Rollback
	if err := in.read(&ask, true); err != nil {
		return nil, err
	}
	return s.change(ctx, in.Keyed, http.MethodPost, appRoute(id)+"/rollback", func(c *change) (client.Change, error) { return c.rollback(id, ask.Version) })
}
