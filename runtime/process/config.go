package process

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-os/gantry/model"
)

// config is the file by which a shim knows what to run: records "key=value", each ended by a NUL, in any order, of which
// some repeat. Keys that a reader does not know are for another one.
type config struct {
	attempt uint32
	limit   model.Bytes // of memory, for the report of a task that exceeded it
	boot    string      // id of the boot
	isolate bool
	tty     bool
	sandbox string
	logs    string
	logSize model.Bytes
	logKeep int
	who     *identity // nil to stay what Gantry is
	dir     string
	args    []string
	env     map[string]string
	binds   []bind
	tasks   []string // files of cgroup version 1 to join by
	cgroup  string   // directory of cgroup version 2 to join
	oom     string   // file that counts kills for memory
	peak    string   // file with the most memory used
}

type bind struct {
	source, target string
	readOnly       bool
}

// identity is whom a program runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
}

// errDamaged says that a file of a task's state cannot be read, as happens when the node loses power.
var errDamaged = errors.New("the file is damaged")

// record appends one key and value.
func record(b *bytes.Buffer, key, value string) {
	if value != "" {
		b.WriteString(key + "=" + value + "\x00")
	}
}

func number[T ~int | ~int64 | ~uint32](n T) string { return strconv.FormatInt(int64(n), 10) }

func flag(on bool) string {
	if on {
		return "1"
	}
	return ""
}

// encode writes the file's text. Values must be without NUL.
func (c *config) encode() []byte {
	var b bytes.Buffer
	record(&b, "attempt", number(c.attempt))
	record(&b, "limit", number(c.limit))
	record(&b, "boot", c.boot)
	record(&b, "isolate", flag(c.isolate))
	record(&b, "tty", flag(c.tty))
	record(&b, "sandbox", c.sandbox)
	record(&b, "logs", c.logs)
	record(&b, "logsize", number(c.logSize))
	record(&b, "logkeep", number(c.logKeep))
	if c.who != nil {
		record(&b, "uid", number(c.who.uid))
		record(&b, "gid", number(c.who.gid))
		for _, g := range c.who.groups {
			record(&b, "group", number(g))
		}
	}
	record(&b, "dir", c.dir)
	for _, a := range c.args {
		b.WriteString("arg=" + a + "\x00") // which may be empty
	}
	for _, k := range slices.Sorted(maps.Keys(c.env)) {
		record(&b, "env", k+"="+c.env[k])
	}
	for _, m := range c.binds {
		key := "rw"
		if m.readOnly {
			key = "ro"
		}
		b.WriteString(key + "=" + m.source + "\x00at=" + m.target + "\x00")
	}
	for _, f := range c.tasks {
		record(&b, "tasks", f)
	}
	record(&b, "cgroup", c.cgroup)
	record(&b, "oom", c.oom)
	record(&b, "peak", c.peak)
	record(&b, "end", "1")
	return b.Bytes()
}

// decode reads what encode wrote. It fails with errDamaged for anything else.
func decode(text []byte) (*config, error) {
	c := &config{env: map[string]string{}}
	complete := false
	for len(text) > 0 {
		rec, rest, ok := bytes.Cut(text, []byte{0})
		key, value, pair := strings.Cut(string(rec), "=")
		if !ok || !pair {
			return nil, errDamaged
		}
		if err := c.set(key, value); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errDamaged, key, err)
		}
		complete = complete || key == "end"
		text = rest
	}
	if !complete {
		return nil, errDamaged
	}
	return c, nil
}

func (c *config) set(key, value string) (err error) {
	switch key {
	case "attempt":
		err = parse(&c.attempt, value)
	case "limit":
		err = parse(&c.limit, value)
	case "boot":
		c.boot = value
	case "isolate":
		c.isolate = value == "1"
	case "tty":
		c.tty = value == "1"
	case "sandbox":
		c.sandbox = value
	case "logs":
		c.logs = value
	case "logsize":
		err = parse(&c.logSize, value)
	case "logkeep":
		err = parse(&c.logKeep, value)
	case "uid", "gid", "group":
		err = c.setIdentity(key, value)
	case "dir":
		c.dir = value
	case "arg":
		c.args = append(c.args, value)
	case "env":
		k, v, _ := strings.Cut(value, "=")
		c.env[k] = v
	case "rw", "ro":
		c.binds = append(c.binds, bind{source: value, readOnly: key == "ro"})
	case "at":
		if len(c.binds) == 0 {
			return errors.New("no source before it")
		}
		c.binds[len(c.binds)-1].target = value
	case "tasks":
		c.tasks = append(c.tasks, value)
	case "cgroup":
		c.cgroup = value
	case "oom":
		c.oom = value
	case "peak":
		c.peak = value
	}
	return err
}

func (c *config) setIdentity(key, value string) error {
	var n uint32
	if err := parse(&n, value); err != nil {
		return err
	}
	if c.who == nil {
		c.who = &identity{}
	}
	switch key {
	case "uid":
		c.who.uid = n
	case "gid":
		c.who.gid = n
	default:
		c.who.groups = append(c.who.groups, n)
	}
	return nil
}

// parse reads a number that fits and is not negative.
func parse[T ~int | ~int64 | ~uint32](to *T, text string) error {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || int64(T(n)) != n {
		return fmt.Errorf("%q is not a number in range", text)
	}
	*to = T(n)
	return nil
}

func readConfig(path string) (*config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return decode(text)
}

// readValues reads a file of lines "name=number", such as started and exit. A file without any is damaged.
func readValues(path string) (map[string]int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseValues(string(text))
}

func parseValues(text string) (map[string]int64, error) {
	out := map[string]int64{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return nil, errDamaged
		}
		out[key] = n
	}
	if _, ok := out["time"]; !ok {
		return nil, errDamaged
	}
	return out, nil
}
