package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/runtime"
	"github.com/gantry-os/gantry/state"
)

// errStoreSlow says that a write was given up on.
var errStoreSlow = errors.New("the store did not answer in time; the change may or may not have been made, so look before you repeat it")

// problem returns an error that is answered with a status and a sentence.
func problem(status int, format string, args ...any) error {
	return &huma.ErrorModel{Status: status, Title: http.StatusText(status), Detail: fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return problem(http.StatusBadRequest, format, args...)
}

func notFound(format string, args ...any) error {
	return problem(http.StatusNotFound, format, args...)
}

func conflict(format string, args ...any) error {
	return problem(http.StatusConflict, format, args...)
}

func unavailable(format string, args ...any) error {
	return problem(http.StatusServiceUnavailable, format, args...)
}

// invalid answers 422 with everything that is wrong with the body, or returns nil when nothing is.
func invalid(errs model.FieldErrors) error {
	if len(errs) == 0 {
		return nil
	}
	p := &huma.ErrorModel{
		Status: http.StatusUnprocessableEntity, Title: http.StatusText(http.StatusUnprocessableEntity),
		Detail: fmt.Sprintf("the request has %d invalid fields", len(errs)),
	}
	if len(errs) == 1 {
		p.Detail = "the request has an invalid field"
	}
	for _, e := range errs {
		p.Errors = append(p.Errors, &huma.ErrorDetail{Location: bodyPath(e.Path), Message: e.Message})
	}
	return p
}

func bodyPath(path string) string {
	if path == "" || path[0] == '[' {
		return "body" + path
	}
	return "body." + path
}

// storeError gives errors of state.Store their status; problems of the callback pass as they are.
func storeError(err error) error {
	var known huma.StatusError
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, errStoreSlow):
		return unavailable("%v", errStoreSlow)
	case errors.Is(err, state.ErrConflict):
		return unavailable("the app is being changed from elsewhere all the time; try again")
	case errors.Is(err, state.ErrDeposed):
		return unavailable("this server is no longer the leader; try again")
	case errors.Is(err, state.ErrTooNew):
		return conflict("%v", err)
	case errors.Is(err, state.ErrNoSpace):
		return unavailable("the store is full and takes no changes until space is made")
	}
	return unavailable("the store does not take the change: %v", err)
}

// nodeError gives errors of a Node their status.
func nodeError(err error) error {
	switch {
	case errors.Is(err, runtime.ErrNotFound):
		return notFound("%v", err)
	case errors.Is(err, runtime.ErrInvalid):
		what := strings.Replace(err.Error(), runtime.ErrInvalid.Error()+": ", "", 1) // nothing was to be started
		return problem(http.StatusUnprocessableEntity, "%s", what)
	}
	return unavailable("%v", err)
}
