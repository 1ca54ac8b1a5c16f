package client

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/gantry-os/gantry/model"
)

// Cluster is a cluster of servers, as the server that answers sees it.
type Cluster struct {
	ID       string          `json:"id" doc:"Id of the cluster, which the certificates of its machines name."`
	Leader   string          `json:"leader,omitempty" doc:"Name of the server that leads; none while no majority agrees on one."`
	Why      string          `json:"why,omitempty" doc:"What is wrong with the servers, in a sentence."`
	Servers  []ClusterServer `json:"servers" doc:"The servers, by name."`
	External bool            `json:"external,omitempty" doc:"The truth is kept by an etcd that others run."`
	Etcd     []EtcdMember    `json:"etcd,omitempty" doc:"The members of that etcd."`
	Revision uint64          `json:"revision" doc:"Newest change that this server knows."`
	Lag      model.Duration  `json:"lag" doc:"How old what this server answers may be."`
	Size     model.Bytes     `json:"size" doc:"Size of this server's database file, or of the largest of an external etcd."`
	Used     model.Bytes     `json:"used" doc:"What of it holds anything."`
	Quota    model.Bytes     `json:"quota" doc:"Size at which changes are refused; zero where an external etcd does not tell."`
	Alarms   []string        `json:"alarms" doc:"Alarms of the store."`
	Nodes    NodeCounts      `json:"nodes" doc:"How many nodes there are."`
	Stored   model.Release   `json:"stored,omitzero" doc:"Version of Gantry whose records are written: the lowest of all servers, raised once all are upgraded."`
	Upgrade  string          `json:"upgrade,omitempty" doc:"What an upgrade that is under way waits for."`
	Rotation Rotation        `json:"rotation" doc:"How a rotation of the cluster's authority goes."`
}

// ClusterServer is one server of a cluster.
type ClusterServer struct {
	Name    string `json:"name" doc:"Name; the id of its member while it has not started yet."`
	Addr    string `json:"addr,omitempty" doc:"host:port of its API."`
	Peer    string `json:"peer,omitempty" doc:"host:port at which the other servers reach it."`
	Leader  bool   `json:"leader" doc:"It runs the loops that decide."`
	Learner bool   `json:"learner" doc:"It is told everything, and has no vote yet."`
	Answers bool   `json:"answers" doc:"It answers the server that was asked."`
	Self    bool   `json:"self" doc:"It is the server that was asked."`
	Version string `json:"version,omitempty" doc:"Version of its program when it last started."`

	Release model.Release `json:"release,omitzero" doc:"Minor version that this is of."`
}

// EtcdMember is a member of an etcd that others run.
type EtcdMember struct {
	Name    string `json:"name" doc:"Name; its address while the etcd does not say who its members are."`
	Addr    string `json:"addr" doc:"host:port for clients."`
	Leader  bool   `json:"leader" doc:"It leads the others."`
	Learner bool   `json:"learner" doc:"It has no vote."`
	Answers bool   `json:"answers" doc:"It answers the server that was asked."`
}

// NodeCounts says how many nodes there are.
type NodeCounts struct {
	Ready       int `json:"ready" doc:"Nodes that answer."`
	Unreachable int `json:"unreachable" doc:"Nodes that do not."`
}

// Rotation says how a rotation of the cluster's authority goes.
type Rotation struct {
	Phase    string            `json:"phase" enum:"steady,spreading,issuing" doc:"Spreading: machines come to trust a new root. Issuing: they get certificates of it. Then the old root goes."`
	Since    time.Time         `json:"since,omitzero" doc:"When that began."`
	Machines int               `json:"machines" doc:"Machines that count."`
	Waits    []model.MachineID `json:"waits" doc:"Those of them that are waited for."`
	Why      string            `json:"why" doc:"The same in a sentence."`
}

// NewToken asks for a join token.
type NewToken struct {
	Role model.MachineRole `json:"role" enum:"server,agent" doc:"What may join with it."`
	TTL  model.Duration    `json:"ttl,omitempty" doc:"How long it can be used. Default: 1h."`
	Uses *int              `json:"uses,omitempty" minimum:"0" doc:"How many machines may join with it, 0 for any number. Default: 1."`
}

// JoinToken is a join token without its secret.
type JoinToken struct {
	ID      string            `json:"id" doc:"Id, which is part of the token's text."`
	Role    model.MachineRole `json:"role" enum:"server,agent" doc:"What may join with it."`
	State   string            `json:"state" enum:"good,expired,used up" doc:"Whether it can still be used."`
	Created time.Time         `json:"created" doc:"When it was made."`
	Expires time.Time         `json:"expires" doc:"Until when it can be used."`
	Uses    int               `json:"uses" doc:"How many machines may join with it, 0 for any number."`
	Used    int               `json:"used" doc:"How many did."`
	By      string            `json:"by,omitempty" doc:"Who made it."`
}

