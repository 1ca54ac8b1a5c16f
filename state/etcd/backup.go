package etcd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/gantry-os/gantry/model"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// A backup is a line of JSON, then etcd's snapshot: its whole database file and the file's sum.
const (
	backupKind   = "gantry backup"
	backupFormat = 1
	maxHeader    = 4096
)

// restoreBump is added to the revision of what is restored, so that no revision that the lost cluster may have given after its
// backup comes again with another content: terms of leaders and watches compare them.
const restoreBump = 1_000_000_000

// ErrBackup says that a file is no whole backup. Nothing was restored.
var ErrBackup = errors.New("this is no backup that can be restored")

// Backup says what a backup holds.
type Backup struct {
	Kind     string    `json:"kind"`
	Format   int       `json:"format"`
	Created  time.Time `json:"created"`
	Etcd     string    `json:"etcd"`     // version of the store
	Revision int64     `json:"revision"` // newest in it
	Keys     int       `json:"keys"`     // records, and a few of the store's own
	Size     int64     `json:"size"`     // bytes of the snapshot
	SHA256   string    `json:"sha256"`   // of the snapshot

	Stored model.Release `json:"stored,omitzero"` // whose records they are; zero when nobody said
}

// Backup writes all that is in the store as of one moment, which other work does not wait for. It was read back and checked
// before its first byte is written to w; meanwhile it takes as much disk space again beside the member's.
//
// Of an external etcd it has everything, what others keep there too.
func (s *Store) Backup(ctx context.Context, w io.Writer) (Backup, error) {
	if e := s.cfg.External; e != nil && e.Prefix != "" {
		return Backup{}, fmt.Errorf("%w: it is shared by keys below %s; take a backup with etcdctl snapshot save", ErrNotOurs, e.Prefix)
	}
	dir, err := os.MkdirTemp(s.cfg.Dir, "backup-")
	if err != nil {
		return Backup{}, fmt.Errorf("make a place for the backup: %w", err)
	}
	b, err := s.backup(ctx, filepath.Join(dir, "db"), w)
	return b, errors.Join(err, os.RemoveAll(dir))
}

func (s *Store) backup(ctx context.Context, path string, w io.Writer) (Backup, error) {
	snap, err := s.link.Load().client.SnapshotWithVersion(ctx)
	if err != nil {
		return Backup{}, fmt.Errorf("take a snapshot: %w", explain(err))
	}
	size, sum, err := spool(path, snap.Snapshot)
	if err = errors.Join(err, snap.Snapshot.Close()); err != nil {
		return Backup{}, fmt.Errorf("take a snapshot: %w", err)
	}
	b := Backup{
		Kind: backupKind, Format: backupFormat, Created: s.cfg.Now().UTC(), Etcd: snap.Version, Size: size, SHA256: sum, Stored: s.View().Stored(),
	}
	st, err := inspect(path)
	if err != nil {
		return Backup{}, fmt.Errorf("check the snapshot: %w", err)
	}
	b.Revision, b.Keys = st.Revision, st.TotalKey
	head, err := json.Marshal(b)
	if err != nil {
		return Backup{}, fmt.Errorf("write backup: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return Backup{}, fmt.Errorf("write backup: %w", err)
	}
	defer f.Close()
	if _, err := io.Copy(w, io.MultiReader(bytes.NewReader(append(head, '\n')), f)); err != nil {
		return Backup{}, fmt.Errorf("write backup: %w", err)
	}
	return b, nil
}

// spool writes r to path, and returns its bytes and sum.
func spool(path string, r io.Reader) (int64, string, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, "", err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), r)
	return n, hex.EncodeToString(sum.Sum(nil)), errors.Join(err, f.Close())
}

// NewCluster is what a restored member is.
type NewCluster struct {
	Name string // as in Config
	Peer *Peer  // as in Config
}

