package api

import (
	"cmp"
	"context"
	"slices"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

type deploymentPath struct {
	ID string `path:"id" maxLength:"100" doc:"Id of the deployment."`
}

func noDeployment(id model.DeploymentID) error {
	return notFound("no deployment %s; those that ended are kept for a while only", id)
}

type deploymentQuery struct {
	App    string `query:"app" doc:"Only those of this app."`
	Active bool   `query:"active" doc:"Only those that have not ended."`
}

func (s *server) listDeployments(_ context.Context, in *deploymentQuery) (*reply[[]model.Deployment], error) {
	v := s.Store.View()
	all := v.Deployments()
	if in.Active {
		all = v.ActiveDeployments()
	}
	app := appFilter(in.App)
	out := []model.Deployment{}
	for d := range all {
		if app == "" || d.App == app {
			out = append(out, *d)
		}
	}
	slices.SortFunc(out, func(a, b model.Deployment) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.Revision, a.Revision), cmp.Compare(a.ID, b.ID))
	})
	return answer(out)
}

// appFilter cleans the id of an app in a query. What is no id stays as it is, and matches nothing.
func appFilter(s string) model.AppID {
	if id, err := model.ParseAppID(s); err == nil {
		return id
	}
	return model.AppID(s)
}

func (s *server) getDeployment(_ context.Context, in *deploymentPath) (*reply[model.Deployment], error) {
	return deploymentReply(s.Store.View(), model.DeploymentID(in.ID))
}

func deploymentReply(v state.View, id model.DeploymentID) (*reply[model.Deployment], error) {
	d := v.Deployment(id)
	if d == nil {
		return nil, noDeployment(id)
	}
	return answer(*d)
}

func (s *server) pauseDeployment(ctx context.Context, in *deploymentPath) (*reply[model.Deployment], error) {
	return s.steer(ctx, in, (*change).pause)
}

func (s *server) resumeDeployment(ctx context.Context, in *deploymentPath) (*reply[model.Deployment], error) {
	return s.steer(ctx, in, (*change).resume)
}

func (s *server) cancelDeployment(ctx context.Context, in *deploymentPath) (*reply[model.Deployment], error) {
	return s.steer(ctx, in, (*change).cancel)
}

func (s *server) steer(ctx context.Context, in *deploymentPath, fn func(*change, model.DeploymentID) error) (*reply[model.Deployment], error) {
	id, fresh := model.DeploymentID(in.ID), model.DeploymentID(s.NewID())
	var out *reply[model.Deployment]
	err := s.update(ctx, func(tx *state.Tx) error {
		if err := fn(&change{tx: tx, now: s.Now(), id: fresh}, id); err != nil {
			return err
		}
		var err error
		out, err = deploymentReply(tx.View, id)
		return err
	})
	return out, err
}
