package process

import (
	"fmt"
	"os/user"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/runtime"
)

// defaultPath is where programs are looked for when the task has no PATH of its own.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// person is whom a task runs as.
type person struct {
	*identity // nil for whom Gantry runs as
	name      string
	home      string
}

// env returns the minimal environment.
func (p person) env() map[string]string {
	return map[string]string{"PATH": defaultPath, "HOME": p.home, "USER": p.name, "LANG": "C.UTF-8"}
}

// identify resolves "user[:group]". A number needs no entry in the user database: its group is then of the same number.
func (d *Driver) identify(text string) (person, error) {
	if text == "" {
		return person{name: d.self.Username, home: d.self.HomeDir}, nil
	}
	name, group, grouped := strings.Cut(text, ":")
	p, err := lookup(name)
	if err != nil || !grouped {
		return p, err
	}
	p.gid, err = lookupGroup(group)
	p.groups = nil
	return p, err
}

func lookup(name string) (person, error) {
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	if err != nil {
		uid, ok := id(name)
		if !ok {
			return person{}, fmt.Errorf("%w: the node has no user %q", runtime.ErrInvalid, name)
		}
		return person{&identity{uid: uid, gid: uid}, name, "/"}, nil
	}
	uid, ok := id(u.Uid)
	gid, gok := id(u.Gid)
	if !ok || !gok {
		return person{}, fmt.Errorf("%w: user %q has no valid numbers", runtime.ErrInvalid, name)
	}
	p := person{&identity{uid: uid, gid: gid}, u.Username, u.HomeDir}
	all, err := u.GroupIds()
	if err != nil {
		return person{}, fmt.Errorf("list groups of user %s: %w", name, err)
	}
	for _, g := range all {
		if n, ok := id(g); ok {
			p.groups = append(p.groups, n)
		}
	}
	return p, nil
}

func lookupGroup(name string) (uint32, error) {
	if g, err := user.LookupGroup(name); err == nil {
		if n, ok := id(g.Gid); ok {
			return n, nil
		}
	}
	if n, ok := id(name); ok {
		return n, nil
	}
	return 0, fmt.Errorf("%w: the node has no group %q", runtime.ErrInvalid, name)
}

// id reads the number of a user or group. The highest means "unchanged" to the kernel.
func id(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n < 1<<32-1
}
