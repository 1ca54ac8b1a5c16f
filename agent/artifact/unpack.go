package artifact

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/gantry-os/gantry/model"
)

// ErrArchive says that an archive is broken, or holds what an archive may not.
var ErrArchive = errors.New("bad archive")

// maxEntries bounds how many files one archive may make.
const maxEntries = 1_000_000

// isArchive reports whether a name has the ending of a known archive.
func isArchive(name string) bool {
	name = strings.ToLower(name)
	for _, end := range []string{".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".zip"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

// unpacker makes the files of one archive below root, which nothing else changes meanwhile. All its writes go through
// root, so that no name and no link in the archive can lead out of it.
type unpacker struct {
	ctx     context.Context
	root    *os.Root
	left    int64 // bytes that may still be written
	entries int
}

// unpack makes the files of an archive below root, at most limit bytes in all. It tells the format from the content.
// Ownership, set-user-id bits and times are not kept.
func unpack(ctx context.Context, archive *os.File, root *os.Root, limit model.Bytes) error {
	u := &unpacker{ctx: ctx, root: root, left: int64(limit)}
	info, err := archive.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, 6)
	n, err := archive.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return err
	}
	if bytes.HasPrefix(head[:n], []byte("PK\x03\x04")) || bytes.HasPrefix(head[:n], []byte("PK\x05\x06")) {
		return u.zip(archive, info.Size())
	}
	stream, done, err := decompress(head[:n], bufio.NewReaderSize(archive, 256<<10))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrArchive, err)
	}
	defer done()
	return u.tar(stream)
}

// decompress undoes the compression that the first bytes of a stream show.
func decompress(head []byte, r io.Reader) (io.Reader, func(), error) {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		return z, func() {}, err
	case bytes.HasPrefix(head, []byte("BZh")):
		return bzip2.NewReader(r), func() {}, nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		z, err := xz.ReaderConfig{DictCap: 64 << 20}.NewReader(r)
		return z, func() {}, err
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return r, func() {}, nil
}

func (u *unpacker) tar(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrArchive, err)
		}
		if err := u.tarEntry(h, tr); err != nil {
			return err
		}
	}
}

func (u *unpacker) tarEntry(h *tar.Header, r io.Reader) error {
	name, err := u.name(h.Name)
	if err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		return u.dir(name)
	case tar.TypeReg:
		return u.file(name, mode, r)
	case tar.TypeSymlink:
		return u.symlink(name, h.Linkname)
	case tar.TypeLink:
		target, err := u.name(h.Linkname)
		if err != nil {
			return err
		}
		return u.link(name, target)
	case tar.TypeXGlobalHeader:
		return nil
	}
	return fmt.Errorf("%w: %q is neither file, directory nor link", ErrArchive, h.Name)
}

func (u *unpacker) zip(r io.ReaderAt, size int64) error {
	zr, err := zip.NewReader(r, size)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrArchive, err)
	}
	for _, f := range zr.File {
		if err := u.zipEntry(f); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) zipEntry(f *zip.File) error {
	name, err := u.name(f.Name)
	if err != nil {
		return err
	}
	mode := f.Mode()
	if mode.IsDir() || strings.HasSuffix(f.Name, "/") {
		return u.dir(name)
	}
	if !mode.IsRegular() && mode.Type() != fs.ModeSymlink {
		return fmt.Errorf("%w: %q is neither file, directory nor link", ErrArchive, f.Name)
	}
	r, err := f.Open()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrArchive, err)
	}
	defer r.Close()
	if mode.Type() != fs.ModeSymlink {
		return u.file(name, mode.Perm(), r)
	}
	target, err := io.ReadAll(io.LimitReader(r, 4096))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrArchive, err)
	}
	return u.symlink(name, string(target))
}

// name checks and counts an entry and returns its path below the root.
func (u *unpacker) name(name string) (string, error) {
	if u.entries++; u.entries > maxEntries {
		return "", fmt.Errorf("%w: more than %d entries", ErrArchive, maxEntries)
	}
	if err := context.Cause(u.ctx); err != nil {
		return "", err
	}
	clean := path.Clean(name)
	if name == "" || strings.ContainsRune(name, 0) || path.IsAbs(clean) || leaves(clean) {
		return "", fmt.Errorf("%w: %q would lie outside", ErrArchive, name)
	}
	return clean, nil
}

func leaves(clean string) bool { return clean == ".." || strings.HasPrefix(clean, "../") }

func (u *unpacker) dir(name string) error {
	if err := u.root.MkdirAll(name, 0o755); err != nil {
		return fmt.Errorf("%w: make %q: %w", ErrArchive, name, err)
	}
	return nil
}

// fresh makes the directory of an entry and removes what the entry replaces.
func (u *unpacker) fresh(name string) error {
	if name == "." {
		return fmt.Errorf("%w: an entry without a name", ErrArchive)
	}
	if err := u.dir(path.Dir(name)); err != nil {
		return err
	}
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: replace %q: %w", ErrArchive, name, err)
	}
	return nil
}

func (u *unpacker) file(name string, mode fs.FileMode, r io.Reader) error {
	if err := u.fresh(name); err != nil {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make %q: %w", name, err)
	}
	defer f.Close()
	n, err := io.Copy(f, io.LimitReader(ctxReader{u.ctx, r}, u.left+1))
	if err != nil {
		return fmt.Errorf("%w: unpack %q: %w", ErrArchive, name, err)
	}
	if u.left -= n; u.left < 0 {
		return fmt.Errorf("%w: it unpacks to more than is allowed", ErrArchive)
	}
	if err := f.Chmod(mode | 0o400); err != nil {
		return fmt.Errorf("set mode of %q: %w", name, err)
	}
	return f.Close()
}

// symlink makes a link if its target, taken literally, lies inside.
func (u *unpacker) symlink(name, target string) error {
	if target == "" || path.IsAbs(target) || leaves(path.Join(path.Dir(name), target)) {
		return fmt.Errorf("%w: the link %q leads outside, to %q", ErrArchive, name, target)
	}
	if err := u.fresh(name); err != nil {
		return err
	}
	if err := u.root.Symlink(target, name); err != nil {
		return fmt.Errorf("%w: link %q: %w", ErrArchive, name, err)
	}
	return nil
}

func (u *unpacker) link(name, target string) error {
	info, err := u.root.Lstat(target)
	if err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%w: the link %q is to %q, which is no file of it", ErrArchive, name, target)
	}
	if name == target {
		return nil
	}
	if err := u.fresh(name); err != nil {
		return err
	}
	if err := u.root.Link(target, name); err != nil {
		return fmt.Errorf("%w: link %q: %w", ErrArchive, name, err)
	}
	return nil
}

// ctxReader fails once its context ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
