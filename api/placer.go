package api

import (
	"context"
	"errors"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// Placer answers questions about placement. The scheduler is one. Its errors that have no status of their own count as
// "it cannot be asked now".
type Placer interface {
	// Plan answers whether an app would fit now, and where. Nothing is changed.
	Plan(ctx context.Context, s *model.Spec) (model.Plan, error)
	// Funnel tells how the nodes are narrowed down for one more instance of an app.
	Funnel(ctx context.Context, app model.AppID) (model.Funnel, error)
	// Moves returns the proposals of the defragmenter for a pool, for all pools when it is empty.
	Moves(ctx context.Context, pool string) ([]model.Move, error)
}

// placerTimeout bounds how long a question to the Placer may take.
const placerTimeout = 20 * time.Second

// funnelTimeout is shorter: an app is shown without its funnel rather than late.
const funnelTimeout = 3 * time.Second

// ask calls fn with the Placer.
func ask[T any](ctx context.Context, s *server, limit time.Duration, fn func(context.Context, Placer) (T, error)) (T, error) {
	var zero T
	if s.Placer == nil {
		return zero, unavailable("this server has no scheduler to ask")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v, err := fn(ctx, s.Placer)
	var known huma.StatusError
	switch {
	case err == nil || errors.As(err, &known):
		return v, err
	case errors.Is(err, context.DeadlineExceeded):
		return zero, unavailable("the scheduler did not answer in %v; try again", limit)
	}
	return zero, unavailable("the scheduler cannot be asked now: %v", err)
}

type planInput struct{ body }

// plan checks a spec as a write of it would.
func (s *server) plan(ctx context.Context, in *planInput) (*reply[model.Plan], error) {
	spec, err := in.spec("")
	if err != nil {
		return nil, err
	}
	if err := checkRole(s.Store.View(), spec); err != nil {
		return nil, err
	}
	p, err := ask(ctx, s, placerTimeout, func(ctx context.Context, p Placer) (model.Plan, error) { return p.Plan(ctx, spec) })
	if err != nil {
		return nil, err
	}
	p.Funnel = steps(p.Funnel)
	return answer(p)
}

func (s *server) getFunnel(ctx context.Context, in *AppPath) (*reply[model.Funnel], error) {
	a, err := findApp(s.Store.View(), in)
	if err != nil {
		return nil, err
	}
	f, err := s.funnel(ctx, a.ID, placerTimeout)
	if err != nil {
		return nil, err
	}
	return answer(f)
}

func (s *server) funnel(ctx context.Context, app model.AppID, limit time.Duration) (model.Funnel, error) {
	f, err := ask(ctx, s, limit, func(ctx context.Context, p Placer) (model.Funnel, error) { return p.Funnel(ctx, app) })
	return steps(f), err
}

// steps makes sure that there is a list, which may be empty but not null.
func steps(f model.Funnel) model.Funnel {
	if f.Steps == nil {
		f.Steps = []model.FunnelStep{}
	}
	return f
}

// funnelIfWaiting returns the funnel of an app of which instances wait for a node, and nil when none does or nobody can
// tell.
func (s *server) funnelIfWaiting(ctx context.Context, v state.View, app model.AppID) *model.Funnel {
	waits := false
	for i := range v.InstancesOf(app) {
		waits = waits || i.Live() && i.Node == ""
	}
	if !waits || s.Placer == nil {
		return nil
	}
	f, err := s.funnel(ctx, app, funnelTimeout)
	if err != nil {
		s.Logger.Debug("an app is shown without its funnel", "app", app, "err", err)
		return nil
	}
	return &f
}

type movesQuery struct {
	Pool string `query:"pool" doc:"Only those of this pool."`
}

func (s *server) listMoves(ctx context.Context, in *movesQuery) (*reply[[]model.Move], error) {
	if v := s.Store.View(); in.Pool != "" && v.Pool(in.Pool) == nil {
		if names := poolNames(v); names[in.Pool] == nil {
			return nil, noPool(in.Pool, names)
		}
	}
	list, err := ask(ctx, s, placerTimeout, func(ctx context.Context, p Placer) ([]model.Move, error) { return p.Moves(ctx, in.Pool) })
	if err != nil {
		return nil, err
	}
	return answer(append([]model.Move{}, list...))
}
