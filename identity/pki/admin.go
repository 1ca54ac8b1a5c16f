package pki

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// The administrator's token is the same at all servers, and each keeps it in a file for the CLI of its machine. At first it comes
// from the seal, so that servers agree on it before there is a truth. RotateAdmin draws another, which comes to the servers as all
// of the truth does, and so to none that was removed.

const adminBytes = 32

// AdminToken returns the administrator's token, as a's record has it.
func (a *Authority) AdminToken() (identity.Token, error) { return a.adminToken(a.Cluster()) }

func (a *Authority) adminToken(c *model.Cluster) (identity.Token, error) {
	secret, err := a.adminSecret(c)
	if err != nil {
		return "", err
	}
	return identity.NewToken(bytes.NewReader(secret))
}

func (a *Authority) adminSecret(c *model.Cluster) ([]byte, error) {
	if c.Admin == nil {
		h := hmac.New(sha256.New, a.seal)
		h.Write([]byte("admin token"))
		return h.Sum(nil), nil
	}
	aead, err := a.aead()
	if err != nil {
		return nil, err
	}
	secret, err := aead.Open(nil, nil, c.Admin.Sealed, adminOf(c, c.Admin.Number))
	if err != nil || len(secret) != adminBytes {
		return nil, fmt.Errorf("the administrator's token of cluster %s cannot be opened: this server has another cluster's seal", c.ID)
	}
	return secret, nil
}

// newAdmin makes the secret that follows the one of c.
func (a *Authority) newAdmin(c *model.Cluster, now time.Time) (*model.AdminSecret, error) {
	aead, err := a.aead()
	if err != nil {
		return nil, err
	}
	secret := make([]byte, adminBytes)
	rand.Read(secret) // it never fails
	out := &model.AdminSecret{Number: c.Admin.Count() + 1, Changed: now}
	out.Sealed = aead.Seal(nil, nil, secret, adminOf(c, out.Number))
	return out, nil
}

// adminOf binds a sealed secret to its place.
func adminOf(c *model.Cluster, number uint64) []byte {
	return fmt.Appendf(nil, "gantry admin token %s %d", c.ID, number)
}

// RotateAdmin replaces the administrator's token and returns the new one. All servers refuse the old one once they have heard of it.
func (r *Registrar) RotateAdmin(ctx context.Context) (identity.Token, error) {
	c := r.cfg.Store.View().Cluster()
	if c == nil {
		return "", errNoCluster
	}
	next := *c
	var err error
	if next.Admin, err = r.cfg.Authority.newAdmin(c, r.cfg.Now()); err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	token, err := r.cfg.Authority.adminToken(&next)
	if err != nil {
		return "", err
	}
	err = r.cfg.Store.Update(ctx, func(tx *state.Tx) error {
		cur := *tx.Cluster()
		if cur.Admin.Count() != c.Admin.Count() {
			return fmt.Errorf("%w: the administrator's token was replaced at the same time", ErrBusy)
		}
		cur.Admin = next.Admin
		tx.PutCluster(&cur)
		tx.Emit(model.Event{Type: "admin.rotated", Message: "The administrator's token was replaced."})
		return nil
	})
	if err != nil {
		return "", storeError(err)
	}
	return token, nil
}

// newer returns the later of two secrets.
func newer(a, b *model.AdminSecret) *model.AdminSecret {
	if a.Count() > b.Count() {
		return a
	}
	return b
}
