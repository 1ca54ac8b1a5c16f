package api

import (
	"context"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
)

// route is one row of the table.
type route struct {
	method, path string
	access       identity.Access
	id           string // operation id
	tag          string
	summary      string
	description  string
	status       int   // of success, 200 when 0
	errors       []int // beside 401, 422 for bad parameters, and 500
	also         extra
	by           reach
	add          func(*server, huma.Operation)
}

// handle makes a row's add of a method: its input and output types are what the document shows.
func handle[I, O any](fn func(*server, context.Context, *I) (*O, error)) func(*server, huma.Operation) {
	return func(s *server, op huma.Operation) {
		huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) { return fn(s, ctx, in) })
	}
}

const (
	notFoundStatus    = http.StatusNotFound
	conflictStatus    = http.StatusConflict
	unavailableStatus = http.StatusServiceUnavailable
	badStatus         = http.StatusBadRequest
)

// errors of operations that take JSON.
var bodyErrors = []int{badStatus, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, conflictStatus, unavailableStatus}

// errors of operations on the cluster of servers.
var clusterErrors = []int{conflictStatus, unavailableStatus}

func and(list []int, more ...int) []int { return append(append([]int(nil), list...), more...) }

// routes is everything that can be asked for.
func routes() []route {
	const get, post, put, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete
	return []route{
		{method: get, path: "/v1/apps", access: identity.Read, id: "list-apps", tag: "apps", add: handle((*server).listApps),
			summary: "List apps"},
		{method: post, path: "/v1/apps", access: identity.Write, id: "create-app", tag: "apps", add: handle((*server).createApp),
			summary: "Create an app", description: "Fails when the app exists.", status: 202, errors: bodyErrors, also: takes[model.Spec]},
		{method: get, path: "/v1/apps/{app}", access: identity.Read, id: "get-app", tag: "apps", add: handle((*server).getApp),
			summary: "Get an app, its spec and its instances", errors: []int{notFoundStatus}},
		{method: put, path: "/v1/apps/{app}", access: identity.Write, id: "put-app", tag: "apps", add: handle((*server).putApp),
			summary: "Create or update an app", description: "Makes the app be as the spec says. A spec that means the same as the deployed one " +
				"changes nothing and is answered with 200. A registry password that is sent as answers show it, ********, is kept.",
			status: 202, errors: and(bodyErrors, http.StatusPreconditionFailed), also: both(takes[model.Spec], unchanged)},
		{method: del, path: "/v1/apps/{app}", access: identity.Write, id: "delete-app", tag: "apps", add: handle((*server).deleteApp),
			summary: "Remove an app", description: "Stops all instances, then forgets the app. Removing it again is answered the same way.",
			status: 202, errors: []int{notFoundStatus, unavailableStatus}},
		{method: post, path: "/v1/apps/{app}/scale", access: identity.Write, id: "scale-app", tag: "apps", add: handle((*server).scaleApp),
			summary: "Set how many instances to keep running", status: 202, errors: and(bodyErrors, notFoundStatus), also: both(takes[client.Scale], unchanged)},
		{method: post, path: "/v1/apps/{app}/restart", access: identity.Write, id: "restart-app", tag: "apps", add: handle((*server).restartApp),
			summary: "Replace every instance by a new one", description: "Follows the app's update policy.",
			status: 202, errors: []int{notFoundStatus, conflictStatus, unavailableStatus}},
		{method: post, path: "/v1/apps/{app}/rollback", access: identity.Write, id: "rollback-app", tag: "apps", add: handle((*server).rollbackApp),
			summary: "Deploy an earlier version again", description: "Makes a new version with the spec of the earlier one. The body may be left out.",
			status: 202, errors: and(bodyErrors, notFoundStatus), also: both(mayTake[client.Rollback], unchanged)},
		{method: get, path: "/v1/apps/{app}/versions", access: identity.Read, id: "list-versions", tag: "apps", add: handle((*server).listVersions),
			summary: "List the kept versions of an app, newest first", errors: []int{notFoundStatus}},

		{method: post, path: "/v1/plan", access: identity.Read, id: "plan", by: leaderAnswer, tag: "placement", add: handle((*server).plan),
			summary: "Say whether an app would fit now, where, and what would be ended for it", description: "Takes the spec that a write would take, and changes nothing.",
			errors: bodyErrors, also: takes[model.Spec]},
		{method: get, path: "/v1/apps/{app}/funnel", access: identity.Read, id: "get-funnel", by: leaderAnswer, tag: "placement", add: handle((*server).getFunnel),
			summary: "Say how the nodes are narrowed down for one more instance of an app", errors: []int{notFoundStatus, unavailableStatus}},
		{method: get, path: "/v1/moves", access: identity.Read, id: "list-moves", by: leaderAnswer, tag: "placement", add: handle((*server).listMoves),
			summary: "List the moves that would leave free room in larger pieces", errors: []int{notFoundStatus, unavailableStatus}},

		{method: get, path: "/v1/roles", access: identity.Read, id: "list-roles", tag: "sharing", add: handle((*server).listRoles),
			summary: "List roles and what is taken in their name", description: "The root comes first, and each role before those below it."},
		{method: get, path: "/v1/roles/{role}", access: identity.Read, id: "get-role", tag: "sharing", add: handle((*server).getRole),
			summary: "Get a role", errors: []int{notFoundStatus}},
		{method: put, path: "/v1/roles/{role}", access: identity.Write, id: "put-role", tag: "sharing", add: handle((*server).putRole),
			summary: "Create or replace a role", description: "Its parent must exist; the root always does. The guarantees of the roles below one add up to at most its own, and " +
				"neither they nor limits go beyond a limit above.", errors: bodyErrors, also: takes[model.Role]},
		{method: del, path: "/v1/roles/{role}", access: identity.Write, id: "delete-role", tag: "sharing", add: handle((*server).deleteRole),
			summary: "Delete a role", description: "Refused while roles below it, apps or reservations need it. Of the root only limits and weights go.",
			errors: []int{notFoundStatus, conflictStatus, unavailableStatus}},
		{method: get, path: "/v1/pools", access: identity.Read, id: "list-pools", tag: "sharing", add: handle((*server).listPools),
			summary: "List pools", description: "A pool is there when a node names it, or a record says how it is used."},
		{method: put, path: "/v1/pools/{pool}", access: identity.Write, id: "put-pool", tag: "sharing", add: handle((*server).putPool),
			summary: "Say how a pool is used", errors: bodyErrors, also: takes[model.Pool]},
		{method: del, path: "/v1/pools/{pool}", access: identity.Write, id: "delete-pool", tag: "sharing", add: handle((*server).deletePool),
			summary: "Give a pool the defaults back", description: "Its nodes stay in it.", errors: []int{notFoundStatus, unavailableStatus}},
		{method: get, path: "/v1/reservations", access: identity.Read, id: "list-reservations", tag: "sharing", add: handle((*server).listReservations),
			summary: "List reservations"},
		{method: put, path: "/v1/reservations/{id}", access: identity.Write, id: "put-reservation", tag: "sharing", add: handle((*server).putReservation),
			summary: "Create or replace a reservation", description: "Keeps a part of a node for a role and the roles below it. The node may be named by its name.",
			errors: bodyErrors, also: takes[model.Reservation]},
		{method: del, path: "/v1/reservations/{id}", access: identity.Write, id: "delete-reservation", tag: "sharing", add: handle((*server).deleteReservation),
			summary: "Delete a reservation", errors: []int{notFoundStatus, unavailableStatus}},
		{method: get, path: "/v1/volumes", access: identity.Read, id: "list-volumes", tag: "sharing", add: handle((*server).listVolumes),
			summary: "List persistent volumes", errors: []int{notFoundStatus, conflictStatus}},
		{method: del, path: "/v1/volumes/{id}", access: identity.Write, id: "delete-volume", tag: "sharing", add: handle((*server).deleteVolume),
			summary: "Delete a persistent volume and its data", description: "Refused while an instance has it. The volume is marked, and goes once its node has deleted the data.",
			errors: []int{notFoundStatus, conflictStatus, unavailableStatus}},

		{method: get, path: "/v1/instances", access: identity.Read, id: "list-instances", tag: "instances", add: handle((*server).listInstances),
			summary: "List instances, newest first", errors: []int{notFoundStatus}},
		{method: get, path: "/v1/instances/{id}", access: identity.Read, id: "get-instance", tag: "instances", add: handle((*server).getInstance),
			summary: "Get an instance", errors: []int{notFoundStatus}},
		{method: get, path: "/v1/instances/{id}/logs", access: identity.Read, id: "read-logs", by: leaderStream, tag: "instances", add: handle((*server).readLogs),
			summary: "Read the output of a container", description: "A stream of text, sent as the container writes it. Instances that are over are kept with their logs for a while.",
			errors: []int{notFoundStatus, conflictStatus, unavailableStatus}, also: sends("text/plain", "The output, as bytes.")},
		{method: get, path: "/v1/instances/{id}/exec", access: identity.Write, id: "exec", by: leaderStream, tag: "instances", add: handle((*server).exec),
			summary: "Run a program beside a container", description: execDescription, status: http.StatusSwitchingProtocols,
			errors: []int{badStatus, notFoundStatus, conflictStatus, unavailableStatus}},

		{method: get, path: "/v1/deployments", access: identity.Read, id: "list-deployments", tag: "deployments", add: handle((*server).listDeployments),
			summary: "List deployments, newest first"},
		{method: get, path: "/v1/deployments/{id}", access: identity.Read, id: "get-deployment", tag: "deployments", add: handle((*server).getDeployment),
			summary: "Get a deployment", errors: []int{notFoundStatus}},
		{method: post, path: "/v1/deployments/{id}/pause", access: identity.Write, id: "pause-deployment", tag: "deployments", add: handle((*server).pauseDeployment),
			summary: "Let a deployment take no further step", errors: []int{notFoundStatus, conflictStatus, unavailableStatus}},
		{method: post, path: "/v1/deployments/{id}/resume", access: identity.Write, id: "resume-deployment", tag: "deployments", add: handle((*server).resumeDeployment),
			summary: "Let a paused deployment go on", errors: []int{notFoundStatus, conflictStatus, unavailableStatus}},
		{method: post, path: "/v1/deployments/{id}/cancel", access: identity.Write, id: "cancel-deployment", tag: "deployments", add: handle((*server).cancelDeployment),
			summary: "End a deployment and go back", description: "Starts another deployment, to the last version that was healthy as a whole. It is the app's newest one then.",
			errors: []int{notFoundStatus, conflictStatus, unavailableStatus}},

		{method: get, path: "/v1/nodes", access: identity.Read, id: "list-nodes", tag: "nodes", add: handle((*server).listNodes),
			summary: "List nodes and what is taken of them"},
		{method: get, path: "/v1/nodes/{id}", access: identity.Read, id: "get-node", tag: "nodes", add: handle((*server).getNode),
			summary: "Get a node", errors: []int{notFoundStatus}},
		{method: del, path: "/v1/nodes/{id}", access: identity.Write, id: "remove-node", tag: "nodes", add: handle((*server).removeNode),
			summary: "Take a node out of the cluster", description: "Refused while instances run on it. With force, what a node that does not answer may still run " +
				"is given up: say so of a machine that is dead. Its persistent volumes stay on record until they are deleted.",
			errors: []int{notFoundStatus, conflictStatus, unavailableStatus}},
		{method: put, path: "/v1/nodes/{id}/settings", access: identity.Write, id: "put-node-settings", tag: "nodes", add: handle((*server).putSettings),
			summary: "Replace what operators want of a node", errors: and(bodyErrors, notFoundStatus), also: takes[model.NodeSettings]},
		{method: post, path: "/v1/nodes/{id}/cordon", access: identity.Write, id: "cordon-node", tag: "nodes", add: handle((*server).cordonNode),
			summary: "Let a node take no new work", description: "The body may be left out.", errors: and(bodyErrors, notFoundStatus), also: mayTake[client.Because]},
		{method: post, path: "/v1/nodes/{id}/uncordon", access: identity.Write, id: "uncordon-node", tag: "nodes", add: handle((*server).uncordonNode),
			summary: "Let a node take work again", description: "Ends a drain, too. Maintenance windows stay.", errors: []int{notFoundStatus, conflictStatus, unavailableStatus}},
		{method: post, path: "/v1/nodes/{id}/drain", access: identity.Write, id: "drain-node", tag: "nodes", add: handle((*server).drainNode),
			summary: "Move the instances of a node away, and let it take no new work", description: "Instances move as the update policies of their apps allow, until the deadline if there is one. The body may be left out.",
			errors: and(bodyErrors, notFoundStatus), also: mayTake[client.Drain]},
		{method: get, path: "/v1/usage", access: identity.Read, id: "get-usage", by: leaderAnswer, tag: "nodes", add: handle((*server).getUsage),
			summary: "What nodes and instances use now", description: "At most a few seconds old. Nodes that do not answer are left out.", errors: []int{unavailableStatus}},
		{method: get, path: "/v1/images", access: identity.Read, id: "list-images", by: leaderAnswer, tag: "nodes", add: handle((*server).listImages),
			summary: "List the images on a node", errors: []int{notFoundStatus, conflictStatus, unavailableStatus}},
		{method: post, path: "/v1/images", access: identity.Admin, id: "import-images", by: leaderStream, tag: "nodes", add: handle((*server).importImages),
			summary: "Load images into a node", description: "The body is an OCI or Docker archive of at most 16 GiB, which is passed on as it comes.",
			errors: []int{badStatus, notFoundStatus, conflictStatus, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, unavailableStatus}, also: takesArchive},

		{method: get, path: "/v1/events", access: identity.Read, id: "list-events", tag: "server", add: handle((*server).events),
			summary: "Read or follow events", description: "Answers the kept events, oldest first. With follow, or when text/event-stream is accepted, it goes on as server-sent " +
				"events: the id is the event's seq, the event its type, the data the event as JSON.", also: answersEvents},
		{method: get, path: "/v1/info", access: identity.Read, id: "get-info", tag: "server", add: handle((*server).getInfo),
			summary: "Describe the server"},
		{method: post, path: "/v1/cluster/resume-replacement", access: identity.Write, id: "resume-replacement", tag: "server", add: handle((*server).resumeReplacement),
			summary: "Replace instances on lost nodes though many nodes are lost", description: "Ends the pause that Gantry makes by itself when many nodes are lost at once.",
			errors: []int{conflictStatus, unavailableStatus}},
		{method: get, path: "/v1/cluster", access: identity.Read, id: "get-cluster", tag: "cluster", add: handle((*server).getCluster),
			summary: "Describe the servers", description: "As the server that answers sees them; it asks each for a sign of life.", errors: clusterErrors},
		{method: post, path: "/v1/cluster/servers/{name}/promote", access: identity.Admin, id: "promote-server", tag: "cluster", add: handle((*server).promoteServer),
			summary: "Give a server its vote", description: "A server that joins does that for itself once it has caught up.", errors: and(clusterErrors, notFoundStatus)},
		{method: del, path: "/v1/cluster/servers/{name}", access: identity.Admin, id: "remove-server", by: leaderAnswer, tag: "cluster", add: handle((*server).removeServer),
			summary: "Take a server out of the cluster", description: "Refused when those that would be left could not go on. Its certificates are revoked. " +
				"When it is the leader, leadership is handed over first, and this answers 503 once: ask again.", errors: and(clusterErrors, notFoundStatus)},
		{method: post, path: "/v1/cluster/rotate-ca", access: identity.Admin, id: "rotate-ca", tag: "cluster", add: handle((*server).rotateCA),
			summary: "Replace the cluster's authority", description: "Answers when the rotation has begun; GET /v1/cluster tells how it goes. No machine is cut off.", errors: clusterErrors},
		{method: post, path: "/v1/cluster/rotate-admin", access: identity.Admin, id: "rotate-admin", tag: "cluster", add: handle((*server).rotateAdmin),
			summary: "Replace the administrator's token", description: "The new one is in this answer and in the file admin.token of each server. All servers refuse the old one within seconds, " +
				"and end the streams that were opened with it.", errors: clusterErrors},
		{method: get, path: "/v1/tokens", access: identity.Admin, id: "list-tokens", tag: "cluster", add: handle((*server).listTokens),
			summary: "List join tokens, without their secrets", errors: []int{conflictStatus}},
		{method: post, path: "/v1/tokens", access: identity.Admin, id: "create-token", tag: "cluster", add: handle((*server).createToken),
			summary: "Make a token for machines to join with", description: "Its text is in this answer and nowhere else.", errors: bodyErrors, also: takes[client.NewToken]},
		{method: del, path: "/v1/tokens/{id}", access: identity.Admin, id: "delete-token", tag: "cluster", add: handle((*server).deleteToken),
			summary: "Make a join token useless", description: "Machines that joined with it stay.", errors: and(clusterErrors, notFoundStatus)},
		{method: get, path: "/v1/backup", access: identity.Admin, id: "backup", tag: "cluster", add: handle((*server).backup),
			summary: "Take a backup of all that is stored", description: "A line of JSON with the size and SHA-256 of what follows it: the store's snapshot, which was checked before. " +
				"An answer that ends early is cut off. Secrets of the cluster are in it. With fresh=true it has all that was acknowledged before.",
			errors: clusterErrors, also: sends("application/octet-stream", "The backup.")},
		{method: post, path: "/v1/shutdown", access: identity.Admin, id: "shutdown", tag: "server", add: handle((*server).shutdown),
			summary: "End the server", description: "Answers before the server ends. The body may be left out.", status: 202,
			errors: []int{badStatus, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType}, also: mayTake[client.Shutdown]},
		{method: get, path: "/v1/openapi.json", access: identity.Public, id: "get-openapi", tag: "server", add: handle((*server).getOpenAPI),
			summary: "This document", also: sends("application/json", "An OpenAPI 3.1 document.")},
		{method: get, path: "/healthz", access: identity.Public, id: "health", tag: "server", add: handle((*server).healthz),
			summary: "Whether the server answers", also: sends("text/plain", "ok")},
		{method: get, path: "/metrics", access: identity.Read, id: "metrics", tag: "server", add: handle((*server).metrics),
			summary: "Metrics for Prometheus", also: sends("text/plain", "Metrics in the text form of Prometheus.")},
	}
}

