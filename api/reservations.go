package api

import (
	"cmp"
	"context"
	"fmt"

	"github.com/gantry-os/gantry/api/client"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// ReservationPath is the reservation in the path of a request.
type ReservationPath struct {
	ID string `path:"id" maxLength:"100" doc:"Name of the reservation."`
}

func describeReservation(v state.View, r *model.Reservation) client.ReservationDetail {
	out := client.ReservationDetail{Reservation: *r}
	if n := v.Node(r.Node); n != nil {
		out.NodeName = n.Name
	}
	return out
}

func (s *server) listReservations(context.Context, *none) (*reply[[]client.ReservationDetail], error) {
	v := s.Store.View()
	out := []client.ReservationDetail{}
	for r := range v.Reservations() {
		out = append(out, describeReservation(v, r))
	}
	return answer(out)
}

type reservationInput struct {
	ReservationPath
	body
}

func (s *server) putReservation(ctx context.Context, in *reservationInput) (*reply[client.ReservationDetail], error) {
	var ask model.Reservation
	if err := in.record(&ask, func() model.FieldErrors {
		ask.ID = cmp.Or(ask.ID, in.ID)
		return named(ask.Validate(), "id", ask.ID, in.ID)
	}); err != nil {
		return nil, err
	}
	if role, err := model.ParseRoleID(string(ask.Role)); err == nil {
		ask.Role = role
	}
	ask.Created = s.Now()
	var out client.ReservationDetail
	err := s.update(ctx, func(tx *state.Tx) error {
		next := ask // the transaction may run again
		if err := invalid(checkReservation(tx.View, &next)); err != nil {
			return err
		}
		old := tx.Reservation(ask.ID)
		if old != nil {
			next.Created, next.Revision = old.Created, old.Revision
		}
		out = describeReservation(tx.View, &next)
		if old != nil && *old == next {
			return nil
		}
		tx.PutReservation(&next)
		tx.Emit(model.Event{Type: "reservation.changed", Node: next.Node,
			Message: fmt.Sprintf("reservation %s keeps a part of %s for %s", next.ID, out.NodeName, next.Role)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return answer(out)
}

// checkReservation returns what is wrong with a reservation beside the node and the others on it. A node that is named by
// its name is written as its id.
func checkReservation(v state.View, r *model.Reservation) model.FieldErrors {
	var errs model.FieldErrors
	if !hasRole(v, r.Role) {
		addError(&errs, "role", "%s", missingRole(v, r.Role))
	}
	n, err := findNode(v, r.Node)
	switch {
	case err != nil:
		addError(&errs, "node", "%v", err)
	case n.State == model.NodeGone:
		addError(&errs, "node", "%s is gone and will not come back", n.Name)
	default:
		r.Node = n.ID
		checkRoom(&errs, v, r, n)
	}
	return errs
}

// checkRoom refuses amounts that a node does not have beside what is reserved of it already.
func checkRoom(errs *model.FieldErrors, v state.View, r *model.Reservation, n *model.Node) {
	var others model.Resources
	for o := range v.Reservations() {
		if o.Node == n.ID && o.ID != r.ID {
			others = others.Add(o.Resources)
		}
	}
	want, kept := resourceAmounts(r.Resources), resourceAmounts(others)
	all := resourceAmounts(capacityOf(n))
	for _, name := range all.names() {
		if want[name] <= 0 || want[name]+kept[name] <= all[name] {
			continue
		}
		beside := ""
		if kept[name] > 0 {
			beside = fmt.Sprintf(", of which other reservations keep %s", amountText(name, kept[name]))
		}
		addError(errs, amountPath("resources", name), "%s is more than %s has left to reserve: it has %s%s",
			amountText(name, want[name]), n.Name, amountText(name, all[name]), beside)
	}
}

func (s *server) deleteReservation(ctx context.Context, in *ReservationPath) (*reply[accepted], error) {
	err := s.update(ctx, func(tx *state.Tx) error {
		r := tx.Reservation(in.ID)
		if r == nil {
			var names []string
			for o := range tx.Reservations() {
				names = append(names, o.ID)
			}
			return notFound("no reservation %s%s", in.ID, didYouMean(in.ID, names))
		}
		tx.DeleteReservation(in.ID)
		tx.Emit(model.Event{Type: "reservation.deleted", Node: r.Node, Message: fmt.Sprintf("reservation %s was deleted", in.ID)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return answer(accepted{})
}
