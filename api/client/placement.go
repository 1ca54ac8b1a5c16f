package client

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/gantry-os/gantry/model"
)

// RoleDetail is a role with what is taken in its name.
type RoleDetail struct {
	model.Role
	Used      Amounts `json:"used" doc:"What placed instances of it and of the roles below it take."`
	Share     float64 `json:"share" doc:"Its dominant share: of the resource that it has most of, the part of the cluster that it takes, from 0 to 1."`
	Dominant  string  `json:"dominant,omitempty" doc:"The resource of its dominant share."`
	Instances int     `json:"instances" doc:"Placed instances of it and of the roles below it."`
	Apps      int     `json:"apps" doc:"Apps that name it, without those of the roles below it."`
}

// Amounts are amounts of resources, custom ones included.
type Amounts struct {
	model.Resources
	Custom map[string]model.Units `json:"custom,omitempty" doc:"Custom resources, by name."`
}

// PoolDetail is a pool with what its nodes have. A pool is there when a node or a record of its own names it.
type PoolDetail struct {
	model.Pool
	Nodes    int             `json:"nodes" doc:"Nodes in it that are not gone."`
	Ready    int             `json:"ready" doc:"Nodes in it that take new work now."`
	Capacity model.Resources `json:"capacity" doc:"What its nodes have in all."`
	Used     model.Resources `json:"used" doc:"Reserved by instances that are not over, and by persistent volumes."`
	Apps     int             `json:"apps" doc:"Apps that run on it."`
}

// ReservationDetail is a reservation with the name of its node.
type ReservationDetail struct {
	model.Reservation
	NodeName string `json:"nodeName,omitempty" doc:"Host name of its node."`
}

// VolumeDetail is a persistent volume with what uses it.
type VolumeDetail struct {
	model.PersistentVolume
	NodeName string           `json:"nodeName,omitempty" doc:"Host name of its node."`
	Instance model.InstanceID `json:"instance,omitempty" doc:"The instance that uses it."`
}

// Because is the body of requests that take a reason.
type Because struct {
	Why string `json:"why,omitempty" doc:"Why, for other operators to read."`
}

// Drain says how a node is drained.
type Drain struct {
	Why      string         `json:"why,omitempty" doc:"Why, for other operators to read."`
	Deadline model.Duration `json:"deadline,omitempty" doc:"How long from now the update policies of apps are kept. Past it what is left stops, instances with persistent volumes last. Default: there is no end."`
}

// RemovedNode is what was given up with a node.
type RemovedNode struct {
	ID        model.NodeID       `json:"id" doc:"Id of the node."`
	Name      string             `json:"name" doc:"Its host name."`
	Instances []model.InstanceID `json:"instances" doc:"Instances that were given up: they are replaced."`
	Volumes   []model.VolumeID   `json:"volumes" doc:"Its persistent volumes. Their slots wait for it until the volumes are deleted."`
}

// Availabilities of a node.
const (
	NodeReady       = "ready"
	NodeCordoned    = "cordoned"    // it takes no new work
	NodeDraining    = "draining"    // and its instances are moved away
	NodeMaintenance = "maintenance" // it is within a window
	NodeUnstable    = "unstable"    // it came and went too often
	NodeUnreachable = "unreachable"
	NodeGone        = "gone"
)

// Plan answers whether an app would fit now, where, and what would be ended for it. Nothing is changed.
func (c *Client) Plan(ctx context.Context, spec *model.Spec) (model.Plan, error) {
	return write[model.Plan](ctx, c, http.MethodPost, "/v1/plan", spec, nil)
}

// Funnel tells how the nodes are narrowed down to those that can take one more instance of an app.
func (c *Client) Funnel(ctx context.Context, app model.AppID) (model.Funnel, error) {
	return get[model.Funnel](ctx, c, appPath(app)+"/funnel", nil)
}

// Moves returns what the defragmenter proposes for a pool; for all when pool is empty.
func (c *Client) Moves(ctx context.Context, pool string) ([]model.Move, error) {
	q := url.Values{}
	set(q, "pool", pool)
	return get[[]model.Move](ctx, c, "/v1/moves", q)
}

// Roles returns all roles, the root first, and each before those below it.
func (c *Client) Roles(ctx context.Context) ([]RoleDetail, error) {
	return get[[]RoleDetail](ctx, c, "/v1/roles", nil)
}

// Role returns one role.
func (c *Client) Role(ctx context.Context, id model.RoleID) (RoleDetail, error) {
	return get[RoleDetail](ctx, c, rolePath(id), nil)
}

// PutRole creates or replaces a role.
func (c *Client) PutRole(ctx context.Context, r *model.Role) (RoleDetail, error) {
	return write[RoleDetail](ctx, c, http.MethodPut, rolePath(r.ID), r, nil)
}

// DeleteRole deletes a role. It fails with status 409 while roles, apps or reservations need it.
func (c *Client) DeleteRole(ctx context.Context, id model.RoleID) error {
	return remove(ctx, c, rolePath(id))
}