// register puts the row into service and into the document.
func (r route) register(s *server) {
	op := huma.Operation{
		Method: r.method, Path: r.path, OperationID: r.id, Tags: []string{r.tag}, Summary: r.summary, Description: r.description,
		DefaultStatus: r.status, Errors: r.errors,
		Middlewares: huma.Middlewares{s.guard(r.access), s.passOn(r.by)},
		Extensions:  map[string]any{"x-gantry-access": r.access.String()},
	}
	op.Errors = and(op.Errors, http.StatusInternalServerError)
	if r.access != identity.Public {
		op.Security = []map[string][]string{{"token": {}}}
		op.Errors = and(op.Errors, http.StatusUnauthorized, http.StatusForbidden, http.StatusUnprocessableEntity)
	}
	reads := r.method == http.MethodGet && r.access != identity.Public
	if reads {
		op.Middlewares = append(op.Middlewares, s.fresh)
		op.Errors = and(op.Errors, unavailableStatus)
	}
	r.add(s, op)
	item := s.api.OpenAPI().Paths[r.path]
	doc := map[string]*huma.Operation{
		http.MethodGet: item.Get, http.MethodPut: item.Put, http.MethodPost: item.Post, http.MethodDelete: item.Delete,
	}[r.method]
	if r.also != nil {
		r.also(s.api.OpenAPI().Components.Schemas, doc)
	}
	if reads {
		describeFresh(doc)
	}
}

