package daemon

import "errors"

// undo is what undoes the steps of opening, newest last.
type undo struct{ ends []func() error }

// later registers what undoes a step.
func (u *undo) later(end func() error) { u.ends = append(u.ends, end) }

// close undoes all steps, newest first.
func (u *undo) close() error {
	var errs []error
	for i := len(u.ends) - 1; i >= 0; i-- {
		errs = append(errs, u.ends[i]())
	}
	return errors.Join(errs...)
}