// Pools returns all pools.
func (c *Client) Pools(ctx context.Context) ([]PoolDetail, error) {
	return get[[]PoolDetail](ctx, c, "/v1/pools", nil)
}

// PutPool says how a pool is used.
func (c *Client) PutPool(ctx context.Context, p *model.Pool) (PoolDetail, error) {
	return write[PoolDetail](ctx, c, http.MethodPut, "/v1/pools/"+url.PathEscape(p.Name), p, nil)
}

// DeletePool gives a pool the defaults back. Its nodes stay in it.
func (c *Client) DeletePool(ctx context.Context, name string) error {
	return remove(ctx, c, "/v1/pools/"+url.PathEscape(name))
}

// Reservations returns all reservations.
func (c *Client) Reservations(ctx context.Context) ([]ReservationDetail, error) {
	return get[[]ReservationDetail](ctx, c, "/v1/reservations", nil)
}

// PutReservation creates or replaces a reservation.
func (c *Client) PutReservation(ctx context.Context, r *model.Reservation) (ReservationDetail, error) {
	return write[ReservationDetail](ctx, c, http.MethodPut, "/v1/reservations/"+url.PathEscape(r.ID), r, nil)
}

// DeleteReservation gives what was reserved back to all.
func (c *Client) DeleteReservation(ctx context.Context, id string) error {
	return remove(ctx, c, "/v1/reservations/"+url.PathEscape(id))
}

// VolumeFilter chooses persistent volumes. The zero value means all.
type VolumeFilter struct {
	App  model.AppID
	Node model.NodeID // id or name
}

// Volumes returns persistent volumes.
func (c *Client) Volumes(ctx context.Context, f VolumeFilter) ([]VolumeDetail, error) {
	q := url.Values{}
	set(q, "app", string(f.App))
	set(q, "node", string(f.Node))
	return get[[]VolumeDetail](ctx, c, "/v1/volumes", q)
}

// DeleteVolume deletes a persistent volume with its data. It fails with status 409 while an instance uses it.
func (c *Client) DeleteVolume(ctx context.Context, id model.VolumeID) (VolumeDetail, error) {
	return write[VolumeDetail](ctx, c, http.MethodDelete, "/v1/volumes/"+url.PathEscape(strings.TrimPrefix(string(id), "/")), nil, nil)
}

// PutNodeSettings replaces what operators want of a node. The node may be named by its id or its name.
func (c *Client) PutNodeSettings(ctx context.Context, node model.NodeID, s *model.NodeSettings) (NodeDetail, error) {
	return write[NodeDetail](ctx, c, http.MethodPut, nodePath(node)+"/settings", s, nil)
}

// CordonNode lets a node take no new work.
func (c *Client) CordonNode(ctx context.Context, node model.NodeID, why string) (NodeDetail, error) {
	return write[NodeDetail](ctx, c, http.MethodPost, nodePath(node)+"/cordon", Because{why}, nil)
}

// UncordonNode lets a node take work again, whether it was cordoned or drained.
func (c *Client) UncordonNode(ctx context.Context, node model.NodeID) (NodeDetail, error) {
	return write[NodeDetail](ctx, c, http.MethodPost, nodePath(node)+"/uncordon", nil, nil)
}

// DrainNode lets a node take no new work, and moves its instances away.
func (c *Client) DrainNode(ctx context.Context, node model.NodeID, d Drain) (NodeDetail, error) {
	return write[NodeDetail](ctx, c, http.MethodPost, nodePath(node)+"/drain", d, nil)
}

// RemoveNode takes a node out of the cluster. It fails with status 409 while instances run on it, unless force is set and it
// does not answer: then they are given up.
func (c *Client) RemoveNode(ctx context.Context, node model.NodeID, force bool) (RemovedNode, error) {
	path := nodePath(node)
	if force {
		path += "?force=true"
	}
	return write[RemovedNode](ctx, c, http.MethodDelete, path, nil, nil)
}

// ResumeReplacement lets instances on lost nodes be replaced though many nodes are lost. It fails with status 409 when they
// are anyway.
func (c *Client) ResumeReplacement(ctx context.Context) (Info, error) {
	return write[Info](ctx, c, http.MethodPost, "/v1/cluster/resume-replacement", nil, nil)
}

// rolePath writes the root as -, and other roles as apps are written: without the slash at their beginning.
func rolePath(id model.RoleID) string {
	name := strings.TrimPrefix(string(id), "/")
	if name == "" {
		name = "-"
	}
	return "/v1/roles/" + url.PathEscape(name)
}

func nodePath(id model.NodeID) string { return "/v1/nodes/" + url.PathEscape(string(id)) }

func remove(ctx context.Context, c *Client, path string) error {
	_, err := write[struct{}](ctx, c, http.MethodDelete, path, nil, nil)
	return err
}
