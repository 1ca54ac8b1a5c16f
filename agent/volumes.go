package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gantry-os/gantry/agent/wire"
	"github.com/gantry-os/gantry/model"
)

// volumes keeps the node's persistent volumes, which outlive instances, one directory each:
//
//	VOLUME/volume.json  the volume's id, and the instance that holds it
//	VOLUME/data         what instances see
//
// An instance holds its volumes from before its first task starts until after its last one is removed, and no other
// instance starts meanwhile. Who holds a volume is written down beside it, and so outlives the agent, and the record of the
// instance.
type volumes struct {
	dir    string
	broken map[string]error // directories of volumes of which it cannot be read who holds them
	log    *slog.Logger
	report func(model.VolumeID) // called when a volume was deleted

	mu      sync.Mutex
	holders map[model.VolumeID]model.InstanceID // volumes that are held
	drops   map[model.VolumeID]dropping         // volumes to be deleted
	freed   chan struct{}                       // closed, and made anew, when a volume is held no more or was deleted
}

// dropping is how far the deletion of a volume is.
type dropping int

const (
	dropWanted dropping = iota // it waits until nobody holds the volume
	dropBegun                  // what is left of the volume is of no use
)

// holder is the content of volume.json.
type holder struct {
	ID     model.VolumeID   `json:"id"`
	Holder model.InstanceID `json:"holder,omitempty"`
}

// openVolumes reads who holds which volume. Mode is that of dir: whether users of the node may pass through it.
func openVolumes(dir string, mode os.FileMode, log *slog.Logger, report func(model.VolumeID)) (*volumes, error) {
	v := &volumes{
		dir: dir, log: log, report: report, broken: map[string]error{},
		holders: map[model.VolumeID]model.InstanceID{}, drops: map[model.VolumeID]dropping{}, freed: make(chan struct{}),
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return nil, fmt.Errorf("make directory of volumes: %w", err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		return nil, fmt.Errorf("make directory of volumes: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read volumes: %w", err)
	}
	for _, e := range entries {
		h, err := v.read(filepath.Join(dir, e.Name()))
		switch {
		case err != nil:
			v.broken[filepath.Join(dir, e.Name())] = err
			log.Warn("it cannot be read who holds a volume; nobody gets it", "error", err)
		case h.Holder != "":
			v.holders[h.ID] = h.Holder
		}
	}
	return v, nil
}

// read returns who holds the volume in dir. Nobody has used one whose making was cut short.
func (v *volumes) read(dir string) (h holder, err error) {
	name := filepath.Join(dir, "volume.json")
	b, err := os.ReadFile(name)
	if isNotExist(err) {
		return holder{}, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &h)
	}
	if err == nil && v.path(h.ID) != dir {
		err = fmt.Errorf("it is of volume %q", h.ID)
	}
	if err != nil {
		return holder{}, fmt.Errorf("read %s: %w", name, err)
	}
	return h, nil
}

// longestName bounds the escaped ids that are names of directories; file systems take 255 bytes.
const longestName = 200

// path returns the directory of a volume. Ids begin with a slash, so none is taken for a name such as "..".
func (v *volumes) path(id model.VolumeID, elem ...string) string {
	name := url.PathEscape(string(id))
	if len(name) > longestName {
		sum := sha256.Sum256([]byte(id))
		name = name[:longestName-40] + "~" + hex.EncodeToString(sum[:16])
	}
	return filepath.Join(append([]string{v.dir, name}, elem...)...)
}

// data returns the directory that instances see.
func (v *volumes) data(id model.VolumeID) string { return v.path(id, "data") }

// held returns the instances that hold volumes.
func (v *volumes) held() []model.InstanceID {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []model.InstanceID
	for _, i := range v.holders {
		out = append(out, i)
	}
	return out
}

// hold gives volumes to an instance, all or none, and makes those that do not exist. When it cannot, it returns the
// sentence why, and what is closed when that may have changed.
func (v *volumes) hold(ids []model.VolumeID, i model.InstanceID) (why string, changed <-chan struct{}, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, id := range ids {
		if _, going := v.drops[id]; going {
			return fmt.Sprintf("volume %s is being deleted", id), v.freed, nil
		}
		if other, ok := v.holders[id]; ok && other != i {
			return fmt.Sprintf("volume %s is still in use by %s on this node", id, other), v.freed, nil
		}
		if err := v.broken[v.path(id)]; err != nil {
			return "", nil, fmt.Errorf("who holds volume %s is not known: %w", id, err)
		}
	}
	for _, id := range ids {
		if v.holders[id] == i {
			continue
		}
		if err := v.write(id, i); err != nil {
			return "", nil, fmt.Errorf("volume %s: %w", id, err)
		}
		v.holders[id] = i
	}
	return "", nil, nil
}

