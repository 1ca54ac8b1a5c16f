package fleet

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/state"
)

// errEnded is why calls on a link fail when the servers' end went away.
var errEnded = errors.New("the server has ended the session")

// errRemoved is why the session of a node ends that an operator removed.
var errRemoved = errors.New("the node was removed from the cluster")

// maxSpecs bounds the cache of specs.
const maxSpecs = 4096

// session is one connected node: what it was told, and what waits to be sent. It is also the agent's end of the link,
// as both live in one process.
type session struct {
	fleet *Fleet
	node  wire.Node
	id    model.NodeID // set by the first Hello; only Run's goroutine uses it

	ready chan struct{} // has one element when out holds something
	ended chan struct{}

	mu   sync.Mutex
	told map[model.InstanceID]told // what the agent knows once out is delivered
	out  wire.Down
	why  error // set when ended is closed
}

// told is the part of an assignment that changes.
type told struct {
	desired model.Desired
	over    bool
}

type specKey struct {
	app     model.AppID
	version uint64
}

// Dial opens a session for an agent in this process, which node reaches. It ends when ctx does.
func (f *Fleet) Dial(ctx context.Context, node wire.Node) wire.Link {
	s := &session{fleet: f, node: node, ready: make(chan struct{}, 1), ended: make(chan struct{})}
	context.AfterFunc(ctx, func() {
		s.end(errEnded)
		select {
		case f.gone <- s:
		case <-f.done:
		}
	})
	return s
}

// end makes every call on the link fail.
func (s *session) end(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == nil {
		s.why = why
		close(s.ended)
	}
}

// over reports whether the session has ended.
func (s *session) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// Send implements wire.Link.
func (s *session) Send(ctx context.Context, msg wire.Up) error {
	if s.over() {
		return s.why
	}
	u := up{from: s, msg: msg, err: make(chan error, 1)}
	s.fleet.inbox.put(u)
	select {
	case err := <-u.err:
		return err
	case <-s.ended:
		return s.why
	case <-s.fleet.done:
		return errEnded
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Recv implements wire.Link.
func (s *session) Recv(ctx context.Context) (wire.Down, error) {
	select {
	case <-s.ready:
		s.mu.Lock()
		defer s.mu.Unlock()
		out := s.out
		s.out = wire.Down{}
		return out, nil
	case <-s.ended:
		return wire.Down{}, s.why
	case <-s.fleet.done:
		return wire.Down{}, errEnded
	case <-ctx.Done():
		return wire.Down{}, context.Cause(ctx)
	}
}

// reset replaces whatever waits by all assignments of the node.
func (s *session) reset(view state.View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = map[model.InstanceID]told{}
	s.out = wire.Down{Full: true, Routes: s.out.Routes}
	for i := range view.InstancesOn(s.id) {
		s.addLocked(view, i)
	}
	for v := range view.VolumesOn(s.id) {
		if v.Removing {
			s.fleet.drops[v.ID] = s.id
			s.out.DropVolumes = append(s.out.DropVolumes, v.ID)
		} else {
			s.out.Volumes = append(s.out.Volumes, v.ID)
		}
	}
	s.wakeLocked()
}

// set takes up an instance if the agent does not know it, or not so, and reports whether.
func (s *session) set(view state.View, i *model.Instance) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addLocked(view, i)
}

func (s *session) addLocked(view state.View, i *model.Instance) bool {
	now := told{i.Desired, i.Over()}
	if was, ok := s.told[i.ID]; ok && was == now {
		return false
	}
	spec := s.fleet.spec(view, i)
	if spec == nil && !now.over { // of what is over only the logs are kept, perhaps longer than its version
		s.fleet.cfg.Logger.Error("an instance's version is gone", "instance", i.ID, "app", i.App, "version", i.Version)
		return false
	}
	s.told[i.ID] = now
	s.fleet.homes[i.ID] = s.id
	s.out.Set = append(s.out.Set, wire.Assignment{
		ID: i.ID, App: i.App, Version: i.Version, Desired: i.Desired, Over: now.over, Attempt: i.Status.Attempt, Ports: i.Ports, Spec: spec,
		Slot: i.Slot, GPUs: i.GPUs, Items: i.Items,
	})
	return true
}

// drop takes up that the agent is to forget an instance, if it knows it, and reports whether.
func (s *session) drop(id model.InstanceID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.told[id]; !ok {
		return false
	}
	delete(s.told, id)
	s.out.Drop = append(s.out.Drop, id)
	return true
}

// nudge has what was taken up delivered, and reports whether there was any.
func (s *session) nudge() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.out.Full && len(s.out.Set)+len(s.out.Drop) == 0 {
		return false
	}
	s.wakeLocked()
	return true
}

// dropVolume tells the agent to delete a volume.
func (s *session) dropVolume(id model.VolumeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.DropVolumes = append(s.out.DropVolumes, id)
	s.wakeLocked()
}

// keepVolume takes back what dropVolume has not yet told.
func (s *session) keepVolume(id model.VolumeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.DropVolumes = slices.DeleteFunc(s.out.DropVolumes, func(other model.VolumeID) bool { return other == id })
}

func (s *session) wakeLocked() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}
