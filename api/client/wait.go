package client

import (
	"context"
	"errors"
	"time"

	"github.com/gantry-os/gantry/model"
)

// WaitDeployment waits until a deployment is over and returns it. progress, which may be nil, is called with every state
// of it that was seen, the first at once and the last included, when anything about it has changed. Whether the end was
// a good one is for the caller to read in State.
//
// It looks again when an event of the app tells it to, and every few seconds in case one was missed. While the server is
// away it keeps trying until ctx ends; the last error is then returned.
func (c *Client) WaitDeployment(ctx context.Context, id model.DeploymentID, progress func(model.Deployment)) (model.Deployment, error) {
	var last model.Deployment
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var news <-chan struct{}
	var lost error
	for {
		d, err := c.Deployment(ctx, id)
		switch {
		case err == nil:
			if d != last && progress != nil {
				progress(d)
			}
			last, lost = d, nil
			if d.State.Over() {
				return d, nil
			}
			if news == nil {
				news = c.hints(ctx, d.App)
				continue // what happened before the events came was not told
			}
		case !passing(err):
			return last, err
		case ctx.Err() == nil:
			lost = err
		}
		select {
		case <-news:
		case <-time.After(c.poll):
		case <-ctx.Done():
			if lost != nil {
				return last, lost
			}
			return last, context.Cause(ctx)
		}
	}
}

// passing reports whether the call may work when it is made again later.
func passing(err error) bool {
	var e *Error
	return errors.Is(err, ErrUnreachable) || errors.As(err, &e) && e.Status >= 500
}

// hints returns a channel that receives after events of the app, merged, until ctx ends.
func (c *Client) hints(ctx context.Context, app model.AppID) <-chan struct{} {
	ch := make(chan struct{}, 1)
	go func() {
		// It ends only with ctx or when events are refused; the caller's poll covers that.
		_ = c.FollowEvents(ctx, EventFilter{App: app}, func(model.Event) error {
			select {
			case ch <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	return ch
}