// extra completes an operation's entry in the document with what its Go types do not say.
type extra func(huma.Registry, *huma.Operation)

func both(a, b extra) extra {
	return func(r huma.Registry, op *huma.Operation) { a(r, op); b(r, op) }
}

// takes describes a body of JSON. Input types have none, since handlers decode by themselves.
func takes[T any](r huma.Registry, op *huma.Operation) {
	op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
		"application/json": {Schema: r.Schema(reflect.TypeFor[T](), true, "")},
	}}
}

func mayTake[T any](r huma.Registry, op *huma.Operation) {
	takes[T](r, op)
	op.RequestBody.Required = false
}

func takesArchive(_ huma.Registry, op *huma.Operation) {
	op.RequestBody = &huma.RequestBody{Required: true, Description: "An OCI or Docker archive.", Content: map[string]*huma.MediaType{
		archiveType: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
	}}
}

// unchanged describes the answer to a write that found everything as asked.
func unchanged(_ huma.Registry, op *huma.Operation) {
	op.Responses["200"] = &huma.Response{Description: "The app was as asked already.", Content: op.Responses["202"].Content}
}

func sends(contentType, description string) extra {
	return func(_ huma.Registry, op *huma.Operation) {
		op.Responses["200"].Description = description
		op.Responses["200"].Content = map[string]*huma.MediaType{contentType: {Schema: &huma.Schema{Type: huma.TypeString}}}
	}
}

// answersEvents describes both forms in which events come.
func answersEvents(r huma.Registry, op *huma.Operation) {
	op.Responses["200"].Description = "Events."
	op.Responses["200"].Content = map[string]*huma.MediaType{
		"application/json":  {Schema: r.Schema(reflect.TypeFor[[]model.Event](), true, "")},
		"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}},
	}
}
