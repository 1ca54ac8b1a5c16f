package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
)

// Version of this build, set by the linker.
var Version = "dev"

// Options is what an operator can choose. Validate checks it; nothing changes it afterwards.
type Options struct {
	DataDir     string          // everything that Gantry keeps lies here
	HTTPAddr    string          // host:port that the API listens on
	Ephemeral   bool            // the data directory is temporary: nothing is synced to disk, and at the end all of it is removed
	Auth        string          // token or none
	PlainHTTP   []string        // registries spoken to without TLS, beside those on loopback
	KeepStopped model.Duration  // how long the records and logs of stopped instances are kept
	LogSize     model.Bytes     // size at which a log file of a container is rotated
	LogKeep     int             // rotated log files kept per stream
	NodeCPUs    model.CPU       // what instances may take of this node; 0 for what it has
	NodeMemory  model.Bytes     // likewise
	Keep        model.Resources // what of this node's cores and memory is kept for the system; no memory for a tenth
	Node        model.Declaration
	Bin         string // directory of the helpers; by default that of the running binary
	Logger      *slog.Logger
}

// DefaultOptions returns what holds where the operator says nothing.
func DefaultOptions() Options {
	return Options{
		HTTPAddr:    "127.0.0.1:7070",
		Auth:        "token",
		KeepStopped: model.Duration(time.Hour),
		LogSize:     10 * model.MiB,
		LogKeep:     4,
	}
}

// Validate returns the first thing wrong with o, naming the flag.
func (o *Options) Validate() error {
	if o.DataDir == "" {
		return fmt.Errorf("--data-dir is empty")
	}
	if _, err := identity.ParseMode(o.Auth); err != nil {
		return fmt.Errorf("--auth: %w", err)
	}
	if err := identity.CheckListen(o.HTTPAddr, identity.Mode(o.Auth)); err != nil {
		return fmt.Errorf("--http-addr: %w", err)
	}
	if o.LogSize < 64*model.KiB {
		return fmt.Errorf("--log-size %v is less than 64KiB", o.LogSize)
	}
	if o.LogKeep < 1 || o.LogKeep > 1000 {
		return fmt.Errorf("--log-keep %d is outside 1 to 1000", o.LogKeep)
	}
	if o.NodeCPUs != 0 && o.Keep.CPUs != 0 {
		return errors.New("--reserve-cpus takes off what the machine has: it has no meaning with --node-cpus")
	}
	if o.NodeMemory != 0 && o.Keep.Memory != 0 {
		return errors.New("--reserve-memory takes off what the machine has: it has no meaning with --node-memory")
	}
	if errs := o.Node.Validate(); errs != nil {
		return fmt.Errorf("--%s: %s", errs[0].Path, errs[0].Message)
	}
	return nil
}

// cluster returns a short name that tells this data directory from others on the machine, for cgroups.
func (o *Options) cluster() string {
	sum := sha256.Sum256([]byte(o.DataDir))
	return hex.EncodeToString(sum[:4])
}

// TokenFile returns where the admin token of a data directory lies.
func TokenFile(dataDir string) string { return filepath.Join(dataDir, "admin.token") }

// helpers returns the directory of the running binary, where its helpers lie too.
func helpers() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	exe, err = filepath.EvalSymlinks(exe)
	return filepath.Dir(exe), err
}
