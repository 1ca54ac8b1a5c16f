package pki

import (
	"testing"

	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// TestRotateAdmin protects that a replaced administrator's token is another one, which all servers that are left come to know, also
// one that joins later, that no server goes back to an old one, and that a copy of the truth does not tell it.
func TestRotateAdmin(t *testing.T) {
	c := newCluster(t)
	token := func(a *Authority) identity.Token {
		t.Helper()
		got, err := a.AdminToken()
		must(t, err)
		return got
	}
	first := token(c.auth)
	backup := *c.db.View().Cluster()
	other := t.TempDir()
	_, err := Join(t.Context(), JoinOptions{Addr: c.addr, Token: c.token(model.ServerMachine, 1), Role: model.ServerMachine, Name: "b",
		Dir: other, Hosts: []string{"127.0.0.1"}, MachineOptions: c.options()})
	must(t, err)
	b, err := OpenAuthority(other)
	must(t, err)
	if token(b) != first {
		t.Error("a server that joined has another token")
	}
	second, err := c.reg.RotateAdmin(t.Context())
	must(t, err)
	if second == first {
		t.Error("the token was not replaced")
	}
	var told []identity.Token
	k := NewKeeper(c.db, b, quiet)
	k.KeepAdmin(func(tok identity.Token) error { told = append(told, tok); return nil })
	_, err = k.Step(t.Context())
	must(t, err)
	if len(told) != 1 || told[0] != second {
		t.Errorf("the other server was told %d tokens", len(told))
	}
	again, err := OpenAuthority(other)
	must(t, err)
	if token(again) != second {
		t.Error("a server that starts again without the others has an old token")
	}
	must(t, b.Update(&backup))
	if token(b) != second {
		t.Error("a server went back to an old token")
	}
	later := t.TempDir()
	_, err = Join(t.Context(), JoinOptions{Addr: c.addr, Token: c.token(model.ServerMachine, 1), Role: model.ServerMachine, Name: "c",
		Dir: later, Hosts: []string{"127.0.0.1"}, MachineOptions: c.options()})
	must(t, err)
	joined, err := OpenAuthority(later)
	must(t, err)
	if token(joined) != second {
		t.Error("a server that joins has an old token")
	}

	if _, err := newCluster(t).auth.adminToken(c.db.View().Cluster()); err == nil {
		t.Error("the token was opened with another seal")
	}

	// A truth restored from a backup of before does not bring the old token back.
	must(t, c.auth.Update(c.db.View().Cluster()))
	must(t, c.db.Update(t.Context(), func(tx *state.Tx) error {
		old := *tx.Cluster()
		old.Admin = nil
		tx.PutCluster(&old)
		return nil
	}))
	must(t, c.reg.Settle(t.Context(), c.self))
	if got := c.db.View().Cluster().Admin.Count(); got != 1 {
		t.Errorf("the restored truth has token %d, want 1", got)
	}
	third, err := c.reg.RotateAdmin(t.Context())
	must(t, err)
	if third == second || third == first || c.db.View().Cluster().Admin.Count() != 2 {
		t.Error("the token was not replaced again")
	}
}
