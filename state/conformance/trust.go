package conformance

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// testTrust protects the records of what machines trust: they are found, watched, kept and deleted, and of those who spend
// a token that is good for one, on whichever server, one does.
func testTrust(t *testing.T, s Storage) {
	db, other := s.Open(t), s.Open(t)
	_, w := other.Watch()
	defer w.Close()
	update(t, db, putTrust)
	rev := db.View().Revision()
	await(t, other, "trust on the other server", func(v state.View) bool { return v.Revision() >= rev })
	if _, c := w.Take(); !c.Trust {
		t.Error("the watch does not tell")
	}
	checkTrust(t, other.View())
	same(t, "the other server", dump(other.View()), dump(db.View()))
	spendOnce(t, db, other)

	want := dump(db.View())
	again := s.Reopen(t)
	same(t, "after reopening", dump(again.View()), want)
	update(t, again, func(tx *state.Tx) {
		tx.DeleteMachine("agent/n1")
		tx.DeleteToken("once")
		tx.DeleteRevocation(model.RevocationKey("agent/n0", "e"))
	})
	v := again.View()
	if v.Machine("agent/n1") != nil || v.Token("once") != nil || v.Revocation(model.RevocationKey("agent/n0", "e")) != nil || v.Cluster() == nil {
		t.Error("deleting took too little or too much")
	}
}

func putTrust(tx *state.Tx) {
	tx.PutCluster(&model.Cluster{ID: "c", Trust: 2, Roots: []model.Root{{Fingerprint: "f", Cert: []byte{1}, Key: []byte{2}}}})
	tx.PutMachine(&model.Machine{ID: "agent/n1", Epoch: "e"})
	tx.PutMachine(&model.Machine{ID: "server/a", Epoch: "e"})
	tx.PutToken(&model.JoinToken{ID: "once", Uses: 1, Expires: epoch.Add(time.Hour)})
	tx.PutRevocation(&model.Revocation{ID: "agent/n0", Epoch: "e", At: epoch})
	checkTrust(nil, tx.View)
}

func checkTrust(t *testing.T, v state.View) {
	fail := func(what string) {
		if t == nil {
			panic("in the transaction: " + what)
		}
		t.Error(what)
	}
	if c := v.Cluster(); c == nil || c.Trust != 2 || len(c.Roots) != 1 {
		fail(fmt.Sprintf("cluster %+v", c))
	}
	machines := slices.Collect(v.Machines())
	if len(machines) != 2 || machines[0].ID != "agent/n1" || v.Machine("server/a") != machines[1] {
		fail(fmt.Sprintf("machines %v", machines))
	}
	if tokens := slices.Collect(v.Tokens()); len(tokens) != 1 || v.Token("once") != tokens[0] {
		fail(fmt.Sprintf("tokens %v", tokens))
	}
	if revoked := slices.Collect(v.Revocations()); len(revoked) != 1 || v.Revocation(model.RevocationKey("agent/n0", "e")) != revoked[0] {
		fail(fmt.Sprintf("revocations %v", revoked))
	}
}

func spendOnce(t *testing.T, servers ...*state.DB) {
	t.Helper()
	spent := errors.New("spent")
	var mu sync.Mutex
	var wg sync.WaitGroup
	won := 0
	for n := range 8 {
		wg.Go(func() {
			err := servers[n%len(servers)].Update(t.Context(), func(tx *state.Tx) error {
				k := *tx.Token("once")
				if k.Spent() {
					return spent
				}
				k.Used++
				tx.PutToken(&k)
				tx.PutMachine(&model.Machine{ID: model.MachineID(fmt.Sprintf("agent/winner%d", n))})
				return nil
			})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, spent) {
				t.Errorf("Update: %v", err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d spent a token that is good for one", won)
	}
}