// write notes who holds a volume, and makes the volume when it does not exist.
func (v *volumes) write(id model.VolumeID, i model.InstanceID) error {
	if !strings.HasPrefix(string(id), "/") {
		return errors.New("that is not the id of a volume")
	}
	if err := os.Mkdir(v.path(id), 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make volume: %w", err)
	}
	b, err := json.Marshal(holder{id, i})
	if err != nil {
		return fmt.Errorf("encode who holds it: %w", err)
	}
	if err := writeFile(v.path(id, "volume.json"), b, true); err != nil {
		return fmt.Errorf("write who holds it: %w", err)
	}
	if err := makeOpenDir(v.data(id)); err != nil {
		return fmt.Errorf("make volume: %w", err)
	}
	return nil
}

// release takes all volumes back from an instance none of whose tasks exists any more.
func (v *volumes) release(i model.InstanceID) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, by := range v.holders {
		if by != i {
			continue
		}
		if err := v.write(id, ""); err != nil {
			return fmt.Errorf("volume %s: %w", id, err)
		}
		delete(v.holders, id)
		v.changedLocked()
	}
	return nil
}

func (v *volumes) changedLocked() {
	close(v.freed)
	v.freed = make(chan struct{})
}

// drop notes which volumes are to be deleted; with all, only those. run deletes them.
func (v *volumes) drop(ids []model.VolumeID, all bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if all {
		for id, how := range v.drops {
			if how == dropWanted && !slices.Contains(ids, id) {
				delete(v.drops, id)
			}
		}
	}
	for _, id := range ids {
		if _, ok := v.drops[id]; !ok && strings.HasPrefix(string(id), "/") {
			v.drops[id] = dropWanted
		}
	}
	v.changedLocked()
}

// strangers returns the volumes of the node that are not in known, for people to look at: data that nobody asks for any more,
// or that a server has lost the record of.
func (v *volumes) strangers(known []model.VolumeID) ([]string, error) {
	entries, err := os.ReadDir(v.dir)
	if err != nil {
		return nil, fmt.Errorf("read volumes: %w", err)
	}
	names := make(map[string]bool, len(known))
	for _, id := range known {
		names[v.path(id)] = true
	}
	var out []string
	for _, e := range entries {
		if dir := filepath.Join(v.dir, e.Name()); !names[dir] {
			out = append(out, dir)
		}
	}
	return out, nil
}

// run deletes volumes until ctx ends.
func (v *volumes) run(ctx context.Context) {
	for {
		id, changed := v.next()
		if id == "" {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		if err := os.RemoveAll(v.path(id)); err != nil {
			v.log.Warn("a volume cannot be deleted; trying again", "volume", id, "error", err)
			if !sleep(ctx, 10*time.Second) {
				return
			}
			continue
		}
		v.mu.Lock()
		delete(v.drops, id)
		delete(v.broken, v.path(id))
		v.changedLocked()
		v.mu.Unlock()
		v.report(id)
	}
}

// next returns a volume to delete, which nobody gets to hold any more, or what is closed when there may be one.
func (v *volumes) next() (model.VolumeID, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id := range v.drops {
		if _, held := v.holders[id]; !held {
			v.drops[id] = dropBegun
			return id, nil
		}
	}
	return "", v.freed
}

// volumeIDs returns the persistent volumes of an instance.
func volumeIDs(asg *wire.Assignment) []model.VolumeID {
	var ids []model.VolumeID
	for _, v := range asg.Spec.Volumes {
		if v.Persistent != nil {
			ids = append(ids, model.VolumeOf(asg.App, asg.Slot, v.Name))
		}
	}
	return ids
}

// holdVolumes takes the instance's volumes, and waits for those that are not free. It returns false when the step is to be
// left.
func (p *pump) holdVolumes(ctx context.Context) bool {
	asg := p.assignment()
	ids := volumeIDs(&asg)
	for len(ids) > 0 {
		why, changed, err := p.a.volumes.hold(ids, p.id)
		switch {
		case err != nil:
			p.end(ctx, sentence(err))
			return false
		case why == "":
			return true
		}
		p.say(why + "; this instance waits for it")
		select {
		case <-changed:
		case <-p.live.Done():
			return false
		}
	}
	return true
}

// letVolumesGo gives back what the instance holds. It is called when no task of it exists any more, nor will.
func (p *pump) letVolumesGo() error { return p.a.volumes.release(p.id) }
