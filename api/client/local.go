package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ErrNoLocal says that no cluster runs on this machine, or none that was asked for.
var ErrNoLocal = errors.New("no Gantry runs here: start one with `gantry up`")

// ErrSeveralLocal says that several clusters run on this machine and none of them is the default.
var ErrSeveralLocal = errors.New("several Gantrys run here")

// Local is a cluster that runs on this machine, as its server announced it.
type Local struct {
	Addr      string    `json:"addr"`             // base address of its API, such as http://127.0.0.1:7070
	TokenFile string    `json:"tokenFile"`        // holds the admin token; empty without authentication
	CAFile    string    `json:"caFile,omitempty"` // holds what the certificate of an https address is checked by
	DataDir   string    `json:"dataDir"`          // absolute
	PID       int       `json:"pid"`              // of the server
	Started   time.Time `json:"started"`
}

// announcement is what a file of the registry holds. Ticks and Boot tell a server from a later process with its pid.
type announcement struct {
	Local
	Ticks uint64 `json:"ticks"`
	Boot  string `json:"boot"`
}

// Announce lets commands on this machine find the server without flags, until remove is called or the process ends.
// PID and Started default to this process and now.
func Announce(l Local) (remove func(), err error) {
	if l.PID == 0 {
		l.PID = os.Getpid()
	}
	if l.Started.IsZero() {
		l.Started = time.Now()
	}
	if l.DataDir, err = filepath.Abs(l.DataDir); err != nil {
		return nil, fmt.Errorf("announce server: %w", err)
	}
	ticks, ok := ProcessStart(l.PID)
	if !ok {
		return nil, fmt.Errorf("announce server: no process %d", l.PID)
	}
	name := filepath.Join(registryDir(), strconv.Itoa(l.PID)+".json")
	if err := writeAtomic(name, announcement{l, ticks, bootID()}); err != nil {
		return nil, fmt.Errorf("announce server: %w", err)
	}
	return func() { os.Remove(name) }, nil
}

// FindLocal returns the cluster of this machine that has dataDir. With an empty dataDir it returns the only one there
// is, or among several the one in DefaultDataDir. It fails with ErrNoLocal or ErrSeveralLocal.
func FindLocal(dataDir string) (Local, error) {
	all, err := liveServers()
	if err != nil {
		return Local{}, err
	}
	want := dataDir
	if want == "" && len(all) > 1 {
		want = DefaultDataDir()
	}
	switch i := slices.IndexFunc(all, func(l Local) bool { return sameDir(l.DataDir, want) }); {
	case want != "" && i >= 0:
		return all[i], nil
	case dataDir != "":
		return Local{}, noneIn(dataDir)
	case len(all) == 0:
		return Local{}, ErrNoLocal
	case len(all) == 1:
		return all[0], nil
	}
	var list strings.Builder
	for _, l := range all {
		fmt.Fprintf(&list, "\n  %s in %s", l.Addr, l.DataDir)
	}
	return Local{}, fmt.Errorf("%w: set GANTRY_ADDR or --data-dir to one of%s", ErrSeveralLocal, list.String())
}

// LocalTokenFile returns the file with the token of a server of this machine by its address, or nothing when no such
// server is announced, it needs no token, or its token is not for this user to read.
func LocalTokenFile(addr string) string {
	return localFile(addr, func(l Local) string { return l.TokenFile })
}

// LocalCAFile likewise returns the file with the roots of a server's cluster.
func LocalCAFile(addr string) string {
	return localFile(addr, func(l Local) string { return l.CAFile })
}

func localFile(addr string, of func(Local) string) string {
	all, err := liveServers()
	if err != nil {
		return ""
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	i := slices.IndexFunc(all, func(l Local) bool { return l.Addr == strings.TrimSuffix(addr, "/") })
	if i < 0 {
		return ""
	}
	f, err := os.Open(of(all[i]))
	if err != nil {
		return ""
	}
	f.Close()
	return of(all[i])
}

// noneIn is ErrNoLocal for one data directory.
type noneIn string

func (dir noneIn) Error() string {
	return fmt.Sprintf("no Gantry runs here with its data in %s: start one with `gantry up --data-dir %s`", string(dir), string(dir))
}

func (noneIn) Is(target error) bool { return target == ErrNoLocal }

// DefaultDataDir is where a server keeps its data when it is not told: /var/lib/gantry for root, else
// ~/.local/share/gantry.
func DefaultDataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/gantry"
	}
	return filepath.Join(homeDir(), ".local/share/gantry")
}

// ProcessStart returns when a process of this machine started, in ticks since boot, and whether it still runs. A
// process that has ended counts as gone even when its parent has not noticed.
func ProcessStart(pid int) (ticks uint64, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The second field is the program's name in brackets, and may hold spaces and brackets itself.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const state, start = 0, 19
	if len(fields) <= start || fields[state] == "Z" || fields[state] == "X" {
		return 0, false
	}
	ticks, err = strconv.ParseUint(fields[start], 10, 64)
	return ticks, err == nil
}

// liveServers returns the announced servers that still run, in the order they started, and forgets the others.
func liveServers() ([]Local, error) {
	dir := registryDir()
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for local servers: %w", err)
	}
	var all []Local
	for _, f := range files {
		name := filepath.Join(dir, f.Name())
		b, err := os.ReadFile(name)
		if filepath.Ext(name) != ".json" || err != nil {
			continue // half-written, or gone since
		}
		var a announcement
		if err := json.Unmarshal(b, &a); err != nil || !a.alive() {
			os.Remove(name)
			continue
		}
		all = append(all, a.Local)
	}
	slices.SortFunc(all, func(a, b Local) int { return a.Started.Compare(b.Started) })
	return all, nil
}

func (a announcement) alive() bool {
	ticks, ok := ProcessStart(a.PID)
	return ok && ticks == a.Ticks && a.Boot == bootID()
}

// registryDir is where servers announce themselves. It is emptied by a reboot where the system has such a place. Tests
// replace it.
var registryDir = func() string {
	if os.Geteuid() == 0 {
		return "/run/gantry/clusters"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "gantry/clusters")
	}
	return filepath.Join(homeDir(), ".local/state/gantry/clusters")
}

func homeDir() string {
	if dir, err := os.UserHomeDir(); err == nil {
		return dir
	}
	return "/" // no HOME: an absolute path still, whatever may be written there
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // absent on odd kernels: then pid and start time decide
	return strings.TrimSpace(string(b))
}

func sameDir(a, b string) bool {
	return resolve(a) == resolve(b)
}

func resolve(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return dir
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real
	}
	return abs
}

// writeAtomic writes v as JSON so that a reader sees all of it or nothing.
func writeAtomic(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once renamed
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
