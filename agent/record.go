package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

// record is what must outlive the agent of one instance.
type record struct {
	Assignment wire.Assignment `json:"assignment"`
	Status     model.Status    `json:"status"`
	Failures   int             `json:"failures,omitempty"` // attempts that ended in a row, each before Restart.Reset
	Next       time.Time       `json:"next,omitzero"`      // in backoff: when the next attempt begins
	Reason     string          `json:"reason,omitempty"`   // why the attempt ends or ended
	Kill       time.Time       `json:"kill,omitzero"`      // in stopping: when grace ends
}

// store keeps records, one directory per instance:
//
//	ID/instance.json  the record
//	ID/sandbox        the instance's files
//	ID/volumes/NAME   its scratch volumes
//	ID/logs/CONTAINER its output
type store struct {
	dir string
	io  chan struct{} // bounds writers, each of which holds a thread of the operating system
}

func newStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make instance directory: %w", err)
	}
	return &store{dir: dir, io: make(chan struct{}, 16)}, nil
}

func (s *store) path(id model.InstanceID, elem ...string) string {
	return filepath.Join(append([]string{s.dir, string(id)}, elem...)...)
}

func (s *store) sandbox(id model.InstanceID) string { return s.path(id, "sandbox") }

func (s *store) volume(id model.InstanceID, name string) string { return s.path(id, "volumes", name) }

func (s *store) logs(id model.InstanceID, container string) string {
	return s.path(id, "logs", container)
}

// save replaces the record of an instance. It survives the end of the agent always, and that of the machine when sync is set.
func (s *store) save(r *record, sync bool) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	s.io <- struct{}{}
	defer leave(s.io)
	dir := s.path(r.Assignment.ID)
	if err := writeFile(filepath.Join(dir, "instance.json"), b, sync); err != nil {
		if !isNotExist(err) {
			return fmt.Errorf("write record: %w", err)
		}
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make instance directory: %w", err)
		}
		return writeFile(filepath.Join(dir, "instance.json"), b, sync)
	}
	return nil
}

// writeFile replaces a file in one step.
func writeFile(name string, b []byte, sync bool) error {
	tmp := name + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && sync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, name)
	}
	return err
}

// load returns all records, and the instances whose record is missing or cannot be read.
func (s *store) load() (records []record, broken []model.InstanceID, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read records: %w", err)
	}
	for _, e := range entries {
		id := model.InstanceID(e.Name())
		b, err := os.ReadFile(s.path(id, "instance.json"))
		if err != nil && !isNotExist(err) {
			return nil, nil, fmt.Errorf("read record: %w", err)
		}
		var r record
		if err != nil || json.Unmarshal(b, &r) != nil || r.Assignment.ID != id || r.Assignment.Spec == nil || !r.Status.Phase.Valid() {
			broken = append(broken, id)
			continue
		}
		records = append(records, r)
	}
	return records, broken, nil
}

// removeFiles deletes what a stopped instance needs no more: all but its record and logs.
func (s *store) removeFiles(id model.InstanceID) error {
	s.io <- struct{}{}
	defer leave(s.io)
	for _, name := range []string{"sandbox", "sandbox.new", "volumes"} {
		if err := os.RemoveAll(s.path(id, name)); err != nil {
			return fmt.Errorf("remove sandbox: %w", err)
		}
	}
	return nil
}

// remove deletes everything of an instance, the record last.
func (s *store) remove(id model.InstanceID) error {
	if err := s.removeFiles(id); err != nil {
		return err
	}
	s.io <- struct{}{}
	defer leave(s.io)
	if err := os.RemoveAll(s.path(id, "logs")); err != nil {
		return fmt.Errorf("remove logs: %w", err)
	}
	if err := os.RemoveAll(s.path(id)); err != nil {
		return fmt.Errorf("remove record: %w", err)
	}
	return nil
}
