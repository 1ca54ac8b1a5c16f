package daemon

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantry-os/gantry/api"
	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/identity/pki"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state/etcd"
)

// What a store writes as its backup is what a client takes for one, and what it can be restored from; what cannot be done
// to the only server is refused with a status that says so.
func TestOps(t *testing.T) {
	ctx, quiet := t.Context(), slog.New(slog.DiscardHandler)
	store, err := etcd.Open(ctx, etcd.Config{Dir: filepath.Join(t.TempDir(), "etcd"), Name: "a", Ephemeral: true, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	auth, own, err := pki.Found(t.TempDir(), "a", []string{"127.0.0.1"}, pki.MachineOptions{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	registrar := pki.NewRegistrar(pki.RegistrarConfig{Store: store, Authority: auth})
	if err := registrar.Settle(ctx, own); err != nil {
		t.Fatal(err)
	}
	servers := newOps(store, registrar, auth, "a", func() []string { return []string{"127.0.0.1:7070"} }, nil)
	h, err := api.New(api.Config{Store: store, Auth: identity.WithoutToken(), Servers: servers, Revoke: pki.RevokeIn, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	c := client.New(srv.URL, "")

	got, err := c.Cluster(ctx)
	if err != nil || got.ID != auth.Cluster().ID || len(got.Servers) != 1 || !got.Servers[0].Self || got.Rotation.Phase != "steady" || got.Quota == 0 {
		t.Errorf("%+v, %v", got, err)
	}
	token, err := c.CreateToken(ctx, client.NewToken{Role: model.AgentMachine, TTL: model.Duration(time.Minute)})
	if err != nil || token.ID == "" || token.Servers[0] != "127.0.0.1:7070" {
		t.Errorf("%+v, %v", token, err)
	}
	var file bytes.Buffer
	b, err := c.Backup(ctx, &file, false)
	if err != nil || b.Revision == 0 || b.Size == 0 {
		t.Fatalf("%+v, %v", b, err)
	}
	if _, err := etcd.Restore(filepath.Join(t.TempDir(), "restored"), bytes.NewReader(file.Bytes()[:file.Len()/2]), etcd.NewCluster{Name: "a"}); !errors.Is(err, etcd.ErrBackup) {
		t.Errorf("half a backup: %v", err)
	}
	for what, err := range map[string]error{
		"409 votes already":                second(c.PromoteServer(ctx, "a")),
		"404 no server x":                  second(c.RemoveServer(ctx, "x")),
		"409 no other server that votes":   second(c.RemoveServer(ctx, "a")),
		"404 no token x":                   c.DeleteToken(ctx, "x"),
		"422 ttl 1000h0m0s is outside 1s ": second(c.CreateToken(ctx, client.NewToken{Role: model.AgentMachine, TTL: model.Duration(1000 * time.Hour)})),
	} {
		var refused *client.Error
		status, words, _ := strings.Cut(what, " ")
		if !errors.As(err, &refused) || status != strconv.Itoa(refused.Status) || !strings.Contains(err.Error(), words) {
			t.Errorf("%v, want %s", err, what)
		}
	}
}

func second[T any](_ T, err error) error { return err }
