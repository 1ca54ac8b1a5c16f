package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/gantry-os/gantry/identity"
	"github.com/gantry-os/gantry/model"
	"github.com/gantry-os/gantry/route/dns"
)

// Version is what source this build was made of, set by the linker.
var Version = "dev"

// Build is the name of this build for people.
func Build() string { return model.ThisRelease.Build(Version) }

// Options is what an operator can choose. Validate checks it; nothing changes it afterwards.
type Options struct {
	DataDir     string         // everything that Gantry keeps lies here
	HTTPAddr    string         // host:port that the API listens on
	Ephemeral   bool           // the data directory is temporary: nothing is synced to disk, and at the end all of it is removed
	Auth        string         // token or none
	KeepStopped model.Duration // how long the records and logs of stopped instances are kept
	HostOptions
	Bin    string // directory of the helpers; by default that of the running binary
	Logger *slog.Logger
}

// DefaultOptions returns what holds where the operator says nothing.
func DefaultOptions() Options {
	return Options{
		HTTPAddr:    "127.0.0.1:7070",
		Auth:        "token",
		KeepStopped: model.Duration(time.Hour),
		HostOptions: DefaultHost(),
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
	return o.HostOptions.validate()
}

// DefaultHost returns what holds for a node where the operator says nothing.
func DefaultHost() HostOptions {
	return HostOptions{LogSize: 10 * model.MiB, LogKeep: 4, DNS: DNSOptions{Listen: DNSAuto, Zone: dns.DefaultZone}}
}

// cluster returns a short name that tells this data directory from others on the machine, for cgroups.
func (o *Options) cluster() string { return clusterOf(o.DataDir) }

func clusterOf(dataDir string) string {
	sum := sha256.Sum256([]byte(dataDir))
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