// Restore makes a data directory of a backup: the first member of a new cluster, which is to be opened with the same name and Peer.
// dir has to be new or empty. What ran goes on meanwhile, and is adopted by the servers of the new cluster. Members of the
// old cluster are not to be started again.
func Restore(dir string, r io.Reader, c NewCluster) (Backup, error) {
	if left, err := os.ReadDir(dir); err == nil && len(left) > 0 {
		return Backup{}, fmt.Errorf("restore into %s: it is not empty", dir)
	}
	if err := c.Peer.validate(); err != nil {
		return Backup{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Backup{}, fmt.Errorf("restore: %w", err)
	}
	work, err := os.MkdirTemp(dir, "restore-")
	if err != nil {
		return Backup{}, fmt.Errorf("restore: %w", err)
	}
	b, err := restore(dir, work, r, c)
	return b, errors.Join(err, os.RemoveAll(work))
}

func restore(dir, work string, r io.Reader, c NewCluster) (Backup, error) {
	db := filepath.Join(work, "db")
	b, err := readBackup(db, r)
	if err != nil {
		return Backup{}, err
	}
	if c.Name == "" {
		c.Name = "gantry"
	}
	url := c.Peer.url()
	whole := filepath.Join(work, "whole")
	err = guarded(func() error {
		return snapshot.NewV3(silent()).Restore(snapshot.RestoreConfig{
			SnapshotPath: db, Name: c.Name, OutputDataDir: whole, PeerURLs: []string{url.String()},
			InitialCluster: c.Name + "=" + url.String(), InitialClusterToken: rand.Text(),
			RevisionBump: restoreBump, MarkCompacted: true,
		})
	})
	if err != nil {
		return Backup{}, fmt.Errorf("restore: %w", err)
	}
	if err := os.Rename(filepath.Join(whole, "member"), filepath.Join(dir, "member")); err != nil { // all of it or nothing
		return Backup{}, fmt.Errorf("restore: %w", err)
	}
	return b, nil
}

// readBackup puts the snapshot of a backup at path, if it is whole.
func readBackup(path string, r io.Reader) (Backup, error) {
	in := bufio.NewReaderSize(r, maxHeader)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return Backup{}, fmt.Errorf("%w: it does not begin with a backup's line", ErrBackup)
	}
	var b Backup
	switch err := json.Unmarshal(line, &b); { // not strictly: a newer Gantry may say more
	case err != nil || b.Kind != backupKind:
		return Backup{}, fmt.Errorf("%w: it does not begin with a backup's line", ErrBackup)
	case b.Format != backupFormat:
		return Backup{}, fmt.Errorf("%w: its format is %d, a newer Gantry may have written it", ErrBackup, b.Format)
	case b.Stored != model.Release{} && admits("", model.ThisRelease, b.Stored) != nil:
		return Backup{}, fmt.Errorf("%w: it holds what Gantry %v stores, and this is Gantry %v: restore it with Gantry %v or %v", ErrBackup,
			b.Stored, model.ThisRelease, b.Stored, b.Stored.Next())
	}
	size, sum, err := spool(path, io.LimitReader(in, b.Size+1))
	switch {
	case err != nil:
		return Backup{}, fmt.Errorf("read backup: %w", err)
	case size < b.Size:
		return Backup{}, fmt.Errorf("%w: it is cut off: %d bytes of %d are there", ErrBackup, size, b.Size)
	case size > b.Size:
		return Backup{}, fmt.Errorf("%w: something follows its end", ErrBackup)
	case sum != b.SHA256:
		return Backup{}, fmt.Errorf("%w: it is damaged: its sum is %s and was %s", ErrBackup, sum, b.SHA256)
	}
	st, err := inspect(path)
	switch {
	case err != nil:
		return Backup{}, fmt.Errorf("%w: %w", ErrBackup, err)
	case st.Revision != b.Revision || st.TotalKey != b.Keys:
		return Backup{}, fmt.Errorf("%w: it has %d keys at revision %d, and %d at %d were written", ErrBackup,
			st.TotalKey, st.Revision, b.Keys, b.Revision)
	}
	return b, nil
}

// inspect reads a whole snapshot and checks it.
func inspect(path string) (st snapshot.Status, err error) {
	err = guarded(func() error {
		st, err = snapshot.NewV3(silent()).Status(path)
		return err
	})
	return st, err
}

// guarded runs fn, which may panic or end its goroutine over files that are not what they should be.
func guarded(fn func() error) error {
	done := make(chan error)
	go func() {
		err := errors.New("it cannot be read")
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("it cannot be read: %v", v)
			}
			done <- err
		}()
		err = fn()
	}()
	return <-done
}

// silent is for etcd's tools.
func silent() *zap.Logger { return quiet(slog.New(slog.DiscardHandler), nil) }