// CreatedToken is a join token at its making: its text is not shown again.
type CreatedToken struct {
	JoinToken
	Token   string   `json:"token" doc:"Its text."`
	Servers []string `json:"servers" doc:"host:port of the servers that can be joined."`
}

// AdminToken is the administrator's token at its making.
type AdminToken struct {
	Token string `json:"token" doc:"Its text."`
}

// RemovedServer is the answer to the removal of a server.
type RemovedServer struct {
	Name string `json:"name" doc:"Name of the server."`
}

// Backup says what a backup holds.
type Backup struct {
	Created  time.Time `json:"created"`
	Revision int64     `json:"revision"` // newest change in it
	Keys     int       `json:"keys"`     // records
	Size     int64     `json:"size"`     // bytes of the snapshot, which follows the line that says so
	SHA256   string    `json:"sha256"`   // of the snapshot
}

// Cluster describes the servers.
func (c *Client) Cluster(ctx context.Context) (Cluster, error) {
	return get[Cluster](ctx, c, "/v1/cluster", nil)
}

// Tokens returns the join tokens.
func (c *Client) Tokens(ctx context.Context) ([]JoinToken, error) {
	return get[[]JoinToken](ctx, c, "/v1/tokens", nil)
}

// CreateToken makes a join token.
func (c *Client) CreateToken(ctx context.Context, ask NewToken) (CreatedToken, error) {
	return write[CreatedToken](ctx, c, http.MethodPost, "/v1/tokens", ask, nil)
}

// DeleteToken makes a join token useless.
func (c *Client) DeleteToken(ctx context.Context, id string) error {
	return remove(ctx, c, "/v1/tokens/"+url.PathEscape(id))
}

// PromoteServer gives a server its vote.
func (c *Client) PromoteServer(ctx context.Context, name string) (Cluster, error) {
	return write[Cluster](ctx, c, http.MethodPost, serverPath(name)+"/promote", nil, nil)
}

// RemoveServer takes a server out of the cluster, and refuses it from then on. It fails with status 409 when those that
// would be left could not go on.
func (c *Client) RemoveServer(ctx context.Context, name string) (RemovedServer, error) {
	return write[RemovedServer](ctx, c, http.MethodDelete, serverPath(name), nil, nil)
}

// RotateCA begins a rotation of the cluster's authority. It fails with status 409 while one goes on.
func (c *Client) RotateCA(ctx context.Context) (Rotation, error) {
	return write[Rotation](ctx, c, http.MethodPost, "/v1/cluster/rotate-ca", nil, nil)
}

// RotateAdmin replaces the administrator's token. c goes on with the old one, which is refused soon.
func (c *Client) RotateAdmin(ctx context.Context) (AdminToken, error) {
	return write[AdminToken](ctx, c, http.MethodPost, "/v1/cluster/rotate-admin", nil, nil)
}

func serverPath(name string) string { return "/v1/cluster/servers/" + url.PathEscape(name) }

// ErrBackup says that what came is no whole backup.
var ErrBackup = errors.New("the backup is not whole")

// maxBackupHeader bounds the line that a backup begins with.
const maxBackupHeader = 4096

// Backup writes a backup of all that is stored to w, and checks it on the way; on an error what was written is of no use. Unless
// stale is set it has all that was acknowledged before. A stale one can be had of a server that reaches no majority.
func (c *Client) Backup(ctx context.Context, w io.Writer, stale bool) (Backup, error) {
	q := url.Values{}
	setBool(q, "fresh", !stale)
	var b Backup
	req, err := c.request(ctx, http.MethodGet, "/v1/backup", q, nil)
	if err != nil {
		return b, err
	}
	resp, err := c.send(req)
	if err != nil {
		return b, err
	}
	defer resp.Body.Close()
	in := bufio.NewReaderSize(resp.Body, maxBackupHeader)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return b, fmt.Errorf("%w: it ended at its beginning: %w", ErrBackup, err)
	}
	if err := json.Unmarshal(line, &b); err != nil || b.SHA256 == "" {
		return b, fmt.Errorf("%w: it does not begin as a backup does", ErrBackup)
	}
	if _, err := w.Write(line); err != nil {
		return b, fmt.Errorf("write backup: %w", err)
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), in)
	switch {
	case err != nil && ctx.Err() == nil:
		return b, fmt.Errorf("%w: after %d of %d bytes: %w", ErrBackup, n, b.Size, err)
	case err != nil:
		return b, context.Cause(ctx)
	case n != b.Size || hex.EncodeToString(sum.Sum(nil)) != b.SHA256:
		return b, fmt.Errorf("%w: it has %d bytes that differ from the %d that were sent", ErrBackup, n, b.Size)
	}
	return b, nil
}
