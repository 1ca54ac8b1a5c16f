package route

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	"github.com/gantry-os/gantry/model"
)

// App is what a table knows of one app. It never changes.
type App struct {
	Name    string   // within the zone
	All     []*Entry // by id
	Serving []*Entry // those of All that serve
}

// Instance returns the entry of an instance of the app, or nil.
func (a *App) Instance(id string) *Entry {
	n, ok := slices.BinarySearchFunc(a.All, id, func(e *Entry, id string) int { return strings.Compare(string(e.ID), id) })
	if !ok {
		return nil
	}
	return a.All[n]
}

// Slot returns who has a slot: one that serves, before one that ends or begins. It is nil when nobody has.
func (a *App) Slot(n uint32) *Entry {
	var found *Entry
	for _, e := range a.All {
		if e.Slot == n && n != 0 && (found == nil || e.Serving) {
			found = e
		}
	}
	return found
}

// Table is an immutable endpoint table. The zero Table is empty.
type Table struct {
	mu      sync.Mutex // guards the trees while they are forked; reading them needs none
	entries btree.Map[model.InstanceID, *Entry]
	apps    btree.Map[string, *App]     // by name within the zone
	groups  btree.Map[string, int]      // how many apps are below a name
	addrs   btree.Map[string, struct{}] // an address of 16 bytes and the id of an instance that has it
}

// Len returns how many entries t has.
func (t *Table) Len() int { return t.entries.Len() }

// Entry returns the entry of an instance, or nil.
func (t *Table) Entry(id model.InstanceID) *Entry {
	e, _ := t.entries.Get(id)
	return e
}

// All returns all entries, by id.
func (t *Table) All() iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		t.entries.Scan(func(_ model.InstanceID, e *Entry) bool { return yield(e) })
	}
}

// App returns the app of a name within the zone, such as web.shop, or nil.
func (t *Table) App(name string) *App {
	a, _ := t.apps.Get(name)
	return a
}

// Group reports whether apps are below a name within the zone.
func (t *Table) Group(name string) bool {
	n, _ := t.groups.Get(name)
	return n > 0
}

// At returns the instance that has an address for itself, or nil when none has, or several do.
func (t *Table) At(addr netip.Addr) *Entry {
	from := addrKey(addr, "")
	var found *Entry
	n := 0
	t.addrs.Ascend(from, func(key string, _ struct{}) bool {
		if !strings.HasPrefix(key, from) {
			return false
		}
		n++
		found = t.Entry(model.InstanceID(key[len(from):]))
		return n < 2
	})
	if n != 1 {
		return nil
	}
	return found
}

func addrKey(addr netip.Addr, id model.InstanceID) string {
	b := addr.As16()
	return string(b[:]) + string(id)
}

// With returns the table that c makes of t. Entries of c that no name can be made of are left out.
func (t *Table) With(c Change) *Table {
	if c.Full {
		t = &Table{}
	}
	next := t.fork()
	edits := edits{}
	for _, id := range c.Drop {
		next.remove(edits, id)
	}
	for _, e := range c.Put {
		if e.valid() {
			next.remove(edits, e.ID)
			next.add(edits, e)
		}
	}
	for name, edit := range edits {
		next.rebuild(name, edit)
	}
	return next
}

// fork returns a table that shares everything with t.
func (t *Table) fork() *Table {
	t.mu.Lock()
	defer t.mu.Unlock()
	return &Table{entries: *t.entries.Copy(), apps: *t.apps.Copy(), groups: *t.groups.Copy(), addrs: *t.addrs.Copy()}
}

// edits is what becomes of entries of apps, by the name of the app: an entry that is gone is nil.
type edits map[string]map[model.InstanceID]*Entry

func (e edits) set(app model.AppID, id model.InstanceID, entry *Entry) {
	name := Name(app)
	if e[name] == nil {
		e[name] = map[model.InstanceID]*Entry{}
	}
	e[name][id] = entry
}

func (t *Table) remove(changed edits, id model.InstanceID) {
	old, ok := t.entries.Delete(id)
	if !ok {
		return
	}
	changed.set(old.App, id, nil)
	for _, a := range old.Addrs {
		t.addrs.Delete(addrKey(a, id))
	}
}

func (t *Table) add(changed edits, e *Entry) {
	t.entries.Set(e.ID, e)
	changed.set(e.App, e.ID, e)
	for _, a := range e.Addrs {
		t.addrs.Set(addrKey(a, e.ID), struct{}{})
	}
}

// rebuild makes an app anew of what it was and what has changed of it.
func (t *Table) rebuild(name string, changed map[model.InstanceID]*Entry) {
	old, had := t.apps.Get(name)
	next := &App{Name: name}
	if had {
		next.All = make([]*Entry, 0, len(old.All)+len(changed))
		for _, e := range old.All {
			if _, ok := changed[e.ID]; !ok {
				next.All = append(next.All, e)
			}
		}
	}
	kept := len(next.All)
	for _, e := range changed {
		if e != nil {
			next.All = append(next.All, e)
		}
	}
	if len(next.All) > kept {
		slices.SortFunc(next.All, func(a, b *Entry) int { return cmp.Compare(a.ID, b.ID) })
	}
	for _, e := range next.All {
		if e.Serving {
			next.Serving = append(next.Serving, e)
		}
	}
	switch has := len(next.All) > 0; {
	case has:
		t.apps.Set(name, next)
		if !had {
			t.count(name, 1)
		}
	case had:
		t.apps.Delete(name)
		t.count(name, -1)
	}
}

// count adds to how many apps are below each of the groups of a name.
func (t *Table) count(name string, by int) {
	for {
		_, group, ok := strings.Cut(name, ".")
		if !ok {
			return
		}
		n, _ := t.groups.Get(group)
		if n += by; n == 0 {
			t.groups.Delete(group)
		} else {
			t.groups.Set(group, n)
		}
		name = group
	}
}
