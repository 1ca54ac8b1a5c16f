package api

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// PoolPath is the pool in the path of a request.
type PoolPath struct {
	Pool string `path:"pool" maxLength:"100" doc:"Name of the pool."`
}

func poolOf(name string) string { return cmp.Or(name, model.DefaultPool) }

// poolNames returns the pools that nodes or records name, with the record of each, which may be one of defaults.
func poolNames(v state.View) map[string]*model.Pool {
	out := map[string]*model.Pool{model.DefaultPool: {Name: model.DefaultPool}}
	for n := range v.Nodes() {
		out[poolOf(n.Pool)] = &model.Pool{Name: poolOf(n.Pool)}
	}
	for p := range v.Pools() {
		out[p.Name] = p
	}
	return out
}

func noPool(name string, names map[string]*model.Pool) error {
	return notFound("no pool %s%s", name, didYouMean(name, slices.Sorted(maps.Keys(names))))
}

// describePools returns all pools, in order of their names.
func describePools(v state.View, now time.Time) []client.PoolDetail {
	pools, sizes := map[string]*client.PoolDetail{}, newSizes(v)
	for name, p := range poolNames(v) {
		pools[name] = &client.PoolDetail{Pool: *p}
	}
	for n := range v.Nodes() {
		if n.State == model.NodeGone {
			continue
		}
		p, d := pools[poolOf(n.Pool)], nodeDetail(n, now, sizes)
		p.Nodes++
		if d.Availability == client.NodeReady {
			p.Ready++
		}
		p.Capacity, p.Used = p.Capacity.Add(d.Capacity), p.Used.Add(d.Used)
	}
	for a := range v.Apps() {
		if t := v.Target(a.ID); t != nil && pools[poolOf(t.Spec.Pool)] != nil {
			pools[poolOf(t.Spec.Pool)].Apps++
		}
	}
	out := []client.PoolDetail{}
	for _, name := range slices.Sorted(maps.Keys(pools)) {
		out = append(out, *pools[name])
	}
	return out
}

func (s *server) listPools(context.Context, *none) (*reply[[]client.PoolDetail], error) {
	return answer(describePools(s.Store.View(), s.Now()))
}

type poolInput struct {
	PoolPath
	body
}

func (s *server) putPool(ctx context.Context, in *poolInput) (*reply[client.PoolDetail], error) {
	var ask model.Pool
	if err := in.record(&ask, func() model.FieldErrors {
		ask.Name = cmp.Or(ask.Name, in.Pool)
		return named(ask.Validate(), "name", ask.Name, in.Pool)
	}); err != nil {
		return nil, err
	}
	err := s.update(ctx, func(tx *state.Tx) error {
		old, next := tx.Pool(ask.Name), ask // the transaction may run again
		if old != nil {
			next.Revision = old.Revision
		}
		if reflect.DeepEqual(old, &next) {
			return nil
		}
		tx.PutPool(&next)
		tx.Emit(model.Event{Type: "pool.changed", Message: fmt.Sprintf("pool %s was set", ask.Name)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	all := describePools(s.Store.View(), s.Now())
	i := slices.IndexFunc(all, func(p client.PoolDetail) bool { return p.Name == ask.Name })
	if i < 0 {
		return nil, conflict("pool %s was deleted meanwhile", ask.Name)
	}
	return answer(all[i])
}

func (s *server) deletePool(ctx context.Context, in *PoolPath) (*reply[accepted], error) {
	err := s.update(ctx, func(tx *state.Tx) error {
		if tx.Pool(in.Pool) == nil {
			names := poolNames(tx.View)
			if names[in.Pool] != nil {
				return notFound("pool %s has the defaults already; it is there as long as nodes name it", in.Pool)
			}
			return noPool(in.Pool, names)
		}
		tx.DeletePool(in.Pool)
		tx.Emit(model.Event{Type: "pool.deleted", Message: fmt.Sprintf("pool %s has the defaults again", in.Pool)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return answer(accepted{})
}
